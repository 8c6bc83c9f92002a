//! The one table of limits on what a request may hold. A limit protects memory
//! or time of the program that parses; what a model can take is a separate,
//! smaller bound that the worker checks.

/// Longest request line and headers together; a credential may take half of it.
pub const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Most headers of one request; OpenAI's SDKs send about twenty.
pub const HEADERS_MAX: usize = 64;
/// Largest request body: a prompt of about a million tokens still fits.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Deepest nesting of a body: that of the JSON reader, which it keeps for its stack.
pub const JSON_DEPTH_MAX: usize = 127;
/// Most messages in one chat; the longest agent transcripts stay below it.
pub const MESSAGES_MAX: usize = 1024;
/// Most parts in one message.
pub const CONTENT_PARTS_MAX: usize = 256;
/// Most stop sequences; the number OpenAI allows.
pub const STOP_SEQUENCES_MAX: usize = 4;
/// Longest stop sequence: it is also the most text that a stream holds back.
pub const STOP_BYTES_MAX: usize = 256;
/// Most choices of one reply: each takes a slot, or one of the 64 places in a
/// worker's queue.
pub const CHOICES_MAX: u32 = 16;
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
/// Most tools in one request; the number OpenAI allows.
pub const TOOLS_MAX: usize = 128;
/// Longest name of a tool; the number OpenAI allows.
pub const TOOL_NAME_BYTES_MAX: usize = 64;
/// Longest description of a tool.
pub const TOOL_DESCRIPTION_BYTES_MAX: usize = 16 * 1024;
/// Largest JSON schema of a tool's arguments: each becomes a grammar many
/// times its size.
pub const TOOL_SCHEMA_BYTES_MAX: usize = 64 * 1024;
/// Most calls in one message of an assistant.
pub const TOOL_CALLS_MAX: usize = 128;
/// Longest id of a call; the longest known ones have 40.
pub const TOOL_CALL_ID_BYTES_MAX: usize = 256;
/// Most variables given to a chat template.
pub const TEMPLATE_ARGUMENTS_MAX: usize = 16;
/// Longest name or text among them.
pub const TEMPLATE_ARGUMENT_BYTES_MAX: usize = 256;
/// Most tokens that `logit_bias` may name; OpenAI's own limit is 300.
pub const LOGIT_BIAS_MAX: usize = 1024;
/// Most alternatives told beside a token; the number OpenAI allows in chats.
pub const TOP_LOGPROBS_MAX: u32 = 20;
/// Most texts over which DRY matches no repetition.
pub const DRY_BREAKERS_MAX: usize = 32;
/// Longest such text; it is looked for after every token.
pub const DRY_BREAKER_BYTES_MAX: usize = 64;
/// Largest JSON schema, as compact JSON: far above those people write, and
/// small enough that its compiler ends within a fraction of a second.
pub const SCHEMA_BYTES_MAX: usize = 64 * 1024;
/// Largest GBNF grammar.
pub const GRAMMAR_BYTES_MAX: usize = 64 * 1024;
/// Longest name of a JSON schema; the number OpenAI allows.
pub const SCHEMA_NAME_BYTES_MAX: usize = 64;
/// Most tokens that are remembered of one streamed reply, over all choices, so
/// that it can go on at another worker: a megabyte of memory, and twice as
/// much in the request to go on. A longer reply ends where its worker does.
pub const CONTINUABLE_TOKENS_MAX: usize = 256 * 1024;
