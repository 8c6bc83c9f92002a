//! `rbee run`: what is sent, and what reaches the terminal or pipe, when.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tokio::time::Instant;

use crate::fake_queen::FakeQueen;
use crate::program::{end, read_until, signal, within};
use crate::pty::Terminal;

#[tokio::test]
async fn tokens_are_printed_as_they_come() {
    let queen = FakeQueen::start().await;
    let mut child = queen.program().command(&["run", "gated", "hi"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    assert_eq!(read_until(&mut stdout, "one ").await, "one ");
    queen.script.gate.notify_one();
    assert_eq!(read_until(&mut stdout, "two\n").await, "two\n");
    child.stdout = Some(stdout);
    let ended = end(child).await;
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(0), "", ""));
}

#[tokio::test]
async fn the_prompt_comes_from_arguments_or_standard_input() {
    let queen = FakeQueen::start().await;
    let program = queen.program();
    for (args, input, expected) in [
        (&["run", "m", "hi", "you"][..], "", "hi you"),
        (&["infer", "-m", "m", "-p", "hi"], "ignored", "hi"),
        (&["infer", "-m", "m"], "from a pipe\n", "from a pipe"),
        (&["run", "m", "-p", "-"], "two\nlines\r\n", "two\nlines"),
        (&["run", "m", "Sum up:", "-"], "notes", "Sum up:\n\nnotes"),
        (&["run", "m", "-p", "-5 + 3 = ?"], "", "-5 + 3 = ?"),
        (&["run", "m", "grüße 🐝"], "", "grüße 🐝"),
    ] {
        let ended = program.run_with_input(args, input.as_bytes()).await;
        assert_eq!(ended.code, Some(0), "{args:?}: {ended:?}");
        assert_eq!(ended.stdout, format!("You said: {}\n", json!(expected)), "{args:?}");
        let requests = queen.script.requests();
        assert_eq!(requests[0]["messages"], json!([{ "role": "user", "content": expected }]));
    }
}

#[tokio::test]
async fn what_is_piped_in_and_not_asked_for_is_not_left_out_silently() {
    let queen = FakeQueen::start().await;
    let program = queen.program();
    let home = tempfile::tempdir().unwrap();
    let notes = home.path().join("notes.txt");
    for (args, text, is_told) in [
        (&["run", "m", "Sum up:"][..], "notes", true),
        (&["run", "m", "-p", "Sum up:"], "notes", true),
        (&["run", "m", "-p", "Sum up:", "--quiet"], "notes", false),
        (&["run", "m", "Sum up:"], "", false),
        (&["run", "m", "Sum up:", "-"], "notes", false),
    ] {
        std::fs::write(&notes, text).unwrap();
        let input = std::fs::File::open(&notes).unwrap();
        let ended = end(program.command(args).stdin(input).spawn().unwrap()).await;
        assert_eq!(ended.code, Some(0), "{args:?}: {ended:?}");
        let told = "standard input is not read; end the words with `-`";
        assert_eq!(ended.stderr.contains(told), is_told, "{args:?}: {ended:?}");
    }
}

#[tokio::test]
async fn options_are_passed_on_and_nothing_else_is() {
    let queen = FakeQueen::start().await;
    let args = [
        "run",
        "m",
        "hi",
        "--system",
        "be brief",
        "--max-tokens",
        "9",
        "--temperature",
        "0.5",
        "--seed",
        "-3",
        "--top-p",
        "0.25",
        "--top-k",
        "7",
        "--stop",
        "a",
        "--stop",
        "--",
    ];
    assert_eq!(queen.program().run(&args).await.code, Some(0));
    assert_eq!(queen.program().run(&["run", "m", "hi"]).await.code, Some(0));
    let user = json!({ "role": "user", "content": "hi" });
    let full = json!({
        "model": "m",
        "messages": [{ "role": "system", "content": "be brief" }, user],
        "stream": true, "stream_options": { "include_usage": true },
        "max_tokens": 9, "temperature": 0.5, "seed": -3, "top_p": 0.25, "top_k": 7,
        "stop": ["a", "--"],
    });
    let plain = json!({
        "model": "m", "messages": [user],
        "stream": true, "stream_options": { "include_usage": true },
    });
    assert_eq!(queen.script.requests(), [full, plain]);
}

#[tokio::test]
async fn a_reply_can_be_had_whole_or_as_json() {
    let queen = FakeQueen::start().await;
    let whole = queen.program().run(&["run", "m", "hi", "--no-stream"]).await;
    assert_eq!((whole.code, whole.stdout.as_str()), (Some(0), "All at once.\n"));
    assert_eq!(queen.script.requests()[0]["stream"], false);
    assert!(whole.stderr.contains("context is full"), "{whole:?}");

    let mut streamed = queen.program().run(&["run", "m", "hi", "--json"]).await.json();
    assert!(streamed["timings"]["total_ms"].take().is_u64());
    assert!(streamed["timings"]["first_token_ms"].take().is_u64());
    assert!(streamed["timings"]["tokens_per_second"].take().is_f64());
    assert!(streamed["request_id"].take().is_string());
    assert_eq!(
        streamed,
        json!({
            "model": "m", "text": "You said: \"hi\"", "finish_reason": "stop",
            "usage": { "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
                "prompt_tokens_details": { "cached_tokens": 0 } },
            "timings": { "total_ms": null, "first_token_ms": null, "tokens_per_second": null },
            "request_id": null,
        })
    );
}

#[tokio::test]
async fn thoughts_are_shown_apart_from_the_answer() {
    let queen = FakeQueen::start().await;
    let shown = queen.program().run(&["run", "thinking", "hi"]).await;
    assert_eq!(shown.stdout, "42\n");
    assert!(shown.stderr.starts_with("Hm, "), "{shown:?}");
    assert!(shown.stderr.ends_with("so.\n\n"), "{shown:?}");
    assert!(!shown.stderr.contains('\u{1b}'), "{shown:?}");
    let coloured = queen.program().run(&["--color", "always", "run", "thinking", "hi"]).await;
    assert!(coloured.stderr.contains("\u{1b}[2mso.\u{1b}[0m"), "{coloured:?}");
    let quiet = queen.program().run(&["-q", "run", "thinking", "hi"]).await;
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("42\n", ""));
    let json = queen.program().run(&["run", "thinking", "hi", "--json"]).await.json();
    assert_eq!((&json["text"], &json["reasoning"]), (&json!("42"), &json!("Hm, \u{1b}[2Jso.")));
}

#[tokio::test]
async fn figures_are_told_on_request_and_on_standard_error() {
    let queen = FakeQueen::start().await;
    let ended = queen.program().run(&["run", "m", "hi", "-v"]).await;
    assert_eq!(ended.stdout, "You said: \"hi\"\n");
    assert!(ended.stderr.contains("7 tokens in, 3 out"), "{ended:?}");
    assert!(ended.stderr.contains("first token after"), "{ended:?}");
}

#[tokio::test]
async fn without_loading_a_wait_is_told_after_a_second() {
    let queen = FakeQueen::start().await;
    let started = Instant::now();
    let mut child = queen.program().command(&["run", "held", "hi"]).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let told = "waiting for held …\n";
    assert_eq!(read_until(&mut stderr, told).await, told);
    assert!(started.elapsed() >= Duration::from_secs(1));
    queen.script.gate.notify_one();
    child.stderr = Some(stderr);
    let ended = end(child).await;
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(0), "two\n", ""));
}

#[tokio::test]
async fn a_load_shows_how_far_it_is_on_a_terminal_and_one_line_elsewhere() {
    let queen = FakeQueen::start().await;
    let (mut terminal, child) = Terminal::start(&queen.program(), &["run", "heavy", "hi"]);
    terminal.wait_for("loading heavy, 42 %").await;
    queen.script.gate.notify_one();
    terminal.wait_for("two").await;
    assert_eq!(terminal.end(child).await.code, Some(0));

    let mut child = queen.program().command(&["run", "heavy", "hi"]).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let told = "loading heavy …\n";
    assert_eq!(read_until(&mut stderr, told).await, told);
    queen.script.gate.notify_one();
    child.stderr = Some(stderr);
    let ended = end(child).await;
    assert!(ended.stderr.starts_with("loaded heavy in "), "{ended:?}");
}

#[tokio::test]
async fn a_reply_without_text_is_not_even_a_line() {
    let queen = FakeQueen::start().await;
    let ended = queen.program().run(&["run", "silent", "hi"]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{ended:?}");
}

#[tokio::test]
async fn an_error_in_the_stream_leaves_the_text_and_fails() {
    let queen = FakeQueen::start().await;
    for (model, reason) in [("failing", "the worker died"), ("breaking", "the answer broke off")] {
        let ended = queen.program().run(&["run", model, "hi"]).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), "half \n"), "{ended:?}");
        assert!(ended.stderr.starts_with(&format!("error: {reason}\nhint: ")), "{ended:?}");
    }
}

#[tokio::test]
async fn a_signal_cancels_the_generation() {
    for (sent, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let queen = FakeQueen::start().await;
        let mut child = queen.program().command(&["run", "hanging", "hi"]).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        read_until(&mut stdout, "begun ").await;
        signal(&child, sent);
        let ended = end(child).await;
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(code), ""));
        within("the queen's notice", queen.script.dropped.notified()).await;
    }
}

#[tokio::test]
async fn the_time_limit_holds_inside_the_stream() {
    let queen = FakeQueen::start().await;
    let ended = queen.program().run(&["run", "hanging", "hi", "--timeout", "1"]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), "begun \n"));
    assert!(ended.stderr.starts_with("error: no answer within 1 s\n"), "{ended:?}");
}

#[tokio::test]
async fn a_reader_that_leaves_ends_the_program_quietly() {
    let queen = FakeQueen::start().await;
    let mut child = queen.program().command(&["run", "endless", "hi"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    read_until(&mut stdout, "tick ").await;
    drop(stdout);
    let ended = end(child).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    within("the queen's notice", queen.script.dropped.notified()).await;
}

#[tokio::test]
async fn a_full_disk_is_an_error() {
    let queen = FakeQueen::start().await;
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = queen.program().command(&["run", "m", "hi"]);
    let ended = end(command.stdout(Stdio::from(full)).spawn().unwrap()).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.starts_with("error: cannot write to standard output: "), "{ended:?}");
}

#[tokio::test]
async fn a_model_cannot_steer_the_terminal_but_a_pipe_gets_its_bytes() {
    let queen = FakeQueen::start().await;
    let piped = queen.program().run(&["run", "escaping", "hi"]).await;
    assert_eq!(piped.stdout, "\u{1b}[2J\u{1b}]0;x\u{7}ok\n");
    let (terminal, child) = Terminal::start(&queen.program(), &["run", "escaping", "hi"]);
    let ended = terminal.end(child).await;
    assert_eq!(ended.code, Some(0));
    assert_eq!(ended.stdout, "\\u{1b}[2J\\u{1b}]0;x\\u{7}ok\r\n");
}

#[tokio::test]
async fn on_a_terminal_the_reply_ends_with_a_line_end() {
    let queen = FakeQueen::start().await;
    let (terminal, child) = Terminal::start(&queen.program(), &["run", "m", "hi"]);
    assert_eq!(terminal.end(child).await.stdout, "You said: \"hi\"\r\n");
}

#[tokio::test]
async fn embeddings_are_printed_a_line_each_in_the_order_of_the_texts() {
    let queen = FakeQueen::start().await;
    let program = queen.program();
    let line = |index: usize, text: &str| {
        let length = text.len();
        format!("{{\"index\":{index},\"text\":\"{text}\",\"embedding\":[{length}.0]}}\n")
    };
    let typed = program.run(&["embed", "-m", "m", "one", "three", "--dimensions", "7"]).await;
    assert_eq!(typed.stdout, line(0, "one") + &line(1, "three"), "{typed:?}");
    let asked = json!({ "model": "m", "input": ["one", "three"], "dimensions": 7 });
    assert_eq!(queen.script.requests(), [asked]);

    let many: Vec<String> = (0..2100).map(|number| format!("text {number}")).collect();
    let piped = program.run_with_input(&["embed", "-m", "m"], many.join("\n\n").as_bytes()).await;
    let expected: String = (0..).zip(&many).map(|(index, text)| line(index, text)).collect();
    assert_eq!(piped.stdout, expected);
    let sizes: Vec<usize> = queen.script.requests().iter().map(inputs).collect();
    assert_eq!(sizes, [2048, 52], "more than one request may hold");

    let none = program.run_with_input(&["embed", "-m", "m"], b" \n").await;
    assert_eq!(none.code, Some(2), "{none:?}");
}

fn inputs(request: &serde_json::Value) -> usize {
    request["input"].as_array().unwrap().len()
}
