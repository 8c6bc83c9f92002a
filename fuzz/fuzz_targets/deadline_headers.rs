//! libFuzzer drives the target `deadline_headers` of the crate `fuzz-targets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (fuzz_targets::target("deadline_headers").run)(data));
