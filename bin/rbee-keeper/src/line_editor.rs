//! Lines typed at a terminal, with editing and the history of this session. Owns the thread that reads them, and puts
//! the terminal back as it was, however the chat ends.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use rustyline::Editor;
use rustyline::config::Configurer as _;
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use tokio::sync::oneshot;

use crate::error::KeeperError;

const PROMPT: &str = ">>> ";
/// Prompts that the arrow keys can bring back.
const HISTORY_MAX: usize = 1000;

/// What the person did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// Typed a line.
    Line(String),
    /// Pressed Ctrl-C.
    Interrupt,
    /// Pressed Ctrl-D, or the terminal is gone.
    End,
}

/// Reads lines on a thread of its own, because reading a terminal cannot be cancelled.
#[derive(Debug)]
pub(crate) struct LineEditor {
    requests: SyncSender<oneshot::Sender<io::Result<Typed>>>,
    _mode: ModeGuard,
}

impl LineEditor {
    /// Prepares the terminal.
    ///
    /// # Errors
    /// [`KeeperError::Setup`].
    pub(crate) fn open() -> Result<Self, KeeperError> {
        let setup = |source| KeeperError::Setup { action: "edit lines on this terminal", source };
        let mode = ModeGuard::save().map_err(setup)?;
        let (requests, to_read) = sync_channel::<oneshot::Sender<io::Result<Typed>>>(1);
        let run = move || {
            let mut editor = open_editor();
            for reply in to_read {
                let typed = match &mut editor {
                    Ok(editor) => read_line(editor),
                    Err(error) => Err(io::Error::other(error.to_string())),
                };
                // The chat may have ended meanwhile; then nobody waits for the line.
                reply.send(typed).ok();
            }
        };
        thread::Builder::new().name("line-editor".to_owned()).spawn(run).map_err(setup)?;
        Ok(Self { requests, _mode: mode })
    }

    /// Waits for the next line. When dropped, the thread keeps reading until the process ends.
    ///
    /// # Errors
    /// [`KeeperError::Input`].
    pub(crate) async fn read(&mut self) -> Result<Typed, KeeperError> {
        let (reply, typed) = oneshot::channel();
        let gone = || KeeperError::Input(io::Error::other("the line editor has ended"));
        self.requests.try_send(reply).map_err(|_| gone())?;
        typed.await.map_err(|_| gone())?.map_err(KeeperError::Input)
    }
}

fn open_editor() -> rustyline::Result<Editor<(), MemHistory>> {
    let mut editor = Editor::with_history(rustyline::Config::default(), MemHistory::new())?;
    editor.set_max_history_size(HISTORY_MAX)?;
    editor.set_auto_add_history(true);
    Ok(editor)
}

fn read_line(editor: &mut Editor<(), MemHistory>) -> io::Result<Typed> {
    match editor.readline(PROMPT) {
        Ok(line) => Ok(Typed::Line(line)),
        Err(ReadlineError::Interrupted) => Ok(Typed::Interrupt),
        Err(ReadlineError::Eof) => Ok(Typed::End),
        Err(error) => Err(io::Error::other(error.to_string())),
    }
}

/// The terminal's settings before anybody changed them.
#[derive(Debug)]
struct ModeGuard {
    settings: Termios,
}

impl ModeGuard {
    fn save() -> io::Result<Self> {
        Ok(Self { settings: tcgetattr(io::stdin())? })
    }
}

impl Drop for ModeGuard {
    fn drop(&mut self) {
        // The terminal may be gone; then it needs no settings.
        tcsetattr(io::stdin(), OptionalActions::Now, &self.settings).ok();
    }
}
