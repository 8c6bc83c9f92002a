//! Replies that began elsewhere: computed here as they were there, a token a step,
//! and at once where that would take too long.

use std::time::Duration;

use super::ledger::{Ask, Kept, Terms};
use crate::engine::backend::Speculation;
use crate::engine::memory::Layout;

/// A request whose reply has so many tokens, of which some were said elsewhere.
fn begun(from: u32, prompt_len: u32, tokens: u32, said: usize) -> Ask {
    let prompts = (0..).map(|last| (from..from + prompt_len - 1).chain([900 + last]));
    let mut asks = prompts.map(|prompt| Ask::new(prompt, tokens));
    let ask = asks.find(|ask| ask.plain_reply().len() == tokens as usize).unwrap();
    Ask { said, ..ask }
}

#[tokio::test]
async fn a_reply_that_goes_on_is_computed_in_the_steps_of_one_that_was_never_broken_off() {
    for speculation in [Speculation::Off, Speculation::Always] {
        for (said, steps_max) in [(0, 60), (1, 60), (30, 60), (59, 60)] {
            let terms = Terms { speculation, ..Terms::of(Layout::Split, 1) };
            let engine = Kept::start(terms).await;
            let ask = begun(0, 40, 60, said);
            engine.ask(&ask).await;
            let steps = engine.log().steps.len();
            let tokens = engine.log().tokens_computed;
            match speculation {
                Speculation::Off => assert_eq!((steps, tokens), (steps_max, 40 + 59), "{said}"),
                // What is known is not guessed.
                Speculation::Auto | Speculation::Always => assert!(steps > said, "{said}"),
            }
        }
    }
}

#[tokio::test]
async fn what_would_take_too_long_is_computed_in_small_pieces_or_at_once() {
    for (layout, pieces_before) in [(Layout::Split, 1), (Layout::Unified, 0)] {
        let terms = Terms { step_time: Duration::from_millis(50), ..Terms::of(layout, 2) };
        let engine = Kept::start(terms).await;
        engine.ask(&begun(0, 40, 100, 95)).await;
        let sizes = engine.log().sizes.clone();
        assert_eq!(sizes.iter().sum::<usize>(), 40 + 99, "{layout:?}");
        // The prompt, a few steps that tell how long one takes, and then the rest.
        let large: Vec<usize> = sizes.into_iter().skip(1).filter(|size| *size > 1).collect();
        let (_, pieces) = large.split_last().unwrap();
        assert_eq!(pieces, vec![63; pieces_before], "{layout:?}: {large:?}");
        assert!((75..96).contains(&large.iter().sum::<usize>()), "{layout:?}: {large:?}");
    }
}

#[tokio::test]
async fn a_reply_that_goes_on_shares_the_steps_of_others_and_the_beginning_of_its_prompt() {
    let engine = Kept::start(Terms::of(Layout::Split, 2)).await;
    engine.log().gathered = 2;
    let asked = [begun(0, 40, 60, 50), begun(3000, 40, 60, 0)].map(|ask| engine.submit(&ask));
    for asked in asked {
        engine.check(asked).await;
    }
    let steps = engine.log().steps.len();
    assert!(steps <= 62, "{steps} steps for what both have done in 60");
    let again = begun(0, 40, 60, 20);
    assert_eq!(engine.ask(&again).await, 39, "nothing but the last token of the prompt");
}
