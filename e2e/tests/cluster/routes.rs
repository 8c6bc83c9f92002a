//! Every route of every daemon, from the tables that the routers are built of:
//! nothing answers without a credential but what is listed here, however the
//! path is written.

use std::net::{Ipv4Addr, SocketAddr};

use e2e::{Cluster, RawReply, address_of, raw};

/// The paths that answer everybody. A new one has to be written down here.
const PUBLIC: [&str; 3] = ["/livez", "/readyz", "/health"];

/// A daemon, and callers that come from many addresses, so that none of them is slowed down.
struct Walk {
    program: &'static str,
    address: SocketAddr,
    calls: u32,
}

impl Walk {
    fn call(&mut self, method: &str, target: &str, version: &str, rest: &str) -> RawReply {
        self.calls += 1;
        let source = Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(127, 1, 0, 1)) + self.calls / 100);
        let request = format!(
            "{method} {target} HTTP/{version}\r\nHost: localhost\r\nConnection: close\r\n{rest}\r\n"
        );
        raw(source, self.address, request.as_bytes())
    }

    #[track_caller]
    fn refused(&mut self, method: &str, target: &str, version: &str, rest: &str) {
        let reply = self.call(method, target, version, rest);
        let program = self.program;
        assert_eq!(reply.status, 401, "{program}: {method} {target} {rest:?}: {reply:?}");
        assert!(reply.head.contains("www-authenticate: bearer"), "{program}: {method} {target}");
        if method != "HEAD" {
            assert_eq!(reply.code(), "unauthorized", "{program}: {method} {target}");
        }
    }
}

/// Fills a path template with names that are well formed.
fn filled(template: &str) -> String {
    let parts = template.split('/').map(|part| if part.starts_with('{') { "w-1" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

/// Other ways to write a path, which some router may take for the same.
fn spellings(path: &str) -> Vec<String> {
    let inner = &path[1..];
    vec![
        format!("/{path}"),
        format!("{path}/"),
        format!("{path}/."),
        format!("/health/..{path}"),
        format!("/health;{path}"),
        format!("/health%2f..{path}"),
        format!("/health?{path}"),
        format!("{path};a=b"),
        format!("{path}?token=x"),
        format!("{path}%00"),
        format!("{path}%20"),
        format!("{path}.json"),
        path.to_uppercase(),
        format!("/{}", inner.replace('/', "%2f")),
        format!("/./{inner}"),
        format!("http://localhost{path}"),
        format!("http://127.0.0.1:1{path}"),
    ]
}

#[test]
fn no_route_of_any_daemon_answers_without_a_credential_however_it_is_written() {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    drop(cluster.rbee(&["infer", "-m", "tiny", "-p", "x"]).ok());
    let worker = cluster.workers()[0]["url"].as_str().expect("a URL").to_owned();
    for (program, url) in [
        ("queen-rbee", cluster.url("queen")),
        ("rbee-hive", cluster.url("hive")),
        ("llm-worker-rbee", worker),
    ] {
        let output = cluster.command(program, &["--print-routes"]).output().expect("it prints");
        let listing = String::from_utf8(output.stdout).expect("text");
        let mut walk = Walk { program, address: address_of(&url), calls: 0 };
        let mut public = Vec::new();
        for line in listing.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (method, path) = (words[0].to_uppercase(), filled(words[1]));
            if walk.call(&method, &path, "1.1", "").status != 401 {
                public.push(words[1].to_owned());
                continue;
            }
            assert_ne!(words[2], "public", "{program}: {line}");
            for credential in
                ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic eDp5\r\n"]
            {
                walk.refused(&method, &path, "1.1", credential);
            }
            // A body that never comes: the answer does not wait for it.
            let announced = "Content-Type: application/json\r\nContent-Length: 1000000\r\n";
            walk.refused(&method, &path, "1.1", announced);
            walk.refused(&method, &path, "1.0", "");
            for other in
                ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW"]
            {
                walk.refused(other, &path, "1.1", "");
            }
            for spelling in spellings(&path) {
                let reply = walk.call(&method, &spelling, "1.1", "");
                // Behind a question mark there is no path: this is the health route itself.
                if spelling.starts_with("/health?") && method == "GET" {
                    assert!(matches!(reply.status, 200 | 503), "{program}: {reply:?}");
                    assert!(!reply.body.contains("w-"), "{program}: {reply:?}");
                } else {
                    assert!(
                        matches!(reply.status, 400..=499),
                        "{program}: {method} {spelling}: {reply:?}"
                    );
                }
            }
        }
        assert_eq!(public, PUBLIC, "{program}");
        assert!(walk.calls > 200, "{program}: only {} requests", walk.calls);
        for spelling in
            ["/HEALTH", "/health/", "//health", "/health;x", "/health%2e", "/./health", "/livez/.."]
        {
            walk.refused("GET", spelling, "1.1", "");
        }
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"] {
            let status = walk.call(method, "/health", "1.1", "").status;
            assert_eq!(status, 405, "{program}: {method} /health");
        }
        let connect = walk.call("CONNECT", "localhost:80", "1.1", "");
        assert!(matches!(connect.status, 400..=499), "{program}: {connect:?}");
    }
}
