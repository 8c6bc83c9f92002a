//! libFuzzer drives the target `event_stream` of the crate `fuzz-targets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (fuzz_targets::target("event_stream").run)(data));
