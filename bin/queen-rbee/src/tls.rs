//! With which certificate the queen serves, and whom she believes that she calls. Owns the opening of both; the rules
//! are those of `rbee-tls`.

use std::net::SocketAddr;

use rbee_home::{Home, ensure_private_directory};
use rbee_tls::{OwnCertificate, Peer, Served, TlsMode, Trust};

use crate::config::Settings;
use crate::error::QueenError;

/// The queen's certificates.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    /// What she serves with; `None` for plain HTTP.
    pub(crate) served: Option<Served>,
    /// By whom she knows hives on other machines.
    pub(crate) trust: Trust,
}

impl Tls {
    /// Opens what is configured, for a queen who listens on `address`.
    ///
    /// # Errors
    /// Names the file that cannot be used.
    pub(crate) async fn open(
        settings: &Settings,
        home: &Home,
        address: SocketAddr,
    ) -> Result<Self, QueenError> {
        let (settings, home) = (settings.tls.clone(), home.clone());
        let opened = tokio::task::spawn_blocking(move || {
            let directory = home.tls_dir();
            if settings.mode == TlsMode::Local {
                ensure_private_directory(&directory)?;
            }
            let served = settings.open(&directory, address, &Peer::Queen)?;
            Ok(Self { served, trust: settings.trust(&directory)? })
        });
        opened.await.map_err(QueenError::setup("TLS"))?
    }

    /// Returns the certificate to renew, where there is one.
    pub(crate) fn own(&self) -> Option<OwnCertificate> {
        self.served.as_ref().map(|served| served.own.clone())
    }

    /// Returns the scheme of the queen's URL.
    pub(crate) const fn scheme(&self) -> &'static str {
        if self.served.is_some() { "https" } else { "http" }
    }
}
