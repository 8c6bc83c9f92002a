//! Decoding: sense, batching, limits and stopping.

use rbee_llama::batch::{Batch, InvalidBatch, Logits};
use rbee_llama::context::{Context, ContextError, DecodeError, NoOutput};
use rbee_llama::context_params::{ContextParams, N_CTX_MAX};
use rbee_llama::kv_type::KvType;
use rbee_llama::vocab::Token;

use crate::oracle::{self, LEAD_MIN, best, feed, generate, tokens};
use crate::{context, model};

fn filled(rows: impl IntoIterator<Item = (Token, u32, u32, Logits)>) -> Batch {
    let mut batch = Batch::with_capacity(4096);
    for (token, position, sequence, logits) in rows {
        batch.push(token, position, sequence, logits).expect("the batch has room");
    }
    batch
}

#[test]
fn greedy_decoding_knows_the_capital_of_france() {
    let steps = generate(&tokens("The capital of France is"), 12);
    let answer = oracle::text(steps.iter().map(|step| step.token));
    assert!(answer.contains("Paris"), "{answer}");
}

#[test]
fn greedy_decoding_is_repeatable() {
    let prompt = tokens("Once upon a time, there was a");
    let runs = [generate(&prompt, 24), generate(&prompt, 24)].map(|steps| {
        let steps = steps.into_iter().map(|step| (step.token, step.lead));
        steps.collect::<Vec<_>>()
    });
    assert_eq!(runs[0], runs[1]);
}

#[test]
fn two_sequences_in_one_batch_say_what_each_says_alone() {
    let prompts = ["The capital of France is", "Water is made of hydrogen and"].map(tokens);
    let alone = prompts.each_ref().map(|prompt| generate(prompt, 16));
    // In a common memory keys stand in another order, and sums of them have other last digits:
    // of 200 tokens, leads were seen to differ by up to 0.45.
    for (kv_unified, close) in [(false, LEAD_MIN), (true, 0.5)] {
        let mut context = context(|params| {
            params.n_seq_max = 2;
            params.kv_unified = kv_unified;
        });
        for (sequence, prompt) in (0..).zip(&prompts) {
            feed(&mut context, prompt, 0, sequence);
        }
        // The tokens are the oracle's, so that one close call does not change the rest.
        for step in 0..15 {
            let row = |sequence: usize| {
                let position = u32::try_from(prompts[sequence].len() + step).expect("small");
                let id = u32::try_from(sequence).expect("small");
                (alone[sequence][step].token, position, id, Logits::Want)
            };
            context.decode(&filled([row(0), row(1)])).expect("the batch is decoded");
            for (sequence, alone) in alone.iter().enumerate() {
                let together = best(context.logits(sequence).expect("it was asked for"));
                let expected = alone[step + 1];
                assert!(
                    together.token == expected.token || expected.lead < close,
                    "unified {kv_unified}, sequence {sequence}, step {step}: {together:?} {expected:?}"
                );
            }
        }
    }
}

#[test]
fn a_prompt_in_pieces_says_what_it_says_whole() {
    let prompt = tokens("The first president of the United States of America was George");
    let whole = feed(&mut context(|_| ()), &prompt, 0, 0);
    let mut context = context(|_| ());
    let (first, second) = prompt.split_at(5);
    feed(&mut context, first, 0, 0);
    let pieces = feed(&mut context, second, 5, 0);
    assert!(whole.lead > LEAD_MIN, "the case is no close call");
    assert_eq!(pieces.token, whole.token);
}

#[test]
fn logits_exist_for_the_rows_that_asked_and_for_no_other() {
    let mut context = context(|params| params.n_outputs_max = 8);
    assert_eq!(context.logits(0), Err(NoOutput { index: 0 }), "nothing decoded");
    let rows = [Logits::Skip, Logits::Want, Logits::Skip, Logits::Want];
    let batch = filled((0..).zip(rows).map(|(at, logits)| (Token(100 + at), at, 0, logits)));
    context.decode(&batch).expect("the batch is decoded");
    for row in [0, 2, 4, 5, 511, 512, usize::MAX] {
        assert_eq!(context.logits(row), Err(NoOutput { index: row }));
    }
    for row in [1, 3] {
        let logits = context.logits(row).expect("it was asked for");
        assert_eq!(logits.len(), model().vocab().len());
        assert!(logits.iter().all(|logit| logit.is_finite()));
    }
    assert_ne!(context.logits(1), context.logits(3));

    context.decode(&Batch::with_capacity(1)).expect_err("it is empty");
    assert!(context.logits(1).is_err(), "a failed decode leaves no logits");
}

#[test]
fn a_wrong_batch_is_an_error_and_changes_nothing() {
    use Logits::{Skip, Want};
    let mut context = context(|params| {
        params.n_ctx = 256;
        params.n_batch = 64;
        params.n_ubatch = 64;
        params.n_seq_max = 2;
    });
    feed(&mut context, &[Token(1), Token(2)], 0, 0);
    let many = |n: u32, logits| filled((2..n + 2).map(|at| (Token(5), at, 0, logits)));
    let cases = [
        (filled([]), InvalidBatch::Empty),
        (many(65, Skip), InvalidBatch::TooManyTokens { len: 65, max: 64 }),
        (many(3, Want), InvalidBatch::TooManyOutputs { len: 3, max: 2 }),
        (filled([(Token(49152), 2, 0, Want)]), InvalidBatch::UnknownToken { row: 0 }),
        (filled([(Token(5), 2, 2, Want)]), InvalidBatch::UnknownSequence { row: 0 }),
        (filled([(Token(5), u32::MAX, 1, Want)]), InvalidBatch::PositionTooLarge { row: 0 }),
        (filled([(Token(5), 7, 0, Want)]), InvalidBatch::NotConsecutive),
        (filled([(Token(5), 1, 0, Want)]), InvalidBatch::NotConsecutive),
        (filled([(Token(5), 2, 0, Want), (Token(5), 4, 0, Want)]), InvalidBatch::NotConsecutive),
    ];
    for (batch, expected) in cases {
        match context.decode(&batch) {
            Err(DecodeError::Invalid(reason)) => assert_eq!(reason, expected),
            other => panic!("{expected:?}: {other:?}"),
        }
        assert_eq!(context.seq_pos_max(0), Some(1));
        assert_eq!(context.seq_pos_max(1), None);
    }
    feed(&mut context, &[Token(3)], 2, 0);
}

#[test]
fn a_full_memory_is_no_room_and_has_room_again_when_freed() {
    let mut context = context(|params| params.n_ctx = 256);
    assert_eq!((context.n_ctx(), context.n_ctx_seq()), (256, 256));
    let fill = vec![Token(5); 256];
    feed(&mut context, &fill, 0, 0);
    let one_more = filled([(Token(5), 256, 0, Logits::Want)]);
    let full = context.decode(&one_more);
    assert!(matches!(full, Err(DecodeError::NoRoom)), "{full:?}");
    context.seq_rm(0, 200..).expect("the tail is removed");
    feed(&mut context, &[Token(5)], 200, 0);
}

#[test]
fn an_abort_holds_until_it_is_lifted() {
    let mut context = context(|_| ());
    let handle = context.abort_handle();
    handle.abort();
    let batch = filled([(Token(5), 0, 0, Logits::Want)]);
    for _ in 0..2 {
        let aborted = context.decode(&batch);
        assert!(matches!(aborted, Err(DecodeError::Aborted)), "{aborted:?}");
        assert!(handle.is_aborted());
    }
    handle.allow();
    context.decode(&batch).expect("the batch is decoded");
}

/// Aborts a long decode after spinning `spins` times. Returns whether it was
/// aborted, and the last position that was remembered then.
fn abort_after(context: &mut Context, batch: &Batch, spins: u64) -> (bool, Option<u32>) {
    let handle = context.abort_handle();
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..spins {
                std::hint::spin_loop();
            }
            handle.abort();
        });
        context.decode(batch)
    });
    context.abort_handle().allow();
    let reached = context.seq_pos_max(0);
    context.clear();
    match result {
        Ok(()) => (false, reached),
        Err(DecodeError::Aborted) => (true, reached),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn a_running_decode_is_aborted_in_the_middle() {
    const LEN: u32 = 2048;
    let mut context = context(|params| {
        params.n_ctx = LEN;
        params.n_batch = LEN;
        params.n_ubatch = 32;
    });
    let batch = filled((0..LEN).map(|at| (Token(5), at, 0, Logits::Skip)));
    // Wait twice as long each time, until some of the batch was done before the abort.
    for doubling in 0..40 {
        let (aborted, reached) = abort_after(&mut context, &batch, 1 << doubling);
        assert!(aborted, "the decode ended before it was aborted");
        if let Some(reached) = reached {
            assert!(reached < LEN - 1);
            feed(&mut context, &tokens("It works again"), 0, 0);
            return;
        }
    }
    panic!("every abort came before the first part of the batch was done");
}

#[test]
fn every_way_to_store_the_cache_keeps_the_answer() {
    let prompt = tokens("The capital of France is");
    let exact = feed(&mut context(|_| ()), &prompt, 0, 0);
    assert!(exact.lead > LEAD_MIN, "the case is no close call");
    for kind in [KvType::F32, KvType::F16, KvType::Bf16, KvType::Q8_0] {
        let mut context = context(|params| (params.type_k, params.type_v) = (kind, kind));
        assert_eq!(feed(&mut context, &prompt, 0, 0).token, exact.token, "{kind:?}");
    }
}

#[test]
fn a_context_gives_embeddings_when_asked_to() {
    let mut with = context(|params| params.embeddings = true);
    let batch = filled([(Token(100), 0, 0, Logits::Skip), (Token(200), 1, 0, Logits::Skip)]);
    with.decode(&batch).expect("the batch is decoded");
    for row in 0..2 {
        let embedding = with.embedding(row).expect("every row has one");
        assert_eq!(embedding.len(), 576);
        assert!(embedding.iter().any(|number| *number != 0.0));
    }
    assert_ne!(with.embedding(0), with.embedding(1));
    assert!(with.embedding(2).is_err());
    assert!(with.embedding_of_sequence(0).is_err(), "this model does not pool");
    assert!(with.embedding_of_sequence(u32::MAX).is_err());

    let mut without = context(|_| ());
    feed(&mut without, &[Token(100)], 0, 0);
    assert!(without.embedding(0).is_err());
}

#[test]
fn a_context_too_large_for_the_machine_is_refused() {
    let params = ContextParams {
        n_ctx: N_CTX_MAX,
        type_k: KvType::F32,
        type_v: KvType::F32,
        ..ContextParams::default()
    };
    match Context::new(model(), &params) {
        Err(ContextError::Refused { reason }) => assert_ne!(reason, "no reason given"),
        other => panic!("{other:?}"),
    }
}
