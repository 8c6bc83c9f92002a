//! Plays requests against a backend that holds what it is told to hold: every
//! reply is that of a plain loop, whoever shares, gives way, moves or guesses.

use std::time::Duration;

use proptest::prelude::*;
use rbee_api::openai::{Dry, Sampling, Xtc};

use super::super::*;
use super::language::{greedy, text_of};
use super::ledger::{Ask, Kept, Terms};
use super::{PATIENCE, outcome};
use crate::engine::backend::Speculation;
use crate::engine::memory::Layout;

/// A request whose reply has exactly `tokens_max` tokens.
fn talkative(from: u32, prompt_len: u32, tokens_max: u32) -> Ask {
    let prompts = (0..).map(|last| (from..from + prompt_len - 1).chain([900 + last]));
    let mut asks = prompts.map(|prompt| Ask::new(prompt, tokens_max));
    asks.find(|ask| ask.plain_reply().len() == tokens_max as usize).unwrap()
}

/// The turn after a request: all that was said, and `more` tokens.
fn turn_after(ask: &Ask, more: u32) -> Ask {
    let said = ask.prompt.iter().copied().chain(ask.plain_reply());
    Ask::new(said.chain(5000..5000 + more), ask.tokens_max)
}

/// The tokens that a slot holds after a request: all but the last.
fn held_after(ask: &Ask) -> usize {
    ask.prompt.len() + ask.plain_reply().len() - 1
}

#[tokio::test]
async fn a_turn_in_its_own_slot_is_neither_computed_nor_stored_again() {
    let mut terms = Terms::of(Layout::Unified, 1);
    terms.limits.store_bytes_max = 1 << 20;
    let engine = Kept::start(terms).await;
    let first = talkative(0, 60, 20);
    assert_eq!(engine.ask(&first).await, 0);
    let cached = engine.ask(&turn_after(&first, 40)).await;
    assert_eq!((cached as usize, engine.log().saves), (held_after(&first), 0));
}

#[tokio::test]
async fn a_conversation_that_makes_room_comes_back_whole() {
    let mut terms = Terms { cells: 130, ..Terms::of(Layout::Unified, 3) };
    terms.limits.store_bytes_max = 1 << 20;
    let engine = Kept::start(terms).await;
    let (first, large) = (talkative(0, 60, 10), talkative(2000, 110, 10));
    engine.ask(&first).await;
    engine.ask(&large).await;
    assert_eq!(engine.log().saves, 1, "what nobody computes on goes, and is stored");
    // Somebody who shares a part takes nothing away from it.
    engine.ask(&Ask::new((0..40).chain(3000..3020), 2)).await;
    let cached = engine.ask(&turn_after(&first, 5)).await;
    assert_eq!((cached as usize, engine.log().restores), (held_after(&first), 2));
}

#[tokio::test]
async fn a_state_that_cannot_be_used_is_not_tried_again() {
    let mut terms = Terms::of(Layout::Unified, 1);
    terms.limits.store_bytes_max = 1 << 20;
    let engine = Kept::start(terms).await;
    let (first, other) = (talkative(0, 60, 4), talkative(2000, 60, 4));
    engine.log().saves_to_spoil = 1;
    engine.ask(&first).await;
    engine.ask(&other).await;
    assert_eq!(engine.ask(&first).await, 0, "its state is of no use");
    engine.ask(&other).await;
    assert_eq!(engine.ask(&first).await as usize, first.prompt.len() - 1);
}

#[tokio::test]
async fn who_gives_way_loses_neither_its_slot_nor_what_was_computed() {
    let mut terms = Terms { cells: 150, ..Terms::of(Layout::Unified, 2) };
    terms.limits.store_bytes_max = 1 << 20;
    let engine = Kept::start(terms).await;
    engine.log().gathered = 2;
    let asks = [talkative(0, 50, 60), talkative(2000, 50, 60)];
    let needed: usize = asks.iter().map(held_after).sum();
    assert!(needed > terms.cells);
    let asked = asks.each_ref().map(|ask| engine.submit(ask));
    for asked in asked {
        assert_eq!(engine.check(asked).await, 0);
    }
    let computed = engine.log().tokens_computed;
    // What comes back from the store lacks nothing but the token to go on from.
    assert!(computed <= needed + 2, "{computed} tokens were computed for {needed}");
    let (saves, restores) = engine.log().states_moved();
    assert_eq!((saves, restores), (2, 1), "the second goes for the first to come back");
    engine.log().gathered = 2;
    let asked = [talkative(0, 20, 5), talkative(2000, 20, 5)].map(|ask| engine.submit(&ask));
    for asked in asked {
        engine.check(asked).await;
    }
}

#[tokio::test]
async fn a_gap_between_streams_is_closed_when_it_stays() {
    let mut terms = Terms::of(Layout::Split, 3);
    terms.limits.store_bytes_max = 1 << 20;
    let engine = Kept::start(terms).await;
    engine.log().gathered = 3;
    let asks = [talkative(0, 20, 50), talkative(2000, 40, 4), talkative(4000, 20, 50)];
    let asked = asks.each_ref().map(|ask| engine.submit(ask));
    for asked in asked {
        engine.check(asked).await;
    }
    let steps = |engine: &Kept, slots: &[u32]| {
        engine.log().steps.iter().filter(|step| step.as_slice() == slots).count()
    };
    let (apart, beside) = (steps(&engine, &[0, 2]), steps(&engine, &[0, 1]));
    assert!((4..=8).contains(&apart) && beside > 30, "{apart} steps apart, {beside} beside");
    // What lay in the gap was put away, and comes back.
    let cached = engine.ask(&turn_after(&asks[1], 40)).await;
    assert_eq!(cached as usize, held_after(&asks[1]));
}

#[tokio::test]
async fn a_reader_that_comes_late_finds_everything_and_the_end() {
    let engine = Kept::start(Terms::of(Layout::Unified, 2)).await;
    let ahead = u32::try_from(EVENTS_AHEAD_MAX).unwrap();
    let late = engine.submit(&talkative(0, 10, ahead));
    let deadline = Instant::now() + PATIENCE;
    while late.events.len() + 1 < EVENTS_AHEAD_MAX {
        assert!(Instant::now() < deadline, "{} pieces came", late.events.len());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Steps of somebody else, in which it must not be computed on.
    engine.ask(&talkative(2000, 10, 30)).await;
    engine.check(late).await;
}

#[tokio::test]
async fn a_guess_that_cannot_be_taken_back_ends_its_own_request_only() {
    let terms = Terms { speculation: Speculation::Always, ..Terms::of(Layout::Split, 1) };
    let engine = Kept::start(terms).await;
    let ask = talkative(0, 60, 120);
    engine.log().cuts_to_fail = 1;
    let failed = outcome(engine.submit(&ask).events).await;
    assert_eq!(failed, Err(Some(ErrorCode::WorkerFailed)));
    engine.ask(&ask).await;
    let steps = engine.log().steps.len();
    assert!(steps < 200, "{steps} steps: hardly anything was guessed");
    assert_eq!(engine.ask(&turn_after(&ask, 70)).await as usize, held_after(&ask));
}

#[tokio::test]
async fn guesses_need_no_more_room_than_the_reply() {
    for from in (0..20_000).step_by(1000) {
        let ask = talkative(from, 30, 40);
        let terms = Terms {
            speculation: Speculation::Always,
            cells: held_after(&ask),
            ..Terms::of(Layout::Unified, 1)
        };
        Kept::start(terms).await.ask(&ask).await;
    }
}

#[tokio::test]
async fn a_reply_ends_at_its_stop_text_within_a_guess_too() {
    let terms = Terms { speculation: Speculation::Always, ..Terms::of(Layout::Unified, 1) };
    let engine = Kept::start(terms).await;
    for from in (0..10_000).step_by(1000) {
        // What comes next resembles what was said before, so that it is guessed.
        let told = turn_after(&talkative(from, 30, 120), 1);
        let ask = Ask { tokens_max: 60, ..told };
        let text = text_of(&ask.plain_reply());
        for end in (3..text.len()).step_by(5) {
            let stop = text.get(end - 3..end).map(ToOwned::to_owned);
            engine.ask(&Ask { stop, ..ask.clone() }).await;
        }
    }
}

/// Prompts that share long beginnings: stretches of 20 tokens.
fn ask() -> impl Strategy<Value = Ask> {
    let stretches = proptest::collection::vec(0..3_u32, 1..4);
    let stop = prop::option::of("[a-e]{2,4}");
    let said = prop_oneof![Just(0), 0..8_usize];
    let parts = (0..2_u8, stretches, 1..6_u32, 1..50_u32, stop, said, sampling());
    parts.prop_map(|(scope, stretches, last, tokens_max, stop, said, sampling)| {
        let prompt = stretches.iter().flat_map(|s| (s * 100)..(s * 100 + 20));
        let prompt = prompt.chain([1000 + last]).collect();
        let ask = Ask { scope, prompt, tokens_max, stop, said: 0, sampling };
        // So many eighths of it, and never all.
        let said = ask.answer().1 * said / 8;
        Ask { said, ..ask }
    })
}

/// The likeliest token, or a draw by any mixture of settings.
fn sampling() -> impl Strategy<Value = Sampling> {
    let choose = |values: [f32; 3]| prop::sample::select(values.to_vec());
    let xtc = prop::option::of(Just(Xtc { probability: 0.5, threshold: 0.1 }));
    let dry = prop::option::of(Just(Dry {
        multiplier: 0.8,
        base: 1.75,
        allowed_length: 2,
        last_n: None,
        breakers: Vec::new(),
    }));
    let cuts =
        (0..4_u32, choose([1.0, 0.95, 0.7]), choose([0.0, 0.05, 0.2]), choose([1.0, 0.9, 0.5]));
    let penalties =
        (choose([1.0, 1.1, 1.5]), 0..64_u32, choose([0.0, 0.5, -0.5]), choose([0.0, 0.3, -0.3]));
    let drawn = (choose([0.5, 1.0, 2.0]), cuts, xtc, penalties, dry, prop::num::u64::ANY).prop_map(
        |(temperature, (top_k, top_p, min_p, typical_p), xtc, penalties, dry, seed)| {
            let (repeat_penalty, repeat_last_n, presence_penalty, frequency_penalty) = penalties;
            Sampling {
                temperature,
                top_k,
                top_p,
                min_p,
                typical_p,
                xtc,
                repeat_penalty,
                repeat_last_n,
                presence_penalty,
                frequency_penalty,
                dry,
                seed: Some(seed),
                ..Sampling::default()
            }
        },
    );
    prop_oneof![Just(greedy()), drawn]
}

fn terms() -> impl Strategy<Value = Terms> {
    let layout = prop_oneof![Just(Layout::Split), Just(Layout::Unified)];
    let store = prop::sample::select(vec![0_u64, 600, 1 << 20]);
    // The largest request alone fits exactly.
    let cells = prop::sample::select(vec![110_usize, 150, 300]);
    let speculation = prop_oneof![Just(Speculation::Off), Just(Speculation::Always)];
    let faults = prop::option::of(prop::num::u64::ANY);
    (layout, 1..5_u32, prop::bool::ANY, store, cells, speculation, faults).prop_map(
        |(layout, slots, can_cut, store_bytes_max, cells, speculation, faults)| {
            let mut terms = Terms::of(layout, slots);
            terms.limits.can_cut = can_cut;
            terms.limits.store_bytes_max = store_bytes_max;
            // Split memories have room for a whole context each.
            terms.cells = if layout == Layout::Unified { cells } else { usize::MAX };
            // A guess has to be taken back.
            terms.speculation = if can_cut { speculation } else { Speculation::Off };
            Terms { faults, ..terms }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn every_reply_is_that_of_a_plain_loop(
        terms in terms(),
        waves in proptest::collection::vec(proptest::collection::vec((ask(), prop::option::of(0..9_usize)), 1..8), 1..4),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let engine = Kept::start(terms).await;
            for wave in waves {
                let asked: Vec<_> =
                    wave.iter().map(|(ask, leaves)| (engine.submit(ask), *leaves)).collect();
                for (mut asked, leaves) in asked {
                    match leaves {
                        None => drop(engine.check(asked).await),
                        // Some clients leave on the way.
                        Some(pieces) => for _ in 0..pieces {
                            tokio::time::timeout(PATIENCE, asked.events.recv()).await.unwrap();
                        },
                    }
                }
            }
        });
    }
}
