//! A queen who answers heartbeats with an error, with nonsense, or without end: her hive
//! takes neither more memory nor more processor time for it, its workers go on, and it is
//! back with a real queen as soon as there is one.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use e2e::{free_address, wait_until};
use serde_json::{Value, json};

use crate::agreement::assert_agreement;
use crate::figures::{Holds, processor_time};
use crate::site::{Daemon, HIVE, LIMIT, QUEEN, Site, pid_of};
use crate::volume;

/// How a queen answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Fails,
    TalksNonsense,
    /// Claims to be what was asked for, and is not.
    AnswersWrong,
    Redirects,
    NeverEndsHerBody,
    NeverEndsHerHead,
    /// As above, a byte now and then.
    DropsHerHead,
    SaysNothing,
}

const MANNERS: [&[Manner]; 3] = [
    &[
        Manner::Fails,
        Manner::TalksNonsense,
        Manner::AnswersWrong,
        Manner::Redirects,
        Manner::NeverEndsHerBody,
        Manner::NeverEndsHerHead,
    ],
    &[Manner::DropsHerHead],
    &[Manner::SaysNothing],
];
/// A hive asks again a second after it has given up; in a second it gives up at most once and again.
const TRIES_A_SECOND: u64 = 2;
/// What a hive may take more while it is answered so: a few times the largest answer that it reads.
const MEMORY_MORE_KIB: u64 = 32 * 1024;
/// How often the byte comes.
const DRIP: Duration = Duration::from_millis(50);

struct HostileQueen {
    address: String,
    asked: Arc<AtomicUsize>,
    ends: Arc<AtomicBool>,
    listens: Option<std::thread::JoinHandle<()>>,
}

impl HostileQueen {
    fn at(address: &str, manner: Manner) -> Self {
        let listener = TcpListener::bind(address).expect("a free port");
        let (asked, ends) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, is_over) = (Arc::clone(&asked), Arc::clone(&ends));
        let listens = std::thread::spawn(move || {
            let mut answering = Vec::new();
            for stream in listener.incoming() {
                if is_over.load(Ordering::SeqCst) {
                    break;
                }
                count.fetch_add(1, Ordering::SeqCst);
                let (stream, is_over) = (stream.expect("a connection"), Arc::clone(&is_over));
                answering.push(std::thread::spawn(move || answer(stream, manner, &is_over)));
            }
            answering.into_iter().for_each(|thread| thread.join().expect("a thread"));
        });
        Self { address: address.to_owned(), asked, ends, listens: Some(listens) }
    }
}

impl Drop for HostileQueen {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        // Whoever waits for a connection has to be given one.
        TcpStream::connect(&self.address).ok();
        self.listens.take().and_then(|listens| listens.join().ok());
    }
}

/// Answers until the hive has had enough, or the test has.
fn answer(mut stream: TcpStream, manner: Manner, is_over: &AtomicBool) {
    stream.set_read_timeout(Some(DRIP)).expect("a timeout");
    stream.set_write_timeout(Some(DRIP)).expect("a timeout");
    // What the hive says does not matter, only that it has said it.
    stream.read(&mut [0; 1 << 16]).map(drop).ok();
    let (head, more, pause): (&[u8], &[u8], bool) = match manner {
        Manner::Fails => (b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", b"", false),
        Manner::TalksNonsense => (b"\x16\x03\x01 220 ready \xff\xfe\r\n\r\n\r\n", b"", false),
        Manner::AnswersWrong => (
            b"HTTP/1.1 200 OK\r\ncontent-length: 49\r\nconnection: close\r\n\r\n\
              {\"interval_ms\":-1,\"epoch\":[[[[[[\"x\"]]]]]],\"z\":{}}\n",
            b"",
            false,
        ),
        Manner::Redirects => (
            b"HTTP/1.1 307 Over\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            b"",
            false,
        ),
        Manner::NeverEndsHerBody => {
            (b"HTTP/1.1 200 OK\r\ncontent-length: 10737418240\r\n\r\n", &[b' '; 1 << 16], false)
        }
        Manner::NeverEndsHerHead => (b"HTTP/1.1 200 OK\r\n", b"x-more: and more\r\n", false),
        Manner::DropsHerHead => (b"HTTP/1.1 200 OK\r\nx-more: ", b"m", true),
        Manner::SaysNothing => (b"", b"", true),
    };
    let mut goes_on = stream.write_all(head).is_ok() && (pause || !more.is_empty());
    while goes_on && !is_over.load(Ordering::SeqCst) {
        // Reading is the pause; it ends at once when the hive has hung up.
        goes_on = !(pause && stream.read(&mut [0]).is_ok_and(|count| count == 0));
        goes_on = goes_on && stream.write_all(more).is_ok();
    }
}

/// Has a hive meet queens of these manners, one after another, and then a real one.
fn meet(manners: &[Manner]) {
    let address = free_address();
    let hive = format!("queen_url = \"http://{address}\"\n{HIVE}");
    let site = Site::with(&hive, QUEEN).env("RBEE_QUEEN_BIND", &address);
    let mut hive = site.hive();
    site.import("tiny", 1);
    let worker = site.ready_worker("tiny");
    let before = Holds::of(hive.pid()).expect("a hive");
    manners.iter().for_each(|manner| bear(&site, (&address, &hive), *manner, (before, &worker)));
    let shed =
        || Holds::of(hive.pid()).is_some_and(|now| now.descriptors <= before.descriptors + 4);
    wait_until("nothing of them is held", LIMIT, shed);
    let _queen = site.queen();
    wait_until("the hive is back", LIMIT, || {
        site.to_queen().get("/api/v1/hives").json()["hives"][0]["state"] == "online"
    });
    assert_eq!(site.cluster.rbee(&["infer", "-m", "tiny", "-p", "one"]).ok().trim(), "one");
    assert_eq!(site.listed().expect("a list")[0]["pid"], pid_of(&worker), "the same worker");
    assert!(hive.ended().is_none());
    assert_agreement(&site, "after the queens");
    site.assert_no_panic("hostile queens");
}

/// Has the hive ask a queen of this manner a few times, and looks what it costs.
fn bear(
    site: &Site,
    (address, hive): (&str, &Daemon),
    manner: Manner,
    (before, worker): (Holds, &Value),
) {
    let queen = HostileQueen::at(address, manner);
    let (start, taken) = (SystemTime::now(), processor_time(hive.pid()));
    let passed = || start.elapsed().unwrap_or_default();
    let least = Duration::from_secs(volume::of(1, 20));
    let mut memory = 0;
    wait_until("she is asked, and again", LIMIT * 2, || {
        memory = memory.max(Holds::of(hive.pid()).expect("a hive").memory_kib);
        passed() >= least && queen.asked.load(Ordering::SeqCst) > 1
    });
    let (asked, passed) = (queen.asked.load(Ordering::SeqCst) as u64, passed());
    let busy = processor_time(hive.pid()).saturating_sub(taken);
    let more = memory.saturating_sub(before.memory_kib);
    volume::figure(
        &format!("a queen who {manner:?}"),
        format!("{asked} tries in {passed:?}, {busy:?} of a processor, {more} KiB more"),
    );
    assert!(asked <= (passed.as_secs() + 2) * TRIES_A_SECOND, "{manner:?}: {asked} in {passed:?}");
    assert!(busy < passed / 4, "{manner:?}: it spins: {busy:?} of {passed:?}");
    assert!(more < MEMORY_MORE_KIB, "{manner:?}: {more} KiB more");
    let id = worker["id"].as_str().expect("an id");
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "x"}]});
    let reply = site.to_hive().post(&format!("/api/v1/workers/{id}/v1/chat/completions"), &body);
    assert_eq!(reply.status, 200, "{manner:?}: {}", reply.body);
}

#[test]
fn a_queen_who_answers_nonsense_costs_her_hive_little_and_its_workers_nothing() {
    std::thread::scope(|scope| {
        // Who is waited for until the time of a call is over is met beside the others.
        for manners in MANNERS {
            scope.spawn(|| meet(manners));
        }
    });
}
