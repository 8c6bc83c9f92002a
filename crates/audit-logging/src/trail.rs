//! One request for inference in the log: that it came, which worker got it, how it ended. Held for as long as it runs;
//! one that is dropped without an end was left by its client.

use std::sync::{Arc, Mutex, PoisonError};

use input_validation::RequestId;
use tokio::time::Instant;

use crate::auditor::Auditor;
use crate::event::{Actor, Event, Kind, Outcome, SubjectKind};

/// The entries of one request. Clones belong to the same request, which ends with the last of them.
#[derive(Debug, Clone, Default)]
pub struct Trail(Option<Arc<Sampled>>);

#[derive(Debug)]
struct Sampled {
    auditor: Auditor,
    actor: Actor,
    request: RequestId,
    model: String,
    operation: &'static str,
    begun: Instant,
    end: Mutex<Option<(Outcome, &'static str)>>,
}

impl Trail {
    /// Begins with an entry, where the request is sampled.
    #[must_use]
    pub fn begin(
        auditor: &Auditor,
        actor: Actor,
        request: &RequestId,
        operation: &'static str,
        model: &str,
    ) -> Self {
        if !auditor.samples(request) {
            return Self(None);
        }
        let sampled = Sampled {
            auditor: auditor.clone(),
            actor,
            request: request.clone(),
            model: model.to_owned(),
            operation,
            begun: Instant::now(),
            end: Mutex::new(None),
        };
        auditor.note(sampled.event(Kind::InferenceStart, Outcome::Requested));
        Self(Some(Arc::new(sampled)))
    }

    /// Tells which worker the request is given to; again where it goes on at another one.
    pub fn assigned(&self, worker: &str) {
        if let Some(sampled) = &self.0 {
            let event = sampled.event(Kind::WorkerAssigned, Outcome::Success);
            sampled.auditor.note(event.with("worker", worker));
        }
    }

    /// Notes how it ended; told when the last clone is dropped.
    pub fn ends(&self, outcome: Outcome, code: &'static str) {
        if let Some(sampled) = &self.0 {
            *sampled.end.lock().unwrap_or_else(PoisonError::into_inner) = Some((outcome, code));
        }
    }
}

impl Sampled {
    fn event(&self, kind: Kind, outcome: Outcome) -> Event {
        Event::new(kind, outcome)
            .by(self.actor)
            .request(self.request.clone())
            .on(SubjectKind::Model, &self.model)
            .with("operation", self.operation)
    }
}

impl Drop for Sampled {
    fn drop(&mut self) {
        let end = *self.end.get_mut().unwrap_or_else(PoisonError::into_inner);
        let (outcome, code) = end.unwrap_or((Outcome::Failure, "cancelled"));
        let duration_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let event = self.event(Kind::InferenceComplete, outcome);
        self.auditor.note(event.with("code", code).with_number("duration_ms", duration_ms));
    }
}
