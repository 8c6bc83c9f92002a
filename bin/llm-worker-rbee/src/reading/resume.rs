//! Says how far a reply has been told, and brings the reader of a reply that
//! began elsewhere to where the one there was. What has been told depends on
//! when the text was read, so those places are told and read again.

use std::sync::Arc;

use rbee_api::continuation::ReadingProgress;

use super::{Extent, Phase, ReplyReader};

/// The text, read at the places that are told, gives another reply than was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what has been told of the reply is not what this worker reads in it")]
pub(crate) struct ReadsDifferently;

impl ReplyReader {
    /// Has the places told at which the text is read from now on.
    pub(crate) fn note_reads(&mut self) {
        self.reads.get_or_insert_default();
    }

    /// Returns how far the reply has been told; the places of reading are those
    /// since the last time.
    pub(crate) fn progress(&mut self) -> ReadingProgress {
        let reads = self.reads.as_mut().map(std::mem::take).unwrap_or_default();
        ReadingProgress { reads, ..self.lengths() }
    }

    /// Goes on after `text`, of which so much was told. The last reading tells
    /// as much as all of them did, nearly always and much sooner.
    ///
    /// # Errors
    /// [`ReadsDifferently`].
    pub(crate) fn resume(
        &mut self,
        text: &str,
        told: &ReadingProgress,
    ) -> Result<(), ReadsDifferently> {
        let last = told.reads.len().saturating_sub(1);
        for reads in [told.reads.get(last..).unwrap_or_default(), &told.reads] {
            let mut reader = Self::new(Arc::clone(&self.format), self.name.clone());
            reader.replay(text, reads);
            let lengths = reader.lengths();
            if lengths == (ReadingProgress { reads: Vec::new(), ..told.clone() }) {
                reader.reads = self.reads.take();
                *self = reader;
                return Ok(());
            }
        }
        Err(ReadsDifferently)
    }

    fn replay(&mut self, text: &str, reads: &[u32]) {
        // Whoever reads the reply has all of this.
        let mut told = Vec::new();
        for at in reads {
            let fresh = text.get(self.text.len()..*at as usize).unwrap_or_default();
            self.grow(fresh, &mut told);
            if let Phase::Parse { from, said } = self.phase {
                self.read(from, said, Extent::Begun, &mut told);
            }
        }
        let rest = text.get(self.text.len()..).unwrap_or_default();
        self.grow(rest, &mut told);
        if let Phase::Text { .. } = self.phase {
            self.tell_text(&mut told);
        }
    }

    fn lengths(&self) -> ReadingProgress {
        let bytes = |text: &str| u32::try_from(text.len()).unwrap_or(u32::MAX);
        ReadingProgress {
            content_bytes: bytes(&self.told.content),
            reasoning_bytes: bytes(&self.told.reasoning),
            arguments_bytes: self.told.calls.iter().map(|call| bytes(&call.arguments)).collect(),
            reads: Vec::new(),
        }
    }
}
