//! `POST /v1/chat/completions`.

use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use rbee_api::openai::ChatRequest;
use rbee_http::{ApiError, ForwardedBody, RawJson, RequestContext};

use super::{App, deadline};
use crate::engine::backend::Conversation;
use crate::generation::{Generation, Request};
use crate::reply::{Dialect, Heading};
use crate::stream::respond;

pub(super) async fn complete(
    State(app): State<App>,
    context: RequestContext,
    headers: HeaderMap,
    RawJson(body): RawJson,
) -> Result<Response, ApiError> {
    let deadline = deadline(&headers)?;
    let forwarded = ForwardedBody::split(&headers, body)?;
    let ChatRequest { model, messages, tools, thinking, generation: options, stream } =
        ChatRequest::parse(&forwarded.client)?;
    let marks = app.marks(&forwarded, stream, options.choices)?;
    let heading = Heading::new(Dialect::Chat, model.to_string(), marks.head());
    let request = Request {
        id: context.id,
        scope: app.scope(&headers, options.user.as_deref())?,
        model,
        options,
        deadline,
        marks,
        param: "messages",
        // A grammar is made of the tools, which takes longer than any short prompt.
        prompt_bytes: if tools.tools.is_empty() {
            messages.iter().map(|message| message.content.len()).sum()
        } else {
            usize::MAX
        },
    };
    let conversation = Conversation { messages, tools, thinking };
    let generation =
        Generation::start(&app, request, move |tokenizer| tokenizer.chat(&conversation)).await?;
    respond(generation, heading, stream).await
}
