//! libFuzzer drives the target `event_stream` of the crate `fuzz-targets`, and links nothing but what that reaches.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (fuzz_targets::EVENT_STREAM.run)(data));
