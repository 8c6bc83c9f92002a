//! The secret itself. Owns its memory, its comparison and the rules for its content; never formats its content.

use std::fmt;
use std::io::Read;

use hkdf::Hkdf;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::{ContentProblem, SecretError};

/// Longest secret, in bytes: many times any token, and small enough to read whole.
pub const SECRET_BYTES_MAX: usize = 4 * 1024;

/// Bytes of randomness in a generated secret: 256 bit.
const RANDOM_BYTES: usize = 32;

/// Holds a secret of visible ASCII characters; wiped when dropped, redacted in Debug, without Display and serde.
#[derive(Clone)]
pub struct Secret {
    text: Zeroizing<Box<str>>,
}

impl Secret {
    /// Makes a secret of 256 random bits, written as 64 hex digits.
    ///
    /// # Errors
    /// [`SecretError::NoRandomness`].
    pub fn generate() -> Result<Self, SecretError> {
        let mut random = Zeroizing::new([0_u8; RANDOM_BYTES]);
        getrandom::fill(random.as_mut_slice())
            .map_err(|source| SecretError::NoRandomness { source })?;
        Ok(Self::from_key(&random))
    }

    /// Makes the secret of `subject` for one purpose out of this one (HKDF-SHA256). The same two give the same secret
    /// again, and none tells anything about this one or another.
    ///
    /// # Errors
    /// [`SecretError::Derivation`].
    pub fn derive(&self, purpose: &str, subject: &str) -> Result<Self, SecretError> {
        let mut key = Zeroizing::new([0_u8; RANDOM_BYTES]);
        Hkdf::<Sha256>::new(None, self.text.as_bytes())
            .expand_multi_info(&[purpose.as_bytes(), b"\0", subject.as_bytes()], key.as_mut_slice())
            .map_err(|_too_long| SecretError::Derivation)?;
        Ok(Self::from_key(&key))
    }

    /// Writes down random bytes as hex digits.
    fn from_key(key: &Zeroizing<[u8; RANDOM_BYTES]>) -> Self {
        let mut text = Zeroizing::new(String::with_capacity(2 * RANDOM_BYTES));
        for byte in key.iter() {
            for digit in [byte >> 4, byte & 0xf] {
                text.push(char::from(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 }));
            }
        }
        Self { text: Zeroizing::new(Box::from(text.as_str())) }
    }

    /// Takes the secret out of `content`, without a trailing line end. `origin` names the source in errors.
    ///
    /// # Errors
    /// [`SecretError::Content`].
    pub fn from_bytes(content: &[u8], origin: &str) -> Result<Self, SecretError> {
        match parse(content) {
            Ok(text) => Ok(Self { text: Zeroizing::new(Box::from(text)) }),
            Err(problem) => Err(SecretError::Content { origin: origin.to_owned(), problem }),
        }
    }

    /// Reads the secret from `reader` to its end, such as an inherited descriptor. `origin` names it in errors.
    ///
    /// # Errors
    /// [`SecretError::Read`] and [`SecretError::Content`]; not more than [`SECRET_BYTES_MAX`] bytes and a line end are
    /// read.
    pub fn from_reader(reader: impl Read, origin: &str) -> Result<Self, SecretError> {
        // Room for a secret of the longest length, its line end, and one byte that shows there was more. The buffer
        // never grows, since growing would leave a copy behind.
        let limit = SECRET_BYTES_MAX + 3;
        let mut content = Zeroizing::new(Vec::with_capacity(limit));
        read_up_to(reader, limit, &mut content)
            .map_err(|source| SecretError::Read { origin: origin.to_owned(), source })?;
        Self::from_bytes(&content, origin)
    }

    /// Returns the secret itself. For sending it to where it belongs, and nothing else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }
}

fn read_up_to(mut reader: impl Read, limit: usize, content: &mut Vec<u8>) -> std::io::Result<()> {
    let mut piece = Zeroizing::new([0_u8; 512]);
    while content.len() < limit {
        let count = match reader.read(piece.as_mut_slice()) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let room = limit - content.len();
        content.extend(piece.iter().take(count.min(room)));
    }
    Ok(())
}

fn parse(content: &[u8]) -> Result<&str, ContentProblem> {
    let line = content.strip_suffix(b"\n").unwrap_or(content);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.len() > SECRET_BYTES_MAX {
        return Err(ContentProblem::TooLong);
    }
    let text = std::str::from_utf8(line).map_err(|_not_text| ContentProblem::NotUtf8)?;
    if text.is_empty() {
        Err(ContentProblem::Empty)
    } else if text.contains(['\n', '\r']) {
        Err(ContentProblem::SeveralLines)
    } else if !text.bytes().all(|b| b.is_ascii_graphic()) {
        Err(ContentProblem::ForbiddenCharacter)
    } else {
        Ok(text)
    }
}

/// The only field wipes itself.
impl ZeroizeOnDrop for Secret {}

/// Compares SHA-256 digests in constant time, so that neither content nor length shows in the time taken.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        let digest = |secret: &Self| -> [u8; 32] { Sha256::digest(secret.text.as_bytes()).into() };
        digest(self).ct_eq(&digest(other)).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroize as _;

    use super::*;

    fn problem(content: &[u8]) -> Option<ContentProblem> {
        match Secret::from_bytes(content, "test") {
            Ok(_) => None,
            Err(SecretError::Content { problem, .. }) => Some(problem),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_derived_secret_is_the_same_again_and_differs_by_each_of_its_parts() {
        let from = |text: &[u8]| Secret::from_bytes(text, "test").unwrap();
        let derive = |text, purpose, subject| from(text).derive(purpose, subject).unwrap();
        let secret = derive(b"root", "token", "w-1");
        assert!(secret == derive(b"root", "token", "w-1"));
        assert_eq!(secret.expose().len(), 64);
        for other in [
            derive(b"roots", "token", "w-1"),
            derive(b"root", "callback", "w-1"),
            derive(b"root", "token", "w-2"),
            derive(b"root", "tokenw", "-1"),
        ] {
            assert!(secret != other);
        }
    }

    #[test]
    fn a_trailing_line_end_is_not_part_of_the_secret() {
        for content in ["token", "token\n", "token\r\n"] {
            let from_bytes = Secret::from_bytes(content.as_bytes(), "test").unwrap();
            let from_reader = Secret::from_reader(content.as_bytes(), "test").unwrap();
            assert_eq!((from_bytes.expose(), from_reader.expose()), ("token", "token"));
        }
    }

    #[test]
    fn unusable_content_is_refused_with_its_reason() {
        for (content, expected) in [
            (b"".as_slice(), ContentProblem::Empty),
            (b"\n", ContentProblem::Empty),
            (b"\r\n", ContentProblem::Empty),
            (b" ", ContentProblem::ForbiddenCharacter),
            (b"\t\n", ContentProblem::ForbiddenCharacter),
            (b"a b", ContentProblem::ForbiddenCharacter),
            (b" token", ContentProblem::ForbiddenCharacter),
            (b"tok\0en", ContentProblem::ForbiddenCharacter),
            ("tokén".as_bytes(), ContentProblem::ForbiddenCharacter),
            (b"one\ntwo", ContentProblem::SeveralLines),
            (b"one\n\n", ContentProblem::SeveralLines),
            (b"\xff\xfe", ContentProblem::NotUtf8),
        ] {
            assert_eq!(problem(content), Some(expected), "{content:?}");
        }
    }

    #[test]
    fn the_length_limit_is_itself_accepted() {
        let longest = format!("{}\r\n", "a".repeat(SECRET_BYTES_MAX));
        assert!(Secret::from_reader(longest.as_bytes(), "test").is_ok());
        for length in [SECRET_BYTES_MAX + 1, SECRET_BYTES_MAX + 3, 2 << 20] {
            let content = "a".repeat(length);
            assert_eq!(problem(content.as_bytes()), Some(ContentProblem::TooLong));
            assert!(Secret::from_reader(content.as_bytes(), "test").is_err());
        }
    }

    #[test]
    fn generated_secrets_are_256_bit_hex_and_differ() {
        let (one, other) = (Secret::generate().unwrap(), Secret::generate().unwrap());
        assert_eq!(one.expose().len(), 64);
        assert!(one.expose().bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
        assert!(one != other);
        assert!(one == one.clone());
        // No digit is always the same: each comes from randomness. By chance, once in 10^36 times.
        let more: Vec<Secret> = (0..32).map(|_| Secret::generate().unwrap()).collect();
        for place in 0..64 {
            let digit = |secret: &Secret| secret.expose().as_bytes()[place];
            assert!(more.iter().any(|secret| digit(secret) != digit(&one)), "digit {place}");
        }
    }

    #[test]
    fn only_the_same_secret_is_equal() {
        let secret = |text: &str| Secret::from_bytes(text.as_bytes(), "test").unwrap();
        assert!(secret("right") == secret("right"));
        for wrong in ["wrong", "righ", "right1", "Right"] {
            assert!(secret("right") != secret(wrong), "{wrong}");
        }
    }

    #[test]
    fn debug_shows_nothing_and_dropping_wipes() {
        const fn wiped_on_drop<T: ZeroizeOnDrop>(_: &T) {}
        let mut secret = Secret::from_bytes(b"canary", "test").unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        wiped_on_drop(&secret);
        wiped_on_drop(&secret.text);
        // What Drop does, on memory that can still be looked at.
        secret.text.zeroize();
        assert_eq!(secret.expose(), "\0\0\0\0\0\0");
    }
}
