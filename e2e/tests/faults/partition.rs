//! Machines that do not hear each other: nobody is killed, nothing is started twice, and
//! all is as before soon after the network is.

use std::io::{BufRead as _, BufReader};
use std::time::{Duration, SystemTime};

use e2e::{holds_within, wait_until};
use rustix::process::Signal;

use crate::nemesis::pass;
use crate::network::Loss;
use crate::site::signal_to;
use crate::two_machines::Machines;
use crate::volume;

/// Two intervals of heartbeats, and some time for a busy machine.
const NOTICED: Duration = Duration::from_secs(6);
/// A machine that is silent for longer than this has missed more than four heartbeats.
const LONG: Duration = Duration::from_secs(5);
/// How soon all is as before once the network is, with some time for a busy machine.
const HEALED: Duration = Duration::from_secs(7);
/// How soon a client is told that the other end of its stream has vanished.
const HALF_OPEN: Duration = Duration::from_secs(25);

#[test]
fn a_partition_kills_nobody_and_heals() {
    if !volume::is_root("partitions") {
        return;
    }
    let mut machines = Machines::new();
    let before = machines.processes();
    for loss in [Loss::Both, Loss::Inward, Loss::Outward] {
        machines.cut(0, loss);
        wait_until("the queen misses the hive", NOTICED, || !machines.is_online(0));
        assert_eq!(machines.infer("cellar").ok().trim(), "hello", "the other one serves");
        assert_ne!(machines.infer_briefly("attic").code, 0, "{loss:?}");
        wait_until("it lasts", LONG * 2, || machines.silence(0) > LONG);
        assert_eq!(machines.processes(), before, "{loss:?}: nobody is killed or started");
        machines.heal(0, loss);
        let start = SystemTime::now();
        let healed = holds_within(HEALED, || machines.is_online(0));
        assert!(healed, "{loss:?}: {}", machines.queen_log());
        let took = start.elapsed().expect("a clock").as_millis();
        volume::figure(&format!("healed after losing {loss:?}, ms"), took);
        assert_eq!(machines.infer("attic").ok().trim(), "hello");
        assert_eq!(machines.processes(), before, "{loss:?}: the same processes serve");
    }
}

#[test]
fn a_network_that_flaps_changes_nothing() {
    if !volume::is_root("a flapping network") {
        return;
    }
    let mut machines = Machines::new();
    let before = machines.processes();
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..volume::of(6, 60) {
        let loss = [Loss::Both, Loss::Inward, Loss::Outward][random.usize(0..3)];
        machines.cut(1, loss);
        pass(Duration::from_millis(random.u64(100..2500)));
        machines.heal(1, loss);
        pass(Duration::from_millis(random.u64(100..1500)));
    }
    let healed = SystemTime::now();
    wait_until("the hive is heard again", HEALED, || machines.was_heard_since(1, healed));
    assert_eq!(machines.infer("cellar").ok().trim(), "hello");
    assert_eq!(machines.processes(), before, "nobody was killed or started");
    assert!(machines.queen_is_alive());
}

#[test]
fn a_stream_whose_other_end_vanished_ends_with_an_error() {
    if !volume::is_root("half-open connections") {
        return;
    }
    let mut machines = Machines::new();
    let mut keeper = machines
        .keeper(&["infer", "-m", "attic", "-p", "[[tokens=100000 delay_ms=20]] word"])
        .spawn()
        .expect("rbee starts");
    let mut reply = BufReader::new(keeper.stdout.take().expect("a pipe"));
    wait_until("the stream runs", Duration::from_secs(10), || {
        reply.fill_buf().is_ok_and(|bytes| !bytes.is_empty())
    });
    machines.cut(0, Loss::Both);
    let start = SystemTime::now();
    // Nobody is told of their end: packets are lost for good.
    for process in machines.sites[0].cluster.processes() {
        signal_to(process.pid, Signal::KILL);
    }
    let drained = std::thread::spawn(move || std::io::copy(&mut reply, &mut std::io::sink()));
    let ended = holds_within(HALF_OPEN, || keeper.try_wait().expect("a child").is_some());
    if !ended {
        keeper.kill().expect("a child to kill");
    }
    let code = keeper.wait().expect("a child").code();
    drained.join().expect("a reader").expect("a pipe");
    let took = start.elapsed().expect("a clock").as_millis();
    assert!(ended && code == Some(69), "{code:?} after {took} ms: {}", machines.queen_log());
    volume::figure("a vanished machine ends its stream, ms", took);
}

#[test]
fn a_client_that_vanished_takes_no_slot_for_long() {
    if !volume::is_root("clients that vanish") {
        return;
    }
    let mut machines = Machines::new();
    let mut keeper = machines
        .remote_keeper(1, &["infer", "-m", "attic", "-p", "[[tokens=100000 delay_ms=20]] word"])
        .spawn()
        .expect("rbee starts");
    let mut reply = BufReader::new(keeper.stdout.take().expect("a pipe"));
    wait_until("the stream runs", Duration::from_secs(10), || {
        reply.fill_buf().is_ok_and(|bytes| !bytes.is_empty())
    });
    assert_eq!(machines.requests_running(), Some(1));
    machines.cut(1, Loss::Both);
    keeper.kill().expect("a child to kill");
    keeper.wait().expect("a child");
    let start = SystemTime::now();
    let freed = holds_within(HALF_OPEN, || machines.requests_running() == Some(0));
    assert!(freed, "{:?} run: {}", machines.requests_running(), machines.queen_log());
    let took = start.elapsed().expect("a clock").as_millis();
    volume::figure("a vanished client frees its slot, ms", took);
}
