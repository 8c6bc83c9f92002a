//! The audit logs under this hive's eyes: its own, which is opened with it, and those of its workers, which it removes
//! when they are old. Owns where they lie; what stands in them is a matter of `audit-logging`.

use std::time::Duration;

use audit_logging::{Auditor, Event, Kind, Options, Outcome, Signer, remove_old_logs};
use rbee_api::audit::AuditMode;
use rbee_home::{Daemon, Home};
use secrets_management::load_or_generate;

use crate::config::Config;
use crate::error::HiveError;
use crate::hive::Hive;
use crate::supervisor::AuditOfWorkers;

/// The program of workers, whose audit logs lie under this name.
pub(crate) const WORKER_PROGRAM: &str = "llm-worker-rbee";

/// Opens the hive's audit log, with which it begins to be accountable.
pub(crate) fn open(config: &Config, home: &Home) -> Result<AuditOfWorkers, HiveError> {
    let settings = config.audit;
    let directory = home.audit_dir().join(WORKER_PROGRAM);
    if settings.mode == AuditMode::Off {
        tracing::warn!("the audit log is off: nobody can tell later who did what");
        return Ok(AuditOfWorkers { auditor: Auditor::off(), settings, key: None, directory });
    }
    let root = load_or_generate(&home.audit_key())?;
    let program = Daemon::Hive.program();
    let service = format!("{program}/{}", config.name);
    let options = Options {
        directory: home.audit_dir().join(program),
        signer: Signer::new(&root.derive("audit", program)?, &service),
        service,
        settings,
    };
    let start = Event::of_daemon(Kind::Start, env!("CARGO_PKG_VERSION"));
    let auditor = Auditor::open(options, start)?;
    Ok(AuditOfWorkers { auditor, settings, key: Some(root), directory })
}

/// Removes the audit logs of workers that are long gone. That they are is written down.
pub(crate) fn remove_old(hive: &Hive) {
    if hive.config.audit.mode == AuditMode::Off {
        return;
    }
    let living = hive.registry.snapshot();
    let is_living = |name: &str| living.iter().any(|worker| worker.id.as_str() == name);
    let age = Duration::from_secs(hive.config.audit.retention_days * 24 * 60 * 60);
    match remove_old_logs(&hive.home.audit_dir().join(WORKER_PROGRAM), age, is_living) {
        Ok(0) => {}
        Ok(removed) => {
            let event = Event::new(Kind::Retention, Outcome::Success);
            hive.audit.note(event.with_number("worker_logs_removed", removed));
        }
        Err(error) => tracing::warn!(%error, "cannot remove the audit logs of old workers"),
    }
}
