//! A running model: takes batches, gives logits and embeddings. One context is
//! used by one thread at a time and may move between threads. Chooses no token
//! and keeps no history; `memory` edits what it remembers.
#![expect(unsafe_code, reason = "owns a llama_context")]

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use llama_cpp_sys_2 as sys;

use crate::batch::{Batch, BatchLimits, InvalidBatch};
use crate::context_params::{ContextParams, ParamsError, Pooling};
use crate::ffi::{self, ShimString};
use crate::log;
use crate::model::Model;

/// Why a context was not made.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// A parameter is wrong.
    #[error("the context parameters are not valid")]
    Params(#[from] ParamsError),
    /// The model first encodes and then decodes, which is not supported.
    #[error("models with an encoder and a decoder are not supported")]
    EncoderDecoder,
    /// llama.cpp refused; most often there is not enough memory.
    #[error("llama.cpp cannot make the context: {reason}")]
    Refused {
        /// What llama.cpp said.
        reason: String,
    },
}

/// Why a batch was not decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The memory has no room for the batch. The context is as it was.
    #[error("the KV cache has no room for the batch")]
    NoRoom,
    /// The abort handle was used. Parts of the batch may be remembered: ask
    /// `seq_pos_max` of each sequence in it.
    #[error("the decode was aborted")]
    Aborted,
    /// The batch is wrong. The context is as it was.
    #[error("the batch is not valid")]
    Invalid(#[from] InvalidBatch),
    /// The computation failed. What the context remembers is unknown: clear it
    /// or drop it.
    #[error("the computation failed with code {code}: {reason}")]
    Fatal {
        /// What llama.cpp returned.
        code: i32,
        /// What it said.
        reason: String,
    },
}

/// A row or a sequence of the last batch without an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the last batch left no output at {index}")]
pub struct NoOutput {
    /// The row or the sequence asked for.
    pub index: usize,
}

/// A running model with the tokens it remembers.
#[derive(Debug)]
pub struct Context {
    raw: NonNull<sys::llama_context>,
    /// Null for a model that remembers nothing, such as BERT.
    memory: sys::llama_memory_t,
    model: Arc<Model>,
    abort: Arc<AtomicBool>,
    limits: BatchLimits,
    sequences_apart: bool,
    is_causal: bool,
    embeddings: bool,
    /// 1 for each row of the last batch that has an output.
    rows: Vec<i8>,
}

// SAFETY: llama.cpp does not tie a context to a thread. It is not Sync: reading
// logits may reorder them.
unsafe impl Send for Context {}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: `raw` was returned by llama.cpp and is freed once, before the
        // model and the abort flag that it refers to.
        unsafe { sys::llama_free(self.raw.as_ptr()) }
    }
}

impl Context {
    /// Makes a context that remembers nothing yet. Reserves all memory it will need.
    ///
    /// # Errors
    /// A parameter is out of range, the model is not supported, or memory is short.
    pub fn new(model: Arc<Model>, params: &ContextParams) -> Result<Self, ContextError> {
        params.check()?;
        if model.has_encoder() && model.has_decoder() {
            return Err(ContextError::EncoderDecoder);
        }
        let abort = Arc::new(AtomicBool::new(false));
        let mut raw_params = params.raw();
        raw_params.abort_callback = Some(should_abort);
        raw_params.abort_callback_data = Arc::as_ptr(&abort).cast_mut().cast();
        let (raw, reason) = {
            let _creating = model.context_creation().lock().unwrap_or_else(PoisonError::into_inner);
            log::with_first_error(|| {
                // SAFETY: the model is valid and locked against other creations;
                // the context will own the flag that the parameters point to.
                unsafe { sys::llama_init_from_model(model.raw().as_ptr(), raw_params) }
            })
        };
        let raw = NonNull::new(raw).ok_or_else(|| ContextError::Refused {
            reason: reason.unwrap_or_else(|| "no reason given".to_owned()),
        })?;
        // SAFETY: the context is valid; the functions only read it.
        let (memory, n_batch, n_ubatch, causal) = unsafe {
            (
                sys::llama_get_memory(raw.as_ptr()),
                sys::llama_n_batch(raw.as_ptr()),
                sys::llama_n_ubatch(raw.as_ptr()),
                sys::llama_get_causal_attn(raw.as_ptr()),
            )
        };
        // Attention that also looks ahead cannot be computed in parts.
        let whole = memory.is_null() || !causal;
        let limits = BatchLimits {
            n_tokens: if whole { n_batch.min(n_ubatch) } else { n_batch } as usize,
            n_outputs: raw_params.n_outputs_max as usize,
            n_sequences: params.n_seq_max,
            n_vocab: model.vocab().len(),
            all_outputs: params.embeddings || memory.is_null(),
        };
        Ok(Self {
            raw,
            memory,
            model,
            abort,
            limits,
            sequences_apart: params.n_seq_max > 1 && !params.kv_unified,
            is_causal: !memory.is_null() && causal,
            embeddings: params.embeddings,
            rows: Vec::new(),
        })
    }

    /// The model that runs here.
    #[must_use]
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Tokens remembered in all.
    #[must_use]
    pub fn n_ctx(&self) -> u32 {
        // SAFETY: `raw` is valid for the life of self; the function only reads it.
        unsafe { sys::llama_n_ctx(self.raw.as_ptr()) }
    }

    /// Tokens that one sequence can have.
    #[must_use]
    pub fn n_ctx_seq(&self) -> u32 {
        // SAFETY: as in `n_ctx`.
        unsafe { sys::llama_n_ctx_seq(self.raw.as_ptr()) }
    }

    /// Most tokens in a batch.
    #[must_use]
    pub fn n_batch(&self) -> usize {
        self.limits.n_tokens
    }

    /// The number of sequences; their ids are 0 up to this.
    #[must_use]
    pub fn n_seq_max(&self) -> u32 {
        self.limits.n_sequences
    }

    /// Whether a token looks only at those before it, so that a sequence can be
    /// computed in parts.
    #[must_use]
    pub fn is_causal(&self) -> bool {
        self.is_causal
    }

    /// How embeddings are pooled.
    #[must_use]
    pub fn pooling(&self) -> Pooling {
        Pooling::from_number(self.raw_pooling()).unwrap_or(Pooling::None)
    }

    /// Whether the next decodes give embeddings. With them every row is an
    /// output, so a batch may then have no more tokens than there is room for
    /// outputs; without them a part of a sequence costs no output at all.
    pub fn set_embeddings(&mut self, embeddings: bool) {
        self.embeddings = embeddings;
        self.limits.all_outputs = embeddings || self.memory.is_null();
        // SAFETY: the context is valid and nobody computes with it.
        unsafe { sys::llama_set_embeddings(self.raw.as_ptr(), embeddings) }
    }

    /// Makes a handle by which another thread can stop a decode.
    #[must_use]
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle(Arc::clone(&self.abort))
    }

    /// Computes a batch and remembers its tokens. Blocks until the result is
    /// there or, on a GPU, until it is under way. The logits of the batch before
    /// are gone, whatever happens.
    ///
    /// # Errors
    /// See [`DecodeError`], which says for each case what is remembered after it.
    pub fn decode(&mut self, batch: &Batch) -> Result<(), DecodeError> {
        self.rows.clear();
        batch.check(&self.limits)?;
        if self.abort.load(Ordering::Relaxed) {
            return Err(DecodeError::Aborted);
        }
        let n_tokens = i32::try_from(batch.len()).unwrap_or(i32::MAX);
        let mut error = ShimString::null();
        let decode = || {
            // SAFETY: the context is valid; all four arrays hold `n_tokens`
            // entries (`check` has kept that below n_batch, a u32 that fits);
            // tokens, positions and sequences are u32 that `check` has found to
            // be valid as i32.
            unsafe {
                ffi::rbee_decode(
                    self.raw.as_ptr(),
                    n_tokens,
                    batch.tokens().as_ptr().cast(),
                    batch.positions().as_ptr().cast(),
                    batch.sequences().as_ptr().cast(),
                    batch.outputs().as_ptr(),
                    error.as_out(),
                )
            }
        };
        let (code, reason) = log::with_abort(&self.abort, || log::with_first_error(decode));
        match code {
            0 => {
                self.rows.extend_from_slice(batch.outputs());
                if self.limits.all_outputs {
                    self.rows.fill(1);
                }
                Ok(())
            }
            1 => Err(DecodeError::NoRoom),
            2 => Err(DecodeError::Aborted),
            -1 => Err(InvalidBatch::NotConsecutive.into()),
            code => Err(DecodeError::Fatal {
                code,
                reason: error.to_text().or(reason).unwrap_or_else(|| "no reason given".to_owned()),
            }),
        }
    }

    /// The logits after the token in `row` of the last batch, one for each token
    /// of the vocabulary.
    ///
    /// # Errors
    /// The last decode failed, or the row did not ask for logits.
    pub fn logits(&self, row: usize) -> Result<&[f32], NoOutput> {
        let index = self.output_row(row)?;
        // SAFETY: the context is valid and the row has an output.
        let logits = unsafe { sys::llama_get_logits_ith(self.raw.as_ptr(), index) };
        // SAFETY: a row of logits is as long as the vocabulary.
        unsafe { self.borrow_floats(logits, self.limits.n_vocab) }.ok_or(NoOutput { index: row })
    }

    /// The embedding of the token in `row` of the last batch, of the model's
    /// `n_embd` numbers, when the model does not pool.
    ///
    /// # Errors
    /// The last decode failed, or the context gives no embeddings of tokens.
    pub fn embedding(&self, row: usize) -> Result<&[f32], NoOutput> {
        let index = self.output_row(row)?;
        let none = NoOutput { index: row };
        if !self.embeddings || self.pooling() != Pooling::None {
            return Err(none);
        }
        // SAFETY: the context is valid, gives embeddings, and the row has one.
        let embedding = unsafe { sys::llama_get_embeddings_ith(self.raw.as_ptr(), index) };
        // SAFETY: the embedding of a token is as long as the model says.
        unsafe { self.borrow_floats(embedding, self.model.n_embd() as usize) }.ok_or(none)
    }

    /// The pooled embedding of a sequence in the last batch, of the model's
    /// `n_embd` numbers; of a reranking model, its scores.
    ///
    /// # Errors
    /// The last decode failed or did not hold the sequence, or the model does not pool.
    pub fn embedding_of_sequence(&self, sequence: u32) -> Result<&[f32], NoOutput> {
        let none = NoOutput { index: sequence as usize };
        let id = i32::try_from(sequence).map_err(|_| none)?;
        if self.rows.is_empty() || !self.embeddings {
            return Err(none);
        }
        // SAFETY: the context is valid; an unknown sequence gives null.
        let embedding = unsafe { sys::llama_get_embeddings_seq(self.raw.as_ptr(), id) };
        let len = if self.pooling() == Pooling::Rank {
            // SAFETY: the model is valid, and a reranking one.
            unsafe { sys::llama_model_n_cls_out(self.model.raw().as_ptr()) }
        } else {
            self.model.n_embd()
        };
        // SAFETY: llama.cpp stores that many numbers for each sequence.
        unsafe { self.borrow_floats(embedding, len as usize) }.ok_or(none)
    }

    pub(crate) fn raw(&self) -> NonNull<sys::llama_context> {
        self.raw
    }

    pub(crate) fn memory(&self) -> sys::llama_memory_t {
        self.memory
    }

    /// Whether each sequence has memory of its own, so that two cannot share tokens.
    pub(crate) fn sequences_apart(&self) -> bool {
        self.sequences_apart
    }

    fn raw_pooling(&self) -> sys::llama_pooling_type {
        // SAFETY: as in `n_ctx`.
        unsafe { sys::llama_pooling_type(self.raw.as_ptr()) }
    }

    /// The row as llama.cpp wants it, if it has an output.
    fn output_row(&self, row: usize) -> Result<i32, NoOutput> {
        let none = NoOutput { index: row };
        match self.rows.get(row) {
            Some(1) => i32::try_from(row).map_err(|_| none),
            _ => Err(none),
        }
    }

    /// Borrows an output buffer of llama.cpp's; `None` for null.
    ///
    /// # Safety
    /// `floats` is null, or points to `len` numbers that stay as they are until
    /// the next decode.
    unsafe fn borrow_floats(&self, floats: *const f32, len: usize) -> Option<&[f32]> {
        // SAFETY: as the caller promises; a decode needs `&mut self`, which the
        // borrow returned here excludes.
        (!floats.is_null()).then(|| unsafe { std::slice::from_raw_parts(floats, len) })
    }
}

/// Stops the decodes of a context from another thread. Works on CPU devices;
/// a GPU finishes what it was given.
#[derive(Clone, Debug)]
pub struct AbortHandle(Arc<AtomicBool>);

impl AbortHandle {
    /// Ends the running decode within a fraction of a step, and every later one
    /// at once, until `allow` is called.
    pub fn abort(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Lets the context decode again.
    pub fn allow(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether decodes are being refused.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

unsafe extern "C" fn should_abort(flag: *mut c_void) -> bool {
    // SAFETY: the flag belongs to the context that llama.cpp is computing for.
    unsafe { &*flag.cast::<AtomicBool>() }.load(Ordering::Relaxed)
}
