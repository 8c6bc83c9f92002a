//! Who is let in, and where secrets can be seen.

use std::fs;
use std::path::Path;

use e2e::{Cluster, Http};

/// The routes of a daemon that need a credential, from the table that its router is built of.
fn protected_routes(cluster: &Cluster, program: &str) -> Vec<(String, String)> {
    let output = cluster.command(program, &["--print-routes"]).output().expect("it prints");
    let listing = String::from_utf8(output.stdout).expect("text");
    let mut public = Vec::new();
    let mut protected = Vec::new();
    for line in listing.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let route = (words[0].to_uppercase(), words[1].to_owned());
        if words[2] == "public" { public.push(route) } else { protected.push(route) }
    }
    let expected = ["/livez", "/readyz", "/health"].map(|path| ("GET".to_owned(), path.to_owned()));
    assert_eq!(public, expected, "{program}: the only open routes");
    assert!(protected.len() >= 4, "{program}: {listing}");
    protected
}

/// Fills a path template with names that are well formed.
fn filled(template: &str) -> String {
    let parts = template.split('/').map(|part| if part.starts_with('{') { "w-1" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

#[test]
fn every_route_but_health_is_401_without_a_credential_on_all_three_daemons() {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    drop(cluster.rbee(&["infer", "-m", "tiny", "-p", "x"]).ok());
    let worker_url = cluster.workers()[0]["url"].as_str().expect("a URL").to_owned();
    let client_token = cluster.secret("client.token");
    let daemons = [
        ("queen-rbee", cluster.url("queen")),
        ("rbee-hive", cluster.url("hive")),
        ("llm-worker-rbee", worker_url),
    ];
    for (program, url) in &daemons {
        for (method, template) in protected_routes(&cluster, program) {
            let path = filled(&template);
            for token in [None, Some("wrong"), Some("")] {
                let reply = Http::new(url, token).call(&method, &path, None);
                assert_eq!(reply.status, 401, "{program} {method} {path} with {token:?}");
                assert_eq!(reply.code(), "unauthorized");
                assert!(!reply.body.contains(&client_token));
            }
        }
        for path in ["/health", "/livez", "/readyz"] {
            assert_eq!(Http::new(url, None).get(path).status, 200, "{program} {path}");
        }
        assert_eq!(Http::new(url, None).get("/no/such/path").status, 401, "{program}");
    }
    // A credential opens its own hop and no other.
    for (program, url) in &daemons[1..] {
        let reply = Http::new(url, Some(&client_token)).get("/api/v1/status");
        assert_eq!(reply.status, 401, "the client's token must not open {program}");
    }
    let hive_token = cluster.secret("hive.token");
    let reply = Http::new(&daemons[0].1, Some(&hive_token)).get("/v1/models");
    assert_eq!(reply.status, 403, "the hive's token must not be a client's");
}

#[test]
fn no_token_is_in_arguments_environments_logs_or_the_databases() {
    let cluster = Cluster::echo().env("RBEE_LOG", "trace");
    cluster.import_tiny("tiny");
    drop(cluster.rbee(&["infer", "-m", "tiny", "-p", "canary-prompt-3141"]).ok());
    let stranger = Http::new(&cluster.url("queen"), Some("wrong-token-of-a-stranger"));
    assert_eq!(stranger.get("/v1/models").status, 401);
    let mut canaries =
        vec!["wrong-token-of-a-stranger".to_owned(), "canary-prompt-3141".to_owned()];
    canaries.extend(["client.token", "hive.token"].map(|file| cluster.secret(file)));

    let mut looked_at = 0;
    let mut look = |place: &Path, canaries: &[String]| {
        let bytes = fs::read(place).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        for canary in canaries {
            assert!(!text.contains(canary.as_str()), "{} shows a secret", place.display());
        }
        looked_at += usize::from(!bytes.is_empty());
    };
    for process in cluster.processes() {
        for file in ["cmdline", "environ"] {
            look(Path::new(&format!("/proc/{}/{file}", process.pid)), &canaries);
        }
    }
    for folder in ["logs", "run", "."] {
        for entry in fs::read_dir(cluster.home().join(folder)).expect("a folder").flatten() {
            if entry.path().is_file() {
                look(&entry.path(), &canaries);
            }
        }
    }
    assert!(looked_at >= 10, "only {looked_at} places had anything in them");
}

#[test]
fn secrets_are_readable_by_their_owner_alone_and_a_loose_one_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let cluster = Cluster::echo();
    drop(cluster.rbee(&["queen", "start"]).ok());
    let mode = |path: &Path| fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
    assert_eq!(mode(&cluster.home()), 0o700);
    assert_eq!(mode(&cluster.home().join("secrets")), 0o700);
    for file in ["client.token", "hive.token"] {
        assert_eq!(mode(&cluster.home().join("secrets").join(file)), 0o600, "{file}");
    }
    for file in ["beehives.db", "models.db", "run/queen.json", "logs/queen-rbee.log"] {
        assert_eq!(mode(&cluster.home().join(file)), 0o600, "{file}");
    }
    drop(cluster.rbee(&["queen", "stop"]).ok());
    let token = cluster.home().join("secrets/client.token");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).expect("chmod");
    let refused = cluster.rbee(&["queen", "start"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("chmod 600"), "{}", refused.stderr);
}

#[test]
fn a_hive_takes_no_contact_from_a_worker_for_another_worker() {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    drop(cluster.rbee(&["infer", "-m", "tiny", "-p", "x"]).ok());
    // The queen's credential is good on the hive, but it is not a worker's.
    let id = cluster.workers()[0]["id"].as_str().expect("an id").to_owned();
    let path = format!("/api/v1/workers/{id}/heartbeat");
    let reply = cluster.hive().post(&path, &serde_json::json!({}));
    assert_eq!(reply.status, 403, "{}", reply.body);
}
