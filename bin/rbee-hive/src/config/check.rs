//! Whether settings can be used, looked at before anything is listened on.

use input_validation::in_range;
use rbee_home::ConfigError;
use rbee_http::{LogSettings, check_log_filter};

use super::Config;
use crate::error::HiveError;

/// Largest size in mebibytes that can be asked for: 16 TiB.
const MIB_MAX: u64 = 1 << 24;

impl Config {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        check_range("workers_max", self.workers_max.into(), 1, 64)?;
        check_range("idle_stop_seconds", self.idle_stop_seconds, 0, 604_800)?;
        check_range("load_timeout_seconds", self.load_timeout_seconds, 1, 86_400)?;
        check_range("load_stall_seconds", self.load_stall_seconds, 1, 86_400)?;
        check_range("hang_timeout_seconds", self.hang_timeout_seconds, 1, 86_400)?;
        check_range("heartbeat_interval_seconds", self.heartbeat_interval_seconds, 1, 3_600)?;
        check_range("stop_grace_seconds", self.stop_grace_seconds, 1, 13)?;
        check_range("shutdown_timeout_seconds", self.shutdown_timeout_seconds, 1, 600)?;
        check_range("memory_min_free_mib", self.memory_min_free_mib, 0, MIB_MAX)?;
        check_range("vram_min_free_mib", self.vram_min_free_mib, 0, MIB_MAX)?;
        check_range("disk_min_free_mib", self.disk_min_free_mib, 0, MIB_MAX)?;
        check_range("inodes_min_free", self.inodes_min_free, 0, u32::MAX.into())?;
        self.allowed_hosts()?;
        self.auth.check()?;
        self.worker.check()?;
        self.restart.check()?;
        self.audit.check()?;
        self.tls.check()?;
        if let Some(url) = &self.queen_url {
            check_url(url)?;
        }
        let (log_min, log_max) = LogSettings::MAX_MIB.into_inner();
        check_range("log.max_mib", self.log.max_mib, log_min, log_max)?;
        check_log_filter(&self.log.level)
            .map_err(|error| ConfigError::Value { key: "log.level", reason: error.to_string() })?;
        for root in self.import_roots.iter().flatten() {
            if !root.is_absolute() {
                let reason = "must hold absolute paths".to_owned();
                return Err(ConfigError::Value { key: "import_roots", reason });
            }
        }
        Ok(())
    }

    /// Says whether the files that are named can be used. Touches no others.
    pub(super) fn check_files(&self) -> Result<(), HiveError> {
        self.tls.check_files()?;
        match &self.worker_path {
            Some(program) if !program.is_file() => {
                let reason = format!("names {}, which is no file", program.display());
                Err(ConfigError::Value { key: "worker_path", reason }.into())
            }
            Some(_) | None => Ok(()),
        }
    }
}

pub(super) fn check_range(
    key: &'static str,
    value: u64,
    min: u64,
    max: u64,
) -> Result<(), ConfigError> {
    match in_range(key, value, min..=max) {
        Ok(_) => Ok(()),
        Err(_) => Err(ConfigError::Value {
            key,
            reason: format!("is {value} and must be from {min} to {max}"),
        }),
    }
}

fn check_url(url: &str) -> Result<(), ConfigError> {
    let is_base = url.parse::<http::Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some()
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none()
    });
    if is_base {
        return Ok(());
    }
    let reason = "must be a base URL such as http://127.0.0.1:8080".to_owned();
    Err(ConfigError::Value { key: "queen_url", reason })
}
