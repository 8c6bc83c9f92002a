//! Gathers what the marks of a stream tell: how far each choice has come with
//! the frames before. A mark is written only where the frames tell all that is
//! to be told of the tokens, so that nothing has to be made twice or is missing.

use bytes::{BufMut, BytesMut};
use rbee_api::continuation::{ChoiceProgress, MARK_PREFIX, Mark};

use super::Telling;
use crate::engine::Trace;

/// The marks of one stream.
#[derive(Debug)]
pub(super) struct Marker {
    choices: Vec<Unmarked>,
}

/// One choice since the last mark.
#[derive(Debug, Default)]
struct Unmarked {
    progress: ChoiceProgress,
    is_fresh: bool,
    /// The length of the prompt was told, which is done once.
    prompt_is_told: bool,
    /// Tokens whose log probabilities the engine holds back with their text.
    is_partial: bool,
}

impl Marker {
    pub(super) fn new(choices: u32) -> Self {
        let unmarked = |index| Unmarked {
            progress: ChoiceProgress { index, ..ChoiceProgress::default() },
            ..Unmarked::default()
        };
        Self { choices: (0..choices).map(unmarked).collect() }
    }

    /// Takes in what a part of a choice tells, which has been written.
    pub(super) fn note(&mut self, choice: u32, trace: Trace, has_ended: bool) {
        let Some(choice) = self.choices.get_mut(choice as usize) else { return };
        choice.progress.tokens.extend(trace.tokens);
        choice.progress.draws = trace.draws;
        choice.progress.cached_tokens = trace.cached_tokens;
        if !choice.prompt_is_told {
            choice.progress.prompt_tokens = trace.prompt_tokens;
        }
        choice.progress.has_ended |= has_ended;
        choice.is_fresh = true;
        choice.is_partial = !(trace.is_whole || has_ended);
    }

    /// Writes the mark of the frames since the last one, if they are whole.
    pub(super) fn write(
        &mut self,
        told: &mut [Telling],
        asks_logprobs: bool,
        out: &mut BytesMut,
    ) -> Result<(), serde_json::Error> {
        let is_partial = |unmarked: &Unmarked, telling: &Telling| {
            asks_logprobs && (unmarked.is_partial || !telling.untold.is_empty())
        };
        let mut both = self.choices.iter().zip(told.iter());
        if both.any(|(unmarked, telling)| is_partial(unmarked, telling)) {
            return Ok(());
        }
        let fresh = self.choices.iter_mut().zip(told).filter(|(unmarked, _)| unmarked.is_fresh);
        let marked: Vec<_> = fresh
            .map(|(unmarked, telling)| {
                unmarked.is_fresh = false;
                unmarked.prompt_is_told = true;
                let tokens = std::mem::take(&mut unmarked.progress.tokens);
                let prompt_tokens = std::mem::take(&mut unmarked.progress.prompt_tokens);
                let reading = telling.reader.as_mut().map(crate::reading::ReplyReader::progress);
                ChoiceProgress { tokens, prompt_tokens, reading, ..unmarked.progress.clone() }
            })
            .collect();
        if marked.is_empty() { Ok(()) } else { write_mark(out, &Mark::Told(marked)) }
    }
}

/// Appends one mark.
pub(super) fn write_mark(out: &mut BytesMut, mark: &Mark) -> Result<(), serde_json::Error> {
    out.put_slice(MARK_PREFIX);
    serde_json::to_writer(out.writer(), mark)?;
    out.put_slice(b"\n\n");
    Ok(())
}
