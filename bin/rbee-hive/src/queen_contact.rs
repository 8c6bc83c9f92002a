//! Tells the queen what this hive has: a whole snapshot at every interval and at once on change, so that a lost one
//! does no harm and a restarted queen learns everything within one interval. Takes no orders from the answer but the
//! time of the next contact and what its snapshots are to be numbered after.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use deadline_propagation::Deadline;
use rbee_api::error::ErrorCode;
use rbee_api::hive::SnapshotReply;
use rbee_home::Daemon;
use rbee_http::{CallError, Credential, HopClient};
use rbee_tls::Trust;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::checkpoints::Exchange;
use crate::clock;
use crate::hive::Hive;
use crate::tls;
use crate::waiting::{Woken, woken};

/// A queen on the same machine answers within milliseconds, one elsewhere within a round trip.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Pause before a queen that did not answer is tried again, give or take a quarter: machines that have lost her at the
/// same moment do not come back at the same moment.
const RETRY: Duration = Duration::from_secs(1);
/// That pause when something has changed: it may have been a queen just started that asked for it, and whoever asked
/// her looks for it there next.
const RETRY_ON_CHANGE: Duration = Duration::from_millis(50);
/// Shortest time between two snapshots, however much changes in between.
const PAUSE: Duration = Duration::from_millis(10);

/// How the last contact went, so that a state is logged when it begins and not at every attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contact {
    None,
    Made,
    Lost,
}

/// Keeps the queen informed until `stop`.
pub(crate) async fn keep(hive: Arc<Hive>, token: Credential, stop: CancellationToken) {
    let mut changes = hive.registry.changes();
    let mut client: Option<HopClient> = None;
    let mut contact = Contact::None;
    let (mut epoch, mut sequence) = (clock::wall_clock_micros(), 0);
    let mut exchange = Exchange::new();
    loop {
        let count = *changes.borrow_and_update();
        sequence += 1;
        let wait = match tell(&hive, &mut client, &token, (epoch, sequence)).await {
            Ok(Some(reply)) if reply.epoch > epoch => {
                tracing::warn!(
                    "the queen has snapshots of a later start, by the clock; those of this one follow them"
                );
                epoch = reply.epoch.saturating_add(1);
                PAUSE
            }
            Ok(Some(reply)) => {
                if contact != Contact::Made {
                    tracing::info!("queen reached");
                }
                contact = Contact::Made;
                hive.registry.note_told(count);
                if let Some(queen) = &client {
                    exchange.with(&hive, queen).await;
                }
                due(&reply, hive.config.heartbeat_interval())
            }
            Ok(None) => retry_pause(),
            Err(error) => {
                if contact != Contact::Lost {
                    tell_of(&error);
                }
                contact = Contact::Lost;
                retry_pause()
            }
        };
        match woken(&stop, &mut changes, Some(Instant::now() + wait)).await {
            Woken::Stopped => return,
            Woken::Due => {}
            Woken::Changed => {
                let pause = if contact == Contact::Made { PAUSE } else { RETRY_ON_CHANGE };
                stop.run_until_cancelled(sleep(pause)).await;
            }
        }
    }
}

fn retry_pause() -> Duration {
    RETRY.mul_f64(0.75 + 0.5 * fastrand::f64())
}

/// Says why the queen was not told. Her own words are for clients.
fn tell_of(error: &CallError) {
    match error {
        CallError::Refused(detail) if detail.code == ErrorCode::Unauthorized => tracing::warn!(
            "the queen does not know this machine's token: it was forgotten, or the token replaced; trying again"
        ),
        error => tracing::warn!(error = %error, "queen not reached; trying again"),
    }
}

/// Sends one snapshot; `None` when no queen is known.
async fn tell(
    hive: &Hive,
    client: &mut Option<HopClient>,
    token: &Credential,
    (epoch, sequence): (u64, u64),
) -> Result<Option<SnapshotReply>, CallError> {
    let Some(Queen { url, certificate_file }) = queen(hive) else { return Ok(None) };
    let current = match client.take().filter(|client| client.base_url() == url) {
        Some(current) => current,
        None => {
            let trust = match certificate_file {
                Some(file) => Trust::in_files([file]),
                None => tls::trust(&hive.config, &hive.home),
            };
            HopClient::trusting(&url, token.clone(), &trust.map_err(CallError::Tls)?)?
        }
    };
    let path = format!("/api/v1/hives/{}/heartbeat", hive.config.name);
    let snapshot = hive.snapshot(epoch, sequence).await;
    let answer = current.post(&path, &snapshot, Deadline::after(CALL_LIMIT)).await;
    // Where it failed, the next one knows the queen by what her certificate is then.
    *client = answer.is_ok().then_some(current);
    answer.map(Some)
}

/// Where the queen is, and by what file she is known on this machine.
struct Queen {
    /// Without a slash at its end.
    url: String,
    certificate_file: Option<PathBuf>,
}

/// Returns the configured queen, or the one on this home.
fn queen(hive: &Hive) -> Option<Queen> {
    let (url, certificate_file) = match &hive.config.queen_url {
        Some(url) => (url.clone(), None),
        None => {
            let run = hive.home.read_run_file(Daemon::Queen).ok()??;
            (run.url, run.certificate_file)
        }
    };
    Some(Queen { url: url.trim_end_matches('/').to_owned(), certificate_file })
}

/// Returns when the next snapshot is due: when the queen says, and never later than configured.
fn due(reply: &SnapshotReply, interval: Duration) -> Duration {
    match reply.interval_ms {
        0 => interval,
        asked => Duration::from_millis(asked).clamp(PAUSE, interval),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queen_can_ask_for_more_contact_but_not_for_less() {
        let interval = Duration::from_secs(30);
        for (interval_ms, expected) in
            [(0, interval), (5_000, Duration::from_secs(5)), (90_000, interval), (1, PAUSE)]
        {
            assert_eq!(
                due(&SnapshotReply { interval_ms, epoch: 0 }, interval),
                expected,
                "{interval_ms}"
            );
        }
    }
}
