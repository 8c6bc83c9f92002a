//! Connections that are opened and closed at once, without a word: nothing of them is
//! held, and whoever has a request is answered meanwhile.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use e2e::{address_of, connect_from, holds_within, raw};
use socket2::SockRef;

use crate::figures::Holds;
use crate::nemesis::StopAtEnd;
use crate::requests::{Ending, Manner, ask};
use crate::site::{LIMIT, Site};
use crate::volume;

/// So many addresses the connections come from: one alone has too few ports.
const SOURCES: u8 = 100;
/// Connections that are kept for the next request of the test itself.
const DESCRIPTORS_MORE_MAX: usize = 4;

/// Opens and closes connections, every second one with a reset.
fn knock(address: SocketAddr, times: usize) {
    for time in 0..times {
        let source = 2 + u8::try_from(time % usize::from(SOURCES)).expect("few");
        let stream = connect_from(Ipv4Addr::new(127, 0, 0, source), address);
        if time % 2 == 0 {
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket");
        }
    }
}

#[test]
fn connections_that_say_nothing_leave_nothing() {
    let site = Site::new();
    let queen = site.queen();
    site.cluster.import_tiny("tiny");
    assert_eq!(site.cluster.rbee(&["infer", "-m", "tiny", "-p", "one"]).ok().trim(), "one");
    let worker = site.cluster.workers()[0]["url"].as_str().expect("a URL").to_owned();
    let one = |program: &str| site.living(program)[0].pid;
    let doors = [
        (queen.pid(), site.cluster.url("queen")),
        (one("rbee-hive"), site.cluster.url("hive")),
        (one("llm-worker-rbee"), worker),
    ];
    let held = doors.each_ref().map(|(pid, _)| Holds::of(*pid).expect("a program"));
    let (times, start, is_over) =
        (volume::of(2_000, 60_000), SystemTime::now(), AtomicBool::new(false));
    let answered = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut answered = 0;
            while answered == 0 || !is_over.load(Ordering::Relaxed) {
                let ending = ask(&site, "tiny", Manner::Whole, 3, Duration::from_millis(1));
                assert_eq!(ending, Ending::Done, "after {answered} requests");
                answered += 1;
            }
            answered
        });
        let stop = StopAtEnd(&is_over);
        let knocking =
            doors.each_ref().map(|(_, url)| scope.spawn(|| knock(address_of(url), times / 3)));
        knocking.into_iter().for_each(|thread| thread.join().expect("a thread"));
        drop(stop);
        client.join().expect("a client")
    });
    let took = start.elapsed().expect("a clock");
    volume::figure(
        "connections without a word",
        format!("{times} in {took:?}, {answered} requests answered"),
    );
    for ((pid, url), before) in doors.iter().zip(held) {
        // What is answered now has waited behind all of them.
        let request = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        assert_ne!(raw(Ipv4Addr::LOCALHOST, address_of(url), request).status, 0, "{url}");
        let shed = holds_within(LIMIT, || {
            let now = Holds::of(*pid).expect("a program");
            now.descriptors <= before.descriptors + DESCRIPTORS_MORE_MAX
        });
        assert!(shed, "{url}: {before:?}, now {:?}", Holds::of(*pid));
    }
    site.assert_no_panic("connections without a word");
}
