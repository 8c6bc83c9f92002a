//! Where a daemon may listen: never on the network without a good token,
//! whatever form the address has, an inherited descriptor included.

use std::collections::BTreeSet;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command};
use std::time::{Duration, SystemTime};

use command_fds::{CommandFdExt as _, FdMapping};
use e2e::{Cluster, Finished};

const DAEMONS: [&str; 2] = ["queen-rbee", "rbee-hive"];
/// Every way to say "everybody", and an address of a network.
const OPEN: [&str; 5] =
    ["0.0.0.0:0", "[::]:0", "[::ffff:0.0.0.0]:0", "[::ffff:10.99.0.1]:0", "10.99.0.1:0"];

/// The inodes of sockets that listen, as the kernel lists them.
fn listening() -> BTreeSet<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"]
        .map(|path| fs::read_to_string(path).unwrap_or_default());
    let rows = tables.iter().flat_map(|table| table.lines().skip(1));
    let columns = rows.map(|row| row.split_whitespace().collect::<Vec<_>>());
    columns
        .filter(|row| row.get(3) == Some(&"0A"))
        .filter_map(|row| row.get(9).map(ToString::to_string))
        .collect()
}

/// Whether a process has a socket that listens; `known` are those it was given.
fn listens(pid: u32, known: &BTreeSet<String>) -> bool {
    let sockets = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let inodes: Vec<String> = sockets
        .filter_map(|entry| fs::read_link(entry.path()).ok()?.to_str().map(str::to_owned))
        .filter_map(|link| Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let listening = listening();
    inodes.iter().any(|inode| listening.contains(inode) && !known.contains(inode))
}

/// Runs a command to its end, and looks all the time whether it listens.
fn never_listens(cluster: &Cluster, mut command: Command, known: &BTreeSet<String>) -> Finished {
    let err = tempfile::NamedTempFile::new().expect("a file");
    command.stderr(err.reopen().expect("the file"));
    let mut child: Child = command.spawn().expect("it starts");
    let begun = SystemTime::now();
    let status = loop {
        assert!(!listens(child.id(), known), "it listens");
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
        let is_slow = begun.elapsed().unwrap_or_default() > Duration::from_secs(20);
        if is_slow {
            child.kill().expect("a child to kill");
        }
        assert!(!is_slow, "it does not end: {:?}", cluster.home());
    };
    let stderr = fs::read_to_string(err.path()).expect("text");
    Finished { code: status.code().unwrap_or(-1), stdout: String::new(), stderr }
}

/// Puts a token of the user's own into the home.
fn own_token(cluster: &Cluster, file: &str, token: &str, mode: u32) {
    let path = cluster.home().join("secrets").join(file);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    for folder in [cluster.home(), cluster.home().join("secrets")] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).expect("chmod");
    }
    fs::write(&path, token).expect("a token");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
}

#[test]
fn no_daemon_ever_listens_on_the_network_with_a_token_that_can_be_guessed() {
    for program in DAEMONS {
        for bind in OPEN {
            let cluster = Cluster::echo();
            own_token(&cluster, "hive.token", "fifteen-letters", 0o600);
            let command = cluster.command(program, &["--bind", bind]);
            let refused = never_listens(&cluster, command, &BTreeSet::new());
            assert_eq!(refused.code, 78, "{program} {bind}: {}", refused.stderr);
            for word in ["needs a token of at least 16", "127.0.0.1"] {
                assert!(refused.stderr.contains(word), "{program} {bind}: {}", refused.stderr);
            }
        }
        // Names are not looked up: whatever they mean today, they may mean something else tomorrow.
        let cluster = Cluster::echo();
        let command = cluster.command(program, &["--bind", "localhost:0"]);
        let refused = never_listens(&cluster, command, &BTreeSet::new());
        assert_eq!(refused.code, 2, "{program}: {}", refused.stderr);
    }
}

#[test]
fn a_queen_without_credentials_never_listens_on_the_network() {
    for bind in OPEN {
        // What else would keep her from it is allowed.
        let settings = "[auth]\nmode = 'none'\n[tls]\nallow_plain_http = true\n";
        let cluster = Cluster::echo().config("queen-rbee", settings);
        let command = cluster.command("queen-rbee", &["--bind", bind]);
        let refused = never_listens(&cluster, command, &BTreeSet::new());
        assert_eq!(refused.code, 78, "{bind}: {}", refused.stderr);
        assert!(refused.stderr.contains("auth.mode"), "{bind}: {}", refused.stderr);
    }
}

#[test]
fn no_daemon_ever_listens_on_the_network_in_plain_http_unless_it_is_told_to() {
    for (program, allow) in
        [("queen-rbee", "RBEE_QUEEN_ALLOW_PLAIN_HTTP"), ("rbee-hive", "RBEE_HIVE_ALLOW_PLAIN_HTTP")]
    {
        for bind in OPEN {
            let cluster = Cluster::echo();
            let command = cluster.command(program, &["--bind", bind]);
            let refused = never_listens(&cluster, command, &BTreeSet::new());
            assert_eq!(refused.code, 78, "{program} {bind}: {}", refused.stderr);
            for word in ["plain HTTP", "mode = \"local\"", "allow_plain_http"] {
                assert!(refused.stderr.contains(word), "{program} {bind}: {}", refused.stderr);
            }
        }
        let tls = allow.replace("ALLOW_PLAIN_HTTP", "TLS");
        for told in [(allow, "true"), (tls.as_str(), "local")] {
            let cluster = Cluster::echo().env(told.0, told.1);
            let log = tempfile::NamedTempFile::new().expect("a file");
            let mut command = cluster.command(program, &["--bind", "0.0.0.0:0"]);
            command.stdout(log.reopen().expect("the file"));
            command.stderr(log.reopen().expect("the file"));
            let mut child = command.spawn().expect("it starts");
            let name = if program == "queen-rbee" { "queen" } else { "hive" };
            let run = cluster.home().join(format!("run/{name}.json"));
            e2e::wait_until("it serves", Duration::from_secs(20), || run.exists());
            let is_plain = cluster.url(name).starts_with("http:");
            assert_eq!(is_plain, told.0 == allow, "{program}");
            let logged = fs::read_to_string(log.path()).expect("text");
            assert_eq!(logged.contains("plain HTTP can be read"), is_plain, "{logged}");
            let warning = match name {
                "queen" => "warning: the queen speaks plain HTTP",
                _ => "warning: the hive of local speaks plain HTTP",
            };
            drop(cluster.rbee(&["queen", "start"]).ok());
            e2e::wait_until("the hive has reported", Duration::from_secs(20), || {
                cluster.rbee(&["status"]).ok().contains("online")
            });
            let status = cluster.rbee(&["status"]).ok();
            assert_eq!(status.contains(warning), is_plain, "{status}");
            drop(cluster);
            child.wait().expect("a child");
        }
    }
}

/// Hands a bound socket over as a service manager does.
fn handed_over(command: &mut Command, listener: TcpListener) {
    let mapping = FdMapping { parent_fd: OwnedFd::from(listener), child_fd: 3 };
    command.env("LISTEN_FDS", "1").fd_mappings(vec![mapping]).expect("one descriptor");
}

#[test]
fn an_inherited_listener_is_held_to_the_same_rule_and_served_where_it_is_good() {
    for program in DAEMONS {
        let cluster = Cluster::echo();
        own_token(&cluster, "hive.token", "fifteen-letters", 0o600);
        let open = TcpListener::bind("0.0.0.0:0").expect("a port");
        let known = listening();
        let mut command = cluster.command(program, &["--bind", "127.0.0.1:0"]);
        handed_over(&mut command, open);
        let refused = never_listens(&cluster, command, &known);
        assert_eq!(refused.code, 78, "{program}: {}", refused.stderr);
        assert!(refused.stderr.contains("0.0.0.0"), "{program}: {}", refused.stderr);

        let cluster = Cluster::echo();
        let own = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = own.local_addr().expect("an address");
        let mut command = cluster.command(program, &["--bind", "127.0.0.1:0"]);
        handed_over(&mut command, own);
        let mut child = command.spawn().expect("it starts");
        let name = if program == "queen-rbee" { "queen" } else { "hive" };
        let told = || cluster.home().join(format!("run/{name}.json")).exists();
        e2e::wait_until("it serves", Duration::from_secs(20), told);
        assert_eq!(cluster.url(name), format!("http://{address}"), "{program}");
        assert!(TcpStream::connect(address).is_ok(), "{program}");
        drop(cluster);
        child.wait().expect("a child");
    }
}

#[test]
fn every_daemon_refuses_a_secret_that_others_can_read() {
    for (program, file) in [
        ("queen-rbee", "client.token"),
        ("queen-rbee", "hive.token"),
        ("rbee-hive", "hive.token"),
        ("rbee-hive", "worker.key"),
    ] {
        for (content, mode, word) in [
            ("a-token-of-good-length", 0o644, "expected 0600"),
            ("a-token-of-good-length", 0o640, "chmod 600"),
            ("", 0o600, "is empty"),
            ("two\nlines\n", 0o600, "more than one line"),
        ] {
            let cluster = Cluster::echo();
            own_token(&cluster, file, content, mode);
            let command = cluster.command(program, &["--bind", "127.0.0.1:0"]);
            // What is found out late may be found out after the port was opened; nothing is served then.
            let finished = cluster.finish(command);
            assert_ne!(finished.code, 0, "{program} {file}");
            assert!(finished.stderr.contains(word), "{program} {file}: {}", finished.stderr);
            assert!(!finished.stderr.contains("good-length"), "{program} {file} shows the secret");
        }
    }
}
