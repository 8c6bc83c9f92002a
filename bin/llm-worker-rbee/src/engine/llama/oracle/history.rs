//! By which steps the tokens of a slot came to be there, wherever they were computed, and what a plain loop says that
//! takes the same steps alone.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Mutex;

use super::*;

/// The tokens of one step, of which the first are kept.
#[derive(Debug, Clone)]
struct Piece {
    tokens: Vec<u32>,
    outputs: usize,
    kept: usize,
}

/// The pieces that a slot holds.
#[derive(Debug, Clone, Default)]
pub(super) struct History(Vec<Piece>);

/// Those of states outside of contexts, by what is in them; a state on disk outlives its engine.
static STATES: Mutex<Option<HashMap<u64, History>>> = Mutex::new(None);

fn name_of(state: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

impl History {
    pub(super) fn push(&mut self, run: &Run<'_>) {
        self.cut(run.position);
        let (tokens, outputs) = (run.tokens.to_vec(), run.outputs as usize);
        self.0.push(Piece { kept: tokens.len(), outputs, tokens });
    }

    pub(super) fn cut(&mut self, len: u32) {
        let mut left = len as usize;
        self.0.retain_mut(|piece| {
            piece.kept = piece.kept.min(left);
            left -= piece.kept;
            piece.kept > 0
        });
        assert_eq!(left, 0, "a slot holds tokens that no step computed");
    }

    pub(super) fn first(&self, len: u32) -> Self {
        let mut first = self.clone();
        first.cut(len);
        first
    }

    pub(super) fn keep(self, state: &[u8]) {
        STATES.lock().unwrap().get_or_insert_default().insert(name_of(state), self);
    }

    pub(super) fn kept(state: &[u8], len: u32) -> Self {
        let states = STATES.lock().unwrap();
        states
            .as_ref()
            .and_then(|states| states.get(&name_of(state)))
            .expect("a state that was saved")
            .first(len)
    }

    /// Takes the same steps in a context of its own. Each token of the reply to a prompt must be the best one there, or one
    /// beside which it is as good as equal. Returns where those are that were compared.
    pub(super) fn assert_says(
        &self,
        question: &str,
        (prompt, reply): (&[u32], &[u32]),
        gap_that_decides: f32,
    ) -> BTreeSet<usize> {
        let said = [prompt, reply].concat();
        let mut context = Context::new(model(), &alone(Sizes { slots: 1, ..SIZES })).unwrap();
        let mut batch = Batch::with_capacity(STEP_TOKENS as usize);
        let (mut position, mut compared) = (0, BTreeSet::new());
        for piece in &self.0 {
            batch.clear();
            let first_output = piece.tokens.len() - piece.outputs;
            let mut rows = Vec::new();
            for (index, token) in piece.tokens.iter().enumerate() {
                let logits = if index < first_output { Logits::Skip } else { Logits::Want };
                let at = u32::try_from(position + index).unwrap();
                rows.push(batch.push(Token(*token), at, 0, logits).unwrap());
            }
            context.decode(&batch).unwrap();
            for (index, row) in rows.into_iter().enumerate().skip(first_output) {
                let next = position + index + 1;
                let follows = said.get(position..next) == piece.tokens.get(..=index);
                if !follows || next < prompt.len() || next >= said.len() {
                    continue;
                }
                let logits = context.logits(row).unwrap();
                let lag = best_of(logits) - logits[said[next] as usize];
                assert!(
                    lag < gap_that_decides,
                    "{question}: token {} lags by {lag}\n{reply:?}\n{:?}",
                    next - prompt.len(),
                    self.lengths()
                );
                compared.insert(next);
            }
            position += piece.kept;
            context.seq_rm(0, u32::try_from(position).unwrap()..).unwrap();
        }
        compared
    }

    fn lengths(&self) -> Vec<(usize, usize)> {
        self.0.iter().map(|piece| (piece.tokens.len(), piece.kept)).collect()
    }
}

fn best_of(logits: &[f32]) -> f32 {
    logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}
