//! The one table of limits on what a request may hold. A limit protects memory
//! or time of the program that parses; what a model can take is a separate,
//! smaller bound that the worker checks.

/// Largest request body: a prompt of about a million tokens still fits.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most messages in one chat; the longest agent transcripts stay below it.
pub const MESSAGES_MAX: usize = 1024;
/// Most parts in one message.
pub const CONTENT_PARTS_MAX: usize = 256;
/// Most stop sequences; the number OpenAI allows.
pub const STOP_SEQUENCES_MAX: usize = 4;
/// Longest stop sequence: it is also the most text that a stream holds back.
pub const STOP_BYTES_MAX: usize = 256;
/// Most tokens one request may ask for; any real context is smaller.
pub const MAX_TOKENS_MAX: u32 = 1 << 20;
/// Largest window the repetition penalties look back over.
pub const REPEAT_LAST_N_MAX: u32 = 65_536;
/// Longest `user` or metadata text.
pub const USER_BYTES_MAX: usize = 512;
/// Most inputs in one request for embeddings; the number OpenAI allows.
pub const EMBEDDING_INPUTS_MAX: usize = 2048;
/// Most numbers in one reply with embeddings, over all inputs: as JSON they
/// stay below the largest reply that a hop passes on.
pub const EMBEDDING_NUMBERS_MAX: usize = 4 * 1024 * 1024;
/// Most documents in one request to rank; the same as inputs to embed.
pub const RERANK_DOCUMENTS_MAX: usize = 2048;
