//! Turns a conversation into the text a model was trained to continue, by
//! llama.cpp's own template engine, so that every template means here what it
//! means in llama-server. Parses no output and knows no tools.
#![expect(unsafe_code, reason = "owns a chat template of the C++ shim")]

use std::ffi::CString;
use std::ptr::NonNull;

use serde::{Deserialize, Serialize};

use crate::ffi::{self, ShimString};
use crate::model::Model;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant` …; which ones there are is up
    /// to the template.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// What to render.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ChatRequest<'a> {
    /// The conversation, oldest message first.
    pub messages: &'a [ChatMessage],
    /// Whether the text ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Whether a model that can think before it answers is asked to. Without
    /// effect on templates that know no thinking.
    pub enable_thinking: bool,
}

/// A conversation as text.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Rendered {
    /// The text; control tokens stand in it by name.
    pub prompt: String,
    /// Texts that end the answer besides the end-of-generation tokens.
    pub stops: Vec<String>,
}

/// Why there is no text.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template is not valid Jinja.
    #[error("the chat template cannot be parsed: {reason}")]
    Syntax {
        /// What the parser said.
        reason: String,
    },
    /// The template does not accept the conversation: it raised an exception,
    /// often about roles that do not alternate.
    #[error("the chat template refused the messages: {reason}")]
    Refused {
        /// What the template or the engine said.
        reason: String,
    },
}

/// A parsed chat template. Usable from any number of threads at once.
#[derive(Debug)]
pub struct ChatTemplate {
    raw: NonNull<ffi::ChatTemplateHandle>,
}

// SAFETY: the shim's template is a C++ object without ties to a thread.
unsafe impl Send for ChatTemplate {}
// SAFETY: rendering takes the template as const and keeps its state on the
// stack; llama-server renders one template from many threads in the same way.
unsafe impl Sync for ChatTemplate {}

impl Drop for ChatTemplate {
    fn drop(&mut self) {
        // SAFETY: `raw` was returned by the shim and is freed once.
        unsafe { ffi::rbee_chat_template_free(self.raw.as_ptr()) }
    }
}

impl ChatTemplate {
    /// Parses `override_source` (Jinja, or the word `chatml`), or the model's own
    /// template, or ChatML for a model that has none.
    ///
    /// # Errors
    /// The template is not valid.
    pub fn from_model(model: &Model, override_source: Option<&str>) -> Result<Self, TemplateError> {
        let syntax = |reason: String| TemplateError::Syntax { reason };
        let source = override_source
            .map(CString::new)
            .transpose()
            .map_err(|error| syntax(error.to_string()))?;
        let source = source.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
        let mut error = ShimString::null();
        // SAFETY: the model is valid; the source is null or NUL-terminated. The
        // template copies what it needs of both.
        let raw =
            unsafe { ffi::rbee_chat_template_new(model.raw().as_ptr(), source, error.as_out()) };
        NonNull::new(raw).map(|raw| Self { raw }).ok_or_else(|| syntax(said(&error)))
    }

    /// Whether the template came from the model or the caller; otherwise it is
    /// ChatML, as a guess.
    #[must_use]
    pub fn is_explicit(&self) -> bool {
        // SAFETY: `raw` is valid for the life of self; the function only reads it.
        unsafe { ffi::rbee_chat_template_is_explicit(self.raw.as_ptr()) }
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// The template refuses the messages.
    pub fn render(&self, request: &ChatRequest<'_>) -> Result<Rendered, TemplateError> {
        let refused = |reason: String| TemplateError::Refused { reason };
        let request = serde_json::to_string(request).map_err(|error| refused(error.to_string()))?;
        // JSON writes a NUL inside a message as \u0000, so this cannot fail for one.
        let request = CString::new(request).map_err(|error| refused(error.to_string()))?;
        let mut error = ShimString::null();
        // SAFETY: the template is valid and the request NUL-terminated; the
        // string returned is ours to free.
        let reply = unsafe {
            ShimString::from_raw(ffi::rbee_chat_template_render(
                self.raw.as_ptr(),
                request.as_ptr(),
                error.as_out(),
            ))
        };
        let reply = reply.to_text().ok_or_else(|| refused(said(&error)))?;
        serde_json::from_str(&reply).map_err(|error| refused(error.to_string()))
    }
}

fn said(error: &ShimString) -> String {
    error.to_text().unwrap_or_else(|| "no reason given".to_owned())
}
