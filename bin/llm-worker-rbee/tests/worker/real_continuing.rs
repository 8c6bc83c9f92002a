//! A real model's reply goes on at another worker of the same file: greedily,
//! with penalties, held to a schema, with a call of a tool, with log
//! probabilities. What is said is nearly certain at each token, because a token
//! that is computed with a prompt and one that is computed alone differ in the
//! last digits.

use rbee_api::continuation::Delivered;
use serde_json::{Value, json};

use crate::llama::{ONE_AT_A_TIME, model_path};
use crate::marked::{Piece, Told, pieces};
use crate::process::{MODEL, Worker};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

struct Pair {
    one: Worker,
    other: Worker,
}

impl Pair {
    /// Returns the reply of one worker, and what comes of it when the other one
    /// goes on with it after some of its marks.
    async fn replies(&self, path: &str, body: &Value, places: usize) -> (Told, Vec<Told>) {
        let whole = pieces(&self.one, path, body, None).await;
        let marks = whole.len() - 1;
        assert!(marks >= places, "{marks} marks in {body}");
        let mut others = Vec::new();
        for at in (1..=marks).step_by(marks.div_ceil(places)) {
            let delivered: &Delivered = whole[at - 1].delivered.as_ref().unwrap();
            let mut both: Vec<Piece> = whole[..at].to_vec();
            both.extend(pieces(&self.other, path, body, Some(delivered)).await);
            others.push(Told::of(&both));
        }
        (Told::of(&whole), others)
    }

    /// Goes on at some places and returns the reply, which is the same everywhere.
    async fn same(&self, path: &str, body: &Value) -> Told {
        let (expected, others) = self.replies(path, body, 6).await;
        assert_eq!((expected.dones, &expected.error, expected.usage.len()), (1, &None, 1));
        for told in others {
            assert_eq!(told, expected, "{body}");
        }
        expected
    }
}

fn body(more: &Value) -> Value {
    let mut body = json!({"model": MODEL, "stream": true, "temperature": 0,
        "stream_options": {"include_usage": true}});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn asked(text: &str, more: &Value) -> Value {
    let mut body = body(more);
    body["messages"] = json!([{"role": "user", "content": text}]);
    body
}

fn counting(more: &Value) -> Value {
    let mut body = body(more);
    body["prompt"] = json!("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,");
    body["max_tokens"] = json!(40);
    body
}

#[tokio::test]
async fn replies_of_a_real_model_go_on_at_another_worker() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let model = model_path();
    let arguments = ["--model", &model, "--slots=3", "--context=1024"];
    let (one, other) =
        tokio::join!(Worker::start_engine(&arguments), Worker::start_engine(&arguments));
    let pair = Pair { one, other };
    plain_text_is_the_same(&pair).await;
    what_was_said_counts_for_penalties(&pair).await;
    tokens_are_told_once_each(&pair).await;
    json_satisfies_its_schema_still(&pair).await;
    calls_are_whole(&pair).await;
}

async fn plain_text_is_the_same(pair: &Pair) {
    let told = pair.same(COMPLETIONS, &counting(&json!({}))).await;
    assert!(told.choices[&0].text.contains(" 20,"), "{told:?}");
    let question = "Count from 1 to 15, with a comma after each number.";
    let told = pair.same(CHAT, &asked(question, &json!({"max_tokens": 40}))).await;
    assert_eq!(told.choices[&0].roles, 1);
    // Drawn from so few candidates that the numbers drawn decide nearly alone.
    let drawn = json!({"temperature": 0.4, "top_k": 4, "seed": 5, "n": 2});
    pair.same(COMPLETIONS, &counting(&drawn)).await;
}

async fn what_was_said_counts_for_penalties(pair: &Pair) {
    let prompt = "the the the the the the the the";
    for more in [
        json!({"frequency_penalty": 2.0, "presence_penalty": 1.0}),
        json!({"dry_multiplier": 4.0, "dry_allowed_length": 1}),
    ] {
        let mut body = body(&more);
        body["prompt"] = json!(prompt);
        body["max_tokens"] = json!(20);
        pair.same(COMPLETIONS, &body).await;
    }
}

async fn tokens_are_told_once_each(pair: &Pair) {
    // Two of the letters are several tokens each, and the end may be the stop sequence.
    let more = json!({"logprobs": 2, "stop": ["19, 20"]});
    let (expected, others) = pair.replies(COMPLETIONS, &counting(&more), 6).await;
    let names = |told: &Told| {
        let all = told.choices[&0].logprobs.iter();
        let exact = all.filter(|told| told[0] == "tokens" || told[0] == "text_offset");
        exact.cloned().collect::<Vec<_>>()
    };
    assert!(names(&expected).len() > 40, "{expected:?}");
    for told in others {
        assert_eq!(names(&told), names(&expected));
        assert_eq!(told.choices[&0].text, expected.choices[&0].text);
        assert_eq!(
            (told.usage, &told.choices[&0].ends),
            (expected.usage.clone(), &expected.choices[&0].ends)
        );
    }
}

async fn json_satisfies_its_schema_still(pair: &Pair) {
    let schema = json!({"type": "object", "additionalProperties": false,
        "properties": {"name": {"type": "string", "maxLength": 20},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]},
                "minItems": 2, "maxItems": 4},
            "age": {"type": "integer", "minimum": 0, "maximum": 120}},
        "required": ["name", "tags", "age"]});
    let validator = jsonschema::validator_for(&schema).unwrap();
    let format = json!({"type": "json_schema",
        "json_schema": {"name": "answer", "strict": true, "schema": schema}});
    for temperature in [0.0, 1.2] {
        let more = json!({"response_format": format, "temperature": temperature, "seed": 3,
            "max_tokens": 120});
        let body = asked("Tell me about a person, as JSON.", &more);
        let (expected, others) = pair.replies(CHAT, &body, 6).await;
        for told in others.iter().chain([&expected]) {
            let text = &told.choices[&0].text;
            let value: Value = serde_json::from_str(text).unwrap();
            assert!(validator.is_valid(&value), "{text}");
            assert_eq!((told.dones, told.usage.len(), told.choices[&0].roles), (1, 1, 1));
            assert_eq!(told.choices[&0].ends, ["stop"]);
        }
    }
}

async fn calls_are_whole(pair: &Pair) {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"},
        "days": {"type": "integer"}}, "required": ["city", "days"]});
    let tools = json!([{"type": "function",
        "function": {"name": "get_weather", "parameters": parameters}}]);
    let more = json!({"tools": tools, "tool_choice": "required", "max_tokens": 80,
        "parallel_tool_calls": false});
    let body = asked("What is the weather in Paris in the next 3 days?", &more);
    let (expected, others) = pair.replies(CHAT, &body, 2).await;
    for told in others.iter().chain([&expected]) {
        let choice = &told.choices[&0];
        assert_eq!(choice.calls.len(), 1, "{told:?}");
        let (id, name, arguments) = &choice.calls[0];
        assert_eq!((id, name.as_str()), (&expected.choices[&0].calls[0].0, "get_weather"));
        let arguments: Value = serde_json::from_str(arguments).unwrap();
        assert!(arguments["city"].is_string() && arguments["days"].is_i64(), "{arguments}");
        assert_eq!(choice.ends, ["tool_calls"]);
    }
}
