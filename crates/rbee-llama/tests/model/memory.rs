//! What a context remembers, and how sequences share it.

use rbee_llama::memory::MemoryError;
use rbee_llama::vocab::Token;

use crate::context;
use crate::oracle::{LEAD_MIN, feed, tokens};

#[test]
fn positions_follow_what_is_decoded_and_removed() {
    let mut context = context(|params| params.n_seq_max = 2);
    assert_eq!((context.seq_pos_min(0), context.seq_pos_max(0)), (None, None));
    feed(&mut context, &[Token(5); 10], 0, 0);
    feed(&mut context, &[Token(6); 4], 0, 1);
    assert_eq!((context.seq_pos_min(0), context.seq_pos_max(0)), (Some(0), Some(9)));

    context.seq_rm(0, 6..).expect("the tail is removed");
    assert_eq!(context.seq_pos_max(0), Some(5));
    context.seq_rm(0, 3..3).expect("nothing is removed");
    assert_eq!(context.seq_pos_max(0), Some(5));

    context.seq_rm(0, ..).expect("the whole is removed");
    assert_eq!((context.seq_pos_max(0), context.seq_pos_max(1)), (None, Some(3)));
    context.clear();
    assert_eq!(context.seq_pos_max(1), None);
}

#[test]
fn a_sequence_that_does_not_exist_is_an_error() {
    let mut context = context(|params| params.n_seq_max = 2);
    let unknown = |sequence| Err(MemoryError::UnknownSequence { sequence });
    assert_eq!(context.seq_rm(2, ..), unknown(2));
    assert_eq!(context.seq_cp(0, 2, ..), unknown(2));
    assert_eq!(context.seq_cp(u32::MAX, 0, ..), unknown(u32::MAX));
    assert_eq!(context.seq_state(2).map(|_| ()), unknown(2));
    assert_eq!(context.set_seq_state(7, &[0]), unknown(7));
    assert_eq!(context.seq_pos_max(2), None);
}

#[test]
fn a_copied_prefix_is_continued_as_if_it_had_been_decoded() {
    let prompt = tokens("The capital of France is the city of Paris. The capital of Spain is");
    let (prefix, rest) = prompt.split_at(6);
    let from = u32::try_from(prefix.len()).expect("a short prompt");
    for kv_unified in [true, false] {
        let context = || {
            context(|params| {
                params.n_seq_max = 3;
                params.kv_unified = kv_unified;
                params.n_ctx = 1024;
            })
        };
        let mut straight = context();
        feed(&mut straight, prefix, 0, 0);
        let expected = feed(&mut straight, rest, from, 0);
        assert!(expected.lead > LEAD_MIN, "the case is no close call");

        let mut copied = context();
        feed(&mut copied, &[Token(7); 20], 0, 2);
        feed(&mut copied, prefix, 0, 0);
        copied.seq_cp(0, 2, ..).expect("the whole is copied");
        assert_eq!(copied.seq_pos_max(2), Some(from - 1), "what was there is gone");
        let got = feed(&mut copied, rest, from, 2);
        assert_eq!(got.token, expected.token, "unified {kv_unified}");
        assert_eq!(copied.seq_pos_max(0), Some(from - 1), "the source is as it was");
    }
}

#[test]
fn a_state_taken_out_is_continued_in_another_context() {
    let prompt = tokens("The capital of France is the city of Paris. The capital of Spain is");
    let (prefix, rest) = prompt.split_at(6);
    let from = u32::try_from(prefix.len()).expect("a short prompt");
    for kv_unified in [true, false] {
        let context = || {
            context(|params| {
                params.n_seq_max = 2;
                params.kv_unified = kv_unified;
            })
        };
        let mut straight = context();
        feed(&mut straight, prefix, 0, 0);
        let state = straight.seq_state(0).expect("it holds something");
        let expected = feed(&mut straight, rest, from, 0);

        let mut other = context();
        feed(&mut other, &[Token(7); 20], 0, 1);
        other.set_seq_state(1, &state).expect("there is room");
        assert_eq!(other.seq_pos_max(1), Some(from - 1), "what was there is gone");
        let got = feed(&mut other, rest, from, 1);
        assert_eq!(got.token, expected.token, "unified {kv_unified}");
        let cut_short = &state[..state.len() / 2];
        assert_eq!(other.set_seq_state(0, cut_short), Err(MemoryError::State { sequence: 0 }));
    }
}

#[test]
fn a_part_is_copied_only_within_a_shared_memory() {
    for kv_unified in [true, false] {
        let mut context = context(|params| {
            params.n_seq_max = 2;
            params.kv_unified = kv_unified;
        });
        feed(&mut context, &[Token(5); 10], 0, 0);
        let copied = context.seq_cp(0, 1, ..4);
        if kv_unified {
            assert_eq!(copied, Ok(()));
            assert_eq!(context.seq_pos_max(1), Some(3));
            context.seq_rm(0, ..).expect("the source is removed");
            assert_eq!(context.seq_pos_max(1), Some(3), "shared tokens stay");
        } else {
            assert_eq!(copied, Err(MemoryError::CannotCopyPart { sequence: 0 }));
            assert_eq!(context.seq_cp(0, 1, 2..), copied);
            assert_eq!(context.seq_pos_max(1), None, "nothing was copied");
            assert_eq!(context.seq_cp(0, 1, ..10), Ok(()), "this is the whole");
        }
    }
}

#[test]
fn a_sequence_copied_to_itself_stays() {
    let mut context = context(|_| ());
    feed(&mut context, &[Token(5); 10], 0, 0);
    assert_eq!(context.seq_cp(0, 0, ..), Ok(()));
    assert_eq!(context.seq_pos_max(0), Some(9));
}
