//! How attention is computed where the settings leave it open, and in what
//! pieces. Decides from sizes alone; asks no device.
//!
//! llama.cpp uses flash attention wherever it can, which saves memory. On a
//! processor it is the faster way too where rows too few for a tile have a way of
//! their own; else decoding is twice as fast the plain way.

use rbee_llama::context_params::{FlashAttention, TILE_TOKENS};
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
    /// Whether its flash attention is fast for few rows.
    pub(super) attends_rows: bool,
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
        let is_plain = match facts.wish {
            FlashAttention::Off => true,
            FlashAttention::Auto => !facts.attends_rows && facts.scores_have_room(),
            FlashAttention::On => false,
        };
        if facts.on_processor && is_plain {
            Self { flash: FlashAttention::Off, piece_tokens: PIECE_TOKENS }
        } else {
            Self { flash: facts.wish, piece_tokens: STEP_TOKENS }
        }
    }
}

impl Facts {
    /// Whether the scores of a piece are worth their memory: one number for every
    /// token, head and token seen. The plain way cannot read quantised values.
    fn scores_have_room(self) -> bool {
        let Some(heads) = self.heads.filter(|_| !self.type_v.is_quantized()) else { return false };
        let scores = heads.saturating_mul(self.cells_seen).saturating_mul(u64::from(PIECE_TOKENS));
        let bytes = scores.saturating_mul(size_of::<f32>() as u64);
        bytes <= SCORES_BYTES_FREE.max(self.model_bytes / SCORES_SHARE)
    }
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
            attends_rows: false,
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
            (Facts { attends_rows: true, ..small }, auto),
            (Facts { on_processor: false, ..small }, auto),
            (Facts { type_v: KvType::Q8_0, ..small }, auto),
            (Facts { cells_seen: 1 << 20, ..small }, auto),
            (Facts { heads: None, ..small }, auto),
            (Facts { wish: on, ..small }, as_wished(on)),
            (Facts { wish: FlashAttention::Off, cells_seen: 1 << 20, ..small }, plain),
            (Facts { wish: FlashAttention::Off, attends_rows: true, ..small }, plain),
            (eight_billion, plain),
            (Facts { cells_seen: 16_384, ..eight_billion }, plain),
            (Facts { cells_seen: 32_768, ..eight_billion }, auto),
            (Facts { heads: Some(u64::MAX), ..small }, auto),
        ] {
            assert_eq!(Attention::choose(facts), expected, "{facts:?}");
        }
    }
}
