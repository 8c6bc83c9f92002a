//! How a hive is told to end: by requests, each with the time that it has, or by signals, of which the second ends it at
//! once. Owns the signals, that to read the token again among them, and the time that is left; never ends anything
//! itself.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::waiting::until;

/// Time at the end that a hive keeps for killing the workers that are left and for closing its connections.
const LAST_STEPS: Duration = Duration::from_secs(2);
/// Least share of the whole time that goes to the workers.
const WORKERS_SHARE: f64 = 0.75;

/// The two steps of an end. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Shutdown {
    /// Cancelled when the hive is to take no new work, finish what runs, and end.
    pub(crate) stop: CancellationToken,
    /// Cancelled when it is to end without waiting any longer.
    hasten: CancellationToken,
    /// Whether a signal has asked for the end before.
    is_signalled: Arc<AtomicBool>,
    /// When workers that are left are to be killed; `None` until the hive is told to end.
    kill_at: Arc<watch::Sender<Option<Instant>>>,
    /// The longest time that an end may take.
    timeout: Duration,
}

impl Shutdown {
    pub(crate) fn new(timeout: Duration) -> Self {
        let (stop, hasten) = <(CancellationToken, CancellationToken)>::default();
        let kill_at = Arc::new(watch::Sender::new(None));
        Self { stop, hasten, is_signalled: Arc::default(), kill_at, timeout }
    }

    /// Takes a signal: the first one asks for the end, the second hastens it. One that comes beside a request is no
    /// second one: a queen whose request was not answered in time sends both.
    pub(crate) fn advance(&self) {
        if self.is_signalled.swap(true, Ordering::Relaxed) {
            tracing::info!("told to end at once");
            self.hasten.cancel();
        } else {
            tracing::info!("told to end");
            self.ask(self.timeout);
        }
    }

    /// Asks for the end within `limit`, or within the configured time where that is shorter. Asked again, the time can
    /// only become shorter; none at all ends the hive at once.
    pub(crate) fn ask(&self, limit: Duration) {
        let kill_at = Instant::now() + time_of_workers(limit.min(self.timeout));
        self.kill_at.send_if_modified(|known| {
            let is_sooner = known.is_none_or(|known| kill_at < known);
            if is_sooner {
                *known = Some(kill_at);
            }
            is_sooner
        });
        self.stop.cancel();
        if limit.is_zero() {
            self.hasten.cancel();
        }
    }

    /// Returns when workers that are left are to be killed.
    pub(crate) async fn patience_is_over(&self) {
        let mut kill_at = self.kill_at.subscribe();
        loop {
            let due = *kill_at.borrow_and_update();
            tokio::select! {
                () = self.hasten.cancelled() => return,
                () = until(due) => return,
                // The sender lives as long as this does.
                _ = kill_at.changed() => {}
            }
        }
    }

    /// Whether the hive is to end at once.
    pub(crate) fn is_hastened(&self) -> bool {
        self.hasten.is_cancelled()
    }

    /// Waits for one of the last steps: for at most `limit`, and for `hastened` where the hive is to end at once. `None`
    /// when that was too short.
    pub(crate) async fn wait_for<T>(
        &self,
        step: impl Future<Output = T>,
        limit: Duration,
        hastened: Duration,
    ) -> Option<T> {
        let is_over = async {
            self.hasten.cancelled().await;
            sleep(hastened).await;
        };
        tokio::select! {
            biased;
            done = step => Some(done),
            () = sleep(limit) => None,
            () = is_over => None,
        }
    }
}

/// Returns how much of the time for an end the workers have.
fn time_of_workers(whole: Duration) -> Duration {
    whole.saturating_sub(LAST_STEPS).max(whole.mul_f64(WORKERS_SHARE))
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The next step towards the end.
    End,
    /// To read the token again.
    Reload,
}

/// The signals that ask a process for something.
#[derive(Debug)]
pub struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl EndSignals {
    /// Takes the signals over from the operating system, whose own way would be to end the process at once.
    ///
    /// # Errors
    /// Returns the operating system's reason.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal.
    pub(crate) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End,
            _ = self.interrupt.recv() => Asked::End,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    /// Longer than anything here takes; the clock is a paused one.
    const LIMIT: Duration = Duration::from_secs(3600);

    #[test]
    fn the_last_steps_get_two_seconds_or_a_quarter() {
        for (whole_ms, workers_ms) in [(30_000, 28_000), (8_000, 6_000), (2_000, 1_500), (0, 0)] {
            let workers = time_of_workers(Duration::from_millis(whole_ms));
            assert_eq!(workers, Duration::from_millis(workers_ms), "{whole_ms}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_can_be_shortened_and_never_lengthened() {
        for (asked, patience) in [
            (vec![30], 28),
            (vec![600], 28),
            (vec![12], 10),
            (vec![12, 30], 10),
            (vec![30, 12], 10),
            (vec![30, 0], 0),
        ] {
            let shutdown = Shutdown::new(30 * SECOND);
            let start = Instant::now();
            for limit in &asked {
                shutdown.ask(*limit * SECOND);
            }
            timeout(LIMIT, shutdown.patience_is_over()).await.expect("it is over some time");
            assert_eq!(start.elapsed().as_secs(), patience, "{asked:?}");
            assert_eq!(shutdown.is_hastened(), patience == 0, "{asked:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_already_hears_that_the_time_is_shorter_or_over() {
        let shutdown = Shutdown::new(30 * SECOND);
        shutdown.ask(12 * SECOND);
        shutdown.advance();
        assert!(!shutdown.is_hastened(), "a request and a signal are not two signals");
        let start = Instant::now();
        let later = async {
            sleep(SECOND).await;
            shutdown.ask(4 * SECOND);
        };
        let (over, ()) = tokio::join!(timeout(LIMIT, shutdown.patience_is_over()), later);
        over.expect("it is over some time");
        assert_eq!(start.elapsed().as_secs(), 4);
        let shutdown = Shutdown::new(30 * SECOND);
        shutdown.advance();
        shutdown.ask(12 * SECOND);
        assert!(!shutdown.is_hastened(), "a signal and a request are not two signals");
        let later = async {
            sleep(SECOND).await;
            shutdown.advance();
        };
        let start = Instant::now();
        let step = shutdown.wait_for(std::future::pending::<()>(), 30 * SECOND, SECOND);
        let over = timeout(LIMIT, shutdown.patience_is_over());
        let (over, step, ()) = tokio::join!(over, step, later);
        over.expect("it is over at once");
        assert_eq!((start.elapsed().as_secs(), step), (2, None));
    }
}
