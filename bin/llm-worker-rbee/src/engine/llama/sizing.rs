//! How many requests a model is run for at once, and with how much context:
//! what the command line says, else a default that leaves memory to others.
//! An estimate from the file's header; llama.cpp has the last word.

use std::fs;

use rbee_llama::kv_type::KvType;
use rbee_llama::model::Model;

/// Slots where none are given: the number of requests up to which a small
/// machine's batches still gain.
const SLOTS_DEFAULT: u32 = 8;
/// Context of a slot where none is given. Every slot's memory is reserved and
/// touched at the start, so the long contexts that models are trained for
/// would cost gigabytes that chats never use; `--context` raises it.
const CONTEXT_TOKENS_DEFAULT: u32 = 4096;
/// Least context that halving the slots protects.
const CONTEXT_TOKENS_UNKNOWN: u32 = 4096;
/// The KV memory takes at most this share of the memory that is free.
const KV_SHARE_OF_FREE: u64 = 4;

/// What the command line asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wishes {
    pub(super) slots: Option<u32>,
    pub(super) context_tokens: Option<u32>,
}

/// What a model is run with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) slots: u32,
    /// Tokens of context that each slot has.
    pub(crate) context_tokens: u32,
}

impl Sizes {
    /// `types` are those of keys and values; `free_bytes` is what the memory
    /// that holds them has left beside the weights.
    pub(super) fn for_model(
        model: &Model,
        wishes: Wishes,
        types: (KvType, KvType),
        free_bytes: Option<u64>,
    ) -> Self {
        let per_token = kv_bytes_per_token(model, types);
        Self::choose(wishes, model.n_ctx_train(), per_token, free_bytes)
    }

    /// A context longer than the model was trained for gives nonsense, so that
    /// is the limit of a wish too. Slots are halved until the memory is enough,
    /// unless they were asked for.
    fn choose(
        wishes: Wishes,
        context_trained: u32,
        kv_bytes_per_token: Option<u64>,
        free_bytes: Option<u64>,
    ) -> Self {
        let trained = if context_trained == 0 { CONTEXT_TOKENS_UNKNOWN } else { context_trained };
        let context_tokens = wishes.context_tokens.unwrap_or(CONTEXT_TOKENS_DEFAULT).min(trained);
        let mut slots = wishes.slots.unwrap_or(SLOTS_DEFAULT);
        if let (None, Some(per_token), Some(free)) = (wishes.slots, kv_bytes_per_token, free_bytes)
        {
            let needed = |slots: u32| {
                u64::from(slots).saturating_mul(u64::from(context_tokens)).saturating_mul(per_token)
            };
            while slots > 1 && needed(slots) > free / KV_SHARE_OF_FREE {
                slots /= 2;
            }
        }
        Self { slots, context_tokens }
    }
}

/// Keys and values of one token in one layer, counted as numbers, from the
/// header's figures; `None` where they are missing.
pub(super) fn kv_numbers(model: &Model) -> Option<(u64, u64)> {
    let number = |key: &str| number(model, key);
    let heads = heads(model)?;
    let kv_heads = number("attention.head_count_kv").unwrap_or(heads);
    let head_width = number("embedding_length")?.checked_div(heads)?;
    let key_width = number("attention.key_length").unwrap_or(head_width);
    let value_width = number("attention.value_length").unwrap_or(head_width);
    Some((kv_heads.checked_mul(key_width)?, kv_heads.checked_mul(value_width)?))
}

/// Heads of attention in a layer; `None` where the header has no one number.
pub(super) fn heads(model: &Model) -> Option<u64> {
    number(model, "attention.head_count")
}

fn number(model: &Model, key: &str) -> Option<u64> {
    let architecture = model.meta("general.architecture")?;
    model.meta(&format!("{architecture}.{key}"))?.parse().ok()
}

/// Bytes of keys and values of one token in all layers.
pub(super) fn kv_bytes_per_token(model: &Model, (type_k, type_v): (KvType, KvType)) -> Option<u64> {
    let (keys, values) = kv_numbers(model)?;
    let bytes_of_32 = keys
        .saturating_mul(type_k.bytes_of_32())
        .saturating_add(values.saturating_mul(type_v.bytes_of_32()));
    Some(u64::from(model.n_layer()).saturating_mul(bytes_of_32) / 32)
}

/// Memory that could be used without swapping, as Linux estimates it.
pub(super) fn free_memory_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const NONE: Wishes = Wishes { slots: None, context_tokens: None };

    #[test]
    fn defaults_shrink_with_the_memory_and_wishes_do_not() {
        let wish = |slots, context_tokens| Wishes { slots, context_tokens };
        // 128 KiB a token: a model of 8 billion weights.
        let big = Some(128 * 1024);
        let cases = [
            (NONE, 8192, Some(23_040), Some(20 * GIB), (8, 4096)),
            (NONE, 2048, Some(23_040), Some(20 * GIB), (8, 2048)),
            (NONE, 131_072, big, Some(16 * GIB), (8, 4096)),
            (NONE, 131_072, big, Some(8 * GIB), (4, 4096)),
            (NONE, 131_072, big, Some(GIB / 2), (1, 4096)),
            (NONE, 131_072, None, Some(GIB), (8, 4096)),
            (NONE, 0, None, None, (8, 4096)),
            (wish(Some(16), None), 131_072, big, Some(GIB), (16, 4096)),
            (wish(None, Some(1 << 20)), 8192, Some(1), Some(GIB), (8, 8192)),
            (wish(Some(2), Some(512)), 8192, big, Some(GIB), (2, 512)),
        ];
        for (wishes, trained, per_token, free, (slots, context_tokens)) in cases {
            let sizes = Sizes::choose(wishes, trained, per_token, free);
            assert_eq!(sizes, Sizes { slots, context_tokens }, "{wishes:?} {trained} {free:?}");
        }
    }

    #[test]
    fn this_machine_tells_its_free_memory() {
        assert!(free_memory_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
