//! The chat at a terminal.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::fake_queen::FakeQueen;
use crate::program::{signal, within};
use crate::pty::Terminal;

fn contents(request: &Value) -> Vec<&str> {
    request["messages"].as_array().unwrap().iter().map(|m| m["content"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_chat_remembers_until_told_to_forget() {
    let queen = FakeQueen::start().await;
    let args = ["run", "m", "--system", "be brief"];
    let (mut terminal, child) = Terminal::start(&queen.program(), &args);
    for prompt in ["first", "second", "/clear", "third"] {
        terminal.wait_for(">>> ").await;
        terminal.type_keys(&format!("{prompt}\r"));
        if !prompt.starts_with('/') {
            terminal.wait_for(&format!("You said: {}", json!(prompt))).await;
        }
    }
    terminal.wait_for(">>> ").await;
    terminal.type_keys("/bye\r");
    assert_eq!(terminal.end(child).await.code, Some(0));
    let requests = queen.script.requests();
    let said: Vec<Vec<&str>> = requests.iter().map(contents).collect();
    assert_eq!(
        said,
        [
            &["be brief", "first"][..],
            &["be brief", "first", "You said: \"first\"", "second"],
            &["be brief", "third"],
        ]
    );
}

#[tokio::test]
async fn ctrl_c_cancels_the_reply_and_at_the_prompt_twice_the_chat() {
    let queen = FakeQueen::start().await;
    let (mut terminal, child) = Terminal::start(&queen.program(), &["run", "hanging"]);
    terminal.wait_for(">>> ").await;
    terminal.type_keys("hi\r");
    terminal.wait_for("begun ").await;
    signal(&child, Signal::INT);
    within("the queen's notice", queen.script.dropped.notified()).await;
    terminal.wait_for("cancelled").await;
    terminal.wait_for(">>> ").await;
    terminal.type_keys("\u{3}");
    terminal.wait_for("Ctrl-C again leaves").await;
    terminal.wait_for(">>> ").await;
    terminal.type_keys("\u{3}");
    assert_eq!(terminal.end(child).await.code, Some(130));
}

#[tokio::test]
async fn a_failed_turn_does_not_end_the_chat_but_ctrl_d_does() {
    let queen = FakeQueen::start().await;
    let (mut terminal, child) = Terminal::start(&queen.program(), &["run", "err:all_slots_busy"]);
    terminal.wait_for(">>> ").await;
    terminal.type_keys("hi\r");
    terminal.wait_for("scripted all_slots_busy").await;
    terminal.wait_for(">>> ").await;
    terminal.type_keys("\u{4}");
    assert_eq!(terminal.end(child).await.code, Some(0));
}

#[tokio::test]
async fn sigterm_ends_the_chat() {
    let queen = FakeQueen::start().await;
    let (mut terminal, child) = Terminal::start(&queen.program(), &["run", "m"]);
    terminal.wait_for(">>> ").await;
    signal(&child, Signal::TERM);
    assert_eq!(terminal.end(child).await.code, Some(143));
}
