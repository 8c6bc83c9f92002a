//! libFuzzer drives the target `bearer_header` of the crate `fuzz-targets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (fuzz_targets::target("bearer_header").run)(data));
