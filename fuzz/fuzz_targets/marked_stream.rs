//! libFuzzer drives the target `marked_stream` of the crate `fuzz-targets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (fuzz_targets::target("marked_stream").run)(data));
