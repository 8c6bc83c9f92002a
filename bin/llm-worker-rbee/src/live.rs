//! The requests that are being answered now, so that one can be ended by its
//! id and all can be ended when the worker must. Holds no reply and no job: a
//! request that is told to end drops those itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use deadline_propagation::Deadline;
use input_validation::RequestId;
use rbee_api::error::ErrorDetail;
use rbee_api::worker::ActiveRequest;
use tokio::sync::oneshot;

/// All live requests. As many as the engine lets in, so the map is bounded.
#[derive(Debug, Clone, Default)]
pub(crate) struct LiveRequests(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    total: u64,
    /// In the order in which they came.
    requests: BTreeMap<u64, Live>,
}

#[derive(Debug)]
struct Live {
    id: RequestId,
    deadline: Deadline,
    ending: oneshot::Sender<ErrorDetail>,
}

/// Keeps a request in the table; dropping it takes the request out.
#[derive(Debug)]
pub(crate) struct LiveGuard {
    key: u64,
    table: LiveRequests,
}

impl Drop for LiveGuard {
    fn drop(&mut self) {
        self.table.lock().requests.remove(&self.key);
    }
}

impl LiveRequests {
    /// Enters a request. The receiver gets the error it is to end with, if it
    /// is told to end. Two requests may have the same id.
    pub(crate) fn enter(
        &self,
        id: RequestId,
        deadline: Deadline,
    ) -> (LiveGuard, oneshot::Receiver<ErrorDetail>) {
        let (ending, receiver) = oneshot::channel();
        let mut table = self.lock();
        table.total += 1;
        let key = table.total;
        table.requests.insert(key, Live { id, deadline, ending });
        (LiveGuard { key, table: self.clone() }, receiver)
    }

    /// Returns the requests, the oldest first.
    pub(crate) fn list(&self) -> Vec<ActiveRequest> {
        let listed = |live: &Live| ActiveRequest::new(live.id.clone(), live.deadline.remaining());
        self.lock().requests.values().map(listed).collect()
    }

    /// Ends the requests with an id and says how many there were.
    pub(crate) fn end(&self, id: &RequestId, detail: &ErrorDetail) -> usize {
        self.end_where(|live| live.id == *id, detail)
    }

    /// Ends all requests.
    pub(crate) fn end_all(&self, detail: &ErrorDetail) -> usize {
        self.end_where(|_| true, detail)
    }

    fn end_where(&self, wanted: impl Fn(&Live) -> bool, detail: &ErrorDetail) -> usize {
        let mut table = self.lock();
        let ended = table.requests.extract_if(.., |_, live| wanted(live));
        // A receiver that is gone means that the request is ending already.
        ended.filter_map(|(_, live)| live.ending.send(detail.clone()).ok()).count()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rbee_api::error::ErrorCode;

    use super::*;

    fn detail() -> ErrorDetail {
        ErrorDetail::new(ErrorCode::Draining, "the worker stops")
    }

    #[test]
    fn a_request_is_ended_by_its_id_and_leaves_with_its_guard() {
        let live = LiveRequests::default();
        let hour = Deadline::after(Duration::from_secs(3600));
        let id = |text: &str| text.parse::<RequestId>().unwrap();
        let (guard_a, mut a) = live.enter(id("a"), hour);
        let (_guard_a2, mut a2) = live.enter(id("a"), hour);
        let (guard_b, mut b) = live.enter(id("b"), hour);
        let listed = live.list();
        assert_eq!(
            listed.iter().map(|request| request.id.as_ref()).collect::<Vec<_>>(),
            ["a", "a", "b"]
        );
        assert!((3_500_000..=3_600_000).contains(&listed[2].time_left_ms));
        assert_eq!(live.end(&id("c"), &detail()), 0);
        assert_eq!(live.end(&id("a"), &detail()), 2);
        assert_eq!((a.try_recv().unwrap(), a2.try_recv().unwrap()), (detail(), detail()));
        assert_eq!(live.end(&id("a"), &detail()), 0);
        assert!(b.try_recv().is_err());
        drop((guard_a, guard_b));
        assert_eq!(live.end_all(&detail()), 0);
        assert!(live.list().is_empty());
    }
}
