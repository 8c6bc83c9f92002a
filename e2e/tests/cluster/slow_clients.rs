//! Thousands of clients that send slowly, or nothing: the others are served as
//! before, and the slow ones are gone soon.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, SystemTime};

use e2e::{Cluster, address_of, connect_from, wait_until};
use rustix::process::{Resource, getrlimit};

/// Sockets that send a byte of a request, and then nothing.
const SLOW: usize = 5_000;
/// Connections on which nothing is ever sent.
const IDLE: usize = 10_000;
/// Descriptors that a test needs for other things.
const SPARE: u64 = 500;
/// When every one of them has to be gone, counted from the last that came.
const CUT: Duration = Duration::from_secs(12);
/// What a connection may take of the daemon's memory.
const BYTES_EACH: u64 = 20 * 1024;

fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// Whether the other side has closed.
fn is_closed(stream: &mut TcpStream) -> bool {
    let mut byte = [0; 64];
    match stream.read(&mut byte) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    }
}

#[test]
fn slow_and_idle_clients_keep_nobody_out_and_are_soon_gone() {
    let cluster = Cluster::echo();
    drop(cluster.rbee(&["queen", "start"]).ok());
    let queen = cluster.process("queen-rbee").pid;
    let address = address_of(&cluster.url("queen"));
    let http = cluster.queen();
    assert_eq!(http.get("/v1/models").status, 200);
    let room = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).saturating_sub(SPARE);
    let wanted = usize::try_from(room).unwrap_or(usize::MAX).min(SLOW + IDLE);
    assert!(wanted >= 5_000, "raise the limit on open files: ulimit -n");
    let before = resident_bytes(queen);
    let mut attackers = Vec::with_capacity(wanted);
    let mut most = 0;
    for number in 0..wanted {
        let source = Ipv4Addr::new(127, 2, u8::try_from(number % 200).expect("a byte"), 1);
        let mut stream = connect_from(source, address);
        if number % 3 == 0 {
            // It may have been given up for the next one already.
            stream.write_all(b"GET /v1/models HTTP/1.1\r\nHost: loc").ok();
        }
        stream.set_nonblocking(true).expect("a socket");
        attackers.push(stream);
        if number % 500 == 0 {
            assert_eq!(http.get("/v1/models").status, 200, "after {number} attackers");
            most = most.max(resident_bytes(queen));
        }
    }
    let last = SystemTime::now();
    let mut served = 0;
    // The healthy client connects anew for each request while the attackers hold all they can.
    while last.elapsed().is_ok_and(|passed| passed < Duration::from_secs(2)) {
        assert_eq!(cluster.queen().get("/v1/models").status, 200);
        served += 1;
    }
    assert!(served > 20, "only {served} requests were answered in two seconds");
    most = most.max(resident_bytes(queen));
    // At most 4096 of them are there at once.
    let each = most.saturating_sub(before) / 4096;
    assert!(each <= BYTES_EACH, "{each} bytes a connection");
    let left = CUT.saturating_sub(last.elapsed().unwrap_or_default());
    wait_until("all attackers are cut off", left, || {
        attackers.retain_mut(|stream| !is_closed(stream));
        attackers.is_empty()
    });
    assert_eq!(http.get("/v1/models").status, 200);
}
