//! Attention in tiles: each batch is computed as a context computes it that
//! knows only that way, to the bit.

use rbee_llama::batch::{Batch, Logits};
use rbee_llama::context::Context;
use rbee_llama::context_params::{ContextParams, FlashAttention};
use rbee_llama::vocab::Token;

use crate::context;
use crate::oracle::tokens;

/// By how much a logit may differ where earlier tokens were computed in another way.
const NOISE: f32 = 1.5;

fn attending(flash_attention: FlashAttention) -> Context {
    context(|params: &mut ContextParams| {
        params.n_ctx = 2048;
        params.n_batch = 1024;
        params.n_ubatch = 512;
        params.n_seq_max = 2;
        params.n_outputs_max = 2;
        params.flash_attention = flash_attention;
    })
}

fn in_tiles(plain_tokens_max: u32) -> Context {
    attending(FlashAttention::InTiles { plain_tokens_max })
}

fn plain() -> Context {
    attending(FlashAttention::Off)
}

fn flash() -> Context {
    attending(FlashAttention::On)
}

fn text(len: usize) -> Vec<Token> {
    let words = tokens("In the beginning there was a small house by a river, and nobody in it. ");
    words.into_iter().cycle().take(len).collect()
}

/// Decodes the first tokens of a text for each sequence in one batch, and returns the last logits of each.
fn logits(context: &mut Context, lens: &[usize], position: u32) -> Vec<Vec<f32>> {
    let mut batch = Batch::with_capacity(1024);
    let mut rows = Vec::new();
    for (sequence, len) in (0..).zip(lens) {
        for (index, token) in text(*len).into_iter().enumerate() {
            let wanted = if index + 1 == *len { Logits::Want } else { Logits::Skip };
            let at = position + u32::try_from(index).expect("small");
            let row = batch.push(token, at, sequence, wanted).expect("the batch has room");
            if wanted == Logits::Want {
                rows.push(row);
            }
        }
    }
    context.decode(&batch).expect("the batch is decoded");
    rows.into_iter().map(|row| context.logits(row).expect("it was asked for").to_vec()).collect()
}

/// Tokens before a batch that is not shallow.
const DEEP: u32 = 300;

#[test]
fn a_batch_that_fills_tiles_or_sees_little_is_computed_by_flash_attention() {
    for lens in [&[64][..], &[300], &[63], &[100, 40]] {
        let found = logits(&mut in_tiles(256), lens, 0);
        assert!(found == logits(&mut flash(), lens, 0), "{lens:?}");
        assert!(found != logits(&mut plain(), lens, 0), "{lens:?}: the ways can be told apart");
    }
}

#[test]
fn few_tokens_that_see_many_are_computed_the_plain_way() {
    let mut context = in_tiles(256);
    logits(&mut context, &[DEEP as usize, DEEP as usize], 0);
    let states = [0, 1].map(|sequence| context.seq_state(sequence).expect("a state"));
    let goes_on = |mut context: Context, lens: &[usize]| {
        for (sequence, state) in (0..).zip(&states) {
            context.set_seq_state(sequence, state).expect("it is taken");
        }
        logits(&mut context, lens, DEEP)
    };
    for (lens, plain_tokens_max, is_plain) in [
        (&[64][..], 256, false),
        (&[63], 256, true),
        (&[63], 62, false),
        (&[1], 1, true),
        (&[100, 100], 256, false),
        (&[100, 40], 256, true),
        (&[100, 40], 100, false),
    ] {
        let found = goes_on(in_tiles(plain_tokens_max), lens);
        let expected = goes_on(plain(), lens);
        assert_eq!(found == expected, is_plain, "{lens:?} {plain_tokens_max}");
    }
}

#[test]
fn what_one_way_remembers_the_other_one_reads() {
    for lens in [[300, 1], [40, 90], [300, 300]] {
        let mut found = in_tiles(256);
        let mut expected = plain();
        let mut position = 0;
        for len in lens.into_iter().chain([1, 1, 5, 70, 1]) {
            let (found, expected) =
                (logits(&mut found, &[len], position), logits(&mut expected, &[len], position));
            let differences = found[0].iter().zip(&expected[0]).map(|(a, b)| (a - b).abs());
            let most = differences.fold(0.0, f32::max);
            assert!(most < NOISE, "{lens:?} {len} at {position}: {most}");
            position += u32::try_from(len).expect("small");
        }
        let state = found.seq_state(0).expect("a state");
        let mut copy = in_tiles(256);
        copy.set_seq_state(0, &state).expect("it is taken");
        assert!(logits(&mut copy, &[1], position) == logits(&mut found, &[1], position));
    }
}
