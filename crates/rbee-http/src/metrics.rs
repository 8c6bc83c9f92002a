//! Prometheus metrics: one recorder a process, and the figures that every
//! daemon has about its HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::log_lines::log_lines_lost;

/// Seconds; from a health check to a long generation.
const DURATION_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// Buckets that OpenTelemetry's GenAI conventions publish, by metric; dashboards expect these.
const GEN_AI_BUCKETS: [(&str, &[f64]); 3] = [
    (
        "gen_ai_server_request_duration_seconds",
        &[0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92],
    ),
    (
        "gen_ai_server_time_to_first_token_seconds",
        &[
            0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
            10.0,
        ],
    ),
    (
        "gen_ai_server_time_per_output_token_seconds",
        &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5],
    ),
];

/// Requests after which samples are folded into their buckets: until then, or
/// until somebody reads the metrics, the recorder keeps each one.
const REQUESTS_PER_UPKEEP: u64 = 256;

/// The process's metrics: where they are recorded and how they are printed.
#[derive(Clone)]
pub struct Metrics {
    program: &'static str,
    handle: PrometheusHandle,
    requests: Arc<AtomicU64>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").field("program", &self.program).finish_non_exhaustive()
    }
}

impl Metrics {
    /// Installs the recorder of this process. `program` stands in the names:
    /// `rbee_<program>_http_requests_total`.
    ///
    /// # Errors
    /// Fails if the process has a recorder already.
    pub fn install(program: &'static str) -> Result<Self, MetricsError> {
        let ours = Matcher::Suffix("_seconds".to_owned());
        let mut builder = PrometheusBuilder::new()
            .set_buckets_for_metric(ours, DURATION_BUCKETS)
            .map_err(|source| MetricsError { source })?;
        for (name, buckets) in GEN_AI_BUCKETS {
            builder = builder
                .set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)
                .map_err(|source| MetricsError { source })?;
        }
        let handle = builder.install_recorder().map_err(|source| MetricsError { source })?;
        let metrics = Self { program, handle, requests: Arc::default() };
        metrics::counter!(metrics.name("panics_total")).absolute(0);
        for reason in ["missing", "malformed", "unknown"] {
            metrics::counter!(metrics.name("auth_failures_total"), "reason" => reason).absolute(0);
        }
        Ok(metrics)
    }

    /// Renders all metrics in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        metrics::counter!(self.name("log_lines_lost_total")).absolute(log_lines_lost());
        self.handle.render()
    }

    fn name(&self, what: &str) -> String {
        format!("rbee_{}_{what}", self.program)
    }

    pub(crate) fn panicked(&self) {
        metrics::counter!(self.name("panics_total")).increment(1);
    }

    /// Counts a credential that was refused.
    pub(crate) fn auth_failed(&self, reason: &'static str) {
        metrics::counter!(self.name("auth_failures_total"), "reason" => reason).increment(1);
    }

    pub(crate) fn request(
        &self,
        route: &str,
        method: &Method,
        status: StatusCode,
        duration: Duration,
    ) {
        let labels = [
            ("route", route.to_owned()),
            ("method", known_method(method).to_owned()),
            ("status", status.as_str().to_owned()),
        ];
        metrics::counter!(self.name("http_requests_total"), &labels).increment(1);
        metrics::histogram!(self.name("http_request_duration_seconds"), "route" => route.to_owned())
            .record(duration.as_secs_f64());
        if self.requests.fetch_add(1, Ordering::Relaxed).is_multiple_of(REQUESTS_PER_UPKEEP) {
            self.handle.run_upkeep();
        }
    }
}

/// Keeps the label bounded: a client may send any word as its method.
fn known_method(method: &Method) -> &str {
    match *method {
        Method::GET | Method::POST | Method::DELETE | Method::HEAD => method.as_str(),
        _ => "other",
    }
}

/// The recorder could not be installed.
#[derive(Debug, thiserror::Error)]
#[error("cannot install the metrics recorder")]
pub struct MetricsError {
    source: metrics_exporter_prometheus::BuildError,
}
