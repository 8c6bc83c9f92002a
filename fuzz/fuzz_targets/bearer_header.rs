//! libFuzzer drives the target `bearer_header` of the crate `fuzz-targets`, and links nothing but what that reaches.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (fuzz_targets::BEARER_HEADER.run)(data));
