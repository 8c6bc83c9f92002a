//! Compiles what output has to look like (JSON, a JSON schema, a grammar) into
//! constraints on one model's tokens, by llguidance. Made once a model, and its
//! tables only when first needed. Never runs on the engine thread; bounds what
//! a stranger's schema may cost in time and memory.

mod ends;
mod fault;
mod gbnf;
mod matcher;
mod vocabulary;

use std::sync::{Arc, OnceLock};

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory, TokenParser};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::openai::OutputFormat;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(crate) use ends::LaterEnd;
use matcher::GrammarConstraint;
pub(crate) use vocabulary::Vocabulary;

use crate::sampler::constraint::Constraint;

/// Grammars compiled at once: a hostile one shall not take more than one core
/// from the engine.
const COMPILING_MAX: usize = 1;
/// The compiler calls itself for each schema that a schema names; the largest
/// schema can name about 2,500 in a row. Only what is used takes memory.
const STACK_BYTES: usize = 256 * 1024 * 1024;
/// Between two parts of JSON: nothing, a space, or a line end with
/// indentation, as llama.cpp has it. A small model would otherwise lose itself
/// in white space.
const JSON_SPACE: &str = r"\x20|\n{1,2}[\x20\t]{0,20}";
/// Work of building a grammar's lexer, about 20 ms.
const LEXER_FUEL_MAX: u64 = 1_000_000;
/// Work of the lexer for one token, about 15 ms.
const STEP_FUEL_MAX: u64 = 200_000;
/// States of one request's lexer, 1 to 2 kB each.
const LEXER_STATES_MAX: usize = 20_000;
/// Symbols of one compiled grammar.
const GRAMMAR_SYMBOLS_MAX: usize = 100_000;

/// Why a form of output cannot be held to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuideError {
    #[error("{place}: {reason}")]
    Invalid { place: String, reason: String },
    #[error("this model's vocabulary cannot be held to a grammar")]
    Vocabulary { param: &'static str },
}

impl GuideError {
    /// Names the place in the request.
    pub(crate) fn into_detail(self) -> ErrorDetail {
        let message = self.to_string();
        match self {
            Self::Invalid { place, .. } => {
                ErrorDetail::new(ErrorCode::ValidationFailed, message).with_param(place)
            }
            Self::Vocabulary { param } => {
                ErrorDetail::new(ErrorCode::UnsupportedParameter, message).with_param(param)
            }
        }
    }
}

/// Makes constraints for one model.
pub(crate) struct Guide {
    vocabulary: Arc<dyn Vocabulary>,
    /// `None` inside for a vocabulary that llguidance cannot take.
    factory: OnceLock<Option<ParserFactory>>,
    compiling: Arc<Semaphore>,
}

impl std::fmt::Debug for Guide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guide").field("vocabulary", &self.vocabulary).finish_non_exhaustive()
    }
}

impl Guide {
    pub(crate) fn new(vocabulary: Arc<dyn Vocabulary>) -> Self {
        Self {
            vocabulary,
            factory: OnceLock::new(),
            compiling: Arc::new(Semaphore::new(COMPILING_MAX)),
        }
    }

    /// Waits for a turn to compile, which lasts until it is dropped.
    pub(crate) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        Arc::clone(&self.compiling).acquire_owned().await.ok()
    }

    /// Keeps the model from ending its output before this many tokens; `None`
    /// for never.
    pub(crate) fn later_end(&self, tokens_min: Option<u32>) -> Box<dyn Constraint> {
        Box::new(LaterEnd::new(Arc::clone(&self.vocabulary), tokens_min))
    }

    /// Compiles a form of output; `None` for plain text. Takes milliseconds,
    /// and at most a fraction of a second.
    ///
    /// # Errors
    /// Names the place that cannot be compiled.
    pub(crate) fn compile(
        &self,
        format: &OutputFormat,
    ) -> Result<Option<Box<dyn Constraint>>, GuideError> {
        let Some(param) = format.param() else { return Ok(None) };
        let thread = std::thread::Builder::new().name("grammar".to_owned());
        let compiled = std::thread::scope(|scope| {
            let thread = thread.stack_size(STACK_BYTES);
            let work = || self.compile_here(format, param);
            thread.spawn_scoped(scope, work).map(std::thread::ScopedJoinHandle::join)
        });
        match compiled {
            Ok(Ok(constraint)) => constraint,
            Ok(Err(_)) | Err(_) => {
                tracing::error!("the thread that compiles a grammar failed");
                let reason = "it cannot be compiled".to_owned();
                Err(GuideError::Invalid { place: param.to_owned(), reason })
            }
        }
    }

    fn compile_here(
        &self,
        format: &OutputFormat,
        param: &'static str,
    ) -> Result<Option<Box<dyn Constraint>>, GuideError> {
        let invalid = |reason| GuideError::Invalid { place: param.to_owned(), reason };
        let factory = self.factory().ok_or(GuideError::Vocabulary { param })?;
        let parser = match format {
            OutputFormat::Text => return Ok(None),
            OutputFormat::JsonObject => {
                compile_schema(factory, json!({"type": "object"})).map_err(invalid)?
            }
            OutputFormat::JsonSchema(schema) => {
                compile_schema(factory, schema.clone()).map_err(|reason| {
                    let compile = |part: Value| compile_schema(factory, part).err();
                    let place = fault::locate(schema, &reason, compile);
                    GuideError::Invalid { place: format!("{param}{place}"), reason }
                })?
            }
            OutputFormat::Grammar(source) => {
                let lark = gbnf::to_lark(source);
                lark.and_then(|lark| compile_lark(factory, lark)).map_err(invalid)?
            }
        };
        let mut matcher = Matcher::new(Ok(parser));
        if matcher.compute_mask_or_eos().is_err() {
            return Err(invalid("no text of this model's tokens satisfies it".to_owned()));
        }
        let vocabulary = Arc::clone(&self.vocabulary);
        Ok(Some(Box::new(GrammarConstraint::new(matcher, vocabulary, param))))
    }

    fn factory(&self) -> Option<&ParserFactory> {
        let build = || match vocabulary::factory(Arc::clone(&self.vocabulary)) {
            Ok(factory) => Some(with_limits(factory)),
            Err(reason) => {
                tracing::error!(reason, "the vocabulary cannot be held to a grammar");
                None
            }
        };
        self.factory.get_or_init(build).as_ref()
    }
}

fn with_limits(mut factory: ParserFactory) -> ParserFactory {
    let limits = factory.limits_mut();
    limits.initial_lexer_fuel = LEXER_FUEL_MAX;
    limits.step_lexer_fuel = STEP_FUEL_MAX;
    limits.max_lexer_states = LEXER_STATES_MAX;
    limits.max_grammar_size = GRAMMAR_SYMBOLS_MAX;
    limits.verbose_errors = false;
    factory.quiet();
    factory
}

/// Compiles a schema, or says in one line why it cannot be.
fn compile_schema(factory: &ParserFactory, schema: Value) -> Result<TokenParser, String> {
    let mut schema = match schema {
        Value::Object(fields) => fields,
        // What `true` and `false` mean as schemas, with room for the options.
        any => [("allOf".to_owned(), json!([any]))].into_iter().collect(),
    };
    // The compiler's options stand in the schema; the client's own do not count.
    schema.insert("x-guidance".to_owned(), json!({"whitespace_pattern": JSON_SPACE}));
    let grammar = TopLevelGrammar::from_json_schema(Value::Object(schema));
    factory.create_parser(grammar).map_err(|error| fault::reason(&error))
}

/// Compiles a grammar written as Lark.
fn compile_lark(factory: &ParserFactory, lark: String) -> Result<TokenParser, String> {
    let grammar = TopLevelGrammar::from_lark(lark);
    factory.create_parser(grammar).map_err(|error| fault::reason(&error))
}

#[cfg(test)]
mod tests;
