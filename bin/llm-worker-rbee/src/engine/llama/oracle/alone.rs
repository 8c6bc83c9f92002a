//! Streams that share nothing: one at a time, eight at once, a long one, and
//! one that is broken off.

use super::*;

#[tokio::test]
async fn one_stream_says_token_for_token_what_a_plain_loop_says() {
    let engine = Engine::start().await;
    let mut lengths = 0;
    for question in QUESTIONS {
        let prompt = engine.prompt(question);
        let expected = plain_loop(&prompt.tokens, REPLY_TOKENS);
        let tokens: Vec<u32> = expected.iter().map(|(token, _)| *token).collect();
        assert_eq!(engine.reply(prompt).await, tokens, "{question}");
        lengths += tokens.len();
    }
    assert!(lengths > 100, "the replies are too short to say anything: {lengths}");
    assert_eq!(engine.handle.snapshot().batch_requests_max, 1);
}

#[tokio::test]
async fn eight_streams_at_once_say_what_each_says_alone() {
    let engine = Engine::start().await;
    let questions = QUESTIONS.get(..8).unwrap();
    let together = questions.iter().map(|question| engine.reply(engine.prompt(question)));
    let together = futures_util::future::join_all(together).await;
    for (question, got) in questions.iter().zip(together) {
        // How a prompt is cut depends on the pace of the machine.
        let expected = engine.alone_in_the_same_pieces(&engine.prompt(question).tokens);
        assert_same_but_for_ties(question, &got, &expected);
    }
    assert_eq!(engine.handle.snapshot().batch_requests_max, 8);
}

#[tokio::test]
async fn a_prompt_longer_than_a_step_is_understood_as_a_whole() {
    let engine = Engine::start().await;
    let story = "The bee Maja lives in a hive by the river. ".repeat(120);
    let prompt = engine.prompt(&format!("{story}\nWhat is the name of the bee?"));
    assert!(prompt.tokens.len() > 2 * STEP_TOKENS as usize, "{}", prompt.tokens.len());
    let expected = plain_loop(&prompt.tokens, REPLY_TOKENS);
    let got = engine.reply(prompt).await;
    assert_same_but_for_ties("the long prompt", &got, &expected);
}

#[tokio::test]
async fn a_long_prompt_that_is_abandoned_is_broken_off_and_leaves_no_trace() {
    let engine = Engine::start().await;
    let story = "The bee Maja lives in a hive by the river. ".repeat(330);
    let prompt = engine.prompt(&story);
    let steps_of_prompt = prompt.tokens.len().div_ceil(STEP_TOKENS as usize) as u64;
    assert!(steps_of_prompt >= 6, "{steps_of_prompt}");
    let (job, mut events) = engine.submit(prompt, Scope([0; 32]), None);
    engine.until("a step is computed", |engine| engine.handle.snapshot().stepping).await;
    events.close();
    engine.handle.abandon(job);
    engine.until("the job is gone", |engine| engine.handle.snapshot().requests_inside == 0).await;
    let steps = engine.handle.snapshot().engine_steps;
    assert!(steps < steps_of_prompt, "{steps} of {steps_of_prompt} steps were computed");
    let question = engine.prompt(QUESTIONS[0]);
    let expected = plain_loop(&question.tokens, REPLY_TOKENS);
    let tokens: Vec<u32> = expected.iter().map(|(token, _)| *token).collect();
    assert_eq!(engine.reply(question).await, tokens);
}

#[tokio::test]
async fn a_chat_prompt_begins_with_one_begin_token() {
    let engine = Engine::start().await;
    let marker = engine.tokenizer().text("<|im_start|>").unwrap();
    let prompt = engine.prompt("hello");
    assert_eq!(prompt.tokens.first(), marker.tokens.first());
    assert_ne!(prompt.tokens.get(1), marker.tokens.first());
}
