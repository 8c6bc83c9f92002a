//! What the home directory keeps for a queen, opened before she serves: its lock, her tokens, the machines, the keys, the
//! paired hives, the audit log, and the keys of signed tokens. Owns the order of nothing: each is opened on its own.

use std::sync::Arc;

use audit_logging::{Auditor, Event, Kind, Options, Signer};
use rbee_api::audit::AuditMode;
use rbee_home::{Daemon, Home, LockGuard};
use rbee_http::Credential;
use secrets_management::load_or_generate;

use crate::config::{Config, Settings};
use crate::error::QueenError;
use crate::hives::{self, Hives};
use crate::jwt::Gate;
use crate::keys::Keys;
use crate::pairing::Pairings;
use crate::tls::Tls;

/// What a queen holds before it opens a port: the home directory and its lock.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) home: Home,
    pub(crate) lock: LockGuard,
}

impl Seat {
    /// Opens the home directory and takes the queen's lock on it.
    ///
    /// # Errors
    /// Fails if another queen runs there, or if the directory cannot be used.
    pub(crate) fn take(config: &Config) -> Result<Self, QueenError> {
        let home = Home::open(&config.home)?;
        let lock = home.lock(Daemon::Queen)?;
        Ok(Self { home, lock })
    }
}

/// The tokens of the two conversations the queen takes part in.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    pub(crate) client: Credential,
    pub(crate) hive: Credential,
}

impl Credentials {
    /// Returns the characters of the shorter one.
    pub(crate) fn shortest(&self) -> usize {
        [&self.client, &self.hive]
            .map(|credential| credential.current().expose().len())
            .into_iter()
            .min()
            .unwrap_or_default()
    }
}

/// Reads the tokens, the machines and the named keys.
pub(crate) async fn read_home(
    config: &Config,
    home: &Home,
) -> Result<(Credentials, Hives, Keys), QueenError> {
    let home = home.clone();
    let auth = config.settings.auth.clone();
    let read = tokio::task::spawn_blocking(move || {
        let client = Credential::load(auth.client_token(&home)?, auth.overlap())?;
        let hive = Credential::load(auth.hive_token(&home)?, auth.overlap())?;
        let hives = hives::load(&home.beehives_db())?;
        let path = home.keys_db();
        let keys = Keys::open(&path).map_err(|source| QueenError::Keys { path, source })?;
        Ok((Credentials { client, hive }, hives, keys))
    });
    read.await.map_err(QueenError::setup("the home directory"))?
}

/// Opens what is known of paired machines.
pub(crate) async fn open_pairings(
    home: &Home,
    tls: &Tls,
    hives: &Hives,
) -> Result<Arc<Pairings>, QueenError> {
    let (home, served, known) = (home.clone(), tls.served.clone(), hives.remote.clone());
    let opened = tokio::task::spawn_blocking(move || Pairings::open(&home, served, &known));
    Ok(Arc::new(opened.await.map_err(QueenError::setup("paired machines"))??))
}

/// Sets up what believes signed tokens, where that is configured.
pub(crate) async fn open_gate(settings: &Settings) -> Result<Option<Arc<Gate>>, QueenError> {
    let Some(settings) = settings.jwt.clone() else { return Ok(None) };
    let opened = tokio::task::spawn_blocking(move || Gate::open(&settings));
    let gate = opened.await.map_err(QueenError::setup("signed tokens"))??;
    Ok(Some(Arc::new(gate)))
}

/// Opens the queen's audit log, with which she begins to be accountable.
pub(crate) async fn open_audit(config: &Config, home: &Home) -> Result<Auditor, QueenError> {
    let settings = config.settings.audit;
    if settings.mode == AuditMode::Off {
        tracing::warn!("the audit log is off: nobody can tell later who did what");
        return Ok(Auditor::off());
    }
    let home = home.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let service = Daemon::Queen.program();
        let key = load_or_generate(&home.audit_key())?.derive("audit", service)?;
        let options = Options {
            directory: home.audit_dir().join(service),
            service: service.to_owned(),
            settings,
            signer: Signer::new(&key, service),
        };
        let start = Event::of_daemon(Kind::Start, env!("CARGO_PKG_VERSION"));
        Ok(Auditor::open(options, start)?)
    });
    opened.await.map_err(QueenError::setup("the audit log"))?
}
