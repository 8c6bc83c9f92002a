//! Which requests are at which worker and until when, for the listing of workers. Decides nothing and ends nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use deadline_propagation::Deadline;
use input_validation::{RequestId, WorkerId};
use rbee_api::worker::ActiveRequest;

/// The requests of one queen that run or wait. As many as she admits, so the map is bounded.
#[derive(Debug, Clone, Default)]
pub(crate) struct ActiveRequests(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    total: u64,
    /// In the order in which they came.
    requests: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    id: RequestId,
    deadline: Deadline,
    worker: Option<WorkerId>,
}

/// Keeps a request in the table; dropping it takes the request out.
#[derive(Debug)]
pub(crate) struct Active {
    key: u64,
    table: ActiveRequests,
}

impl ActiveRequests {
    /// Enters a request that has no worker yet.
    pub(crate) fn enter(&self, id: RequestId, deadline: Deadline) -> Active {
        let mut table = self.lock();
        table.total += 1;
        let key = table.total;
        table.requests.insert(key, Entry { id, deadline, worker: None });
        Active { key, table: self.clone() }
    }

    /// Returns the requests at each worker, the oldest first.
    pub(crate) fn by_worker(&self) -> BTreeMap<WorkerId, Vec<ActiveRequest>> {
        let mut found: BTreeMap<WorkerId, Vec<ActiveRequest>> = BTreeMap::new();
        for Entry { id, deadline, worker } in self.lock().requests.values() {
            if let Some(worker) = worker {
                let request = ActiveRequest::new(id.clone(), deadline.remaining());
                found.entry(worker.clone()).or_default().push(request);
            }
        }
        found
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Active {
    /// Notes at which worker the request is now.
    pub(crate) fn is_at(&self, worker: &WorkerId) {
        if let Some(entry) = self.table.lock().requests.get_mut(&self.key) {
            entry.worker = Some(worker.clone());
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.table.lock().requests.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_request_is_listed_where_it_is_with_its_time_and_leaves_with_its_guard() {
        let active = ActiveRequests::default();
        let (first, second): (WorkerId, WorkerId) =
            ("w-1".parse().unwrap(), "w-2".parse().unwrap());
        let hour = Deadline::after(Duration::from_secs(3600));
        let waiting = active.enter("a".parse().unwrap(), hour);
        assert!(active.by_worker().is_empty());
        waiting.is_at(&first);
        let other = active.enter("b".parse().unwrap(), Deadline::after(Duration::ZERO));
        other.is_at(&first);
        let listed = active.by_worker();
        let ids: Vec<_> = listed[&first].iter().map(|request| request.id.as_ref()).collect();
        assert_eq!(ids, ["a", "b"]);
        assert!((3_500_000..=3_600_000).contains(&listed[&first][0].time_left_ms));
        assert_eq!(listed[&first][1].time_left_ms, 0);
        // One that goes on elsewhere is there alone.
        other.is_at(&second);
        assert_eq!(active.by_worker()[&first].len(), 1);
        drop((waiting, other));
        assert!(active.by_worker().is_empty());
    }
}
