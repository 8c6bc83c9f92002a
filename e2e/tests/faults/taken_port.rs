//! Somebody else at the port of a worker that is gone: a hive that takes over, or that has
//! seen the end itself, neither calls that one nor shows it a token or a prompt.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use e2e::{address_of, wait_for, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::agreement::assert_agreement;
use crate::ledger;
use crate::site::{LIMIT, Site, is_ready, pid_of, signal_to};
use crate::volume;

/// How long a caller may take to say something.
const HEARING: Duration = Duration::from_millis(200);

/// Takes every connection, keeps what is said, and answers that all is well.
struct Thief {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
    ends: Arc<AtomicBool>,
    listens: Option<std::thread::JoinHandle<()>>,
}

impl Thief {
    fn at(address: SocketAddr) -> Self {
        let listener = wait_for("the port is free", LIMIT, || TcpListener::bind(address).ok());
        let (heard, ends) =
            (Arc::<Mutex<Vec<String>>>::default(), Arc::new(AtomicBool::new(false)));
        let (kept, is_over) = (Arc::clone(&heard), Arc::clone(&ends));
        let listens = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                let said = answered(stream.expect("a connection"));
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(said);
            }
        });
        Self { address, heard, ends, listens: Some(listens) }
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Thief {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        // Whoever waits for a connection has to be given one.
        TcpStream::connect(self.address).ok();
        self.listens.take().and_then(|listens| listens.join().ok());
    }
}

fn answered(mut stream: TcpStream) -> String {
    stream.set_read_timeout(Some(HEARING)).expect("a timeout");
    let mut said = vec![0; 1 << 16];
    let count = stream.read(&mut said).unwrap_or(0);
    let body = r#"{"state":"ready","slots_total":1,"device":"cpu","choices":[]}"#;
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
    // Who called may have left.
    write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).ok();
    String::from_utf8_lossy(&said[..count]).into_owned()
}

fn end(worker: &Value, site: &Site) -> SocketAddr {
    signal_to(pid_of(worker), Signal::KILL);
    wait_until("the worker is gone", LIMIT, || {
        !site.living("llm-worker-rbee").iter().any(|process| process.pid == pid_of(worker))
    });
    address_of(worker["url"].as_str().expect("a URL"))
}

fn ask(site: &Site, worker: &Value) -> (u16, String) {
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "a secret"}]});
    let id = worker["id"].as_str().expect("an id");
    let reply = site.to_hive().post(&format!("/api/v1/workers/{id}/v1/chat/completions"), &body);
    (reply.status, reply.body)
}

#[test]
fn whoever_got_the_port_of_a_dead_worker_is_told_nothing() {
    let site = Site::new();
    let mut hive = site.hive();
    site.import("tiny", 1);
    let mut calls = Vec::new();
    for round in 0..volume::of(3, 60) {
        let worker = site.ready_worker("tiny");
        // The next hive finds the worker in its ledger, or this one has seen it die.
        let is_taken_over = round % 2 == 0;
        if is_taken_over {
            hive.kill();
            assert_eq!(ledger::rows(&site.cluster.home()).len(), 1);
        }
        let port = end(&worker, &site);
        if !is_taken_over {
            // Until the hive has heard of the end, milliseconds later, nothing tells one from the other.
            wait_until("the hive knows", LIMIT, || {
                let listed = site.listed().expect("a list");
                !listed.iter().any(|known| known["id"] == worker["id"] && is_ready(known))
            });
        }
        let thief = Thief::at(port);
        if is_taken_over {
            hive = site.hive();
        }
        let (status, said) = ask(&site, &worker);
        assert!((400..600).contains(&status), "the dead one answers: {status} {said}");
        let next = site.ready_worker("tiny");
        assert_ne!(next["url"], worker["url"]);
        assert_eq!(ask(&site, &next).0, 200);
        assert_agreement(&site, "somebody else at the port");
        calls.extend(thief.heard());
    }
    assert_eq!(calls, Vec::<String>::new());
    volume::figure("calls of whoever got the port of a dead worker", calls.len());
}
