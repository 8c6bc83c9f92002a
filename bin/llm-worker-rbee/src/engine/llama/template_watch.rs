//! Sees to it that a chat template ends. A template is a program out of the model file, and llama.cpp's interpreter can
//! be given no limit, so one that does not end is the end of its worker: a thread counts how long each rendering has
//! run. Renders nothing itself.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{Builder, park_timeout};
use std::time::Duration;

/// How often is looked. A process that was stopped meanwhile has not rendered, and is looked at once for all that time.
const TICK: Duration = Duration::from_secs(2);
/// Looks after which a rendering does not end; the slowest in use takes a hundredth of one.
const TICKS_MAX: u32 = 5;

/// The renderings that run, each with the times it was seen running.
#[derive(Debug, Default)]
struct Running {
    next: u64,
    seen: BTreeMap<u64, u32>,
}

/// Watches over renderings for as long as it lives.
#[derive(Debug)]
pub(super) struct TemplateWatch(Arc<Mutex<Running>>);

/// A rendering, until it is dropped.
#[derive(Debug)]
pub(super) struct Rendering {
    running: Arc<Mutex<Running>>,
    id: u64,
}

impl TemplateWatch {
    /// Starts to watch; a rendering that does not end aborts the process.
    ///
    /// # Errors
    /// There is no thread for it.
    pub(super) fn start() -> io::Result<Self> {
        Self::start_with(TICK, || {
            tracing::error!("the chat template does not end; aborting");
            // It cannot be interrupted, and holds a thread and memory for good.
            std::process::abort();
        })
    }

    fn start_with(tick: Duration, give_up: impl Fn() + Send + 'static) -> io::Result<Self> {
        let running: Arc<Mutex<Running>> = Arc::default();
        let watched = Arc::downgrade(&running);
        Builder::new().name("template-watch".to_owned()).spawn(move || {
            while watched.strong_count() > 0 {
                park_timeout(tick);
                if is_endless(&watched) {
                    give_up();
                }
            }
        })?;
        Ok(Self(running))
    }

    /// Notes that a rendering begins.
    pub(super) fn begin(&self) -> Rendering {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let id = running.next;
        running.next += 1;
        running.seen.insert(id, 0);
        Rendering { running: Arc::clone(&self.0), id }
    }
}

impl Drop for Rendering {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).seen.remove(&self.id);
    }
}

/// Counts one more look at each rendering that runs; says whether one was seen too often.
fn is_endless(watched: &Weak<Mutex<Running>>) -> bool {
    let Some(running) = watched.upgrade() else { return false };
    let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
    running.seen.values_mut().for_each(|times| *times += 1);
    running.seen.values().any(|times| *times > TICKS_MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{RecvTimeoutError, sync_channel};

    use super::*;

    const QUICK: Duration = Duration::from_millis(5);

    #[test]
    fn a_rendering_that_does_not_end_is_given_up_and_others_are_not() {
        let (gave_up, told) = sync_channel(1);
        let watch =
            TemplateWatch::start_with(QUICK, move || gave_up.try_send(()).unwrap_or_default())
                .unwrap();
        for _ in 0..20 {
            let short = watch.begin();
            assert_eq!(told.recv_timeout(QUICK), Err(RecvTimeoutError::Timeout));
            drop(short);
        }
        let _endless = watch.begin();
        assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(()));
    }

    #[test]
    fn the_watch_ends_with_what_it_watches() {
        let (gave_up, told) = sync_channel::<()>(1);
        let watch =
            TemplateWatch::start_with(QUICK, move || gave_up.try_send(()).unwrap_or_default())
                .unwrap();
        drop(watch);
        assert_eq!(told.recv_timeout(Duration::from_secs(10)), Err(RecvTimeoutError::Disconnected));
    }
}
