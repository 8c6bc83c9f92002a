//! With which certificate the hive serves, and by what it knows the queen. Owns the opening of both, and the listener
//! for workers beside one that speaks TLS: they are on this machine, call by their own secret, and need no certificate.

use std::net::{Ipv4Addr, SocketAddr};

use rbee_home::{Home, ensure_private_directory};
use rbee_http::bind;
use rbee_tls::{Peer, Served, TlsError, TlsMode, Trust};
use tokio::net::TcpListener;

use crate::config::Config;
use crate::error::HiveError;

/// What the hive serves with.
#[derive(Debug)]
pub(crate) struct Tls {
    /// `None` for plain HTTP.
    pub(crate) served: Option<Served>,
    /// Where workers call, if not where everybody does.
    pub(crate) for_workers: Option<TcpListener>,
}

impl Tls {
    /// Opens what is configured, for a hive that listens on `address`.
    ///
    /// # Errors
    /// [`HiveError::Tls`], [`HiveError::Home`] and [`HiveError::Bind`].
    pub(crate) async fn open(
        config: &Config,
        home: &Home,
        address: SocketAddr,
    ) -> Result<Self, HiveError> {
        let directory = home.tls_dir();
        if config.pairing.is_none() && config.tls.mode == TlsMode::Local {
            ensure_private_directory(&directory)?;
        }
        let served = match &config.pairing {
            Some(pairing) => Some(pairing.served()?),
            None => config.tls.open(&directory, address, &Peer::Hive(config.name.clone()))?,
        };
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let for_workers = match &served {
            None => None,
            Some(_) => Some(
                bind(local).await.map_err(|source| HiveError::Bind { address: local, source })?,
            ),
        };
        Ok(Self { served, for_workers })
    }

    /// Returns the scheme of the hive's URL.
    pub(crate) const fn scheme(&self) -> &'static str {
        if self.served.is_some() { "https" } else { "http" }
    }
}

/// Returns by what a queen on another machine is known.
///
/// # Errors
/// [`TlsError`].
pub(crate) fn trust(config: &Config, home: &Home) -> Result<Trust, TlsError> {
    match &config.pairing {
        Some(pairing) => pairing.trust(),
        None => config.tls.trust(&home.tls_dir()),
    }
}
