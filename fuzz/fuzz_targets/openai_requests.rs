//! libFuzzer drives the target `openai_requests` of the crate `fuzz-targets`, and links nothing but what that reaches.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (fuzz_targets::OPENAI_REQUESTS.run)(data));
