//! Keys with names at the real queen: what they open, what they may use, how
//! they end, and what is written down about them.

use std::fs;
use std::time::Duration;

use rbee_api::headers::CACHE_SCOPE;
use reqwest::{Method, RequestBuilder, Response};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::daemon::{PATIENCE, Queen, error_of, eventually};
use crate::fake_hive::{End, Reply};
use crate::pair::{ALIAS, Pair, REFERENCE};
use crate::surface::routes;

const CHAT: &str = "/v1/chat/completions";
const REPLY: &str = r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10,"prompt_tokens_details":{"cached_tokens":5}}}"#;

/// Makes a key and returns its value.
async fn key(pair: &Pair, wanted: Value) -> String {
    let made = pair.queen.request(Method::POST, "/api/v1/keys").json(&wanted).send().await.unwrap();
    assert_eq!(made.status(), 200, "{:?}", made.text().await);
    let made: Value = made.json().await.unwrap();
    made["key"].as_str().unwrap().to_owned()
}

fn with_key(pair: &Pair, key: &str, method: Method, path: &str) -> RequestBuilder {
    pair.queen.bare(method, path).bearer_auth(key)
}

async fn get(pair: &Pair, key: &str, path: &str) -> Response {
    with_key(pair, key, Method::GET, path).send().await.unwrap()
}

fn body(model: &str, stream: bool) -> Value {
    json!({"model": model, "stream": stream, "messages": [{"role": "user", "content": "hello"}]})
}

async fn chat(pair: &Pair, key: &str, model: &str, stream: bool) -> Response {
    with_key(pair, key, Method::POST, CHAT).json(&body(model, stream)).send().await.unwrap()
}

fn open_stream() -> Reply {
    let token = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    Reply::Events(vec![token.to_owned()], End::Open)
}

async fn usage(queen: &Queen, name: &str) -> Value {
    let list = queen.get_json("/api/v1/usage?days=2").await;
    let rows = list["usage"].as_array().unwrap();
    let mut row = rows.iter().find(|row| row["key"] == name).cloned().unwrap_or_default();
    if let Some(fields) = row.as_object_mut() {
        fields.remove("key");
        fields.remove("day");
    }
    row
}

fn used(requests: u64, prompt: u64, cached: u64, completion: u64) -> Value {
    json!({"requests": requests, "prompt_tokens": prompt, "cached_tokens": cached,
        "completion_tokens": completion})
}

#[tokio::test]
async fn a_key_opens_the_routes_of_its_scopes_and_no_other() {
    let pair = Pair::ready(&["w-1"]).await;
    pair.hive.script([Reply::Json(REPLY)]);
    let scopes = ["inference", "models", "status", "admin"];
    for scope in scopes {
        let key = key(&pair, json!({"name": scope, "routes": [scope]})).await;
        let mut opened = 0;
        for (method, path, access) in routes() {
            if access == "public" {
                continue;
            }
            let is_for_clients = !["peer", "applicant"].contains(&access.as_str());
            let opens = access == scope || access == "own" || (scope == "admin" && is_for_clients);
            // Answered well it would end the queen.
            if opens && path == "/api/v1/shutdown" {
                continue;
            }
            let reply = with_key(&pair, &key, method.clone(), &path).send().await.unwrap();
            if opens {
                opened += 1;
                assert!(!matches!(reply.status().as_u16(), 401 | 403), "{scope}: {method} {path}");
                continue;
            }
            let (status, error) = error_of(reply).await;
            assert_eq!((status, &error["code"]), (403, &json!("forbidden")), "{method} {path}");
            if is_for_clients {
                assert_eq!(error["details"], json!({"needed": access, "granted": [scope]}));
            }
        }
        assert!(opened >= 4 || scope == "models", "{scope} opens {opened}");
    }
    let refused = get(&pair, "rbee_0000", "/v1/models").await;
    assert_eq!(error_of(refused).await.0, 401);
}

#[tokio::test]
async fn a_key_knows_of_its_own_models_alone() {
    let pair = Pair::ready(&["w-1"]).await;
    pair.hive.add_model(Some("secret:1b"), "file:/models/secret.gguf");
    pair.report().await;
    pair.hive.script([Reply::Json(REPLY)]);
    let key = key(&pair, json!({"name": "team", "models": [ALIAS]})).await;
    for path in ["/v1/models", "/api/v1/models"] {
        let text = get(&pair, &key, path).await.text().await.unwrap();
        assert!(text.contains(ALIAS) && !text.contains("secret"), "{path}: {text}");
        let all = pair.queen.get(path).await.text().await.unwrap();
        assert!(all.contains("secret"), "{all}");
    }
    for model in [ALIAS, REFERENCE] {
        assert_eq!(chat(&pair, &key, model, false).await.status(), 200, "{model}");
    }
    let forwarded = pair.hive.forwarded_count();
    for model in ["secret:1b", "file:/models/secret.gguf", "absent:1b"] {
        let (status, error) = error_of(chat(&pair, &key, model, false).await).await;
        assert_eq!((status, &error["code"]), (404, &json!("model_not_found")), "{model}");
        assert_eq!(error["param"], "model");
        let path = format!("/v1/models/{model}");
        assert_eq!(error_of(get(&pair, &key, &path).await).await.0, 404, "{model}");
    }
    assert_eq!(pair.hive.forwarded_count(), forwarded, "a model out of scope was asked");
    assert_eq!(usage(&pair.queen, "team").await["requests"], 2, "a refused request was counted");
}

#[tokio::test]
async fn an_expired_key_is_refused() {
    let pair = Pair::ready(&["w-1"]).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let end = u64::try_from(now.as_millis()).unwrap() + 3000;
    let key = key(&pair, json!({"name": "soon", "expires_at_ms": end})).await;
    assert_eq!(get(&pair, &key, "/v1/models").await.status(), 200);
    eventually("the key ends", async || {
        let status = get(&pair, &key, "/v1/models").await.status();
        (status == 401).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_revoked_key_is_refused_within_a_second_and_its_streams_end() {
    let pair = Pair::ready(&["w-1"]).await;
    pair.hive.script([open_stream()]);
    let (gone, kept) =
        (key(&pair, json!({"name": "gone"})).await, key(&pair, json!({"name": "kept"})).await);
    let mut streams = Vec::new();
    for key in [&gone, &kept] {
        let mut stream = chat(&pair, key, ALIAS, true).await;
        assert!(stream.chunk().await.unwrap().is_some());
        streams.push(stream);
    }
    let revoked = pair.queen.request(Method::DELETE, "/api/v1/keys/gone").send().await.unwrap();
    let at = Instant::now();
    assert_eq!(revoked.status(), 200);
    assert_eq!(error_of(get(&pair, &gone, "/v1/models").await).await.0, 401);
    let rest = timeout(PATIENCE, streams.remove(0).text()).await.expect("it ends").unwrap();
    assert!(at.elapsed() < Duration::from_secs(1));
    assert!(rest.contains("\"code\":\"unauthorized\"") && !rest.contains("[DONE]"), "{rest}");
    pair.hive.let_go.notified().await;
    assert_eq!(get(&pair, &kept, "/v1/models").await.status(), 200);
    let more = timeout(Duration::from_millis(100), streams.remove(0).chunk()).await;
    assert!(more.is_err(), "the stream of another key ended");
    let again = pair.queen.request(Method::DELETE, "/api/v1/keys/gone").send().await.unwrap();
    assert_eq!(error_of(again).await.1["code"], "key_not_found");
}

#[tokio::test]
async fn limits_refuse_with_their_figures_and_come_back_to_zero() {
    let pair = Pair::ready(&["w-1"]).await;
    pair.hive.script([Reply::Json(REPLY)]);
    let paced = key(&pair, json!({"name": "paced", "limits": {"requests_per_minute": 2}})).await;
    let daily = key(&pair, json!({"name": "daily", "limits": {"tokens_per_day": 15}})).await;
    for key in [&paced, &paced, &daily, &daily] {
        assert_eq!(chat(&pair, key, ALIAS, false).await.status(), 200);
    }
    for (key, limit, max, used, wait) in [
        (&paced, "requests_per_minute", 2, 2, 1..=30),
        (&daily, "tokens_per_day", 15, 20, 1..=86_400),
    ] {
        let reply = chat(&pair, key, ALIAS, false).await;
        let told: u64 = reply.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!(wait.contains(&told), "{limit}: {told}");
        let (status, error) = error_of(reply).await;
        assert_eq!((status, &error["code"]), (429, &json!("rate_limit_exceeded")), "{limit}");
        assert_eq!(error["type"], "rate_limit_error");
        let details = &error["details"];
        assert_eq!(details["limit"], limit);
        assert_eq!((&details["max"], &details["used"]), (&json!(max), &json!(used)), "{limit}");
        assert!(details["reset_at_ms"].is_u64());
    }
    assert_eq!(pair.hive.forwarded_count(), 4);
    let metrics = pair.queen.get("/metrics").await.text().await.unwrap();
    for line in [
        "rbee_queen_key_requests_total{key=\"paced\"} 2",
        "rbee_queen_key_refused_total{key=\"daily\",limit=\"tokens_per_day\"} 1",
        "rbee_queen_key_tokens_total{key=\"daily\",kind=\"prompt\"} 14",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

#[tokio::test]
async fn requests_at_once_are_counted_until_their_clients_leave() {
    let pair = Pair::ready(&["w-1"]).await;
    pair.hive.script([open_stream()]);
    let key = key(&pair, json!({"name": "few", "limits": {"streams_max": 3}})).await;
    for round in 0..5 {
        let mut streams = Vec::new();
        for _ in 0..3 {
            let mut stream = eventually("there is room again", async || {
                let reply = chat(&pair, &key, ALIAS, true).await;
                (reply.status() == 200).then_some(reply)
            })
            .await;
            assert!(stream.chunk().await.unwrap().is_some());
            streams.push(stream);
        }
        let (status, error) = error_of(chat(&pair, &key, ALIAS, true).await).await;
        assert_eq!((status, &error["details"]["used"]), (429, &json!(3)), "round {round}");
        // All of them leave without a word.
        drop(streams);
    }
    eventually("nothing runs", async || {
        let metrics = pair.queen.get("/metrics").await.text().await.unwrap();
        metrics.contains("rbee_queen_key_requests_running 0\n").then_some(())
    })
    .await;
}

#[tokio::test]
async fn usage_is_counted_whole_and_streamed_and_outlives_a_crash() {
    let mut pair = Pair::ready(&["w-1"]).await;
    let told = |told: Value| format!(": rbee {}\n\n", json!({ "told": told }));
    let head = ": rbee {\"head\":{\"id\":\"c\",\"created\":5,\"seed\":9}}\n\n";
    let token = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    let marked: Vec<String> = vec![
        head.to_owned(),
        token.to_owned(),
        told(json!([{"index": 0, "tokens": [1, 2], "prompt_tokens": 11, "cached_tokens": 4}])),
        token.to_owned(),
        told(json!([{"index": 0, "tokens": [3], "cached_tokens": 4}])),
    ];
    let done = "data: [DONE]\n\n".to_owned();
    // The last tokens are told by the counts of the whole reply alone.
    let counts = json!({"usage": {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 4}}});
    let last = vec![format!(": rbee {counts}\n\n"), token.to_owned(), done.clone()];
    let whole = [marked.clone(), last].concat();
    let plain = vec![token.to_owned(), format!("data: {REPLY}\n\n"), done];
    pair.hive.script([
        Reply::Json(REPLY),
        Reply::Events(whole, End::Whole),
        Reply::Events(plain, End::Whole),
        Reply::Events(marked, End::Open),
    ]);
    let key = key(&pair, json!({"name": "ci"})).await;
    assert_eq!(chat(&pair, &key, ALIAS, false).await.status(), 200);
    for _ in 0..2 {
        let text = chat(&pair, &key, ALIAS, true).await.text().await.unwrap();
        assert!(text.ends_with("[DONE]\n\n") && !text.contains(": rbee"), "{text}");
    }
    assert_eq!(usage(&pair.queen, "ci").await, used(3, 7 + 11 + 7, 5 + 4 + 5, 3 + 5 + 3));
    // One that is still running counts as far as it has come.
    let running = chat(&pair, &key, ALIAS, true).await;
    eventually("the tokens so far are counted", async || {
        (usage(&pair.queen, "ci").await == used(4, 36, 18, 14)).then_some(())
    })
    .await;
    // Each sees its own, and an administrator sees all.
    let own: Value = get(&pair, &key, "/api/v1/usage").await.json().await.unwrap();
    assert!(own["usage"].as_array().unwrap().iter().all(|row| row["key"] == "ci"), "{own}");
    let bad = pair.queen.get("/api/v1/usage?days=0").await;
    assert_eq!(error_of(bad).await.1["param"], "days");

    pair.queen.signal(Signal::KILL);
    drop(running);
    pair.queen.ended().await;
    let settings = format!("local_hive_url = '{}'", pair.hive.url);
    pair.queen = Queen::start(&pair.home, &settings).await;
    assert_eq!(usage(&pair.queen, "ci").await, used(4, 36, 18, 14));
    assert_eq!(get(&pair, &key, "/api/v1/usage").await.status(), 200, "the key was forgotten");
}

#[tokio::test]
async fn what_a_running_queen_has_counted_reaches_the_disk_by_itself() {
    let pair = Pair::ready(&["w-1"]).await;
    pair.hive.script([Reply::Json(REPLY)]);
    assert_eq!(pair.queen.chat(ALIAS, false).send().await.unwrap().status(), 200);
    let path = pair.home.path().join("keys.db");
    eventually("it is written down", async || {
        let database = rusqlite::Connection::open(&path).unwrap();
        let query = "SELECT completion_tokens FROM usage WHERE key = 'client-token'";
        database.query_row(query, [], |row| row.get::<_, i64>(0)).ok().filter(|n| *n == 3)
    })
    .await;
}

#[tokio::test]
async fn workers_are_told_whose_request_it_is_and_nobody_can_say_it_for_another() {
    let pair = Pair::ready(&["w-1"]).await;
    pair.hive.script([Reply::Json(REPLY)]);
    let one = key(&pair, json!({"name": "one"})).await;
    let other = key(&pair, json!({"name": "other"})).await;
    for key in [&one, &one, &other, &pair.home.client_token()] {
        assert_eq!(chat(&pair, key, ALIAS, false).await.status(), 200);
    }
    let scopes = || -> Vec<String> {
        let forwarded = pair.hive.forwarded.lock().unwrap();
        forwarded.iter().map(|sent| sent.cache_scope.clone().unwrap()).collect()
    };
    let [first, again, of_other, of_client] = scopes().try_into().unwrap();
    assert_eq!(first, again, "a key shares with itself");
    assert!(first != of_other && first != of_client && of_other != of_client);
    assert!([&first, &of_other, &of_client].iter().all(|scope| scope.len() == 64));
    // A client that names another one's scope has its own all the same.
    let forged = with_key(&pair, &other, Method::POST, CHAT).header(CACHE_SCOPE, &first);
    assert_eq!(forged.json(&body(ALIAS, false)).send().await.unwrap().status(), 200);
    assert_eq!(scopes()[4], of_other);
}

#[tokio::test]
async fn the_value_of_a_key_is_shown_once_and_kept_nowhere() {
    let pair = Pair::ready(&["w-1"]).await;
    let key = key(&pair, json!({"name": "canary", "expires_at_ms": 4_000_000_000_000_u64})).await;
    assert!(key.starts_with("rbee_") && key.len() == 69);
    assert_eq!(get(&pair, &key, "/v1/models").await.status(), 200);
    let (status, error) = error_of(
        pair.queen
            .request(Method::POST, "/api/v1/keys")
            .json(&json!({"name": "canary"}))
            .send()
            .await
            .unwrap(),
    )
    .await;
    assert_eq!((status, &error["code"]), (409, &json!("key_taken")));
    let list = pair.queen.get("/api/v1/keys").await.text().await.unwrap();
    assert!(list.contains("\"name\":\"canary\"") && !list.contains(&key[5..]), "{list}");
    let mode = |path: &std::path::Path| {
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions()) & 0o777
    };
    assert_eq!(mode(&pair.home.path().join("keys.db")), 0o600);
    let secret = &key.as_bytes()[5..];
    let mut looked_at = 0;
    for entry in fs::read_dir(pair.home.path()).unwrap().flatten() {
        if entry.path().is_file() {
            let bytes = fs::read(entry.path()).unwrap();
            let shows = bytes.windows(secret.len()).any(|window| window == secret);
            assert!(!shows, "{} shows the key", entry.path().display());
            looked_at += 1;
        }
    }
    assert!(looked_at >= 3 && !pair.home.log().contains(&key[5..]));
}

#[tokio::test]
async fn what_cannot_be_a_key_is_refused_by_name_of_the_field() {
    let pair = Pair::silent("").await;
    for (wanted, field) in [
        (json!({"name": "a b"}), "name"),
        (json!({"name": "client-token"}), "name"),
        (json!({"name": "a", "routes": ["everything"]}), "routes[0]"),
        (json!({"name": "a", "models": ["a b"]}), "models[0]"),
        (json!({"name": "a", "expires_at_ms": 1000}), "expires_at_ms"),
        (json!({"name": "a", "limits": {"streams_max": 0}}), "limits.streams_max"),
    ] {
        let sent = pair.queen.request(Method::POST, "/api/v1/keys").json(&wanted).send().await;
        let (status, error) = error_of(sent.unwrap()).await;
        assert_eq!((status, &error["code"]), (400, &json!("validation_failed")), "{wanted}");
        assert_eq!(error["param"], field, "{wanted}: {error}");
    }
    let unknown = json!({"name": "a", "limits": {"tokens": 5}});
    let sent = pair.queen.request(Method::POST, "/api/v1/keys").json(&unknown).send().await;
    assert_eq!(error_of(sent.unwrap()).await.0, 400);
    assert_eq!(pair.queen.get_json("/api/v1/keys").await, json!({"keys": []}));
}
