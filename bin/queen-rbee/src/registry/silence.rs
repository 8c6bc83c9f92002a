//! Until when an answer of a machine is waited for: as long as it is not stale. One that stands still keeps its
//! connections open and sends nothing. Chooses nobody who might do better.

use std::error::Error;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use input_validation::NodeName;
use tokio::time::{Instant, sleep_until};

use super::{Registry, standing};

/// A machine is stale after its last moment, not in it; the clock's finest step.
const STEP: Duration = Duration::from_millis(1);

/// Why the stream of a stale machine has ended, for the log.
const SILENT: &str = "its machine has not been heard of for four heartbeat intervals";

impl Registry {
    /// Waits for the next piece of a stream from a machine, which breaks off where the machine falls silent.
    pub(crate) async fn next_piece<E: Error + Send + Sync + 'static>(
        &self,
        hive: &NodeName,
        pieces: &mut (impl Stream<Item = Result<Bytes, E>> + Unpin),
    ) -> Option<io::Result<Bytes>> {
        tokio::select! {
            biased;
            piece = pieces.next() => piece.map(|piece| piece.map_err(io::Error::other)),
            () = self.falls_silent(hive, Instant::now()) => Some(Err(io::Error::other(SILENT))),
        }
    }

    /// Returns once nothing was heard of a machine for as long as makes it stale. What came from it on the caller's own
    /// connection counts, too: that was at `since` or before. Time in which this queen stood still is no silence, since
    /// nobody could be heard. Cancel safe.
    pub(crate) async fn falls_silent(&self, hive: &NodeName, mut since: Instant) {
        loop {
            let heard_at = self.lock().hives.get(hive).and_then(|entry| entry.heard_at);
            let stale_at =
                standing::stale_at(heard_at.map_or(since, |at| at.max(since)), self.interval);
            let now = Instant::now();
            if now > stale_at {
                return;
            }
            let look = (stale_at + STEP).min(now + self.interval);
            sleep_until(look).await;
            let woke = Instant::now();
            if woke > look + self.interval {
                since = woke;
            }
        }
    }
}
