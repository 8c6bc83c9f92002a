//! A wall clock that shows what a test says: a library that is put before a program's own,
//! made by the C compiler of this machine. Moves no other clock.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long shift(void) {
    char text[32] = {0};
    int kept = errno, file = open(getenv("CLOCK_SHIFT_FILE"), O_RDONLY | O_CLOEXEC);
    if (file >= 0) { if (read(file, text, sizeof text - 1) < 0) text[0] = 0; close(file); }
    errno = kept;
    return atol(text);
}
int clock_gettime(clockid_t id, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, id, now);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
        now->tv_sec += shift();
        if (now->tv_sec < 0) now->tv_sec = 0;
    }
    return failed;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *out) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (out) *out = exact.tv_sec;
    return exact.tv_sec;
}
"#;

/// The library.
#[derive(Debug)]
pub(crate) struct Shim {
    directory: TempDir,
}

impl Shim {
    /// Makes it; `None` where there is no compiler.
    #[expect(clippy::disallowed_methods, reason = "tests make the injector")]
    pub(crate) fn make() -> Option<Self> {
        let shim = Self { directory: tempfile::tempdir().expect("a folder") };
        let source = shim.directory.path().join("shim.c");
        fs::write(&source, SOURCE).expect("a file");
        let made = Command::new("cc")
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .args([shim.library(), source])
            .status();
        made.is_ok_and(|status| status.success()).then_some(shim)
    }

    fn library(&self) -> PathBuf {
        self.directory.path().join("shim.so")
    }

    /// A clock for one program.
    pub(crate) fn clock(&self, name: &str) -> Clock {
        let clock = Clock { library: self.library(), shift: self.directory.path().join(name) };
        clock.set(0);
        clock
    }
}

/// The clock of one program.
#[derive(Debug)]
pub(crate) struct Clock {
    library: PathBuf,
    shift: PathBuf,
}

impl Clock {
    /// Returns the words before a command that run it with this clock.
    pub(crate) fn wrapper(&self) -> Vec<String> {
        let told = |name: &str, path: &Path| format!("{name}={}", path.display());
        let (library, shift) =
            (told("LD_PRELOAD", &self.library), told("CLOCK_SHIFT_FILE", &self.shift));
        vec!["env".to_owned(), library, shift]
    }

    /// Has it show so many seconds more than there are, from now on.
    pub(crate) fn set(&self, seconds: i64) {
        // One write of all: whoever reads meanwhile reads one or the other, or no shift.
        fs::write(&self.shift, format!("{seconds}\n")).expect("a file");
    }
}
