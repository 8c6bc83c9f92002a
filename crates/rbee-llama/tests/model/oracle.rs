//! The simplest possible generation: one sequence, one token a step, always the
//! likeliest. What cleverer ways of decoding are compared with.

use rbee_llama::batch::{Batch, Logits};
use rbee_llama::context::Context;
use rbee_llama::vocab::{AddSpecial, Special, Token};

use crate::{context, model};

/// A token and how far it was ahead of the next likeliest, in logits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) token: Token,
    pub(crate) lead: f32,
}

/// Below this lead the order of two tokens depends on how sums are rounded,
/// which differs between one row at a time and several.
pub(crate) const LEAD_MIN: f32 = 0.05;

pub(crate) fn tokens(text: &str) -> Vec<Token> {
    model().vocab().tokenize(text, AddSpecial::Yes, Special::Parse).expect("the text is tokenized")
}

pub(crate) fn text(tokens: impl IntoIterator<Item = Token>) -> String {
    let model = model();
    let bytes: Vec<u8> =
        tokens.into_iter().flat_map(|token| model.vocab().piece_bytes(token).to_vec()).collect();
    String::from_utf8(bytes).expect("whole tokens make whole characters")
}

/// The likeliest token.
pub(crate) fn best(logits: &[f32]) -> Step {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    Step {
        token: Token(u32::try_from(order[0]).expect("an index of the vocabulary")),
        lead: logits[order[0]] - logits[order[1]],
    }
}

/// Decodes tokens of one sequence and returns the likeliest next.
pub(crate) fn feed(context: &mut Context, tokens: &[Token], from: u32, sequence: u32) -> Step {
    let mut batch = Batch::with_capacity(tokens.len());
    let last = tokens.len() - 1;
    for (row, (position, token)) in (from..).zip(tokens).enumerate() {
        let logits = if row == last { Logits::Want } else { Logits::Skip };
        batch.push(*token, position, sequence, logits).expect("the batch has room");
    }
    context.decode(&batch).expect("the batch is decoded");
    best(context.logits(last).expect("the last row has logits"))
}

/// Continues a prompt by up to `n` tokens, or until the model ends.
pub(crate) fn generate(prompt: &[Token], n: usize) -> Vec<Step> {
    let model = model();
    let mut context = context(|_| ());
    let mut position = u32::try_from(prompt.len()).expect("a short prompt");
    let mut step = feed(&mut context, prompt, 0, 0);
    let mut steps = Vec::new();
    while steps.len() < n && !model.vocab().is_eog(step.token) {
        steps.push(step);
        step = feed(&mut context, &[step.token], position, 0);
        position += 1;
    }
    steps
}
