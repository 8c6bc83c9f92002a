//! `rbee run`: one prompt, or a chat.

use rbee_api::limits::STOP_SEQUENCES_MAX;
use rbee_home::ExitStatus;

use super::chat;
use crate::cli::RunArgs;
use crate::error::KeeperError;
use crate::generation::{Answer, Message, Request};
use crate::interrupt::Signals;
use crate::keeper::Keeper;
use crate::model_argument::known_model;
use crate::prompt::{self, Source};

pub(super) async fn run(
    keeper: &Keeper,
    args: &RunArgs,
    signals: &mut Signals,
) -> Result<ExitStatus, KeeperError> {
    if args.stop.len() > STOP_SEQUENCES_MAX {
        let message = format!("--stop is given more than {STOP_SEQUENCES_MAX} times");
        return Err(KeeperError::usage(message, "leave some out"));
    }
    let may_chat = keeper.may_ask && !keeper.output.is_json();
    let asked = prompt::sort(args, prompt::stdin_is_terminal(), may_chat)?;
    let model = known_model(&asked.model)?;
    let request = Request { model: &model, args };
    let source = match asked.prompt {
        Source::Chat => return chat::chat(keeper, &request, signals).await,
        Source::Typed(prompt) => {
            if prompt::stdin_waits() {
                keeper.output.note(prompt::LEFT_OUT);
            }
            Prompt::Typed(prompt)
        }
        Source::Stdin { before } => Prompt::Stdin { before },
    };
    signals.unless_stopped(Box::pin(answer(keeper, &request, source))).await?;
    Ok(ExitStatus::Success)
}

enum Prompt {
    Typed(String),
    Stdin { before: String },
}

async fn answer(keeper: &Keeper, request: &Request<'_>, source: Prompt) -> Result<(), KeeperError> {
    let prompt = match source {
        Prompt::Typed(prompt) => prompt,
        Prompt::Stdin { before } => prompt::read_stdin(before).await?,
    };
    prompt::check(&prompt)?;
    let system = request.args.system.clone().map(|content| Message { role: "system", content });
    let user = Message { role: "user", content: prompt };
    let messages: Vec<Message> = system.into_iter().chain([user]).collect();

    let queen = keeper.ensure_queen().await?;
    let output = &keeper.output;
    let mut text = String::new();
    let answer = if output.is_json() {
        let answer = request.generate(&queen, output, &messages, &mut text, None).await?;
        output.json(&answer)?;
        answer
    } else {
        let mut reply = output.reply();
        request.generate(&queen, output, &messages, &mut text, Some(&mut reply)).await?
    };
    tell(keeper, request, &answer);
    Ok(())
}

/// Says on standard error what a reply was like.
pub(super) fn tell(keeper: &Keeper, request: &Request<'_>, answer: &Answer) {
    if let Some(note) = answer.cut_off(request.args) {
        keeper.output.note(note);
    }
    keeper.output.detail(&answer.summary());
}
