//! Carries llama.cpp's log into `tracing`, one event for each whole line, under
//! the target `llama.cpp`. Never writes to the terminal.
//!
//! llama.cpp reports a load as several hundred info lines, so its info becomes
//! debug here and its debug becomes trace.
#![expect(unsafe_code, reason = "receives C strings from llama.cpp")]

use std::cell::RefCell;
use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;

use crate::ffi;

/// A log line in the making: llama.cpp writes pieces, and a piece that
/// continues a line does not repeat its level.
#[derive(Default)]
struct Line {
    level: Level,
    text: String,
}

/// From the gravest down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Error,
    Warn,
    Debug,
    #[default]
    Trace,
}

thread_local! {
    // A line is begun and finished by the same thread.
    static LINE: RefCell<Line> = RefCell::default();
    static FIRST_ERROR: RefCell<Option<String>> = const { RefCell::new(None) };
    static ABORT: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Sends everything llama.cpp and ggml log from now on to `tracing`.
pub(crate) fn route_to_tracing() {
    // SAFETY: the callback is a plain function that needs no user data, so it
    // stays valid for the life of the process.
    unsafe { sys::llama_log_set(Some(receive), std::ptr::null_mut()) }
}

/// Runs `call` and returns its result with the first error llama.cpp logged on
/// this thread meanwhile. The first one is the cause; the later ones repeat it
/// in more general words.
pub(crate) fn with_first_error<T>(call: impl FnOnce() -> T) -> (T, Option<String>) {
    FIRST_ERROR.take();
    let result = call();
    (result, FIRST_ERROR.take())
}

/// Runs `call`, which `abort` may break off. What llama.cpp then calls an error
/// is what was wanted.
pub(crate) fn with_abort<T>(abort: &Arc<AtomicBool>, call: impl FnOnce() -> T) -> T {
    ABORT.set(Some(Arc::clone(abort)));
    let result = call();
    ABORT.take();
    result
}

fn is_aborting() -> bool {
    let asked = |abort: &RefCell<Option<Arc<AtomicBool>>>| {
        abort.borrow().as_ref().is_some_and(|abort| abort.load(Ordering::Relaxed))
    };
    ABORT.try_with(asked).unwrap_or(false)
}

unsafe extern "C" fn receive(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    // SAFETY: llama.cpp passes a NUL-terminated string that lives for the call.
    let Some(text) = (unsafe { ffi::copy_text(text) }) else {
        return;
    };
    // What is logged while a line is being logged, or while the thread ends, is dropped.
    LINE.try_with(|line| {
        if let Ok(mut line) = line.try_borrow_mut() {
            line.push(level_of(level), &text, emit);
        }
    })
    .ok();
}

/// The level of a new line; `None` for a piece that continues the current one.
fn level_of(level: sys::ggml_log_level) -> Option<Level> {
    match level {
        sys::GGML_LOG_LEVEL_CONT => None,
        sys::GGML_LOG_LEVEL_ERROR => Some(Level::Error),
        sys::GGML_LOG_LEVEL_WARN => Some(Level::Warn),
        sys::GGML_LOG_LEVEL_INFO => Some(Level::Debug),
        _ => Some(Level::Trace),
    }
}

impl Line {
    fn push(&mut self, level: Option<Level>, text: &str, emit: impl Fn(Level, &str)) {
        if let Some(level) = level {
            self.finish(&emit);
            self.level = level;
        }
        for part in text.split_inclusive('\n') {
            self.text.push_str(part.trim_end_matches('\n'));
            if part.ends_with('\n') {
                self.finish(&emit);
            }
        }
    }

    fn finish(&mut self, emit: impl Fn(Level, &str)) {
        if !self.text.trim().is_empty() {
            emit(self.level, self.text.trim_end());
        }
        self.text.clear();
    }
}

fn emit(level: Level, line: &str) {
    let level = if is_aborting() { level.max(Level::Debug) } else { level };
    match level {
        Level::Error => {
            FIRST_ERROR
                .try_with(|first| {
                    first.borrow_mut().get_or_insert_with(|| line.to_owned());
                })
                .ok();
            tracing::error!(target: "llama.cpp", "{line}");
        }
        Level::Warn => tracing::warn!(target: "llama.cpp", "{line}"),
        Level::Debug => tracing::debug!(target: "llama.cpp", "{line}"),
        Level::Trace => tracing::trace!(target: "llama.cpp", "{line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_logged_once_whole_and_at_the_level_it_began_with() {
        type Pieces<'a> = &'a [(Option<Level>, &'a str)];
        type Lines<'a> = &'a [(Level, &'a str)];
        let cases: [(Pieces<'_>, Lines<'_>); 5] = [
            (&[(Some(Level::Debug), "one\n")], &[(Level::Debug, "one")]),
            (
                &[(Some(Level::Debug), "loading"), (None, "."), (None, ".\n")],
                &[(Level::Debug, "loading..")],
            ),
            (&[(Some(Level::Warn), "a\nb\n")], &[(Level::Warn, "a"), (Level::Warn, "b")]),
            (
                &[(Some(Level::Debug), "cut off"), (Some(Level::Error), "x\n")],
                &[(Level::Debug, "cut off"), (Level::Error, "x")],
            ),
            (&[(Some(Level::Debug), "\n"), (None, "  \n")], &[]),
        ];
        for (pieces, expected) in cases {
            let logged = RefCell::new(Vec::new());
            let mut line = Line::default();
            for (level, text) in pieces {
                line.push(*level, text, |level, text| {
                    logged.borrow_mut().push((level, text.to_owned()));
                });
            }
            let logged = logged.into_inner();
            let logged: Vec<_> =
                logged.iter().map(|(level, text)| (*level, text.as_str())).collect();
            assert_eq!(logged, expected, "{pieces:?}");
        }
    }

    #[test]
    fn the_first_error_of_a_call_is_its_cause() {
        let ((), cause) = with_first_error(|| {
            emit(Level::Warn, "odd");
            emit(Level::Error, "bad magic");
            emit(Level::Error, "failed to load");
        });
        assert_eq!(cause.as_deref(), Some("bad magic"));
        let ((), cause) = with_first_error(|| ());
        assert_eq!(cause, None, "an error of an earlier call is not this one's");
    }
}
