//! A short run of each parser: what was found to fail once fails again, and a hundred thousand inputs pass.

#![expect(clippy::panic, reason = "a run that fails a target says with which input")]

use std::panic::catch_unwind;

use fuzz_targets::{Mutator, Target};

/// Executions of one target.
const EXECUTIONS: u64 = 100_000;
/// Of the random changes.
const SEED: u64 = 0x5eed;

fn run(target: Target) {
    let name = target.name;
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty());
    seeds.iter().for_each(|seed| (target.run)(seed));
    (target.run)(&[]);
    let mut mutator = Mutator::new(SEED, seeds, target.words);
    for execution in 0..EXECUTIONS {
        let input = mutator.next_input();
        if catch_unwind(|| (target.run)(&input)).is_err() {
            let shown = input.escape_ascii();
            panic!("{name}, seed {SEED:#x}, execution {execution}: b\"{shown}\"");
        }
    }
}

macro_rules! runs {
    ($($name:ident $target:ident)*) => {
        $(#[test]
        fn $name() {
            assert_eq!(fuzz_targets::$target.name, stringify!($name));
            run(fuzz_targets::$target);
        })*

        #[test]
        fn every_target_is_run() {
            let run = [$(stringify!($name)),*];
            let all: Vec<&str> = fuzz_targets::TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(all, run);
        }
    };
}

runs! {
    audit_log AUDIT_LOG
    gguf_header GGUF_HEADER
    config_file CONFIG_FILE
    bearer_header BEARER_HEADER
    deadline_headers DEADLINE_HEADERS
    names NAMES
    openai_requests OPENAI_REQUESTS
    internal_messages INTERNAL_MESSAGES
    marked_stream MARKED_STREAM
    event_stream EVENT_STREAM
}
