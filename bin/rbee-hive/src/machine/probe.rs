//! Reads a figure on a thread of its own, so that a file system or a driver that does not answer holds up nobody else. Keeps
//! the last reading, and knows for how long there was no other.

use std::fmt;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// How long a reading may take: a local disk and a driver answer within milliseconds.
pub(super) const READ_LIMIT: Duration = Duration::from_secs(2);

/// What reads, and what it has read.
pub(super) struct Probe<T> {
    /// Full while one is asked for and not begun.
    asks: SyncSender<()>,
    readings: watch::Receiver<Reading<T>>,
    asked_at: AskedAt,
    name: &'static str,
}

#[derive(Clone)]
struct Reading<T> {
    number: u64,
    value: T,
}

/// Since when an answer is missing.
type AskedAt = Arc<Mutex<Option<Instant>>>;

impl<T> fmt::Debug for Probe<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe").finish_non_exhaustive()
    }
}

impl<T: Clone + Default + Send + Sync + 'static> Probe<T> {
    /// Starts the thread, which ends with this, or with the reading that it does not come back from.
    ///
    /// # Errors
    /// The operating system's, when there is no thread.
    pub(super) fn start(
        name: &'static str,
        read: impl Fn() -> T + Send + 'static,
    ) -> io::Result<Self> {
        let (asks, asked) = sync_channel(1);
        let (sender, readings) = watch::channel(Reading { number: 0, value: T::default() });
        let asked_at = AskedAt::default();
        let answered = Arc::clone(&asked_at);
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            for number in 1.. {
                if asked.recv().is_err() {
                    return;
                }
                let value = read();
                let asked_at = locked(&answered).take();
                if asked_at.is_some_and(|at| at.elapsed() >= READ_LIMIT) {
                    tracing::info!(part = name, "a part of this machine answers again");
                }
                sender.send_replace(Reading { number, value });
            }
        })?;
        Ok(Self { asks, readings, asked_at, name })
    }

    /// Reads anew. Waits until that is done, and not for one that is known not to answer.
    pub(super) async fn refresh(&self) {
        if self.unanswered_for().is_some() {
            return;
        }
        let mut readings = self.readings.clone();
        let before = readings.borrow_and_update().number;
        locked(&self.asked_at).get_or_insert_with(Instant::now);
        // Where it is full, somebody else's answer comes.
        self.asks.try_send(()).ok();
        // What is not there in time is known to be missing from then on.
        let read = readings.wait_for(|reading| reading.number > before);
        if timeout(READ_LIMIT, read).await.is_err() {
            tracing::error!(
                part = self.name,
                "a part of this machine does not answer; what is known of it is out of date"
            );
        }
    }

    /// Returns the last reading.
    pub(super) fn last(&self) -> T {
        self.readings.borrow().value.clone()
    }

    /// Returns for how long there has been no answer, once that is too long.
    pub(super) fn unanswered_for(&self) -> Option<Duration> {
        let asked_at = *locked(&self.asked_at);
        asked_at.map(|at| at.elapsed()).filter(|silence| *silence >= READ_LIMIT)
    }
}

/// A moment is whole whatever thread has panicked.
fn locked(asked_at: &Mutex<Option<Instant>>) -> MutexGuard<'_, Option<Instant>> {
    asked_at.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Receiver;

    use super::*;

    /// A probe that reads what the test says, when it says so.
    fn told() -> (SyncSender<u32>, Probe<u32>) {
        let (say, heard): (_, Receiver<u32>) = sync_channel(1);
        let heard = Mutex::new(heard);
        (say, Probe::start("told", move || heard.lock().unwrap().recv().unwrap_or(0)).unwrap())
    }

    #[tokio::test]
    async fn a_reading_that_does_not_come_back_holds_up_once_and_leaves_the_last_one() {
        let (say, probe) = told();
        say.send(7).unwrap();
        probe.refresh().await;
        assert_eq!((probe.last(), probe.unanswered_for()), (7, None));
        let begun = Instant::now();
        probe.refresh().await;
        assert!(begun.elapsed() >= READ_LIMIT);
        assert_eq!(probe.last(), 7);
        let asked = Instant::now();
        for _ in 0..100 {
            assert!(probe.unanswered_for().unwrap() >= READ_LIMIT);
            probe.refresh().await;
        }
        assert!(asked.elapsed() < READ_LIMIT, "who asks again does not wait");
        say.send(8).unwrap();
        let mut readings = probe.readings.clone();
        readings.wait_for(|reading| reading.value == 8).await.unwrap();
        assert_eq!((probe.last(), probe.unanswered_for()), (8, None));
        say.send(9).unwrap();
        probe.refresh().await;
        assert_eq!(probe.last(), 9, "it goes on");
    }
}
