//! Who gets as far as a credential: by which name a daemon is called, from
//! which page, without any credential, and with a wrong one too often.

use std::net::{Ipv4Addr, SocketAddr};

use e2e::{Cluster, Http, RawReply, address_of, raw};
use serde_json::json;

const HOME: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Fixed, so that whole bodies can be compared.
const ID: &str = "X-Request-Id: the-same-id\r\n";

fn get(address: SocketAddr, path: &str, headers: &str) -> RawReply {
    let request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n{ID}{headers}\r\n");
    raw(HOME, address, request.as_bytes())
}

/// A cluster in which all three daemons run, with their addresses.
fn running() -> (Cluster, [(&'static str, SocketAddr); 3]) {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    drop(cluster.rbee(&["infer", "-m", "tiny", "-p", "x"]).ok());
    let worker = cluster.workers()[0]["url"].as_str().expect("a URL").to_owned();
    let urls = [("queen", cluster.url("queen")), ("hive", cluster.url("hive")), ("worker", worker)];
    let addresses = urls.map(|(name, url)| (name, address_of(&url)));
    (cluster, addresses)
}

/// Two hundred values of `Host` that are not ours.
fn hostile_hosts() -> Vec<String> {
    let forms: [fn(&str) -> String; 10] = [
        |host| host.to_owned(),
        |host| format!("{host}:8080"),
        |host| format!("localhost.{host}"),
        |host| format!("localhost@{host}"),
        |host| format!("{host}@localhost"),
        |host| format!("localhost/v1/models?{host}"),
        |host| format!("localhost:80@{host}"),
        |host| format!("127.0.0.1.{host}:8080"),
        |host| format!("localhost, {host}"),
        |host| format!("http://{host}/"),
    ];
    let hosts = [
        "evil.example",
        "EVIL.EXAMPLE",
        "localhost.",
        "0.0.0.0",
        "0",
        "127.1",
        "0x7f000001",
        "2130706433",
        "[::]",
        "[::2]",
        "10.0.0.1",
        "169.254.169.254",
        "rbee.local",
        "localhos",
        "localhostt",
        "xn--lcalhost-43a",
        "127.0.0.1.nip.io",
        "*",
        "%6cocalhost",
        "l\u{f6}calhost",
    ];
    hosts.iter().flat_map(|host| forms.iter().map(|form| form(host))).collect()
}

#[test]
fn a_foreign_host_gets_the_same_refusal_from_every_daemon_whatever_it_is_and_shows() {
    let (cluster, daemons) = running();
    let hosts = hostile_hosts();
    assert_eq!(hosts.len(), 200);
    let token = cluster.secret("client.token");
    let good = format!("Authorization: Bearer {token}\r\n");
    let refusal = get(daemons[0].1, "/v1/models", "Host: evil.example\r\n");
    assert_eq!((refusal.status, refusal.code().as_str()), (403, "host_not_allowed"));
    for (name, address) in daemons {
        for host in &hosts {
            let reply = get(address, "/v1/models", &format!("Host: {host}\r\n"));
            assert_eq!((reply.status, &reply.body), (403, &refusal.body), "{name}: {host}");
        }
        for (path, headers) in [
            ("/health", "Host: evil.example\r\n"),
            ("/v1/models", ""),
            ("/no/such/path", "Host: evil.example\r\n"),
            ("/v1/models", "Host: localhost\r\nHost: evil.example\r\n"),
            ("http://evil.example/v1/models", "Host: localhost\r\n"),
            ("http://localhost/v1/models", "Host: evil.example\r\n"),
            ("/v1/models", "Host: evil.example\r\nX-Forwarded-Host: localhost\r\n"),
            ("/v1/models", "Host: localhost\r\nOrigin: http://evil.example\r\n"),
            ("/health", "Host: localhost\r\nOrigin: null\r\n"),
        ] {
            for credential in ["", &good] {
                let reply = get(address, path, &format!("{headers}{credential}"));
                assert_eq!(
                    (reply.status, &reply.body),
                    (403, &refusal.body),
                    "{name} {path} {headers}"
                );
            }
        }
    }
    let queen = daemons[0].1;
    for host in ["localhost", "LocalHost:1", "127.0.0.1", "127.0.0.1:9", "[::1]", "127.9.9.9:80"] {
        let reply = get(queen, "/v1/models", &format!("Host: {host}\r\n{good}"));
        assert_eq!(reply.status, 200, "{host}");
    }
    assert_eq!(
        get(queen, "http://localhost:1/v1/models", &format!("Host: localhost\r\n{good}")).status,
        200
    );
}

#[test]
fn what_a_proxy_claims_changes_nothing() {
    let (_cluster, daemons) = running();
    let plain = get(daemons[0].1, "/v1/models", "Host: localhost\r\n");
    assert_eq!(plain.status, 401);
    for claim in [
        "X-Forwarded-Host: evil.example",
        "X-Forwarded-For: 127.0.0.1",
        "Forwarded: host=evil.example",
        "X-Original-URL: /health",
        "X-Rewrite-URL: /health",
        "X-HTTP-Method-Override: GET",
        ":authority: evil.example",
        "X-Forwarded-Proto: https",
        "X-Real-IP: ::1",
    ] {
        let reply = get(daemons[0].1, "/v1/models", &format!("Host: localhost\r\n{claim}\r\n"));
        // A name with a colon is no header at all.
        if claim.starts_with(':') {
            assert!((400..500).contains(&reply.status), "{claim}: {reply:?}");
        } else {
            assert_eq!((reply.status, &reply.body), (401, &plain.body), "{claim}");
        }
    }
}

#[test]
fn a_queen_without_credentials_serves_her_own_machine_and_no_web_page() {
    let cluster = Cluster::echo().config("queen-rbee", "[auth]\nmode = 'none'\n");
    cluster.import_tiny("tiny");
    let url = cluster.url("queen");
    let address = address_of(&url);
    for token in [None, Some("anything"), Some("")] {
        let queen = Http::new(&url, token);
        assert_eq!(queen.get("/v1/models").status, 200, "{token:?}");
        let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "hello"}]});
        assert_eq!(queen.post("/v1/chat/completions", &body).status, 200, "{token:?}");
    }
    let as_hive = Http::new(&url, None).post("/api/v1/hives/local/heartbeat", &json!({}));
    assert_eq!((as_hive.status, as_hive.code().as_str()), (403, "forbidden"), "no one is a hive");

    for headers in [
        "Host: evil.example\r\n",
        "Host: localhost\r\nOrigin: http://evil.example\r\n",
        "Host: localhost\r\nOrigin: null\r\n",
        "Host: evil.example\r\nOrigin: http://localhost\r\n",
    ] {
        let reply = get(address, "/v1/models", headers);
        assert_eq!((reply.status, reply.code().as_str()), (403, "host_not_allowed"), "{headers}");
    }
    let own = get(address, "/v1/models", "Host: localhost\r\nOrigin: http://localhost:3000\r\n");
    assert_eq!(own.status, 200);
    assert!(!own.head.contains("access-control-"), "{}", own.head);
    for kind in
        ["", "Content-Type: text/plain\r\n", "Content-Type: application/x-www-form-urlencoded\r\n"]
    {
        for path in ["/v1/chat/completions", "/api/v1/shutdown"] {
            let request = format!(
                "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{kind}Content-Length: 2\r\n\r\n{{}}"
            );
            assert_eq!(raw(HOME, address, request.as_bytes()).status, 415, "{path} {kind}");
        }
    }
    let asked = "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost:1\r\n\
                 Access-Control-Request-Method: POST\r\nConnection: close\r\n\r\n";
    let preflight = raw(HOME, address, asked.as_bytes());
    assert!(
        preflight.status >= 400 && !preflight.head.contains("access-control-"),
        "{preflight:?}"
    );
    let status = cluster.rbee(&["status"]).ok();
    assert!(status.contains("auth.mode is \"none\""), "{status}");
    let log = std::fs::read_to_string(cluster.home().join("logs/queen-rbee.log")).expect("a log");
    assert!(log.contains("auth.mode is"), "{log}");
}

#[test]
fn a_flood_of_wrong_credentials_is_slowed_down_logged_in_few_lines_and_locks_nobody_out() {
    let cluster = Cluster::echo();
    drop(cluster.rbee(&["queen", "start"]).ok());
    let address = address_of(&cluster.url("queen"));
    let token = cluster.secret("client.token");
    let with = |source: Ipv4Addr, token: &str| {
        let request = format!(
            "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        raw(source, address, request.as_bytes())
    };
    let flooder = Ipv4Addr::new(127, 9, 9, 1);
    let mut slowed = 0;
    let mut sent = 0;
    while slowed < 50 && sent < 20_000 {
        let reply = with(flooder, &format!("guess-number-{sent}"));
        sent += 1;
        match reply.status {
            401 => assert_eq!(reply.code(), "unauthorized"),
            429 => {
                assert_eq!(reply.code(), "too_many_failures");
                assert!(reply.head.contains("retry-after: 1"), "{}", reply.head);
                slowed += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(slowed, 50, "after {sent} guesses");
    assert!(sent > 600, "the first guesses are told what is wrong");
    assert_eq!(with(flooder, &token).status, 200, "a right token is let in from there, too");
    assert_eq!(
        with(Ipv4Addr::new(127, 9, 9, 2), "wrong").status,
        401,
        "others are not slowed down"
    );
    let log = std::fs::read_to_string(cluster.home().join("logs/queen-rbee.log")).expect("a log");
    let lines = log.lines().filter(|line| line.contains("credential refused")).count();
    assert!((10..sent / 4).contains(&lines), "{lines} lines for {sent} refusals");
    assert!(!log.contains("guess-number"), "a token is in the log");
    let metrics = cluster.queen().get("/metrics").body;
    let counted = format!("rbee_queen_auth_failures_total{{reason=\"unknown\"}} {}", sent + 1);
    assert!(metrics.contains(&counted), "{counted} is not in\n{metrics}");
}
