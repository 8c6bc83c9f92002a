//! libFuzzer drives the target `config_file` of the crate `fuzz-targets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (fuzz_targets::target("config_file").run)(data));
