//! The file that a daemon logs to, kept within its bound: what was written is moved aside once, to `….1`, and a new file
//! is begun in its place. Only a file that this process was told of is moved, and only where its standard error is that file.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use rustix::stdio::{dup2_stderr, dup2_stdout};

/// Bits by which a number of MiB is shifted to become bytes.
const MIB_SHIFT: u32 = 20;
/// Logs hold what clients ask for, by model and by key.
const FILE_MODE: u32 = 0o600;

static BOUNDED: OnceLock<LogFile> = OnceLock::new();

/// Keeps the log at `path` within `max_mib` MiB, and as much again of what came before, from now on and for the life of
/// the process. The first call counts. Does nothing where standard error is another file, or none.
pub fn bound_log(path: &Path, max_mib: u64) {
    if !is_standard_error(path) {
        return;
    }
    let written = AtomicU64::new(path.metadata().map_or(0, |metadata| metadata.len()));
    let file = LogFile {
        path: path.to_owned(),
        max_bytes: max_mib << MIB_SHIFT,
        written,
        turn: Mutex::new(()),
    };
    BOUNDED.get_or_init(|| file);
}

/// Takes note of what was written to standard error.
pub(crate) fn wrote(bytes: usize) {
    if let Some(file) = BOUNDED.get() {
        file.wrote(bytes as u64);
    }
}

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    max_bytes: u64,
    /// Since it was begun, or since it could not be moved aside.
    written: AtomicU64,
    /// Held by the thread that moves it aside.
    turn: Mutex<()>,
}

impl LogFile {
    fn wrote(&self, bytes: u64) {
        if self.written.fetch_add(bytes, Ordering::Relaxed) + bytes < self.max_bytes {
            return;
        }
        let Ok(_turn) = self.turn.try_lock() else { return };
        self.written.store(0, Ordering::Relaxed);
        // Where it fails, the disk or its owner will have the last word: lines are worth more than their bound.
        begin_anew(&self.path).ok();
    }
}

/// Has this process write to a new file, and puts that in the place of the one before, which is moved aside. No line is
/// lost, and whoever finds a new file at `path` finds nothing added to the other one from then on.
fn begin_anew(path: &Path) -> io::Result<()> {
    if !is_standard_error(path) {
        return Ok(());
    }
    let new = beside(path, ".new");
    let file = OpenOptions::new().append(true).create(true).mode(FILE_MODE).open(&new)?;
    let before = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let takes_both = is_same(&behind(io::stdout().as_fd())?, &before.metadata()?);
    write_to(&file, takes_both)?;
    let moved = fs::rename(path, former_log(path)).and_then(|()| fs::rename(&new, path));
    if moved.is_err() {
        write_to(&before, takes_both)?;
    }
    moved
}

fn write_to(file: &File, takes_both: bool) -> io::Result<()> {
    dup2_stderr(file)?;
    if takes_both {
        dup2_stdout(file)?;
    }
    Ok(())
}

/// Returns where the log is that came before the one at `path`.
#[must_use]
pub fn former_log(path: &Path) -> PathBuf {
    beside(path, ".1")
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn is_standard_error(path: &Path) -> bool {
    let both =
        fs::symlink_metadata(path).and_then(|named| Ok((named, behind(io::stderr().as_fd())?)));
    both.is_ok_and(|(named, open)| named.is_file() && is_same(&named, &open))
}

fn behind(descriptor: BorrowedFd<'_>) -> io::Result<Metadata> {
    File::from(descriptor.try_clone_to_owned()?).metadata()
}

fn is_same(left: &Metadata, right: &Metadata) -> bool {
    (left.dev(), left.ino()) == (right.dev(), right.ino())
}
