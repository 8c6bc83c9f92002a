//! How a context is to be made: the parameters, their limits, and their form
//! in llama.cpp. Makes nothing.
#![expect(unsafe_code, reason = "asks llama.cpp for its defaults")]

use llama_cpp_sys_2 as sys;

use crate::kv_type::KvType;

/// How to run a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextParams {
    /// Tokens remembered in all, over all sequences; 0 is what the model was
    /// trained with, [`N_CTX_MAX`] the most. llama.cpp rounds it up.
    pub n_ctx: u32,
    /// Most tokens in a batch; a smaller `n_ctx` lowers it.
    pub n_batch: u32,
    /// Tokens computed at once; a larger batch is cut up. At least `n_seq_max`,
    /// and for embeddings a multiple of it.
    pub n_ubatch: u32,
    /// Sequences kept apart; their ids are 0 up to this. At most 256.
    pub n_seq_max: u32,
    /// Most rows of logits in a batch. Reserves memory for that many rows of the
    /// vocabulary's length, and never for fewer than `n_seq_max`.
    pub n_outputs_max: u32,
    /// Threads for a batch of one token.
    pub n_threads: u32,
    /// Threads for a larger batch.
    pub n_threads_batch: u32,
    /// Whether all sequences share `n_ctx` tokens and can share the tokens
    /// themselves; otherwise each has an equal part of its own.
    pub kv_unified: bool,
    /// Whether attention is computed the memory-saving way.
    pub flash_attention: FlashAttention,
    /// How keys are stored.
    pub type_k: KvType,
    /// How values are stored.
    pub type_v: KvType,
    /// Whether to remember tokens that sliding-window attention no longer
    /// reaches. Without them a sequence can be cut back only within the window.
    pub swa_full: bool,
    /// Whether to give embeddings, of every token or pooled.
    pub embeddings: bool,
    /// How embeddings of tokens become one of their sequence; `None` is as the
    /// model says.
    pub pooling: Option<Pooling>,
}

/// How the embeddings of tokens become one of their sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// They do not.
    None,
    /// By their mean.
    Mean,
    /// By that of the first token.
    First,
    /// By that of the last token.
    Last,
    /// By scores that a classifier gives.
    Rank,
}

impl Pooling {
    pub(crate) fn raw(self) -> sys::llama_pooling_type {
        match self {
            Self::None => sys::LLAMA_POOLING_TYPE_NONE,
            Self::Mean => sys::LLAMA_POOLING_TYPE_MEAN,
            Self::First => sys::LLAMA_POOLING_TYPE_CLS,
            Self::Last => sys::LLAMA_POOLING_TYPE_LAST,
            Self::Rank => sys::LLAMA_POOLING_TYPE_RANK,
        }
    }

    /// The type that a context or a model file names by a number. `None` for
    /// a number without a meaning.
    #[must_use]
    pub fn from_number(number: i32) -> Option<Self> {
        [Self::None, Self::Mean, Self::First, Self::Last, Self::Rank]
            .into_iter()
            .find(|pooling| pooling.raw() == number)
    }
}

/// Most tokens in a context: more than any machine of today remembers, and far
/// below where llama.cpp's 32-bit arithmetic ends.
pub const N_CTX_MAX: u32 = 1 << 24;

/// Most threads ggml has room for.
const N_THREADS_MAX: u32 = 512;

impl Default for ContextParams {
    fn default() -> Self {
        let cores = std::thread::available_parallelism()
            .ok()
            .and_then(|cores| u32::try_from(cores.get()).ok())
            .unwrap_or(1)
            .min(N_THREADS_MAX);
        Self {
            n_ctx: 0,
            n_batch: 2048,
            n_ubatch: 512,
            n_seq_max: 1,
            n_outputs_max: 1,
            n_threads: cores,
            n_threads_batch: cores,
            kv_unified: false,
            flash_attention: FlashAttention::Auto,
            type_k: KvType::F16,
            type_v: KvType::F16,
            swa_full: false,
            embeddings: false,
            pooling: None,
        }
    }
}

/// Tokens of one sequence from which on flash attention computes them in tiles on a processor.
pub const TILE_TOKENS: u32 = 64;

/// Whether flash attention of this processor is fast for tokens too few for a tile, with keys
/// and values that are stored like this: where `cmake/attend_rows.h` has its own way for them.
#[must_use]
pub fn attends_rows(type_k: KvType, type_v: KvType) -> bool {
    #[cfg(target_arch = "x86_64")]
    let has_instructions = std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("fma")
        && std::arch::is_x86_feature_detected!("f16c");
    #[cfg(not(target_arch = "x86_64"))]
    let has_instructions = cfg!(target_arch = "aarch64");
    has_instructions && !cfg!(target_env = "msvc") && (type_k, type_v) == (KvType::F16, KvType::F16)
}

/// Whether attention is computed the memory-saving way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlashAttention {
    /// Where the device can.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// What is wrong with context parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamsError {
    /// A number is out of range.
    #[error("{name} is {value} and must be {must_be}")]
    OutOfRange {
        /// Which one.
        name: &'static str,
        /// What it was.
        value: u32,
        /// What it must be.
        must_be: &'static str,
    },
    /// Quantised values were asked for without flash attention.
    #[error("a quantised V cache needs flash attention")]
    QuantizedWithoutFlashAttention,
}

impl ContextParams {
    /// Refuses what llama.cpp would abort over.
    pub(crate) fn check(&self) -> Result<(), ParamsError> {
        let in_range = |name, value: u32, min: u32, max: u32, must_be| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(ParamsError::OutOfRange { name, value, must_be })
            }
        };
        // SAFETY: a function without arguments that returns a constant.
        let n_seq_max = unsafe { sys::llama_max_parallel_sequences() };
        let n_seq_max = u32::try_from(n_seq_max).unwrap_or(u32::MAX);
        in_range("n_ctx", self.n_ctx, 0, N_CTX_MAX, "at most 16777216")?;
        in_range("n_seq_max", self.n_seq_max, 1, n_seq_max, "1 to 256")?;
        // Every sequence can have a token in each batch, computed together.
        let n_seq = self.n_seq_max;
        let room = "at least n_seq_max, and at most 16777216";
        in_range("n_batch", self.n_batch, n_seq, N_CTX_MAX, room)?;
        in_range("n_ubatch", self.n_ubatch, n_seq, N_CTX_MAX, room)?;
        if self.n_ctx > 0 {
            in_range("n_ctx", self.n_ctx, n_seq, N_CTX_MAX, room)?;
        }
        if self.embeddings && n_seq > 1 {
            // llama.cpp reserves for whole rounds of all sequences, and its
            // pooling aborts when that is more than it has room to output.
            let piece = self.n_batch.min(self.n_ubatch);
            if !piece.is_multiple_of(n_seq) {
                let must_be = "a multiple of n_seq_max, for embeddings";
                return Err(ParamsError::OutOfRange { name: "n_ubatch", value: piece, must_be });
            }
            let must_be = "at least n_ubatch, for embeddings";
            in_range("n_ctx", self.n_ctx, piece, N_CTX_MAX, must_be)?;
        }
        in_range("n_outputs_max", self.n_outputs_max, 0, N_CTX_MAX, "at most 16777216")?;
        for (name, threads) in
            [("n_threads", self.n_threads), ("n_threads_batch", self.n_threads_batch)]
        {
            in_range(name, threads, 1, N_THREADS_MAX, "1 to 512")?;
        }
        if self.type_v.is_quantized() && self.flash_attention == FlashAttention::Off {
            return Err(ParamsError::QuantizedWithoutFlashAttention);
        }
        Ok(())
    }

    /// The parameters as llama.cpp takes them.
    pub(crate) fn raw(&self) -> sys::llama_context_params {
        // SAFETY: a function without arguments.
        let mut raw = unsafe { sys::llama_context_default_params() };
        raw.n_ctx = self.n_ctx;
        raw.n_batch = self.n_batch;
        raw.n_ubatch = self.n_ubatch;
        raw.n_seq_max = self.n_seq_max;
        raw.n_outputs_max =
            if self.embeddings { self.n_batch } else { self.n_outputs_max.max(self.n_seq_max) };
        raw.n_outputs_max_per_seq = 0;
        raw.n_threads = self.n_threads.cast_signed();
        raw.n_threads_batch = self.n_threads_batch.cast_signed();
        raw.flash_attn_type = match self.flash_attention {
            FlashAttention::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
            FlashAttention::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
            FlashAttention::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        };
        raw.type_k = self.type_k.raw();
        raw.type_v = self.type_v.raw();
        raw.kv_unified = self.kv_unified;
        raw.swa_full = self.swa_full;
        raw.embeddings = self.embeddings;
        if let Some(pooling) = self.pooling {
            raw.pooling_type = pooling.raw();
        }
        raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_llama_cpp_would_abort_over_are_refused() {
        type Change = fn(&mut ContextParams);
        let cases: [(&str, Change); 11] = [
            ("n_ctx", |params| params.n_ctx = N_CTX_MAX + 1),
            ("n_ctx", |params| {
                params.n_ctx = 3;
                params.n_seq_max = 4;
            }),
            ("n_seq_max", |params| params.n_seq_max = 0),
            ("n_seq_max", |params| params.n_seq_max = 257),
            ("n_batch", |params| params.n_batch = 0),
            ("n_ubatch", |params| {
                params.n_ubatch = 7;
                params.n_seq_max = 8;
            }),
            ("n_ubatch", |params| {
                params.embeddings = true;
                params.n_ctx = 1024;
                params.n_ubatch = 500;
                params.n_seq_max = 8;
            }),
            ("n_ctx", |params| {
                params.embeddings = true;
                params.n_ctx = 256;
                params.n_seq_max = 8;
            }),
            ("n_outputs_max", |params| params.n_outputs_max = u32::MAX),
            ("n_threads", |params| params.n_threads = 0),
            ("n_threads_batch", |params| params.n_threads_batch = 513),
        ];
        for (expected, change) in cases {
            let mut params = ContextParams::default();
            assert!(params.check().is_ok());
            change(&mut params);
            match params.check() {
                Err(ParamsError::OutOfRange { name, .. }) => assert_eq!(name, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }

    #[test]
    fn quantised_values_need_flash_attention() {
        let mut params = ContextParams { type_k: KvType::Q8_0, ..ContextParams::default() };
        params.flash_attention = FlashAttention::Off;
        assert!(params.check().is_ok());
        params.type_v = KvType::Q8_0;
        let refused = params.check();
        assert!(matches!(refused, Err(ParamsError::QuantizedWithoutFlashAttention)));
    }
}
