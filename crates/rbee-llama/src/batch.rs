//! The tokens of one decode step and the checks that keep llama.cpp from
//! aborting on them. Plain memory: computes nothing, knows no context.

use crate::vocab::Token;

/// Whether the logits after a token are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// Compute them; the row can then be read from the context.
    Want,
    /// Leave them out, as for all of a prompt but its last token.
    Skip,
}

/// A batch that has no room for another token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the batch already holds {capacity} tokens")]
pub struct BatchFull {
    /// The most it holds.
    pub capacity: usize,
}

/// What is wrong with a batch. The context is as it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBatch {
    /// There is no token in it.
    #[error("it is empty")]
    Empty,
    /// It holds more tokens than the context takes at once.
    #[error("it holds {len} tokens and the context takes {max}")]
    TooManyTokens {
        /// Tokens in the batch.
        len: usize,
        /// Tokens the context takes.
        max: usize,
    },
    /// It asks for more rows of logits than the context has room for.
    #[error("it asks for {len} rows of logits and the context has room for {max}")]
    TooManyOutputs {
        /// Rows asked for.
        len: usize,
        /// Rows there is room for.
        max: usize,
    },
    /// A token is not in the vocabulary.
    #[error("the token in row {row} is not in the vocabulary")]
    UnknownToken {
        /// Where it stands.
        row: usize,
    },
    /// A sequence is beyond those of the context.
    #[error("the sequence in row {row} does not exist")]
    UnknownSequence {
        /// Where it stands.
        row: usize,
    },
    /// A position is beyond 2³¹.
    #[error("the position in row {row} is too large")]
    PositionTooLarge {
        /// Where it stands.
        row: usize,
    },
    /// The positions of a sequence leave a gap, go back, or do not go on from
    /// what the context holds of it.
    #[error("its positions do not continue the sequences of the context")]
    NotConsecutive,
}

/// What a context takes in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchLimits {
    pub(crate) n_tokens: usize,
    pub(crate) n_outputs: usize,
    pub(crate) n_sequences: u32,
    pub(crate) n_vocab: usize,
    /// The context computes a row for every token, wanted or not.
    pub(crate) all_outputs: bool,
}

/// Tokens to decode together, each with its position and its sequence. Holds
/// its memory over `clear`, so that one batch serves a whole run.
#[derive(Clone, Debug)]
pub struct Batch {
    capacity: usize,
    tokens: Vec<Token>,
    positions: Vec<u32>,
    sequences: Vec<u32>,
    outputs: Vec<i8>,
}

impl Batch {
    /// Makes an empty batch with room for `n_tokens`.
    #[must_use]
    pub fn with_capacity(n_tokens: usize) -> Self {
        Self {
            capacity: n_tokens,
            tokens: Vec::with_capacity(n_tokens),
            positions: Vec::with_capacity(n_tokens),
            sequences: Vec::with_capacity(n_tokens),
            outputs: Vec::with_capacity(n_tokens),
        }
    }

    /// Takes all tokens out and keeps the memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.sequences.clear();
        self.outputs.clear();
    }

    /// Adds a token of `sequence` at `position`, counted from 0, and returns its
    /// row, by which the context is asked for the logits after it.
    ///
    /// # Errors
    /// The batch is full; it is unchanged.
    pub fn push(
        &mut self,
        token: Token,
        position: u32,
        sequence: u32,
        logits: Logits,
    ) -> Result<usize, BatchFull> {
        let row = self.len();
        if row >= self.capacity {
            return Err(BatchFull { capacity: self.capacity });
        }
        self.tokens.push(token);
        self.positions.push(position);
        self.sequences.push(sequence);
        self.outputs.push(i8::from(logits == Logits::Want));
        Ok(row)
    }

    /// The number of tokens in the batch.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token in the batch.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The number of tokens the batch has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Checks everything that llama.cpp would abort over.
    pub(crate) fn check(&self, limits: &BatchLimits) -> Result<(), InvalidBatch> {
        let len = self.len();
        if len == 0 {
            return Err(InvalidBatch::Empty);
        }
        if len > limits.n_tokens {
            return Err(InvalidBatch::TooManyTokens { len, max: limits.n_tokens });
        }
        let n_outputs = if limits.all_outputs {
            len
        } else {
            self.outputs.iter().filter(|output| **output != 0).count()
        };
        if n_outputs > limits.n_outputs {
            return Err(InvalidBatch::TooManyOutputs { len: n_outputs, max: limits.n_outputs });
        }
        let beyond = |values: &[u32], max: u32| values.iter().position(|value| *value >= max);
        let unknown_token = |token: &Token| token.0 as usize >= limits.n_vocab;
        if let Some(row) = self.tokens.iter().position(unknown_token) {
            return Err(InvalidBatch::UnknownToken { row });
        }
        if let Some(row) = beyond(&self.sequences, limits.n_sequences) {
            return Err(InvalidBatch::UnknownSequence { row });
        }
        if let Some(row) = beyond(&self.positions, i32::MAX.unsigned_abs()) {
            return Err(InvalidBatch::PositionTooLarge { row });
        }
        Ok(())
    }

    pub(crate) fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    pub(crate) fn positions(&self) -> &[u32] {
        &self.positions
    }

    pub(crate) fn sequences(&self) -> &[u32] {
        &self.sequences
    }

    /// 1 for each row whose logits are wanted, 0 for the others.
    pub(crate) fn outputs(&self) -> &[i8] {
        &self.outputs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BatchLimits =
        BatchLimits { n_tokens: 4, n_outputs: 2, n_sequences: 3, n_vocab: 100, all_outputs: false };

    /// Token, position, sequence, logits.
    type Row = (u32, u32, u32, Logits);

    fn batch(rows: &[Row]) -> Batch {
        let mut batch = Batch::with_capacity(8);
        for (token, position, sequence, logits) in rows {
            batch
                .push(Token(*token), *position, *sequence, *logits)
                .expect("the cases are shorter than the capacity");
        }
        batch
    }

    #[test]
    fn what_llama_cpp_would_abort_over_is_refused() {
        use InvalidBatch as Bad;
        use Logits::{Skip, Want};
        let cases: [(&[Row], Result<(), Bad>); 9] = [
            (&[], Err(Bad::Empty)),
            (&[(99, 0, 2, Want)], Ok(())),
            (&[(1, 0, 0, Skip); 4], Ok(())),
            (&[(1, 0, 0, Skip); 5], Err(Bad::TooManyTokens { len: 5, max: 4 })),
            (&[(1, 0, 0, Want); 3], Err(Bad::TooManyOutputs { len: 3, max: 2 })),
            (&[(1, 0, 0, Skip), (100, 1, 0, Skip)], Err(Bad::UnknownToken { row: 1 })),
            (&[(u32::MAX, 0, 0, Skip)], Err(Bad::UnknownToken { row: 0 })),
            (&[(1, 0, 3, Skip)], Err(Bad::UnknownSequence { row: 0 })),
            (&[(1, u32::MAX, 0, Skip)], Err(Bad::PositionTooLarge { row: 0 })),
        ];
        for (rows, expected) in cases {
            assert_eq!(batch(rows).check(&LIMITS), expected, "{rows:?}");
        }
    }

    #[test]
    fn a_context_that_outputs_every_row_counts_every_row() {
        let limits = BatchLimits { all_outputs: true, ..LIMITS };
        let rows = batch(&[(1, 0, 0, Logits::Skip); 3]);
        let refused = InvalidBatch::TooManyOutputs { len: 3, max: 2 };
        assert_eq!(rows.check(&limits), Err(refused));
    }

    #[test]
    fn a_full_batch_refuses_a_token_and_keeps_what_it_has() {
        let mut batch = Batch::with_capacity(2);
        assert_eq!(batch.push(Token(7), 0, 0, Logits::Skip), Ok(0));
        assert_eq!(batch.push(Token(8), 1, 0, Logits::Want), Ok(1));
        let full = batch.push(Token(9), 2, 0, Logits::Want);
        assert_eq!(full, Err(BatchFull { capacity: 2 }));
        assert_eq!(batch.tokens(), [Token(7), Token(8)]);
        assert_eq!(batch.outputs(), [0, 1]);
        batch.clear();
        assert_eq!(batch.push(Token(9), 0, 0, Logits::Want), Ok(0));
    }
}
