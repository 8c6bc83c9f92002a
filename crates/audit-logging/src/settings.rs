//! The `[audit]` section of a daemon's configuration: its keys with units, defaults and ranges.

use input_validation::SettingError;
use rbee_api::audit::AuditMode;
use serde::Deserialize;

/// The keys under `[audit]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditSettings {
    /// `file`, or `off` for none. Default `file`.
    pub mode: AuditMode,
    /// MiB after which a new file is begun, 1 to 1024. Default 10.
    pub segment_mib: u64,
    /// Files kept of a log, 2 to 10000. Default 50.
    pub segments_max: u64,
    /// Days after which a file is removed, 1 to 3650. Default 90.
    pub retention_days: u64,
    /// One in so many good credentials is written down, 0 to 1000000; 0: none. Default 0.
    pub auth_success_sample: u64,
    /// One in so many requests for inference is written down, 0 to 1000000; 0: none. Default 1.
    pub inference_sample: u64,
}

impl Default for AuditSettings {
    fn default() -> Self {
        Self {
            mode: AuditMode::File,
            segment_mib: 10,
            segments_max: 50,
            retention_days: 90,
            auth_success_sample: 0,
            inference_sample: 1,
        }
    }
}

impl AuditSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`SettingError`] for the first value out of range.
    pub fn check(&self) -> Result<(), SettingError> {
        for (key, value, min, max) in [
            ("audit.segment_mib", self.segment_mib, 1, 1024),
            ("audit.segments_max", self.segments_max, 2, 10_000),
            ("audit.retention_days", self.retention_days, 1, 3650),
            ("audit.auth_success_sample", self.auth_success_sample, 0, 1_000_000),
            ("audit.inference_sample", self.inference_sample, 0, 1_000_000),
        ] {
            if value < min || value > max {
                let reason = format!("is {value} and must be between {min} and {max}");
                return Err(SettingError { key, reason });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_in_range_and_what_is_not_is_named() {
        let good = AuditSettings::default();
        assert_eq!(good.check(), Ok(()));
        for (bad, key) in [
            (AuditSettings { segment_mib: 0, ..good }, "audit.segment_mib"),
            (AuditSettings { segments_max: 1, ..good }, "audit.segments_max"),
            (AuditSettings { retention_days: 3651, ..good }, "audit.retention_days"),
            (AuditSettings { auth_success_sample: 1_000_001, ..good }, "audit.auth_success_sample"),
            (AuditSettings { inference_sample: 1_000_001, ..good }, "audit.inference_sample"),
        ] {
            assert_eq!(bad.check().unwrap_err().key, key);
        }
    }
}
