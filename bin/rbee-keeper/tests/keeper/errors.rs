//! How failures end: exit codes, words, the JSON form, and that nothing is sent which could not be meant.

use serde_json::{Value, json};

use crate::fake_queen::{FakeQueen, write_token};
use crate::program::Program;
use crate::pty::Terminal;

#[tokio::test]
async fn every_refusal_has_its_exit_code_and_a_hint() {
    let queen = FakeQueen::start().await;
    for (code, exit) in [
        ("model_not_found", 1),
        ("context_length_exceeded", 1),
        ("unauthorized", 77),
        ("forbidden", 77),
        ("all_slots_busy", 75),
        ("model_in_use", 75),
        ("insufficient_memory", 75),
        ("draining", 75),
        ("worker_start_failed", 1),
        ("internal_error", 1),
    ] {
        let ended = queen.program().run(&["run", &format!("err:{code}"), "hi"]).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(exit), ""), "{code}");
        let head = format!("error: scripted {code}\nhint: ");
        assert!(ended.stderr.starts_with(&head), "{ended:?}");
    }
}

#[tokio::test]
async fn with_json_an_error_is_json_too() {
    let queen = FakeQueen::start().await;
    let ended = queen.program().run(&["run", "err:model_not_found", "hi", "--json"]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""));
    let mut error: Value = serde_json::from_str(&ended.stderr).unwrap();
    assert!(error["error"]["request_id"].take().is_string());
    assert!(error["error"]["hint"].take().is_string());
    assert_eq!(
        error,
        json!({ "error": {
            "message": "scripted model_not_found", "type": "not_found_error",
            "code": "model_not_found", "param": null, "request_id": null, "retryable": false,
            "details": null, "hint": null, "exit_code": 1,
        }})
    );
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_before_anything_is_sent() {
    let queen = FakeQueen::start().await;
    for args in [
        &["run"][..],
        &["run", "Not A Model", "hi"],
        &["run", "a;b", "hi"],
        &["run", "m", ""],
        &["run", "m", " \n "],
        &["run", "m"],
        &["run", "m", "hi", "-p", "ho"],
        &["run", "m", "hi", "--temperature", "9"],
        &["run", "m", "hi", "--no-such-option"],
        &["run", "m", "hi", "--stop", ""],
        &["run", "m", "hi", "--stop=a", "--stop=b", "--stop=c", "--stop=d", "--stop=e"],
        &["pull", "smollm2:135m"],
        &["pull", "hf:owner/repo", "--name", "Bad Name"],
        &["pull", "hf:owner/repo", "--sha256", "abc"],
        &["rm", "Bad Name", "--yes"],
        &["rm", "smollm2:135m"],
        &["logs", "Bad Worker"],
        &["stop"],
        &["stop", "w-1", "--all"],
        &["man", "no-such-command"],
        &["queen", "start", "--queen", "http://127.0.0.1:1"],
        &["no-such-command"],
    ] {
        let ended = queen.program().run(args).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{args:?}: {ended:?}");
        assert!(ended.stderr.starts_with("error: "), "{args:?}: {ended:?}");
    }
    assert_eq!(queen.script.requests(), Vec::<Value>::new());
}

#[tokio::test]
async fn with_json_wrong_usage_is_one_line_too() {
    let home = tempfile::tempdir().unwrap();
    let program = Program::new(home.path());
    for (args, part) in [
        (&["run", "m", "hi", "--no-such-option", "--json"][..], "--no-such-option"),
        (&["--json", "stop"], "not provided: <WORKER|MODEL>"),
        (&["--json", "run", "m", "hi", "--stop", ""], "1 to 256 bytes"),
        (&["--json", "run", "m", "hi", "-p", "ho"], "the prompt is given twice"),
    ] {
        let ended = program.run(args).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{args:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
        let error: Value = serde_json::from_str(&ended.stderr).unwrap();
        let error = &error["error"];
        assert!(error["message"].as_str().unwrap().contains(part), "{error}");
        assert!(error["hint"].is_string(), "{error}");
        assert_eq!((&error["code"], &error["exit_code"]), (&json!("validation_failed"), &json!(2)));
    }
    let ended = program.run(&["run", "m", "hi", "--no-such-option", "--", "--json"]).await;
    assert!(ended.stderr.starts_with("error: "), "{ended:?}");
}

#[tokio::test]
async fn a_prompt_that_is_no_text_is_refused() {
    let queen = FakeQueen::start().await;
    let ended = queen.program().run_with_input(&["run", "m"], b"\xff\xfe").await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    let huge = vec![b'x'; 5 * 1024 * 1024];
    let ended = queen.program().run_with_input(&["run", "m"], &huge).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert_eq!(queen.script.requests(), Vec::<Value>::new());
}

#[tokio::test]
async fn a_file_that_is_not_there_is_no_reason_to_start_anything() {
    let home = tempfile::tempdir().unwrap();
    let ended = Program::new(home.path()).run(&["pull", "./none.gguf"]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.starts_with("error: there is no file ./none.gguf\n"), "{ended:?}");
    let ended = Program::new(home.path()).run(&["pull", "./"]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.starts_with("error: ./ is not a regular file\n"), "{ended:?}");
}

#[tokio::test]
async fn a_queen_elsewhere_needs_her_token() {
    let queen = FakeQueen::start().await;
    let away = tempfile::tempdir().unwrap();
    let program = Program::new(away.path()).with("RBEE_QUEEN_URL", &queen.url);

    let without = program.run(&["ps"]).await;
    assert_eq!(without.code, Some(78), "{without:?}");
    assert!(without.stderr.contains("RBEE_TOKEN_FILE"), "{without:?}");

    let wrong = away.path().join("wrong");
    write_token(&wrong, "0123456789abcdef");
    let refused = program.run(&["ps", "--token-file", wrong.to_str().unwrap()]).await;
    assert_eq!(refused.code, Some(77), "{refused:?}");

    let right = away.path().join("right");
    write_token(&right, queen.token.expose());
    let program = program.with("RBEE_TOKEN_FILE", right.to_str().unwrap());
    assert_eq!(program.run(&["ps"]).await.code, Some(0));
    assert_eq!(program.run(&["run", "m", "hi"]).await.stdout, "You said: \"hi\"\n");
    let logs = program.run(&["logs", "queen"]).await;
    assert_eq!(logs.code, Some(2), "its log is not here: {logs:?}");
}

#[tokio::test]
async fn a_queen_that_cannot_be_reached_is_unavailable() {
    let home = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let token = home.path().join("token");
    write_token(&token, "0123456789abcdef");
    let args = ["ps", "--queen", &url, "--token-file", token.to_str().unwrap()];
    let ended = Program::new(home.path()).run(&args).await;
    assert_eq!(ended.code, Some(69), "{ended:?}");
    let head = format!("error: cannot reach the queen at {url}: Connection refused");
    assert!(ended.stderr.starts_with(&head), "{ended:?}");
}

#[tokio::test]
async fn a_home_that_cannot_be_used_is_told_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let open = dir.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let program = Program::new(dir.path());
    for (home, code) in [
        (file.to_str().unwrap(), 77),
        (open.to_str().unwrap(), 77),
        ("/dev/null/home", 78),
        ("", 78),
    ] {
        let program = program.clone().with("RBEE_HOME", home);
        let program = if home.is_empty() { program.with("HOME", "") } else { program };
        let ended = program.run(&["ps"]).await;
        assert_eq!(ended.code, Some(code), "{home}: {ended:?}");
        assert!(
            ended.stderr.contains("\nhint: ") && ended.stderr.contains("RBEE_HOME"),
            "{ended:?}"
        );
    }
}

#[tokio::test]
async fn wrong_settings_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("rbee.toml");
    std::fs::write(&config, "queen_ulr = 'http://q:1'\n").unwrap();
    let program = Program::new(dir.path());
    let misspelt = program.run(&["ps", "--config", config.to_str().unwrap()]).await;
    assert_eq!(misspelt.code, Some(78), "{misspelt:?}");
    assert!(misspelt.stderr.contains("hint: did you mean `queen_url`?"), "{misspelt:?}");
    let url = program.run(&["ps", "--queen", "https://q"]).await;
    assert_eq!(url.code, Some(78), "{url:?}");
}

#[tokio::test]
async fn colour_is_for_terminals_that_want_it() {
    let home = tempfile::tempdir().unwrap();
    let program = Program::new(home.path());
    let args = ["run", "a;b", "hi"];
    assert!(!program.run(&args).await.stderr.contains('\u{1b}'));
    let forced = program.run(&[&args[..], &["--color", "always"]].concat()).await;
    assert!(forced.stderr.contains("\u{1b}["), "{forced:?}");

    let (terminal, child) = Terminal::start(&program, &args);
    assert!(terminal.end(child).await.stdout.contains("\u{1b}["));
    let (terminal, child) = Terminal::start(&program.with("NO_COLOR", "1"), &args);
    let plain = terminal.end(child).await;
    assert!(plain.stdout.starts_with("error: ") && !plain.stdout.contains('\u{1b}'), "{plain:?}");
}
