//! How the time for the queen's end is divided between the requests that still run, the local hive and the connections,
//! so that all of them have ended within it; and the end of the requests. Ends no process.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use crate::app::App;

/// How long requests that are cut off have to tell their clients.
const CUT_TIME: Duration = Duration::from_secs(1);
/// Time that the local hive gets at least, however long the requests take: enough for one that hangs, and for another
/// that ends the workers of that one.
const HIVE_TIME_MIN: Duration = Duration::from_secs(8);
/// How long connections have to close once all requests have ended.
pub(crate) const CLOSE_TIME: Duration = Duration::from_secs(1);

/// By when each part has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending {
    /// When requests that still run are cut off.
    cut_at: Instant,
    cut_time: Duration,
    /// When the local hive and its workers are gone.
    pub(crate) hive_end: Instant,
}

impl Ending {
    /// Divides `whole`, of which requests get `drain` at most. Where it is short, each part has a share of it.
    pub(crate) fn within(whole: Duration, drain: Duration, begun: Instant) -> Self {
        let (cut_time, close_time) = (CUT_TIME.min(whole / 8), CLOSE_TIME.min(whole / 8));
        let patience = whole - cut_time - close_time - HIVE_TIME_MIN.min(whole / 2);
        Self {
            cut_at: begun + drain.min(patience),
            cut_time,
            hive_end: begun + (whole - close_time),
        }
    }

    /// Lets running requests finish, and cuts off those that take too long.
    pub(crate) async fn drain(&self, app: &App) {
        app.running.close();
        tracing::info!(requests = app.running.len(), "running requests finish");
        tokio::select! {
            () = app.running.wait() => return,
            () = sleep_until(self.cut_at) => {}
            () = app.shutdown.hurried().cancelled() => {}
        }
        tracing::warn!(requests = app.running.len(), "cutting off requests that still run");
        app.cut.cancel();
        if timeout(self.cut_time, app.running.wait()).await.is_err() {
            tracing::warn!(requests = app.running.len(), "some clients do not read their replies");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_leave_the_hive_its_time_however_long_they_may_take() {
        let begun = Instant::now();
        for (whole_s, drain_s, cut_at_ms, hive_end_ms) in [
            (30, 10, 10_000, 29_000),
            (30, 600, 20_000, 29_000),
            (8, 10, 2_000, 7_000),
            (1, 10, 250, 875),
            (600, 0, 0, 599_000),
        ] {
            let ending =
                Ending::within(Duration::from_secs(whole_s), Duration::from_secs(drain_s), begun);
            let since = |at: Instant| u64::try_from((at - begun).as_millis()).unwrap();
            let told = (since(ending.cut_at), since(ending.hive_end));
            assert_eq!(told, (cut_at_ms, hive_end_ms), "{whole_s} {drain_s}");
        }
    }
}
