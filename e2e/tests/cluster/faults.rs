//! Signals and deaths: what ends cleanly, what mends itself.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use e2e::{Cluster, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn running(cluster: &Cluster) {
    cluster.import_tiny("tiny");
    assert_eq!(cluster.rbee(&["infer", "-m", "tiny", "-p", "one"]).ok().trim(), "one");
    assert_eq!(cluster.processes().len(), 3);
}

fn assert_next_command_works(cluster: &Cluster) {
    assert_eq!(cluster.rbee(&["infer", "-m", "tiny", "-p", "after"]).ok().trim(), "after");
    wait_until("three programs run and no zombie is left", Duration::from_secs(20), || {
        let processes = cluster.processes();
        processes.len() == 3 && processes.iter().all(|process| process.state != 'Z')
    });
}

#[test]
fn sigterm_to_the_queen_stops_everything_and_leaves_nothing() {
    for signal in [Signal::TERM, Signal::INT] {
        let cluster = Cluster::echo();
        running(&cluster);
        let ports: Vec<String> = ["queen", "hive"]
            .map(|name| cluster.url(name))
            .into_iter()
            .chain([cluster.workers()[0]["url"].as_str().expect("a URL").to_owned()])
            .map(|url| url.trim_start_matches("http://").to_owned())
            .collect();
        cluster.process("queen-rbee").signal(signal);
        cluster.wait_until_empty(Duration::from_secs(15));
        for port in ports {
            drop(TcpListener::bind(&port).unwrap_or_else(|error| panic!("{port}: {error}")));
        }
        let left: Vec<_> = fs::read_dir(cluster.home().join("run"))
            .expect("a folder")
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| {
                std::path::Path::new(name).extension().is_none_or(|extension| extension != "lock")
            })
            .collect();
        assert!(left.is_empty(), "{left:?}");
        let models = fs::read_dir(cluster.home().join("models")).expect("a folder").flatten();
        let models: Vec<_> = models.map(|entry| entry.file_name()).collect();
        assert_eq!(models.len(), 2, "the model and its note: {models:?}");
    }
}

#[test]
fn kill_9_of_any_program_leaves_no_zombie_and_the_next_command_recovers() {
    for program in ["llm-worker-rbee", "rbee-hive", "queen-rbee"] {
        // A worker learns at its next heartbeat that its hive is another one.
        let cluster = Cluster::echo().config("rbee-hive", "heartbeat_interval_seconds = 1\n");
        running(&cluster);
        let killed = cluster.process(program);
        killed.signal(Signal::KILL);
        wait_until("the killed program is gone", Duration::from_secs(10), || {
            cluster.processes().iter().all(|process| process.pid != killed.pid)
        });
        assert_next_command_works(&cluster);
        cluster.process("queen-rbee").signal(Signal::TERM);
        cluster.wait_until_empty(Duration::from_secs(15));
    }
}

#[test]
fn a_request_that_ends_its_workers_ends_with_an_error_event_that_says_why() {
    let patient = "[restart]\nfailures_max = 100\ndelay_ms = 10\n";
    let cluster = Cluster::echo().config("rbee-hive", patient);
    running(&cluster);
    let body = json!({
        "model": "tiny", "stream": true,
        "messages": [{"role": "user", "content": "[[tokens=50 delay_ms=5 die_at=5]] word"}],
    });
    let events: Vec<String> = cluster.queen().stream(CHAT, &body).collect();
    let last: Value = serde_json::from_str(events.last().expect("an event")).expect("JSON");
    assert_eq!(last["error"]["code"], "worker_failed", "{events:?}");
    assert!(last["error"]["request_id"].is_string());
    wait_until("the failure is listed with its cause", Duration::from_secs(2), || {
        cluster.workers().iter().any(|worker| {
            worker["state"] == "failed"
                && worker["failure"]["message"].as_str().is_some_and(|m| m.contains("signal"))
        })
    });
    let shown =
        cluster.rbee(&["infer", "-m", "tiny", "-p", "[[tokens=50 delay_ms=5 die_at=5]] word"]);
    assert_eq!(shown.code, 1, "{shown:?}");
    assert!(shown.stdout.contains("word"), "what came before the failure is kept: {shown:?}");
    assert!(shown.stderr.contains("error:"), "{shown:?}");
    assert_next_command_works(&cluster);
}

#[test]
fn ctrl_c_cancels_the_generation_and_exits_130() {
    let cluster = Cluster::echo();
    running(&cluster);
    let mut child = cluster
        .command("rbee", &["infer", "-m", "tiny", "-p", "[[tokens=100000 delay_ms=5]] x"])
        .spawn()
        .expect("rbee starts");
    let queen = cluster.queen();
    let busy = || queen.get("/api/v1/status").json()["requests_running"].as_u64().expect("a count");
    wait_until("the request runs", Duration::from_secs(10), || busy() == 1);
    let pid =
        i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, Signal::INT).expect("a signal");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    wait_until("the request is gone", Duration::from_millis(500), || busy() == 0);
}

#[test]
fn an_idle_worker_is_stopped_and_started_again_when_needed() {
    let cluster = Cluster::echo().env("RBEE_HIVE_IDLE_STOP_SECONDS", "1");
    cluster.import_tiny("tiny");
    drop(cluster.rbee(&["infer", "-m", "tiny", "-p", "x"]).ok());
    wait_until("the idle worker is stopped", Duration::from_secs(10), || {
        cluster.processes().iter().all(|process| process.program != "llm-worker-rbee")
    });
    assert_eq!(cluster.rbee(&["infer", "-m", "tiny", "-p", "again"]).ok().trim(), "again");
}

#[test]
fn a_request_that_runs_is_finished_before_the_queen_ends() {
    let cluster = Cluster::echo();
    running(&cluster);
    let body = json!({
        "model": "tiny", "stream": true,
        "messages": [{"role": "user", "content": "[[tokens=60 delay_ms=20]] w"}],
    });
    let mut stream = cluster.queen().stream(CHAT, &body);
    assert!(stream.next().is_some());
    let queen = cluster.queen();
    cluster.process("queen-rbee").signal(Signal::TERM);
    wait_until("new work is refused", Duration::from_secs(5), || {
        !queen.answers("/livez") || queen.get("/readyz").status == 503
    });
    assert_eq!(stream.last().as_deref(), Some("[DONE]"));
    cluster.wait_until_empty(Duration::from_secs(15));
}
