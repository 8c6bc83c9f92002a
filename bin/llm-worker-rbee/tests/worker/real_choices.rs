//! Several choices from one prompt of the real model: computed once in both
//! layouts of its memory, each held to its own form and told with its own
//! likelihoods.

use rbee_api::openai::{ChatCompletion, FinishReason, TokenLogprob, Usage};
use serde_json::{Value, json};

use crate::llama::{ONE_AT_A_TIME, model_path};
use crate::process::Worker;

const CHOICES: u32 = 3;

#[tokio::test]
async fn a_real_model_makes_choices_from_one_prefill() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let model = model_path();
    // In the first there are as many slots as choices; in the second they wait.
    for (slots, layout) in [("--slots=4", "split"), ("--slots=2", "unified")] {
        let arguments = ["--model", &model, slots, "--context=1024", "--kv-layout", layout];
        let worker = Worker::start_engine(&arguments).await;
        greedy_choices_are_the_same_and_share_their_prompt(&worker).await;
        every_choice_satisfies_the_schema(&worker).await;
        every_choice_calls_the_tool_that_it_has_to(&worker).await;
        every_choice_tells_its_own_likelihoods(&worker).await;
    }
}

async fn greedy_choices_are_the_same_and_share_their_prompt(worker: &Worker) {
    let facts = "Bees live in hives and make honey. ".repeat(12);
    let question = format!("{facts}What is the capital of France? Answer in one word.");
    let more = json!({"temperature": 0, "max_tokens": 12, "n": CHOICES});
    let reply: ChatCompletion = worker.client.chat(&question, more.clone()).await.json();
    let contents: Vec<_> =
        reply.choices.iter().map(|choice| choice.message.content.clone().unwrap()).collect();
    assert!(contents[0].contains("Paris"), "{contents:?}");
    assert_eq!(contents, vec![contents[0].clone(); CHOICES as usize]);
    let Usage { prompt_tokens, prompt_tokens_details, .. } = reply.usage;
    assert_eq!(prompt_tokens_details.cached_tokens, 0);
    let all = worker.metric("rbee_worker_prompt_tokens_total").await;
    assert_eq!(all, CHOICES * prompt_tokens);
    // Each of the others computes the last token, out of which the next one comes.
    let computed = all - worker.metric("rbee_worker_cached_prompt_tokens_total").await;
    assert_eq!(computed, prompt_tokens + CHOICES - 1);
    let streamed = worker.client.stream_chat(&question, more).await;
    for index in 0..CHOICES {
        assert_eq!(streamed.choice(index).text, contents[0], "choice {index}");
    }
}

async fn every_choice_satisfies_the_schema(worker: &Worker) {
    let schema = json!({"type": "object", "additionalProperties": false,
    "required": ["name", "age", "likes"], "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "likes": {"type": "array", "items": {"enum": ["tea", "milk"]}, "maxItems": 3},
    }});
    let validator = jsonschema::validator_for(&schema).unwrap();
    let format = json!({"type": "json_schema", "json_schema": {"name": "p", "schema": schema}});
    let more = json!({"response_format": format, "temperature": 1.4, "seed": 3, "n": CHOICES,
        "max_tokens": 120});
    let reply: ChatCompletion = worker.client.chat("Describe a person.", more).await.json();
    let mut complete = 0;
    for choice in &reply.choices {
        let text = choice.message.content.as_deref().unwrap();
        if choice.finish_reason == FinishReason::Length {
            continue;
        }
        let value: Option<Value> = serde_json::from_str(text).ok();
        assert!(value.is_some_and(|value| validator.is_valid(&value)), "{text:?}");
        complete += 1;
    }
    assert!(complete > 0, "no output was complete: {reply:?}");
}

async fn every_choice_calls_the_tool_that_it_has_to(worker: &Worker) {
    let parameters = json!({"type": "object", "additionalProperties": false,
    "required": ["class", "seats"], "properties": {
        "class": {"type": "string", "enum": ["first", "second"]},
        "seats": {"type": "integer", "minimum": 1, "maximum": 4},
    }});
    let function = json!({"name": "book", "description": "Books.", "parameters": parameters});
    let more = json!({"tools": [{"type": "function", "function": function}],
        "tool_choice": "required", "parallel_tool_calls": false, "temperature": 1.3, "seed": 11,
        "n": CHOICES, "max_tokens": 150});
    let reply: ChatCompletion = worker.client.chat("Hello!", more.clone()).await.json();
    let streamed = worker.client.stream_chat("Hello!", more).await;
    let fits = |arguments: &str| {
        let given: Value = serde_json::from_str(arguments).unwrap();
        assert!(["first", "second"].contains(&given["class"].as_str().unwrap()), "{given}");
        assert!((1..=4).contains(&given["seats"].as_i64().unwrap()), "{given}");
    };
    for choice in &reply.choices {
        assert_eq!(choice.finish_reason, FinishReason::ToolCalls, "{reply:?}");
        let calls = &choice.message.tool_calls;
        assert_eq!((calls.len(), calls[0].function.name.as_str()), (1, "book"), "{reply:?}");
        fits(&calls[0].function.arguments);
        let streamed = streamed.choice(choice.index);
        assert_eq!(streamed.finish_reason(), Some(FinishReason::ToolCalls));
        let calls = streamed.calls();
        assert_eq!((calls.len(), calls[0].0.as_str()), (1, "book"), "{calls:?}");
        fits(&calls[0].1);
    }
}

async fn every_choice_tells_its_own_likelihoods(worker: &Worker) {
    let more = json!({"temperature": 1.5, "seed": 5, "max_tokens": 12, "n": CHOICES,
        "logprobs": true, "top_logprobs": 1});
    let question = "Name an animal and a colour.";
    let reply: ChatCompletion = worker.client.chat(question, more.clone()).await.json();
    for choice in &reply.choices {
        let content = &choice.logprobs.as_ref().unwrap().content;
        assert_eq!(Some(spelt(content)), choice.message.content, "choice {}", choice.index);
        assert!(content.iter().all(|token| token.logprob <= token.top_logprobs[0].logprob));
    }
    let contents: std::collections::HashSet<_> =
        reply.choices.iter().map(|choice| &choice.message.content).collect();
    assert_eq!(contents.len(), CHOICES as usize, "they drew the same: {contents:?}");
    let streamed = worker.client.stream_chat(question, more).await;
    for index in 0..CHOICES {
        let choice = streamed.choice(index);
        let told = choice.chunks.iter().filter_map(|chunk| chunk.choices[0].logprobs.as_ref());
        let told: Vec<_> = told.flat_map(|told| told.content.clone()).collect();
        assert_eq!(spelt(&told), choice.text, "choice {index}");
    }
}

/// The text of tokens, some of which may be parts of characters.
fn spelt(tokens: &[TokenLogprob]) -> String {
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.bytes.clone()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
