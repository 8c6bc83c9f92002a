//! Turns a conversation into the text a model was trained to continue, by
//! llama.cpp's own template engine, so that every template means here what it
//! means in llama-server, and tells how the reply has to be read. Reads no
//! reply itself: see [`crate::reply`].
#![expect(unsafe_code, reason = "owns a chat template of the C++ shim")]

mod bounds;
mod call_ids;
mod formats;
mod schemas;
mod toolless;
mod wire;

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::backend::ensure_started;
use crate::ffi::{self, ShimString};
use crate::model::Model;
use crate::reply::ReplyFormat;
use formats::Formats;
use wire::{Extent, WireRendered, format_key, wire_request};

/// One message of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`, `tool` …; which ones there
    /// are is up to the template.
    pub role: String,
    /// What is said.
    pub content: String,
    /// What an assistant thought before it; empty for nothing.
    pub reasoning_content: String,
    /// The tools an assistant called.
    pub tool_calls: Vec<ToolCall>,
    /// The call that a tool answers, and the name of the tool.
    pub answers: Option<Answered>,
}

/// What the message of a tool answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The id of the call.
    pub call_id: String,
    /// The name of the tool.
    pub name: String,
}

/// One call of a tool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ToolCall {
    /// Tells calls apart; empty where the model gives none.
    pub id: String,
    /// The name of the tool.
    pub name: String,
    /// Its arguments, as JSON text.
    pub arguments: String,
}

/// A tool that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it does, for the model to read.
    pub description: String,
    /// The JSON schema of its arguments.
    pub parameters: Value,
}

/// Whether the model calls tools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// It knows the tools and calls none.
    None,
    /// At least one.
    Required,
}

impl ToolChoice {
    const fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::None => "none",
            Self::Required => "required",
        }
    }
}

/// What to render.
#[derive(Clone, Debug)]
pub struct ChatRequest<'a> {
    /// The conversation, oldest message first.
    pub messages: &'a [ChatMessage],
    /// Tools the model may call.
    pub tools: &'a [Tool],
    /// Whether it does.
    pub tool_choice: ToolChoice,
    /// Whether it may call several at once; `None` for what the template shows.
    pub parallel_tool_calls: Option<bool>,
    /// Whether the text ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Whether a model that can think before it answers is asked to. Without
    /// effect on templates that know no thinking.
    pub enable_thinking: bool,
    /// Further variables that the template may look at.
    pub arguments: &'a Map<String, Value>,
}

/// A conversation as text, and how to read what the model adds to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text; control tokens stand in it by name.
    pub prompt: String,
    /// Texts that end the answer besides the end-of-generation tokens.
    pub stops: Vec<String>,
    /// How to read the reply; `None` when all of it is content.
    pub reply: Option<Arc<ReplyFormat>>,
}

/// What a template can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Traits {
    /// It describes tools to the model.
    pub tools: bool,
    /// It shows the model the calls it made.
    pub tool_calls: bool,
    /// It shows several calls at once.
    pub parallel: bool,
    /// llama.cpp has code of its own for it.
    special: bool,
    /// Its model may think before it answers.
    pub thinking: bool,
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
    /// A tool's schema is such that no grammar is made of it.
    #[error("no grammar is made of the schema of {tool}: {reason}")]
    Schema {
        /// The name of the tool.
        tool: String,
        /// What is too much.
        reason: String,
    },
    /// The template does not accept the conversation: it raised an exception,
    /// often about roles that do not alternate; or a tool's schema has no grammar.
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
    traits: Traits,
    /// Whether the template accepts only short ids of calls.
    short_ids: bool,
    formats: Formats,
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
        Self::new(Some(model), override_source)
    }

    /// Parses a template (Jinja, or the word `chatml`) that belongs to no model:
    /// the tokens that begin and end a text are empty in it.
    ///
    /// # Errors
    /// The template is empty or not valid.
    pub fn from_source(source: &str) -> Result<Self, TemplateError> {
        if source.is_empty() {
            return Err(TemplateError::Syntax { reason: "it is empty".to_owned() });
        }
        Self::new(None, Some(source))
    }

    fn new(model: Option<&Model>, source: Option<&str>) -> Result<Self, TemplateError> {
        ensure_started();
        let syntax = |reason: String| TemplateError::Syntax { reason };
        let own = model.filter(|_| source.is_none()).and_then(Model::chat_template);
        bounds::check(source.or(own.as_deref()).unwrap_or_default()).map_err(syntax)?;
        let source =
            source.map(CString::new).transpose().map_err(|error| syntax(error.to_string()))?;
        let source = source.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
        let model = model.map_or(std::ptr::null(), |model| model.raw().as_ptr().cast_const());
        let mut error = ShimString::null();
        // SAFETY: the model is valid, or null beside a source that is not empty;
        // the source is null or NUL-terminated. The template copies what it
        // needs of both.
        let raw = unsafe { ffi::rbee_chat_template_new(model, source, error.as_out()) };
        let raw = NonNull::new(raw).ok_or_else(|| syntax(error.reason()))?;
        // What it can do is read below; until then the least is assumed.
        let least = Traits {
            tools: false,
            tool_calls: false,
            parallel: false,
            special: true,
            thinking: true,
        };
        let mut template =
            Self { raw, traits: least, short_ids: false, formats: Formats::default() };
        template.traits = template.read_traits()?;
        template.short_ids = !template.accepts_id(call_ids::USUAL)
            && template.accepts_id(&call_ids::short(call_ids::USUAL));
        Ok(template)
    }

    /// Whether the template shows a call with such an id.
    fn accepts_id(&self, id: &str) -> bool {
        let name = "f".to_owned();
        let call = ToolCall { id: id.to_owned(), name: name.clone(), arguments: "{}".to_owned() };
        let said = |role: &str, content: &str| ChatMessage {
            role: role.to_owned(),
            content: content.to_owned(),
            ..ChatMessage::default()
        };
        let answered = Answered { call_id: id.to_owned(), name };
        let messages = [
            said("user", "Hi"),
            ChatMessage { tool_calls: vec![call], ..said("assistant", "") },
            ChatMessage { answers: Some(answered), ..said("tool", "1") },
        ];
        let request = ChatRequest {
            messages: &messages,
            tools: &[],
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: None,
            add_generation_prompt: true,
            enable_thinking: true,
            arguments: &Map::new(),
        };
        self.render_wire(&wire_request(&request, &messages, Extent::TextOnly)).is_ok()
    }

    fn read_traits(&self) -> Result<Traits, TemplateError> {
        let mut error = ShimString::null();
        // SAFETY: the template is valid; the string returned is ours to free.
        let traits = unsafe {
            ShimString::from_raw(ffi::rbee_chat_template_traits(self.raw.as_ptr(), error.as_out()))
        };
        match traits.to_text() {
            Some(text) => serde_json::from_str(&text)
                .map_err(|error| TemplateError::Syntax { reason: error.to_string() }),
            // A template may want more than a user who says "Hi".
            None => Ok(self.traits),
        }
    }

    /// Returns what the template can do.
    #[must_use]
    pub fn traits(&self) -> Traits {
        self.traits
    }

    /// Whether the template came from the model or the caller; otherwise it is
    /// ChatML, as a guess.
    #[must_use]
    pub fn is_explicit(&self) -> bool {
        // SAFETY: `raw` is valid for the life of self; the function only reads it.
        unsafe { ffi::rbee_chat_template_is_explicit(self.raw.as_ptr()) }
    }

    /// Renders a conversation. A template that knows no tools gets them as text.
    ///
    /// # Errors
    /// The template refuses the messages, or a tool's schema has no grammar.
    pub fn render(&self, request: &ChatRequest<'_>) -> Result<Rendered, TemplateError> {
        if request.tool_choice != ToolChoice::None {
            schemas::check(request.tools)
                .map_err(|(tool, reason)| TemplateError::Schema { tool, reason })?;
        }
        let parallel = request.parallel_tool_calls.unwrap_or(self.traits.parallel);
        let mut request = ChatRequest { parallel_tool_calls: Some(parallel), ..request.clone() };
        let shortened;
        if self.short_ids {
            shortened = call_ids::shortened(request.messages);
            request.messages = &shortened;
        }
        let request = &request;
        if self.traits.tools {
            return self.render_cached(request, request.messages);
        }
        if self.traits.tool_calls {
            if request.tools.is_empty() {
                return self.render_cached(request, request.messages);
            }
            return self.render_cached(request, &toolless::write_list(request));
        }
        let messages = toolless::write_out(request);
        let plain = ChatRequest { messages: &messages, tools: &[], ..request.clone() };
        let mut rendered = self.render_cached(&plain, &messages)?;
        if !request.tools.is_empty() && request.tool_choice != ToolChoice::None {
            let key = format_key(request);
            let format = match self.formats.find(&key, "") {
                Some(format) => format,
                None => self.remember(key, toolless::reply_format(request, self.traits.thinking)?),
            };
            rendered.reply = Some(format);
        }
        Ok(rendered)
    }

    /// Renders, and finds out how to read the reply unless that is known.
    fn render_cached(
        &self,
        request: &ChatRequest<'_>,
        messages: &[ChatMessage],
    ) -> Result<Rendered, TemplateError> {
        let all_content = request.tools.is_empty() && !self.traits.thinking;
        if self.traits.special {
            // These look at the messages too before they render them.
            let wire = self.render_native(request, messages)?;
            let reply = Some(Arc::new(wire.reply));
            return Ok(Rendered { prompt: wire.prompt, stops: wire.stops, reply });
        }
        let text = self.render_wire(&wire_request(request, messages, Extent::TextOnly))?;
        if all_content {
            return Ok(Rendered { prompt: text.prompt, stops: text.stops, reply: None });
        }
        let key = format_key(request);
        let reply = match self.formats.find(&key, &text.reply.generation_prompt) {
            Some(format) => format,
            None => self.remember(key, self.render_native(request, messages)?.reply),
        };
        Ok(Rendered { prompt: text.prompt, stops: reply.stops.clone(), reply: Some(reply) })
    }

    fn remember(&self, key: String, format: ReplyFormat) -> Arc<ReplyFormat> {
        let format = Arc::new(format);
        self.formats.add(key, Arc::clone(&format));
        format
    }

    /// Renders by the template alone, with all that serves to read the reply.
    fn render_native(
        &self,
        request: &ChatRequest<'_>,
        messages: &[ChatMessage],
    ) -> Result<WireRendered, TemplateError> {
        let mut wire = self.render_wire(&wire_request(request, messages, Extent::All))?;
        wire.reply.special = self.traits.special;
        wire.reply.stops.clone_from(&wire.stops);
        let calls = !request.tools.is_empty() && request.tool_choice != ToolChoice::None;
        wire.reply.calls_max = match (calls, request.parallel_tool_calls) {
            (false, _) => 0,
            (true, Some(true)) => usize::MAX,
            (true, Some(false) | None) => 1,
        };
        Ok(wire)
    }

    fn render_wire(&self, request: &Value) -> Result<WireRendered, TemplateError> {
        let refused = |reason: String| TemplateError::Refused { reason };
        // JSON writes a NUL inside a message as \u0000, so this cannot fail for one.
        let request =
            CString::new(request.to_string()).map_err(|error| refused(error.to_string()))?;
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
        let reply = reply.to_text().ok_or_else(|| refused(error.reason()))?;
        serde_json::from_str(&reply).map_err(|error| refused(error.to_string()))
    }
}
