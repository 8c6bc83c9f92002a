//! libFuzzer drives the target `openai_requests` of the crate `fuzz-targets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (fuzz_targets::target("openai_requests").run)(data));
