//! A daemon's HTTP from outside: what a client sees of the layers and the accept loop.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has to fail")]

mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use auth_min::{BearerToken, TokenDigest};
use axum::Json;
use axum::extract::Path;
use deadline_propagation::Deadline;
use input_validation::RequestId;
use rbee_api::error::{ErrorBody, ErrorCode};
use rbee_http::{
    Access, ApiError, CallError, HopClient, JsonBody, Metrics, Principal, Readiness,
    RequestContext, RouteTable, Server, bind,
};
use rbee_tls::PeerCertificate;
use secrets_management::Secret;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

const TOKEN: &str = "a-client-token-of-good-length";
const WORKER_TOKEN: &str = "a-worker-token-of-good-length";

async fn echo(JsonBody(body): JsonBody<Vec<u32>>) -> Json<Vec<u32>> {
    Json(body)
}

async fn panics() -> Result<(), ApiError> {
    panic!("on purpose")
}

/// Has one permit for each time that `slow` was entered.
static ENTERED: Semaphore = Semaphore::const_new(0);

async fn slow() -> &'static str {
    ENTERED.add_permits(1);
    tokio::time::sleep(Duration::from_millis(200)).await;
    "done"
}

async fn numbered(Path(number): Path<u32>) -> Json<u32> {
    Json(number)
}

async fn request_id(context: RequestContext) -> String {
    context.id.to_string()
}

fn metrics() -> Metrics {
    static METRICS: std::sync::OnceLock<Metrics> = std::sync::OnceLock::new();
    METRICS.get_or_init(|| Metrics::install("test").unwrap()).clone()
}

/// Starts the test daemon on a runtime of its own, which lives as long as the process.
async fn start() -> (SocketAddr, CancellationToken) {
    let client = TokenDigest::of(TOKEN);
    let worker = TokenDigest::of(WORKER_TOKEN);
    let authenticator = Arc::new(move |shown: &BearerToken<'_>, _: Option<&PeerCertificate>| {
        let shown = shown.digest();
        if shown.matches(&client) {
            return Some(Principal::Client);
        }
        shown.matches(&worker).then(|| Principal::Worker("w-1".parse().unwrap()))
    });
    let routes = RouteTable::new()
        .health(Readiness::new(|| Err(ErrorCode::Loading)))
        .post("/echo", Access::Inference, echo)
        .get("/panics", Access::Inference, panics)
        .get("/slow", Access::Inference, slow)
        .get("/numbered/{number}", Access::Inference, numbered)
        .get("/id", Access::Inference, request_id);
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let server =
        Server::new(listener, routes.build((), authenticator, metrics()), Duration::from_secs(5));
    tokio::spawn(server.run(stop.clone()));
    (address, stop)
}

/// Sends one raw request and returns status, headers and body.
async fn raw(address: SocketAddr, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), body.to_owned())
}

async fn call(address: SocketAddr, method: &str, path: &str, extra: &str) -> (u16, String, Value) {
    let (status, head, body) = raw(
        address,
        &format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{extra}\r\n"),
    )
    .await;
    (status, head, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

#[tokio::test]
async fn whatever_is_not_public_wants_a_credential_before_it_is_routed() {
    let (address, _stop) = start().await;
    for path in
        ["/echo", "/panics", "/nowhere", "/HEALTH", "/health/", "//health", "/health/../echo"]
    {
        for method in ["GET", "POST", "HEAD", "OPTIONS", "BREW"] {
            let (status, head, _) = call(address, method, path, "").await;
            assert_eq!(status, 401, "{method} {path}");
            assert!(head.contains("www-authenticate: bearer"), "{head}");
        }
    }
    for bad in [
        "Authorization: Basic x\r\n",
        "Authorization: Bearer\r\n",
        "Authorization: Bearer wrong\r\n",
    ] {
        let (status, _, body) = call(address, "GET", "/id", bad).await;
        assert_eq!((status, &body["error"]["code"]), (401, &json!("unauthorized")), "{bad}");
    }
    let twice = format!("{}{}", bearer(TOKEN), bearer(TOKEN));
    assert_eq!(call(address, "GET", "/id", &twice).await.0, 401);
    assert_eq!(call(address, "GET", "/id", &bearer(TOKEN)).await.0, 200);
}

#[tokio::test]
async fn a_credential_opens_only_the_routes_of_its_kind() {
    let (address, _stop) = start().await;
    let (status, _, body) = call(address, "GET", "/id", &bearer(WORKER_TOKEN)).await;
    assert_eq!((status, &body["error"]["code"]), (403, &json!("forbidden")));
}

#[tokio::test]
async fn health_is_public_and_says_why_it_is_not_ready() {
    let (address, _stop) = start().await;
    assert_eq!(call(address, "GET", "/livez", "").await.0, 200);
    let (status, head, body) = call(address, "GET", "/readyz", "").await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("loading")));
    assert!(head.contains("retry-after: 1") && head.contains("retry-after-ms: 1000"), "{head}");
}

#[tokio::test]
async fn every_failure_has_the_one_error_body_and_the_request_id() {
    let (address, _stop) = start().await;
    let json_type = "Content-Type: application/json\r\n";
    let post = |body: &str, kind: &str| {
        format!("{}{kind}Content-Length: {}\r\n\r\n{body}", bearer(TOKEN), body.len())
    };
    let cases = [
        ("GET", "/nowhere", bearer(TOKEN), 404, "route_not_found"),
        ("DELETE", "/echo", bearer(TOKEN), 405, "method_not_allowed"),
        // The library's own refusal, in its own words.
        ("GET", "/numbered/x", bearer(TOKEN), 400, "validation_failed"),
        ("POST", "/echo", post("[1]", ""), 415, "unsupported_media_type"),
        ("POST", "/echo", post("[1, \"x\"]", json_type), 400, "validation_failed"),
        ("POST", "/echo", post("[1] 2", json_type), 400, "validation_failed"),
        (
            "POST",
            "/echo",
            format!("{}{json_type}Content-Length: 99999999\r\n", bearer(TOKEN)),
            413,
            "payload_too_large",
        ),
        ("GET", "/panics", bearer(TOKEN), 500, "internal_error"),
    ];
    for (method, path, extra, status, code) in cases {
        let extra = format!("X-Request-Id: my-id-7\r\n{extra}");
        let (got, head, body) = call(address, method, path, &extra).await;
        assert_eq!(
            (got, &body["error"]["code"]),
            (status, &json!(code)),
            "{method} {path}: {body}"
        );
        assert_eq!(body["error"]["request_id"], "my-id-7");
        assert!(
            head.contains("x-request-id: my-id-7") && head.contains("application/json"),
            "{head}"
        );
        serde_json::from_value::<ErrorBody>(body).unwrap();
    }
    assert!(metrics().render().contains("rbee_test_panics_total"));
}

#[tokio::test]
async fn a_client_that_sends_too_much_gets_to_read_why() {
    let (address, _stop) = start().await;
    let body = "x".repeat(8 * 1024 * 1024);
    let extra = format!(
        "{}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        bearer(TOKEN),
        body.len()
    );
    let (status, _, reply) = call(address, "POST", "/echo", &extra).await;
    assert_eq!((status, &reply["error"]["code"]), (413, &json!("payload_too_large")));
}

/// Most clients send head and body one after the other, and use a connection again.
#[tokio::test]
async fn a_refusal_before_the_body_came_breaks_no_connection() {
    let (address, _stop) = start().await;
    let head = |path: &str, token: &str, length: usize| {
        let credential = bearer(token);
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\n{credential}Content-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n"
        )
    };
    for (path, token, refused) in
        [("/nowhere", TOKEN, "404"), ("/echo", "a-token-that-nobody-knows", "401")]
    {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head(path, token, 4).as_bytes()).await.unwrap();
        stream.write_all(b"[1").await.unwrap();
        // By now it is decided: a connection that is given up is closed.
        let mut early = [0; 1024];
        let answered = tokio::time::timeout(Duration::from_millis(500), stream.read(&mut early));
        assert!(answered.await.is_err(), "{path}: answered over unread bytes");
        stream.write_all(b"2]").await.unwrap();
        stream.write_all(head("/echo", TOKEN, 3).as_bytes()).await.unwrap();
        stream.write_all(b"[7]").await.unwrap();
        let mut replies = String::new();
        while !replies.ends_with("[7]") {
            let mut piece = [0; 1024];
            let length = stream.read(&mut piece).await.unwrap();
            assert!(length > 0, "{path}: the connection was closed after {replies}");
            replies.push_str(std::str::from_utf8(piece.get(..length).unwrap()).unwrap());
        }
        assert!(replies.starts_with(&format!("HTTP/1.1 {refused} ")), "{replies}");
    }
}

#[tokio::test]
async fn a_body_that_never_comes_holds_no_refusal_back_for_long() {
    let (address, _stop) = start().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n[1";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut reply)).await;
    assert!(read.is_ok() && reply.starts_with(b"HTTP/1.1 401"), "{reply:?}");
}

#[tokio::test]
async fn the_place_of_a_wrong_field_is_named() {
    let (address, _stop) = start().await;
    let body = "[1, -2]";
    let extra = format!(
        "{}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        bearer(TOKEN),
        body.len()
    );
    let (_, _, reply) = call(address, "POST", "/echo", &extra).await;
    assert_eq!(reply["error"]["param"], "[1]");
}

#[tokio::test]
async fn a_hostile_request_id_is_replaced() {
    let (address, _stop) = start().await;
    for bad in ["a b", "\"x\"", &"x".repeat(129)] {
        let extra = format!("{}X-Request-Id: {bad}\r\n", bearer(TOKEN));
        let (_, _, body) = call(address, "GET", "/id", &extra).await;
        let id = body.as_str().unwrap();
        assert!(id.parse::<RequestId>().is_ok() && id != bad, "{id}");
    }
}

#[tokio::test]
async fn a_client_that_never_ends_its_headers_is_cut_off() {
    let (address, _stop) = start().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n").await.unwrap();
    let mut reply = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut reply)).await;
    assert!(ended.is_ok(), "the connection is still open after 15 s");
}

#[tokio::test]
async fn headers_beyond_the_limit_are_refused() {
    let (address, _stop) = start().await;
    let extra = format!("X-Long: {}\r\n", "x".repeat(64 * 1024));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /health HTTP/1.1\r\nHost: localhost\r\n{extra}\r\n");
    // The server may answer and close before everything is written.
    let written: io::Result<()> = stream.write_all(request.as_bytes()).await;
    let mut reply = Vec::new();
    let read = stream.read_to_end(&mut reply).await;
    assert!(written.is_err() || read.is_err() || reply.starts_with(b"HTTP/1.1 431"), "{reply:?}");
}

#[tokio::test]
async fn a_stop_lets_running_requests_finish_and_closes_the_port() {
    let (address, stop) = start().await;
    let running = tokio::spawn(async move { call(address, "GET", "/slow", &bearer(TOKEN)).await });
    ENTERED.acquire().await.unwrap().forget();
    stop.cancel();
    let (status, _, body) = running.await.unwrap();
    assert_eq!((status, body), (200, json!("done")));
    let deadline = Deadline::after(Duration::from_secs(5));
    while TcpStream::connect(address).await.is_ok() {
        assert!(!deadline.is_expired(), "the port is still open");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_hop_client_tells_refusals_from_silence() {
    let (address, _stop) = start().await;
    let url = format!("http://{address}");
    let soon = || Deadline::after(Duration::from_secs(5));
    let client = |token: &str| {
        HopClient::new(&url, Arc::new(Secret::from_bytes(token.as_bytes(), "test").unwrap()))
            .unwrap()
    };
    let same: Vec<u32> = client(TOKEN).post("/echo", &vec![1_u32, 2], soon()).await.unwrap();
    assert_eq!(same, [1, 2]);
    let refused = client("some-other-token-here").get::<Value>("/id", soon()).await.unwrap_err();
    assert!(matches!(&refused, CallError::Refused(d) if d.code == ErrorCode::Unauthorized));
    let late = client(TOKEN)
        .get::<Value>("/slow", Deadline::after(Duration::from_millis(20)))
        .await
        .unwrap_err();
    assert!(matches!(late, CallError::TimedOut));
    let closed = bind("127.0.0.1:0".parse().unwrap()).await.unwrap().local_addr().unwrap();
    let gone = HopClient::new(&format!("http://{closed}"), Arc::new(Secret::generate().unwrap()))
        .unwrap()
        .get::<Value>("/id", soon())
        .await
        .unwrap_err();
    assert!(matches!(gone, CallError::Unreachable(_)));
}
