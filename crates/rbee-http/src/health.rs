//! `/livez`, `/readyz` and `/health`: the three answers that need no credential.

use std::sync::Arc;

use axum::Json;
use rbee_api::error::ErrorCode;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::{Access, RouteTable};

/// Says whether the daemon takes work now; `Err` names why not.
type ReadyProbe = Arc<dyn Fn() -> Result<(), ErrorCode> + Send + Sync>;

/// The readiness of one daemon.
#[derive(Clone)]
pub struct Readiness(ReadyProbe);

impl std::fmt::Debug for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Readiness").field(&(self.0)()).finish()
    }
}

impl Readiness {
    /// Takes the question to ask each time.
    pub fn new(probe: impl Fn() -> Result<(), ErrorCode> + Send + Sync + 'static) -> Self {
        Self(Arc::new(probe))
    }

    fn answer(&self) -> Result<Json<Value>, ApiError> {
        match (self.0)() {
            Ok(()) => Ok(Json(json!({"status": "ok"}))),
            Err(code @ ErrorCode::Draining) => Err(ApiError::new(code, "shutting down")),
            Err(code) => Err(ApiError::new(code, "not ready yet")),
        }
    }
}

impl<S: Clone + Send + Sync + 'static> RouteTable<S> {
    /// Adds the three health routes. `/livez` says that the process answers;
    /// `/readyz` and `/health` that it takes work.
    #[must_use]
    pub fn health(self, readiness: Readiness) -> Self {
        let ready = readiness.clone();
        self.get("/livez", Access::Public, || async { Json(json!({"status": "ok"})) })
            .get("/readyz", Access::Public, move || async move { ready.answer() })
            .get("/health", Access::Public, move || async move { readiness.answer() })
    }
}
