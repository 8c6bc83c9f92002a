//! Signed tokens of an identity provider at the real queen.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rbee_api::worker::WorkerState;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::daemon::{TestHome, error_of, eventually, eventually_every};
use crate::fake_hive::{End, Reply};
use crate::pair::{ALIAS, Pair};
use crate::signer::{Signer, encode};

const REPLY: &str =
    r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}"#;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn claims(more: &Value) -> Value {
    let mut claims = json!({
        "iss": "https://id.example", "aud": "rbee", "sub": "alice@example.com", "exp": now() + 300,
        "jti": "t-1", "scope": "openid rbee:inference rbee:models",
    });
    for (name, value) in more.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

fn section(more: &str) -> String {
    format!("[jwt]\nissuer = 'https://id.example'\naudience = 'rbee'\n{more}\n")
}

/// A queen that believes the tokens of `signer`, and takes back those in `revoked`.
async fn pair(signer: &Signer, folder: &Path, more: &str) -> Pair {
    let (keys, revoked) = (folder.join("jwks.json"), folder.join("revoked"));
    fs::write(&keys, signer.key_set().to_string()).unwrap();
    fs::write(&revoked, "# taken back\nt-gone\n").unwrap();
    let files =
        format!("jwks_file = '{}'\nrevoked_file = '{}'\n{more}", keys.display(), revoked.display());
    ready(&section(&files)).await
}

async fn ready(settings: &str) -> Pair {
    let pair = Pair::silent(settings).await;
    pair.hive.set_worker("w-1", WorkerState::Ready);
    pair.hive.script([Reply::Json(REPLY)]);
    pair.report().await;
    pair.online().await;
    pair
}

async fn models(pair: &Pair, token: &str) -> Response {
    pair.queen.bare(Method::GET, "/v1/models").bearer_auth(token).send().await.unwrap()
}

async fn chat(pair: &Pair, token: &str, model: &str) -> Response {
    let body = json!({"model": model, "messages": [{"role": "user", "content": "hello"}]});
    let request = pair.queen.bare(Method::POST, "/v1/chat/completions").bearer_auth(token);
    request.json(&body).send().await.unwrap()
}

#[tokio::test]
async fn a_signed_token_opens_what_its_claims_say() {
    let (signer, folder) = (Signer::new(), tempfile::tempdir().unwrap());
    let pair = pair(&signer, folder.path(), "limits = { requests_per_minute = 4 }").await;
    for key in ["rsa", "ec", "ed"] {
        let token = signer.token(key, &claims(&json!({})));
        assert_eq!(chat(&pair, &token, ALIAS).await.status(), 200, "{key}");
    }
    let usage = pair.queen.get_json("/api/v1/usage").await;
    let row = &usage["usage"][0];
    assert_eq!((&row["key"], &row["requests"]), (&json!("jwt:alice@example.com"), &json!(3)));
    assert_eq!((&row["prompt_tokens"], &row["completion_tokens"]), (&json!(21), &json!(9)));
    let scopes: Vec<_> =
        pair.hive.forwarded.lock().unwrap().iter().map(|sent| sent.cache_scope.clone()).collect();
    assert!(scopes[0].is_some() && scopes[1..].iter().all(|scope| *scope == scopes[0]));

    let only = |more: Value| signer.token("ed", &claims(&more));
    for (more, path, expected) in [
        (json!({}), "/api/v1/status", 403),
        (json!({"scope": "rbee:status"}), "/api/v1/status", 200),
        (json!({"scope": "rbee:status"}), "/v1/models", 403),
        (json!({"scope": ["rbee:admin"]}), "/api/v1/keys", 200),
        (json!({"scope": "admin RBEE:ADMIN"}), "/api/v1/keys", 403),
        (json!({"scope": ""}), "/v1/models", 403),
        (json!({"scope": 7}), "/v1/models", 401),
        (json!({"rbee_models": [1]}), "/v1/models", 401),
        (json!({"rbee_models": []}), "/v1/models", 401),
        (json!({"rbee_models": ["a b"]}), "/v1/models", 401),
    ] {
        let request = pair.queen.bare(Method::GET, path).bearer_auth(only(more.clone()));
        assert_eq!(request.send().await.unwrap().status(), expected, "{more} {path}");
    }
    let other = only(json!({"sub": "bob", "rbee_models": ["other:1b"]}));
    assert_eq!(error_of(chat(&pair, &other, ALIAS).await).await.1["code"], "model_not_found");
    let list: Value = models(&pair, &other).await.json().await.unwrap();
    assert_eq!(list["data"], json!([]));
    // The limit is each subject's own.
    let mine = only(json!({}));
    assert_eq!(chat(&pair, &mine, ALIAS).await.status(), 200);
    let (status, error) = error_of(chat(&pair, &mine, ALIAS).await).await;
    assert_eq!((status, &error["details"]["limit"]), (429, &json!("requests_per_minute")));
    assert_eq!(chat(&pair, &only(json!({"sub": "carol"})), ALIAS).await.status(), 200);
}

/// The tricks, each with its name, against a queen that believes `signer`.
fn tricks(signer: &Signer, thief: &Signer) -> Vec<(&'static str, String)> {
    let header = |more: Value| {
        let mut header = json!({"alg": "EdDSA", "kid": "ed"});
        for (name, value) in more.as_object().unwrap() {
            header[name] = value.clone();
        }
        header.to_string()
    };
    let good = claims(&json!({})).to_string();
    let without = |name: &str| {
        let mut claims = claims(&json!({}));
        claims.as_object_mut().unwrap().remove(name);
        signer.token("ed", &claims)
    };
    let unsigned = format!("{}.{}.", encode(header(json!({"alg": "none"}))), encode(&good));
    let doubled = good.replacen('{', "{\"aud\":\"x\",", 1);
    let with = |more: Value| signer.token("ed", &claims(&more));
    let headed = |more: Value| signer.sign("ed", &header(more), &good);
    let stolen = |more: Value| thief.sign("ed", &header(more), &good);
    vec![
        ("alg none", unsigned),
        ("a shared secret", headed(json!({"alg": "HS256"}))),
        ("kid traversal", headed(json!({"kid": "../../secrets/client.token"}))),
        ("crit", headed(json!({"crit": ["exp"]}))),
        ("another's key", stolen(json!({}))),
        ("jwk", stolen(json!({"jwk": thief.key_set()["keys"][2]}))),
        ("jku", stolen(json!({"jku": "http://127.0.0.1:1/k"}))),
        ("x5u", stolen(json!({"x5u": "http://127.0.0.1:1/k"}))),
        ("exp text", with(json!({"exp": "4000000000"}))),
        ("exp negative", with(json!({"exp": -1}))),
        ("exp float", with(json!({"exp": 4e9}))),
        ("exp huge", with(json!({"exp": u64::MAX}))),
        ("exp null", with(json!({"exp": null}))),
        ("exp past", with(json!({"exp": now() - 61}))),
        ("nbf text", with(json!({"nbf": "0"}))),
        ("nbf to come", with(json!({"nbf": now() + 120}))),
        ("no exp", without("exp")),
        ("no iss", without("iss")),
        ("no aud", without("aud")),
        ("no sub", without("sub")),
        ("no jti", without("jti")),
        ("issuer", with(json!({"iss": "https://id.example.org"}))),
        ("audience", with(json!({"aud": ["other"]}))),
        ("doubled", signer.sign("ed", &header(json!({})), &doubled)),
        ("trailing bytes", format!("{}AA", with(json!({})))),
        ("revoked", with(json!({"jti": "t-gone"}))),
    ]
}

#[tokio::test]
async fn every_trick_is_a_401_that_looks_the_same() {
    let (signer, thief) = (Signer::new(), Signer::new());
    let folder = tempfile::tempdir().unwrap();
    let pair = pair(&signer, folder.path(), "").await;
    let token = signer.token("ed", &claims(&json!({})));
    assert_eq!(models(&pair, &token).await.status(), 200);
    let mut seen: Option<Value> = None;
    for (trick, token) in tricks(&signer, &thief) {
        let reply = models(&pair, &token).await;
        assert_eq!(reply.headers()["www-authenticate"], "Bearer", "{trick}");
        let (status, mut error) = error_of(reply).await;
        assert_eq!((status, &error["code"]), (401, &json!("unauthorized")), "{trick}");
        error["request_id"] = Value::Null;
        assert_eq!(seen.get_or_insert(error.clone()), &error, "{trick}");
    }
    let long = signer.token("ed", &claims(&json!({"x": "x".repeat(8 * 1024)})));
    assert_eq!(models(&pair, &long).await.status(), 401);
    // A megabyte is more than a head may have: the connection ends, and never with a success.
    let huge = "a".repeat(1024 * 1024);
    let sent = pair.queen.bare(Method::GET, "/v1/models").bearer_auth(huge).send().await;
    assert!(sent.is_err() || sent.is_ok_and(|reply| reply.status().is_client_error()));
    assert_eq!(models(&pair, &token).await.status(), 200, "she serves on");
    let log = pair.home.log();
    let payload = token.split('.').nth(1).unwrap();
    assert!(log.contains("signed token refused"), "{log}");
    assert!(!log.contains(&token) && !log.contains(payload), "a token is in the log");
}

#[tokio::test]
async fn a_token_that_is_taken_back_is_refused_within_seconds() {
    let (signer, folder) = (Signer::new(), tempfile::tempdir().unwrap());
    let pair = pair(&signer, folder.path(), "").await;
    let token = signer.token("ec", &claims(&json!({"jti": "t-2"})));
    assert_eq!(models(&pair, &token).await.status(), 200);
    let fresh = folder.path().join("fresh");
    fs::write(&fresh, "t-gone\nt-2\n").unwrap();
    fs::rename(&fresh, folder.path().join("revoked")).unwrap();
    eventually("it is refused", async || {
        (models(&pair, &token).await.status() == 401).then_some(())
    })
    .await;
    // A list that is gone takes nothing back to good.
    fs::remove_file(folder.path().join("revoked")).unwrap();
    eventually("the loss is told", async || {
        pair.home.log().contains("taken back cannot be read").then_some(())
    })
    .await;
    assert_eq!(models(&pair, &token).await.status(), 401);
}

/// Time between tries with a token that is refused: too many in a row would be told to slow down.
const STEP: Duration = Duration::from_millis(100);

/// A provider that publishes what the test says, and counts who asks.
struct Provider {
    url: String,
    published: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
}

impl Provider {
    async fn start(published: String) -> Self {
        let listener = rbee_http::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let (published, asked) = (Arc::new(Mutex::new(published)), Arc::new(AtomicUsize::new(0)));
        let (body, count) = (Arc::clone(&published), Arc::clone(&asked));
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 2048];
                if stream.read(&mut head).await.is_err() {
                    continue;
                }
                count.fetch_add(1, Ordering::SeqCst);
                let body = body.lock().unwrap().clone();
                let length = body.len();
                let reply = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
                stream.write_all(reply.as_bytes()).await.ok();
            }
        });
        Self { url, published, asked }
    }
}

#[tokio::test]
async fn keys_from_an_address_follow_their_issuer_and_survive_its_faults() {
    let (signer, next) = (Signer::new(), Signer::new());
    let provider = Provider::start("not yet".to_owned()).await;
    let pair = ready(&section(&format!("jwks_url = '{}'", provider.url))).await;
    let old = signer.token("ed", &claims(&json!({})));
    assert_eq!(models(&pair, &old).await.status(), 401, "no keys have come");
    *provider.published.lock().unwrap() = signer.key_set().to_string();
    let accepted = async |token: &str| (models(&pair, token).await.status() == 200).then_some(());
    eventually_every(STEP, "the keys have come", async || accepted(&old).await).await;

    // The issuer makes new keys, under new ids.
    let renamed = next.key_set().to_string().replace("\"ed\"", "\"ed-2\"");
    *provider.published.lock().unwrap() = renamed;
    let header = json!({"alg": "EdDSA", "kid": "ed-2"}).to_string();
    let new = next.sign("ed", &header, &claims(&json!({})).to_string());
    let (before, began) = (provider.asked.load(Ordering::SeqCst), Instant::now());
    let unknown =
        signer.sign("ed", &header.replace("ed-2", "ed-3"), &claims(&json!({})).to_string());
    eventually_every(STEP, "the new keys are taken over", async || {
        assert_eq!(models(&pair, &unknown).await.status(), 401);
        accepted(&new).await
    })
    .await;
    let asked = provider.asked.load(Ordering::SeqCst) - before;
    let most = 1 + began.elapsed().as_secs() / 5;
    assert!(asked as u64 <= most, "tokens with unknown keys had it asked {asked} times");
    assert_eq!(models(&pair, &old).await.status(), 401, "the old key is gone");

    // What it publishes then is no key set: the last one stays.
    let told = || pair.home.log().matches("the last ones stay").count();
    let before = told();
    *provider.published.lock().unwrap() = "{\"keys\":[]}".to_owned();
    eventually_every(STEP, "the fault is told", async || {
        assert_eq!(models(&pair, &unknown).await.status(), 401);
        (told() > before).then_some(())
    })
    .await;
    assert_eq!(models(&pair, &new).await.status(), 200);
}

#[tokio::test]
async fn a_queen_that_cannot_check_tokens_does_not_start() {
    let home = TestHome::new();
    let keys = home.path().join("jwks.json");
    let start = |more: &str| {
        let settings = section(&format!("jwks_file = '{}'\n{more}", keys.display()));
        home.run(&settings, &["--bind", "127.0.0.1:0"])
    };
    let told = |output: &std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let missing = start("");
    assert_eq!(missing.status.code(), Some(78), "{}", told(&missing));
    assert!(told(&missing).contains("jwks.json"), "{}", told(&missing));
    fs::write(&keys, r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#).unwrap();
    let useless = start("");
    assert_eq!(useless.status.code(), Some(78), "{}", told(&useless));
    assert!(told(&useless).contains("no key for RS256"), "{}", told(&useless));
    fs::write(&keys, Signer::new().key_set().to_string()).unwrap();
    let revoked = start("revoked_file = '/nonexistent/revoked'");
    assert_eq!(revoked.status.code(), Some(78), "{}", told(&revoked));
    let time = Instant::now();
    let wrong = home.run("[jwt]\nissuer = 'i'\n", &["--validate-config"]);
    assert!(told(&wrong).contains("audience") && time.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_stream_under_a_signed_token_is_counted_and_let_go() {
    let (signer, folder) = (Signer::new(), tempfile::tempdir().unwrap());
    let pair = pair(&signer, folder.path(), "limits = { streams_max = 1 }").await;
    let token = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    pair.hive.script([Reply::Events(vec![token.to_owned()], End::Open)]);
    let signed = signer.token("ed", &claims(&json!({})));
    let open = async || {
        let body =
            json!({"model": ALIAS, "stream": true, "messages": [{"role": "user", "content": "x"}]});
        let request = pair.queen.bare(Method::POST, "/v1/chat/completions").bearer_auth(&signed);
        request.json(&body).send().await.unwrap()
    };
    let stream = open().await;
    assert_eq!((stream.status().as_u16(), open().await.status().as_u16()), (200, 429));
    drop(stream);
    eventually("it is let go", async || (open().await.status() == 200).then_some(())).await;
}
