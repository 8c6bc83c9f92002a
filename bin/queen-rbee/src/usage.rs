//! Reads out of replies how many tokens they took: out of a whole one, out of
//! the marks of a stream, and out of the events of a stream without marks.

use rbee_api::continuation::ChoiceProgress;
use rbee_api::openai;
use serde::Deserialize;

use crate::keys::Tokens;

/// What stands before the counts, in every reply and event of ours. Inside of
/// a text its quotes would be escaped, so this is always a key.
const USAGE_KEY: &[u8] = b"\"usage\":";

/// The counts, of whatever kind of request.
#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Details,
}

#[derive(Default, Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: u64,
}

/// Reads the counts of a whole reply; one without any took nothing.
pub(crate) fn of_reply(body: &[u8]) -> Tokens {
    counts_after_last_key(body).unwrap_or_default()
}

/// Reads the counts that an event tells, of a stream whose worker marks nothing.
pub(crate) fn of_events(events: &[u8]) -> Tokens {
    counts_after_last_key(events).unwrap_or_default()
}

/// Adds what a mark tells. The prompt is counted once for all choices and
/// workers, as the first choice tells it.
pub(crate) fn of_mark(told: &[ChoiceProgress], used: &mut Tokens) {
    for choice in told {
        let tokens = u64::try_from(choice.tokens.len()).unwrap_or(u64::MAX);
        used.completion = used.completion.saturating_add(tokens);
        if choice.index == 0 && used.prompt == 0 {
            used.prompt = choice.prompt_tokens.into();
            used.cached = choice.cached_tokens.into();
        }
    }
}

/// Takes over what a worker says of the whole reply at its end.
pub(crate) fn of_whole(usage: &openai::Usage) -> Tokens {
    Tokens {
        prompt: usage.prompt_tokens.into(),
        cached: usage.prompt_tokens_details.cached_tokens.into(),
        completion: usage.completion_tokens.into(),
    }
}

fn counts_after_last_key(text: &[u8]) -> Option<Tokens> {
    let start = text.windows(USAGE_KEY.len()).rposition(|window| window == USAGE_KEY)?;
    let rest = text.get(start + USAGE_KEY.len()..)?;
    let counts = serde_json::Deserializer::from_slice(rest).into_iter::<Option<Usage>>().next();
    let Usage { prompt_tokens, completion_tokens, prompt_tokens_details } = counts?.ok()??;
    let cached = prompt_tokens_details.cached_tokens;
    Some(Tokens { prompt: prompt_tokens, cached, completion: completion_tokens })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_stand_at_the_end_whatever_the_reply_says() {
        for (body, prompt, cached, completion) in [
            (
                r#"{"choices":[{"text":"\"usage\":{\"prompt_tokens\":99}"}],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10,"prompt_tokens_details":{"cached_tokens":5}}}"#,
                7,
                5,
                3,
            ),
            (r#"{"data":[],"usage":{"prompt_tokens":7,"total_tokens":7}}"#, 7, 0, 0),
            (r#"{"choices":[],"usage":null}"#, 0, 0, 0),
            (r#"{"choices":[]}"#, 0, 0, 0),
            (r#"{"usage":{"prompt_tokens":-1}}"#, 0, 0, 0),
            (r#"{"usage":"#, 0, 0, 0),
            ("", 0, 0, 0),
        ] {
            assert_eq!(of_reply(body.as_bytes()), Tokens { prompt, cached, completion }, "{body}");
        }
    }

    #[test]
    fn marks_count_the_prompt_once_and_every_token() {
        let told = |index, tokens: &[u32], prompt_tokens, cached_tokens| ChoiceProgress {
            index,
            tokens: tokens.to_vec(),
            prompt_tokens,
            cached_tokens,
            ..ChoiceProgress::default()
        };
        let mut used = Tokens::default();
        of_mark(&[told(1, &[1], 9, 8), told(0, &[2, 3], 9, 4)], &mut used);
        assert_eq!(used, Tokens { prompt: 9, cached: 4, completion: 3 });
        of_mark(&[told(0, &[4], 9, 5)], &mut used);
        assert_eq!(used, Tokens { prompt: 9, cached: 4, completion: 4 });
    }
}
