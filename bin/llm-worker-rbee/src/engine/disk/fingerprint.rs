//! Tells which states a model can go on from: those of the same weights, the
//! same form in memory and the same rule of sharing. Reads the model's file
//! where nobody has told its digest; never a state.

use std::fmt::Write as _;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use input_validation::Sha256Hex;
use sha2::{Digest, Sha256};

/// Bytes of a model that are read at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Names all that a state depends on besides its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fingerprint(pub(super) [u8; 32]);

/// A model's file as it was when the model was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileMark {
    path: PathBuf,
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

/// What states are of.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    /// The model's file; `None` for the echo engine.
    pub(crate) file: Option<FileMark>,
    /// How states lie in memory, and what writes them.
    pub(crate) form: String,
}

/// Why nothing can be kept of a model.
#[derive(Debug, thiserror::Error)]
pub(super) enum SubjectError {
    #[error("the model's file cannot be read")]
    Io(#[from] io::Error),
    #[error("the model's file was changed while the model was loaded")]
    Changed,
}

impl FileMark {
    /// Looks at a file.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::new(path, &path.metadata()?))
    }

    fn new(path: &Path, metadata: &Metadata) -> Self {
        Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }

    /// Reads all of the file.
    fn digest(&self) -> Result<[u8; 32], SubjectError> {
        let mut file = File::open(&self.path)?;
        let mut hasher = Sha256::new();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let read = file.read(&mut piece)?;
            match piece.get(..read) {
                None | Some([]) => break,
                Some(bytes) => hasher.update(bytes),
            }
        }
        if *self != Self::new(&self.path, &file.metadata()?) {
            return Err(SubjectError::Changed);
        }
        Ok(hasher.finalize().into())
    }
}

impl Subject {
    /// Works the fingerprint out. `known` is the digest of the model's file, as
    /// somebody knew it when the file was registered: it counts together with
    /// size and time of change, so that a file changed since is another one.
    /// Without it the whole file is read.
    pub(super) fn fingerprint(
        &self,
        known: Option<&Sha256Hex>,
        shared: bool,
    ) -> Result<Fingerprint, SubjectError> {
        let mut text = format!("form: {}\nshared: {shared}\n", self.form);
        let written = match (&self.file, known) {
            (Some(mark), Some(known)) => {
                let FileMark { bytes, modified, .. } = mark;
                write!(text, "model: {known} {bytes} {}.{:09}", modified.0, modified.1)
            }
            (Some(mark), None) => {
                write!(text, "model: {}", Sha256Hex::from_bytes(&mark.digest()?))
            }
            (None, Some(known)) => write!(text, "model: echo {known}"),
            (None, None) => write!(text, "model: echo"),
        };
        // Writing to a String cannot fail.
        written.ok();
        Ok(Fingerprint(Sha256::digest(text).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_changes_a_state_changes_the_fingerprint() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model");
        let write = |content: &[u8]| std::fs::write(&path, content).unwrap();
        let subject = |form: &str| Subject {
            file: Some(FileMark::of(&path).unwrap()),
            form: form.to_owned(),
        };
        write(&[1; 3 << 20]);
        let known: Sha256Hex = "ab".repeat(32).parse().unwrap();
        let other: Sha256Hex = "cd".repeat(32).parse().unwrap();
        let echo = Subject { file: None, form: "f16".to_owned() };
        let mut all = vec![
            subject("f16").fingerprint(None, false).unwrap(),
            subject("f16").fingerprint(None, true).unwrap(),
            subject("q8").fingerprint(None, false).unwrap(),
            subject("f16").fingerprint(Some(&known), false).unwrap(),
            subject("f16").fingerprint(Some(&other), false).unwrap(),
            echo.fingerprint(None, false).unwrap(),
            echo.fingerprint(Some(&known), false).unwrap(),
        ];
        assert_eq!(subject("f16").fingerprint(None, false).unwrap(), all[0]);
        let mut changed = vec![1; 3 << 20];
        changed[2_500_000] = 2;
        write(&changed);
        all.push(subject("f16").fingerprint(None, false).unwrap());
        all.push(subject("f16").fingerprint(Some(&known), false).unwrap());
        for (index, one) in all.iter().enumerate() {
            assert!(!all[index + 1..].contains(one), "{index}");
        }
    }

    #[test]
    fn a_file_that_was_replaced_since_it_was_loaded_has_no_fingerprint() {
        let directory = tempfile::tempdir().unwrap();
        let (path, new) = (directory.path().join("model"), directory.path().join("new"));
        std::fs::write(&path, b"one").unwrap();
        let loaded = Subject { file: Some(FileMark::of(&path).unwrap()), form: String::new() };
        std::fs::write(&new, b"two").unwrap();
        std::fs::rename(&new, &path).unwrap();
        assert!(matches!(loaded.fingerprint(None, false), Err(SubjectError::Changed)));
    }
}
