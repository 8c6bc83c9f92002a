//! Reading forward through a header without ever believing a length. Owns the bounds; knows no meaning of any byte.

use std::io::{BufReader, ErrorKind, Read, Seek};

use super::GgufError;

/// Reads numbers and strings in order, and refuses to go beyond the file or the header limit.
pub(super) struct Cursor<R> {
    reader: BufReader<R>,
    position: u64,
    file_bytes: u64,
    header_bytes_max: u64,
}

impl<R: Read + Seek> Cursor<R> {
    pub(super) fn new(reader: R, file_bytes: u64, header_bytes_max: u64) -> Self {
        let reader = BufReader::with_capacity(64 << 10, reader);
        Self { reader, position: 0, file_bytes, header_bytes_max }
    }

    pub(super) const fn position(&self) -> u64 {
        self.position
    }

    pub(super) const fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Answers with an error unless `count` more things of at least `each` bytes fit into the header.
    pub(super) fn require(
        &self,
        count: u64,
        each: u64,
        what: &'static str,
    ) -> Result<u64, GgufError> {
        let needed = count.checked_mul(each).ok_or(GgufError::Overflow { what })?;
        if needed > self.file_bytes.saturating_sub(self.position) {
            let (offset, file_bytes) = (self.position, self.file_bytes);
            return Err(GgufError::Truncated { what, offset, needed, file_bytes });
        }
        if needed > self.header_bytes_max.saturating_sub(self.position) {
            return Err(GgufError::HeaderTooLarge { max: self.header_bytes_max });
        }
        Ok(needed)
    }

    pub(super) fn bytes<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, GgufError> {
        self.bytes(what).map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, GgufError> {
        self.bytes(what).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    /// Reads a string and keeps its first `kept_max` bytes.
    pub(super) fn text(
        &mut self,
        kept_max: usize,
        what: &'static str,
    ) -> Result<Vec<u8>, GgufError> {
        let length = self.u64(what)?;
        self.require(length, 1, what)?;
        let kept = usize::try_from(length).map_or(kept_max, |length| length.min(kept_max));
        let mut text = vec![0; kept];
        self.fill(&mut text, what)?;
        self.skip(length.saturating_sub(kept as u64), 1, what)?;
        Ok(text)
    }

    /// Passes over `count` things of `each` bytes.
    pub(super) fn skip(
        &mut self,
        count: u64,
        each: u64,
        what: &'static str,
    ) -> Result<(), GgufError> {
        let length = self.require(count, each, what)?;
        let distance = i64::try_from(length).map_err(|_beyond| GgufError::Overflow { what })?;
        self.reader.seek_relative(distance)?;
        self.position += length;
        Ok(())
    }

    fn fill(&mut self, bytes: &mut [u8], what: &'static str) -> Result<(), GgufError> {
        let needed = self.require(bytes.len() as u64, 1, what)?;
        match self.reader.read_exact(bytes) {
            Ok(()) => {
                self.position += needed;
                Ok(())
            }
            // The file has shrunk since its length was taken.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                let (offset, file_bytes) = (self.position, self.position);
                Err(GgufError::Truncated { what, offset, needed, file_bytes })
            }
            Err(error) => Err(error.into()),
        }
    }
}
