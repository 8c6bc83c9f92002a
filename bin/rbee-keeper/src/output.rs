//! The terminal. The only file that writes to it: data to standard output, everything else to standard error. Knows
//! whether each is a terminal, what to colour, and what `--json`, `-q` and `-v` mean.

use std::fmt::Write as _;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use anstream::{AutoStream, ColorChoice};
use clap::builder::styling::{AnsiColor, Style};
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use input_validation::sanitize_for_terminal;
use serde::Serialize;

use crate::cli::{ColorWhen, GlobalArgs};
use crate::error::KeeperError;

/// Frames a second are enough for a spinner.
const TICK: Duration = Duration::from_millis(100);

const ERROR: Style = AnsiColor::Red.on_default().bold();
const HINT: Style = AnsiColor::Cyan.on_default().bold();
const HEADER: Style = Style::new().bold();
const THOUGHT: Style = Style::new().dimmed();

/// How much to say on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chatter {
    /// Only errors.
    Quiet,
    /// What takes time, too.
    Normal,
    /// Figures, too.
    Verbose,
}

/// Where and how this process shows things.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
    chatter: Chatter,
    color: ColorChoice,
    stdout_is_terminal: bool,
    stderr_is_terminal: bool,
}

/// Shows clap's own text: help and version on standard output, a usage error on standard error, with `json` as one line.
pub(crate) fn show_usage(text: &clap::Error, json: bool) {
    let rendered = text.render();
    if text.use_stderr() && json {
        let error = KeeperError::from_arguments(&rendered.to_string());
        writeln!(io::stderr(), "{}", error.to_json()).ok();
    } else if text.use_stderr() {
        write!(anstream::stderr(), "{}", rendered.ansi()).ok();
    } else {
        write!(anstream::stdout(), "{}", rendered.ansi()).ok();
    }
}

impl Output {
    pub(crate) fn new(args: &GlobalArgs) -> Self {
        let chatter = match (args.quiet, args.verbose) {
            (true, _) => Chatter::Quiet,
            (false, true) => Chatter::Verbose,
            // A program that reads JSON has no use for progress.
            (false, false) if args.json => Chatter::Quiet,
            (false, false) => Chatter::Normal,
        };
        Self {
            json: args.json,
            chatter,
            color: match args.color {
                ColorWhen::Auto => ColorChoice::Auto,
                ColorWhen::Always => ColorChoice::Always,
                ColorWhen::Never => ColorChoice::Never,
            },
            stdout_is_terminal: io::stdout().is_terminal(),
            stderr_is_terminal: io::stderr().is_terminal(),
        }
    }

    /// Answers whether data is to be JSON.
    pub(crate) const fn is_json(&self) -> bool {
        self.json
    }

    /// Answers whether a person can be asked: somebody reads standard error and types on standard input.
    pub(crate) fn can_ask(&self) -> bool {
        self.stderr_is_terminal && io::stdin().is_terminal()
    }

    /// Prints one JSON value on a line of its own.
    pub(crate) fn json<T: Serialize>(&self, value: &T) -> Result<(), KeeperError> {
        let mut line = serde_json::to_vec(value)
            .map_err(|error| KeeperError::Output(io::Error::other(error)))?;
        line.push(b'\n');
        write_data(&line)
    }

    /// Prints one line of data.
    pub(crate) fn line(&self, text: &str) -> Result<(), KeeperError> {
        write_data(format!("{}\n", self.for_stdout(text)).as_bytes())
    }

    /// Prints text that another program will read, as it is.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), KeeperError> {
        write_data(bytes)
    }

    /// Prints a piece of somebody else's text, harmless for a terminal.
    pub(crate) fn text(&self, text: &str) -> Result<(), KeeperError> {
        write_data(self.for_stdout(text).as_bytes())
    }

    /// Prints rows under headers.
    pub(crate) fn table<const N: usize>(
        &self,
        headers: [&str; N],
        rows: impl IntoIterator<Item = [String; N]>,
    ) -> Result<(), KeeperError> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(headers.to_vec());
        for row in rows {
            table.add_row(row.map(|cell| sanitize_for_terminal(&cell).into_owned()).to_vec());
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let mut text = String::new();
        for (index, line) in table.lines().enumerate() {
            let line = line.trim_end();
            // Writing to a String cannot fail.
            if index == 0 {
                writeln!(text, "{HEADER}{line}{HEADER:#}").ok();
            } else {
                writeln!(text, "{line}").ok();
            }
        }
        let mut stdout = AutoStream::new(io::stdout(), self.color);
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(KeeperError::Output)
    }

    /// Says what happens, on standard error.
    pub(crate) fn note(&self, text: &str) {
        if self.chatter != Chatter::Quiet {
            self.stderr(&sanitize_for_terminal(text));
        }
    }

    /// Says what only the curious want to know.
    pub(crate) fn detail(&self, text: &str) {
        if self.chatter == Chatter::Verbose {
            self.stderr(&sanitize_for_terminal(text));
        }
    }

    /// Says why the command failed and what to do.
    pub(crate) fn error(&self, error: &KeeperError) {
        if self.json {
            self.stderr(&error.to_json().to_string());
            return;
        }
        let report = rbee_home::report_error(error, error.hint().as_deref());
        for line in report.lines() {
            let painted = [("error:", ERROR), ("hint:", HINT)].iter().find_map(|(label, style)| {
                line.strip_prefix(label)
                    .map(|rest| format!("{style}{label}{style:#}{}", sanitize_for_terminal(rest)))
            });
            self.stderr(&painted.unwrap_or_else(|| sanitize_for_terminal(line).into_owned()));
        }
    }

    /// Shows that something takes time: a spinner on a terminal, a line elsewhere.
    pub(crate) fn activity(&self, message: String) -> Activity {
        let bar = if self.chatter == Chatter::Quiet || !self.stderr_is_terminal {
            self.note(&format!("{message} …"));
            None
        } else {
            let style = ProgressStyle::with_template("{spinner} {msg} … {elapsed}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let target = ProgressDrawTarget::stderr();
            let bar =
                ProgressBar::with_draw_target(None, target).with_style(style).with_message(message);
            bar.enable_steady_tick(TICK);
            Some(bar)
        };
        Activity { bar }
    }

    /// Shows how many bytes are done: a bar on a terminal, nothing elsewhere.
    pub(crate) fn progress(&self, message: String) -> Progress {
        let bar = (self.chatter != Chatter::Quiet && self.stderr_is_terminal).then(|| {
            let template = "{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {eta}";
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let target = ProgressDrawTarget::stderr();
            ProgressBar::with_draw_target(Some(0), target).with_style(style).with_message(message)
        });
        Progress { bar }
    }

    /// Starts a reply on standard output.
    pub(crate) fn reply(&self) -> Reply<'_> {
        Reply { output: self, at_line_start: true, thoughts: Thoughts::None }
    }

    /// Asks on standard error; anything but yes is no.
    pub(crate) async fn confirm(&self, question: &str) -> Result<bool, KeeperError> {
        let mut stderr = io::stderr();
        write!(stderr, "{} [y/N] ", sanitize_for_terminal(question))
            .and_then(|()| stderr.flush())
            .ok();
        let read = tokio::task::spawn_blocking(|| {
            let mut answer = String::new();
            io::stdin().lock().read_line(&mut answer).map(|_| answer)
        });
        let answer = read.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let answer = answer.map_err(KeeperError::Input)?;
        Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
    }

    fn for_stdout<'t>(&self, text: &'t str) -> std::borrow::Cow<'t, str> {
        if self.stdout_is_terminal {
            sanitize_for_terminal(text)
        } else {
            std::borrow::Cow::Borrowed(text)
        }
    }

    fn stderr(&self, line: &str) {
        self.stderr_piece(&format!("{line}\n"));
    }

    /// There is nobody left to tell when standard error fails.
    fn stderr_piece(&self, piece: &str) {
        let mut stderr = AutoStream::new(io::stderr(), self.color);
        write!(stderr, "{piece}").and_then(|()| stderr.flush()).ok();
    }
}

fn write_data(bytes: &[u8]) -> Result<(), KeeperError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(KeeperError::Output)
}

/// Something that takes time; stops being shown when dropped.
#[derive(Debug)]
pub(crate) struct Activity {
    bar: Option<ProgressBar>,
}

impl Activity {
    /// Says something else from now on. On what is no terminal nothing more is said.
    pub(crate) fn say(&self, message: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(message);
        }
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Bytes on their way; stops being shown when dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn set(&self, done_bytes: u64, total_bytes: u64) {
        if let Some(bar) = &self.bar {
            if bar.length() != Some(total_bytes) {
                bar.set_length(total_bytes);
            }
            bar.set_position(done_bytes);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// How much of a model's thoughts stands on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thoughts {
    None,
    /// They end within a line, or at the end of one.
    Open {
        at_line_start: bool,
    },
}

/// A model's reply on its way to standard output, piece by piece; what it thinks goes to standard error. However it ends, what comes after it begins on a
/// line of its own, on a terminal and in a pipe or file; where nothing came, nothing is printed.
#[derive(Debug)]
pub(crate) struct Reply<'o> {
    output: &'o Output,
    at_line_start: bool,
    thoughts: Thoughts,
}

impl Reply<'_> {
    /// Shows a piece of what the model thinks before it answers.
    pub(crate) fn think(&mut self, piece: &str) {
        if !piece.is_empty() && self.output.chatter != Chatter::Quiet {
            let shown = sanitize_for_terminal(piece);
            self.output.stderr_piece(&format!("{THOUGHT}{shown}{THOUGHT:#}"));
            self.thoughts = Thoughts::Open { at_line_start: piece.ends_with('\n') };
        }
    }

    /// Sets thoughts apart from what follows them by an empty line.
    fn end_thoughts(&mut self) {
        match std::mem::replace(&mut self.thoughts, Thoughts::None) {
            Thoughts::None => {}
            Thoughts::Open { at_line_start: true } => self.output.stderr_piece("\n"),
            Thoughts::Open { at_line_start: false } => self.output.stderr_piece("\n\n"),
        }
    }

    /// Prints one piece at once. To a pipe or file its bytes go as they came.
    pub(crate) fn write(&mut self, piece: &str) -> Result<(), KeeperError> {
        if !piece.is_empty() {
            self.end_thoughts();
            self.at_line_start = piece.ends_with('\n');
            self.output.text(piece)?;
        }
        Ok(())
    }
}

impl Drop for Reply<'_> {
    fn drop(&mut self) {
        self.end_thoughts();
        if !self.at_line_start {
            // The reader may be gone; then there is no line to end.
            write_data(b"\n").ok();
        }
    }
}
