//! Streams that were begun elsewhere go on with the very tokens that an undisturbed
//! one has.

use super::*;

/// Prompts after which tokens that are computed together soon lead to others.
const STORIES: [&str; 3] = [
    "Tell me a story about a bee and its hive.",
    "Write a short poem about bees.",
    "Explain in two sentences why the sky is blue.",
];

impl Engine {
    /// Has a reply gone on with after `said` and returns the tokens that come.
    async fn rest(&self, prompt: Prompt, said: &[u32]) -> Vec<u32> {
        let tokens = prompt.tokens.clone();
        let mut scope = Scope([2; 32]);
        let alone = self.handle.next_job().0;
        scope.0.iter_mut().zip(alone.to_le_bytes()).for_each(|(to, from)| *to = from);
        let earlier = Earlier { tokens: said.to_vec(), cached_tokens: Some(0) };
        let (_, mut events) = self.submit(prompt, scope, Some(earlier));
        while let Some(event) = events.recv().await {
            match event {
                Event::Text { .. } | Event::Replayed(_) => {}
                Event::End(End::Finished { usage, .. }) => {
                    let rest = self.chosen.lock().unwrap().remove(&tokens).unwrap_or_default();
                    assert_eq!(usage.completion_tokens as usize, said.len() + rest.len());
                    return rest;
                }
                Event::End(End::Failed(detail)) => panic!("{detail}"),
            }
        }
        panic!("no end came")
    }
}

#[tokio::test]
async fn a_stream_that_goes_on_says_token_for_token_what_one_undisturbed_says() {
    let engine = Engine::start().await;
    let mut in_time = 0;
    for question in STORIES {
        let prompt = || engine.prompt(question);
        let expected = plain_loop(&prompt().tokens, REPLY_TOKENS);
        let tokens: Vec<u32> = expected.iter().map(|(token, _)| *token).collect();
        for said in [1, 2, 9, 20, 33, tokens.len() - 1] {
            let rest = engine.rest(prompt(), &tokens[..said]).await;
            let known = [&prompt().tokens, &tokens[..said]].concat();
            let pieces = engine.pieces_of(&prompt().tokens, known.len());
            // A machine that has no time for a token a step computes some together, with other digits.
            let expected = if pieces.len() > said {
                in_time += 1;
                tokens[said..].to_vec()
            } else {
                let left = REPLY_TOKENS - u32::try_from(said).unwrap();
                let expected = plain_loop_in_pieces(&known, &pieces, left);
                expected.into_iter().map(|(token, _)| token).collect()
            };
            assert_eq!(rest, expected, "{question}, after {said}, in {pieces:?}");
        }
    }
    assert!(in_time >= STORIES.len() * 3, "{in_time} were computed as an undisturbed one");
}
