//! Streams that share tokens, are guessed ahead, or have to give way say what
//! they say without.

use super::*;
use crate::engine::disk::DiskConfig;

const SCOPE: Scope = Scope([0; 32]);

fn story() -> String {
    let sentences = (1..=32).map(|day| {
        format!(
            "On day {day} the bee Maja flew to the river and counted {} flowers. ",
            day * 7 % 40
        )
    });
    sentences.collect()
}

fn prompt_of(tokens: Vec<u32>) -> Prompt {
    Prompt { tokens, ..Prompt::default() }
}

/// Asks eight questions about one story at once.
async fn eight_about_one_story(engine: &Engine) {
    let ask = |question: &&str| engine.prompt(&format!("{}{question}", story()));
    let questions = QUESTIONS.get(..8).unwrap();
    let prompt_tokens = ask(&questions[0]).tokens.len();
    assert!(prompt_tokens > STEP_TOKENS as usize, "{prompt_tokens}");
    let replies = questions.iter().map(|question| engine.reply_in(SCOPE, ask(question)));
    let replies = futures_util::future::join_all(replies).await;
    let mut computed_whole = 0;
    for (index, (question, (reply, cached))) in questions.iter().zip(replies).enumerate() {
        if index % 3 == 0 {
            engine.assert_is_of_its_steps(question, &ask(question).tokens, &reply);
        }
        computed_whole += usize::from((cached as usize) < prompt_tokens - 60);
    }
    assert_eq!(computed_whole, 1, "the story was computed for more than one");
}

#[tokio::test]
async fn what_eight_prompts_have_in_common_is_computed_once_and_copied() {
    eight_about_one_story(&Engine::start().await).await;
}

#[tokio::test]
async fn what_eight_prompts_have_in_common_is_computed_once_and_shared() {
    eight_about_one_story(
        &Engine::start_with(|loader| loader.layout = Some(Layout::Unified)).await,
    )
    .await;
}

#[tokio::test]
async fn a_second_turn_is_computed_from_where_the_first_ended() {
    for store_bytes_max in [0, 1 << 30] {
        let engine = Engine::start_with(|loader| {
            loader.slots = Some(1);
            loader.store_bytes_max = store_bytes_max;
        })
        .await;
        let first = engine.prompt(QUESTIONS[1]);
        let second = engine.prompt(QUESTIONS[3]).tokens;
        let mut turns = first.tokens.clone();
        let (reply, cached) = engine.reply_in(SCOPE, first).await;
        assert_eq!(cached, 0);
        // Somebody else takes the only slot.
        engine.reply(engine.prompt(QUESTIONS[2])).await;
        turns.extend(&reply);
        let held = turns.len() - 1;
        turns.extend(second);
        let all = turns.clone();
        let (reply, cached) = engine.reply_in(SCOPE, prompt_of(turns)).await;
        engine.assert_is_of_its_steps("the second turn", &all, &reply);
        let stored = if store_bytes_max == 0 { 0 } else { held };
        assert_eq!(cached as usize, stored, "{store_bytes_max}");
    }
}

#[tokio::test]
async fn a_second_turn_after_a_restart_is_computed_from_where_the_first_ended() {
    let root = tempfile::tempdir().unwrap();
    let disk = |model_sha256: Option<&str>| DiskConfig {
        directory: root.path().join("cache"),
        bytes_max: 1 << 30,
        model_sha256: model_sha256.map(|text| text.repeat(32).parse().unwrap()),
        shared: false,
    };
    let question = format!("{}{}", story(), QUESTIONS[1]);
    for layout in [Layout::Split, Layout::Unified] {
        let start = |disk| {
            Engine::start_with(move |loader| {
                loader.layout = Some(layout);
                loader.disk = Some(disk);
            })
        };
        let engine = start(disk(None)).await;
        let prompt = engine.prompt(&question);
        let mut tokens = prompt.tokens.clone();
        let (reply, cached) = engine.reply_in(SCOPE, prompt).await;
        assert_eq!(cached, 0, "{layout:?} goes on from what the other has left");
        tokens.extend(reply);
        let held = tokens.len() - 1;
        tokens.extend(engine.prompt(QUESTIONS[3]).tokens);
        engine.keep_and_end().await;

        // Another model, another user.
        let (other, scope) = match layout {
            Layout::Split => (disk(Some("ab")), SCOPE),
            Layout::Unified => (disk(None), Scope([9; 32])),
        };
        let engine = start(other).await;
        let (_, cached) = engine.reply_in(scope, prompt_of(tokens.clone())).await;
        assert_eq!(cached, 0, "{layout:?}");
        drop(engine);

        let engine = start(disk(None)).await;
        let (reply, cached) = engine.reply_in(SCOPE, prompt_of(tokens.clone())).await;
        // A whole tile is left to compute.
        assert!(held - (cached as usize) < 64, "{layout:?}: {cached} of {held}");
        engine.assert_is_of_its_steps("the turn after a restart", &tokens, &reply);
    }
}

#[tokio::test]
async fn the_same_prompt_of_another_scope_is_computed_again() {
    let engine = Engine::start().await;
    let ask = || engine.prompt(&story());
    let (_, first) = engine.reply_in(SCOPE, ask()).await;
    let (_, other) = engine.reply_in(Scope([9; 32]), ask()).await;
    let (_, same) = engine.reply_in(SCOPE, ask()).await;
    assert_eq!((first, other), (0, 0));
    assert_eq!(same as usize, ask().tokens.len() - 1);
}

#[tokio::test]
async fn jobs_that_had_to_give_way_say_what_they_say_with_room() {
    let engine = Engine::start_with(|loader| {
        loader.slots = Some(4);
        loader.context_tokens = Some(64);
        loader.layout = Some(Layout::Unified);
    })
    .await;
    let questions = QUESTIONS.get(..4).unwrap();
    let room = 4 * 64;
    let needed: usize = questions
        .iter()
        .map(|question| engine.prompt(question).tokens.len() + REPLY_TOKENS as usize)
        .sum();
    assert!(needed > room, "{needed}");
    let replies = questions.iter().map(|question| engine.reply(engine.prompt(question)));
    let replies = futures_util::future::join_all(replies).await;
    for (question, reply) in questions.iter().zip(replies) {
        engine.assert_is_of_its_steps(question, &engine.prompt(question).tokens, &reply);
    }
}

#[tokio::test]
async fn a_reply_that_is_guessed_ahead_is_the_same_in_fewer_steps() {
    let engine = Engine::start_with(|loader| loader.speculation = Speculation::Always).await;
    for question in [QUESTIONS[0], QUESTIONS[1], QUESTIONS[8]] {
        let got = engine.reply(engine.prompt(question)).await;
        engine.assert_is_of_its_steps(question, &engine.prompt(question).tokens, &got);
    }
    // Whatever the last digits of its logits are, a model goes on with this as it began.
    let story = || engine.tokenizer().text(&story()).unwrap();
    let steps_before = engine.handle.snapshot().engine_steps;
    let got = engine.reply(story()).await;
    let steps = engine.handle.snapshot().engine_steps - steps_before;
    engine.assert_is_of_its_steps("the story", &story().tokens, &got);
    let tokens = got.len() as u64;
    assert!(steps * 2 < tokens, "{steps} steps for {tokens} tokens");
}
