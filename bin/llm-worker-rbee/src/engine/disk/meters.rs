//! What is told about kept states at `/metrics`.

use metrics::{Counter, Gauge, counter, gauge};

/// Handles of the metrics, looked up once.
#[derive(Clone)]
pub(super) struct Meters {
    pub(super) bytes: Gauge,
    pub(super) states: Gauge,
    pub(super) hits: Counter,
    pub(super) writes: Counter,
    pub(super) dropped: Counter,
    pub(super) write_failures: Counter,
    pub(super) read_failures: Counter,
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}

impl Meters {
    pub(super) fn register() -> Self {
        let failures =
            |operation| counter!("rbee_worker_kept_failures_total", "operation" => operation);
        Self {
            bytes: gauge!("rbee_worker_kept_bytes"),
            states: gauge!("rbee_worker_kept_states"),
            hits: counter!("rbee_worker_kept_hits_total"),
            writes: counter!("rbee_worker_kept_writes_total"),
            dropped: counter!("rbee_worker_kept_dropped_total"),
            write_failures: failures("write"),
            read_failures: failures("read"),
        }
    }
}
