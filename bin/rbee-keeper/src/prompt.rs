//! Where the prompt comes from: the arguments, standard input, or nowhere, which at a terminal means a chat.

use std::io::{self, IsTerminal as _, Read as _};

use input_validation::validate_prompt;
use rbee_api::limits::BODY_BYTES_MAX;
use rustix::io::ioctl_fionread;

use crate::cli::RunArgs;
use crate::error::KeeperError;

/// Stands for standard input.
const STDIN: &str = "-";

/// Said where something is piped in that the prompt does not ask for.
pub(crate) const LEFT_OUT: &str =
    "standard input is not read; end the words with `-` (without -p) to put it after them";

const HINT: &str = "write it after the model, or pass it on standard input";

/// What was typed, sorted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The model, as typed.
    pub(crate) model: String,
    /// The prompt.
    pub(crate) prompt: Source,
}

/// Where the prompt comes from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The arguments.
    Typed(String),
    /// Standard input, after these words.
    Stdin {
        /// What was typed before the `-`; may be empty.
        before: String,
    },
    /// A person at the terminal, turn by turn.
    Chat,
}

/// Sorts the words of `rbee run` into model and prompt.
///
/// # Errors
/// [`KeeperError::Usage`].
pub(crate) fn sort(
    args: &RunArgs,
    stdin_is_terminal: bool,
    may_ask: bool,
) -> Result<Asked, KeeperError> {
    let mut words = args.words.iter().map(String::as_str);
    let model = args.model.as_deref().or_else(|| words.next()).ok_or_else(|| {
        KeeperError::usage(
            "no model is named",
            "rbee run MODEL [PROMPT]; `rbee list` shows the models",
        )
    })?;
    let words: Vec<&str> = words.collect();
    let prompt = match (args.prompt.as_deref(), words.as_slice()) {
        (Some(_), [_, ..]) => {
            let hint = "use either -p or the words after the model";
            return Err(KeeperError::usage("the prompt is given twice", hint));
        }
        (Some(STDIN), []) => Source::Stdin { before: String::new() },
        (Some(prompt), []) => Source::Typed(prompt.to_owned()),
        (None, [before @ .., STDIN]) => Source::Stdin { before: before.join(" ") },
        (None, words @ [_, ..]) => Source::Typed(words.join(" ")),
        (None, []) if !stdin_is_terminal => Source::Stdin { before: String::new() },
        (None, []) if may_ask => Source::Chat,
        (None, []) => return Err(KeeperError::usage("there is no prompt", HINT)),
    };
    Ok(Asked { model: model.to_owned(), prompt })
}

/// Answers whether standard input is a terminal.
pub(crate) fn stdin_is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Answers whether something is piped in that waits to be read. What comes later is not waited for.
pub(crate) fn stdin_waits() -> bool {
    let stdin = io::stdin();
    !stdin.is_terminal() && ioctl_fionread(&stdin).is_ok_and(|bytes| bytes > 0)
}

/// Reads standard input to its end and puts it after `before`.
///
/// # Errors
/// [`KeeperError::Input`], and [`KeeperError::Usage`] for what is no text or too long.
pub(crate) async fn read_stdin(before: String) -> Result<String, KeeperError> {
    let read = tokio::task::spawn_blocking(|| {
        let mut bytes = Vec::new();
        // One byte more than the limit shows that there was more.
        let limit = BODY_BYTES_MAX as u64 + 1;
        io::stdin().lock().take(limit).read_to_end(&mut bytes).map(|_| bytes)
    });
    let bytes = read.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    let text = String::from_utf8(bytes.map_err(KeeperError::Input)?).map_err(|_not_text| {
        KeeperError::usage("standard input is not UTF-8 text", "a prompt is text; convert it first")
    })?;
    let text = text.trim_end_matches(['\r', '\n']);
    Ok(if before.is_empty() { text.to_owned() } else { format!("{before}\n\n{text}") })
}

/// Refuses a prompt that no model can answer.
///
/// # Errors
/// [`KeeperError::Usage`] and [`KeeperError::Invalid`].
pub(crate) fn check(prompt: &str) -> Result<(), KeeperError> {
    if prompt.trim().is_empty() {
        return Err(KeeperError::usage("the prompt is empty", HINT));
    }
    validate_prompt(prompt, BODY_BYTES_MAX)
        .map_err(|source| KeeperError::Invalid { what: "the prompt".to_owned(), source })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn asked(typed: &[&str], stdin_is_terminal: bool) -> Result<Asked, KeeperError> {
        let typed = ["rbee", "run"].iter().chain(typed);
        match Cli::try_parse_from(typed).unwrap().command {
            Command::Run(args) => sort(&args, stdin_is_terminal, true),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_way_to_say_it_is_understood() {
        let typed = |text: &str| Source::Typed(text.to_owned());
        let stdin = |before: &str| Source::Stdin { before: before.to_owned() };
        for (words, terminal, model, prompt) in [
            (&["m", "hi"][..], true, "m", typed("hi")),
            (&["m", "why", "is", "it?"], true, "m", typed("why is it?")),
            (&["-m", "m", "-p", "hi"], true, "m", typed("hi")),
            (&["-m", "m", "hi", "you"], true, "m", typed("hi you")),
            (&["m", "-p", "hi"], false, "m", typed("hi")),
            (&["-m", "m", "-p", "-"], true, "m", stdin("")),
            (&["m", "-"], true, "m", stdin("")),
            (&["m", "sum", "up:", "-"], true, "m", stdin("sum up:")),
            (&["m"], false, "m", stdin("")),
            (&["m"], true, "m", Source::Chat),
        ] {
            let asked = asked(words, terminal).unwrap();
            assert_eq!((asked.model.as_str(), asked.prompt), (model, prompt), "{words:?}");
        }
    }

    #[test]
    fn what_is_missing_or_said_twice_is_wrong_usage() {
        for words in [&[][..], &["-p", "hi"], &["m", "hi", "-p", "ho"]] {
            assert_eq!(asked(words, true).unwrap_err().exit_code(), 2, "{words:?}");
        }
        for prompt in ["", " \n\t", "a\0b"] {
            assert_eq!(check(prompt).unwrap_err().exit_code(), 2, "{prompt:?}");
        }
        check("hi").unwrap();
    }
}
