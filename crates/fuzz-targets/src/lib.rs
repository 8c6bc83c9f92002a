//! What is fuzzed: each parser of foreign bytes as a function that takes bytes and fails on what must never be. Shared
//! by the driver here, which needs nothing but stable Rust, and by libFuzzer in `fuzz/`. Part of no program.

mod audit;
mod files;
mod headers;
mod mutator;
mod requests;
mod streams;

pub use audit::AUDIT_LOG;
pub use files::{CONFIG_FILE, GGUF_HEADER};
pub use headers::{BEARER_HEADER, DEADLINE_HEADERS, NAMES};
pub use mutator::Mutator;
pub use requests::{INTERNAL_MESSAGES, OPENAI_REQUESTS};
pub use streams::{EVENT_STREAM, MARKED_STREAM};

/// One parser to fuzz.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, which is that of its libFuzzer program.
    pub name: &'static str,
    /// Parses, and panics where the result breaks a promise.
    pub run: fn(&[u8]),
    /// Good input, and input that was once bad.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Pieces that good input is made of.
    pub words: &'static [&'static str],
}

/// All parsers that are fuzzed.
pub const TARGETS: &[Target] = &[
    AUDIT_LOG,
    GGUF_HEADER,
    CONFIG_FILE,
    BEARER_HEADER,
    DEADLINE_HEADERS,
    NAMES,
    OPENAI_REQUESTS,
    INTERNAL_MESSAGES,
    MARKED_STREAM,
    EVENT_STREAM,
];
