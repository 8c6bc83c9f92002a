//! The directory of kept states, which all workers of a machine may share: a
//! folder for each fingerprint, a file for each state. Holds the bound on their
//! bytes under a lock, in the order in which they were used; trusts no name, no
//! link and no content that it finds. Blocks: for threads that may wait.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use input_validation::Sha256Hex;
use rbee_home::{HomeError, ensure_private_directory};
use rustix::fs::OFlags;

use super::fingerprint::Fingerprint;
use super::format::{self, FormatError};
use super::{Kept, Write};
use crate::engine::memory::{KeptId, Scope};
use crate::error::chain;

/// Most files, so that listing them takes a moment and their tokens little memory.
const FILES_MAX: usize = 1 << 14;
/// The ending of a state's file.
const ENDING: &str = "kv";
/// The ending of a file that is being written.
const UNFINISHED: &str = "tmp";
/// Whoever holds its lock is the only one to write or remove files.
const LOCK: &str = "lock";
/// Permission bits of a file: nobody else's business.
const FILE_MODE: u32 = 0o600;

/// The states of one fingerprint in the directory of all.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    root: PathBuf,
    own: PathBuf,
    fingerprint: Fingerprint,
    bytes_max: u64,
}

/// Why the directory cannot be used now.
#[derive(Debug, thiserror::Error)]
pub(super) enum DirectoryError {
    #[error("the directory of kept conversations cannot be used")]
    Unusable(#[from] HomeError),
    #[error("{} cannot be {action}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl DirectoryError {
    /// Whether there is no room on the disk.
    fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }
}

/// Why a state is not to be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// Somebody else needed the room.
    #[error("the file is gone")]
    Gone,
    /// It was there, and is not any more.
    #[error("the file was spoilt and has been removed")]
    Spoilt,
    #[error("the file cannot be read")]
    Io(#[source] io::Error),
}

/// What came of a write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Writing {
    Done(Change),
    /// It alone is larger than all may be.
    TooBig,
}

/// What is different in the directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// States of this fingerprint that had to go.
    pub(super) gone: Vec<KeptId>,
    /// Bytes of all files of all fingerprints now.
    pub(super) bytes: u64,
}

/// A file that was found.
#[derive(Debug)]
struct Found {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
    /// Which state of this fingerprint it is, if it is one.
    id: Option<KeptId>,
}

impl Directory {
    /// Names the directory; looks at nothing yet.
    pub(super) fn new(root: PathBuf, fingerprint: Fingerprint, bytes_max: u64) -> Self {
        let own = root.join(Sha256Hex::from_bytes(&fingerprint.0).as_str());
        Self { root, own, fingerprint, bytes_max }
    }

    /// Makes the directory if it is not there, and all that is in it fit the bound.
    pub(super) fn open(&self) -> Result<Change, DirectoryError> {
        ensure_private_directory(&self.root)?;
        let _lock = self.lock()?;
        let mut files = self.find()?;
        self.make_room(&mut files, 0, &[], self.bytes_max)
    }

    /// Reads what the states of this fingerprint hold, and hands each to `take`.
    /// A file that is spoilt is removed.
    pub(super) fn list(&self, mut take: impl FnMut(Kept)) {
        let entries = entries(&self.own).inspect_err(|error| {
            tracing::warn!(error = chain(error), "kept conversations cannot be listed")
        });
        let ids = entries.iter().flatten().filter_map(|path| id_of(path));
        for id in ids.take(FILES_MAX) {
            let head = self.open_file(id).and_then(|(mut file, bytes)| {
                let head = format::read_head(&mut file, bytes, &self.fingerprint);
                head.map_err(|error| self.judge(id, error))
            });
            match head {
                Ok(head) if KeptId::of(head.scope, &head.tokens) == id => {
                    take(Kept { id, scope: head.scope, tokens: head.tokens });
                }
                Ok(_) => drop(self.discard(id, "it has another's name")),
                Err(error) => tracing::debug!(error = %error, "a kept conversation is passed over"),
            }
        }
    }

    /// Reads a state. It counts as used from now on.
    pub(super) fn read(&self, id: KeptId) -> Result<Vec<u8>, ReadError> {
        let (mut file, bytes) = self.open_file(id)?;
        let head = format::read_head(&mut file, bytes, &self.fingerprint)
            .map_err(|error| self.judge(id, error))?;
        if KeptId::of(head.scope, &head.tokens) != id {
            return Err(self.discard(id, "it has another's name"));
        }
        let state = format::read_state(&mut file, &head).map_err(|error| self.judge(id, error))?;
        if let Err(error) = file.get_ref().set_modified(SystemTime::now()) {
            tracing::debug!(%error, "a kept conversation cannot be marked as used");
        }
        Ok(state)
    }

    /// Writes a state, after others have made room for it.
    pub(super) fn write(&self, write: &Write) -> Result<Writing, DirectoryError> {
        let Write { id, scope, tokens, state, replaces } = write;
        let bytes = format::file_bytes(tokens.len(), state.len());
        if bytes > self.bytes_max {
            return Ok(Writing::TooBig);
        }
        ensure_private_directory(&self.root)?;
        let _lock = self.lock()?;
        let mut files = self.find()?;
        if files.iter().any(|file| file.id == Some(*id)) {
            // Another worker of the same model has kept it.
            let bytes = files.iter().map(|file| file.bytes).sum();
            return Ok(Writing::Done(Change { gone: Vec::new(), bytes }));
        }
        let mut change = self.make_room(&mut files, bytes, replaces, self.bytes_max)?;
        ensure_private_directory(&self.own)?;
        if !self.has_folder() {
            let source = io::ErrorKind::NotADirectory.into();
            return Err(io_at("used", self.own.clone())(source));
        }
        let mut written = self.write_file(*id, *scope, tokens, state);
        if written.as_ref().is_err_and(DirectoryError::is_full) && bytes <= change.bytes {
            // Others have filled the disk before the bound was reached: what
            // was used longest ago gives its room to what is used now.
            let more = self.make_room(&mut self.find()?, bytes, &[], change.bytes)?;
            change.gone.extend(more.gone);
            change.bytes = more.bytes;
            written = self.write_file(*id, *scope, tokens, state);
        }
        written?;
        change.bytes += bytes;
        Ok(Writing::Done(change))
    }

    /// Whether the states of this fingerprint have a folder that is no link.
    fn has_folder(&self) -> bool {
        fs::symlink_metadata(&self.own).is_ok_and(|metadata| metadata.is_dir())
    }

    fn write_file(
        &self,
        id: KeptId,
        scope: Scope,
        tokens: &[u32],
        state: &[u8],
    ) -> Result<(), DirectoryError> {
        let unfinished = self.path(id, UNFINISHED);
        let failed = |action, source| {
            // What is left of it is found by the next one to hold the lock.
            fs::remove_file(&unfinished).ok();
            DirectoryError::Io { action, path: unfinished.clone(), source }
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&unfinished)
            .map_err(|source| failed("created", source))?;
        format::write(&mut file, &self.fingerprint, scope, tokens, state)
            .map_err(|source| failed("written", source))?;
        // Nothing waits for the disk: a file that a power cut tears is found by
        // its digests, and costs no more than one that was never written.
        fs::rename(&unfinished, self.path(id, ENDING)).map_err(|source| failed("renamed", source))
    }

    /// Waits until nobody else writes here.
    fn lock(&self) -> Result<File, DirectoryError> {
        let path = self.root.join(LOCK);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .custom_flags(no_link())
            .open(&path)
            .and_then(|file| file.lock().map(|()| file));
        lock.map_err(io_at("locked", path))
    }

    /// Finds the files of all fingerprints, and removes what a writer that was
    /// killed has left. To be called under the lock.
    fn find(&self) -> Result<Vec<Found>, DirectoryError> {
        let mut files = Vec::new();
        for folder in entries(&self.root)? {
            if !fs::symlink_metadata(&folder).is_ok_and(|metadata| metadata.is_dir())
                || digest_of(&folder).is_none()
            {
                continue;
            }
            let before = files.len();
            for path in entries(&folder)? {
                let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
                if !metadata.is_file() || digest_of(&path).is_none() {
                    continue;
                }
                if path.extension().is_some_and(|ending| ending == UNFINISHED) {
                    fs::remove_file(&path).map_err(io_at("removed", path))?;
                } else if let Some(id) = id_of(&path) {
                    let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                    let id = (folder == self.own).then_some(id);
                    files.push(Found { path, bytes: metadata.len(), used, id });
                }
            }
            if files.len() == before && folder != self.own {
                // Nothing is kept of that model any more; where something else
                // lies in its folder, the folder stays.
                fs::remove_dir(&folder).ok();
            }
        }
        Ok(files)
    }

    /// Removes files until `bytes` more make no more than `bytes_max`: the
    /// replaced ones, and then those used longest ago.
    fn make_room(
        &self,
        files: &mut Vec<Found>,
        bytes: u64,
        replaced: &[KeptId],
        bytes_max: u64,
    ) -> Result<Change, DirectoryError> {
        let is_replaced = |file: &Found| file.id.is_some_and(|id| replaced.contains(&id));
        files.sort_by_key(|file| (!is_replaced(file), file.used));
        let mut total: u64 = files.iter().map(|file| file.bytes).sum();
        let mut left = files.len();
        let mut change = Change::default();
        for file in files.drain(..) {
            let fits = total.saturating_add(bytes) <= bytes_max && left < FILES_MAX;
            if fits && !is_replaced(&file) {
                break;
            }
            match fs::remove_file(&file.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_at("removed", file.path)(error));
                }
                Ok(()) | Err(_) => {}
            }
            total -= file.bytes;
            left -= 1;
            change.gone.extend(file.id);
        }
        change.bytes = total;
        Ok(change)
    }

    fn path(&self, id: KeptId, ending: &str) -> PathBuf {
        self.own.join(format!("{}.{ending}", Sha256Hex::from_bytes(&id.0)))
    }

    /// Opens a state's file; a link or a pipe is none.
    fn open_file(&self, id: KeptId) -> Result<(BufReader<File>, u64), ReadError> {
        if !self.has_folder() {
            return Err(ReadError::Gone);
        }
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(no_link())
            .open(self.path(id, ENDING))
            .and_then(|file| file.metadata().map(|metadata| (file, metadata)));
        match opened {
            Ok((file, metadata)) if metadata.is_file() => {
                Ok((BufReader::new(file), metadata.len()))
            }
            Ok(_) => Err(ReadError::Gone),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ReadError::Gone),
            Err(error) => Err(ReadError::Io(error)),
        }
    }

    /// Decides what becomes of a file that could not be used.
    fn judge(&self, id: KeptId, error: FormatError) -> ReadError {
        match error {
            FormatError::Io(source) if source.kind() != io::ErrorKind::UnexpectedEof => {
                ReadError::Io(source)
            }
            FormatError::Memory { .. } => ReadError::Io(io::ErrorKind::OutOfMemory.into()),
            FormatError::Io(_)
            | FormatError::Foreign
            | FormatError::Size { .. }
            | FormatError::Damaged { .. } => self.discard(id, &chain(&error)),
        }
    }

    /// Removes a file that is not what its name says.
    fn discard(&self, id: KeptId, reason: &str) -> ReadError {
        let path = self.path(id, ENDING);
        tracing::warn!(path = %path.display(), reason, "a kept conversation is spoilt and removed");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => ReadError::Io(error),
            Ok(()) | Err(_) => ReadError::Spoilt,
        }
    }
}

fn io_at(action: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> DirectoryError {
    move |source| DirectoryError::Io { action, path, source }
}

/// Flags with which a link is not followed, and a pipe not waited for.
fn no_link() -> i32 {
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()
}

/// What lies in a folder; one that is gone has nothing.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, DirectoryError> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(io_at("listed", folder.to_owned())(error)),
    }
}

/// The digest that a file or folder is named by.
fn digest_of(path: &Path) -> Option<[u8; 32]> {
    let stem = path.file_stem()?.to_str()?;
    let digest: Sha256Hex = stem.parse().ok()?;
    if digest.as_str() != stem {
        return None;
    }
    let mut bytes = [0; 32];
    let (pairs, _) = stem.as_bytes().as_chunks::<2>();
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// The state that a file is named after.
fn id_of(path: &Path) -> Option<KeptId> {
    if path.extension()? != ENDING {
        return None;
    }
    digest_of(path).map(KeptId)
}

#[cfg(test)]
mod tests;
