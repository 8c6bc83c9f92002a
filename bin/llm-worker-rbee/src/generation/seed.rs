//! The seed of a request: what decides which tokens are drawn.

use super::Request;

/// What a request is drawn with: what it was drawn with elsewhere, what it
/// names, or a fresh seed.
pub(super) fn of(request: &Request) -> u64 {
    let earlier = request.marks.head().map(|head| head.seed);
    earlier.or(request.options.sampling.seed).unwrap_or_else(fresh_seed)
}

/// A seed for a request that names none.
fn fresh_seed() -> u64 {
    getrandom::u64().unwrap_or_else(|error| {
        tracing::warn!(%error, "no randomness for a seed; the clock must do");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(0, |since| u64::from(since.subsec_nanos()) ^ since.as_secs())
    })
}
