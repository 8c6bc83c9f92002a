//! Several choices from one prompt: their shape whole and streamed, that the
//! prompt is computed once, their seeds, and that they come and go together.

use std::time::Duration;

use rbee_api::error::ErrorCode;
use rbee_api::openai::{ChatCompletion, ChatDelta, CompletionReply, FinishReason, Usage};
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::Streamed;
use crate::process::{MODEL, Worker};

/// Long enough that nothing ends by itself during a test.
const ENDLESS: &str = "[[tokens=100000 delay_ms=5]] word";
/// Eight pieces to draw from.
const DRAWN: &str = "[[draw=1 tokens=24]] a b c d e f g h";

fn usage(prompt_tokens: u32, completion_tokens: u32) -> Usage {
    let total_tokens = prompt_tokens + completion_tokens;
    Usage { prompt_tokens, completion_tokens, total_tokens, ..Usage::default() }
}

fn words(count: u32) -> String {
    (0..count).map(|word| format!(" w{word}")).collect()
}

async fn texts(worker: &Worker, content: &str, more: Value) -> Vec<String> {
    let reply: ChatCompletion = worker.client.chat(content, more).await.json();
    assert!((0..).zip(&reply.choices).all(|(index, choice)| choice.index == index), "{reply:?}");
    reply.choices.into_iter().map(|choice| choice.message.content.unwrap()).collect()
}

/// Begins a stream and reads its first bytes, so that it has been let in.
async fn begin(worker: &Worker, more: Value) -> reqwest::Response {
    let mut response = worker.client.open_chat(ENDLESS, more).await;
    assert!(response.chunk().await.unwrap().is_some());
    response
}

async fn all_is_free(worker: &Worker, slots: u32) -> Duration {
    let free = |status: &rbee_api::worker::WorkerStatus| {
        let inside = status.requests_running + status.requests_waiting;
        (status.slots_available, inside) == (slots, 0)
    };
    worker.until("all places are free", free).await
}

#[tokio::test]
async fn a_whole_reply_has_its_choices_in_order_and_counts_the_prompt_once() {
    let worker = Worker::start(&["--slots=3"]).await;
    // As many as there are slots, fewer, and more.
    for n in [1, 2, 3, 7] {
        // A user for each, so that nobody finds the prompt computed.
        let more = json!({"n": n, "user": format!("chat-{n}")});
        let reply: ChatCompletion = worker.client.chat("a b c", more).await.json();
        let indices: Vec<u32> = reply.choices.iter().map(|choice| choice.index).collect();
        assert_eq!(indices, (0..n).collect::<Vec<_>>());
        let said = |text: &str, reason| (text, reason) == ("a b c", FinishReason::Stop);
        let all = &reply.choices;
        assert!(all.iter().all(|c| said(c.message.content.as_deref().unwrap(), c.finish_reason)));
        assert_eq!(reply.usage, usage(3, 3 * n));

        let body = json!({"model": MODEL, "prompt": "a b c", "n": n, "best_of": n, "max_tokens": 2,
            "user": format!("completion-{n}")});
        let reply: CompletionReply = worker.client.post("/v1/completions", &body).await.json();
        let choices: Vec<_> =
            reply.choices.iter().map(|c| (c.index, c.text.as_str(), c.finish_reason)).collect();
        let expected = (0..n).map(|index| (index, "a b", Some(FinishReason::Length)));
        assert_eq!(choices, expected.collect::<Vec<_>>());
        assert_eq!(reply.usage, Some(Some(usage(3, 2 * n))));
    }
    all_is_free(&worker, 3).await;
}

#[tokio::test]
async fn a_stream_tells_every_choice_from_its_role_to_its_end_and_ends_once() {
    let worker = Worker::start(&["--slots=2"]).await;
    for n in [2, 3, 16] {
        let more = json!({"n": n, "stream_options": {"include_usage": true},
            "user": format!("user-{n}")});
        let streamed = worker.client.stream_chat("one two three", more).await;
        assert!(streamed.done);
        let (last, before) = streamed.chunks.split_last().unwrap();
        assert_eq!((last.choices.len(), last.usage), (0, Some(Some(usage(3, 3 * n)))));
        assert!(
            before.iter().all(|chunk| chunk.choices.len() == 1 && chunk.usage.flatten().is_none())
        );
        for index in 0..n {
            let choice = streamed.choice(index);
            assert_eq!(choice.text, "one two three", "choice {index}");
            let deltas: Vec<_> = choice.chunks.iter().map(|chunk| &chunk.choices[0]).collect();
            let [first, rest @ .., terminal] = deltas.as_slice() else { panic!("{deltas:?}") };
            assert_eq!(first.delta.role.as_deref(), Some("assistant"));
            assert!(rest.iter().all(|c| c.delta.role.is_none() && c.finish_reason.is_none()));
            assert_eq!(terminal.delta, ChatDelta::default());
            assert_eq!(terminal.finish_reason, Some(FinishReason::Stop));
        }
    }
    let body = json!({"model": MODEL, "prompt": "x y", "n": 3, "stream": true});
    let answer = worker.client.post("/v1/completions", &body).await.body;
    let mut said = [const { String::new() }; 3];
    let (mut ends, mut done) = (Vec::new(), 0);
    for event in answer.split_terminator("\n\n") {
        let data = event.strip_prefix("data: ").unwrap();
        assert_eq!(done, 0, "{data} came after the end");
        if data == "[DONE]" {
            done += 1;
            continue;
        }
        let chunk: CompletionReply = serde_json::from_str(data).unwrap();
        let [choice] = chunk.choices.as_slice() else { panic!("{chunk:?}") };
        assert!(!ends.contains(&choice.index), "{data} came after the end of its choice");
        said[choice.index as usize].push_str(&choice.text);
        ends.extend(choice.finish_reason.map(|_| choice.index));
    }
    ends.sort_unstable();
    assert_eq!((said, ends, done), (["x y"; 3].map(str::to_owned), vec![0, 1, 2], 1));
    all_is_free(&worker, 2).await;
}

#[tokio::test]
async fn the_prompt_is_computed_once() {
    let flags: [&[&str]; 3] = [&["--slots=4"], &["--slots=2"], &["--slots=4", "--cache-shared"]];
    for flags in flags {
        let worker = Worker::start(flags).await;
        let content = words(200);
        let more = json!({"n": 4, "max_tokens": 1, "user": "alice"});
        let reply: ChatCompletion = worker.client.chat(&content, more.clone()).await.json();
        assert_eq!(reply.usage, usage(200, 4), "{flags:?}");
        // All of it once, and its last token for each of the others.
        assert_eq!(worker.metric("rbee_worker_step_tokens_total").await, 203, "{flags:?}");
        assert_eq!(worker.metric("rbee_worker_prompt_tokens_total").await, 800);
        assert_eq!(worker.metric("rbee_worker_cached_prompt_tokens_total").await, 3 * 199);
        assert_eq!(worker.metric("rbee_worker_generated_tokens_total").await, 4);
        // What is told as cached was there before the request.
        let again: ChatCompletion = worker.client.chat(&content, more).await.json();
        assert_eq!(again.usage.prompt_tokens_details.cached_tokens, 199, "{flags:?}");
        assert_eq!(worker.metric("rbee_worker_step_tokens_total").await, 207, "{flags:?}");
    }
}

#[tokio::test]
async fn a_prompt_too_short_to_be_copied_is_computed_for_each() {
    let worker = Worker::start(&["--slots=3"]).await;
    let content = words(9);
    let said = texts(&worker, &content, json!({"n": 3})).await;
    assert_eq!(said, vec![content.trim(); 3]);
    assert_eq!(worker.metric("rbee_worker_cached_prompt_tokens_total").await, 0);
}

#[tokio::test]
async fn a_request_is_one_in_the_metrics_of_requests() {
    let worker = Worker::start(&["--slots=2"]).await;
    worker.client.chat("a b c", json!({"n": 5})).await;
    // Choices that end in two ways: the worse one counts.
    let more = json!({"n": 8, "seed": 1, "stop": [" c"], "max_tokens": 6});
    let reply: ChatCompletion = worker.client.chat(DRAWN, more).await.json();
    let reasons: Vec<_> = reply.choices.iter().map(|choice| choice.finish_reason).collect();
    assert!(reasons.contains(&FinishReason::Stop) && reasons.contains(&FinishReason::Length));
    let metrics = worker.client.get("/metrics").await.body;
    for line in [
        "rbee_worker_requests_total{outcome=\"stop\"} 1",
        "rbee_worker_requests_total{outcome=\"length\"} 1",
        "rbee_worker_queue_seconds_count 2",
        "rbee_worker_time_to_first_token_seconds_count 2",
        "gen_ai_server_request_duration_seconds_count 2",
        "rbee_worker_requests_running 0",
        "rbee_worker_requests_waiting 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_choice_draws_what_a_request_with_its_own_seed_draws() {
    let worker = Worker::start(&["--slots=3"]).await;
    // The last one counts beyond the largest seed, and there on from the smallest.
    for seed in [7, -2, i64::MAX] {
        let together = texts(&worker, DRAWN, json!({"n": 4, "seed": seed})).await;
        for (number, text) in (0..).zip(&together) {
            let own = seed.wrapping_add(number);
            assert_eq!(
                &texts(&worker, DRAWN, json!({"seed": own})).await,
                &[text.as_str()],
                "{own}"
            );
        }
        let mut distinct = together.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 4, "{together:?}");
        let streamed = worker.client.stream_chat(DRAWN, json!({"n": 4, "seed": seed})).await;
        let streamed: Vec<_> = (0..4).map(|index| streamed.choice(index).text).collect();
        assert_eq!(streamed, together);
    }
}

#[tokio::test]
async fn without_a_seed_choices_differ_and_without_a_temperature_they_do_not() {
    let worker = Worker::start(&["--slots=3"]).await;
    let mut drawn = texts(&worker, DRAWN, json!({"n": 5})).await;
    drawn.extend(texts(&worker, DRAWN, json!({"n": 5})).await);
    drawn.sort_unstable();
    drawn.dedup();
    assert_eq!(drawn.len(), 10, "{drawn:?}");
    let greedy = texts(&worker, DRAWN, json!({"n": 5, "temperature": 0})).await;
    assert!(greedy.iter().all(|text| *text == greedy[0]), "{greedy:?}");
}

#[tokio::test]
async fn places_are_given_for_all_choices_or_for_none() {
    let worker = Worker::start(&["--slots=2", "--queue=2"]).await;
    let first = begin(&worker, json!({"max_tokens": 100_000})).await;
    let refused = worker.client.chat("x", json!({"n": 4})).await.error();
    assert_eq!(refused.code, ErrorCode::AllSlotsBusy);
    let counts = json!({"places": 4, "places_free": 3, "places_wanted": 4});
    assert_eq!(refused.details, Some(counts));
    let status = worker.status().await;
    assert_eq!((status.requests_running, status.requests_waiting), (1, 0), "some were let in");

    let rest = begin(&worker, json!({"max_tokens": 100_000, "n": 3})).await;
    worker
        .until("two run and two wait", |status| {
            (status.requests_running, status.requests_waiting) == (2, 2)
        })
        .await;
    let full = worker.client.chat("x", json!({})).await.error();
    assert_eq!(
        (full.code, full.details.unwrap()["places_free"].as_u64()),
        (ErrorCode::AllSlotsBusy, Some(0))
    );
    drop((first, rest));
    all_is_free(&worker, 2).await;

    // More than ever fit is the client's mistake: nothing would become of it later.
    let never = worker.client.chat("x", json!({"n": 5})).await.error();
    assert_eq!((never.code, never.param.as_deref()), (ErrorCode::ValidationFailed, Some("n")));
    assert!(never.message.contains("at most 4"), "{}", never.message);
    assert_eq!(texts(&worker, "x", json!({"n": 4})).await, ["x"; 4]);
}

#[tokio::test]
async fn many_requests_for_several_choices_leave_no_place_taken() {
    let worker = Worker::start(&["--slots=2", "--queue=3"]).await;
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..40_u32 {
        let client = worker.client.clone();
        clients.spawn(async move {
            let answer = client.chat("a b c d", json!({"n": 1 + number % 5})).await;
            match answer.status {
                200 => answer.json::<ChatCompletion>().choices.len(),
                _ => {
                    assert_eq!(answer.code(), ErrorCode::AllSlotsBusy);
                    0
                }
            }
        });
    }
    let mut answered = 0;
    while let Some(choices) = clients.join_next().await {
        answered += choices.unwrap();
    }
    assert!(answered > 0);
    all_is_free(&worker, 2).await;
    assert_eq!(texts(&worker, "x", json!({"n": 5})).await, ["x"; 5]);
}

#[tokio::test]
async fn a_client_that_leaves_takes_all_its_choices_with_it() {
    let worker = Worker::start(&["--slots=2"]).await;
    let more = json!({"max_tokens": 100_000, "n": 5});
    for _ in 0..3 {
        let response = begin(&worker, more.clone()).await;
        worker.until("two run", |status| status.requests_running == 2).await;
        assert_eq!(worker.status().await.requests_waiting, 3);
        drop(response);
        let took = all_is_free(&worker, 2).await;
        assert!(took < Duration::from_millis(500), "it took {took:?}");
    }
    let client = worker.client.clone();
    let whole = tokio::spawn(async move { client.chat(ENDLESS, more).await });
    worker.until("two run", |status| status.requests_running == 2).await;
    whole.abort();
    all_is_free(&worker, 2).await;
    let metrics = worker.client.get("/metrics").await.body;
    assert!(metrics.contains("rbee_worker_requests_total{outcome=\"cancelled\"} 4"), "{metrics}");
}

/// Sends a request for endless choices with a header.
async fn post_with(worker: &Worker, header: (&str, &str), stream: bool) -> reqwest::Response {
    let body = json!({"model": MODEL, "stream": stream, "max_tokens": 100_000, "n": 4,
        "messages": [{"role": "user", "content": ENDLESS}]});
    let request = worker.client.request(Method::POST, "/v1/chat/completions").json(&body);
    request.header(header.0, header.1).send().await.unwrap()
}

#[tokio::test]
async fn what_ends_a_request_ends_all_its_choices_with_one_error() {
    let worker = Worker::start(&["--slots=2"]).await;
    let timeout = ("x-request-timeout-ms", "300");
    let streamed = Streamed::read(post_with(&worker, timeout, true).await).await;
    assert_eq!((streamed.error_code(), streamed.done), (Some(ErrorCode::DeadlineExceeded), false));
    all_is_free(&worker, 2).await;
    assert_eq!(post_with(&worker, timeout, false).await.status(), 504);
    all_is_free(&worker, 2).await;

    let response = post_with(&worker, ("x-request-id", "req-9"), true).await;
    assert_eq!(worker.client.delete("/api/v1/requests/req-9").await.status, 200);
    let streamed = Streamed::read(response).await;
    assert_eq!((streamed.error_code(), streamed.done), (Some(ErrorCode::RequestCancelled), false));
    all_is_free(&worker, 2).await;
    let unknown = worker.client.delete("/api/v1/requests/req-9").await;
    assert_eq!(unknown.code(), ErrorCode::RequestNotFound);
}

/// Two pieces, of which the second fails its job when it is drawn first.
const FRAGILE: &str = "[[draw=1 fail_first=2 tokens=100000 delay_ms=5]] good bad";

#[tokio::test]
async fn a_choice_that_fails_takes_the_others_with_it() {
    let worker = Worker::start(&["--slots=3"]).await;
    let is_good = async |seed: u32| {
        let answer = worker.client.chat(FRAGILE, json!({"seed": seed, "max_tokens": 1})).await;
        answer.status == 200
    };
    let mut seed = 0;
    while !(is_good(seed).await && is_good(seed + 1).await && !is_good(seed + 2).await) {
        seed += 1;
    }
    // The first two would go on for minutes.
    let more = json!({"seed": seed, "n": 3, "max_tokens": 100_000});
    let whole = worker.client.chat(FRAGILE, more.clone()).await;
    assert_eq!(whole.code(), ErrorCode::WorkerFailed);
    all_is_free(&worker, 3).await;
    let mut streaming = more;
    streaming["stream"] = json!(true);
    let answer = worker.client.chat(FRAGILE, streaming).await;
    assert_eq!(answer.body.matches("\"error\"").count(), 1, "{}", answer.body);
    assert!(!answer.body.contains("[DONE]"), "{}", answer.body);
    all_is_free(&worker, 3).await;
}

#[tokio::test]
async fn a_reader_that_lags_pauses_all_its_choices() {
    let worker = Worker::start(&["--slots=4", "--context=1000000"]).await;
    // Words of 200 bytes fill what the sockets buffer within a few thousand.
    let content = format!("[[tokens=1000000 text={}]]", "w".repeat(200));
    let more = json!({"max_tokens": 1_000_000, "n": 3});
    let unread = worker.client.open_chat(&content, more).await;
    worker.pauses().await;
    assert_eq!(worker.status().await.requests_running, 3);
    let generated = worker.metric("rbee_worker_step_tokens_total").await;
    assert!(generated < 3_000_000, "nothing paused");
    assert!(worker.client.stream_chat("[[tokens=50]] other", json!({"n": 2})).await.done);
    drop(unread);
    all_is_free(&worker, 4).await;
}
