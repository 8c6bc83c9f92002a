//! How much memory a worker will need. Owns the formula; never looks at a device and never decides whether it fits.

use crate::{CacheType, GgufHeader};

/// llama.cpp rounds the cells of a cache up to a multiple of this.
const CACHE_CELLS_STEP: u64 = 256;

/// Bytes of one number while computing: f32.
const COMPUTE_NUMBER_BYTES: u64 = 4;

/// Tokens whose scores are kept at once, at most.
const SCORED_TOKENS: u64 = 256;

/// A worker that may choose keeps the scores of so many tokens at most as take the larger of this and of an eighth of
/// weights and cache. It computes more of them at once by flash attention.
const SCORES_BYTES_MAX: u64 = 128 << 20;

/// Says how a worker is to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryParams {
    /// Tokens of context each slot has.
    pub context_per_slot: u32,
    /// Requests that can be generated at once.
    pub slots: u32,
    /// Tokens computed in one step (llama.cpp's `n_ubatch`).
    pub step_tokens: u32,
    /// Tokens of one step for which logits are computed (llama.cpp's `n_outputs_max`).
    pub step_outputs: u32,
    /// How keys are stored.
    pub cache_type_k: CacheType,
    /// How values are stored.
    pub cache_type_v: CacheType,
    /// Whether all slots share one memory, so that a step looks at all of it.
    pub cache_unified: bool,
    /// Whether the scores of attention are kept.
    pub scores: Scores,
}

/// Says whether a worker keeps the scores of attention, as it does for what it computes without flash attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// Never.
    No,
    /// As far as they are small beside the model.
    WhereSmall,
    /// Always.
    Yes,
}

/// Holds the parts of an estimate, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// All tensors.
    pub weights_bytes: u64,
    /// The key-value cache of all slots.
    pub kv_bytes: u64,
    /// Intermediate results and logits.
    pub compute_bytes: u64,
    /// The sum.
    pub total_bytes: u64,
}

/// Estimates the memory of a worker from the model's header. Numbers too large for 64 bits become the largest.
///
/// - Weights: the sum of all tensors, exact.
/// - Cache: for each layer, cells × (key heads × key width + value heads × value width) × the bytes of their
///   types, with the cells of a slot rounded up to 256 (`llama_kv_cache` in llama.cpp). Exact for plain attention; an upper bound for sliding windows,
///   shared layers and compressed caches, which store less.
/// - Compute: step × (2 × feed-forward width + 6 × embedding width) × 4 bytes for the widest layer, two copies of the
///   logits, the f16 attention mask of step × cells that a token can see, and the scores of 256 tokens or fewer × heads ×
///   these cells × 4 bytes where they may be kept. A heuristic after llama.cpp's graph reservation.
#[must_use]
pub fn estimate_memory(header: &GgufHeader, params: MemoryParams) -> MemoryEstimate {
    let cells_per_slot = u64::from(params.context_per_slot).next_multiple_of(CACHE_CELLS_STEP);
    let cells = cells_per_slot * u64::from(params.slots);
    let bytes_of_32_heads = u64::from(header.key_length) * params.cache_type_k.bytes_of_32()
        + u64::from(header.value_length) * params.cache_type_v.bytes_of_32();
    // The cells are a multiple of 256, so nothing is lost in the division.
    let kv_bytes =
        (cells / 32).saturating_mul(header.head_count_kv_total()).saturating_mul(bytes_of_32_heads);

    let step = u64::from(params.step_tokens);
    let layer_numbers =
        2 * u64::from(header.feed_forward_length) + 6 * u64::from(header.embedding_length);
    let layer_bytes = step.saturating_mul(layer_numbers).saturating_mul(COMPUTE_NUMBER_BYTES);
    let outputs = u64::from(params.step_outputs.max(params.slots));
    let logits_bytes =
        outputs.saturating_mul(header.vocabulary_size).saturating_mul(2 * COMPUTE_NUMBER_BYTES);
    let cells_seen = if params.cache_unified { cells } else { cells_per_slot };
    let mask_bytes = step.saturating_mul(cells_seen).saturating_mul(2);
    let weights_bytes = header.weights_bytes;
    let model_bytes = weights_bytes.saturating_add(kv_bytes);
    let scores_bytes = scores_bytes(params.scores, header.head_count, cells_seen, model_bytes);
    let compute_bytes = layer_bytes
        .saturating_add(logits_bytes)
        .saturating_add(mask_bytes)
        .saturating_add(scores_bytes);

    let total_bytes = weights_bytes.saturating_add(kv_bytes).saturating_add(compute_bytes);
    MemoryEstimate { weights_bytes, kv_bytes, compute_bytes, total_bytes }
}

/// Returns what the scores take at most.
fn scores_bytes(kept: Scores, heads: u32, cells_seen: u64, model_bytes: u64) -> u64 {
    let scores = u64::from(heads).saturating_mul(cells_seen).saturating_mul(SCORED_TOKENS);
    let bytes = scores.saturating_mul(COMPUTE_NUMBER_BYTES);
    match kept {
        Scores::Yes => bytes,
        Scores::WhereSmall => bytes.min(SCORES_BYTES_MAX.max(model_bytes / 8)),
        Scores::No => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Purpose;

    fn llama_3_8b() -> GgufHeader {
        GgufHeader {
            architecture: "llama".to_owned(),
            purpose: Purpose::Generate,
            reads_inputs_whole: false,
            name: None,
            quantisation: "Q4_K_M".to_owned(),
            context_length: 8192,
            block_count: 32,
            embedding_length: 4096,
            feed_forward_length: 14_336,
            head_count: 32,
            head_count_kv: vec![8],
            key_length: 128,
            value_length: 128,
            vocabulary_size: 128_256,
            has_chat_template: true,
            split_count: 1,
            parameter_count: 8_030_261_248,
            weights_bytes: 4_912_898_304,
        }
    }

    const PARAMS: MemoryParams = MemoryParams {
        context_per_slot: 8192,
        slots: 1,
        step_tokens: 512,
        step_outputs: 1,
        cache_type_k: CacheType::F16,
        cache_type_v: CacheType::F16,
        cache_unified: false,
        scores: Scores::No,
    };

    #[test]
    fn scores_count_where_they_may_be_kept() {
        let compute = |context_per_slot, scores| {
            let params = MemoryParams { context_per_slot, scores, ..PARAMS };
            estimate_memory(&llama_3_8b(), params).compute_bytes
        };
        let of = |tokens: u64| 256 * 32 * tokens * 4;
        let (small, large) = (8192, 65_536);
        assert_eq!(compute(small, Scores::WhereSmall) - compute(small, Scores::No), of(8192));
        // 8 GiB of cache and the weights.
        let eighth = ((8 << 30) + 4_912_898_304) / 8;
        assert_eq!(compute(large, Scores::WhereSmall) - compute(large, Scores::No), eighth);
        assert_eq!(compute(large, Scores::Yes) - compute(large, Scores::No), of(65_536));
    }

    #[test]
    fn the_cache_of_known_models_is_exact() {
        // llama.cpp reports 1024 MiB for 8192 cells of Llama 3 8B: 128 KiB a token.
        let estimate = estimate_memory(&llama_3_8b(), PARAMS);
        assert_eq!(estimate.kv_bytes, 1024 << 20);
        assert_eq!(estimate.weights_bytes, 4_912_898_304);
        let parts = estimate.weights_bytes + estimate.kv_bytes + estimate.compute_bytes;
        assert_eq!(estimate.total_bytes, parts);
        // Qwen2.5 0.5B: 24 layers, 2 heads of 64: 12 KiB a token.
        let qwen = GgufHeader {
            block_count: 24,
            head_count_kv: vec![2],
            key_length: 64,
            value_length: 64,
            ..llama_3_8b()
        };
        assert_eq!(estimate_memory(&qwen, PARAMS).kv_bytes, 8192 * (12 << 10));
    }

    #[test]
    fn cells_are_rounded_up_and_counted_for_every_slot() {
        let kv = |context_per_slot, slots| {
            estimate_memory(&llama_3_8b(), MemoryParams { context_per_slot, slots, ..PARAMS })
                .kv_bytes
        };
        assert_eq!(kv(1, 1), kv(256, 1));
        assert_eq!(kv(257, 1), kv(512, 1));
        assert_eq!(kv(256, 8), 8 * kv(256, 1));
    }

    #[test]
    fn quantised_keys_and_values_take_their_share() {
        let kv = |cache_type_k, cache_type_v| {
            let params = MemoryParams { cache_type_k, cache_type_v, ..PARAMS };
            estimate_memory(&llama_3_8b(), params).kv_bytes
        };
        let plain = kv(CacheType::F16, CacheType::F16);
        assert_eq!(kv(CacheType::F32, CacheType::F32), 2 * plain);
        assert_eq!(kv(CacheType::Q8, CacheType::Q8), plain * 34 / 64);
        assert_eq!(kv(CacheType::F16, CacheType::Q4), plain / 2 + plain / 2 * 18 / 64);
    }

    #[test]
    fn a_step_looks_at_all_slots_only_where_they_share_a_memory() {
        let compute = |cache_unified| {
            let params = MemoryParams { slots: 8, cache_unified, ..PARAMS };
            estimate_memory(&llama_3_8b(), params).compute_bytes
        };
        assert_eq!(compute(true) - compute(false), 512 * 7 * 8192 * 2);
    }

    #[test]
    fn layers_without_a_cache_count_nothing() {
        let hybrid = GgufHeader { block_count: 4, head_count_kv: vec![0, 8, 0, 8], ..llama_3_8b() };
        let plain = GgufHeader { block_count: 2, ..llama_3_8b() };
        assert_eq!(
            estimate_memory(&hybrid, PARAMS).kv_bytes,
            estimate_memory(&plain, PARAMS).kv_bytes
        );
    }

    proptest! {
        #[test]
        fn no_numbers_overflow(widths in any::<[u32; 6]>(), vocabulary_size in any::<u64>(), params in any::<[u32; 4]>()) {
            let [block_count, embedding_length, feed_forward_length, heads, key_length, value_length] = widths;
            let header = GgufHeader {
                block_count, embedding_length, feed_forward_length, head_count_kv: vec![heads], key_length,
                value_length, vocabulary_size, weights_bytes: u64::MAX, ..llama_3_8b()
            };
            let [context_per_slot, slots, step_tokens, step_outputs] = params;
            let params = MemoryParams { context_per_slot, slots, step_tokens, step_outputs, ..PARAMS };
            prop_assert_eq!(estimate_memory(&header, params).total_bytes, u64::MAX);
        }
    }
}
