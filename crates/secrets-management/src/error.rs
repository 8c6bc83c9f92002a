//! Why a secret cannot be used. Owns messages that name the file and the cure; never shows content.
//!
//! These errors stop a program at its start and reach only its terminal and its log, so they carry no wire code.

use std::io;
use std::path::PathBuf;

use crate::SECRET_BYTES_MAX;

/// Says why a secret could not be loaded, generated or stored.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// There is no such file.
    #[error("secret file {} does not exist", path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// The file is a symbolic link, which whoever owns the directory could redirect.
    #[error("secret file {} is a symbolic link; name the file itself", path.display())]
    SymbolicLink {
        /// The file.
        path: PathBuf,
    },
    /// The path names a directory, device, pipe or socket.
    #[error("secret file {} is not a regular file", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Someone else owns the file and could change it.
    #[error(
        "secret file {} belongs to user {owner} and this program runs as user {user}; run `chown {user} {}`",
        path.display(), path.display()
    )]
    WrongOwner {
        /// The file.
        path: PathBuf,
        /// The numeric id of the file's owner.
        owner: u32,
        /// The numeric id this program runs under.
        user: u32,
    },
    /// The file's mode lets others in.
    #[error(
        "secret file {} has mode {mode:04o}, expected 0600 or 0400; run `chmod 600 {}`",
        path.display(), path.display()
    )]
    WrongMode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The name of a credential is no plain file name.
    #[error(
        "{name:?} cannot name a credential; a name has letters, digits, `.`, `_` and `-`, and no dot at its beginning"
    )]
    CredentialName {
        /// The name.
        name: String,
    },
    /// Nobody hands over credentials.
    #[error(
        "the credential {name} is not there: CREDENTIALS_DIRECTORY is not set, which systemd does for a unit with \
         LoadCredential={name}:FILE"
    )]
    NoCredentials {
        /// The name wanted.
        name: String,
    },
    /// A secret cannot be made out of another one.
    #[error("cannot derive a secret")]
    Derivation,
    /// The content is not a usable secret.
    #[error("the secret in {origin} {problem}")]
    Content {
        /// Where the content came from: a file's path, or what was read instead.
        origin: String,
        /// What is wrong with it.
        problem: ContentProblem,
    },
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file or directory it was done to.
        path: PathBuf,
        /// Why it was refused.
        #[source]
        source: io::Error,
    },
    /// Reading a secret from something without a path failed.
    #[error("cannot read the secret from {origin}")]
    Read {
        /// What was read.
        origin: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The operating system has no randomness to give.
    #[error("cannot get random bytes for a new secret")]
    NoRandomness {
        /// Why it was refused.
        #[source]
        source: getrandom::Error,
    },
}

/// Says what makes content unusable as a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentProblem {
    /// Nothing, or nothing but a line end.
    Empty,
    /// More than [`SECRET_BYTES_MAX`] bytes.
    TooLong,
    /// More than the 64 KiB that a secret of several lines may have.
    DocumentTooLong,
    /// Bytes that are not UTF-8.
    NotUtf8,
    /// More than one line.
    SeveralLines,
    /// White space, control or non-ASCII characters, which no header could carry.
    ForbiddenCharacter,
}

impl std::fmt::Display for ContentProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => f.write_str("is empty"),
            Self::TooLong => write!(f, "is longer than {SECRET_BYTES_MAX} bytes"),
            Self::DocumentTooLong => f.write_str("is longer than 64 KiB"),
            Self::NotUtf8 => f.write_str("is not UTF-8 text"),
            Self::SeveralLines => f.write_str("has more than one line"),
            Self::ForbiddenCharacter => {
                f.write_str("contains white space, control or non-ASCII characters")
            }
        }
    }
}
