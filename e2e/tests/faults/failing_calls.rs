//! System calls that fail instead of being carried out: which of them can, and with what
//! error. Knows no daemon; `tracing` has them fail.

use std::collections::BTreeMap;

use crate::tracing::{Point, call, points};

/// What goes wrong on a machine, by call. Where there are several errors, the points of a call take turns.
/// Not `recvfrom` and `sendto`: a program talks to itself with them too, where nothing can fail.
const ERRORS: [(&str, &[&str]); 15] = [
    ("accept4", &["EMFILE", "ECONNABORTED", "ENOMEM"]),
    ("clone", &["EAGAIN", "ENOMEM"]),
    ("clone3", &["EAGAIN", "ENOMEM"]),
    ("connect", &["ETIMEDOUT", "EADDRNOTAVAIL"]),
    ("fdatasync", &["EIO", "ENOSPC"]),
    ("fsync", &["EIO", "ENOSPC"]),
    ("ftruncate", &["EIO"]),
    ("linkat", &["EIO", "ENOSPC"]),
    ("openat", &["EMFILE", "EIO", "EINTR"]),
    ("pidfd_open", &["EMFILE"]),
    ("pipe2", &["EMFILE"]),
    ("pwrite64", &["ENOSPC", "EIO", "EINTR"]),
    ("rename", &["EIO", "ENOSPC"]),
    ("unlink", &["EIO"]),
    ("wait4", &["EINTR"]),
];
/// To a file; where it goes to a pipe or an event that a program has made for itself, nothing can fail.
const WRITE_ERRORS: [&str; 3] = ["ENOSPC", "EIO", "EINTR"];

/// Calls that fail.
#[derive(Debug, Clone)]
pub(crate) struct Failing {
    /// Their names, with commas between.
    pub(crate) calls: String,
    error: &'static str,
    /// Which of them, in each thread; `None`: all.
    nth: Option<u32>,
    /// Only where this file is meant.
    pub(crate) path: Option<String>,
}

impl Failing {
    /// Every call of these kinds.
    pub(crate) fn all(calls: &str, error: &'static str) -> Self {
        Self { calls: calls.to_owned(), error, nth: None, path: None }
    }

    /// Returns how the injector is told.
    pub(crate) fn injection(&self) -> String {
        let when = self.nth.map(|nth| format!(":when={nth}")).unwrap_or_default();
        format!("inject={}:error={}{when}", self.calls, self.error)
    }
}

impl std::fmt::Display for Failing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { calls, error, nth, path } = self;
        write!(f, "{error} at {calls} #{nth:?} {}", path.as_deref().unwrap_or_default())
    }
}

/// Reads out of a log of calls what can fail.
pub(crate) fn failings(log: &str) -> Vec<Failing> {
    let single = points(log).into_iter().filter_map(|Point { syscall, nth }| {
        let (_, errors) = ERRORS.iter().find(|(name, _)| *name == syscall)?;
        Some(Failing { calls: syscall, error: turn(errors, nth), nth: Some(nth), path: None })
    });
    let mut failing: Vec<Failing> = single.collect();
    let mut written: BTreeMap<&str, u32> = BTreeMap::new();
    for (_, name, arguments) in log.lines().filter_map(call) {
        if let Some(path) = file_of(arguments).filter(|_| name == "write") {
            *written.entry(path).or_default() += 1;
        }
    }
    for (path, count) in written {
        failing.extend((1..=count).map(|nth| Failing {
            calls: "write".to_owned(),
            error: turn(&WRITE_ERRORS, nth),
            nth: Some(nth),
            path: Some(path.to_owned()),
        }));
    }
    failing
}

fn turn(errors: &[&'static str], nth: u32) -> &'static str {
    errors[nth as usize % errors.len()]
}

/// Returns the file that a call is about, by its first argument.
fn file_of(arguments: &str) -> Option<&str> {
    let (number, rest) = arguments.split_once('<')?;
    let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    let (path, _) = rest.split_once('>')?;
    let is_file =
        path.starts_with('/') && !["/dev/", "/proc/", "/sys/"].iter().any(|f| path.starts_with(f));
    (is_number && is_file).then_some(path)
}

#[test]
fn what_can_fail_is_a_call_of_the_outside_world_or_a_write_to_a_file() {
    let log = "10 write(1</x/log>, \"a\", 1) = 1\n10 fsync(3</x/db>) = 0\n10 fsync(3</x/db>) = 0\n\
               10 write(4<anon_inode:[eventfd]>, \"\", 8) = 8\n10 listen(5<socket:[1]>, 9) = 0\n\
               10 write(1</x/log> <unfinished ...>\n11 write(6</dev/null>, \"\", 1) = 1\n";
    let told: Vec<String> = failings(log).iter().map(Failing::injection).collect();
    assert_eq!(
        told,
        [
            "inject=fsync:error=ENOSPC:when=1",
            "inject=fsync:error=EIO:when=2",
            "inject=write:error=EIO:when=1",
            "inject=write:error=EINTR:when=2",
        ]
    );
}
