//! libFuzzer drives the target `marked_stream` of the crate `fuzz-targets`, and links nothing but what that reaches.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (fuzz_targets::MARKED_STREAM.run)(data));
