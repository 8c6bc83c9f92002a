//! What a real model's output can be held to, and what is told of its tokens:
//! JSON schemas, grammars, biases, log probabilities.

use futures_util::future::join_all;
use rbee_api::error::ErrorCode;
use rbee_api::openai::{ChatCompletion, CompletionReply, FinishReason};
use serde_json::{Value, json};

use crate::llama::{ONE_AT_A_TIME, model_path};
use crate::process::{MODEL, Worker};

async fn worker() -> Worker {
    let model = model_path();
    Worker::start_engine(&["--model", &model, "--slots=4", "--context=2048"]).await
}

/// Schemas whose values are short.
fn schemas() -> Vec<Value> {
    let object = |properties: Value, required: Value| {
        json!({"type": "object", "properties": properties, "required": required,
            "additionalProperties": false})
    };
    let text = json!({"type": "string", "maxLength": 20});
    vec![
        object(
            json!({"name": text, "age": {"type": "integer", "minimum": 0, "maximum": 120}}),
            json!(["name", "age"]),
        ),
        object(json!({"capital": {"enum": ["Paris", "London", "Rome"]}}), json!(["capital"])),
        object(
            json!({"tags": {"type": "array", "items": text, "minItems": 1, "maxItems": 3}}),
            json!(["tags"]),
        ),
        object(json!({"place": {"$ref": "#/$defs/place"}}), json!(["place"]))
            .as_object()
            .map(|fields| {
                let mut fields = fields.clone();
                let place = object(
                    json!({"lat": {"type": "integer", "minimum": -90, "maximum": 90},
                    "name": {"type": ["string", "null"], "maxLength": 12}}),
                    json!(["lat"]),
                );
                fields.insert("$defs".to_owned(), json!({"place": place}));
                Value::Object(fields)
            })
            .unwrap(),
        object(
            json!({"when": {"type": "string", "format": "date"}, "sure": {"type": "boolean"}}),
            json!(["when", "sure"]),
        ),
        json!({"type": "array", "items": {"anyOf": [{"type": "integer", "minimum": 0,
            "maximum": 9}, {"type": "null"}]}, "minItems": 2, "maxItems": 5}),
        json!({"type": "string", "pattern": "^[A-Z]{3}-[0-9]{2,4}$"}),
        json!({"enum": ["yes", "no", 3, null]}),
    ]
}

fn schema_format(schema: &Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": schema}})
}

#[tokio::test]
async fn output_is_held_to_what_the_request_asks_for() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let worker = worker().await;
    json_satisfies_its_schema(&worker).await;
    json_objects_are_objects(&worker).await;
    text_is_derived_from_a_grammar(&worker).await;
    a_bad_schema_is_refused_with_its_place(&worker).await;
    a_limit_ends_json_in_the_middle(&worker).await;
    biases_and_ends_are_honoured(&worker).await;
}

async fn json_satisfies_its_schema(worker: &Worker) {
    for schema in schemas() {
        let validator = jsonschema::validator_for(&schema).unwrap();
        let ask = |seed: u32| {
            let more = json!({"seed": seed, "temperature": if seed == 0 { 0.0 } else { 1.3 },
                "max_tokens": 150, "response_format": schema_format(&schema)});
            worker.client.chat("Tell me about a place or a person, as JSON.", more)
        };
        let mut complete = 0;
        for (seed, reply) in join_all((0..3).map(ask)).await.into_iter().enumerate() {
            let reply: ChatCompletion = reply.json();
            let choice = &reply.choices[0];
            let text = choice.message.content.as_deref().unwrap();
            // What the limit has cut off is not JSON yet.
            if choice.finish_reason == FinishReason::Length {
                continue;
            }
            complete += 1;
            let value: Option<Value> = serde_json::from_str(text).ok();
            let valid = value.is_some_and(|value| validator.is_valid(&value));
            assert!(valid, "seed {seed}: {text:?} for {schema}");
        }
        assert!(complete > 0, "no output was complete for {schema}");
    }
}

async fn json_objects_are_objects(worker: &Worker) {
    let ask = |seed: u32| {
        let more =
            json!({"seed": seed, "max_tokens": 100, "response_format": {"type": "json_object"}});
        worker.client.chat("Give me a small JSON object with a name.", more)
    };
    for reply in join_all((0..4).map(ask)).await {
        let reply: ChatCompletion = reply.json();
        let text = reply.choices[0].message.content.as_deref().unwrap();
        assert!(text.starts_with('{'), "{text}");
        if reply.choices[0].finish_reason == FinishReason::Stop {
            let value: Value = serde_json::from_str(text).unwrap();
            assert!(value.is_object(), "{text}");
        }
    }
}

async fn text_is_derived_from_a_grammar(worker: &Worker) {
    let grammar = "root ::= \"The answer is \" (\"yes\" | \"no\") \", \" tree \".\"\n\
        tree ::= [a-z]{1,6} | \"(\" tree \" \" tree \")\"";
    let ask = |seed: u32| {
        let more = json!({"seed": seed, "temperature": 1, "max_tokens": 60, "grammar": grammar});
        worker.client.chat("Is the sky blue?", more)
    };
    let mut complete = 0;
    for reply in join_all((0..4).map(ask)).await {
        let reply: ChatCompletion = reply.json();
        let text = reply.choices[0].message.content.as_deref().unwrap();
        let rest = text.strip_prefix("The answer is ").unwrap();
        let rest = rest.strip_prefix("yes, ").or_else(|| rest.strip_prefix("no, ")).unwrap();
        if reply.choices[0].finish_reason == FinishReason::Stop {
            let tree = rest.strip_suffix('.').unwrap();
            assert_eq!(tree.matches('(').count(), tree.matches(')').count(), "{text}");
            complete += 1;
        }
    }
    assert!(complete > 0, "no text was complete");
    let refused = worker.client.chat("x", json!({"grammar": "root ::= a\na ::= \"x"})).await;
    let error = refused.error();
    assert_eq!(
        (error.code, error.param.as_deref()),
        (ErrorCode::ValidationFailed, Some("grammar"))
    );
    assert!(error.message.contains("line 2"), "{}", error.message);
}

async fn a_bad_schema_is_refused_with_its_place(worker: &Worker) {
    let schema = json!({"type": "object", "properties": {"a": {"items": {"not": {}}}}});
    let refused = worker.client.chat("x", json!({"response_format": schema_format(&schema)})).await;
    let error = refused.error();
    let place = "response_format.json_schema.schema.properties.a.items";
    assert_eq!((refused.status, error.code), (400, ErrorCode::ValidationFailed));
    assert_eq!(error.param.as_deref(), Some(place));
    assert!(error.message.contains("not"), "{}", error.message);
}

async fn a_limit_ends_json_in_the_middle(worker: &Worker) {
    let schema = json!({"type": "string", "minLength": 200});
    let more = json!({"max_tokens": 5, "response_format": schema_format(&schema)});
    let reply: ChatCompletion = worker.client.chat("Tell a story.", more).await.json();
    assert_eq!(reply.choices[0].finish_reason, FinishReason::Length);
    assert_eq!(reply.usage.completion_tokens, 5);
}

async fn biases_and_ends_are_honoured(worker: &Worker) {
    let prompt = "The capital of France is";
    let ask = |more: Value| {
        let mut body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 1, "temperature": 0});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let client = worker.client.clone();
        async move { client.post("/v1/completions", &body).await }
    };
    let reply: CompletionReply = ask(json!({"logit_bias": {"28": 100}})).await.json();
    let forced = reply.choices[0].text.clone();
    let reply: CompletionReply = ask(json!({})).await.json();
    assert_ne!(reply.choices[0].text, forced);
    let error = ask(json!({"logit_bias": {"28": 1, "49152": 1}})).await.error();
    assert_eq!(
        (error.code, error.param.as_deref()),
        (ErrorCode::ValidationFailed, Some("logit_bias.49152"))
    );

    let one_word = "Answer with the single word yes.";
    let ended: ChatCompletion =
        worker.client.chat(one_word, json!({"temperature": 0})).await.json();
    let tokens = ended.usage.completion_tokens;
    assert_eq!(ended.choices[0].finish_reason, FinishReason::Stop);
    for (more, least) in [
        (json!({"ignore_eos": true, "max_tokens": tokens + 20}), tokens + 20),
        (json!({"min_tokens": tokens + 5, "max_tokens": tokens + 400}), tokens + 5),
    ] {
        let mut more = more;
        more["temperature"] = json!(0);
        let reply: ChatCompletion = worker.client.chat(one_word, more.clone()).await.json();
        assert!(reply.usage.completion_tokens >= least, "{more}: {:?}", reply.usage);
    }
}

#[tokio::test]
async fn log_probabilities_belong_to_the_text_they_come_with() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let worker = worker().await;
    let more = json!({"temperature": 0, "max_tokens": 30, "logprobs": true, "top_logprobs": 3,
        "stop": ["."]});
    let question = "Say something about bees \u{1f41d} in one sentence.";
    let reply: ChatCompletion = worker.client.chat(question, more.clone()).await.json();
    let choice = &reply.choices[0];
    let content = &choice.logprobs.as_ref().unwrap().content;
    let bytes: Vec<u8> = content.iter().flat_map(|token| token.bytes.clone()).collect();
    assert!(
        String::from_utf8(bytes).unwrap().starts_with(choice.message.content.as_deref().unwrap())
    );
    assert!(content.len() > 3);
    for token in content {
        // Greedy: the chosen one is the likeliest.
        assert_eq!(token.top_logprobs.len(), 3);
        assert_eq!(
            (&token.top_logprobs[0].token, token.top_logprobs[0].logprob),
            (&token.token, token.logprob)
        );
        assert!(token.top_logprobs.is_sorted_by(|a, b| a.logprob >= b.logprob));
        assert!(token.logprob <= 0.0 && token.logprob > -10.0);
        let mass: f32 = token.top_logprobs.iter().map(|top| top.logprob.exp()).sum();
        assert!(mass <= 1.0001, "{mass}");
    }
    let streamed = worker.client.stream_chat(question, more).await;
    let chunks = streamed.chunks.iter().filter_map(|chunk| chunk.choices[0].logprobs.as_ref());
    let of_chunks: Vec<_> = chunks.flat_map(|logprobs| logprobs.content.clone()).collect();
    assert_eq!(of_chunks.len(), content.len());
    for (a, b) in of_chunks.iter().zip(content) {
        assert_eq!(a.token, b.token);
        assert!((a.logprob - b.logprob).abs() < 0.1, "{a:?} {b:?}");
    }
    for chunk in &streamed.chunks {
        let text = chunk.choices[0].delta.content.as_deref().unwrap_or_default();
        let tokens = chunk.choices[0].logprobs.iter().flat_map(|logprobs| &logprobs.content);
        let spelt: String = tokens.map(|token| token.token.as_str()).collect();
        assert!(spelt.starts_with(text), "{text:?} came with {spelt:?}");
    }

    let body = json!({"model": MODEL, "prompt": "\u{1f41d} 1 2 3 4", "max_tokens": 12, "logprobs": 2,
        "temperature": 0});
    let reply: CompletionReply = worker.client.post("/v1/completions", &body).await.json();
    let choice = &reply.choices[0];
    let logprobs = choice.logprobs.as_ref().unwrap();
    let tops = logprobs.top_logprobs.as_ref().unwrap();
    assert_eq!(logprobs.tokens.len(), 12);
    assert_eq!(
        (logprobs.token_logprobs.len(), tops.len(), logprobs.text_offset.len()),
        (12, 12, 12)
    );
    for (index, token) in logprobs.tokens.iter().enumerate() {
        let offset = logprobs.text_offset[index] as usize;
        let rest: String = choice.text.chars().skip(offset).collect();
        assert!(rest.starts_with(token.as_str()), "{token:?} at {offset} of {:?}", choice.text);
        assert!((2..=3).contains(&tops[index].len()) && tops[index].contains_key(token));
    }
    let error = worker.client.chat("x", json!({"top_logprobs": 2})).await.error();
    assert_eq!(error.param.as_deref(), Some("top_logprobs"));
}

#[tokio::test]
async fn no_log_probability_is_lost_where_a_reply_is_read_for_calls() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let worker = worker().await;
    let parameters = json!({"type": "object", "properties": {"city": {"enum": ["Rome"]}},
        "required": ["city"], "additionalProperties": false});
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": parameters}});
    for choice in ["required", "auto"] {
        let more = json!({"tools": [tool], "tool_choice": choice, "temperature": 0,
            "parallel_tool_calls": false, "max_tokens": 60, "logprobs": true});
        let reply: ChatCompletion =
            worker.client.chat("Weather in Rome?", more.clone()).await.json();
        let message = &reply.choices[0].message;
        let content = &reply.choices[0].logprobs.as_ref().unwrap().content;
        let spelt: String = content.iter().map(|token| token.token.as_str()).collect();
        assert!(spelt.contains(message.content.as_deref().unwrap_or_default()), "{spelt}");
        if choice == "required" {
            let call = &message.tool_calls[0].function;
            assert!(spelt.contains(&call.arguments), "{call:?} in {spelt}");
        }
        let streamed = worker.client.stream_chat("Weather in Rome?", more).await;
        let choices = streamed.chunks.iter().flat_map(|chunk| &chunk.choices);
        let told = choices.filter_map(|choice| choice.logprobs.as_ref());
        let told: String =
            told.flat_map(|told| &told.content).map(|token| token.token.as_str()).collect();
        assert_eq!(told, spelt, "{choice}");
    }
}
