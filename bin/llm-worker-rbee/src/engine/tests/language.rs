//! A language of five letters, in which the likeliest next token follows from all those before it, and what a plain
//! loop says in it: a token after the other, each drawn from the row of logits after all before.

use rbee_api::openai::Sampling;

use crate::sampler::Sampler;

/// The token that ends a reply.
pub(super) const END: u32 = 5;
pub(super) const LETTERS: [&[u8]; 5] = [b"a", b"b", b"c", b"d", b"e"];
/// The logit of the likeliest token; those of the others lie between 0 and 2.
const LIKELIEST: f32 = 3.0;
/// The logit of the end elsewhere, so that replies that are drawn have some length.
const END_ELSEWHERE: f32 = -1.0;

/// Takes the likeliest token.
pub(super) fn greedy() -> Sampling {
    Sampling { temperature: 0.0, ..Sampling::default() }
}

/// The logits of all tokens after `tokens`. The likeliest follows mostly from the last two, so that it can be guessed
/// from what stood before, and sometimes from all of them.
pub(super) fn row(tokens: &[u32]) -> [f32; 6] {
    let mut all = 17_u64;
    for token in tokens {
        all = (all ^ u64::from(*token)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        all ^= all >> 29;
    }
    let tail: u32 = tokens.iter().rev().take(2).zip([1, 2]).map(|(t, weight)| t % 5 * weight).sum();
    let likeliest =
        if all.is_multiple_of(61) { END } else { (tail + u32::from(all.is_multiple_of(5))) % 5 };
    let mut row = [0.0; 6];
    for (place, logit) in row.iter_mut().enumerate() {
        *logit = f32::from(all.to_le_bytes()[place]) / 128.0;
    }
    row[END as usize] = END_ELSEWHERE;
    row[likeliest as usize] = LIKELIEST;
    row
}

/// What a plain loop answers, and how many random numbers it draws for that.
pub(super) fn said_plainly(
    prompt: &[u32],
    tokens_max: u32,
    sampling: &Sampling,
) -> (Vec<u32>, u64) {
    let mut sampler = Sampler::new(sampling.clone(), 1);
    sampler.accept(prompt);
    let mut tokens = prompt.to_vec();
    for _ in 0..tokens_max {
        match sampler.choose(&row(&tokens)) {
            None | Some(END) => break,
            Some(token) => tokens.push(token),
        }
    }
    (tokens.split_off(prompt.len()), sampler.draws())
}

/// A reply's text.
pub(super) fn text_of(reply: &[u32]) -> String {
    let letters = reply.iter().flat_map(|token| LETTERS[*token as usize].iter());
    letters.map(|byte| char::from(*byte)).collect()
}

#[test]
fn different_things_are_said_after_different_prompts_and_by_different_seeds() {
    let drawn = |seed| Sampling { temperature: 1.5, seed: Some(seed), ..Sampling::default() };
    let replies: std::collections::HashSet<Vec<u32>> =
        (0..50).map(|first| said_plainly(&[first, 7, 7, 7], 30, &greedy()).0).collect();
    assert!(replies.len() > 40, "{}", replies.len());
    let replies: std::collections::HashSet<Vec<u32>> =
        (0..50).map(|seed| said_plainly(&[7; 4], 30, &drawn(seed)).0).collect();
    assert!(replies.len() > 40, "{}", replies.len());
    assert_eq!(said_plainly(&[7; 4], 30, &drawn(3)), said_plainly(&[7; 4], 30, &drawn(3)));
}
