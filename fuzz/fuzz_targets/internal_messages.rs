//! libFuzzer drives the target `internal_messages` of the crate `fuzz-targets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (fuzz_targets::target("internal_messages").run)(data));
