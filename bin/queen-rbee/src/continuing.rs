//! One reply's stream of events, unbroken whatever becomes of the workers that
//! make it: when one ends, another one goes on after what the client has.
//! Who may go on is chosen by `placement.rs`; a stream that nobody can go on
//! with ends with an error event at once.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_http::{ApiError, error_event};
use tokio::time::{Instant, timeout_at};

use crate::app::App;
use crate::attempt::{Answer, Failure, Fault, Reached, attempt, machine_is_gone, nothing_came};
use crate::dispatch::{Call, Upstream};
use crate::marked_frames::{End, MarkedFrames, Remedy, Taken};
use crate::placement::may_go_elsewhere;
use crate::search::{Retry, Search, find_turn, put_back};
use crate::telemetry::{self, Continuation};
use crate::turns::Turn;

/// How often one reply may go on elsewhere, each time with something new in
/// between: above any run of bad luck, and an end for a cluster that only dies.
const CONTINUATIONS_MAX: u32 = 64;

/// A reply on its way.
struct Continuing {
    app: Arc<App>,
    call: Call,
    search: Search,
    frames: MarkedFrames,
    /// The worker that makes the reply; nothing once the stream has ended.
    upstream: Option<Upstream>,
    /// What ended its stream.
    broken: Option<Break>,
    continuations: u32,
    /// Since when the client waits for somebody to go on.
    broke_at: Option<Instant>,
}

/// What ended the stream of one worker.
struct Break {
    failure: Failure,
    /// What the client is told if nobody goes on; where empty, the failure.
    last_words: Bytes,
}

/// Returns the events of a reply, from its first byte on. The stream ends with
/// `[DONE]`, with an error event, or, for a worker that tells no tokens, as that
/// one does. Dropping it ends the request at its worker.
pub(crate) fn events(
    app: Arc<App>,
    call: Call,
    search: Search,
    first: Upstream,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let continuing = Continuing {
        app,
        call,
        search,
        frames: MarkedFrames::new(),
        upstream: Some(first),
        broken: None,
        continuations: 0,
        broke_at: None,
    };
    stream::unfold(continuing, |mut continuing| async move {
        let events = continuing.next().await?;
        Some((events, continuing))
    })
}

impl Continuing {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            if let Some(broken) = self.broken.take()
                && let Err(last_words) = self.go_on(broken).await
            {
                return Some(Ok(last_words));
            }
            let Upstream { turn, events } = self.upstream.as_mut()?;
            match self.app.registry.next_piece(&turn.hive, events).await {
                Some(Ok(bytes)) => {
                    if let Some(events) = self.take(bytes) {
                        return Some(Ok(events));
                    }
                }
                Some(Err(error)) if self.is_unmarked() => {
                    self.upstream = None;
                    return Some(Err(error));
                }
                None if self.is_unmarked() => return None,
                Some(Err(error)) => {
                    tracing::warn!(request_id = %self.call.id, %error, "stream broke off");
                    self.breaks_off(machine_is_gone(Fault::Machine));
                }
                None => self.breaks_off(nothing_came()),
            }
        }
    }

    /// Takes a piece of the worker's stream and returns what the client may have of it.
    fn take(&mut self, bytes: Bytes) -> Option<Bytes> {
        let Taken { events, end, spent } = self.frames.take(bytes);
        self.call.spending.add(spent);
        match end {
            None => {}
            Some(End::Whole) => self.upstream = None,
            Some(End::Failed { detail, events: last_words }) => {
                let fault = Fault::told_by(&detail);
                let failure = Failure { detail: *detail, fault, reached: Reached::Computing };
                self.broken = Some(Break { failure, last_words });
            }
            Some(End::Garbled) => self.breaks_off(nothing_came()),
        }
        if events.is_empty() {
            return None;
        }
        if let Some(since) = self.broke_at.take() {
            telemetry::continuation(Continuation::Continued { gap: since.elapsed() });
        }
        self.upstream.iter_mut().for_each(|upstream| upstream.turn.passed());
        Some(events)
    }

    fn breaks_off(&mut self, failure: Failure) {
        let failure = Failure { reached: Reached::Computing, ..failure };
        self.broken = Some(Break { failure, last_words: Bytes::new() });
    }

    fn is_unmarked(&self) -> bool {
        matches!(self.frames.remedy(), Remedy::Unmarked)
    }

    /// Has another worker go on, or make the reply from its beginning where the
    /// client has nothing of it. Returns what the client is told where nobody can.
    async fn go_on(&mut self, broken: Break) -> Result<(), Bytes> {
        let Break { failure, last_words } = broken;
        let Some(Upstream { turn, .. }) = self.upstream.take() else { return Ok(()) };
        let told = failure.detail.clone();
        if !self.may_go_on(&failure) {
            return Err(self.last_words(told, last_words));
        }
        if self.frames.has_progressed() {
            self.search.want.progressed();
        }
        self.frames.begin_again();
        if let Remedy::GoOnAfter(delivered) = self.frames.remedy() {
            self.broke_at.get_or_insert_with(Instant::now);
            let file = delivered.head.model_sha256.clone();
            file.into_iter().for_each(|file| self.search.want.keeps_to(file));
        }
        if failure.detail.code == ErrorCode::Draining {
            self.search.want.starts_nothing();
        }
        let wait = Duration::from_secs(self.app.settings.continuation_wait_seconds);
        let until = self.broke_at.unwrap_or_else(Instant::now) + wait;
        let until = until.min(self.call.deadline.instant());
        let found = timeout_at(until, self.find_another(turn, failure)).await;
        let (outcome, detail) = match found {
            Ok(Ok(upstream)) => {
                self.upstream = Some(upstream);
                return Ok(());
            }
            Ok(Err(error)) => (Continuation::Refused, error.into_detail()),
            Err(_) => (Continuation::TimedOut, nobody_in_time(told)),
        };
        if self.broke_at.is_some() {
            telemetry::continuation(outcome);
        }
        Err(self.last_words(detail, Bytes::new()))
    }

    /// Says whether anything can be done about a failure, and counts what is done.
    fn may_go_on(&mut self, failure: &Failure) -> bool {
        if !may_go_elsewhere(failure.detail.code) {
            return false;
        }
        self.continuations += 1;
        let is_possible = self.app.settings.continuation_wait_seconds > 0
            && self.continuations <= CONTINUATIONS_MAX
            && matches!(self.frames.remedy(), Remedy::AskAgain | Remedy::GoOnAfter(_));
        if !is_possible {
            telemetry::continuation(Continuation::Impossible);
        }
        is_possible
    }

    /// Waits for a worker that goes on.
    async fn find_another(&mut self, turn: Turn, failure: Failure) -> Result<Upstream, ApiError> {
        let Self { app, call, search, frames, .. } = self;
        // What the client has began once: to go on with it adds nothing to the load.
        let retry = match frames.remedy() {
            Remedy::AskAgain => Retry::Paid,
            Remedy::GoOnAfter(_) | Remedy::Unmarked | Remedy::TooLong => Retry::Free,
        };
        let mut failed = (turn, failure);
        loop {
            let (turn, failure) = failed;
            put_back(app, call, search, turn, failure, retry)?;
            let turn = find_turn(app, call, search).await?;
            let delivered = match frames.remedy() {
                Remedy::GoOnAfter(delivered) => Some(delivered),
                Remedy::AskAgain | Remedy::Unmarked | Remedy::TooLong => None,
            };
            match attempt(app, call, &turn, delivered).await {
                Ok(Answer::Events(events)) => {
                    tracing::info!(
                        request_id = %call.id, hive = %turn.hive, worker_id = %turn.worker,
                        "a worker goes on with a stream"
                    );
                    return Ok(Upstream { turn, events });
                }
                Ok(Answer::Whole(_)) => {
                    let message = "a worker gave a whole reply where a stream was asked for";
                    return Err(ApiError::new(ErrorCode::InternalError, message));
                }
                Err(failure) if delivered.is_some() => failed = (turn, failure.before_the_rest()),
                Err(failure) => failed = (turn, failure),
            }
        }
    }

    /// Ends the stream.
    fn last_words(&mut self, mut detail: ErrorDetail, last_words: Bytes) -> Bytes {
        self.upstream = None;
        self.search.leave_queue();
        if !last_words.is_empty() {
            return last_words;
        }
        detail.request_id = Some(self.call.id.to_string());
        error_event(detail)
    }
}

fn nobody_in_time(told: ErrorDetail) -> ErrorDetail {
    let message = format!("{}, and no other worker could go on with it in time", told.message);
    ErrorDetail { message, ..told }
}
