//! One reply of a model: asked for, waited for, printed as it comes. Shared by single prompts and chats.

use std::convert::Infallible;
use std::time::Duration;

use input_validation::{ModelRef, RequestId};
use rbee_api::openai::{ChatChunk, FinishReason, Usage};
use rbee_api::worker::WorkerState;
use rbee_http::new_request_id;
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::cli::RunArgs;
use crate::error::KeeperError;
use crate::event_stream::{EventReader, Next};
use crate::figures;
use crate::output::{Activity, Output, Reply};
use crate::queen_client::{Budget, QueenClient};

/// A wait shorter than this is not worth a word.
const PATIENCE: Duration = Duration::from_millis(400);
/// Nor is one shorter than this, where nothing is being loaded.
const PATIENCE_WITHOUT_LOADING: Duration = Duration::from_secs(1);
/// How often the queen is asked what the wait is for.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Message {
    pub(crate) role: &'static str,
    pub(crate) content: String,
}

/// Everything about a reply except the conversation before it.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) model: &'a ModelRef,
    pub(crate) args: &'a RunArgs,
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a ModelRef,
    messages: &'a [Message],
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<i64>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
}

/// A reply, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(crate) struct Answer {
    pub(crate) model: ModelRef,
    pub(crate) text: String,
    /// What the model thought before; absent when it did not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) reasoning: String,
    pub(crate) finish_reason: Option<FinishReason>,
    pub(crate) usage: Option<Usage>,
    pub(crate) timings: Timings,
    pub(crate) request_id: RequestId,
}

/// How fast a reply was, as the user saw it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Timings {
    /// From the request to the first text, in milliseconds; null where the reply came whole.
    pub(crate) first_token_ms: Option<u64>,
    /// From the request to the end, in milliseconds.
    pub(crate) total_ms: u64,
    /// Tokens a second from the first text to the end; null where there are too few to tell.
    pub(crate) tokens_per_second: Option<f64>,
}

impl Answer {
    /// Says in one line how it went.
    pub(crate) fn summary(&self) -> String {
        let mut parts = Vec::new();
        if let Some(usage) = self.usage {
            parts.push(format!(
                "{} tokens in, {} out",
                usage.prompt_tokens, usage.completion_tokens
            ));
        }
        if let Some(speed) = self.timings.tokens_per_second {
            parts.push(format!("{speed:.1} tokens/s"));
        }
        if let Some(first) = self.timings.first_token_ms {
            let first = figures::seconds(Duration::from_millis(first));
            parts.push(format!("first token after {first}"));
        }
        parts.push(figures::seconds(Duration::from_millis(self.timings.total_ms)));
        parts.push(format!("request {}", self.request_id));
        parts.join(", ")
    }

    /// Says, where it is so, that the reply is cut off though nobody asked for it.
    pub(crate) fn cut_off(&self, args: &RunArgs) -> Option<&'static str> {
        let cut = self.finish_reason == Some(FinishReason::Length) && args.max_tokens.is_none();
        cut.then_some("the reply ends here because the model's context is full")
    }
}

impl Request<'_> {
    /// Has the model reply to `messages` and puts the text into `reply` as it comes, where there is one. Dropping the
    /// future cancels the generation.
    ///
    /// # Errors
    /// What the queen refused, and how a stream can break. What has come until then stays in `text`.
    pub(crate) async fn generate(
        &self,
        queen: &QueenClient,
        output: &Output,
        messages: &[Message],
        text: &mut String,
        mut reply: Option<&mut Reply<'_>>,
    ) -> Result<Answer, KeeperError> {
        let id = new_request_id();
        let budget = Budget::new(Duration::from_secs(self.args.timeout));
        let body = self.body(messages)?.into();
        let started = Instant::now();
        let mut wait = Wait::default();
        if self.args.no_stream {
            let whole =
                wait.during(queen, output, self.model, queen.chat(body, &id, budget)).await?;
            let mut choices = whole.choices.into_iter();
            let choice = choices.next().ok_or(KeeperError::BrokenOff)?;
            let thought = choice.message.reasoning_content.unwrap_or_default();
            print(&mut reply, &Piece::Thought(thought.clone()))?;
            let said = choice.message.content.unwrap_or_default();
            text.push_str(&said);
            print(&mut reply, &Piece::Text(said))?;
            return Ok(Answer {
                model: self.model.clone(),
                text: text.clone(),
                reasoning: thought,
                finish_reason: Some(choice.finish_reason),
                usage: Some(whole.usage),
                timings: Timings { total_ms: millis(started.elapsed()), ..Timings::default() },
                request_id: id,
            });
        }
        let first = async {
            let mut stream = Stream::new(queen.chat_stream(body, &id, budget).await?);
            let piece = stream.piece().await?;
            Ok((stream, piece))
        };
        let (mut stream, mut piece) = wait.during(queen, output, self.model, first).await?;
        drop(wait);
        let first_at = Instant::now();
        let mut reasoning = String::new();
        while let Some(new) = piece {
            print(&mut reply, &new)?;
            match new {
                Piece::Text(new) => text.push_str(&new),
                Piece::Thought(new) => reasoning.push_str(&new),
            }
            piece = stream.piece().await?;
        }
        let tokens = stream.usage.map_or(0, |usage| usage.completion_tokens);
        let timings = Timings {
            first_token_ms: (!text.is_empty() || !reasoning.is_empty())
                .then(|| millis(first_at - started)),
            total_ms: millis(started.elapsed()),
            tokens_per_second: speed(tokens, first_at.elapsed()),
        };
        Ok(Answer {
            model: self.model.clone(),
            text: text.clone(),
            reasoning,
            finish_reason: stream.finish_reason,
            usage: stream.usage,
            timings,
            request_id: id,
        })
    }

    fn body(&self, messages: &[Message]) -> Result<Vec<u8>, KeeperError> {
        let args = self.args;
        let stream = !args.no_stream;
        let body = Body {
            model: self.model,
            messages,
            stream,
            stream_options: stream.then(|| serde_json::json!({"include_usage": true})),
            max_tokens: args.max_tokens,
            temperature: args.temperature,
            top_p: args.top_p,
            top_k: args.top_k,
            seed: args.seed,
            stop: &args.stop,
        };
        serde_json::to_vec(&body).map_err(KeeperError::Garbled)
    }
}

/// A piece of a reply.
#[derive(Debug)]
enum Piece {
    Text(String),
    /// What the model thinks before it answers.
    Thought(String),
}

fn print(reply: &mut Option<&mut Reply<'_>>, piece: &Piece) -> Result<(), KeeperError> {
    let Some(reply) = reply else { return Ok(()) };
    match piece {
        Piece::Text(text) => reply.write(text),
        Piece::Thought(text) => {
            reply.think(text);
            Ok(())
        }
    }
}

/// Tokens a second after the first one.
fn speed(tokens: u32, time: Duration) -> Option<f64> {
    let later = f64::from(tokens.checked_sub(1)?);
    let seconds = time.as_secs_f64();
    (later > 0.0 && seconds > 0.0).then(|| later / seconds)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A streamed reply.
struct Stream {
    events: EventReader,
    usage: Option<Usage>,
    finish_reason: Option<FinishReason>,
}

impl Stream {
    fn new(events: EventReader) -> Self {
        Self { events, usage: None, finish_reason: None }
    }

    /// Waits for the next piece, which is not empty; `None` at the end of the reply.
    async fn piece(&mut self) -> Result<Option<Piece>, KeeperError> {
        loop {
            let chunk: ChatChunk = match self.events.next().await? {
                Next::Event(chunk) => chunk,
                Next::Done => return Ok(None),
                Next::End => return Err(KeeperError::BrokenOff),
            };
            self.usage = chunk.usage.flatten().or(self.usage);
            let Some(choice) = chunk.choices.into_iter().next() else { continue };
            self.finish_reason = choice.finish_reason.or(self.finish_reason);
            if let Some(text) = choice.delta.content.filter(|text| !text.is_empty()) {
                return Ok(Some(Piece::Text(text)));
            }
            if let Some(text) = choice.delta.reasoning_content.filter(|text| !text.is_empty()) {
                return Ok(Some(Piece::Thought(text)));
            }
        }
    }
}

/// Tells a person what they wait for, when it takes long.
#[derive(Debug, Default)]
struct Wait {
    activity: Option<Activity>,
    /// What the activity says: whether the model is being loaded.
    shown: Option<bool>,
    loaded: bool,
}

impl Wait {
    async fn during<T>(
        &mut self,
        queen: &QueenClient,
        output: &Output,
        model: &ModelRef,
        work: impl Future<Output = Result<T, KeeperError>>,
    ) -> Result<T, KeeperError> {
        let started = Instant::now();
        let done = tokio::select! {
            biased;
            done = work => done,
            never = self.explain(queen, output, model) => match never {},
        };
        self.activity = None;
        if self.loaded && done.is_ok() {
            output.note(&format!("loaded {model} in {}", figures::seconds(started.elapsed())));
        }
        done
    }

    async fn explain(
        &mut self,
        queen: &QueenClient,
        output: &Output,
        model: &ModelRef,
    ) -> Infallible {
        let mut idle_since = Instant::now();
        tokio::time::sleep(PATIENCE).await;
        loop {
            let starting = queen.workers().await.ok().and_then(|list| {
                list.workers.into_iter().map(|placed| placed.worker).find(|worker| {
                    let named = worker.alias.as_ref().is_some_and(|a| a.as_str() == model.as_str());
                    worker.state == WorkerState::Starting && (named || worker.model_ref == *model)
                })
            });
            let loading = starting.is_some();
            if loading {
                idle_since = Instant::now();
            }
            let is_worth_a_word = loading || idle_since.elapsed() >= PATIENCE_WITHOUT_LOADING;
            if is_worth_a_word && self.shown != Some(loading) {
                drop(self.activity.take());
                let message = if loading {
                    format!("loading {model}")
                } else {
                    format!("waiting for {model}")
                };
                self.activity = Some(output.activity(message));
                self.shown = Some(loading);
                self.loaded |= loading;
            }
            if let (Some(worker), Some(activity)) = (starting, &self.activity) {
                let percent = worker.load_progress * 100.0;
                activity.say(format!("loading {model}, {percent:.0} %"));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_counts_from_the_first_token_on() {
        assert_eq!(speed(11, Duration::from_secs(2)), Some(5.0));
        assert_eq!(speed(1, Duration::from_secs(2)), None);
        assert_eq!(speed(0, Duration::from_secs(2)), None);
        assert_eq!(speed(5, Duration::ZERO), None);
    }
}
