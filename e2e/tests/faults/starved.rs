//! Daemons that lack something else: descriptors, a reader of what they say,
//! sense in what they are sent; and daemons that stand still.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use e2e::{Http, Pair, asks, told, wait_for, wait_until};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use serde_json::json;

use crate::agreement::assert_agreement;
use crate::figures::{Holds, processor_time};
use crate::requests::{CHAT, CONTINUED, metric};
use crate::site::{Daemon, HIVE, LIMIT, QUEEN, Site, pid_of, signal_to};
use crate::volume;

/// Descriptors beyond those it has, of a hive that is short of them.
const SPARE: u64 = 3;
/// How long it is.
const SHORTAGE: Duration = Duration::from_secs(2);

/// Sets how many descriptors a process may have, and returns what it was.
fn limit_descriptors(pid: u32, limit: Option<u64>) -> Rlimit {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid");
    // Who has lowered the maximum cannot raise it again.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let limits = Rlimit { current: limit, maximum };
    prlimit(Some(pid), Resource::Nofile, limits).expect("a process of ours")
}

#[test]
fn a_hive_without_descriptors_refuses_waits_and_recovers() {
    let site = Site::new();
    let mut hive = site.hive();
    site.import("tiny", 1);
    let worker = site.ready_worker("tiny");
    let held = Holds::of(hive.pid()).expect("a hive").descriptors as u64;
    let before = limit_descriptors(hive.pid(), Some(held + SPARE));
    let address = site.cluster.url("hive").replace("http://", "");
    let crowd: Vec<TcpStream> =
        (0..64).map(|_| TcpStream::connect(&address).expect("the kernel accepts")).collect();
    let (start, taken) = (SystemTime::now(), processor_time(hive.pid()));
    wait_until("the shortage lasts", SHORTAGE * 3, || {
        start.elapsed().is_ok_and(|passed| passed >= SHORTAGE)
    });
    let busy = processor_time(hive.pid()).saturating_sub(taken);
    assert!(busy < SHORTAGE / 4, "it does not spin: {busy:?}");
    assert!(hive.ended().is_none(), "{}", site.log("rbee-hive"));
    drop(crowd);
    limit_descriptors(hive.pid(), before.current);
    let again = site.ready_worker("tiny");
    assert_eq!(pid_of(&again), pid_of(&worker), "the worker has noticed nothing");
    assert_agreement(&site, "after the shortage");
}

#[test]
fn a_worker_that_cannot_be_started_for_lack_of_descriptors_leaves_nothing() {
    let site = Site::new();
    let hive = site.hive();
    site.import("tiny", 1);
    let held = Holds::of(hive.pid()).expect("a hive").descriptors as u64;
    for spare in 1..volume::of(8, 24) {
        let before = limit_descriptors(hive.pid(), Some(held + spare));
        let model = json!({"model": "tiny"});
        // With too few there is no connection either; what is left behind counts.
        let client = Http::patient(
            &site.cluster.url("hive"),
            Some(&site.cluster.secret("hive.token")),
            Duration::from_secs(2),
        );
        drop(client.try_call("POST", "/api/v1/workers", Some(&model)));
        limit_descriptors(hive.pid(), before.current);
        assert_agreement(&site, &format!("{spare} descriptors to spare"));
        for worker in site.listed().expect("a list") {
            let path = format!("/api/v1/workers/{}", worker["id"].as_str().expect("an id"));
            site.to_hive().try_call("DELETE", &path, None).expect("a reply");
        }
    }
}

#[test]
fn nobody_reads_what_the_daemons_say() {
    let site = Site::new();
    for program in ["rbee-hive", "queen-rbee"] {
        let mut command = site.cluster.command(program, &[]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a daemon");
        drop((child.stdout.take(), child.stderr.take()));
        let mut daemon = Daemon::from(child);
        let name = if program == "rbee-hive" { "hive" } else { "queen" };
        wait_until("the daemon serves or ends", LIMIT, || {
            daemon.ended().is_some() || site.serves(name, daemon.pid())
        });
        assert_eq!(daemon.ended(), None, "{program}");
        site.cluster.import_tiny("tiny");
        // The queen knows the model, though a hive that was there before her looks for one once a second.
        assert_eq!(site.cluster.rbee(&["infer", "-m", "tiny", "-p", "one"]).ok().trim(), "one");
        // A refusal is logged.
        assert_eq!(site.to_hive().get("/api/v1/nothing").status, 404);
        assert!(daemon.ended().is_none(), "{program}");
        drop(site.cluster.rbee(&["queen", "stop"]));
        daemon.kill();
        site.cluster.processes().iter().for_each(|process| process.signal(Signal::TERM));
        site.cluster.wait_until_empty(LIMIT);
    }
}

#[test]
fn a_hive_or_a_queen_that_stands_still_for_a_while_goes_on_as_if_nothing_was() {
    let site = Site::new();
    let queen = site.queen();
    site.cluster.import_tiny("tiny");
    assert_eq!(site.cluster.rbee(&["infer", "-m", "tiny", "-p", "one"]).ok().trim(), "one");
    let pids = |site: &Site| {
        site.cluster.processes().iter().map(|process| process.pid).collect::<Vec<_>>()
    };
    let before = pids(&site);
    let hive = site.living("rbee-hive")[0].clone();
    hive.signal(Signal::STOP);
    wait_until("the queen misses the hive", LIMIT, || {
        let hives = site.to_queen().get("/api/v1/hives").json();
        hives["hives"][0]["state"] != "online"
    });
    assert_eq!(pids(&site), before, "nobody is killed or started beside it");
    hive.signal(Signal::CONT);
    wait_until("the hive is there again", LIMIT, || {
        site.to_queen().get("/api/v1/hives").json()["hives"][0]["state"] == "online"
    });
    queen.signal(Signal::STOP);
    let start = SystemTime::now();
    // Three intervals: hive and worker have missed her by then.
    wait_until("time goes by", LIMIT, || start.elapsed().is_ok_and(|t| t.as_secs() >= 3));
    assert_eq!(pids(&site), before);
    queen.signal(Signal::CONT);
    assert_eq!(site.cluster.rbee(&["infer", "-m", "tiny", "-p", "two"]).ok().trim(), "two");
    assert_eq!(pids(&site), before, "the same processes serve");
    assert_agreement(&site, "after both stood still");
}

#[test]
fn a_stream_through_a_hive_that_stands_still_ends_whole_at_the_other_one() {
    let pair = Pair::echo_under(HIVE, QUEEN);
    let queen = pair.cluster.queen();
    let words: Vec<String> = (0..30).map(|word| format!("w{word}")).collect();
    let prompt = format!("[[tokens=60 delay_ms=20]] {}", words.join(" "));
    let body = asks("tiny", &prompt, &json!({}));
    let alone: Vec<String> = queen.stream(CHAT, &body).collect();
    let mut events = Vec::new();
    let mut still = None;
    for event in queen.stream(CHAT, &body) {
        events.push(event);
        if events.len() == alone.len() / 3 {
            let worker = wait_for("a busy worker", LIMIT, || pair.busy_worker());
            let hive = parent_of(worker.pid);
            signal_to(hive, Signal::STOP);
            still = Some((hive, SystemTime::now()));
        }
    }
    let (hive, since) = still.expect("a stream that was disturbed");
    let took = since.elapsed().expect("a clock");
    signal_to(hive, Signal::CONT);
    assert_eq!(told(&events), told(&alone));
    let went_on = metric(&queen.get("/metrics").body, CONTINUED);
    assert!((went_on - 1.0).abs() < 0.1, "{went_on}");
    volume::figure("a stream leaves a hive that stands still, ms", took.as_millis());
    wait_until("both machines serve", LIMIT, || pair.ready() == 2);
}

/// Returns the process that has started another one.
fn parent_of(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let fields = stat.rsplit_once(')').expect("a name").1;
    fields.split_whitespace().nth(1).and_then(|parent| parent.parse().ok()).expect("a parent")
}

#[test]
fn garbage_at_every_port_changes_nothing() {
    let site = Site::new();
    let _queen = site.queen();
    site.cluster.import_tiny("tiny");
    assert_eq!(site.cluster.rbee(&["infer", "-m", "tiny", "-p", "one"]).ok().trim(), "one");
    let worker = site.cluster.workers()[0]["url"].as_str().expect("a URL").to_owned();
    let before: Vec<u32> = site.cluster.processes().iter().map(|process| process.pid).collect();
    let seed = 11;
    let mut random = fastrand::Rng::with_seed(seed);
    for url in [site.cluster.url("queen"), site.cluster.url("hive"), worker] {
        let address = url.replace("http://", "");
        for round in 0..volume::of(60, 2000) {
            send_garbage(&address, round, &mut random);
        }
    }
    assert_eq!(site.cluster.rbee(&["infer", "-m", "tiny", "-p", "two"]).ok().trim(), "two");
    let after: Vec<u32> = site.cluster.processes().iter().map(|process| process.pid).collect();
    assert_eq!(after, before, "seed {seed}");
    for (client, program) in [(site.to_queen(), "queen"), (site.to_hive(), "hive")] {
        let metrics = client.get("/metrics").body;
        let panics = metrics.lines().find(|line| {
            line.starts_with(&format!("rbee_{program}_panics_total")) && !line.ends_with(" 0")
        });
        assert_eq!(panics, None, "seed {seed}");
    }
}

/// Sends bytes that are no request, or the beginning of one and then no more of it.
fn send_garbage(address: &str, round: usize, random: &mut fastrand::Rng) {
    let mut stream = TcpStream::connect(address).expect("a listener");
    stream.set_read_timeout(Some(Duration::from_millis(5))).expect("a timeout");
    let noise: Vec<u8> = (0..random.usize(1..4096)).map(|_| random.u8(..)).collect();
    let heads: [&[u8]; 4] = [
        b"",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"POST /api/v1/workers HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n",
    ];
    // Whoever is sent this may close at any moment.
    stream.write_all(heads[round % heads.len()]).ok();
    stream.write_all(&noise).ok();
    stream.read_exact(&mut [0; 16]).ok();
}
