//! Which workers end so that one of another model has room: those that are ending anyway, then idle ones that were asked
//! longest ago, as many as it takes, and none where all of them together would not do.

use std::time::Duration;

use rbee_api::worker::WorkerState;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::State;
use super::worker::Worker;
use crate::admission::Shortage;

/// How long a worker is kept that nobody has asked anything yet: whoever had it started is about to.
const UNUSED_KEPT: Duration = Duration::from_secs(60);

impl State {
    /// Asks idle workers to end where that makes up for a shortage, and returns what is cancelled as each is gone.
    pub(super) fn give_way(&mut self, shortage: Shortage, now: Instant) -> Vec<CancellationToken> {
        let mut candidates: Vec<&mut Worker> =
            self.workers.iter_mut().filter(|worker| worker.may_give_way(now)).collect();
        candidates.sort_by_key(|worker| (!worker.is_stopping(), worker.idle_since));
        let is_enough = |chosen: &[usize]| {
            let granted = chosen.iter().filter_map(|index| candidates.get(*index));
            granted.fold(shortage, |left, worker| left.less(worker.granted)).is_over()
        };
        let mut chosen = Vec::new();
        for index in 0..candidates.len() {
            chosen.push(index);
            if is_enough(&chosen) {
                break;
            }
        }
        if !is_enough(&chosen) {
            return Vec::new();
        }
        // A small one need not end beside a large one that makes room for all.
        for index in (0..candidates.len()).rev() {
            let others: Vec<usize> =
                chosen.iter().copied().filter(|other| *other != index).collect();
            if is_enough(&others) {
                chosen = others;
            }
        }
        let mut gone = Vec::new();
        for (index, worker) in candidates.into_iter().enumerate() {
            if chosen.contains(&index) {
                tracing::info!(
                    worker_id = %worker.info.id, model = %worker.info.model_ref,
                    "worker is idle and makes room for another model"
                );
                worker.stop();
                gone.push(worker.signals.gone.clone());
            }
        }
        gone
    }
}

impl Worker {
    fn is_stopping(&self) -> bool {
        self.info.state == WorkerState::Stopping
    }

    /// Whether it is idle and has been of use, or is ending. Nobody waits for one that is being killed, since its process
    /// may stay for long.
    fn may_give_way(&self, now: Instant) -> bool {
        let is_kept = !self.has_served && now < self.idle_since + UNUSED_KEPT;
        let is_idle = self.info.state == WorkerState::Ready && self.requests == 0 && !is_kept;
        (is_idle || self.is_stopping()) && !self.is_condemned()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rbee_api::error::ErrorCode;
    use rbee_api::worker::WorkerState;
    use rbee_http::ApiError;

    use super::*;
    use crate::admission::{MEBIBYTE, Room, WorkerSize};
    use crate::registry::tests::{READY, client, id, model, new_registry, wanted};
    use crate::registry::worker::Granted;
    use crate::registry::{Admitted, Registry, Wanted};

    /// A registry with a ready worker of each name, that was granted so many mebibytes and has served a second after the one
    /// before it.
    async fn with_idle(workers: &[(&str, u64)]) -> Arc<Registry> {
        let registry = Arc::new(new_registry());
        for (name, granted_mib) in workers {
            let model = model(name);
            let wanted = Wanted { workers_max: 9, ..wanted(name, &model) };
            registry.admit(wanted, Room::default()).unwrap();
            registry.spawned(&id(name), Some(7), client());
            registry.ready(&id(name), &READY()).unwrap();
            registry.lock().find(&id(name)).unwrap().granted = granted(*granted_mib);
            drop(registry.enter(&id(name)).unwrap());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        registry
    }

    fn granted(mib: u64) -> Granted {
        let memory_bytes = mib * MEBIBYTE;
        Granted::of(WorkerSize { slots: 1, context_tokens: 1, store_mib: 0, memory_bytes })
    }

    fn stopping(registry: &Registry) -> Vec<String> {
        let workers = registry.snapshot().into_iter();
        let stopping = workers.filter(|worker| worker.state == WorkerState::Stopping);
        stopping.map(|worker| worker.id.as_str().trim_start_matches("w-").to_owned()).collect()
    }

    fn give_way(registry: &Registry, shortage: Shortage) -> usize {
        registry.lock().give_way(shortage, Instant::now()).len()
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_were_asked_longest_ago_end_and_no_more_than_it_takes() {
        let workers = [("a", 100), ("b", 50), ("c", 400), ("d", 100)];
        for (shortage, ended) in [
            (Shortage::Workers(1), &["a"][..]),
            (Shortage::Workers(2), &["a", "b"]),
            (Shortage::Memory(1), &["a"]),
            (Shortage::Memory(100 * MEBIBYTE), &["a"]),
            (Shortage::Vram(150 * MEBIBYTE), &["a", "b"]),
            (Shortage::Memory(151 * MEBIBYTE), &["c"]),
            (Shortage::Memory(401 * MEBIBYTE), &["a", "c"]),
            (Shortage::Memory(650 * MEBIBYTE), &["a", "b", "c", "d"]),
            (Shortage::Memory(651 * MEBIBYTE), &[]),
        ] {
            let registry = with_idle(&workers).await;
            assert_eq!(give_way(&registry, shortage), ended.len(), "{shortage:?}");
            assert_eq!(stopping(&registry), ended, "{shortage:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_works_or_is_about_to_stays_and_who_ends_anyway_is_waited_for() {
        let one = Shortage::Workers(1);
        let registry = with_idle(&[("a", 1), ("b", 1)]).await;
        registry.begin_stop(&id("b")).unwrap();
        assert_eq!((give_way(&registry, one), stopping(&registry)), (1, vec!["b".to_owned()]));
        let registry = with_idle(&[("a", 1)]).await;
        let (_, request) = registry.enter(&id("a")).unwrap();
        assert_eq!(give_way(&registry, one), 0, "it has a request");
        drop(request);
        registry.lock().find(&id("a")).unwrap().has_served = false;
        assert_eq!(give_way(&registry, one), 0, "the first request is on its way");
        tokio::time::advance(UNUSED_KEPT).await;
        assert_eq!((give_way(&registry, one), stopping(&registry)), (1, vec!["a".to_owned()]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_without_room_has_idle_workers_end_only_where_it_may() {
        let registry = with_idle(&[("a", 1)]).await;
        let other = model("b");
        let start = |stops_idle| -> Result<Admitted, ApiError> {
            let wanted = Wanted { workers_max: 1, stops_idle, ..wanted("b", &other) };
            registry.admit(wanted, Room::default())
        };
        assert_eq!(start(false).unwrap_err().code(), ErrorCode::WorkerLimitReached);
        assert_eq!(stopping(&registry), [""; 0]);
        let Ok(Admitted::AfterThese(gone)) = start(true) else { panic!("it is idle") };
        assert!(gone.len() == 1 && !gone.iter().any(CancellationToken::is_cancelled));
        registry.ended(&id("a"), None);
        assert!(gone.iter().all(CancellationToken::is_cancelled));
        assert!(matches!(start(true), Ok(Admitted::New(..))));
    }
}
