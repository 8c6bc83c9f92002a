//! When failed workers are started again: each setting with its unit, default and range. Never decides that one is.

use std::time::Duration;

use rbee_home::ConfigError;
use serde::Deserialize;

use super::check::check_range;
use crate::restart::RestartRules;

/// Longest pause that can be set: a day.
const PAUSE_MS_MAX: u64 = 86_400_000;
/// Most pauses of an open breaker that can be set.
const PROBES_MAX: usize = 16;

/// When failed workers are started again.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RestartConfig {
    /// Milliseconds between a first failure and the next start; each further one doubles them. Default: 1000.
    /// Range: 1 to 86400000.
    pub(crate) delay_ms: u64,
    /// Most that they are doubled to. Default: 60000. Range: 1 to 86400000.
    pub(crate) delay_max_ms: u64,
    /// Failures within `window_seconds` that open the breaker. Default: 3. Range: 1 to 1000.
    pub(crate) failures_max: u32,
    /// Seconds that a failure counts. Default: 600. Range: 1 to 604800.
    pub(crate) window_seconds: u64,
    /// Seconds that a worker has to be ready for all earlier failures to be forgotten. Default: 300. Range: 1 to 604800.
    pub(crate) healthy_seconds: u64,
    /// Milliseconds before each single try once the breaker is open; the last one repeats. Default:
    /// `[60000, 120000, 300000]`. 1 to 16 of them, each 1 to 86400000.
    pub(crate) probe_delays_ms: Vec<u64>,
}

impl Default for RestartConfig {
    fn default() -> Self {
        Self {
            delay_ms: 1000,
            delay_max_ms: 60_000,
            failures_max: 3,
            window_seconds: 600,
            healthy_seconds: 300,
            probe_delays_ms: vec![60_000, 120_000, 300_000],
        }
    }
}

impl RestartConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        check_range("restart.delay_ms", self.delay_ms, 1, PAUSE_MS_MAX)?;
        check_range("restart.delay_max_ms", self.delay_max_ms, 1, PAUSE_MS_MAX)?;
        check_range("restart.failures_max", self.failures_max.into(), 1, 1000)?;
        check_range("restart.window_seconds", self.window_seconds, 1, 604_800)?;
        check_range("restart.healthy_seconds", self.healthy_seconds, 1, 604_800)?;
        for delay in &self.probe_delays_ms {
            check_range("restart.probe_delays_ms", *delay, 1, PAUSE_MS_MAX)?;
        }
        if !(1..=PROBES_MAX).contains(&self.probe_delays_ms.len()) {
            let reason = format!("must hold 1 to {PROBES_MAX} pauses");
            return Err(ConfigError::Value { key: "restart.probe_delays_ms", reason });
        }
        Ok(())
    }

    /// Returns the same as the decision takes it.
    pub(crate) fn rules(&self) -> RestartRules {
        RestartRules {
            delay: Duration::from_millis(self.delay_ms),
            delay_max: Duration::from_millis(self.delay_max_ms),
            failures_max: self.failures_max,
            window: Duration::from_secs(self.window_seconds),
            healthy: Duration::from_secs(self.healthy_seconds),
            probe_delays: self.probe_delays_ms.iter().copied().map(Duration::from_millis).collect(),
        }
    }
}
