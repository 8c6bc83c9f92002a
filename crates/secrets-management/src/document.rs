//! Secrets of several lines, such as a private key in PEM form. Owns their size; the checks on the file are those of
//! every secret file.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use zeroize::Zeroizing;

use crate::SecretError;
use crate::error::ContentProblem;
use crate::file::{Draft, check_attributes, directory_of, io_error, open_checked};

/// Largest document: many times any private key, and small enough to read whole.
const DOCUMENT_BYTES_MAX: usize = 64 * 1024;

/// Loads a secret of several lines. The file has to be as [`crate::load_file`] wants it. Blocks.
///
/// # Errors
/// [`SecretError`], naming the file and what to do.
pub fn load_document(path: &Path) -> Result<Zeroizing<String>, SecretError> {
    let file = open_checked(path, check_attributes)?;
    let wrong = |problem| SecretError::Content { origin: path.display().to_string(), problem };
    // The buffer never grows, since growing would leave a copy behind.
    let mut text = Zeroizing::new(String::with_capacity(DOCUMENT_BYTES_MAX + 1));
    let limit = u64::try_from(DOCUMENT_BYTES_MAX + 1).unwrap_or(u64::MAX);
    match file.take(limit).read_to_string(&mut text) {
        Ok(0) => Err(wrong(ContentProblem::Empty)),
        Ok(length) if length > DOCUMENT_BYTES_MAX => Err(wrong(ContentProblem::DocumentTooLong)),
        Ok(_) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(wrong(ContentProblem::NotUtf8))
        }
        Err(error) => Err(io_error("read secret file", path)(error)),
    }
}

/// Puts a document where none lies, mode 0600; one that lies there already stays. It appears whole or not at all. Blocks.
///
/// # Errors
/// [`SecretError::Io`].
pub fn store_new_document(path: &Path, text: &Zeroizing<String>) -> Result<(), SecretError> {
    let draft = Draft::write(directory_of(path), path, text.as_bytes())?;
    match fs::hard_link(draft.path(), path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(io_error("create secret file", path)(error))
        }
        Ok(()) | Err(_) => sync(path),
    }
}

/// Puts a document in the place of the one that lies there, if any; mode 0600. It appears whole or not at all. Blocks.
///
/// # Errors
/// [`SecretError::Io`].
pub fn store_document(path: &Path, text: &Zeroizing<String>) -> Result<(), SecretError> {
    let draft = Draft::write(directory_of(path), path, text.as_bytes())?;
    fs::rename(draft.path(), path).map_err(io_error("replace secret file", path))?;
    sync(path)
}

fn sync(path: &Path) -> Result<(), SecretError> {
    let directory = directory_of(path);
    fs::File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("sync directory", directory))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_document_is_kept_as_it_is_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        let text = |text: &str| Zeroizing::new(text.to_owned());
        store_new_document(&path, &text("one\ntwo\n")).unwrap();
        store_new_document(&path, &text("other")).unwrap();
        assert_eq!(load_document(&path).unwrap().as_str(), "one\ntwo\n", "the first one stays");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        store_document(&path, &text("three\n")).unwrap();
        assert_eq!(load_document(&path).unwrap().as_str(), "three\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a draft was left");
    }

    #[test]
    fn what_others_can_read_and_what_is_no_document_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        let put = |content: &[u8], mode| {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            load_document(&path)
        };
        assert!(matches!(put(b"key", 0o640), Err(SecretError::WrongMode { .. })));
        for (content, told) in [
            (&b""[..], "is empty"),
            (b"\xff\xfe", "UTF-8"),
            (&[b'a'; DOCUMENT_BYTES_MAX + 1], "longer than"),
        ] {
            let refused = put(content, 0o600).unwrap_err().to_string();
            assert!(refused.contains(told), "{refused}");
        }
    }
}
