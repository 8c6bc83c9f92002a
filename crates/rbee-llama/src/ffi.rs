//! The C declarations of the shim (`shim/shim.h`) and the conversions between
//! C strings and Rust ones. Knows nothing about what the calls mean.
#![expect(unsafe_code, reason = "declares and reads what C++ owns")]

use std::ffi::{CStr, c_char};

use llama_cpp_sys_2 as sys;

/// What a guarded call returns when it ended in a C++ exception.
pub(crate) const EXCEPTION: i32 = i32::MIN;

/// A parsed chat template, owned by C++.
#[repr(C)]
pub(crate) struct ChatTemplateHandle {
    _opaque: [u8; 0],
}

/// A parser of replies, owned by C++.
#[repr(C)]
pub(crate) struct ReplyParserHandle {
    _opaque: [u8; 0],
}

/// A grammar and how far a text has come in it, owned by C++.
#[repr(C)]
pub(crate) struct GrammarHandle {
    _opaque: [u8; 0],
}

/// Bytes in one type of buffer.
#[derive(Clone)]
#[repr(C)]
pub(crate) struct MemoryPart {
    /// Null for memory of the processor.
    pub(crate) device: sys::ggml_backend_dev_t,
    pub(crate) weights: usize,
    pub(crate) context: usize,
    pub(crate) compute: usize,
}

impl Default for MemoryPart {
    fn default() -> Self {
        Self { device: std::ptr::null_mut(), weights: 0, context: 0, compute: 0 }
    }
}

unsafe extern "C" {
    fn rbee_string_free(text: *mut c_char);

    pub(crate) fn rbee_common_log_off();

    pub(crate) fn rbee_decode(
        ctx: *mut sys::llama_context,
        n_tokens: i32,
        tokens: *const sys::llama_token,
        positions: *const sys::llama_pos,
        sequences: *const sys::llama_seq_id,
        outputs: *const i8,
        error: *mut *mut c_char,
    ) -> i32;

    pub(crate) fn rbee_tokenize(
        vocab: *const sys::llama_vocab,
        text: *const c_char,
        text_len: i32,
        tokens: *mut sys::llama_token,
        n_tokens_max: i32,
        add_special: bool,
        parse_special: bool,
        error: *mut *mut c_char,
    ) -> i32;

    pub(crate) fn rbee_chat_template_new(
        model: *const sys::llama_model,
        override_source: *const c_char,
        error: *mut *mut c_char,
    ) -> *mut ChatTemplateHandle;

    pub(crate) fn rbee_chat_template_free(template: *mut ChatTemplateHandle);

    pub(crate) fn rbee_chat_template_is_explicit(template: *const ChatTemplateHandle) -> bool;

    pub(crate) fn rbee_chat_template_traits(
        template: *const ChatTemplateHandle,
        error: *mut *mut c_char,
    ) -> *mut c_char;

    pub(crate) fn rbee_chat_template_render(
        template: *const ChatTemplateHandle,
        request_json: *const c_char,
        error: *mut *mut c_char,
    ) -> *mut c_char;

    pub(crate) fn rbee_reply_parser_new(
        parser: *const c_char,
        format: i32,
        generation_prompt: *const c_char,
        error: *mut *mut c_char,
    ) -> *mut ReplyParserHandle;

    pub(crate) fn rbee_reply_parser_free(parser: *mut ReplyParserHandle);

    pub(crate) fn rbee_reply_parser_parse(
        parser: *const ReplyParserHandle,
        text: *const c_char,
        text_len: usize,
        error: *mut *mut c_char,
    ) -> *mut c_char;

    pub(crate) fn rbee_grammar_new(
        vocab: *const sys::llama_vocab,
        source: *const c_char,
        trigger: *const c_char,
        error: *mut *mut c_char,
    ) -> *mut GrammarHandle;

    pub(crate) fn rbee_grammar_clone(
        grammar: *const GrammarHandle,
        error: *mut *mut c_char,
    ) -> *mut GrammarHandle;

    pub(crate) fn rbee_grammar_free(grammar: *mut GrammarHandle);

    pub(crate) fn rbee_grammar_filter(
        grammar: *mut GrammarHandle,
        ids: *mut sys::llama_token,
        n_ids: i32,
        error: *mut *mut c_char,
    ) -> i32;

    pub(crate) fn rbee_grammar_allows(grammar: *mut GrammarHandle, token: sys::llama_token)
    -> bool;

    pub(crate) fn rbee_grammar_accept(grammar: *mut GrammarHandle, token: sys::llama_token)
    -> bool;

    pub(crate) fn rbee_memory_use(
        ctx: *const sys::llama_context,
        parts: *mut MemoryPart,
        n_parts_max: i32,
        error: *mut *mut c_char,
    ) -> i32;
}

/// A string that the shim allocated, freed on drop. Starts out null, so that it
/// can stand in for an error that may never be written.
pub(crate) struct ShimString(*mut c_char);

impl ShimString {
    pub(crate) fn null() -> Self {
        Self(std::ptr::null_mut())
    }

    /// Takes over a string that a shim call returned.
    ///
    /// # Safety
    /// `text` is null or was returned by the shim, and nobody else frees it.
    pub(crate) unsafe fn from_raw(text: *mut c_char) -> Self {
        Self(text)
    }

    /// The place for a shim call to leave an error message in.
    pub(crate) fn as_out(&mut self) -> *mut *mut c_char {
        &raw mut self.0
    }

    /// A copy of the text, or a word for there being none.
    pub(crate) fn reason(&self) -> String {
        self.to_text().unwrap_or_else(|| "no reason given".to_owned())
    }

    /// A copy of the text; `None` when no string was left here.
    pub(crate) fn to_text(&self) -> Option<String> {
        // SAFETY: the pointer is null or a NUL-terminated string that lives until drop.
        unsafe { copy_text(self.0) }
    }
}

impl Drop for ShimString {
    fn drop(&mut self) {
        // SAFETY: the string came from the shim's malloc, or is null, which free accepts.
        unsafe { rbee_string_free(self.0) }
    }
}

/// A copy of a C string with invalid UTF-8 replaced; `None` for a null pointer.
///
/// # Safety
/// `text` is null or points to a NUL-terminated string.
pub(crate) unsafe fn copy_text(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: not null, and NUL-terminated as the caller promises.
    let text = unsafe { CStr::from_ptr(text) };
    Some(text.to_string_lossy().into_owned())
}
