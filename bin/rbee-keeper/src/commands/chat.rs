//! The chat of `rbee run MODEL` at a terminal. Owns the conversation and its commands; Ctrl-C cancels one reply, and
//! at an empty prompt the chat.

use rbee_api::limits::MESSAGES_MAX;
use rbee_home::ExitStatus;

use super::run::tell;
use crate::error::KeeperError;
use crate::generation::{Message, Request};
use crate::interrupt::{Signals, Stop};
use crate::keeper::Keeper;
use crate::line_editor::{LineEditor, Typed};
use crate::prompt;
use crate::queen_client::QueenClient;

const WELCOME: &str = "/help shows the commands, /bye or Ctrl-D leaves";

const HELP: &str = "\
/bye      leave; Ctrl-D does too
/clear    forget the conversation
/help     this text
Ctrl-C    cancel the reply; at an empty prompt, twice to leave
Up, Down  earlier prompts
A pasted text stays in one piece.";

/// What a line means.
#[derive(Debug, PartialEq, Eq)]
enum Line<'t> {
    Leave,
    Clear,
    Help,
    Unknown(&'t str),
    Nothing,
    Prompt(&'t str),
}

pub(super) async fn chat(
    keeper: &Keeper,
    request: &Request<'_>,
    signals: &mut Signals,
) -> Result<ExitStatus, KeeperError> {
    let queen = signals.unless_stopped(Box::pin(keeper.ensure_queen())).await?;
    let output = &keeper.output;
    let mut conversation = Conversation::new(request.args.system.clone());
    let mut editor = LineEditor::open()?;
    let mut interrupted = false;
    output.note(WELCOME);
    loop {
        let typed = signals.unless_stopped(editor.read()).await?;
        let text = match typed {
            Typed::Line(text) => text,
            Typed::End => return Ok(ExitStatus::Success),
            Typed::Interrupt if interrupted => return Err(KeeperError::Stopped(Stop::Interrupt)),
            Typed::Interrupt => {
                interrupted = true;
                output.note("Ctrl-C again leaves");
                continue;
            }
        };
        interrupted = false;
        match meaning(&text) {
            Line::Leave => return Ok(ExitStatus::Success),
            Line::Clear => conversation.clear(),
            Line::Help => output.note(HELP),
            Line::Unknown(command) => {
                output.note(&format!("there is no {command}; /help shows the commands"))
            }
            Line::Nothing => {}
            Line::Prompt(prompt) => {
                turn(keeper, &queen, request, signals, &mut conversation, prompt).await?
            }
        }
    }
}

fn meaning(text: &str) -> Line<'_> {
    match text.trim() {
        "" => Line::Nothing,
        "/bye" | "/exit" | "/quit" => Line::Leave,
        "/clear" => Line::Clear,
        "/help" | "/?" => Line::Help,
        // A path is no command.
        word if word.starts_with('/')
            && !word.contains([' ', '\n'])
            && word.matches('/').count() == 1 =>
        {
            Line::Unknown(word)
        }
        prompt => Line::Prompt(prompt),
    }
}

/// One prompt and its reply. What goes wrong is told, and the chat goes on; only SIGTERM and a lost terminal end it.
async fn turn(
    keeper: &Keeper,
    queen: &QueenClient,
    request: &Request<'_>,
    signals: &mut Signals,
    conversation: &mut Conversation,
    prompt: &str,
) -> Result<(), KeeperError> {
    if let Err(error) = prompt::check(prompt) {
        keeper.output.error(&error);
        return Ok(());
    }
    conversation.ask(prompt);
    let mut text = String::new();
    let result = {
        let mut reply = keeper.output.reply();
        let messages = conversation.messages();
        let work = request.generate(queen, &keeper.output, messages, &mut text, Some(&mut reply));
        signals.unless_stopped(Box::pin(work)).await
    };
    conversation.answer(text);
    match result {
        Ok(answer) => tell(keeper, request, &answer),
        Err(KeeperError::Stopped(Stop::Interrupt)) => keeper.output.note("cancelled"),
        Err(error @ (KeeperError::Stopped(Stop::Terminate) | KeeperError::Output(_))) => {
            return Err(error);
        }
        Err(error) => keeper.output.error(&error),
    }
    Ok(())
}

/// What has been said so far.
struct Conversation {
    messages: Vec<Message>,
    system: usize,
}

impl Conversation {
    fn new(system: Option<String>) -> Self {
        let messages: Vec<Message> =
            system.map(|content| Message { role: "system", content }).into_iter().collect();
        Self { system: messages.len(), messages }
    }

    fn messages(&self) -> &[Message] {
        &self.messages
    }

    fn clear(&mut self) {
        self.messages.truncate(self.system);
    }

    /// Adds a prompt. The oldest turns make room when the queen would take no more.
    fn ask(&mut self, prompt: &str) {
        while self.messages.len() + 2 > MESSAGES_MAX {
            self.messages.drain(self.system..self.system + 2);
        }
        self.messages.push(Message { role: "user", content: prompt.to_owned() });
    }

    /// Adds the reply, or what has come of it; without any, the prompt is as if never said.
    fn answer(&mut self, text: String) {
        if text.is_empty() {
            self.messages.pop();
        } else {
            self.messages.push(Message { role: "assistant", content: text });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_begins_a_command_but_not_a_path() {
        for (typed, expected) in [
            ("/bye", Line::Leave),
            (" /clear ", Line::Clear),
            ("/?", Line::Help),
            ("/nope", Line::Unknown("/nope")),
            ("/etc/passwd", Line::Prompt("/etc/passwd")),
            ("/ is a slash", Line::Prompt("/ is a slash")),
            ("  ", Line::Nothing),
            (" hi ", Line::Prompt("hi")),
        ] {
            assert_eq!(meaning(typed), expected, "{typed}");
        }
    }

    #[test]
    fn a_turn_without_reply_leaves_no_trace() {
        let mut talk = Conversation::new(Some("be brief".to_owned()));
        talk.ask("a");
        talk.answer("b".to_owned());
        talk.ask("c");
        talk.answer(String::new());
        let said: Vec<&str> = talk.messages().iter().map(|m| m.content.as_str()).collect();
        assert_eq!(said, ["be brief", "a", "b"]);
        talk.clear();
        assert_eq!(talk.messages().len(), 1);
    }

    #[test]
    fn a_long_chat_forgets_its_oldest_turns() {
        let mut talk = Conversation::new(Some("be brief".to_owned()));
        for turn in 0..MESSAGES_MAX {
            talk.ask(&turn.to_string());
            assert!(talk.messages().len() < MESSAGES_MAX);
            talk.answer("yes".to_owned());
        }
        let roles: Vec<&str> = talk.messages().iter().take(3).map(|m| m.role).collect();
        assert_eq!(roles, ["system", "user", "assistant"]);
    }
}
