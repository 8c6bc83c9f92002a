//! libFuzzer drives the target `gguf_header` of the crate `fuzz-targets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (fuzz_targets::target("gguf_header").run)(data));
