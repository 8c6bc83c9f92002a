//! What a reply looks like, and what is refused.

use rbee_api::error::ErrorCode;
use rbee_api::openai::{ChatCompletion, CompletionReply, FinishReason, ModelCardList, Usage};
use reqwest::Method;
use serde_json::{Value, json};

use crate::process::{MODEL, Worker, program, run};

fn usage(prompt_tokens: u32, completion_tokens: u32) -> Usage {
    let total_tokens = prompt_tokens + completion_tokens;
    Usage { prompt_tokens, completion_tokens, total_tokens, ..Usage::default() }
}

/// The routes as the program itself lists them: method, path, access.
fn routes() -> Vec<(Method, String, String)> {
    let mut command = program();
    command.arg("--print-routes").stdout(std::process::Stdio::piped());
    let output = run(command, b"");
    assert!(output.status.success());
    let listing = String::from_utf8(output.stdout).unwrap();
    let parse = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let method = words[0].to_uppercase().parse().unwrap();
        (method, words[1].to_owned(), words[2].to_owned())
    };
    listing.lines().map(parse).collect()
}

#[tokio::test]
async fn every_route_but_health_wants_the_token() {
    let worker = Worker::start(&[]).await;
    let routes = routes();
    assert!(routes.len() >= 10, "{routes:?}");
    for token in [None, Some("wrong-token-0123456789")] {
        let client = worker.client.with_token(token);
        for (method, path, access) in &routes {
            let path = path.replace("{id}", "some-id");
            let response = client.request(method.clone(), &path).send().await.unwrap();
            let status = response.status();
            if access == "public" {
                assert_eq!(status, 200, "{method} {path}");
                continue;
            }
            assert_eq!(status, 401, "{method} {path}");
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
            let body: Value = response.json().await.unwrap();
            assert_eq!(body["error"]["code"], "unauthorized", "{method} {path}");
        }
    }
}

#[tokio::test]
async fn a_chat_stream_has_the_shape_that_clients_expect() {
    let worker = Worker::start(&[]).await;
    let more = json!({"stream_options": {"include_usage": true}});
    let streamed = worker.client.stream_chat("one two three", more).await;
    assert_eq!(streamed.text, "one two three");
    assert!(streamed.done);
    let (first, rest) = streamed.chunks.split_first().unwrap();
    assert_eq!(first.choices[0].delta.role.as_deref(), Some("assistant"));
    assert_eq!(first.choices[0].delta.content.as_deref(), Some(""));
    assert!(rest.iter().all(|chunk| (&chunk.id, chunk.created) == (&first.id, first.created)));
    assert!(streamed.chunks.iter().all(|chunk| chunk.model == MODEL));
    let [contents @ .., terminal, usage_chunk] = rest else { panic!("{rest:?}") };
    assert!(contents.iter().all(|chunk| chunk.choices[0].finish_reason.is_none()));
    assert_eq!(terminal.choices[0].finish_reason, Some(FinishReason::Stop));
    assert_eq!(terminal.choices[0].delta, rbee_api::openai::ChatDelta::default());
    assert!(usage_chunk.choices.is_empty());
    assert_eq!(usage_chunk.usage, Some(Some(usage(3, 3))));
}

#[tokio::test]
async fn replies_that_do_not_stream_hold_text_reason_and_usage() {
    let worker = Worker::start(&["--context=16"]).await;
    let cases = [
        ("a b c", json!({}), "a b c", FinishReason::Stop, usage(3, 3)),
        ("a b c", json!({"max_tokens": 2}), "a b", FinishReason::Length, usage(3, 2)),
        ("a b c", json!({"max_completion_tokens": 3}), "a b c", FinishReason::Length, usage(3, 3)),
        ("a b c", json!({"stop": " b"}), "a", FinishReason::Stop, usage(3, 2)),
        // The context ends before the reply does: 4 words of prompt, 12 of reply.
        (
            "[[tokens=99 text=x]] y z",
            json!({}),
            "x x x x x x x x x x x x",
            FinishReason::Length,
            usage(4, 12),
        ),
    ];
    for (content, more, text, reason, usage) in cases {
        let reply: ChatCompletion = worker.client.chat(content, more.clone()).await.json();
        let choice = &reply.choices[0];
        let got = (choice.message.content.as_deref(), choice.finish_reason, reply.usage);
        assert_eq!(got, (Some(text), reason, usage), "{content} {more}");

        let mut body = json!({"model": MODEL, "prompt": content, "max_tokens": 1000});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let reply: CompletionReply = worker.client.post("/v1/completions", &body).await.json();
        let choice = &reply.choices[0];
        assert_eq!((choice.text.as_str(), choice.finish_reason), (text, Some(reason)));
        assert_eq!(reply.usage, Some(Some(usage)));
    }
}

#[tokio::test]
async fn text_is_cut_before_a_stop_sequence_however_tokens_fall() {
    let worker = Worker::start(&[]).await;
    for bytes in 1..=6 {
        for (text, stop, expected) in [
            ("so it ENDS here", json!(["ENDS"]), "so it "),
            ("so it ENDS here", json!(["ENDX", "it E", "S h"]), "so "),
            ("aaab", json!(["aab"]), "a"),
            ("caf\u{e9} \u{1f41d} au lait", json!(["\u{1f41d}"]), "caf\u{e9} "),
            ("never comes ENDXS", json!(["ENDS", "MORE"]), "never comes ENDXS"),
        ] {
            let content = format!("[[bytes={bytes} text={text}]]");
            let streamed = worker.client.stream_chat(&content, json!({"stop": stop})).await;
            assert_eq!(streamed.text, expected, "{content} {stop}");
            assert_eq!(streamed.finish_reason(), Some(FinishReason::Stop));
        }
    }
}

#[tokio::test]
async fn characters_are_never_split() {
    let worker = Worker::start(&[]).await;
    let text = "\u{1f41d}\u{1f1e9}\u{1f1ea} \u{6c49}\u{5b57} na\u{ef}ve \u{1f469}\u{200d}\u{1f680}";
    for bytes in 1..=4 {
        let content = format!("[[bytes={bytes} text={text}]]");
        let streamed = worker.client.stream_chat(&content, json!({})).await;
        assert_eq!(streamed.text, text);
        assert!(streamed.chunks.iter().all(|chunk| {
            let delta = chunk.choices[0].delta.content.as_deref();
            !delta.unwrap_or_default().contains('\u{fffd}')
        }));
    }
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_with_its_reason() {
    let worker = Worker::start(&["--context=8"]).await;
    let client = &worker.client;
    let long = client.chat("1 2 3 4 5 6 7 8", json!({})).await;
    let error = long.error();
    assert_eq!(
        (error.code, error.param.as_deref()),
        (ErrorCode::ContextLengthExceeded, Some("messages"))
    );
    assert_eq!(error.message.matches('8').count(), 2, "both figures: {}", error.message);
    assert_eq!(client.chat("1 2 3 4 5 6 7", json!({})).await.status, 200);

    let unsupported = ErrorCode::UnsupportedParameter;
    let cases = [
        (json!({"model": "other:model", "prompt": "x"}), ErrorCode::ModelNotFound, "model"),
        (json!({"model": MODEL, "prompt": [1, 2, 40_000]}), ErrorCode::ValidationFailed, "prompt"),
        (json!({"model": MODEL, "prompt": "x", "n": 17}), ErrorCode::ValidationFailed, "n"),
        (json!({"model": MODEL, "prompt": "x", "best_of": 2}), unsupported, "best_of"),
        (json!({"model": MODEL, "prompt": "[[speed=9]]"}), ErrorCode::ValidationFailed, "prompt"),
        (json!({"model": MODEL, "prompt": ""}), ErrorCode::ValidationFailed, "prompt"),
        // The engine that repeats has neither likelihoods nor a choice of tokens.
        (json!({"model": MODEL, "prompt": "x", "logprobs": 0}), unsupported, "logprobs"),
        (json!({"model": MODEL, "prompt": "x", "ignore_eos": true}), unsupported, "ignore_eos"),
        (json!({"model": MODEL, "prompt": "x", "min_tokens": 3}), unsupported, "min_tokens"),
        (json!({"model": MODEL, "prompt": "x", "grammar": "root ::= [x]"}), unsupported, "grammar"),
        (
            json!({"model": MODEL, "prompt": "x", "response_format": {"type": "json_object"}}),
            unsupported,
            "response_format",
        ),
    ];
    for (body, code, param) in cases {
        let error = client.post("/v1/completions", &body).await.error();
        assert_eq!((error.code, error.param.as_deref()), (code, Some(param)), "{body}");
        assert!(error.request_id.is_some());
    }
    let garbage = client.request(Method::POST, "/v1/completions").body("{");
    let garbage = garbage.header("content-type", "application/json").send().await.unwrap();
    assert_eq!(garbage.status(), 400);
}

#[tokio::test]
async fn every_name_of_the_model_is_listed_and_answered_to() {
    let worker = Worker::start(&[]).await;
    let list: ModelCardList = worker.client.get("/v1/models").await.json();
    let names: Vec<_> = list.data.iter().map(|card| card.id.as_str()).collect();
    assert_eq!(names, [MODEL, "file:/models/echo.gguf"]);
    for name in names {
        let body = json!({"model": name, "prompt": [7, 8], "max_tokens": 9});
        let reply: CompletionReply = worker.client.post("/v1/completions", &body).await.json();
        assert_eq!((reply.choices[0].text.as_str(), reply.model.as_str()), ("t7 t8", name));
    }
}

#[tokio::test]
async fn metrics_tell_requests_tokens_and_times() {
    let worker = Worker::start(&[]).await;
    worker.client.chat("a b c", json!({})).await;
    worker.client.chat("a b c", json!({"max_tokens": 2})).await;
    let metrics = worker.client.get("/metrics").await.body;
    for line in [
        "rbee_worker_requests_total{outcome=\"stop\"} 1",
        "rbee_worker_requests_total{outcome=\"length\"} 1",
        "rbee_worker_prompt_tokens_total 6",
        "rbee_worker_generated_tokens_total 5",
        "rbee_worker_requests_running 0",
        "rbee_worker_requests_waiting 0",
        "rbee_worker_queue_seconds_count 2",
        "rbee_worker_time_to_first_token_seconds_count 2",
        "rbee_worker_time_per_output_token_seconds_count 2",
        "gen_ai_server_time_to_first_token_seconds_count 2",
        "gen_ai_server_time_per_output_token_seconds_count 2",
        "gen_ai_server_request_duration_seconds_count 2",
        // One for each token, that of a prompt among them, and one for the end.
        "rbee_worker_engine_steps_total 6",
        "rbee_worker_step_seconds_count 6",
        "rbee_worker_step_requests_total 6",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
}
