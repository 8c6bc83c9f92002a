//! Edits what a context remembers: removing, sharing and measuring sequences.
//! Decides nothing about which to keep.
#![expect(unsafe_code, reason = "calls llama.cpp's memory functions")]

use std::ops::{Bound, RangeBounds};

use llama_cpp_sys_2 as sys;

use crate::context::Context;

/// Why the memory was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The sequence is beyond those of the context.
    #[error("sequence {sequence} does not exist")]
    UnknownSequence {
        /// The sequence asked for.
        sequence: u32,
    },
    /// The model keeps a state that cannot be cut there; remove the whole sequence.
    #[error("a part of sequence {sequence} cannot be removed")]
    CannotCut {
        /// The sequence to cut.
        sequence: u32,
    },
    /// llama.cpp did not write or read the state of a sequence.
    #[error("the state of sequence {sequence} cannot be moved")]
    State {
        /// The sequence asked for.
        sequence: u32,
    },
    /// Sequences with memory of their own can be copied only whole.
    #[error("sequence {sequence} can be copied only whole")]
    CannotCopyPart {
        /// The sequence to copy from.
        sequence: u32,
    },
}

impl Context {
    /// Forgets the tokens of a sequence at the positions in `range`; `..` is the
    /// whole sequence, which always succeeds. A token that another sequence
    /// shares stays for that one.
    ///
    /// # Errors
    /// The sequence does not exist, or its model keeps a state that cannot be
    /// cut there; then nothing is changed.
    pub fn seq_rm(
        &mut self,
        sequence: u32,
        range: impl RangeBounds<u32>,
    ) -> Result<(), MemoryError> {
        let id = self.sequence_id(sequence)?;
        let (from, to) = positions(&range);
        // SAFETY: the memory belongs to this context and is null or valid; the
        // sequence exists.
        let removed = unsafe { sys::llama_memory_seq_rm(self.memory(), id, from, to) };
        if removed { Ok(()) } else { Err(MemoryError::CannotCut { sequence }) }
    }

    /// Makes `target` remember what `source` does at the positions in `range`,
    /// and nothing else. In a unified memory the two share the tokens, at no
    /// cost; otherwise the range must cover the whole source, which is copied
    /// during the next decode.
    ///
    /// # Errors
    /// A sequence does not exist, or a part was asked for where only the whole
    /// can be copied; then nothing is changed.
    pub fn seq_cp(
        &mut self,
        source: u32,
        target: u32,
        range: impl RangeBounds<u32>,
    ) -> Result<(), MemoryError> {
        let from_id = self.sequence_id(source)?;
        let to_id = self.sequence_id(target)?;
        if source == target {
            return Ok(());
        }
        let (mut from, mut to) = positions(&range);
        if self.sequences_apart() {
            let end = self.seq_pos_max(source).map_or(0, |last| last + 1);
            if !(range.contains(&0) || end == 0) || (end > 0 && !range.contains(&(end - 1))) {
                return Err(MemoryError::CannotCopyPart { sequence: source });
            }
            (from, to) = (-1, -1);
        }
        self.seq_rm(target, ..)?;
        // SAFETY: the memory belongs to this context and is null or valid; both
        // sequences exist; between memories of their own only the whole is copied.
        unsafe { sys::llama_memory_seq_cp(self.memory(), from_id, to_id, from, to) }
        Ok(())
    }

    /// Copies what is remembered of a sequence out of the context, in llama.cpp's
    /// own form: good for [`Self::set_seq_state`] on a context of the same
    /// model and types, also in another process.
    ///
    /// # Errors
    /// The sequence does not exist, or llama.cpp could not write its state.
    pub fn seq_state(&mut self, sequence: u32) -> Result<Vec<u8>, MemoryError> {
        let id = self.sequence_id(sequence)?;
        let failed = MemoryError::State { sequence };
        // SAFETY: the context is valid and the sequence exists.
        let size = unsafe { sys::llama_state_seq_get_size(self.raw().as_ptr(), id) };
        let mut state = Vec::new();
        state.try_reserve_exact(size).map_err(|_| failed)?;
        state.resize(size, 0);
        // SAFETY: as above; the buffer has `size` bytes.
        let written = unsafe {
            sys::llama_state_seq_get_data(self.raw().as_ptr(), state.as_mut_ptr(), size, id)
        };
        if written == 0 || written > size {
            return Err(failed);
        }
        state.truncate(written);
        Ok(state)
    }

    /// Makes a sequence remember what [`Self::seq_state`] has copied out, and
    /// nothing else. The bytes must be unchanged: llama.cpp trusts them.
    ///
    /// # Errors
    /// The sequence does not exist, or the context has no room for the state;
    /// then what the sequence remembers is unknown until it is removed.
    pub fn set_seq_state(&mut self, sequence: u32, state: &[u8]) -> Result<(), MemoryError> {
        let id = self.sequence_id(sequence)?;
        // SAFETY: the context is valid, the sequence exists, and the buffer has
        // as many bytes as are said.
        let read = unsafe {
            sys::llama_state_seq_set_data(self.raw().as_ptr(), state.as_ptr(), state.len(), id)
        };
        if read == 0 { Err(MemoryError::State { sequence }) } else { Ok(()) }
    }

    /// The first position remembered of a sequence: 0, or more when attention
    /// no longer reaches the beginning. `None` for an empty or unknown one.
    #[must_use]
    pub fn seq_pos_min(&self, sequence: u32) -> Option<u32> {
        let id = self.sequence_id(sequence).ok()?;
        // SAFETY: the memory belongs to this context and is null or valid; the
        // sequence exists.
        position(unsafe { sys::llama_memory_seq_pos_min(self.memory(), id) })
    }

    /// The last position remembered of a sequence; the next token goes after it.
    /// `None` for an empty or unknown one.
    #[must_use]
    pub fn seq_pos_max(&self, sequence: u32) -> Option<u32> {
        let id = self.sequence_id(sequence).ok()?;
        // SAFETY: as in `seq_pos_min`.
        position(unsafe { sys::llama_memory_seq_pos_max(self.memory(), id) })
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        if !self.memory().is_null() {
            // SAFETY: the memory belongs to this context and is not null.
            unsafe { sys::llama_memory_clear(self.memory(), false) }
        }
    }

    fn sequence_id(&self, sequence: u32) -> Result<sys::llama_seq_id, MemoryError> {
        let unknown = MemoryError::UnknownSequence { sequence };
        if sequence >= self.n_seq_max() {
            return Err(unknown);
        }
        sys::llama_seq_id::try_from(sequence).map_err(|_| unknown)
    }
}

/// A range as llama.cpp takes it: from the first, to before the last; -1 is open.
fn positions(range: &impl RangeBounds<u32>) -> (sys::llama_pos, sys::llama_pos) {
    let clamped = |position: u32| sys::llama_pos::try_from(position).unwrap_or(sys::llama_pos::MAX);
    let from = match range.start_bound() {
        Bound::Included(first) => clamped(*first),
        Bound::Excluded(before) => clamped(before.saturating_add(1)),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(last) => clamped(last.saturating_add(1)),
        Bound::Excluded(end) => clamped(*end),
        Bound::Unbounded => -1,
    };
    (from, to)
}

/// A position that llama.cpp returned; it says "none" with a negative number.
fn position(position: sys::llama_pos) -> Option<u32> {
    u32::try_from(position).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_reaches_llama_cpp_half_open() {
        assert_eq!(positions(&(..)), (0, -1));
        assert_eq!(positions(&(5..)), (5, -1));
        assert_eq!(positions(&(..5)), (0, 5));
        assert_eq!(positions(&(2..=5)), (2, 6));
        assert_eq!(positions(&(3..3)), (3, 3), "an empty range stays empty");
        assert_eq!(positions(&(..u32::MAX)), (0, i32::MAX));
    }
}
