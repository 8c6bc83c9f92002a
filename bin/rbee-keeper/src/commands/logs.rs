//! `rbee logs`: the last lines of a log, and with `-f` the ones to come. The logs of queen and hive are files of this
//! computer; a worker's comes through the queen.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{StreamExt as _, pin_mut};
use input_validation::WorkerId;
use rbee_home::Daemon;
use rbee_http::open_at_last_lines;

use crate::cli::LogsArgs;
use crate::error::KeeperError;
use crate::keeper::Keeper;
use crate::model_argument::parse;

/// How often a followed file is looked at: at once, as a reader sees it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A line longer than this is shown in pieces.
const LINE_BYTES_MAX: usize = 1024 * 1024;

pub(super) async fn logs(keeper: &Keeper, args: LogsArgs) -> Result<(), KeeperError> {
    match args.program.as_str() {
        "queen" | "queen-rbee" => file(keeper, Daemon::Queen, &args).await,
        "hive" | "rbee-hive" => file(keeper, Daemon::Hive, &args).await,
        worker => {
            let id: WorkerId = parse("the worker's id", worker)?;
            from_queen(keeper, &id, &args).await
        }
    }
}

async fn file(keeper: &Keeper, daemon: Daemon, args: &LogsArgs) -> Result<(), KeeperError> {
    if let Some(url) = &keeper.config.queen_url {
        return Err(KeeperError::usage(
            format!("the log of {daemon} lies on the machine behind {url}"),
            "run `rbee logs` there, or leave --queen and RBEE_QUEEN_URL out for this computer's",
        ));
    }
    let path = keeper.home()?.daemon_log(daemon);
    let mut tail = Tail::open(&path, args.lines).map_err(failed(&path))?;
    let mut lines = Lines::default();
    loop {
        for line in lines.take(&tail.read_new().map_err(failed(&path))?) {
            keeper.output.line(&line)?;
        }
        if !args.follow {
            return lines.rest().map_or(Ok(()), |line| keeper.output.line(&line));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn from_queen(keeper: &Keeper, id: &WorkerId, args: &LogsArgs) -> Result<(), KeeperError> {
    let queen = keeper.running_queen().await?;
    let pieces = queen.worker_log(id, args.lines, args.follow).await?;
    pin_mut!(pieces);
    let mut lines = Lines::default();
    while let Some(piece) = pieces.next().await {
        for line in lines.take(&piece?) {
            keeper.output.line(&line)?;
        }
    }
    lines.rest().map_or(Ok(()), |line| keeper.output.line(&line))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> KeeperError {
    let path = path.to_owned();
    move |source| KeeperError::Log { path: path.clone(), source }
}

/// The end of a file that may grow, be cut, or be moved aside and begun anew.
struct Tail {
    path: PathBuf,
    file: File,
    position: u64,
}

impl Tail {
    /// Opens the file at its last `lines` lines.
    fn open(path: &Path, lines: usize) -> io::Result<Self> {
        let mut file = open_at_last_lines(path, lines)?;
        let position = file.stream_position()?;
        Ok(Self { path: path.to_owned(), file, position })
    }

    /// Reads the next block of what has not been read yet, and more blocks as long as there are any.
    fn read_new(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // Looked at before reading: nothing is added to the file any more once another one has its name.
        let next = self.path.metadata().ok();
        self.read_on(&mut bytes)?;
        let (next, now) = (next.map(|file| file.ino()), self.file.metadata()?.ino());
        if next.is_some_and(|next| next != now) {
            self.file = File::open(&self.path)?;
            self.position = 0;
            self.read_on(&mut bytes)?;
        }
        Ok(bytes)
    }

    fn read_on(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        if self.file.metadata()?.len() < self.position {
            self.position = 0;
        }
        self.file.seek(SeekFrom::Start(self.position))?;
        self.position += self.file.read_to_end(bytes)? as u64;
        Ok(())
    }
}

/// Bytes cut into lines.
#[derive(Default)]
struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    /// Takes bytes in and gives whole lines out.
    fn take(&mut self, bytes: &[u8]) -> Vec<String> {
        self.pending.extend_from_slice(bytes);
        let end = match self.pending.iter().rposition(|byte| *byte == b'\n') {
            Some(index) => index + 1,
            None if self.pending.len() > LINE_BYTES_MAX => self.pending.len(),
            None => 0,
        };
        let whole: Vec<u8> = self.pending.drain(..end).collect();
        String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect()
    }

    /// Gives out the line that has no end.
    fn rest(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.pending);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_is_added_and_what_begins_anew_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "old\nolder\n").unwrap();
        let mut tail = Tail::open(&path, 1).unwrap();
        assert_eq!(tail.read_new().unwrap(), b"older\n");
        assert_eq!(tail.read_new().unwrap(), b"");
        File::options().append(true).open(&path).unwrap().write_all(b"new\n").unwrap();
        assert_eq!(tail.read_new().unwrap(), b"new\n");
        std::fs::write(&path, "again\n").unwrap();
        assert_eq!(tail.read_new().unwrap(), b"again\n");
        let mut aside = File::options().append(true).open(&path).unwrap();
        std::fs::rename(&path, dir.path().join("log.1")).unwrap();
        aside.write_all(b"last\n").unwrap();
        assert_eq!(tail.read_new().unwrap(), b"last\n");
        std::fs::write(&path, "first\n").unwrap();
        assert_eq!(tail.read_new().unwrap(), b"first\n");
    }

    #[test]
    fn lines_are_whole_however_the_bytes_are_cut() {
        let text = "grün\nß\r\nend";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let mut seen: Vec<String> =
                text.as_bytes().chunks(size).flat_map(|piece| lines.take(piece)).collect();
            seen.extend(lines.rest());
            assert_eq!(seen, ["grün", "ß", "end"], "cut every {size} bytes");
        }
    }
}
