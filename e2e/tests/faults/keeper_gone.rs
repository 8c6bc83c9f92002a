//! A keeper that is interrupted or killed in the middle of a command: it ends with the code
//! that shells expect, nothing is left half-done, and the next command works.

use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, SystemTime};

use e2e::{TinyKind, holds_within, tiny_gguf, wait_until};
use rustix::process::Signal;

use crate::agreement::assert_agreement;
use crate::requests::under_way;
use crate::site::{Daemon, LIMIT, Site};
use crate::volume;

/// What a command ends with that SIGINT has ended.
const INTERRUPTED: i32 = 130;
/// Ways to end a command.
const WAYS: [&[Signal]; 3] = [&[Signal::INT], &[Signal::INT, Signal::INT], &[Signal::KILL]];
/// Large enough that taking it in lasts a while.
const MODEL_BYTES: usize = 48 << 20;

/// Ends a command in one of the ways; it may have been done before.
fn end(mut keeper: Daemon, way: &[Signal], context: &str) -> bool {
    way.iter().for_each(|signal| keeper.signal(*signal));
    let status = keeper.wait("the command ends", LIMIT);
    let is_done = status.success();
    let is_ended = match way {
        [Signal::KILL] => status.signal() == Some(Signal::KILL.as_raw()),
        // In its first moments it has no handler yet; shells tell the same code for that.
        _ => status.code() == Some(INTERRUPTED) || status.signal() == Some(Signal::INT.as_raw()),
    };
    assert!(is_done || is_ended, "{context}: {status}");
    !is_done
}

fn assert_quiet(site: &Site, context: &str) {
    let mut last = None;
    let quiet = holds_within(LIMIT, || {
        last = under_way(site);
        last.is_none()
    });
    assert!(quiet, "{context}: {last:?}");
    assert_agreement(site, context);
}

#[test]
fn a_keeper_that_is_gone_in_the_middle_of_a_reply_holds_no_slot() {
    let site = Site::new();
    let _queen = site.queen();
    site.cluster.import_tiny("tiny");
    for round in 0..volume::of(3, 60) {
        let (way, is_cold) = (WAYS[round % WAYS.len()], round % 2 == 1);
        let context = format!("infer, round {round}, {way:?}");
        if is_cold {
            drop(site.cluster.rbee(&["stop", "--all"]).ok());
        }
        let prompt = "[[tokens=100000 delay_ms=5]] word";
        let keeper = site.launch_with("rbee", &["infer", "-m", "tiny", "-p", prompt], &[]);
        let running = || site.to_queen().get("/api/v1/status").json()["requests_running"] == 1;
        // Cold, its worker is just being started then.
        wait_until("the request is under way", LIMIT, running);
        assert!(end(keeper, way, &context), "{context}: it was done before");
        assert_quiet(&site, &context);
        let next = site.cluster.rbee(&["infer", "-m", "tiny", "-p", "next"]);
        assert_eq!(next.ok().trim(), "next", "{context}");
    }
}

#[test]
fn a_keeper_that_is_gone_in_the_middle_of_a_pull_leaves_a_whole_model_or_none() {
    let site = Site::new();
    let _queen = site.queen();
    let mut random = fastrand::Rng::with_seed(9);
    let (mut ended, mut listed) = (0, 0);
    let rounds = volume::of(4, 60);
    for round in 0..rounds {
        let (way, alias) = (WAYS[round % WAYS.len()], format!("m{round}"));
        let moment = Duration::from_millis(random.u64(0..250));
        let context = format!("pull, round {round}, {way:?} after {moment:?}");
        let file = site.cluster.home().with_file_name(format!("{alias}.gguf"));
        let mut content = tiny_gguf(u8::try_from(round).expect("few"), TinyKind::Generate);
        content.resize(MODEL_BYTES, 1);
        std::fs::write(&file, content).expect("a model file");
        let path = file.to_str().expect("UTF-8");
        let keeper = site.launch_with("rbee", &["pull", path, "--name", &alias], &[]);
        let start = SystemTime::now();
        wait_until("the moment", LIMIT, || start.elapsed().is_ok_and(|passed| passed >= moment));
        ended += usize::from(end(keeper, way, &context));
        listed += usize::from(assert_whole_models(&site, &alias, &context));
        let again = site.cluster.rbee(&["pull", path, "--name", &alias]);
        assert_eq!(again.code, 0, "{context}: {again:?}");
        drop(site.cluster.rbee(&["rm", "--yes", &alias]).ok());
        std::fs::remove_file(file).expect("a file");
    }
    assert!(ended > 0, "no command was ended");
    volume::figure(
        "pulls that lost their keeper",
        format!("{ended} of {rounds}, {listed} went on"),
    );
    assert_quiet(&site, "pull");
    site.assert_no_panic("pull");
}

/// Waits until each listed model has its file and a note about it and there is nothing
/// else, and says whether `alias` is listed.
fn assert_whole_models(site: &Site, alias: &str, context: &str) -> bool {
    let folder = site.cluster.home().join("models");
    let listed = || site.to_hive().get("/api/v1/models").json()["models"].as_array().cloned();
    let files = || std::fs::read_dir(&folder).map_or(0, |files| files.flatten().count());
    let mut seen = (0, 0);
    let clean = holds_within(LIMIT, || {
        seen = (files(), listed().unwrap_or_default().len() * 2);
        seen.0 == seen.1
    });
    assert!(clean, "{context}: {} files, {} expected", seen.0, seen.1);
    listed().unwrap_or_default().iter().any(|model| model["alias"] == alias)
}
