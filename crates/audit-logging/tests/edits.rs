//! What somebody can do to a log afterwards, and that each of it is found. The log is a real one, written by the writer
//! over several files.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use audit_logging::{
    AuditSettings, Auditor, Event, Flaw, Kind, Options, Outcome, Signer, SubjectKind, Verification,
    read_checkpoints, verify,
};
use secrets_management::Secret;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// Edits that are tried.
const EDITS: usize = 10_000;
/// Bytes of `,"entry_hash":"…"}`.
const OWN_HASH_BYTES: usize = 81;
/// Where the previous hash begins, behind the digits of the number.
const PREVIOUS: &str = ",\"previous_hash\":\"";

type Files = BTreeMap<String, Vec<u8>>;

fn signer() -> Signer {
    Signer::new(&Secret::from_bytes(b"the-same-every-time", "test").unwrap(), "queen-rbee")
}

/// Each batch fills a file of its own.
fn options(directory: &Path, segments_max: u64) -> Options {
    let settings = AuditSettings { segment_mib: 0, segments_max, ..AuditSettings::default() };
    let service = "queen-rbee".to_owned();
    Options { directory: directory.to_owned(), service, settings, signer: signer() }
}

fn event(number: usize) -> Event {
    Event::new(Kind::ModelPull, Outcome::Success)
        .on(SubjectKind::Model, format!("hf:owner/model-{number}"))
        .with_number("number", number as u64)
}

/// Runs a daemon that writes so many entries, three at a time, and ends in order.
async fn live(directory: &Path, entries: usize, segments_max: u64) {
    let start = Event::of_daemon(Kind::Start, "1.0.0");
    let auditor = Auditor::open(options(directory, segments_max), start).unwrap();
    for number in 0..entries {
        if number % 3 == 2 {
            auditor.record(event(number)).await.unwrap();
        } else {
            auditor.note(event(number));
        }
    }
    auditor.close(Event::of_daemon(Kind::Stop, "1.0.0")).await;
    assert_eq!(auditor.status().entries_lost, 0);
}

fn check(directory: &Path) -> Verification {
    verify(directory, Some(&signer().key()), &[]).unwrap()
}

fn segments(directory: &Path) -> Files {
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let named = paths.map(|path| {
        (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())
    });
    named.filter(|(name, _)| name.starts_with('0')).collect()
}

/// The whole lines of a log in order.
fn lines(files: &Files) -> Vec<Vec<u8>> {
    let whole = files.values().flat_map(|content| content.split_inclusive(|byte| *byte == b'\n'));
    whole.map(<[u8]>::to_vec).collect()
}

fn pick(random: &mut fastrand::Rng, files: &Files) -> String {
    let filled: Vec<_> = files.iter().filter(|(_, content)| !content.is_empty()).collect();
    filled[random.usize(..filled.len())].0.clone()
}

/// A place in a file, and the lines of that file.
fn pick_line(random: &mut fastrand::Rng, files: &Files) -> (String, Vec<Vec<u8>>, usize) {
    let name = pick(random, files);
    let lines = lines(&BTreeMap::from([(name.clone(), files[&name].clone())]));
    let at = random.usize(..lines.len());
    (name, lines, at)
}

/// Changes entry `from` and gives all entries from it on the hashes that then belong to them.
fn rewrite(files: &mut Files, from: usize) {
    let (mut index, mut previous) = (0, String::new());
    for content in files.values_mut() {
        let mut rewritten = Vec::new();
        for line in content.split_inclusive(|byte| *byte == b'\n') {
            let mut text = String::from_utf8(line.to_vec()).unwrap();
            if index >= from {
                text.truncate(text.len() - 1 - OWN_HASH_BYTES);
                if index == from {
                    text = text.replacen("\"outcome\":\"success\"", "\"outcome\":\"failure\"", 1);
                }
                if index > 0 {
                    let at = text.find(PREVIOUS).unwrap() + PREVIOUS.len();
                    text.replace_range(at..at + 64, &previous);
                }
                let digest = Sha256::digest(text.as_bytes());
                let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                text = format!("{text},\"entry_hash\":\"{hash}\"}}\n");
            }
            previous = text[text.len() - 67..text.len() - 3].to_owned();
            rewritten.extend_from_slice(text.as_bytes());
            index += 1;
        }
        *content = rewritten;
    }
}

/// Does one thing to a log and says what.
fn edit(random: &mut fastrand::Rng, files: &mut Files) -> &'static str {
    match random.u32(..9) {
        0 => {
            let name = pick(random, files);
            let content = files.get_mut(&name).unwrap();
            let at = random.usize(..content.len());
            content[at] ^= 1 << random.u32(..8);
            "a bit flipped"
        }
        1 => {
            let (name, mut lines, at) = pick_line(random, files);
            lines.remove(at);
            files.insert(name, lines.concat());
            "an entry removed"
        }
        2 => {
            let (name, mut lines, at) = pick_line(random, files);
            let (_, others, other) = pick_line(random, files);
            lines.insert(at, others[other].clone());
            files.insert(name, lines.concat());
            "an entry copied in"
        }
        3 => {
            let (name, mut lines, at) = pick_line(random, files);
            let other = random.usize(..lines.len());
            lines.swap(at, other);
            files.insert(name, lines.concat());
            "two entries swapped"
        }
        4 => {
            let name = pick(random, files);
            let content = files.get_mut(&name).unwrap();
            content.truncate(random.usize(..content.len()));
            "a file cut off"
        }
        5 => {
            let name = pick(random, files);
            files.remove(&name);
            "a file removed"
        }
        6 => {
            let (one, other) = (pick(random, files), pick(random, files));
            let (first, second) = (files[&one].clone(), files[&other].clone());
            files.insert(one, second);
            files.insert(other, first);
            "two files swapped"
        }
        7 => {
            let from = random.usize(..lines(files).len());
            rewrite(files, from);
            "an entry changed and all hashes after it made anew"
        }
        _ => {
            let (name, mut lines, at) = pick_line(random, files);
            let text = String::from_utf8(lines[at].clone()).unwrap();
            lines[at] = text.replacen("success", "failure", 1).into_bytes();
            files.insert(name, lines.concat());
            "an outcome changed"
        }
    }
}

/// The number of the first entry that is not the one that was written.
fn first_change(before: &Files, after: &Files) -> Option<u64> {
    let (before, after) = (lines(before), lines(after));
    let same = before.iter().zip(&after).take_while(|(left, right)| left == right).count();
    (same < before.len() || same < after.len()).then_some(same as u64 + 1)
}

#[tokio::test]
async fn every_edit_is_found_and_the_first_bad_entry_is_named() {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let directory = TempDir::new().unwrap();
    live(directory.path(), 18, 1000).await;
    let before = segments(directory.path());
    assert!(before.len() >= 6, "{} files", before.len());
    assert_eq!(check(directory.path()).problem, None);
    let mut found: BTreeMap<&'static str, usize> = BTreeMap::new();
    while found.values().sum::<usize>() < EDITS {
        let mut after = before.clone();
        let what = edit(&mut random, &mut after);
        let Some(first) = first_change(&before, &after) else { continue };
        for name in before.keys().filter(|name| before.get(*name) != after.get(*name)) {
            let path = directory.path().join(name);
            match after.get(name) {
                Some(content) => fs::write(path, content).unwrap(),
                None => fs::remove_file(path).unwrap(),
            }
        }
        let verified = check(directory.path());
        let problem = verified
            .problem
            .unwrap_or_else(|| panic!("seed {seed}: {what} at {first} was not found"));
        let is_named = match problem.flaw {
            Flaw::Rewritten { through } => (problem.entry..=through).contains(&first),
            // The first file is gone: what is named is the first entry that is left.
            Flaw::Beginning => first == 1,
            _ => problem.entry == first,
        };
        assert!(is_named, "seed {seed}: {what}: {problem}, and entry {first} is the first bad one");
        *found.entry(what).or_default() += 1;
        for (name, content) in
            before.iter().filter(|(name, _)| before.get(*name) != after.get(*name))
        {
            fs::write(directory.path().join(name), content).unwrap();
        }
    }
    assert_eq!(found.len(), 9, "{found:?}");
    assert_eq!(check(directory.path()).problem, None);
}

#[tokio::test]
async fn a_cut_end_is_found_by_the_checkpoint_even_if_those_here_are_cut_too() {
    let directory = TempDir::new().unwrap();
    live(directory.path(), 20, 1000).await;
    let whole = check(directory.path());
    let checkpoints = directory.path().join("checkpoints.jsonl");
    let elsewhere = read_checkpoints(&checkpoints).unwrap();
    let mut files = segments(directory.path());
    // The last file may be new and still empty.
    while let Some((last, content)) = files.pop_last() {
        fs::remove_file(directory.path().join(last)).unwrap();
        if !content.is_empty() {
            break;
        }
    }
    let left = lines(&files).len() as u64;
    let cut = check(directory.path()).problem.unwrap();
    assert_eq!((cut.entry, cut.flaw), (left + 1, Flaw::Cut { through: whole.last }));
    let text = fs::read_to_string(&checkpoints).unwrap();
    let kept = text.lines().zip(&elsewhere).filter(|(_, checkpoint)| checkpoint.sequence <= left);
    let kept: String = kept.map(|(line, _)| format!("{line}\n")).collect();
    fs::write(&checkpoints, kept).unwrap();
    assert_eq!(check(directory.path()).problem, None, "nothing here can tell");
    let told = verify(directory.path(), Some(&signer().key()), &elsewhere).unwrap();
    assert_eq!(told.problem.unwrap().flaw, Flaw::Cut { through: whole.last });
}

#[tokio::test]
async fn a_checkpoint_of_another_key_or_none_at_all_is_found() {
    let directory = TempDir::new().unwrap();
    live(directory.path(), 5, 1000).await;
    let other = Signer::new(&Secret::generate().unwrap(), "queen-rbee").key();
    let verified = verify(directory.path(), Some(&other), &[]).unwrap();
    assert_eq!(verified.problem.unwrap().flaw, Flaw::Signature);
    fs::remove_file(directory.path().join("checkpoints.jsonl")).unwrap();
    let problem = check(directory.path()).problem.unwrap();
    assert_eq!((problem.entry, problem.flaw), (1, Flaw::Unsigned));
}

#[tokio::test]
async fn old_files_go_as_configured_and_what_is_left_can_be_verified() {
    let directory = TempDir::new().unwrap();
    for _ in 0..3 {
        live(directory.path(), 30, 4).await;
    }
    let verified = check(directory.path());
    assert_eq!(verified.problem, None);
    assert!(verified.first > 50 && verified.segments <= 5, "{verified:?}");
    let files = segments(directory.path());
    fs::remove_file(directory.path().join(files.keys().next().unwrap())).unwrap();
    let problem = check(directory.path()).problem.unwrap();
    assert_eq!(problem.flaw, Flaw::Beginning, "one file more than was told");
}

#[tokio::test]
async fn three_restarts_and_changes_of_file_are_one_chain_and_a_torn_end_is_told() {
    let directory = TempDir::new().unwrap();
    for round in 1..=4 {
        live(directory.path(), 18, 1000).await;
        assert_eq!(check(directory.path()).problem, None, "round {round}");
    }
    let before = check(directory.path()).last;
    let (last, content) = segments(directory.path()).pop_last().unwrap();
    let torn = [content.as_slice(), b"{\"sequence\":99,\"prev"].concat();
    fs::write(directory.path().join(last), torn).unwrap();
    assert!(check(directory.path()).is_torn);
    live(directory.path(), 1, 1000).await;
    let verified = check(directory.path());
    assert_eq!((verified.problem, verified.is_torn), (None, false));
    let told = String::from_utf8(lines(&segments(directory.path())).concat()).unwrap();
    let told: Vec<&str> = told.lines().filter(|line| line.contains("audit.recovered")).collect();
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("\"cut_bytes\":20"), "{}", told[0]);
    assert!(told[0].starts_with(&format!("{{\"sequence\":{},", before + 1)), "{}", told[0]);
}
