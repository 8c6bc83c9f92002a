//! The form of a file that keeps one state: a head that says what it is, the
//! tokens, a digest of both, and the state. Reads and writes streams of bytes;
//! knows no directories, and believes nothing that a file says before it has
//! been held to the file's size and its digests.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

use super::fingerprint::Fingerprint;
use crate::engine::memory::Scope;

/// What every file begins with; the number is the version of the form.
const MAGIC: &[u8; 8] = b"rbee-kv1";
/// Magic, fingerprint, scope, number of tokens, bytes of the state, its digest.
const HEAD_BYTES: usize = 8 + 32 + 32 + 8 + 8 + 32;
/// The digest of head and tokens, which stands behind them.
const DIGEST_BYTES: usize = 32;
/// Bytes of one token.
const TOKEN_BYTES: usize = 4;

/// What a file says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) scope: Scope,
    pub(super) tokens: Vec<u32>,
    state_bytes: u64,
    state_digest: [u8; 32],
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FormatError {
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    #[error("it is of another kind, version or model")]
    Foreign,
    #[error("it has {actual} bytes and should have {expected}")]
    Size { expected: u64, actual: u64 },
    #[error("its {part} was changed after it was written")]
    Damaged { part: &'static str },
    #[error("there is no memory for its {bytes} bytes")]
    Memory { bytes: u64 },
}

/// The size of a file for so many tokens and bytes of state.
pub(super) fn file_bytes(tokens: usize, state: usize) -> u64 {
    (HEAD_BYTES as u64)
        .saturating_add((tokens as u64).saturating_mul(TOKEN_BYTES as u64))
        .saturating_add(DIGEST_BYTES as u64)
        .saturating_add(state as u64)
}

/// Writes a whole file.
pub(super) fn write(
    out: &mut impl Write,
    fingerprint: &Fingerprint,
    scope: Scope,
    tokens: &[u32],
    state: &[u8],
) -> io::Result<()> {
    let mut head = Vec::with_capacity(HEAD_BYTES + tokens.len() * TOKEN_BYTES);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&fingerprint.0);
    head.extend_from_slice(&scope.0);
    head.extend_from_slice(&(tokens.len() as u64).to_le_bytes());
    head.extend_from_slice(&(state.len() as u64).to_le_bytes());
    head.extend_from_slice(&Sha256::digest(state));
    head.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
    out.write_all(&head)?;
    out.write_all(&Sha256::digest(&head))?;
    out.write_all(state)
}

/// Reads a file up to its state. `actual` is the size of the whole file, and
/// nothing is allocated that would not fit into it.
pub(super) fn read_head(
    file: &mut impl Read,
    actual: u64,
    fingerprint: &Fingerprint,
) -> Result<Head, FormatError> {
    let least = file_bytes(0, 0);
    if actual < least {
        return Err(FormatError::Size { expected: least, actual });
    }
    let mut fixed = [0; HEAD_BYTES];
    file.read_exact(&mut fixed)?;
    let mut rest = fixed.as_slice();
    if take::<8>(&mut rest) != *MAGIC || take(&mut rest) != fingerprint.0 {
        return Err(FormatError::Foreign);
    }
    let scope = Scope(take(&mut rest));
    let count = u64::from_le_bytes(take(&mut rest));
    let state_bytes = u64::from_le_bytes(take(&mut rest));
    let state_digest = take(&mut rest);
    let token_bytes = count.saturating_mul(TOKEN_BYTES as u64);
    let expected = least.saturating_add(token_bytes).saturating_add(state_bytes);
    if expected != actual {
        return Err(FormatError::Size { expected, actual });
    }
    let mut tokens = buffer(token_bytes)?;
    file.read_exact(&mut tokens)?;
    let mut digest = [0; DIGEST_BYTES];
    file.read_exact(&mut digest)?;
    if Sha256::new().chain_update(fixed).chain_update(&tokens).finalize().as_slice() != digest {
        return Err(FormatError::Damaged { part: "head" });
    }
    let (tokens, _) = tokens.as_chunks();
    let tokens = tokens.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    Ok(Head { scope, tokens, state_bytes, state_digest })
}

/// Reads the state of a file whose head has been read.
pub(super) fn read_state(file: &mut impl Read, head: &Head) -> Result<Vec<u8>, FormatError> {
    let mut state = buffer(head.state_bytes)?;
    file.read_exact(&mut state)?;
    if Sha256::digest(&state).as_slice() != head.state_digest {
        return Err(FormatError::Damaged { part: "state" });
    }
    Ok(state)
}

fn buffer(bytes: u64) -> Result<Vec<u8>, FormatError> {
    let refused = FormatError::Memory { bytes };
    let Ok(len) = usize::try_from(bytes) else { return Err(refused) };
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(len).map_err(|_| refused)?;
    buffer.resize(len, 0);
    Ok(buffer)
}

/// Takes the first `N` bytes of a head, which has them.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let Some((taken, left)) = rest.split_first_chunk::<N>() else { return [0; N] };
    *rest = left;
    *taken
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FINGERPRINT: Fingerprint = Fingerprint([7; 32]);
    const SCOPE: Scope = Scope([3; 32]);

    fn file(tokens: &[u32], state: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        write(&mut file, &FINGERPRINT, SCOPE, tokens, state).unwrap();
        assert_eq!(file.len() as u64, file_bytes(tokens.len(), state.len()));
        file
    }

    fn read(file: &[u8]) -> Result<(Head, Vec<u8>), FormatError> {
        let mut rest = file;
        let head = read_head(&mut rest, file.len() as u64, &FINGERPRINT)?;
        let state = read_state(&mut rest, &head)?;
        Ok((head, state))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            tokens in proptest::collection::vec(any::<u32>(), 0..200),
            state in proptest::collection::vec(any::<u8>(), 0..500),
        ) {
            let (head, read) = read(&file(&tokens, &state)).unwrap();
            prop_assert_eq!((head.scope, head.tokens, read), (SCOPE, tokens, state));
        }

        #[test]
        fn garbage_is_refused(garbage in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(read(&garbage).is_err());
            let begun = [MAGIC.as_slice(), &FINGERPRINT.0, &garbage].concat();
            prop_assert!(read(&begun).is_err());
        }
    }

    #[test]
    fn a_file_with_any_bit_changed_or_any_byte_missing_is_refused() {
        let whole = file(&[1, 2, 3, 70_000], b"some state of the model");
        for index in 0..whole.len() {
            for bit in 0..8 {
                let mut changed = whole.clone();
                changed[index] ^= 1 << bit;
                assert!(read(&changed).is_err(), "bit {bit} of byte {index}");
            }
            assert!(read(&whole[..index]).is_err(), "cut after {index} bytes");
        }
        assert!(read(&[whole.as_slice(), b"x"].concat()).is_err());
    }

    #[test]
    fn a_file_that_claims_to_be_huge_allocates_nothing() {
        let mut whole = file(&[1, 2], b"state");
        for at in [72, 80] {
            whole[at..at + 8].copy_from_slice(&(u64::MAX / 8).to_le_bytes());
            assert!(matches!(read(&whole), Err(FormatError::Size { .. })), "{at}");
        }
    }

    #[test]
    fn a_file_of_another_model_is_foreign() {
        let whole = file(&[1], b"state");
        let size = whole.len() as u64;
        let other = read_head(&mut whole.as_slice(), size, &Fingerprint([8; 32]));
        assert!(matches!(other, Err(FormatError::Foreign)));
    }
}
