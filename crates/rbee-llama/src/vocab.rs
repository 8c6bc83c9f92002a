//! A model's vocabulary: text to tokens, tokens to the bytes a reader sees, and
//! which tokens end a generation. Assembles no text and checks no UTF-8: a
//! token may hold half a character.
#![expect(unsafe_code, reason = "reads llama.cpp's vocabulary")]

use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use crate::ffi::{self, ShimString};

/// A token of some vocabulary, by its index there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Token(pub u32);

/// Why a text could not be turned into tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokenizeError {
    /// The text is longer than llama.cpp can count.
    #[error("the text of {bytes} bytes is too long to tokenize")]
    TooLong {
        /// Length of the text.
        bytes: usize,
    },
    /// The vocabulary asks for a begin, end or separator token it does not have.
    #[error("the vocabulary lacks a special token that it asks to add")]
    NoSpecialToken,
    /// llama.cpp's tokenizer gave up.
    #[error("the tokenizer failed: {reason}")]
    Failed {
        /// What llama.cpp said.
        reason: String,
    },
}

/// Longest text given to the tokenizer. It counts bytes and tokens in an `i32`
/// and adds some; half of that leaves room.
const TEXT_BYTES_MAX: usize = (i32::MAX / 2) as usize;

/// The tokens of a model. Usable from any number of threads at once.
pub struct Vocab {
    raw: NonNull<sys::llama_vocab>,
    /// The visible bytes of all tokens, end to end.
    pieces: Vec<u8>,
    /// Where each token's bytes end in `pieces`; they begin where the one before ends.
    piece_ends: Vec<u32>,
    kinds: Vec<Kind>,
    /// The token that is one byte and nothing else, for every byte.
    single_bytes: [Option<Token>; 256],
    bos: Option<Token>,
    eos: Option<Token>,
    can_add_special: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Control,
    EndOfGeneration,
}

/// Whether markers are written with their names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Markers {
    Shown,
    Hidden,
}

// SAFETY: llama.cpp does not change a vocabulary after loading it, and documents
// its tokenizer as thread-safe; everything else here is plain data.
unsafe impl Send for Vocab {}
// SAFETY: as above.
unsafe impl Sync for Vocab {}

impl std::fmt::Debug for Vocab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vocab").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl Vocab {
    /// Reads the vocabulary of a loaded model. `None` when the model has none,
    /// or one beyond 4 GiB.
    ///
    /// # Safety
    /// `model` is valid, and outlives the value returned.
    pub(crate) unsafe fn of(model: NonNull<sys::llama_model>) -> Option<Self> {
        // SAFETY: the model is valid, and its vocabulary is a part of it.
        let raw = unsafe { sys::llama_model_get_vocab(model.as_ptr()) };
        let raw = NonNull::new(raw.cast_mut())?;
        // SAFETY: `raw` is a valid vocabulary; the functions below only read it.
        let (vocab_type, n_tokens) = unsafe {
            (sys::llama_vocab_type(raw.as_ptr()), sys::llama_vocab_n_tokens(raw.as_ptr()))
        };
        if vocab_type == sys::LLAMA_VOCAB_TYPE_NONE {
            return None;
        }
        let mut vocab = Self {
            raw,
            pieces: Vec::new(),
            piece_ends: Vec::new(),
            kinds: Vec::new(),
            single_bytes: [None; 256],
            // SAFETY: as above.
            bos: token(unsafe { sys::llama_vocab_bos(raw.as_ptr()) }),
            // SAFETY: as above.
            eos: token(unsafe { sys::llama_vocab_eos(raw.as_ptr()) }),
            can_add_special: false,
        };
        vocab.can_add_special = vocab.has_what_it_adds(vocab_type);
        vocab.read_tokens(n_tokens)?;
        Some(vocab)
    }

    fn has_what_it_adds(&self, vocab_type: sys::llama_vocab_type) -> bool {
        // SAFETY: `raw` is valid for the life of self; the functions only read it.
        let (adds_eos, adds_sep, sep) = unsafe {
            (
                sys::llama_vocab_get_add_eos(self.raw.as_ptr()),
                sys::llama_vocab_get_add_sep(self.raw.as_ptr()),
                token(sys::llama_vocab_sep(self.raw.as_ptr())),
            )
        };
        // WordPiece adds both whatever the file says.
        let word_piece = vocab_type == sys::LLAMA_VOCAB_TYPE_WPM;
        (self.bos.is_some() || !(word_piece || self.add_bos()))
            && (sep.is_some() || !(word_piece || adds_sep))
            && (self.eos.is_some() || !adds_eos)
    }

    fn read_tokens(&mut self, n_tokens: i32) -> Option<()> {
        let mut buffer = vec![0_u8; 256];
        for id in 0..n_tokens {
            // SAFETY: `raw` is valid and the id is one of its tokens.
            let kind = unsafe {
                if sys::llama_vocab_is_eog(self.raw.as_ptr(), id) {
                    Kind::EndOfGeneration
                } else if sys::llama_vocab_is_control(self.raw.as_ptr(), id) {
                    Kind::Control
                } else {
                    Kind::Text
                }
            };
            if kind == Kind::Text {
                let len = self.read_piece(id, Markers::Hidden, &mut buffer);
                self.pieces.extend(buffer.iter().take(len));
                if let [byte] = buffer.get(..len).unwrap_or_default() {
                    let place = self.single_bytes.get_mut(usize::from(*byte));
                    place.into_iter().for_each(|single| *single = token(id));
                }
            }
            self.kinds.push(kind);
            self.piece_ends.push(u32::try_from(self.pieces.len()).ok()?);
        }
        Some(())
    }

    /// Writes the bytes of a token to the beginning of `buffer`, which grows as
    /// needed, and returns how many they are. The token exists.
    fn read_piece(&self, id: sys::llama_token, markers: Markers, buffer: &mut Vec<u8>) -> usize {
        loop {
            // SAFETY: `raw` is valid, the id is one of its tokens, and the
            // length given is that of the buffer.
            let written = unsafe {
                sys::llama_token_to_piece(
                    self.raw.as_ptr(),
                    id,
                    buffer.as_mut_ptr().cast(),
                    i32::try_from(buffer.len()).unwrap_or(i32::MAX),
                    0,
                    markers == Markers::Shown,
                )
            };
            // A negative number is the length that would have fitted.
            if let Ok(written) = usize::try_from(written) {
                return written;
            }
            buffer.resize(written.unsigned_abs() as usize, 0);
        }
    }

    /// The number of tokens, which is also the length of a row of logits.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Whether there is no token at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// Turns a text into tokens.
    ///
    /// With `Special::Parse` the text may name control tokens, such as
    /// `<|im_end|>`; with `Special::AsText` those are ordinary characters, which
    /// is what text from a stranger needs. `add_special` puts the begin and end
    /// tokens around it that the vocabulary asks for, if it asks for any.
    ///
    /// # Errors
    /// The text is beyond 1 GiB, the vocabulary names a special token that it
    /// does not have, or the tokenizer fails.
    pub fn tokenize(
        &self,
        text: &str,
        add_special: AddSpecial,
        special: Special,
    ) -> Result<Vec<Token>, TokenizeError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(TokenizeError::TooLong { bytes: text.len() });
        }
        if add_special == AddSpecial::Yes && !self.can_add_special {
            return Err(TokenizeError::NoSpecialToken);
        }
        // A token is seldom less than a byte of text; two more surround it.
        let mut tokens = vec![Token(0); text.len() + 8];
        loop {
            let count = self.tokenize_into(text, &mut tokens, add_special, special)?;
            if let Ok(count) = usize::try_from(count) {
                tokens.truncate(count);
                return Ok(tokens);
            }
            // A negative number is the length that would have fitted.
            tokens.resize(count.unsigned_abs() as usize, Token(0));
        }
    }

    fn tokenize_into(
        &self,
        text: &str,
        tokens: &mut [Token],
        add_special: AddSpecial,
        special: Special,
    ) -> Result<i32, TokenizeError> {
        let too_long = |_| TokenizeError::TooLong { bytes: text.len() };
        let text_len = i32::try_from(text.len()).map_err(too_long)?;
        let capacity = i32::try_from(tokens.len()).map_err(too_long)?;
        let mut error = ShimString::null();
        // SAFETY: the vocabulary is valid; both lengths are those of the slices;
        // a Token is laid out as a u32, and every i32 is a valid one.
        let count = unsafe {
            ffi::rbee_tokenize(
                self.raw.as_ptr(),
                text.as_ptr().cast(),
                text_len,
                tokens.as_mut_ptr().cast(),
                capacity,
                add_special == AddSpecial::Yes,
                special == Special::Parse,
                error.as_out(),
            )
        };
        match (count, error.to_text()) {
            (_, Some(reason)) => Err(TokenizeError::Failed { reason }),
            (ffi::EXCEPTION, None) => Err(TokenizeError::TooLong { bytes: text.len() }),
            (count, None) => Ok(count),
        }
    }

    /// The bytes a reader sees for a token: nothing for control and
    /// end-of-generation tokens, and nothing for a token that does not exist.
    #[must_use]
    pub fn piece_bytes(&self, token: Token) -> &[u8] {
        let index = token.0 as usize;
        let end = self.piece_ends.get(index).copied().unwrap_or_default() as usize;
        let start = index
            .checked_sub(1)
            .and_then(|before| self.piece_ends.get(before))
            .copied()
            .unwrap_or_default() as usize;
        self.pieces.get(start..end).unwrap_or_default()
    }

    /// The bytes that a token is written with: its text, or its name if it is a
    /// marker, such as `<|im_end|>`. Nothing for a token that does not exist.
    #[must_use]
    pub fn spelling(&self, token: Token) -> Vec<u8> {
        match (self.kind(token), i32::try_from(token.0)) {
            (Some(Kind::Control | Kind::EndOfGeneration), Ok(id)) => {
                let mut buffer = vec![0; 64];
                let written = self.read_piece(id, Markers::Shown, &mut buffer);
                buffer.truncate(written);
                buffer
            }
            (Some(Kind::Text), _) => self.piece_bytes(token).to_vec(),
            (Some(Kind::Control | Kind::EndOfGeneration) | None, _) => Vec::new(),
        }
    }

    /// The token that is one byte and nothing else, for every byte that has one.
    pub(crate) fn single_bytes(&self) -> &[Option<Token>; 256] {
        &self.single_bytes
    }

    /// llama.cpp's own vocabulary.
    pub(crate) fn raw(&self) -> NonNull<sys::llama_vocab> {
        self.raw
    }

    /// Whether a token ends a generation (end of text, of turn, of message).
    #[must_use]
    pub fn is_eog(&self, token: Token) -> bool {
        self.kind(token) == Some(Kind::EndOfGeneration)
    }

    /// Whether a token is a marker without text of its own. Every
    /// end-of-generation token is one.
    #[must_use]
    pub fn is_control(&self, token: Token) -> bool {
        matches!(self.kind(token), Some(Kind::Control | Kind::EndOfGeneration))
    }

    fn kind(&self, token: Token) -> Option<Kind> {
        self.kinds.get(token.0 as usize).copied()
    }

    /// The token that begins a text, if there is one.
    #[must_use]
    pub fn bos(&self) -> Option<Token> {
        self.bos
    }

    /// The token that ends a text, if there is one.
    #[must_use]
    pub fn eos(&self) -> Option<Token> {
        self.eos
    }

    /// The token that stands between two texts, if there is one.
    #[must_use]
    pub fn sep(&self) -> Option<Token> {
        // SAFETY: `raw` is valid for the life of self; the function only reads it.
        token(unsafe { sys::llama_vocab_sep(self.raw.as_ptr()) })
    }

    /// Whether the vocabulary asks for an end token after every text.
    #[must_use]
    pub fn add_eos(&self) -> bool {
        // SAFETY: as in `sep`.
        unsafe { sys::llama_vocab_get_add_eos(self.raw.as_ptr()) }
    }

    /// Whether the vocabulary asks for a separator between two texts.
    #[must_use]
    pub fn add_sep(&self) -> bool {
        // SAFETY: as in `sep`.
        unsafe { sys::llama_vocab_get_add_sep(self.raw.as_ptr()) }
    }

    /// Whether the vocabulary asks for a begin token before every text.
    #[must_use]
    pub fn add_bos(&self) -> bool {
        // SAFETY: `raw` is valid for the life of self; the function only reads it.
        unsafe { sys::llama_vocab_get_add_bos(self.raw.as_ptr()) }
    }
}

/// Whether to surround a text with the special tokens its vocabulary asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddSpecial {
    /// Add them, as at the beginning of a context.
    Yes,
    /// Leave the text as it is, as for a part of a longer one.
    No,
}

/// What the name of a special token means inside a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// The token itself.
    Parse,
    /// The characters it is written with.
    AsText,
}

/// A token that llama.cpp returned; it says "none" with a negative number.
fn token(id: sys::llama_token) -> Option<Token> {
    u32::try_from(id).ok().map(Token)
}
