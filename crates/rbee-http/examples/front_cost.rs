//! What the layers around a route add to a request: name, credential, validation of the body, metrics, audit log.
//! Each sample is a request through them and one to the same route without them, in turns; both are answered in this
//! process, so that what is left is theirs alone. Prints one JSON object. Run by `make bench`.

#![expect(clippy::disallowed_types, reason = "measures real time")]

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_logging::{AuditSettings, Auditor, Event, Kind, Options, Outcome, Signer};
use auth_min::{BearerToken, TokenDigest};
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::routing::post;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use rbee_api::openai::ChatRequest;
use rbee_http::{
    Access, ApiError, Caller, Metrics, Principal, RawJson, Readiness, RequestContext, RouteTable,
};
use rbee_tls::PeerCertificate;
use secrets_management::Secret;
use serde_json::{Value, json};
use tower::ServiceExt as _;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const PATH: &str = "/v1/chat/completions";
const TOKEN: &str = "rbee-0123456789abcdef0123456789abcdef";
/// Words of the prompt.
const WORDS: usize = 400;
const WARM_UP: usize = 2_000;
const SAMPLES: usize = 20_000;
/// Time before each request where the program has nothing else to do: the processor has gone to sleep then.
const PAUSE: Duration = Duration::from_millis(1);

/// Does what the queen does before she looks for a worker.
async fn chat(
    RequestContext { id }: RequestContext,
    RawJson(body): RawJson,
) -> Result<Bytes, ApiError> {
    let request = ChatRequest::parse(&body)?;
    let trail = Caller::current().trail(&id, "chat", request.model.as_str());
    trail.assigned("w-0190f3a2");
    trail.ends(Outcome::Success, "ok");
    Ok(Bytes::from_static(b"{}"))
}

fn guarded(audit: Auditor) -> Result<Router, Failure> {
    let known = TokenDigest::of(TOKEN);
    let authenticator = move |shown: &BearerToken<'_>, _: Option<&PeerCertificate>| {
        shown.digest().matches(&known).then_some(Principal::Client)
    };
    let routes = RouteTable::new().health(Readiness::new(|| Ok(()))).audited(audit);
    let routes = routes.post(PATH, Access::Inference, chat);
    Ok(routes.build((), Arc::new(authenticator), Metrics::install("queen")?))
}

fn bare() -> Router {
    let answer = |body: Bytes| async move {
        std::hint::black_box(body);
        "{}"
    };
    Router::new().route(PATH, post(answer))
}

/// Sends one request, and returns the microseconds until it was answered.
async fn timed(router: &Router, body: &Bytes) -> Result<f64, Failure> {
    let request = Request::post(PATH)
        .header(HOST, "127.0.0.1:8080")
        .header(CONTENT_TYPE, "application/json")
        .header(AUTHORIZATION, format!("Bearer {TOKEN}"))
        .body(Body::from(body.clone()))?;
    let router = router.clone();
    let begun = Instant::now();
    let response = router.oneshot(request).await?;
    let took = begun.elapsed();
    match response.status().is_success() {
        true => Ok(took.as_secs_f64() * 1e6),
        false => Err(format!("answered {}", response.status()).into()),
    }
}

async fn measure() -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let options = Options {
        directory: directory.path().join("audit"),
        service: "queen-rbee".to_owned(),
        settings: AuditSettings::default(),
        signer: Signer::new(&Secret::generate()?, "queen-rbee"),
    };
    let audit = Auditor::open(options, Event::new(Kind::Start, Outcome::Success))?;
    let (guarded, bare) = (guarded(audit.clone())?, bare());
    let content = "word ".repeat(WORDS);
    let body = json!({"model": "smollm2:135m", "messages": [{"role": "user", "content": content}]});
    let body = Bytes::from(body.to_string());
    let busy = added(&guarded, &bare, &body, None).await?;
    let idle = added(&guarded, &bare, &body, Some(PAUSE)).await?;
    let entries_lost = audit.status().entries_lost;
    audit.close(Event::new(Kind::Stop, Outcome::Success)).await;
    let found =
        json!({ "samples": SAMPLES, "busy": busy, "idle": idle, "entries_lost": entries_lost });
    writeln!(std::io::stdout(), "{found}")?;
    Ok(())
}

/// Returns what `guarded` takes longer than `bare`, where each request comes so long after the one before.
async fn added(
    guarded: &Router,
    bare: &Router,
    body: &Bytes,
    pause: Option<Duration>,
) -> Result<Value, Failure> {
    let mut added = Vec::with_capacity(SAMPLES);
    for sample in 0..WARM_UP + SAMPLES {
        let mut took = [0.0; 2];
        for (took, router) in took.iter_mut().zip([guarded, bare]) {
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
            *took = timed(router, body).await?;
        }
        if sample >= WARM_UP {
            added.push(took[0] - took[1]);
        }
    }
    added.sort_by(f64::total_cmp);
    Ok(json!({ "p50_us": added.get(SAMPLES / 2), "p99_us": added.get(SAMPLES * 99 / 100) }))
}

fn main() -> Result<(), Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure())
}
