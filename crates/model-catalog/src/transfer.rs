//! Moving a model's bytes. Owns the loop that copies, hashes and reports; knows no file name.

use std::io::{self, Read, Write};
use std::ops::ControlFlow;

use input_validation::Sha256Hex;
use sha2::{Digest as _, Sha256};

use crate::StoreError;

/// Bytes moved between two reports: a few milliseconds of work, so that a cancellation is obeyed at once.
const PIECE_BYTES: usize = 1 << 20;

/// Says how far an import has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read and hashed so far.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
}

/// Hears of progress, and ends the work by answering `Break`.
pub(crate) type OnProgress<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// Copies exactly `bytes_total` bytes and returns their digest.
///
/// Ends with [`StoreError::Changed`] when `reader` holds more or fewer.
pub(crate) fn copy_and_hash(
    reader: &mut impl Read,
    writer: &mut impl Write,
    bytes_total: u64,
    on_progress: &mut OnProgress<'_>,
) -> Result<Sha256Hex, StoreError> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; PIECE_BYTES];
    let mut bytes_done = 0_u64;
    loop {
        if on_progress(Progress { bytes_done, bytes_total }).is_break() {
            return Err(StoreError::Cancelled);
        }
        let count = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(StoreError::Unreadable { source }),
        };
        let piece = buffer.get(..count).unwrap_or_default();
        bytes_done += count as u64;
        if bytes_done > bytes_total {
            return Err(StoreError::Changed);
        }
        hasher.update(piece);
        writer
            .write_all(piece)
            .map_err(|source| StoreError::Io { action: "write the model file", source })?;
    }
    if bytes_done != bytes_total {
        return Err(StoreError::Changed);
    }
    Ok(Sha256Hex::from_bytes(&hasher.finalize().into()))
}

/// Reads exactly `bytes_total` bytes and returns their digest.
pub(crate) fn hash(
    reader: &mut impl Read,
    bytes_total: u64,
    on_progress: &mut OnProgress<'_>,
) -> Result<Sha256Hex, StoreError> {
    copy_and_hash(reader, &mut io::sink(), bytes_total, on_progress)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes some bytes and then has no room.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let count = bytes.len().min(self.0);
            self.0 -= count;
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn go_on(_: Progress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    #[test]
    fn the_copy_is_whole_and_the_digest_its_own() {
        let content = vec![7_u8; PIECE_BYTES * 2 + 1];
        let mut copy = Vec::new();
        let mut reports = Vec::new();
        let mut report = |progress: Progress| {
            reports.push(progress.bytes_done);
            ControlFlow::Continue(())
        };
        let total = content.len() as u64;
        let digest = copy_and_hash(&mut content.as_slice(), &mut copy, total, &mut report).unwrap();
        assert_eq!(copy, content);
        assert_eq!(digest, Sha256Hex::from_bytes(&Sha256::digest(&content).into()));
        assert_eq!(reports, [0, PIECE_BYTES as u64, 2 * PIECE_BYTES as u64, total]);
        // FIPS 180-2: SHA-256("abc").
        let known = hash(&mut b"abc".as_slice(), 3, &mut go_on).unwrap();
        assert_eq!(&known.as_str()[..16], "ba7816bf8f01cfea");
    }

    #[test]
    fn a_source_of_another_length_has_changed() {
        for total in [0, 2, 4, u64::MAX] {
            let result = hash(&mut b"abc".as_slice(), total, &mut go_on);
            assert!(matches!(result, Err(StoreError::Changed)), "{total}");
        }
    }

    #[test]
    fn a_full_disk_and_a_cancellation_end_the_copy() {
        let content = vec![1_u8; 3 * PIECE_BYTES];
        let total = content.len() as u64;
        let result =
            copy_and_hash(&mut content.as_slice(), &mut Full(PIECE_BYTES + 9), total, &mut go_on);
        let Err(StoreError::Io { source, .. }) = result else { panic!("{result:?}") };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        let mut stop_at_two =
            |progress: Progress| match progress.bytes_done < 2 * PIECE_BYTES as u64 {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            };
        let result = hash(&mut content.as_slice(), total, &mut stop_at_two);
        assert!(matches!(result, Err(StoreError::Cancelled)), "{result:?}");
    }
}
