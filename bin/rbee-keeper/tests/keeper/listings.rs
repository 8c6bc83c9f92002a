//! The commands that show and change things: their tables, their JSON, what they ask of the queen.

use rustix::process::Signal;
use serde_json::json;

use crate::cluster;
use crate::fake_queen::FakeQueen;
use crate::program::{Program, end, signal, within};
use crate::pty::Terminal;

#[tokio::test]
async fn json_is_what_the_queen_said() {
    let queen = FakeQueen::start().await;
    let program = queen.program();
    let json_of = async |args: &[&str]| program.run(&[args, &["--json"]].concat()).await.json();
    assert_eq!(json_of(&["list"]).await, cluster::models());
    assert_eq!(json_of(&["ps"]).await, cluster::workers());
    let mut status = cluster::status();
    status["running"] = json!(true);
    status["url"] = json!(queen.url);
    assert_eq!(json_of(&["status"]).await, status);
    assert_eq!(
        json_of(&["queen", "status"]).await,
        json!({
            "running": true, "url": queen.url, "pid": 77, "version": "0.1.0",
            "uptime_ms": 180_000, "draining": false,
        })
    );
    assert_eq!(json_of(&["queen", "start"]).await["running"], true);
    let both = json!({ "stopped": ["w-1", "w-2"] });
    assert_eq!(json_of(&["stop", "--all"]).await, both, "what would be started again too");
    assert_eq!(json_of(&["stop", "smollm2:135m"]).await, both);
    assert_eq!(json_of(&["stop", "w-2"]).await, json!({ "stopped": ["w-2"] }));
    assert_eq!(json_of(&["rm", "-y", "smollm2:135m"]).await, json!({ "removed": "smollm2:135m" }));
    let reference = "file:/data/my%20model.gguf";
    assert_eq!(json_of(&["rm", "-y", reference]).await, json!({ "removed": reference }));
    let url = format!("{}/v1", queen.url);
    assert_eq!(
        json_of(&["env"]).await,
        json!({ "OPENAI_BASE_URL": url, "OPENAI_API_KEY": queen.token.expose() })
    );
}

#[tokio::test]
async fn tables_are_for_people() {
    let queen = FakeQueen::start().await;
    let program = queen.program();
    let list = program.run(&["list"]).await;
    let lines: Vec<&str> = list.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{list:?}");
    assert!(
        lines[0].starts_with("MODEL         KIND      SIZE   WEIGHTS  QUANT  CONTEXT  ADDED"),
        "{list:?}"
    );
    assert!(
        lines[1].starts_with("smollm2:135m  generate  98 MB  134M     Q4_1   8192     "),
        "{list:?}"
    );

    let ps = program.run(&["ps"]).await;
    assert!(ps.stdout.contains("w-1     smollm2:135m  ready   1/4   0         cpu"), "{ps:?}");
    assert!(ps.stdout.contains("w-2     smollm2:135m  failed  -     3         cpu"), "{ps:?}");
    let why = "w-2 failed: the model file is damaged; it keeps failing; the next try is in ";
    assert!(ps.stderr.contains(why), "{ps:?}");
    assert!(ps.stderr.contains("or at once with `rbee workers reset w-2`"), "{ps:?}");

    let status = program.run(&["status"]).await;
    assert!(status.stdout.contains("running for 3 minutes (process 77)"), "{status:?}");
    assert!(status.stdout.contains("9 GB of 16 GB"), "{status:?}");
}

#[tokio::test]
async fn a_reset_says_what_was_forgotten_and_where_there_was_nothing() {
    let queen = FakeQueen::start().await;
    let nothing = "nothing to reset: w-1 has no failures that count\n";
    let failed =
        "reset w-2: 3 failures forgotten and the breaker closed; w-4 starts in its place\n";
    let both = format!("{nothing}{failed}");
    for (target, told) in
        [("w-1", nothing), ("w-2", failed), ("smollm2:135m", both.as_str()), ("--all", failed)]
    {
        let ended = queen.program().run(&["workers", "reset", target]).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), told), "{target}");
    }
    let json = queen.program().run(&["workers", "reset", "--all", "--json"]).await.json();
    assert_eq!(json, json!({ "reset": [cluster::reset("w-2")] }));
    let unknown = queen.program().run(&["workers", "reset", "no-such:1b"]).await;
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    assert_eq!(queen.program().run(&["workers", "reset"]).await.code, Some(2));
}

#[tokio::test]
async fn a_pull_sends_an_absolute_path_and_ends_with_the_model() {
    let queen = FakeQueen::start().await;
    std::fs::write(queen.home.path().join("my model.gguf"), "x").unwrap();
    let args = ["pull", "my model.gguf", "--name", "smollm2:135m", "--sha256", &"AB".repeat(32)];
    let ended = queen.program().run(&args).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stdout, "smollm2:135m  98 MB  llama\n");
    let directory = queen.home.path().canonicalize().unwrap();
    assert_eq!(
        queen.script.requests(),
        [json!({
            "reference": format!("file:{}/my%20model.gguf", directory.display()),
            "alias": "smollm2:135m",
            "sha256": "ab".repeat(32),
        })]
    );
    let json = queen.program().run(&["pull", "file:/data/x.gguf", "--json"]).await.json();
    assert_eq!(json, json!({ "model": cluster::model() }));
    let failed = queen.program().run(&["pull", "file:/data/bad.gguf"]).await;
    assert_eq!((failed.code, failed.stdout.as_str()), (Some(1), ""));
    assert!(failed.stderr.starts_with("error: the file is not GGUF\n"), "{failed:?}");
}

#[tokio::test]
async fn the_environment_is_printed_for_a_shell() {
    let queen = FakeQueen::start().await;
    let (url, token) = (&queen.url, queen.token.expose());
    for (args, expected) in [
        (
            &["env", "--shell"][..],
            format!("export OPENAI_BASE_URL='{url}/v1'\nexport OPENAI_API_KEY='{token}'\n"),
        ),
        (
            &["env", "--shell", "bash"],
            format!("export OPENAI_BASE_URL='{url}/v1'\nexport OPENAI_API_KEY='{token}'\n"),
        ),
        (
            &["env", "--shell", "fish"],
            format!("set -gx OPENAI_BASE_URL '{url}/v1'\nset -gx OPENAI_API_KEY '{token}'\n"),
        ),
        (
            &["env", "--shell", "powershell"],
            format!("$Env:OPENAI_BASE_URL = '{url}/v1'\n$Env:OPENAI_API_KEY = '{token}'\n"),
        ),
    ] {
        let ended = queen.program().run(args).await;
        assert_eq!((ended.code, ended.stdout), (Some(0), expected), "{args:?}");
    }
}

#[tokio::test]
async fn looking_starts_no_queen() {
    let home = tempfile::tempdir().unwrap();
    let program = Program::new(home.path());
    for (args, code) in [
        (&["ps"][..], 0),
        (&["status"], 69),
        (&["queen", "status"], 69),
        (&["queen", "stop"], 0),
        (&["stop", "--all"], 0),
        (&["stop", "w-1"], 69),
        (&["workers", "reset", "--all"], 69),
        (&["env", "--shell"], 69),
        (&["logs", "w-1"], 69),
        (&["logs"], 1),
    ] {
        let ended = program.run(args).await;
        assert_eq!(ended.code, Some(code), "{args:?}: {ended:?}");
        assert!(!ended.stderr.contains("starting"), "{args:?}: {ended:?}");
    }
    assert_eq!(program.run(&["ps", "--json"]).await.json(), json!({ "workers": [] }));
    let status = program.run(&["status", "--json"]).await;
    assert_eq!((status.code, status.stdout.as_str()), (Some(69), "{\"running\":false}\n"));
}

#[tokio::test]
async fn removing_asks_first() {
    let queen = FakeQueen::start().await;
    for (answer, last) in [("n\r", "nothing was removed"), ("y\r", "removed smollm2:135m")] {
        let (mut terminal, child) = Terminal::start(&queen.program(), &["rm", "smollm2:135m"]);
        terminal.wait_for("Remove smollm2:135m and its file? [y/N] ").await;
        terminal.type_keys(answer);
        let ended = terminal.end(child).await;
        assert_eq!(ended.code, Some(0));
        assert!(ended.stdout.contains(last), "{ended:?}");
    }
    let (mut terminal, child) = Terminal::start(&queen.program(), &["rm", "smollm2:135m"]);
    terminal.wait_for("[y/N] ").await;
    signal(&child, Signal::INT);
    assert_eq!(terminal.end(child).await.code, Some(130));
    let (terminal, child) = Terminal::start(&queen.program(), &["rm", "no-such:1b"]);
    let ended = terminal.end(child).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.contains("no machine has no-such:1b"), "{ended:?}");
    assert!(!ended.stdout.contains("[y/N]"), "{ended:?}");
    let (terminal, child) = Terminal::start(&queen.program(), &["rm", "m", "--no-input"]);
    assert_eq!(terminal.end(child).await.code, Some(2));
}

#[tokio::test]
async fn stopping_the_queen_waits_until_she_is_gone() {
    let mut queen = FakeQueen::start().await;
    let child = queen.program().command(&["queen", "stop"]).spawn().unwrap();
    within("the request", queen.script.shutdown.notified()).await;
    queen.end();
    let ended = end(child).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.starts_with("stopped the queen at "), "{ended:?}");
}

#[tokio::test]
async fn help_completions_and_manual_need_nothing() {
    let home = tempfile::tempdir().unwrap();
    let program = Program::new(home.path()).with("RBEE_HOME", "/dev/null/x");
    for (args, part) in [
        (&["--help"][..], "Examples:"),
        (&["--help"], "71 the operating system"),
        (&["run", "--help"], "-m MODEL"),
        (&["--version"], "rbee 0.1.0"),
        (&["completions", "bash"], "_rbee()"),
        (&["completions", "zsh"], "#compdef rbee"),
        (&["completions", "fish"], "complete -c rbee"),
        (&["man"], ".TH rbee 1"),
        (&["man", "run"], ".TH rbee-run 1"),
    ] {
        let ended = program.run(args).await;
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{args:?}");
        assert!(ended.stdout.contains(part), "{args:?}: {}", ended.stdout);
    }
}
