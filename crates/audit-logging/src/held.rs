//! Checkpoints of other machines: kept here so that a log that is cut or made anew over there is found out. One file for
//! each machine and key, bounded; a machine can only add to its own.

use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rbee_api::audit::AuditCheckpoint;

use crate::checkpoints::{read, replace};
use crate::error::AuditError;
use crate::segments;
use crate::signature::is_signed;

/// Where they lie, in the directory of all logs.
pub(crate) const HELD_DIRECTORY: &str = "held";
/// Checkpoints kept of one key; beyond twice as many the older half goes.
const HELD_MAX: usize = 1024;
/// Keys kept of one machine. A machine that was set up anew has a new one.
const KEYS_MAX: usize = 16;
/// Hex digits of a key that tell it from another in a file's name.
const KEY_DIGITS: usize = 16;

/// What a checkpoint says beside those that are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// It is the newest.
    New,
    /// It was known.
    Known,
    /// The first with this key.
    NewKey,
    /// The log was longer before, up to this entry, or had another entry here.
    Regressed {
        /// The last entry that the machine had signed before.
        held: u64,
    },
}

/// Keeps a checkpoint of the machine `name`, in the directory of all logs. One that contradicts what is held is not
/// kept. Blocks for the disk.
///
/// # Errors
/// [`AuditError::BadCheckpoint`], [`AuditError::TooManyKeys`], [`AuditError::Io`].
pub(crate) fn hold(
    audit_directory: &Path,
    name: &str,
    checkpoint: &AuditCheckpoint,
) -> Result<Held, AuditError> {
    if !is_signed(checkpoint) {
        return Err(AuditError::BadCheckpoint);
    }
    let directory = audit_directory.join(HELD_DIRECTORY);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .map_err(AuditError::io("create directory", &directory))?;
    let key = checkpoint.key.get(..KEY_DIGITS).ok_or(AuditError::BadCheckpoint)?;
    let path = directory.join(format!("{name}.{key}.jsonl"));
    let held = read(&path).map_err(AuditError::io("read", &path))?;
    let newest = held.iter().max_by_key(|held| held.sequence);
    let verdict = match newest {
        None if files_of(&directory, name)?.len() >= KEYS_MAX => {
            return Err(AuditError::TooManyKeys);
        }
        None => Held::NewKey,
        Some(newest) if newest.sequence > checkpoint.sequence => {
            Held::Regressed { held: newest.sequence }
        }
        Some(newest) if newest.sequence < checkpoint.sequence => Held::New,
        Some(newest) if newest.entry_hash == checkpoint.entry_hash => Held::Known,
        Some(newest) => Held::Regressed { held: newest.sequence },
    };
    if matches!(verdict, Held::New | Held::NewKey) {
        add(&path, &held, checkpoint).map_err(AuditError::io("write", &path))?;
    }
    Ok(verdict)
}

fn add(path: &Path, held: &[AuditCheckpoint], checkpoint: &AuditCheckpoint) -> io::Result<()> {
    let mut line = serde_json::to_vec(checkpoint).map_err(io::Error::from)?;
    line.push(b'\n');
    if held.len() < 2 * HELD_MAX {
        let mut file = segments::open(path)?;
        file.write_all(&line)?;
        return file.sync_data();
    }
    let mut lines = Vec::new();
    for old in held.iter().skip(held.len() - HELD_MAX) {
        serde_json::to_writer(&mut lines, old).map_err(io::Error::from)?;
        lines.push(b'\n');
    }
    lines.extend_from_slice(&line);
    replace(path, &lines)
}

fn files_of(directory: &Path, name: &str) -> Result<Vec<PathBuf>, AuditError> {
    let prefix = format!("{name}.");
    let mut files = files(directory)?;
    files.retain(|path| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|file| file.starts_with(&prefix))
    });
    Ok(files)
}

fn files(directory: &Path) -> Result<Vec<PathBuf>, AuditError> {
    let list = || -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    };
    list().map_err(AuditError::io("list", directory))
}

/// Returns all checkpoints that are held in the directory of all logs.
///
/// # Errors
/// [`AuditError::Io`].
pub fn held_in(audit_directory: &Path) -> Result<Vec<AuditCheckpoint>, AuditError> {
    let mut all = Vec::new();
    for path in files(&audit_directory.join(HELD_DIRECTORY))? {
        all.extend(read(&path).map_err(AuditError::io("read", &path))?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use secrets_management::Secret;

    use super::*;
    use crate::entry::Position;
    use crate::hash::EntryHash;
    use crate::signature::Signer;

    fn position(sequence: u64, content: &[u8]) -> Position {
        Position { sequence, hash: EntryHash::of(content) }
    }

    #[test]
    fn a_log_that_became_shorter_or_another_is_found_out() {
        let directory = tempfile::tempdir().unwrap();
        let signer = Signer::new(&Secret::generate().unwrap(), "rbee-hive");
        let take = |sequence, content| {
            hold(directory.path(), "local", &signer.sign(position(sequence, content))).unwrap()
        };
        assert_eq!(take(5, b"a"), Held::NewKey);
        assert_eq!(take(9, b"b"), Held::New);
        assert_eq!(take(9, b"b"), Held::Known);
        assert_eq!(take(8, b"c"), Held::Regressed { held: 9 });
        assert_eq!(take(9, b"c"), Held::Regressed { held: 9 });
        let held: Vec<u64> =
            held_in(directory.path()).unwrap().iter().map(|held| held.sequence).collect();
        assert_eq!(held, [5, 9]);
    }

    #[test]
    fn a_forged_checkpoint_is_refused_and_keys_are_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let sign = || Signer::new(&Secret::generate().unwrap(), "s").sign(position(1, b"a"));
        let forged = AuditCheckpoint { sequence: 2, ..sign() };
        assert!(matches!(hold(directory.path(), "m", &forged), Err(AuditError::BadCheckpoint)));
        for _ in 0..KEYS_MAX {
            assert_eq!(hold(directory.path(), "m", &sign()).unwrap(), Held::NewKey);
        }
        assert!(matches!(hold(directory.path(), "m", &sign()), Err(AuditError::TooManyKeys)));
        assert_eq!(hold(directory.path(), "other", &sign()).unwrap(), Held::NewKey);
    }

    #[test]
    fn what_is_held_of_a_key_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let signer = Signer::new(&Secret::generate().unwrap(), "s");
        let old: Vec<_> =
            (1..=2 * HELD_MAX as u64).map(|n| signer.sign(position(n, b""))).collect();
        let path = directory.path().join("x.jsonl");
        add(&path, &old, &signer.sign(position(9999, b""))).unwrap();
        let kept = read(&path).unwrap();
        assert_eq!((kept.len(), kept.last().unwrap().sequence), (HELD_MAX + 1, 9999));
    }
}
