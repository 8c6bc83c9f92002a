//! libFuzzer drives the target `deadline_headers` of the crate `fuzz-targets`, and links nothing but what that reaches.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (fuzz_targets::DEADLINE_HEADERS.run)(data));
