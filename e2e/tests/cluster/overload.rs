//! More work than there are slots, through the real chain: who waits, and what
//! is left of it when all is over.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use e2e::{Cluster, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn chat(user: &str, said: &str) -> Value {
    json!({
        "model": "tiny", "stream": true, "user": user,
        "messages": [{"role": "user", "content": said}],
    })
}

/// A cluster of one worker with so many slots, which has answered once.
fn running(slots: u32) -> Cluster {
    let cluster = Cluster::echo().config("rbee-hive", &format!("[worker]\nslots = {slots}\n"));
    cluster.import_tiny("tiny");
    assert_eq!(cluster.rbee(&["infer", "-m", "tiny", "-p", "one"]).ok().trim(), "one");
    cluster
}

fn waiting(cluster: &Cluster) -> u64 {
    let status = cluster.queen().get("/api/v1/status").json();
    status["queues"][0]["requests_waiting"].as_u64().unwrap_or(0)
}

/// Nothing waits, nothing runs and every slot is free, at the queen and at the worker.
fn is_idle(cluster: &Cluster) -> bool {
    let status = cluster.queen().get("/api/v1/status").json();
    let id = cluster.workers()[0]["id"].as_str().expect("an id").to_owned();
    let worker = cluster.queen().get(&format!("/api/v1/workers/{id}")).json();
    let at_worker = &worker["status"];
    status["requests_running"] == 0
        && status["queues"] == json!([])
        && worker["slots_available"] == worker["slots_total"]
        && at_worker["requests_running"] == 0
        && at_worker["requests_waiting"] == 0
}

#[test]
fn one_users_flood_does_not_keep_another_waiting() {
    let cluster = running(2);
    let queen = cluster.queen();
    let is_whole = |user: &str, said: &str| {
        let events: Vec<String> = queen.stream(CHAT, &chat(user, said)).collect();
        assert_eq!(events.last().map(String::as_str), Some("[DONE]"), "{user}: {events:?}");
    };
    std::thread::scope(|scope| {
        for _ in 0..30 {
            scope.spawn(|| is_whole("flood", "[[tokens=20 delay_ms=20]] word"));
        }
        wait_until("the flood waits", Duration::from_secs(20), || waiting(&cluster) >= 20);
        let before = waiting(&cluster);
        is_whole("quiet", "[[tokens=2]] word");
        let after = waiting(&cluster);
        // It was next, and at most those ran before it that had their turns already.
        assert!(before.saturating_sub(after) <= 6, "{before} waited before and {after} after it");
    });
    wait_until("all is quiet", Duration::from_secs(10), || is_idle(&cluster));
}

#[test]
fn who_waits_outlives_the_worker() {
    let cluster = running(4);
    let queen = cluster.queen();
    std::thread::scope(|scope| {
        let replies: Vec<_> = (0..30)
            .map(|_| {
                let mut body = chat("someone", "[[tokens=20 delay_ms=20]] word");
                body["stream"] = json!(false);
                let queen = &queen;
                scope.spawn(move || queen.post(CHAT, &body))
            })
            .collect();
        wait_until("most of them wait", Duration::from_secs(20), || waiting(&cluster) >= 20);
        cluster.process("llm-worker-rbee").signal(Signal::KILL);
        for reply in replies {
            let reply = reply.join().expect("a client");
            assert_eq!(reply.status, 200, "{}", reply.body);
        }
    });
    wait_until("all is quiet", Duration::from_secs(10), || waiting(&cluster) == 0);
}

#[test]
fn wrong_requests_never_count_against_a_worker() {
    let cluster = running(2);
    let before = cluster.workers();
    for _ in 0..60 {
        let reply = cluster.queen().post(CHAT, &chat("someone", "[[nonsense=1]] word"));
        assert_eq!(reply.status, 400, "{}", reply.body);
    }
    assert_eq!(cluster.rbee(&["infer", "-m", "tiny", "-p", "after"]).ok().trim(), "after");
    let after = cluster.workers();
    assert_eq!(after.len(), 1, "{after:?}");
    assert_eq!((&after[0]["id"], &after[0]["pid"]), (&before[0]["id"], &before[0]["pid"]));
    assert_eq!(after[0]["state"], "ready");
}

#[test]
fn nothing_stays_behind_of_clients_that_leave() {
    let cluster = running(4);
    let queen = cluster.queen();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !is_over.load(Ordering::Relaxed) {
                most = most.max(waiting(&cluster));
            }
            most
        });
        let clients: Vec<_> = (0..12)
            .map(|client| {
                let queen = &queen;
                scope.spawn(move || {
                    for round in 0..25 {
                        let user = format!("user-{}", client % 3);
                        let said = "[[tokens=30 delay_ms=2]] word";
                        let mut stream = queen.stream(CHAT, &chat(&user, said));
                        // The rest is never read.
                        let events = (client * 7 + round * 5) % 23;
                        drop(stream.by_ref().take(events).last());
                    }
                })
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().expect("a client"));
        is_over.store(true, Ordering::Relaxed);
        assert!(watch.join().expect("a watch") > 0, "nobody ever waited");
    });
    wait_until("all is quiet", Duration::from_secs(10), || is_idle(&cluster));
    let metrics = queen.get("/metrics").body;
    for gauge in
        ["rbee_queen_requests_running ", "rbee_queen_queue_waiting{", "rbee_queen_queue_bytes "]
    {
        let line = metrics.lines().find(|line| line.starts_with(gauge)).expect("a gauge");
        assert!(line.ends_with(" 0"), "{line}");
    }
}
