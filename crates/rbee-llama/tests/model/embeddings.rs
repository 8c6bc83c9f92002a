//! Embeddings: pooled as asked, the same whole and in parts, and only when on.

use rbee_llama::batch::{Batch, Logits};
use rbee_llama::context::{Context, ContextError};
use rbee_llama::context_params::{ContextParams, ParamsError, Pooling};
use rbee_llama::vocab::Token;

use crate::oracle::tokens;
use crate::{context, model};

fn decode(context: &mut Context, tokens: &[Token], from: u32, sequence: u32) {
    let mut batch = Batch::with_capacity(512);
    for (position, token) in (from..).zip(tokens) {
        batch.push(*token, position, sequence, Logits::Want).expect("the batch has room");
    }
    context.decode(&batch).expect("the batch is decoded");
}

fn skip(context: &mut Context, tokens: &[Token]) {
    let mut batch = Batch::with_capacity(512);
    for (position, token) in (0..).zip(tokens) {
        batch.push(*token, position, 0, Logits::Skip).expect("the batch has room");
    }
    context.decode(&batch).expect("the batch is decoded");
}

fn pooled(pooling: Pooling, tokens: &[Token]) -> Vec<f32> {
    let mut context = context(|params| {
        params.embeddings = true;
        params.pooling = Some(pooling);
    });
    assert_eq!(context.pooling(), pooling);
    decode(&mut context, tokens, 0, 0);
    context.embedding_of_sequence(0).expect("it is pooled").to_vec()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn the_last_token_alone_gives_what_the_whole_text_does() {
    let text = tokens("The bees make honey in a hive under the old oak tree");
    let whole = pooled(Pooling::Last, &text);
    let mut context = context(|params| params.pooling = Some(Pooling::Last));
    assert!(context.is_causal());
    let (last, before) = text.split_last().expect("there are tokens");
    skip(&mut context, before);
    assert!(context.embedding_of_sequence(0).is_err(), "embeddings are off");
    context.set_embeddings(true);
    let position = u32::try_from(before.len()).expect("small");
    decode(&mut context, &[*last], position, 0);
    let parts = context.embedding_of_sequence(0).expect("embeddings are on");
    assert!(cosine(&whole, parts) > 0.9999, "{}", cosine(&whole, parts));
    assert!(
        cosine(&whole, &pooled(Pooling::Mean, &text)) < 0.99,
        "the pooling makes no difference"
    );
}

#[test]
fn what_llama_cpps_pooling_would_abort_over_is_refused() {
    let params = ContextParams {
        n_ctx: 1024,
        n_ubatch: 500,
        n_seq_max: 8,
        embeddings: true,
        pooling: Some(Pooling::Mean),
        ..ContextParams::default()
    };
    let refused = Context::new(model(), &params);
    let Err(ContextError::Params(ParamsError::OutOfRange { name, .. })) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(name, "n_ubatch");
    let whole = ContextParams { n_ubatch: 504, ..params };
    assert!(Context::new(model(), &whole).is_ok());
}
