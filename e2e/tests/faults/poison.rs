//! A request that its workers end of, beside others that they do not: it ends two of them
//! and no third, and nobody else is hit.

use std::sync::atomic::{AtomicUsize, Ordering};

use e2e::{Http, Pair, told, wait_until};
use serde_json::{Value, json};

use crate::requests::{CHAT, metric};
use crate::site::LIMIT;
use crate::volume;

/// A breaker as it is by default, so that the third end would open it; slots for all, so
/// that whoever is there when a worker ends was computed by it.
const HIVE: &str = "idle_stop_seconds = 0\n[worker]\nslots = 16\n\
                    [restart]\ndelay_ms = 50\ndelay_max_ms = 50\n";
const ABORTED: &str = "rbee_hive_worker_exits_total{cause=\"aborted\"}";

fn asks(script: &str) -> Value {
    json!({"model": "tiny", "stream": true, "stream_options": {"include_usage": true},
        "messages": [{"role": "user", "content": script}]})
}

/// What one that harms nobody says.
fn harmless(number: usize) -> String {
    format!("[[tokens={} delay_ms=15]] a{number} b{number} c{number}", 60 + 5 * number)
}

/// Returns how many workers have ended by themselves, on both machines.
fn aborted(pair: &Pair) -> f64 {
    pair.hives().iter().map(|hive| metric(&hive.get("/metrics").body, ABORTED)).sum()
}

/// Sends what a worker ends of. Returns the status and the error, which is the whole body
/// or its last event.
fn refused(queen: &Http, script: &str) -> (u16, Value) {
    let reply = queen.post(CHAT, &asks(script));
    let last = reply.body.trim_end().rsplit("data: ").next().unwrap_or_default();
    let last: Value = serde_json::from_str(last).expect("an error");
    (reply.status, last["error"].clone())
}

#[test]
fn a_request_that_workers_end_of_ends_two_and_takes_nobody_with_it() {
    let others = volume::of(10, 24);
    // At its first token, when nothing of it is known; in the middle; and there so soon that what was said before it
    // may never have left the worker. Once something was sent, the head of the reply has been, too.
    for (die_at, delay_ms, statuses) in [(1, 15, &[502][..]), (5, 15, &[200]), (5, 0, &[200, 502])]
    {
        let pair = Pair::echo(HIVE);
        let queen = pair.cluster.queen();
        let alone: Vec<Value> = (0..others)
            .map(|number| {
                let events: Vec<String> = queen.stream(CHAT, &asks(&harmless(number))).collect();
                told(&events).expect("a whole stream")
            })
            .collect();
        let begun = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let replies: Vec<_> = (0..others)
                .map(|number| {
                    let (queen, begun) = (&queen, &begun);
                    scope.spawn(move || {
                        let events = queen.stream(CHAT, &asks(&harmless(number)));
                        let first = |(at, event)| {
                            begun.fetch_add(usize::from(at == 0), Ordering::Relaxed);
                            event
                        };
                        told(&events.enumerate().map(first).collect::<Vec<_>>())
                    })
                })
                .collect();
            wait_until("most slots are taken", LIMIT, || begun.load(Ordering::Relaxed) >= 6);
            let script = format!("[[tokens=9 delay_ms={delay_ms} die_at={die_at}]] bad");
            let (status, error) = refused(&queen, &script);
            assert!(statuses.contains(&status), "{status}: {error}");
            assert_eq!(
                (&error["code"], &error["retryable"]),
                (&json!("worker_failed"), &json!(false)),
                "{script}: {error}"
            );
            for (reply, alone) in replies.into_iter().zip(&alone) {
                assert_eq!(reply.join().expect("a client").as_ref(), Ok(alone));
            }
        });
        wait_until("both ends are counted", LIMIT, || aborted(&pair) >= 2.0);
        pair.wait_until_warm();
        assert_eq!(aborted(&pair), 2.0, "die_at {die_at} delay_ms {delay_ms}");
        let workers = pair.cluster.workers();
        assert!(workers.iter().all(|worker| worker["breaker"] == "closed"), "{workers:?}");
    }
}
