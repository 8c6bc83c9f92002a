//! How attention is computed where the settings leave it open, and in what
//! pieces. Decides from sizes alone; asks no device.
//!
//! llama.cpp's flash attention saves memory, and on GPUs time. On a processor
//! it computes a lone row, which is what decoding asks for, number by number,
//! while the plain way hands keys and values to the fast products of matrices:
//! at a depth of 1,000 tokens, decoding is 2 to 2.5 times as fast the plain way.
//! Tiles of a prompt it computes faster than the plain way does, by a half at
//! that depth, and rows that see little. So a processor goes the faster way in
//! each batch.

use rbee_llama::context_params::{FlashAttention, TILE_TOKENS, has_tiles};
use rbee_llama::kv_type::KvType;

use crate::engine::memory::Layout;
use crate::engine::runner::STEP_TOKENS;

/// Tokens computed at once the plain way. The scores of a piece are then in the
/// caches of a processor, which makes it faster than a larger one.
const PIECE_TOKENS: u32 = 256;
/// Scores that are always worth their memory.
const SCORES_BYTES_FREE: u64 = 128 << 20;
/// Larger ones may take this part of what model and memory take.
const SCORES_SHARE: u64 = 8;

/// Tokens of one prompt that are computed much faster together; 1 where no
/// number of them is.
pub(super) fn tile_tokens(flash: FlashAttention, layout: Layout) -> u32 {
    match (flash, layout) {
        (FlashAttention::Auto | FlashAttention::On, Layout::Split) => TILE_TOKENS,
        (FlashAttention::Off | FlashAttention::InTiles { .. }, _) | (_, Layout::Unified) => 1,
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
    /// How keys are stored.
    pub(super) type_k: KvType,
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
        let flash = |flash| Self { flash, piece_tokens: STEP_TOKENS };
        match facts.wish {
            FlashAttention::Off if facts.on_processor => plain,
            FlashAttention::Auto if facts.on_processor => match facts.plain_tokens() {
                0 => flash(FlashAttention::Auto),
                plain_tokens_max if has_tiles(facts.type_k, facts.type_v) => {
                    flash(FlashAttention::InTiles { plain_tokens_max })
                }
                PIECE_TOKENS => plain,
                _ => flash(FlashAttention::Auto),
            },
            wish => flash(wish),
        }
    }
}

impl Facts {
    /// Tokens of a batch whose scores are worth their memory: one number for
    /// every head and token seen. The plain way cannot read quantised values.
    fn plain_tokens(self) -> u32 {
        let Some(heads) = self.heads.filter(|_| !self.type_v.is_quantized()) else { return 0 };
        let allowed = SCORES_BYTES_FREE.max(self.model_bytes / SCORES_SHARE);
        let tokens = allowed.checked_div(scores_bytes(1, heads, self.cells_seen));
        tokens.map_or(0, |tokens| u32::try_from(tokens).unwrap_or(u32::MAX)).min(PIECE_TOKENS)
    }
}

/// What the scores of so many tokens take.
pub(super) fn scores_bytes(tokens: u32, heads: u64, cells_seen: u64) -> u64 {
    let scores = heads.saturating_mul(cells_seen).saturating_mul(u64::from(tokens));
    scores.saturating_mul(size_of::<f32>() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_processor_goes_the_faster_way_where_scores_have_room() {
        let small = Facts {
            wish: FlashAttention::Auto,
            on_processor: true,
            type_k: KvType::F16,
            type_v: KvType::F16,
            cells_seen: 4096,
            heads: Some(9),
            model_bytes: GIB,
        };
        let plain = Attention { flash: FlashAttention::Off, piece_tokens: 256 };
        let as_wished = |flash| Attention { flash, piece_tokens: 512 };
        let in_tiles = |plain_tokens_max| as_wished(FlashAttention::InTiles { plain_tokens_max });
        let auto = as_wished(FlashAttention::Auto);
        let on = FlashAttention::On;
        let eight_billion = Facts { heads: Some(32), model_bytes: 5 * GIB, ..small };
        for (facts, expected) in [
            (small, in_tiles(256)),
            (Facts { on_processor: false, ..small }, auto),
            (Facts { type_v: KvType::Q8_0, ..small }, auto),
            (Facts { type_k: KvType::Q8_0, ..small }, plain),
            (Facts { type_k: KvType::Q8_0, cells_seen: 1 << 20, ..small }, auto),
            (Facts { heads: None, ..small }, auto),
            (Facts { heads: Some(0), ..small }, auto),
            (Facts { wish: on, ..small }, as_wished(on)),
            (Facts { wish: FlashAttention::Off, cells_seen: 1 << 20, ..small }, plain),
            (eight_billion, in_tiles(256)),
            (Facts { cells_seen: 16_384, ..eight_billion }, in_tiles(256)),
            (Facts { cells_seen: 32_768, ..eight_billion }, in_tiles(160)),
            (Facts { heads: Some(u64::MAX), ..small }, auto),
        ] {
            assert_eq!(Attention::choose(facts), expected, "{facts:?}");
        }
    }
}
