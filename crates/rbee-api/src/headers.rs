//! Names of the HTTP headers that rbee reads and writes, in the lower-case
//! form HTTP libraries want.

/// Identifies one client request through every hop and log line.
pub const REQUEST_ID: &str = "x-request-id";
/// Remaining budget in milliseconds; lowered at every hop.
pub const REQUEST_TIMEOUT_MS: &str = "x-request-timeout-ms";
/// Tells OpenAI's SDKs whether trying again can help.
pub const SHOULD_RETRY: &str = "x-should-retry";
/// Milliseconds to wait before trying again; finer than `retry-after`.
pub const RETRY_AFTER_MS: &str = "retry-after-ms";
/// Between the programs alone, never taken from a client: asks for a marked
/// stream, and says how many bytes of the body are the client's own. What
/// follows them is what the client has of the reply already.
pub const CLIENT_BYTES: &str = "x-rbee-client-bytes";
/// Between the programs alone, never taken from a client: whose computed
/// prompts a request may use, as 64 hex digits that tell nothing else.
pub const CACHE_SCOPE: &str = "x-rbee-cache-scope";
