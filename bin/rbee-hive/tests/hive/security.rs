//! Who may call what, and where secrets must not show.

use std::fs;
use std::sync::Arc;

use rbee_api::error::ErrorCode;
use rbee_http::HopClient;
use secrets_management::Secret;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::processes::working_in;
use crate::program::{Hive, Place, code, refused, soon};

/// Sends a request without any credential and returns the whole answer.
async fn bare(hive: &Hive, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(hive.address()).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn every_route_but_health_asks_for_a_credential() {
    let hive = Place::new().start().await;
    let listing = hive.place().output("", &["--print-routes"]);
    let listing = String::from_utf8(listing.stdout).unwrap();
    assert!(listing.lines().count() > 10, "{listing}");
    for line in listing.lines() {
        let [method, path, access] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let path = path.replace("{id}", "w-1").replace("{*reference}", "alias");
        let answer = bare(&hive, &method.to_uppercase(), &path).await;
        if access == "public" {
            assert!(answer.starts_with("HTTP/1.1 200"), "{line}: {answer}");
        } else {
            assert!(answer.starts_with("HTTP/1.1 401"), "{line}: {answer}");
            assert!(answer.to_lowercase().contains("www-authenticate: bearer"), "{line}: {answer}");
            assert!(answer.contains("\"code\":\"unauthorized\""), "{line}: {answer}");
        }
    }
    assert!(bare(&hive, "GET", "/api/v1/no-such-route").await.starts_with("HTTP/1.1 401"));
}

#[tokio::test]
async fn a_foreign_token_is_refused_and_the_queens_is_not_a_workers() {
    let hive = Place::new().start().await;
    let stranger = HopClient::new(&hive.url, Arc::new(Secret::generate().unwrap())).unwrap();
    let refusal = refused(stranger.get::<serde_json::Value>("/api/v1/status", soon()).await);
    assert_eq!(code(refusal), ErrorCode::Unauthorized);
    let report =
        serde_json::json!({"slots_total": 1, "context_tokens": 1, "device": "cpu", "load_ms": 1});
    let as_worker = hive
        .client
        .post::<_, serde_json::Value>("/api/v1/workers/w-1/ready", &report, soon())
        .await;
    assert_eq!(code(refused(as_worker)), ErrorCode::Forbidden);
}

#[tokio::test]
async fn no_secret_shows_in_arguments_environment_or_logs() {
    let hive = Place::new().start_with("[log]\nlevel = 'trace'\n", &[]).await;
    let worker = hive.ready_worker("tiny").await;
    hive.chat(worker.id.as_str(), "hello").await.unwrap();
    let mut seen = hive.log();
    for pid in working_in(&hive.home()).into_iter().chain([hive.pid()]) {
        for what in ["cmdline", "environ"] {
            seen.push_str(&String::from_utf8_lossy(
                &fs::read(format!("/proc/{pid}/{what}")).unwrap(),
            ));
        }
    }
    for entry in fs::read_dir(hive.home().join("logs")).unwrap() {
        seen.push_str(&String::from_utf8_lossy(&fs::read(entry.unwrap().path()).unwrap()));
    }
    assert!(
        seen.contains(worker.id.as_str()) && seen.contains("llm-worker-rbee"),
        "nothing was looked at"
    );
    let token = fs::read_to_string(hive.home().join("secrets/hive.token")).unwrap();
    assert!(!seen.contains(token.trim()), "the hive's token");
    // A secret is 64 hex digits. So is the digest of a model, which a worker is told and the notes beside models hold.
    let models = fs::read_dir(hive.home().join("models")).unwrap();
    let notes = models.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect::<Vec<_>>();
    let notes = String::from_utf8_lossy(&notes.concat()).into_owned();
    let secret_like = |word: &&str| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let words: Vec<&str> = seen
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(secret_like)
        .filter(|word| !notes.contains(word))
        .collect();
    assert_eq!(words, [""; 0]);
}
