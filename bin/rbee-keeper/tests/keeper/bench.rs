//! `rbee bench` against servers with scripted replies: what is sent, when, in which order, and what is counted.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use rbee_tls::Authority;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fake_endpoint::{Asked, FakeEndpoint, Log, Step, WORDS};
use crate::fake_queen::{FakeQueen, write_token};
use crate::program::{Ended, Program};

fn heard(log: &Log) -> Vec<Asked> {
    std::mem::take(&mut *log.lock().unwrap())
}

async fn bench(home: &TempDir, url: &str, options: &[&str]) -> Ended {
    let fixed = ["bench", "-m", "m", "--url", url];
    Program::new(home.path()).run(&[&fixed, options].concat()).await
}

/// Runs without a warm-up and with the report as JSON.
async fn measured(url: &str, options: &[&str]) -> Value {
    let home = tempfile::tempdir().unwrap();
    bench(&home, url, &[options, &["--no-warmup", "--json"]].concat()).await.json()
}

fn total<'r>(report: &'r Value, phase: &str) -> &'r Value {
    let totals = report["totals"].as_array().unwrap();
    totals.iter().find(|total| total["phase"] == phase).unwrap()
}

#[tokio::test]
async fn figures_are_those_of_the_replies() {
    let log = Log::default();
    let (first, gap) = (Duration::from_millis(60), Duration::from_millis(20));
    let server = FakeEndpoint::start("a", &log, 1, move |_, _| Step::Words { first, gap }).await;
    let report = measured(
        &server.url,
        &["--streams=2", "--requests=3", "--slo-ttft-ms=1", "--slo-tpot-ms=10000"],
    )
    .await;
    let total = total(&report, "load");
    assert_eq!((&total["requests"], &total["failed"]), (&json!(6), &json!(0)));
    // The server counts five tokens where three pieces came.
    assert_eq!((&total["output_tokens"], &total["counted_by_deltas"]), (&json!(30), &json!(0)));
    assert_eq!((&total["prompt_tokens"], &total["cached_tokens"]), (&json!(42), &json!(12)));
    assert_eq!(total["itl_ms"]["count"], 12);
    assert_eq!(total["goodput"]["requests"], 0, "no first token comes within 1 ms");
    let wall = total["wall_seconds"].as_f64().unwrap();
    assert!(wall >= 0.3, "three in a row of 100 ms each: {wall}");
    let rate = total["output_tokens_per_second"].as_f64().unwrap();
    assert!((rate * wall - 30.0).abs() < 0.1, "{rate} tokens/s in {wall} s");
    for request in report["requests"].as_array().unwrap() {
        let time = |name: &str| request[name].as_f64().unwrap();
        assert!(time("ttft_ms") >= 60.0, "{request}");
        assert!(time("e2e_ms") >= 100.0, "{request}");
        assert!(time("e2e_ms") >= time("ttft_ms") + 4.0 * time("tpot_ms") - 0.01, "{request}");
        assert!(time("tpot_ms") > 0.0 && time("itl_max_ms") > 0.0, "{request}");
        assert_eq!(request["counted_by"], "usage");
    }
    assert!(total["own_cpu_seconds"].as_f64().unwrap() < wall, "it hardly computes");
}

#[tokio::test]
async fn a_server_that_speaks_tls_is_measured_where_its_ca_is_known() {
    let (directory, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = Log::default();
    let tls = Some(directory.path());
    let server = FakeEndpoint::start_with(tls, "a", &log, 1, |_, _| WORDS).await;
    let ca = Authority::certificate_file(directory.path());
    let report = measured(
        &format!("{}/v1", server.url),
        &["--streams=2", "--requests=2", "--ca-file", ca.to_str().unwrap()],
    )
    .await;
    let total = total(&report, "load");
    assert_eq!((&total["requests"], &total["failed"]), (&json!(4), &json!(0)));
    assert_eq!(report["endpoints"][0]["url"], server.url);
    let home = tempfile::tempdir().unwrap();
    let unknown = bench(&home, &server.url, &["--streams=1"]).await;
    assert_eq!(unknown.code, Some(78), "{unknown:?}");
    assert!(unknown.stderr.contains("--ca-file"), "{unknown:?}");
    Authority::load_or_generate(others.path()).unwrap();
    let other = Authority::certificate_file(others.path());
    let stranger = bench(&home, &server.url, &["--ca-file", other.to_str().unwrap()]).await;
    assert_eq!(stranger.code, Some(69), "{stranger:?}");
    assert!(stranger.stderr.contains("connection"), "{stranger:?}");
    assert_eq!(heard(&log).len(), 4, "a stranger is told nothing");
}

#[tokio::test]
async fn a_closed_loop_keeps_as_many_running_as_asked_for() {
    let log = Log::default();
    // A reply comes when four are waiting: three streams would wait for ever.
    let server = FakeEndpoint::start("a", &log, 4, |_, _| Step::Together).await;
    let report = measured(&server.url, &["--streams=4", "--requests=5"]).await;
    assert_eq!(total(&report, "load")["requests"], 20);
    let asked = heard(&log);
    assert_eq!(asked.len(), 20);
    assert_eq!(asked.iter().map(|asked| asked.running).max(), Some(4));
    let prompts: BTreeSet<&str> =
        asked.iter().map(|asked| asked.prompt().split('.').next().unwrap()).collect();
    assert_eq!(prompts.len(), 20, "every prompt begins with words of its own");
}

#[tokio::test]
async fn a_duration_ends_the_beginning_of_requests_but_no_request() {
    let log = Log::default();
    let (first, gap) = (Duration::from_millis(300), Duration::ZERO);
    let server = FakeEndpoint::start("a", &log, 1, move |_, _| Step::Words { first, gap }).await;
    let report = measured(&server.url, &["--streams=1", "--duration=1"]).await;
    let requests = report["requests"].as_array().unwrap();
    assert!((1..=4).contains(&requests.len()), "300 ms each: {}", requests.len());
    assert!(requests.iter().all(|request| request["sent_ms"].as_f64().unwrap() < 1000.0));
    assert_eq!(report["failed"], 0);
}

#[tokio::test]
async fn an_open_loop_sends_when_due_and_counts_from_there() {
    let log = Log::default();
    // No reply comes before all six are there: a loop that waited for replies would send one.
    let server = FakeEndpoint::start("a", &log, 6, |_, _| Step::Together).await;
    let report = measured(&server.url, &["--rate=20", "--arrivals=constant", "--requests=6"]).await;
    let mut requests = report["requests"].as_array().unwrap().clone();
    requests.sort_by_key(|request| request["due_ms"].as_u64());
    let mut due: Vec<f64> = requests.iter().map(|r| r["due_ms"].as_f64().unwrap()).collect();
    due.sort_by(f64::total_cmp);
    assert_eq!(due, [0.0, 50.0, 100.0, 150.0, 200.0, 250.0]);
    for request in &requests {
        let time = |name: &str| request[name].as_f64().unwrap();
        assert!(time("sent_ms") >= time("due_ms"), "{request}");
        assert!((time("e2e_ms") - (time("ended_ms") - time("due_ms"))).abs() < 0.01, "{request}");
        assert!(time("ttft_ms") >= 250.0 - time("due_ms"), "{request}");
    }
    assert_eq!(report["settings"]["loop"], "open");
}

#[tokio::test]
async fn every_failure_is_counted_by_its_kind_and_ends_with_1() {
    const STEPS: [Step; 8] = [
        Step::Status(503),
        WORDS,
        Step::ErrorEvent,
        Step::BreakOff,
        Step::Garbled,
        Step::NoText,
        Step::Hang,
        Step::Status(503),
    ];
    let log = Log::default();
    let script = |number: usize, _: &Value| STEPS[number % STEPS.len()];
    let server = FakeEndpoint::start("a", &log, 1, script).await;
    let home = tempfile::tempdir().unwrap();
    let options = ["--streams=1", "--requests=8", "--timeout=1", "--no-warmup", "--json"];
    let ended = bench(&home, &server.url, &options).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["failed"], 7);
    let total = total(&report, "load");
    assert_eq!((&total["requests"], &total["failed"]), (&json!(8), &json!(7)));
    let counted: BTreeSet<(String, u64)> = total["failures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| (f["class"].as_str().unwrap().to_owned(), f["count"].as_u64().unwrap()))
        .collect();
    let expected = [
        ("broken_off", 1),
        ("error_event", 1),
        ("garbled", 1),
        ("no_text", 1),
        ("status_503", 2),
        ("timeout", 1),
    ];
    assert_eq!(counted, expected.map(|(class, count)| (class.to_owned(), count)).into());
    assert_eq!(total["ttft_ms"]["count"], 1, "only whole replies have latencies");
    assert_eq!(total["output_tokens"], 5);
    assert!(ended.stderr.contains("\"code\":\"requests_failed\""), "{ended:?}");
    assert!(ended.stderr.contains("out of luck"), "{ended:?}");

    let allowed = bench(&home, &server.url, &[&options[..4], &["--allow-errors"]].concat()).await;
    assert_eq!(allowed.code, Some(0), "{allowed:?}");
    assert!(allowed.stderr.contains("7 requests failed: "), "{allowed:?}");
    assert!(!allowed.stderr.contains('\u{1b}'), "a server's words are harmless: {allowed:?}");
}

#[tokio::test]
async fn an_endpoint_that_never_answers_ends_the_measurement_at_once() {
    let log = Log::default();
    let server = FakeEndpoint::start("a", &log, 1, |_, _| Step::Status(401)).await;
    let home = tempfile::tempdir().unwrap();
    let refused = bench(&home, &server.url, &["--streams=2"]).await;
    assert_eq!(refused.code, Some(69), "{refused:?}");
    assert!(refused.stderr.contains("status_401"), "{refused:?}");
    assert_eq!(heard(&log).len(), 2, "nothing after the warm-up");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = bench(&home, &format!("http://{closed}"), &[]).await;
    assert_eq!(gone.code, Some(69), "{gone:?}");
    assert!(gone.stderr.contains("connection"), "{gone:?}");
    let twice = bench(&home, &server.url, &["--peer", &server.url]).await;
    assert_eq!(twice.code, Some(2), "{twice:?}");
}

#[tokio::test]
async fn endpoints_take_turns_in_alternating_order_with_the_same_prompts() {
    let log = Log::default();
    let a = FakeEndpoint::start("a", &log, 1, |_, _| WORDS).await;
    let slow = Step::Words { first: Duration::from_millis(150), gap: Duration::ZERO };
    let b = FakeEndpoint::start("b", &log, 1, move |_, _| slow).await;
    let peer = format!("other={}/v1", b.url);
    let options = ["--peer", &peer, "--rounds=4", "--streams=1", "--requests=1", "--seed=3"];
    let report = measured(&a.url, &options).await;
    let asked = heard(&log);
    let servers: Vec<&str> = asked.iter().map(|asked| asked.server).collect();
    assert_eq!(servers, ["a", "b", "b", "a", "a", "b", "b", "a"]);
    for round in asked.chunks(2) {
        assert_eq!(round[0].prompt(), round[1].prompt());
    }
    assert_ne!(asked[0].prompt(), asked[2].prompt());
    let ratios = report["ratios"].as_array().unwrap();
    let ttft = ratios.iter().find(|ratio| ratio["metric"] == "ttft_p50").unwrap();
    assert_eq!(ttft["rounds"].as_array().unwrap().len(), 4);
    assert_eq!(ttft["denominator"], json!({ "endpoint": "other", "phase": "load" }));
    assert!(ttft["median"].as_f64().unwrap() < 1.0, "{ttft}");
    assert!(ttft["min"].as_f64() <= ttft["median"].as_f64(), "{ttft}");
}

#[tokio::test]
async fn a_key_is_read_from_a_file_or_a_variable_and_nothing_of_ours_is_sent() {
    let log = Log::default();
    let server = FakeEndpoint::start("a", &log, 1, |_, _| WORDS).await;
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("key");
    write_token(&file, "a-key-from-a-file");
    let common = ["--streams=1", "--requests=1", "--no-warmup", "--api=completions"];
    let program = Program::new(home.path()).with("SOME_KEY", "a-key-from-the-environment");
    let url = format!("{}/v1/", server.url);
    for (options, expected) in [
        (&["--key-file", file.to_str().unwrap()][..], Some("Bearer a-key-from-a-file")),
        (&["--key-env", "SOME_KEY"], Some("Bearer a-key-from-the-environment")),
        (&[], None),
    ] {
        let fixed = ["bench", "-m", "m", "--url", &url];
        let ended = program.run(&[&fixed, &common[..], options].concat()).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let asked = heard(&log).remove(0);
        let key = asked.headers.get("authorization").map(|value| value.to_str().unwrap());
        assert_eq!(key, expected);
        assert!(!asked.headers.keys().any(|name| name.as_str().starts_with("x-")));
        assert_eq!(asked.path, "/v1/completions");
        assert!(asked.body["prompt"].is_string());
    }
}

#[tokio::test]
async fn without_an_address_the_queen_is_measured() {
    let queen = FakeQueen::start().await;
    let options = ["bench", "-m", "any", "--streams=1", "--requests=1", "--body={\"top_k\":5}"];
    let report = queen.program().run(&[&options[..], &["--json"]].concat()).await.json();
    assert_eq!(report["endpoints"][0]["name"], "rbee");
    assert_eq!(report["endpoints"][0]["url"], queen.url);
    let requests = queen.script.requests();
    assert_eq!(requests.len(), 2, "the warm-up and the request");
    assert_eq!(requests[1]["stream_options"], json!({ "include_usage": true }));
    assert_eq!((&requests[1]["top_k"], &requests[1]["max_tokens"]), (&json!(5), &json!(96)));
    assert_eq!(total(&report, "load")["requests"], 1, "the warm-up does not count");
}

#[tokio::test]
async fn a_shared_prefix_is_shared_within_a_round_and_not_beyond() {
    let log = Log::default();
    let server = FakeEndpoint::start("a", &log, 1, |_, _| WORDS).await;
    let options = ["--scenario=shared-prefix", "--streams=2", "--requests=2", "--rounds=2"];
    measured(&server.url, &options).await;
    let asked = heard(&log);
    let prefixes: Vec<String> = asked
        .iter()
        .map(|asked| asked.prompt().split_whitespace().take(400).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(prefixes.len(), 8);
    assert_eq!(prefixes[..4].iter().collect::<BTreeSet<_>>().len(), 1);
    assert_eq!(prefixes.iter().collect::<BTreeSet<_>>().len(), 2);
    let whole: BTreeSet<&str> = asked.iter().map(Asked::prompt).collect();
    assert_eq!(whole.len(), 8);
}

#[tokio::test]
async fn second_turns_go_on_from_the_replies_and_are_set_against_cold_ones() {
    let log = Log::default();
    let server = FakeEndpoint::start("a", &log, 1, |_, _| WORDS).await;
    let report = measured(&server.url, &["--scenario=second-turn", "--chats=3"]).await;
    let asked = heard(&log);
    let lengths: Vec<usize> =
        asked.iter().map(|asked| asked.body["messages"].as_array().unwrap().len()).collect();
    assert_eq!(lengths, [1, 1, 1, 3, 3, 3, 3, 3, 3]);
    for (first, second) in asked.iter().zip(&asked[3..6]) {
        assert_eq!(second.body["messages"][0], first.body["messages"][0]);
        let reply = json!({ "role": "assistant", "content": "word word word " });
        assert_eq!(second.body["messages"][1], reply);
    }
    for (known, cold) in asked[3..6].iter().zip(&asked[6..]) {
        assert_ne!(cold.body["messages"][0], known.body["messages"][0]);
        assert_eq!(cold.body["messages"][2], known.body["messages"][2]);
    }
    for phase in ["turn-one", "turn-two", "cold"] {
        assert_eq!(total(&report, phase)["requests"], 3);
    }
    let sides = |ratio: &Value| {
        (ratio["numerator"]["phase"].clone(), ratio["denominator"]["phase"].clone())
    };
    let ratios = report["ratios"].as_array().unwrap();
    assert!(ratios.iter().all(|ratio| sides(ratio) == (json!("turn-two"), json!("cold"))));
    assert!(ratios.iter().any(|ratio| ratio["metric"] == "ttft_p50"));
}

#[tokio::test]
async fn a_long_prompt_arrives_when_all_streams_are_under_way() {
    let log = Log::default();
    let script = |_: usize, body: &Value| {
        let prompt = body["messages"][0]["content"].as_str().unwrap();
        if prompt.split_whitespace().count() == 1500 { Step::Long } else { Step::UntilLong }
    };
    let server = FakeEndpoint::start("a", &log, 1, script).await;
    let options = ["--scenario=long-prompt-arrives", "--streams=4", "--output-tokens=80"];
    let report = measured(&server.url, &options).await;
    let asked = heard(&log);
    assert_eq!(asked.len(), 5);
    assert_eq!(asked[4].begun, 4, "the long prompt came last");
    assert_eq!(total(&report, "arriving")["requests"], 1);
    let running = total(&report, "running");
    assert_eq!((&running["requests"], &running["failed"]), (&json!(4), &json!(0)));
    let gaps = running["itl_ms"]["count"].as_u64().unwrap();
    // Each stream has one gap that the arrival ends; the twenty words before it may still be on their way.
    assert!((4..80).contains(&gaps), "{gaps}");
}

#[tokio::test]
async fn half_of_the_json_scenario_has_the_schema() {
    let log = Log::default();
    let server = FakeEndpoint::start("a", &log, 1, |_, _| WORDS).await;
    let options = ["--scenario=json-schema", "--streams=2", "--requests=1", "--rounds=2"];
    let report = measured(&server.url, &options).await;
    let asked = heard(&log);
    let prompts: BTreeSet<&str> = asked.iter().map(Asked::prompt).collect();
    assert_eq!(prompts.len(), 8, "no prompt is known when it is asked with the schema");
    let bound: Vec<bool> =
        asked.iter().map(|asked| asked.body.get("response_format").is_some()).collect();
    assert_eq!(bound, [false, false, true, true, true, true, false, false]);
    assert_eq!(total(&report, "schema")["requests"], 4);
    assert_eq!(
        report["ratios"][0]["numerator"],
        json!({ "endpoint": &server.url[7..], "phase": "schema" })
    );
}

#[tokio::test]
async fn people_get_tables_and_programs_a_file() {
    let log = Log::default();
    let server = FakeEndpoint::start("a", &log, 1, |_, _| Step::Uncounted).await;
    let home = tempfile::tempdir().unwrap();
    let peer = format!("other={}", server.url);
    let file = home.path().join("report.json");
    let options = [
        "--streams=1,2",
        "--requests=1",
        "--rounds=1",
        "--peer",
        &peer,
        "--json-file",
        file.to_str().unwrap(),
        "--slo-ttft-ms=60000",
    ];
    let ended = bench(&home, &server.url, &options).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for wanted in [
        "1 stream, load: 1 request, 0 failed, 1 round\n",
        "other, 2 streams, load: 2 requests, 0 failed",
        "tokens counted by pieces of text, because the server did not",
        "(100%), ",
        "MS    P50",
        "\nTTFT  ",
        "\nITL   ",
        "/ other, load, 2 streams\n",
        "MEDIAN",
    ] {
        assert!(ended.stdout.contains(wanted), "{wanted:?} in {}", ended.stdout);
    }
    assert!(ended.stderr.contains("unique, 1 stream, round 1 of 1: other\n"), "{ended:?}");
    let report: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(report["schema"], "rbee-bench/1");
    assert_eq!(report["totals"][0]["output_tokens"], 3);
    assert_eq!(report["requests"][0]["counted_by"], "deltas");
    assert_eq!(report["settings"]["levels"], json!([{ "streams": 1 }, { "streams": 2 }]));

    heard(&log);
    let unwritable = bench(&home, &server.url, &["--json-file", "/nonexistent/r"]).await;
    assert_eq!(unwritable.code, Some(1), "{unwritable:?}");
    assert_eq!(heard(&log).len(), 0, "nothing is measured for a file that cannot be");
}

fn keys(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                found.insert(name.clone());
                keys(field, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| keys(item, found)),
        _ => {}
    }
}

#[tokio::test]
async fn every_key_of_the_report_is_described() {
    let log = Log::default();
    let server =
        FakeEndpoint::start(
            "a",
            &log,
            1,
            |number, _| {
                if number == 1 { Step::Status(500) } else { WORDS }
            },
        )
        .await;
    let home = tempfile::tempdir().unwrap();
    let peer = format!("other={}", server.url);
    let options = [
        "--rate=100",
        "--requests=2",
        "--peer",
        &peer,
        "--no-warmup",
        "--json",
        "--slo-ttft-ms=9",
        "--allow-errors",
    ];
    let report = bench(&home, &server.url, &options).await.json();
    let mut found = BTreeSet::new();
    keys(&report, &mut found);
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/BENCH.md");
    let page = std::fs::read_to_string(page).unwrap();
    let missing: Vec<&String> =
        found.iter().filter(|key| !page.contains(&format!("`{key}`"))).collect();
    assert!(missing.is_empty(), "docs/BENCH.md does not describe {missing:?}");
}
