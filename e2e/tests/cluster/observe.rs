//! What an operator sees: metrics with a line in the documents, and one request
//! id through all hops.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use e2e::{Cluster, Http, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

fn monitoring_page() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/MONITORING.md");
    fs::read_to_string(page).expect("docs/MONITORING.md")
}

/// The metric families in Prometheus' text.
fn families(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    lines.filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
}

#[test]
fn every_metric_of_all_three_daemons_has_a_line_in_the_documents() {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    drop(cluster.rbee(&["infer", "-m", "tiny", "-p", "some words"]).ok());
    let id = cluster.workers()[0]["id"].as_str().expect("an id").to_owned();
    let page = monitoring_page();
    let worker = format!("/api/v1/workers/{id}/metrics");
    let scrapes = [
        ("queen", cluster.queen().get("/metrics")),
        ("hive", cluster.hive().get("/metrics")),
        ("worker", cluster.hive().get(&worker)),
    ];
    for (program, reply) in scrapes {
        assert_eq!(reply.status, 200, "{program}: {}", reply.body);
        let families = families(&reply.body);
        assert!(families.len() >= 4, "{program}: {families:?}");
        let missing: Vec<&String> =
            families.iter().filter(|family| !page.contains(&format!("`{family}`"))).collect();
        assert!(missing.is_empty(), "docs/MONITORING.md has no line for {missing:?}");
    }
}

#[test]
fn one_request_id_is_in_the_logs_of_all_hops_and_in_the_reply() {
    let cluster = Cluster::echo().env("RBEE_LOG", "debug").env("RBEE_LOG_FORMAT", "json");
    cluster.import_tiny("tiny");
    drop(cluster.rbee(&["infer", "-m", "tiny", "-p", "x"]).ok());
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "x"}]});
    let reply = cluster.queen().post("/v1/chat/completions", &body);
    let header =
        |name: &str| reply.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    let id = header("x-request-id").expect("a request id");
    let mut logs: Vec<String> = vec!["queen-rbee.log".to_owned(), "rbee-hive.log".to_owned()];
    logs.extend(
        cluster.workers().iter().map(|w| format!("{}.log", w["id"].as_str().expect("an id"))),
    );
    for log in logs {
        let text = fs::read_to_string(cluster.home().join("logs").join(&log)).expect("a log");
        let line = text.lines().find(|line| line.contains(&id));
        let line = line.unwrap_or_else(|| panic!("{log} does not know {id}"));
        serde_json::from_str::<serde_json::Value>(line).expect("a line of JSON");
    }
}

#[test]
fn every_route_has_an_entry_in_the_documents() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/API.md");
    let page = fs::read_to_string(page).expect("docs/API.md");
    let cluster = Cluster::echo();
    for program in ["queen-rbee", "rbee-hive", "llm-worker-rbee"] {
        let output = cluster.command(program, &["--print-routes"]).output().expect("it prints");
        let listing = String::from_utf8(output.stdout).expect("text");
        for line in listing.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let route = format!("`{} {}`", words[0].to_uppercase(), words[1]);
            assert!(page.contains(&route), "{program}: docs/API.md has no {route}");
        }
    }
}

#[test]
fn logs_and_status_can_be_read_by_command() {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    drop(cluster.rbee(&["infer", "-m", "tiny", "-p", "x"]).ok());
    let id = cluster.workers()[0]["id"].as_str().expect("an id").to_owned();
    for what in ["queen", "hive", id.as_str()] {
        assert!(!cluster.rbee(&["logs", what]).ok().is_empty(), "{what} has a log");
    }
    let status = cluster.rbee(&["status"]).ok();
    assert!(status.contains("local") && status.contains("tiny"), "{status}");
    assert!(Http::new(&cluster.url("queen"), None).get("/health").status == 200);
}

#[test]
fn bench_measures_the_whole_chain_by_the_tokens_that_it_counts() {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    for (scenario, options, phases, requests) in [
        ("unique", &["--streams=1,4", "--requests=3"][..], &["load"][..], 15),
        ("shared-prefix", &["--streams=4", "--requests=2"], &["load"], 8),
        ("second-turn", &["--chats=3"], &["turn-one", "turn-two", "cold"], 9),
    ] {
        let fixed = ["bench", "-m", "tiny", "--json", "--output-tokens=12", "--scenario", scenario];
        let report: Value =
            serde_json::from_str(&cluster.rbee(&[&fixed[..], options].concat()).ok())
                .expect("JSON");
        let asked = report["requests"].as_array().expect("requests");
        assert_eq!((asked.len(), &report["failed"]), (requests, &json!(0)), "{scenario}: {report}");
        let seen: BTreeSet<&str> = asked.iter().filter_map(|r| r["phase"].as_str()).collect();
        assert_eq!(seen, phases.iter().copied().collect(), "{scenario}");
        for request in asked {
            assert_eq!(request["counted_by"], "usage", "{scenario}: {request}");
            let tokens = request["output_tokens"].as_u64().expect("a count");
            assert!((1..=12).contains(&tokens), "{scenario}: {request}");
            assert!(request["ttft_ms"].as_f64() <= request["e2e_ms"].as_f64(), "{request}");
        }
    }
}

#[test]
fn a_machine_that_falls_silent_is_suspect_then_stale_and_back_with_its_next_report() {
    let interval = "heartbeat_interval_seconds = 3\n";
    let cluster = Cluster::echo().config("queen-rbee", interval).config("rbee-hive", interval);
    cluster.import_tiny("tiny");
    assert_eq!(cluster.rbee(&["infer", "-m", "tiny", "-p", "one"]).ok().trim(), "one");
    let state = || cluster.queen().get("/api/v1/hives").json()["hives"][0]["state"].clone();
    let count = |state: &str| {
        let metrics = cluster.queen().get("/metrics").body;
        metrics.contains(&format!("rbee_queen_hives{{state=\"{state}\"}} 1"))
    };
    let before = cluster.workers();
    assert_eq!((state(), &before[0]["hive_state"]), (json!("online"), &json!("online")));
    let hive = cluster.process("rbee-hive");
    hive.signal(Signal::STOP);
    wait_until("it is suspect", Duration::from_secs(20), || state() == "suspect");
    let worker = &cluster.workers()[0];
    assert_eq!((&worker["hive_state"], &worker["state"]), (&json!("suspect"), &json!("ready")));
    assert_eq!(worker["slots_available"], 0);
    let ps = cluster.rbee(&["ps"]).ok();
    assert!(ps.contains("  unreachable  ") && !ps.contains("  ready  "), "{ps}");
    assert!(count("suspect"));
    assert_ne!(cluster.rbee(&["infer", "-m", "tiny", "-p", "one"]).code, 0, "no new work");
    wait_until("it is stale", Duration::from_secs(20), || state() == "stale");
    assert!(cluster.workers().is_empty() && count("stale"), "what it had is not listed");
    assert!(cluster.rbee(&["status"]).ok().contains("  stale  "));
    hive.signal(Signal::CONT);
    wait_until("it is online", Duration::from_secs(20), || state() == "online");
    let after = cluster.workers();
    assert_eq!((&after[0]["id"], &after[0]["pid"]), (&before[0]["id"], &before[0]["pid"]));
    assert_eq!(cluster.rbee(&["infer", "-m", "tiny", "-p", "one"]).ok().trim(), "one");
}
