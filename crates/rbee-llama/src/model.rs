//! Loads a model file and answers what stands in it. Holds the weights; runs
//! nothing.
#![expect(unsafe_code, reason = "owns a llama_model")]

use std::any::Any;
use std::ffi::{CString, c_void};
use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use llama_cpp_sys_2 as sys;

use crate::model_params::ModelParams;
use crate::vocab::Vocab;
use crate::{backend, ffi, log};

/// Why a model was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no such file.
    #[error("there is no model file {}", path.display())]
    NotFound {
        /// The file asked for.
        path: PathBuf,
    },
    /// The file exists and cannot be read.
    #[error("the model file {} cannot be read", path.display())]
    Unreadable {
        /// The file asked for.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is no model, is damaged, is of a kind llama.cpp does not know,
    /// or does not fit into memory.
    #[error("llama.cpp cannot load {}: {reason}", path.display())]
    Invalid {
        /// The file asked for.
        path: PathBuf,
        /// What llama.cpp said; may name the path.
        reason: String,
    },
    /// A GPU was asked for that is not there.
    #[error("there is no GPU {name:?} here; there are: {}", list(gpus))]
    NoSuchDevice {
        /// The name asked for.
        name: String,
        /// The names of those that are there.
        gpus: Vec<String>,
    },
    /// The progress callback asked to stop.
    #[error("the load was aborted")]
    Aborted,
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Whether the weights come with the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weights {
    Loaded,
    /// Only their sizes and places are known.
    Measured,
}

/// A loaded model. Does not change after loading, so any number of threads and
/// contexts can use it at once.
#[derive(Debug)]
pub struct Model {
    raw: NonNull<sys::llama_model>,
    vocab: Vocab,
    n_ctx_train: u32,
    /// Held while a context is made: llama.cpp writes to the model then.
    context_creation: Mutex<()>,
}

// SAFETY: llama.cpp does not tie a model to a thread.
unsafe impl Send for Model {}
// SAFETY: after loading, the only writer is the creation of a context, which
// takes `context_creation`; what it writes, the trained context length, is read
// from the copy in `n_ctx_train`.
unsafe impl Sync for Model {}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: `raw` was returned by the load and is freed once; every
        // context holds an Arc of self, so none is left.
        unsafe { sys::llama_model_free(self.raw.as_ptr()) }
    }
}

impl Model {
    /// Loads a model from a GGUF file, or from the first file of a split one.
    /// Blocks until that is done, which can take minutes.
    ///
    /// `progress` is told the share done, from 0 to 1, and stops the load by
    /// returning `Break`.
    ///
    /// # Errors
    /// The file is missing, unreadable or no usable model, or `progress` said stop.
    pub fn load(
        path: &Path,
        params: &ModelParams,
        progress: impl FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Arc<Self>, LoadError> {
        Self::load_with(path, params, Weights::Loaded, progress).map(Arc::new)
    }

    pub(crate) fn load_with(
        path: &Path,
        params: &ModelParams,
        weights: Weights,
        progress: impl FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Self, LoadError> {
        check_readable(path)?;
        backend::ensure_started();
        let c_path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|error| {
            LoadError::Unreadable { path: path.to_owned(), source: error.into() }
        })?;

        let mut progress = Progress::new(progress);
        let mut raw_params = params.raw();
        let mut devices = params.raw_devices()?;
        if let Some(devices) = &mut devices {
            raw_params.devices = devices.as_mut_ptr();
        }
        if weights == Weights::Measured {
            raw_params.no_alloc = true;
            // What is mapped cannot be left out.
            raw_params.load_mode = sys::LLAMA_LOAD_MODE_NONE;
        }
        raw_params.progress_callback = Some(progress.callback());
        raw_params.progress_callback_user_data = (&raw mut progress).cast();

        let (raw, reason) = log::with_first_error(|| {
            // SAFETY: the path is NUL-terminated, the list of devices ends with a
            // null; path, list and progress outlive the call, after which
            // llama.cpp no longer uses them.
            unsafe { sys::llama_model_load_from_file(c_path.as_ptr(), raw_params) }
        });
        let stop = progress.stop;
        let invalid = |reason: String| LoadError::Invalid { path: path.to_owned(), reason };
        match (NonNull::new(raw), stop) {
            (Some(raw), None) => {
                Self::from_raw(raw).ok_or_else(|| invalid("the model has no vocabulary".to_owned()))
            }
            (raw, stop) => {
                if let Some(raw) = raw {
                    // SAFETY: just loaded, and used by nobody.
                    unsafe { sys::llama_model_free(raw.as_ptr()) }
                }
                match stop {
                    Some(Stop::Asked) => Err(LoadError::Aborted),
                    Some(Stop::Panicked(panic)) => resume_unwind(panic),
                    None => Err(invalid(reason.unwrap_or_else(|| "no reason given".to_owned()))),
                }
            }
        }
    }

    /// Takes over a model just loaded; frees it when it has no vocabulary.
    fn from_raw(raw: NonNull<sys::llama_model>) -> Option<Self> {
        // SAFETY: the model is valid; the vocabulary goes into the same struct,
        // which frees the model when it is dropped and not before.
        let Some(vocab) = (unsafe { Vocab::of(raw) }) else {
            // SAFETY: just loaded, and used by nobody.
            unsafe { sys::llama_model_free(raw.as_ptr()) }
            return None;
        };
        Some(Self {
            raw,
            vocab,
            // SAFETY: the model is valid and not shared yet.
            n_ctx_train: count(unsafe { sys::llama_model_n_ctx_train(raw.as_ptr()) }),
            context_creation: Mutex::new(()),
        })
    }

    pub(crate) fn raw(&self) -> NonNull<sys::llama_model> {
        self.raw
    }

    pub(crate) fn context_creation(&self) -> &Mutex<()> {
        &self.context_creation
    }

    /// The model's tokens.
    #[must_use]
    pub fn vocab(&self) -> &Vocab {
        &self.vocab
    }

    /// The context length the model was trained with, in tokens.
    #[must_use]
    pub fn n_ctx_train(&self) -> u32 {
        self.n_ctx_train
    }

    /// The width of an embedding that comes out of the model.
    #[must_use]
    pub fn n_embd(&self) -> u32 {
        // SAFETY: `raw` is valid for the life of self; the function only reads it.
        count(unsafe { sys::llama_model_n_embd_out(self.raw.as_ptr()) })
    }

    /// The number of layers.
    #[must_use]
    pub fn n_layer(&self) -> u32 {
        // SAFETY: as in `n_embd`.
        count(unsafe { sys::llama_model_n_layer(self.raw.as_ptr()) })
    }

    /// The reach of sliding-window attention in tokens; 0 without any.
    #[must_use]
    pub fn n_swa(&self) -> u32 {
        // SAFETY: as in `n_embd`.
        count(unsafe { sys::llama_model_n_swa(self.raw.as_ptr()) })
    }

    /// The size of all weights in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        // SAFETY: as in `n_embd`.
        unsafe { sys::llama_model_size(self.raw.as_ptr()) }
    }

    /// The number of weights.
    #[must_use]
    pub fn n_params(&self) -> u64 {
        // SAFETY: as in `n_embd`.
        unsafe { sys::llama_model_n_params(self.raw.as_ptr()) }
    }

    /// Whether text goes through an encoder.
    #[must_use]
    pub fn has_encoder(&self) -> bool {
        // SAFETY: as in `n_embd`.
        unsafe { sys::llama_model_has_encoder(self.raw.as_ptr()) }
    }

    /// Whether the model generates text.
    #[must_use]
    pub fn has_decoder(&self) -> bool {
        // SAFETY: as in `n_embd`.
        unsafe { sys::llama_model_has_decoder(self.raw.as_ptr()) }
    }

    /// Whether the model keeps a state of fixed size instead of every token
    /// (Mamba, RWKV), in all layers or in some. Such a sequence cannot be cut
    /// back to an earlier position.
    #[must_use]
    pub fn has_recurrent_state(&self) -> bool {
        // SAFETY: as in `n_embd`.
        unsafe {
            sys::llama_model_is_recurrent(self.raw.as_ptr())
                || sys::llama_model_is_hybrid(self.raw.as_ptr())
        }
    }

    /// Describes the model in a few words, such as `llama 256M Q4_1`.
    #[must_use]
    pub fn description(&self) -> String {
        read_text(|buffer, len| {
            // SAFETY: `raw` is valid, and `len` is the length of the buffer.
            unsafe { sys::llama_model_desc(self.raw.as_ptr(), buffer, len) }
        })
        .unwrap_or_default()
    }

    /// The value of a metadata key as text. `None` for a key that the file does
    /// not have, and for arrays.
    #[must_use]
    pub fn meta(&self, key: &str) -> Option<String> {
        let key = CString::new(key).ok()?;
        read_text(|buffer, len| {
            // SAFETY: `raw` is valid, the key NUL-terminated, and `len` is the
            // length of the buffer.
            unsafe { sys::llama_model_meta_val_str(self.raw.as_ptr(), key.as_ptr(), buffer, len) }
        })
    }

    /// The text of a template in the file that is no chat template, such as
    /// `rerank`. `None` for a name that the file does not have.
    #[must_use]
    pub fn template(&self, name: &str) -> Option<String> {
        let name = CString::new(name).ok()?;
        // SAFETY: `raw` is valid and the name NUL-terminated; the string
        // returned lies in the model.
        unsafe { ffi::copy_text(sys::llama_model_chat_template(self.raw.as_ptr(), name.as_ptr())) }
    }

    /// The Jinja source of the chat template in the file, if it has one.
    #[must_use]
    pub fn chat_template(&self) -> Option<String> {
        // SAFETY: `raw` is valid; a null name asks for the default template; the
        // string returned lies in the model.
        unsafe {
            ffi::copy_text(sys::llama_model_chat_template(self.raw.as_ptr(), std::ptr::null()))
        }
    }
}

/// Tells a missing file from one that cannot be read: llama.cpp says neither.
fn check_readable(path: &Path) -> Result<(), LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: path.to_owned(), source };
    match std::fs::File::open(path).and_then(|file| file.metadata()) {
        Ok(metadata) if metadata.is_dir() => {
            Err(unreadable(io::Error::from(io::ErrorKind::IsADirectory)))
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(LoadError::NotFound { path: path.to_owned() })
        }
        Err(error) => Err(unreadable(error)),
    }
}

/// A count that llama.cpp holds in an i32 and that is never negative.
fn count(value: i32) -> u32 {
    u32::try_from(value).unwrap_or_default()
}

/// Reads a text from a function that behaves as `snprintf` does: it fills the
/// buffer and returns the length it wanted, or a negative number for no text.
fn read_text(mut fill: impl FnMut(*mut std::ffi::c_char, usize) -> i32) -> Option<String> {
    let mut buffer = vec![0_u8; 128];
    loop {
        let wanted = usize::try_from(fill(buffer.as_mut_ptr().cast(), buffer.len())).ok()?;
        if wanted < buffer.len() {
            buffer.truncate(wanted);
            return Some(String::from_utf8_lossy(&buffer).into_owned());
        }
        // One more for the terminating NUL.
        buffer.resize(wanted + 1, 0);
    }
}

/// The caller's progress function on its way through C.
struct Progress<F> {
    call: F,
    stop: Option<Stop>,
}

/// Why a progress function ended the load.
enum Stop {
    Asked,
    /// It panicked; a panic cannot cross C++, so it waits here.
    Panicked(Box<dyn Any + Send>),
}

impl<F: FnMut(f32) -> ControlFlow<()>> Progress<F> {
    fn new(call: F) -> Self {
        Self { call, stop: None }
    }

    fn callback(&self) -> unsafe extern "C" fn(f32, *mut c_void) -> bool {
        Self::report
    }

    unsafe extern "C" fn report(share: f32, data: *mut c_void) -> bool {
        // SAFETY: `data` is the Progress that the load was given; it is valid
        // for the load, which calls this from its own thread only.
        let progress = unsafe { &mut *data.cast::<Self>() };
        if progress.stop.is_none() {
            progress.stop = match catch_unwind(AssertUnwindSafe(|| (progress.call)(share))) {
                Ok(ControlFlow::Continue(())) => None,
                Ok(ControlFlow::Break(())) => Some(Stop::Asked),
                Err(panic) => Some(Stop::Panicked(panic)),
            };
        }
        progress.stop.is_none()
    }
}
