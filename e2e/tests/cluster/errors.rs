//! Whatever is sent to whatever route: a refusal of the one form that tells
//! nothing about the machine, and a daemon that is as before.

use std::fs;
use std::net::Ipv4Addr;

use e2e::{Cluster, Http, Reply, address_of, raw};
use secrets_management::Secret;
use serde_json::{Value, json};

/// Text that has broken some program before.
fn hostile() -> Vec<String> {
    let mut texts: Vec<String> = [
        "",
        " ",
        ".",
        "..",
        "../../etc/shadow",
        "..\\..\\x",
        "/",
        "//",
        "a/b/c/d",
        "%",
        "%00",
        "%2e%2e%2f",
        "\0",
        "a\0b",
        "\n",
        "a\r\nb: c",
        "\u{1b}[2J",
        "\u{202e}x",
        "\u{2028}",
        "\u{feff}",
        "é",
        "汉字",
        "😀",
        "\u{ffff}",
        "a;b",
        "a|b",
        "$(id)",
        "`id`",
        "${HOME}",
        "{{7*7}}",
        "{%x%}",
        "<script>",
        "' OR 1=1--",
        "\"",
        "'",
        "\\",
        "*",
        "?",
        "#",
        "&",
        "=",
        "-rf",
        "--help",
        "file:///etc/passwd",
        "http://169.254.169.254/",
        "hf:",
        "hf:a/b/c/d",
        "NaN",
        "null",
        "undefined",
        "0x41",
        "-1",
        "18446744073709551616",
        "1e309",
        "con",
        "w-1",
        "w-",
        "sha256:../../x",
    ]
    .map(str::to_owned)
    .to_vec();
    texts.extend(["x".repeat(300), "x".repeat(1_000), "é".repeat(600), "../".repeat(400)]);
    texts
}

fn encoded(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}

/// Takes a reply that is no success, and looks whether it tells more than it should.
#[track_caller]
fn check(cluster: &Cluster, what: &str, reply: &Reply) {
    let is_told = (200..300).contains(&reply.status) || (400..500).contains(&reply.status);
    assert!(is_told, "{what}: {} {}", reply.status, reply.body);
    let home = cluster.home().display().to_string();
    let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
    let host = host.trim();
    // A listing names the files of models by their references, which is what they are for.
    let is_listing = reply.status < 300;
    let body = if is_listing { reply.body.replace("file:/", "") } else { reply.body.clone() };
    for leak in [
        home.as_str(),
        "/root/",
        "/home/",
        "/tmp/",
        ".rs:",
        "panicked at",
        "RUST_BACKTRACE",
        "target/release",
    ] {
        assert!(!body.contains(leak), "{what} tells {leak}: {}", reply.body);
    }
    assert!(
        host.len() < 4 || !reply.body.contains(host),
        "{what} tells the host's name: {}",
        reply.body
    );
    if reply.status < 300 {
        return;
    }
    let body: Value = serde_json::from_str(&reply.body).unwrap_or_default();
    let error = &body["error"];
    for field in ["message", "type", "code", "request_id"] {
        assert!(error[field].is_string(), "{what}: no {field} in {} {}", reply.status, reply.body);
    }
    let kind = reply.headers.iter().find(|(name, _)| name == "content-type");
    assert_eq!(kind.map(|(_, kind)| kind.as_str()), Some("application/json"), "{what}");
    assert!(
        !error["message"].as_str().is_some_and(|m| m.contains(['\n', '\r', '\u{1b}', '\0'])),
        "{what}: {body}"
    );
}

/// A method and a path.
type Route = (String, String);

/// The daemons with their own credentials, and their routes from their own tables.
fn daemons(cluster: &Cluster) -> Vec<(&'static str, Http, Vec<Route>)> {
    let worker = &cluster.workers()[0];
    let (id, url) = (worker["id"].as_str().expect("an id"), worker["url"].as_str().expect("a URL"));
    let key = fs::read(cluster.home().join("secrets/worker.key")).expect("the key");
    let key = Secret::from_bytes(&key, "test").expect("a secret");
    let token = key.derive("worker", id).expect("a secret");
    let clients = [
        ("queen-rbee", cluster.queen()),
        ("rbee-hive", cluster.hive()),
        ("llm-worker-rbee", Http::new(url, Some(token.expose()))),
    ];
    let with_routes = clients.map(|(program, http)| {
        let output = cluster.command(program, &["--print-routes"]).output().expect("it prints");
        let listing = String::from_utf8(output.stdout).expect("text");
        let route = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words[0].to_uppercase(), words[1].to_owned())
        };
        // These would end what is being asked.
        let routes = listing.lines().map(route).filter(|(_, path)| !path.ends_with("/shutdown"));
        (program, http, routes.collect())
    });
    with_routes.into()
}

#[test]
fn hostile_text_in_any_place_of_any_route_is_refused_and_tells_nothing() {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    drop(cluster.rbee(&["infer", "-m", "tiny", "-p", "x"]).ok());
    let mut asked = 0;
    for (program, http, routes) in daemons(&cluster) {
        for (method, template) in routes {
            for text in hostile() {
                let parts = template.split('/').map(|part| match part {
                    part if part.starts_with('{') => encoded(&text),
                    part => part.to_owned(),
                });
                let path = parts.collect::<Vec<_>>().join("/");
                let value = json!(text);
                let bodies = match method.as_str() {
                    "POST" => vec![
                        value.clone(),
                        json!({"model": text}),
                        json!({"model": "tiny", "messages": [{"role": text, "content": text}], "prompt": text}),
                        json!({"reference": text, "alias": text, "sha256": text}),
                        json!({(text.clone()): text}),
                    ],
                    _ => vec![Value::Null],
                };
                // An import or a removal of what is there may well be done; the model stays, by another name.
                let is_change = method == "DELETE" && !template.contains('{');
                for body in bodies.iter().filter(|_| !is_change) {
                    let body = (method == "POST").then_some(body);
                    let what = format!("{program} {method} {template} {text:?} {body:?}");
                    check(&cluster, &what, &http.call(&method, &path, body));
                    asked += 1;
                }
                if method == "GET" {
                    let query =
                        format!("{path}?follow={}&lines={}", encoded(&text), encoded(&text));
                    let follows = text == "true";
                    if !follows {
                        check(&cluster, &format!("{program} GET {query}"), &http.get(&query));
                    }
                }
            }
        }
    }
    assert!(asked > 3_000, "{asked}");
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "still here"}]});
    assert_eq!(cluster.queen().post("/v1/chat/completions", &body).status, 200);
    for (program, name, http) in
        [("queen", "queen", cluster.queen()), ("hive", "hive", cluster.hive())]
    {
        let metrics = http.get("/metrics").body;
        assert!(metrics.contains(&format!("rbee_{name}_panics_total 0")), "{program}: {metrics}");
    }
}

#[test]
fn what_is_no_http_is_refused_or_cut_off_and_harms_nobody() {
    let cluster = Cluster::echo();
    drop(cluster.rbee(&["queen", "start"]).ok());
    for url in ["queen", "hive"].map(|name| cluster.url(name)) {
        let address = address_of(&url);
        for garbage in [
            &b"\r\n\r\n\r\n"[..],
            b"GET\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\nConnection: close\r\n\r\nxyz",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            &[0xff; 64],
            &[0; 64],
        ] {
            // An unfinished request is cut off after the time for headers; nothing here is one.
            let mut request = garbage.to_vec();
            request.extend_from_slice(b"\r\n\r\n");
            let reply = raw(Ipv4Addr::LOCALHOST, address, &request);
            let is_refused = matches!(reply.status, 0 | 400..=499 | 505);
            assert!(is_refused && reply.head.len() < 1024, "{garbage:?}: {reply:?}");
        }
        assert_eq!(Http::new(&url, None).get("/livez").status, 200);
    }
}
