//! What is fuzzed: each parser of foreign bytes as a function that takes bytes and fails on what must never be. Shared
//! by the driver here, which needs nothing but stable Rust, and by libFuzzer in `fuzz/`. Part of no program.

mod audit;
mod files;
mod headers;
mod mutator;
mod requests;
mod streams;

pub use mutator::Mutator;

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
    audit::AUDIT_LOG,
    files::GGUF_HEADER,
    files::CONFIG_FILE,
    headers::BEARER_HEADER,
    headers::DEADLINE_HEADERS,
    headers::NAMES,
    requests::OPENAI_REQUESTS,
    requests::INTERNAL_MESSAGES,
    streams::MARKED_STREAM,
    streams::EVENT_STREAM,
];

/// Finds a parser by its name.
///
/// # Panics
/// When there is none.
#[must_use]
#[expect(
    clippy::expect_used,
    reason = "a name of no parser is a mistake of the program that fuzzes"
)]
pub fn target(name: &str) -> Target {
    *TARGETS.iter().find(|target| target.name == name).expect("the name of a target")
}
