//! What the queen answers by herself: credentials, listings, bad requests.

use rbee_api::worker::WorkerState;
use reqwest::Method;
use serde_json::{Value, json};

use crate::daemon::{error_of, eventually, program};
use crate::fake_hive::{End, Reply};
use crate::pair::{ALIAS, Pair, REFERENCE};

/// The route table as the program prints it, with the parameters filled in.
pub(crate) fn routes() -> Vec<(Method, String, String)> {
    let output = program().arg("--print-routes").output().unwrap();
    assert!(output.status.success());
    let listing = String::from_utf8(output.stdout).unwrap();
    let parse = |line: &str| {
        let [method, path, access] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let path = path
            .replace("{name}", "local")
            .replace("{id}", "w-1")
            .replace("{*id}", "m")
            .replace("{*reference}", "m");
        assert!(!path.contains('{'), "{path}");
        (method.to_uppercase().parse().unwrap(), path, access.to_owned())
    };
    listing.lines().map(parse).collect()
}

#[tokio::test]
async fn every_route_but_health_wants_the_right_credential() {
    let pair = Pair::ready(&["w-1"]).await;
    let routes = routes();
    assert!(routes.len() >= 18, "{routes:?}");
    for (method, path, access) in routes {
        // Answered well it would end the queen.
        let is_shutdown = path == "/api/v1/shutdown";
        let send = async |token: Option<&str>| {
            let mut request = pair.queen.bare(method.clone(), &path);
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            request.send().await.unwrap()
        };
        if access == "public" {
            assert_eq!(send(None).await.status(), 200, "{path}");
            continue;
        }
        for token in [None, Some("wrong"), Some("")] {
            let reply = send(token).await;
            assert_eq!(reply.headers()["www-authenticate"], "Bearer", "{method} {path}");
            let (status, error) = error_of(reply).await;
            assert_eq!((status, &error["code"]), (401, &json!("unauthorized")), "{method} {path}");
        }
        let (client, hive) = (pair.home.client_token(), pair.home.hive_token());
        let (right, others) = match access.as_str() {
            "own" | "inference" | "models" | "status" | "admin" => (Some(client), vec![hive]),
            "peer" => (Some(hive), vec![client]),
            // For who shows the code of a pairing.
            "applicant" => (None, vec![client, hive]),
            access => panic!("{path} is open to {access}"),
        };
        for other in others {
            let (status, error) = error_of(send(Some(&other)).await).await;
            assert_eq!((status, &error["code"]), (403, &json!("forbidden")), "{method} {path}");
        }
        if let Some(right) = right.filter(|_| !is_shutdown) {
            let status = send(Some(&right)).await.status().as_u16();
            assert!(!matches!(status, 401 | 403), "{method} {path}: {status}");
        }
    }
    let unknown = pair.queen.bare(Method::GET, "/no/such/path").send().await.unwrap();
    assert_eq!(unknown.status(), 401, "a stranger does not learn which paths there are");
}

#[tokio::test]
async fn models_are_listed_under_the_name_that_users_type() {
    let pair = Pair::silent("").await;
    let plain = "file:/models/a%20b.gguf";
    pair.hive.add_model(None, plain);
    pair.report().await;
    pair.online().await;

    let list = pair.queen.get_json("/v1/models").await;
    let card = |id: &str| json!({"id": id, "object": "model", "created": 1_700_000_000, "owned_by": "rbee", "capabilities": ["chat", "completion"]});
    assert_eq!(list, json!({"object": "list", "data": [card(ALIAS), card(plain)]}));
    for (path, id) in [
        (ALIAS.to_owned(), ALIAS),
        (REFERENCE.to_owned(), ALIAS),
        (REFERENCE.replace('/', "%2F").replace(':', "%3A"), ALIAS),
        (plain.replace('%', "%25"), plain),
    ] {
        let got = pair.queen.get_json(&format!("/v1/models/{path}")).await;
        assert_eq!(got, card(id), "{path}");
    }
    for path in ["other:1b", "not%20a%20name", "hf:a/b/c/d"] {
        let (status, error) = error_of(pair.queen.get(&format!("/v1/models/{path}")).await).await;
        assert_eq!((status, &error["code"]), (404, &json!("model_not_found")), "{path}");
    }
    let own = pair.queen.get_json("/api/v1/models").await;
    assert_eq!(own["models"][0]["hives"], json!(["local"]));
    assert_eq!(own["models"][0]["reference"], REFERENCE);
}

#[tokio::test]
async fn a_listing_waits_for_the_first_report_instead_of_being_empty() {
    let pair = Pair::silent("").await;
    let ready = pair.queen.bare(Method::GET, "/readyz").send().await.unwrap();
    let (status, error) = error_of(ready).await;
    assert_eq!((status, &error["code"]), (503, &json!("loading")));
    let listing = pair.queen.get("/v1/models");
    let (listing, ()) = tokio::join!(listing, pair.report());
    let listing: Value = listing.json().await.unwrap();
    assert_eq!(listing["data"][0]["id"], ALIAS);
    let ready = pair.queen.bare(Method::GET, "/readyz").send().await.unwrap();
    assert_eq!(ready.status(), 200);
}

#[tokio::test]
async fn the_status_names_queen_hives_and_workers() {
    let pair = Pair::ready(&["w-1"]).await;
    let status = pair.queen.get_json("/api/v1/status").await;
    assert_eq!(status["pid"], pair.queen.pid());
    assert_eq!(status["draining"], false);
    let hive = &status["hives"][0];
    assert_eq!((&hive["name"], &hive["url"]), (&json!("local"), &json!(pair.hive.url)));
    assert_eq!((&hive["workers"], &hive["models"]), (&json!(1), &json!(1)));
    assert_eq!(status["workers"][0]["id"], "w-1");
    assert_eq!(status["workers"][0]["hive"], "local");
    let listed = &pair.queen.get_json("/api/v1/hives").await["hives"][0];
    assert_eq!((&listed["name"], &listed["state"]), (&json!("local"), &json!("online")));
    assert_eq!(pair.queen.get_json("/api/v1/workers").await["workers"], status["workers"]);
}

#[tokio::test]
async fn bad_requests_are_refused_before_any_work_with_the_reason() {
    let pair = Pair::ready(&["w-1"]).await;
    let message = json!([{"role": "user", "content": "hi"}]);
    let chat = "/v1/chat/completions";
    let cases = [
        (
            chat,
            json!({"model": ALIAS, "messages": message, "best_of": 2}),
            "unsupported_parameter",
            json!("best_of"),
        ),
        (
            chat,
            json!({"model": ALIAS, "messages": message, "wish": 1}),
            "unsupported_parameter",
            json!("wish"),
        ),
        (
            chat,
            json!({"model": ALIAS, "messages": message, "temperature": 3}),
            "validation_failed",
            json!("temperature"),
        ),
        (chat, json!({"model": ALIAS, "messages": []}), "validation_failed", json!("messages")),
        (chat, json!({"messages": message}), "validation_failed", json!("model")),
        (chat, json!({"model": "../x", "messages": message}), "validation_failed", json!("model")),
        (chat, json!([1]), "validation_failed", Value::Null),
        (
            "/v1/completions",
            json!({"model": ALIAS, "prompt": ""}),
            "validation_failed",
            json!("prompt"),
        ),
        (
            "/v1/completions",
            json!({"model": ALIAS, "prompt": "a", "echo": true}),
            "unsupported_parameter",
            json!("echo"),
        ),
    ];
    for (path, body, code, param) in cases {
        let reply = pair.queen.request(Method::POST, path).json(&body).send().await.unwrap();
        assert_eq!(reply.headers()["x-should-retry"], "false");
        let (status, error) = error_of(reply).await;
        assert_eq!(
            (status, &error["code"], &error["param"]),
            (400, &json!(code), &param),
            "{body}"
        );
        assert_eq!(error["type"], "invalid_request_error");
    }
    let garbage = pair.queen.request(Method::POST, chat).header("content-type", "application/json");
    let (status, error) = error_of(garbage.body("{\"model\":").send().await.unwrap()).await;
    assert_eq!((status, &error["code"]), (400, &json!("validation_failed")));
    let text = pair.queen.request(Method::POST, chat).header("content-type", "text/plain");
    assert_eq!(error_of(text.body("{}").send().await.unwrap()).await.0, 415);
    assert_eq!(pair.hive.forwarded_count(), 0);
}

#[tokio::test]
async fn deadlines_in_headers_are_read_and_bad_ones_refused() {
    let pair = Pair::ready(&["w-1"]).await;
    pair.hive.script([Reply::Json("{}")]);
    for (value, status, code) in
        [("0", 504, "deadline_exceeded"), ("soon", 400, "validation_failed")]
    {
        let reply = pair.queen.chat(ALIAS, false).header("x-request-timeout-ms", value);
        let (got, error) = error_of(reply.send().await.unwrap()).await;
        assert_eq!((got, &error["code"]), (status, &json!(code)), "{value}");
    }
    assert_eq!(pair.hive.forwarded_count(), 0);
    for (value, max) in [(Some("5000"), 5_000), (None, 600_000), (Some("99999999"), 3_600_000)] {
        let mut request = pair.queen.chat(ALIAS, false);
        if let Some(value) = value {
            request = request.header("x-request-timeout-ms", value);
        }
        assert_eq!(request.send().await.unwrap().status(), 200);
        let sent = pair.hive.forwarded.lock().unwrap().last().unwrap().timeout_ms;
        assert!(sent <= max && sent > max - 5_000, "{value:?} became {sent}");
    }
}

#[tokio::test]
async fn only_known_machines_may_report_and_only_forward_in_time() {
    let pair = Pair::cold("heartbeat_interval_seconds = 7").await;
    assert_eq!(pair.hive.report(&pair.queen.url).await.interval_ms, 7_000);
    let beat = |path: &str| {
        let snapshot = json!({
            "epoch": 0, "sequence": 0, "draining": true, "models": [], "workers": [],
            "resources": {"memory_total_bytes": 1, "memory_available_bytes": 1, "cores": 1, "workers_max": 1},
        });
        pair.queen.bare(Method::POST, path).bearer_auth(pair.home.hive_token()).json(&snapshot)
    };
    for name in ["attic", "NOT-A-NAME"] {
        let reply = beat(&format!("/api/v1/hives/{name}/heartbeat")).send().await.unwrap();
        let (status, error) = error_of(reply).await;
        assert_eq!((status, &error["code"]), (404, &json!("hive_not_found")));
    }
    assert_eq!(beat("/api/v1/hives/local/heartbeat").send().await.unwrap().status(), 200);
    let models = pair.queen.get_json("/api/v1/models").await;
    assert_eq!(models["models"][0]["alias"], ALIAS, "an older report changes nothing");
}

#[tokio::test]
async fn a_reset_goes_to_the_machine_of_the_worker_and_names_its_successor() {
    let pair = Pair::ready(&["w-1"]).await;
    let reset = async |id: &str| {
        let path = format!("/api/v1/workers/{id}/reset");
        pair.queen.request(Method::POST, &path).json(&json!({})).send().await.unwrap()
    };
    let begun = reset("w-1").await.json::<Value>().await.unwrap();
    assert_eq!((&begun["id"], &begun["hive"]), (&json!("w-fresh"), &json!("local")));
    assert_eq!((&begun["failures_cleared"], &begun["breaker_was"]), (&json!(3), &json!("open")));
    assert_eq!(pair.hive.asked.lock().unwrap().clone(), ["reset w-1"]);
    let listed = pair.queen.get_json("/api/v1/workers").await;
    let ids: Vec<_> = listed["workers"].as_array().unwrap().iter().map(|row| &row["id"]).collect();
    assert!(ids.contains(&&json!("w-fresh")), "it is known before the next report: {listed}");
    for id in ["w-9", "NOT%20ONE"] {
        let (status, error) = error_of(reset(id).await).await;
        assert_eq!((status, &error["code"]), (404, &json!("worker_not_found")));
    }
}

#[tokio::test]
async fn workers_are_stopped_and_their_logs_read_where_they_run() {
    let pair = Pair::ready(&["w-1"]).await;
    let removed = pair.queen.request(Method::DELETE, "/api/v1/workers/w-1").send().await.unwrap();
    assert_eq!(removed.json::<Value>().await.unwrap(), json!({"removed": "w-1"}));
    let log = pair.queen.get("/api/v1/workers/w-1/logs?follow=true").await;
    assert_eq!(log.headers()["content-type"], "text/plain; charset=utf-8");
    assert_eq!(log.text().await.unwrap(), "log of w-1\n");
    let old = pair.queen.get("/api/v1/workers/w-long-gone/logs").await;
    assert_eq!(old.text().await.unwrap(), "log of w-long-gone\n", "logs outlive workers");
    let asked = pair.hive.asked.lock().unwrap().clone();
    assert_eq!(asked, ["stop w-1", "logs w-1 follow=true", "logs w-long-gone "]);
    for (method, path) in [
        (Method::DELETE, "/api/v1/workers/w-9"),
        (Method::DELETE, "/api/v1/workers/NOT%20ONE"),
        (Method::GET, "/api/v1/workers/w-unknown/logs"),
    ] {
        let reply = pair.queen.request(method, path).send().await.unwrap();
        let (status, error) = error_of(reply).await;
        assert_eq!((status, &error["code"]), (404, &json!("worker_not_found")), "{path}");
    }
}

#[tokio::test]
async fn pulls_and_removals_reach_the_machine() {
    let pair = Pair::cold("").await;
    let progress = "data: {\"event\":\"progress\",\"done_bytes\":1,\"total_bytes\":2}\n\n";
    let pull = async || {
        let body = json!({"reference": "file:/models/new.gguf", "alias": "new:1b"});
        let reply =
            pair.queen.request(Method::POST, "/api/v1/models/pull").json(&body).send().await;
        reply.unwrap().text().await.unwrap()
    };
    *pair.hive.pull.lock().unwrap() = (vec![progress.to_owned()], End::Broken);
    let told = pull().await;
    let rest = told.strip_prefix(progress).unwrap();
    assert!(rest.starts_with("data: {\"event\":\"failed\""), "{told}");
    assert!(rest.contains("hive_unreachable") && !told.contains("[DONE]"), "{told}");

    let plain = "file:/models/a%20b.gguf";
    pair.hive.add_model(None, plain);
    pair.report().await;
    let path = format!("/api/v1/models/{}", plain.replace('%', "%25"));
    let removed = pair.queen.request(Method::DELETE, &path).send().await.unwrap();
    assert_eq!(removed.json::<Value>().await.unwrap(), json!({"removed": plain}));
    let by_alias = format!("/api/v1/models/{ALIAS}");
    let removed = pair.queen.request(Method::DELETE, &by_alias).send().await.unwrap();
    assert_eq!(removed.json::<Value>().await.unwrap(), json!({"removed": REFERENCE}));
    let asked = pair.hive.asked.lock().unwrap().clone();
    assert_eq!(
        asked,
        ["pull file:/models/new.gguf", &format!("remove {plain}"), &format!("remove {REFERENCE}")]
    );
    let unknown =
        pair.queen.request(Method::DELETE, "/api/v1/models/none:1b").send().await.unwrap();
    assert_eq!(error_of(unknown).await.1["code"], "model_not_found");
}

#[tokio::test]
async fn metrics_count_requests_without_names_that_clients_invent() {
    let pair = Pair::ready(&["w-1"]).await;
    let whole = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\ndata: [DONE]\n\n";
    pair.hive.script([Reply::Events(vec![whole.to_owned()], End::Whole)]);
    pair.queen.chat(ALIAS, true).send().await.unwrap().text().await.unwrap();
    pair.hive.script([Reply::Error(rbee_api::error::ErrorCode::ContextLengthExceeded)]);
    pair.queen.chat(REFERENCE, false).send().await.unwrap();
    pair.queen.chat("invented:by-a-client", false).send().await.unwrap();
    pair.hive.set_worker("w-1", WorkerState::Ready);
    let wanted = [
        format!("rbee_queen_requests_total{{model=\"{ALIAS}\",code=\"ok\"}} 1"),
        format!(
            "rbee_queen_requests_total{{model=\"{ALIAS}\",code=\"context_length_exceeded\"}} 1"
        ),
        "rbee_queen_requests_total{model=\"unknown\",code=\"model_not_found\"} 1".to_owned(),
        "rbee_queen_requests_running 0".to_owned(),
        "rbee_queen_placements_total{decision=\"use\"} 2".to_owned(),
        "rbee_queen_placements_total{decision=\"refuse\"} 1".to_owned(),
        "rbee_queen_hives{state=\"online\"} 1".to_owned(),
        "rbee_queen_wait_seconds_count 2".to_owned(),
        "rbee_queen_time_to_first_byte_seconds_count 1".to_owned(),
        format!(
            "gen_ai_server_time_to_first_token_seconds_bucket{{model=\"{ALIAS}\",operation=\"chat\",le=\"7.5\"}} 1"
        ),
        format!(
            "gen_ai_server_request_duration_seconds_bucket{{model=\"{ALIAS}\",operation=\"chat\",code=\"ok\",le=\"81.92\"}} 1"
        ),
    ];
    // The last request is counted when its reply has been read, a moment after the client has it.
    let text = eventually("all requests are counted", async || {
        let text = pair.queen.get("/metrics").await.text().await.unwrap();
        let running = text.lines().any(|line| line == "rbee_queen_requests_running 0");
        running.then_some(text)
    })
    .await;
    for line in wanted {
        assert!(text.lines().any(|got| got == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("invented"));
}
