//! How a stream goes on at another worker: what a worker tells the queen beside
//! the events of a reply, and what the queen tells the next worker of it. Never
//! reaches a client: the queen takes it out of what she passes on, and passes on
//! no header of a client that would ask for it.

use input_validation::Sha256Hex;
use serde::{Deserialize, Serialize};

use crate::openai::Usage;

/// What a mark begins with. A comment to whoever reads server-sent events, and
/// framed as they are, so that a hive passes it on like any event.
pub const MARK_PREFIX: &[u8] = b": rbee ";

/// What a worker says between the events of a marked stream: once what heads
/// the reply, before its first event, and then what the events since the mark
/// before have told. An event that no mark follows counts as never sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// The reply begins, or goes on.
    Head(ReplyHead),
    /// What the events told, of each choice that they told of.
    Told(Vec<ChoiceProgress>),
    /// What all of the reply took, whoever made it; stands before its last
    /// event, which no other mark follows.
    Usage(Usage),
}

/// What stays the same in all of a reply, whoever goes on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyHead {
    /// The reply's id.
    pub id: String,
    /// When it began, in seconds since the epoch.
    pub created: u64,
    /// What its choices are drawn with.
    pub seed: u64,
    /// SHA-256 of the model's file, where the worker was told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_sha256: Option<Sha256Hex>,
}

/// How far one choice has come: in a mark since the mark before, in
/// [`Delivered`] since its beginning.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChoiceProgress {
    /// Which one, counted from 0.
    pub index: u32,
    /// The tokens chosen, those of held back text too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<u32>,
    /// Random numbers drawn so far, from the beginning of the reply.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub draws: u64,
    /// Tokens of the prompt; told with a choice's first mark, for the accounts.
    #[serde(default, skip_serializing_if = "is_no_token")]
    pub prompt_tokens: u32,
    /// Tokens of the prompt that did not have to be computed.
    #[serde(default, skip_serializing_if = "is_no_token")]
    pub cached_tokens: u32,
    /// How far the reply has been read, where it is more than content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reading: Option<ReadingProgress>,
    /// Whether its end has been told.
    #[serde(default, skip_serializing_if = "is_false")]
    pub has_ended: bool,
}

/// What has been told of a reply with thoughts or calls; lengths in bytes, from
/// the beginning of the reply.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadingProgress {
    /// Of what the model says.
    pub content_bytes: u32,
    /// Of what it thinks.
    pub reasoning_bytes: u32,
    /// Of the arguments of each call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments_bytes: Vec<u32>,
    /// Lengths of the text at which it was read for calls: in a mark those since
    /// the mark before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reads: Vec<u32>,
}

/// All that a client has of a reply, for the worker that goes on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    /// What heads the reply.
    pub head: ReplyHead,
    /// Its choices, as far as they were told of.
    pub choices: Vec<ChoiceProgress>,
}

impl Delivered {
    /// Begins with a reply of which nothing has been told.
    #[must_use]
    pub const fn new(head: ReplyHead) -> Self {
        Self { head, choices: Vec::new() }
    }

    /// Adds what a mark tells.
    pub fn add(&mut self, told: Vec<ChoiceProgress>) {
        for fresh in told {
            match self.choices.iter_mut().find(|choice| choice.index == fresh.index) {
                Some(choice) => choice.add(fresh),
                None => self.choices.push(fresh),
            }
        }
    }

    /// Returns how far a choice has come; `None` where nothing was told of it.
    #[must_use]
    pub fn choice(&self, index: u32) -> Option<&ChoiceProgress> {
        self.choices.iter().find(|choice| choice.index == index)
    }

    /// Returns the number of tokens and places that are remembered, of all choices.
    #[must_use]
    pub fn entries(&self) -> usize {
        let reads = |choice: &ChoiceProgress| choice.reading.as_ref().map_or(0, |r| r.reads.len());
        self.choices.iter().map(|choice| choice.tokens.len() + reads(choice)).sum()
    }
}

impl ChoiceProgress {
    fn add(&mut self, fresh: Self) {
        let Self { index: _, tokens, draws, prompt_tokens, cached_tokens, reading, has_ended } =
            fresh;
        self.tokens.extend(tokens);
        self.draws = draws;
        self.prompt_tokens = self.prompt_tokens.max(prompt_tokens);
        self.cached_tokens = cached_tokens;
        self.has_ended |= has_ended;
        if let Some(mut reading) = reading {
            let before = self.reading.take().map(|before| before.reads).unwrap_or_default();
            reading.reads.splice(0..0, before);
            self.reading = Some(reading);
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
const fn is_no_token(number: &u32) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
const fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(index: u32, tokens: &[u32], draws: u64) -> ChoiceProgress {
        ChoiceProgress { index, tokens: tokens.to_vec(), draws, ..ChoiceProgress::default() }
    }

    #[test]
    fn what_marks_tell_adds_up() {
        let head = ReplyHead { id: "r".to_owned(), created: 1, seed: u64::MAX, model_sha256: None };
        let mut delivered = Delivered::new(head);
        let reading = |content_bytes, reads: &[u32]| {
            Some(ReadingProgress {
                content_bytes,
                reads: reads.to_vec(),
                ..ReadingProgress::default()
            })
        };
        let first = ChoiceProgress { reading: reading(3, &[5]), ..progress(1, &[7], 2) };
        delivered.add(vec![progress(0, &[1, 2], 0), first]);
        let last =
            ChoiceProgress { reading: reading(9, &[8, 9]), has_ended: true, ..progress(1, &[], 4) };
        delivered.add(vec![last]);
        let expected = ChoiceProgress {
            reading: reading(9, &[5, 8, 9]),
            has_ended: true,
            ..progress(1, &[7], 4)
        };
        assert_eq!(delivered.choice(1), Some(&expected));
        assert_eq!(delivered.choice(0), Some(&progress(0, &[1, 2], 0)));
        assert_eq!(delivered.entries(), 6);
        let text = serde_json::to_string(&delivered).unwrap();
        assert_eq!(serde_json::from_str::<Delivered>(&text).unwrap(), delivered);
    }

    #[test]
    fn a_mark_is_short_where_there_is_little_to_tell() {
        let mark = Mark::Told(vec![progress(0, &[7], 0)]);
        assert_eq!(serde_json::to_string(&mark).unwrap(), r#"{"told":[{"index":0,"tokens":[7]}]}"#);
    }
}
