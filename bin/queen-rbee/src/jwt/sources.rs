//! Where keys and the list of tokens that were taken back come from: files
//! and one address, all bounded. Believes nothing; reads and hands over.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jwt_guardian::{KEY_SET_BYTES_MAX, KeySet, KeySetError};
use rbee_http::{DocumentClient, DocumentError};

use crate::config::JwtSettings;

/// How long keys may take to come.
const FETCH_LIMIT: Duration = Duration::from_secs(10);
/// Largest list of tokens that were taken back: a hundred thousand ids.
const REVOKED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Says why a file or address cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is larger than it may be.
    #[error("{} is larger than {max} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that is read.
        max: usize,
    },
    /// What was read is no key set.
    #[error(transparent)]
    KeySet(#[from] KeySetError),
    /// Nothing came from the address.
    #[error("the key set cannot be had from its address")]
    Fetch(#[from] DocumentError),
    /// The thread that read it ended early.
    #[error("reading was broken off")]
    BrokenOff,
}

/// Where the keys are.
#[derive(Debug)]
pub(super) enum KeySource {
    File(PathBuf),
    Address(DocumentClient),
}

impl KeySource {
    pub(super) fn new(settings: &JwtSettings) -> Result<Self, SourceError> {
        match (&settings.jwks_file, &settings.jwks_url) {
            (Some(path), _) => Ok(Self::File(path.clone())),
            (None, url) => {
                Ok(Self::Address(DocumentClient::new(url.as_deref().unwrap_or_default())?))
            }
        }
    }

    /// Reads the keys where they lie in a file. Blocks.
    pub(super) fn read_file(&self) -> Result<Option<KeySet>, SourceError> {
        match self {
            Self::File(path) => key_set(path).map(Some),
            Self::Address(_) => Ok(None),
        }
    }

    /// Reads the keys, wherever they are.
    pub(super) async fn read(&self) -> Result<KeySet, SourceError> {
        match self {
            Self::File(path) => {
                let path = path.clone();
                let read = tokio::task::spawn_blocking(move || key_set(&path));
                read.await.unwrap_or(Err(SourceError::BrokenOff))
            }
            Self::Address(client) => {
                let max = u64::try_from(KEY_SET_BYTES_MAX).unwrap_or(u64::MAX);
                Ok(KeySet::read(&client.get(max, FETCH_LIMIT).await?)?)
            }
        }
    }
}

fn key_set(path: &Path) -> Result<KeySet, SourceError> {
    Ok(KeySet::read(&bounded(path, KEY_SET_BYTES_MAX)?.0)?)
}

/// What a file is known to have changed by: inode, length, time of change.
type Mark = (u64, u64, i64, i64);

/// The list of tokens that were taken back.
#[derive(Debug)]
pub(super) struct RevokedFile {
    path: PathBuf,
    seen: Mutex<Option<Mark>>,
}

impl RevokedFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, seen: Mutex::new(None) }
    }

    /// Reads the ids, one a line; empty lines and those with `#` are none. Blocks.
    pub(super) fn read(&self) -> Result<HashSet<String>, SourceError> {
        let (ids, mark) = read_ids(&self.path)?;
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(mark);
        Ok(ids)
    }

    /// Reads the ids where the file has changed since the last time.
    pub(super) async fn read_if_changed(&self) -> Result<Option<HashSet<String>>, SourceError> {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || {
            let metadata = path.metadata().map_err(unreadable(&path))?;
            if seen == Some(mark(&metadata)) { Ok(None) } else { read_ids(&path).map(Some) }
        });
        let Some((ids, mark)) = read.await.unwrap_or(Err(SourceError::BrokenOff))? else {
            return Ok(None);
        };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(mark);
        Ok(Some(ids))
    }
}

fn read_ids(path: &Path) -> Result<(HashSet<String>, Mark), SourceError> {
    let (bytes, metadata) = bounded(path, REVOKED_BYTES_MAX)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let ids = lines.filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    Ok((ids, mark(&metadata)))
}

fn bounded(path: &Path, max: usize) -> Result<(Vec<u8>, Metadata), SourceError> {
    let file = File::open(path).map_err(unreadable(path))?;
    let metadata = file.metadata().map_err(unreadable(path))?;
    let mut bytes = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut bytes).map_err(unreadable(path))?;
    if bytes.len() > max {
        return Err(SourceError::TooLarge { path: path.to_owned(), max });
    }
    Ok((bytes, metadata))
}

fn mark(metadata: &Metadata) -> Mark {
    (metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> SourceError {
    let path = path.to_owned();
    move |source| SourceError::File { path, source }
}
