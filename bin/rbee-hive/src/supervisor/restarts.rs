//! Starts workers again whose turn has come, and has requests wait for a turn that is near. When that is, `restart.rs`
//! decides.

use std::sync::Arc;
use std::time::Duration;

use input_validation::ModelRef;
use rbee_http::ApiError;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{AskedBy, Supervisor};
use crate::registry::{Registry, Turn};
use crate::reservations::{Reservations, Turn as ReservationTurn};
use crate::restart::Jitter;
use crate::waiting::{Woken, woken};

/// How long a request for a worker may wait for the end of a pause: all pauses before the breaker opens by default are
/// shorter, and a queen waits longer for an answer.
const PATIENCE: Duration = Duration::from_secs(6);

impl Supervisor {
    /// Starts workers again until `stop`.
    pub(crate) async fn keep_restarting(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.registry.changes();
        loop {
            changes.mark_unchanged();
            let (due, next) = self.registry.due_restarts(Instant::now());
            for model in due {
                // It ends once a process runs or cannot be made to.
                let start = Arc::clone(&self).restart(model);
                self.lives.spawn(self.vital().keep("restart", start));
            }
            match woken(&stop, &mut changes, next).await {
                Woken::Stopped => return,
                Woken::Due | Woken::Changed => {}
            }
        }
    }

    async fn restart(self: Arc<Self>, model: ModelRef) {
        if let Err(error) = self.ensure_worker(&model, AskedBy::Restart).await {
            tracing::warn!(%model, code = %error.code(), error = %error, "worker cannot be started again");
            self.registry.restart_refused(&model, error.code(), Jitter::new(fastrand::f64()));
        }
    }
}

/// Returns when a worker of a model may start, with the turn to decide about it: while others decided, one may have failed,
/// and what follows from that holds for this start too.
///
/// # Errors
/// `worker_failing` where that is later than a request can wait.
pub(super) async fn wait_for_turn<'r>(
    registry: &Registry,
    reservations: &'r Reservations,
    model: &ModelRef,
) -> Result<ReservationTurn<'r>, ApiError> {
    let patience = Instant::now() + PATIENCE;
    let mut changes = registry.changes();
    loop {
        let turn = reservations.measured_turn().await;
        changes.mark_unchanged();
        let until = match registry.turn(model, Instant::now(), patience) {
            Turn::Now => return Ok(turn),
            Turn::Refused(detail) => return Err((*detail).into()),
            Turn::At(until) => until,
        };
        drop(turn);
        tokio::select! {
            () = sleep_until(until) => {}
            // The registry outlives this, so a change is the only way in which it ends.
            _ = changes.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use rbee_api::error::ErrorCode;
    use rbee_api::worker_exit::ExitCause;

    use super::*;
    use crate::admission::Room;
    use crate::registry::tests::{failure_by, id, model, new_registry, wanted};
    use crate::reservations::tests::reservations_of;

    #[tokio::test(start_paused = true)]
    async fn a_start_that_waited_for_its_turn_looks_again_whether_it_may_be() {
        let registry = Arc::new(new_registry());
        let reservations = reservations_of(&registry);
        let model = model("a");
        let turn = reservations.turn().await;
        let waits = wait_for_turn(&registry, &reservations, &model.reference);
        let others = async {
            tokio::task::yield_now().await;
            registry.admit(wanted("1", &model), Room::default()).unwrap();
            registry.ended(&id("1"), Some(failure_by(ExitCause::BadModel)));
            drop(turn);
        };
        let (came, ()) = tokio::join!(waits, others);
        assert_eq!(came.map(drop).unwrap_err().code(), ErrorCode::WorkerFailing);
    }
}
