//! `POST /v1/completions`.

use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use rbee_api::openai::{CompletionPrompt, CompletionRequest};
use rbee_http::{ApiError, ForwardedBody, RawJson, RequestContext};

use super::{App, deadline};
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
    let CompletionRequest { model, prompt, generation: options, stream } =
        CompletionRequest::parse(&forwarded.client)?;
    let marks = app.marks(&forwarded, stream, options.choices)?;
    let heading = Heading::new(Dialect::Completion, model.to_string(), marks.head());
    let request = Request {
        id: context.id,
        scope: app.scope(&headers, options.user.as_deref())?,
        model,
        options,
        deadline,
        marks,
        param: "prompt",
        prompt_bytes: match &prompt {
            CompletionPrompt::Text(text) => text.len(),
            CompletionPrompt::Tokens(tokens) => tokens.len(),
        },
    };
    let generation = Generation::start(&app, request, move |tokenizer| match &prompt {
        CompletionPrompt::Text(text) => tokenizer.text(text).map(Into::into),
        CompletionPrompt::Tokens(tokens) => tokenizer.tokens(tokens).map(Into::into),
    })
    .await?;
    respond(generation, heading, stream).await
}
