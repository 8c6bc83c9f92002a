//! How attention is computed where the settings leave it open, and in what
//! pieces. Decides from sizes alone; asks no device.
//!
//! llama.cpp's flash attention saves memory, and on GPUs time. On a processor
//! it computes a lone row, which is what decoding asks for, number by number,
//! while the plain way hands keys and values to the fast products of matrices:
//! measured at a depth of 1,000 tokens, decoding is 2 to 2.5 times as fast
//! without it, and a prompt takes 1.3 times as long.

use rbee_llama::context_params::FlashAttention;
use rbee_llama::kv_type::KvType;

use crate::engine::memory::Layout;
use crate::engine::runner::STEP_TOKENS;

/// Tokens computed at once without flash attention. The scores of a piece are
/// then in the caches of a processor, which makes it faster than a larger one.
const PIECE_TOKENS: u32 = 256;
/// Scores that are always worth their memory.
const SCORES_BYTES_FREE: u64 = 128 << 20;
/// Larger ones may take this part of what model and memory take.
const SCORES_SHARE: u64 = 8;

/// Tokens of one prompt from which on flash attention computes them in tiles
/// on a processor: many times faster than one by one.
const TILE_TOKENS: u32 = 64;

/// Tokens of one prompt that are computed much faster together; 1 where no
/// number of them is.
pub(super) fn tile_tokens(flash: FlashAttention, layout: Layout) -> u32 {
    match (flash, layout) {
        (FlashAttention::Auto | FlashAttention::On, Layout::Split) => TILE_TOKENS,
        (FlashAttention::Off, _) | (_, Layout::Unified) => 1,
    }
}

/// How attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attention {
    pub(super) flash: FlashAttention,
    /// Most tokens that are computed at once.
    pub(super) piece_tokens: u32,
}

/// What the decision is made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    /// What the settings say.
    pub(super) wish: FlashAttention,
    /// Whether a processor computes all layers.
    pub(super) on_processor: bool,
    /// How values are stored.
    pub(super) type_v: KvType,
    /// Tokens that one token can see at most.
    pub(super) cells_seen: u64,
    /// Heads of the layer that has most; `None` where the file does not say.
    pub(super) heads: Option<u64>,
    /// Weights, keys and values.
    pub(super) model_bytes: u64,
}

impl Attention {
    pub(super) fn choose(facts: Facts) -> Self {
        let plain = Self { flash: FlashAttention::Off, piece_tokens: PIECE_TOKENS };
        match facts.wish {
            FlashAttention::Auto if facts.on_processor && facts.is_plain_worth_it() => plain,
            FlashAttention::Off if facts.on_processor => plain,
            wish => Self { flash: wish, piece_tokens: STEP_TOKENS },
        }
    }
}

impl Facts {
    /// The plain way cannot read quantised values, and it keeps the scores of
    /// every head, token and token seen.
    fn is_plain_worth_it(self) -> bool {
        let Some(heads) = self.heads else { return false };
        let scores = heads.saturating_mul(self.cells_seen).saturating_mul(u64::from(PIECE_TOKENS));
        let scores_bytes = scores.saturating_mul(size_of::<f32>() as u64);
        let allowed = SCORES_BYTES_FREE.max(self.model_bytes / SCORES_SHARE);
        !self.type_v.is_quantized() && scores_bytes <= allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_processor_goes_the_plain_way_where_its_scores_have_room() {
        let small = Facts {
            wish: FlashAttention::Auto,
            on_processor: true,
            type_v: KvType::F16,
            cells_seen: 4096,
            heads: Some(9),
            model_bytes: GIB,
        };
        let plain = Attention { flash: FlashAttention::Off, piece_tokens: 256 };
        let as_wished = |flash| Attention { flash, piece_tokens: 512 };
        let auto = as_wished(FlashAttention::Auto);
        let on = FlashAttention::On;
        let eight_billion = Facts { heads: Some(32), model_bytes: 5 * GIB, ..small };
        for (facts, expected) in [
            (small, plain),
            (Facts { on_processor: false, ..small }, auto),
            (Facts { type_v: KvType::Q8_0, ..small }, auto),
            (Facts { heads: None, ..small }, auto),
            (Facts { wish: on, ..small }, as_wished(on)),
            (Facts { wish: FlashAttention::Off, cells_seen: 1 << 20, ..small }, plain),
            (eight_billion, plain),
            (Facts { cells_seen: 16_384, ..eight_billion }, plain),
            (Facts { cells_seen: 32_768, ..eight_billion }, auto),
            (Facts { heads: Some(u64::MAX), ..small }, auto),
        ] {
            assert_eq!(Attention::choose(facts), expected, "{facts:?}");
        }
    }
}
