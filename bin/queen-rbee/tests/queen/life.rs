//! Start and end of the process: locks, ports, databases, signals.

use std::fs;
use std::net::TcpListener;

use rbee_home::Daemon;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::daemon::{Queen, TestHome, error_of, eventually};
use crate::fake_hive::{End, Reply};
use crate::pair::{ALIAS, Pair};

const TOKEN: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";

/// A setting for queens that are to find no hive and to start none.
const NO_HIVE: &str = "local_hive = false\n";
/// A setting for queens whose hive cannot be started.
const MISSING_HIVE: &str = "hive_path = '/no/such/program'\n";

fn told(output: &std::process::Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[tokio::test]
async fn a_second_queen_on_the_same_home_is_refused() {
    let home = TestHome::new();
    let queen = Queen::start(&home, NO_HIVE).await;
    let second = home.run(NO_HIVE, &["--bind", "127.0.0.1:0"]);
    assert_eq!(second.status.code(), Some(75));
    let told = told(&second);
    assert!(told.contains("error: another queen-rbee already runs on"), "{told}");
    assert!(told.contains(&queen.pid().to_string()) && told.contains("\nhint: "), "{told}");
    assert_eq!(home.home.read_run_file(Daemon::Queen).unwrap().unwrap().pid, queen.pid());
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_with_the_way_out() {
    let home = TestHome::new();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let output = home.run(NO_HIVE, &["--bind", &address]);
    assert_eq!(output.status.code(), Some(69));
    let told = told(&output);
    assert!(
        told.contains(&format!("error: port {} is taken", other.local_addr().unwrap().port())),
        "{told}"
    );
    assert!(told.contains("hint: ") && told.contains("--bind"), "{told}");
    assert!(home.home.read_run_file(Daemon::Queen).unwrap().is_none());
}

#[tokio::test]
async fn a_damaged_database_does_not_keep_the_queen_from_starting() {
    let home = TestHome::new();
    fs::write(home.home.beehives_db(), vec![0x5a; 9000]).unwrap();
    let queen = Queen::start(&home, NO_HIVE).await;
    let hives = queen.get_json("/api/v1/hives").await;
    assert_eq!(hives["hives"][0]["name"], "local");
    assert!(home.log().contains("damaged"), "{}", home.log());
    let aside = fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap());
    let aside = aside.filter(|entry| entry.file_name().to_string_lossy().contains(".corrupt-"));
    assert_eq!(aside.map(|entry| entry.metadata().unwrap().len()).collect::<Vec<_>>(), [9000]);
}

#[tokio::test]
async fn a_database_of_a_newer_program_is_refused() {
    let home = TestHome::new();
    drop(Queen::start(&home, NO_HIVE).await);
    let path = home.home.beehives_db();
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let output = home.run(NO_HIVE, &["--bind", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(told(&output).contains("written by a newer version of rbee"), "{}", told(&output));
}

#[tokio::test]
async fn configuration_is_checked_before_anything_happens() {
    let home = TestHome::new();
    for (settings, code, part) in [
        ("", 0, ""),
        ("bnd = '127.0.0.1:1'", 78, "did you mean `bind`?"),
        ("threads = 0", 78, "threads"),
        ("[log]\nformat = 'xml'", 78, "xml"),
        ("[log]\nlevel = 'inof'", 78, "log.level (or RBEE_LOG"),
        ("bind = '0.0.0.0:1'", 78, "tls"),
        ("bind = '0.0.0.0:1'\n[tls]\nallow_plain_http = true", 0, ""),
        ("bind = '0.0.0.0:1'\n[tls]\nmode = 'local'", 0, ""),
        (
            "bind = '0.0.0.0:1'\n[auth]\nmode = 'none'\n[tls]\nallow_plain_http = true",
            78,
            "auth.mode",
        ),
        (
            "[tls]\nmode = 'files'\ncert_file = '/nowhere/c.pem'\nkey_file = '/nowhere/k.pem'",
            78,
            "/nowhere/",
        ),
        ("[tls]\nca_file = '/nowhere/ca.pem'", 78, "/nowhere/ca.pem"),
    ] {
        let output = home.run(settings, &["--validate-config"]);
        assert_eq!(output.status.code(), Some(code), "{settings}");
        assert!(told(&output).contains(part), "{}", told(&output));
    }
    assert_eq!(home.run("", &["--no-such-flag"]).status.code(), Some(2));
    assert!(!home.home.beehives_db().exists());
}

#[tokio::test]
async fn sigterm_and_sigint_and_a_request_end_the_queen_and_leave_nothing() {
    for way in ["term", "int", "request"] {
        let mut pair = Pair::ready(&["w-1"]).await;
        match way {
            "term" => pair.queen.signal(Signal::TERM),
            "int" => pair.queen.signal(Signal::INT),
            _ => {
                let request = pair.queen.request(Method::POST, "/api/v1/shutdown");
                let status: Value =
                    request.json(&json!({})).send().await.unwrap().json().await.unwrap();
                assert_eq!(
                    (&status["draining"], &status["pid"]),
                    (&json!(true), &json!(pair.queen.pid()))
                );
            }
        }
        assert_eq!(pair.queen.ended().await.code(), Some(0), "{way}: {}", pair.home.log());
        assert!(pair.home.home.read_run_file(Daemon::Queen).unwrap().is_none());
        assert!(!pair.home.home.is_running(Daemon::Queen).unwrap());
        let address = pair.queen.url.strip_prefix("http://").unwrap();
        drop(TcpListener::bind(address).expect("the port is free again"));
    }
}

#[tokio::test]
async fn a_queen_that_stops_takes_no_new_work_and_finishes_what_runs() {
    let mut pair = Pair::ready(&["w-1"]).await;
    pair.hive.script([Reply::Events(vec![TOKEN.to_owned()], End::Open)]);
    let mut running = pair.queen.chat(ALIAS, true).send().await.unwrap();
    assert_eq!(running.chunk().await.unwrap().unwrap(), TOKEN);
    pair.queen.signal(Signal::TERM);
    eventually("the queen drains", async || {
        let ready = pair.queen.bare(Method::GET, "/readyz").send().await.unwrap();
        (ready.status() == 503).then_some(())
    })
    .await;
    let reply = pair.queen.chat(ALIAS, true).send().await.unwrap();
    assert!(reply.headers().contains_key("retry-after"));
    let (status, error) = error_of(reply).await;
    assert_eq!((status, &error["code"]), (503, &json!("draining")));
    assert_eq!(pair.hive.forwarded_count(), 1);
    assert_eq!(pair.queen.get_json("/api/v1/status").await["draining"], true);

    pair.queen.signal(Signal::TERM);
    let rest = running.text().await.unwrap();
    assert!(rest.starts_with("data: {\"error\":") && rest.ends_with("\n\n"), "{rest:?}");
    assert_eq!(rest.matches("data:").count(), 1);
    let last: Value = serde_json::from_str(rest.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "draining");
    assert_eq!(last["error"]["message"], "the queen shut down before the reply was complete");
    assert!(last["error"]["request_id"].is_string());
    assert_eq!(pair.queen.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_request_that_ends_in_the_drain_time_is_answered_whole() {
    let mut pair = Pair::cold("").await;
    pair.hive.script([Reply::Json("{\"id\":1}")]);
    let end = async {
        eventually("the start", async || (pair.starts() == 1).then_some(())).await;
        pair.queen.signal(Signal::TERM);
        eventually("the queen drains", async || {
            let ready = pair.queen.bare(Method::GET, "/readyz").send().await.unwrap();
            (ready.status() == 503).then_some(())
        })
        .await;
        pair.hive.set_worker("w-1", rbee_api::worker::WorkerState::Ready);
        pair.report().await;
    };
    let (reply, ()) = tokio::join!(pair.queen.chat(ALIAS, false).send(), end);
    assert_eq!(reply.unwrap().text().await.unwrap(), "{\"id\":1}");
    assert_eq!(pair.queen.ended().await.code(), Some(0));
}

#[tokio::test]
async fn requests_that_outlast_the_drain_time_are_told() {
    let mut pair = Pair::cold("drain_seconds = 0").await;
    let waiting = tokio::spawn(pair.queen.chat(ALIAS, false).send());
    eventually("the start", async || (pair.starts() == 1).then_some(())).await;
    pair.queen.signal(Signal::TERM);
    let (status, error) = error_of(waiting.await.unwrap().unwrap()).await;
    assert_eq!((status, &error["code"]), (503, &json!("draining")));
    assert_eq!(pair.queen.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_whole_reply_that_outlasts_the_drain_time_is_told_to_be_lost() {
    let mut pair = Pair::silent("drain_seconds = 0").await;
    pair.hive.set_worker("w-1", rbee_api::worker::WorkerState::Ready);
    pair.report().await;
    pair.online().await;
    pair.hive.script([Reply::Events(vec!["{\"id\":".to_owned()], End::Open)]);
    let running = tokio::spawn(pair.queen.chat(ALIAS, false).send());
    eventually("it runs", async || (pair.hive.forwarded_count() == 1).then_some(())).await;
    pair.queen.signal(Signal::TERM);
    let (status, error) = error_of(running.await.unwrap().unwrap()).await;
    assert_eq!((status, &error["code"]), (503, &json!("draining")));
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("before the reply was complete") && message.contains("again"));
    assert_eq!(error["retryable"], true);
    assert_eq!(pair.queen.ended().await.code(), Some(0));
}

#[tokio::test]
async fn without_any_machine_a_listing_is_an_error_and_not_empty() {
    for (settings, why) in [(NO_HIVE, "local_hive is off"), (MISSING_HIVE, "cannot be started")] {
        let home = TestHome::new();
        let queen = Queen::start(&home, settings).await;
        for path in ["/api/v1/models", "/v1/models", "/v1/models/any:1b"] {
            let (status, error) = error_of(queen.get(path).await).await;
            assert_eq!((status, &error["code"]), (502, &json!("hive_unreachable")), "{path}");
            let message = error["message"].as_str().unwrap();
            assert!(message.starts_with("no machine answers; "), "{message}");
            assert!(message.contains(why) && message.contains("`rbee logs hive`"), "{message}");
        }
    }
}

#[tokio::test]
async fn tokens_stand_in_no_log_no_argument_and_no_environment() {
    let pair = Pair::ready(&["w-1"]).await;
    pair.hive.script([Reply::Json("{}")]);
    pair.queen.chat(ALIAS, false).send().await.unwrap();
    pair.queen.bare(Method::GET, "/v1/models").bearer_auth("wrong-token").send().await.unwrap();
    let process = format!("/proc/{}", pair.queen.pid());
    let arguments = fs::read_to_string(format!("{process}/cmdline")).unwrap();
    let environment = fs::read(format!("{process}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let log = pair.home.log();
    assert!(log.contains("credential refused"), "{log}");
    for secret in [pair.home.client_token(), pair.home.hive_token(), "wrong-token".to_owned()] {
        for text in [&arguments, &environment, &log] {
            assert!(!text.contains(&secret));
        }
    }
}
