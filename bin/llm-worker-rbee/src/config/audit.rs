//! How the worker's audit log is kept, as the hive says it on the command line.

use std::path::{Path, PathBuf};

use audit_logging::AuditSettings;
use clap::Args;

/// The arguments of the audit log.
#[derive(Debug, Clone, Args)]
pub(crate) struct AuditArguments {
    /// Directory of this worker's audit log; none is kept without it
    #[arg(long, value_name = "DIR")]
    audit_dir: Option<PathBuf>,
    /// Mebibytes after which a new file of it is begun
    #[arg(long, value_name = "MIB", default_value_t = AuditSettings::default().segment_mib, value_parser = clap::value_parser!(u64).range(1..=1024))]
    audit_segment_mib: u64,
    /// Files kept of it
    #[arg(long, value_name = "N", default_value_t = AuditSettings::default().segments_max, value_parser = clap::value_parser!(u64).range(2..=10_000))]
    audit_segments_max: u64,
    /// Days after which a file is removed
    #[arg(long, value_name = "DAYS", default_value_t = AuditSettings::default().retention_days, value_parser = clap::value_parser!(u64).range(1..=3650))]
    audit_retention_days: u64,
    /// One in so many good credentials is written down; 0 is none
    #[arg(long, value_name = "N", default_value_t = AuditSettings::default().auth_success_sample, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    audit_auth_success_sample: u64,
    /// One in so many requests is written down; 0 is none
    #[arg(long, value_name = "N", default_value_t = AuditSettings::default().inference_sample, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    audit_inference_sample: u64,
}

impl AuditArguments {
    /// Returns where the log lies; `None` for none.
    pub(crate) fn directory(&self) -> Option<&Path> {
        self.audit_dir.as_deref()
    }

    /// Returns how it is kept.
    pub(crate) fn settings(&self) -> AuditSettings {
        AuditSettings {
            segment_mib: self.audit_segment_mib,
            segments_max: self.audit_segments_max,
            retention_days: self.audit_retention_days,
            auth_success_sample: self.audit_auth_success_sample,
            inference_sample: self.audit_inference_sample,
            ..AuditSettings::default()
        }
    }
}
