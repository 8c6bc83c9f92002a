//! The keys under `[tls]`, the same for queen and hive. Owns what they mean together, and opens the files
//! that they name.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use auth_min::Transport;
use input_validation::SettingError;
use rustls::ServerConfig;
use rustls_pki_types::ServerName;
use serde::Deserialize;

use crate::TlsError;
use crate::authority::Authority;
use crate::own::{OwnCertificate, server_config};
use crate::peer::Peer;
use crate::trust::Trust;

/// Names by which programs of the same machine call a daemon.
const OWN_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Where a daemon's certificate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TlsMode {
    /// Nowhere: it speaks plain HTTP.
    #[default]
    Off,
    /// From files that somebody keeps.
    Files,
    /// From a CA in the home directory, made at the first start.
    Local,
}

impl FromStr for TlsMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "files" => Ok(Self::Files),
            "local" => Ok(Self::Local),
            _ => Err("expected off, files or local"),
        }
    }
}

/// The keys under `[tls]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSettings {
    /// `off`, `files` or `local`. Default `off`.
    pub mode: TlsMode,
    /// PEM file of the certificate and those between it and its CA; absolute. For `files`. Default: absent.
    pub cert_file: Option<PathBuf>,
    /// PEM file of its private key, mode 0600; absolute. For `files`. Default: absent.
    pub key_file: Option<PathBuf>,
    /// Further host names and addresses that the certificate of `local` is for. Default: none, which means `localhost`,
    /// the loopback addresses and the address that the daemon listens on.
    pub names: Vec<String>,
    /// PEM file of CAs by which this program knows those that it calls on other machines; absolute; also
    /// `RBEE_TLS_CA_FILE`. Default: absent, and only the CA of the home is believed.
    pub ca_file: Option<PathBuf>,
    /// Whether to speak plain HTTP on an address that others can reach. Default false.
    pub allow_plain_http: bool,
}

impl TlsSettings {
    /// Checks what can be checked without the files.
    ///
    /// # Errors
    /// [`SettingError`].
    pub fn check(&self) -> Result<(), SettingError> {
        let wrong = |key, reason: &str| Err(SettingError { key, reason: reason.to_owned() });
        let files = [
            ("tls.cert_file", &self.cert_file, true),
            ("tls.key_file", &self.key_file, true),
            ("tls.ca_file", &self.ca_file, false),
        ];
        for (key, file, is_shown) in files {
            match file {
                Some(file) if !file.is_absolute() => return wrong(key, "must be an absolute path"),
                Some(_) if is_shown && self.mode != TlsMode::Files => {
                    return wrong(key, "is for tls.mode = \"files\" alone");
                }
                None if is_shown && self.mode == TlsMode::Files => {
                    return wrong(key, "is missing, which tls.mode = \"files\" needs");
                }
                Some(_) | None => {}
            }
        }
        match self.names.iter().find(|name| ServerName::try_from(name.as_str()).is_err()) {
            Some(name) => {
                wrong("tls.names", &format!("holds {name:?}, which is no host name or address"))
            }
            None => Ok(()),
        }
    }

    /// Says whether the files that are named can be used. Touches no others, and makes none. Blocks.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn check_files(&self) -> Result<(), TlsError> {
        if let (TlsMode::Files, Some(certificate), Some(key)) =
            (self.mode, &self.cert_file, &self.key_file)
        {
            OwnCertificate::in_files(certificate, key)?;
        }
        self.check_ca_file()?;
        Trust::in_files(&self.ca_file).map(drop)
    }

    fn check_ca_file(&self) -> Result<(), TlsError> {
        match self.ca_file.as_ref().map(|file| (file, std::fs::metadata(file))) {
            Some((file, Err(source))) => {
                Err(TlsError::Io { action: "read", path: file.clone(), source })
            }
            Some((_, Ok(_))) | None => Ok(()),
        }
    }

    /// Puts what command line and environment say in the place of what the file says.
    pub fn replace(
        &mut self,
        mode: Option<TlsMode>,
        allow_plain_http: Option<bool>,
        ca_file: Option<PathBuf>,
    ) {
        self.mode = mode.unwrap_or(self.mode);
        self.allow_plain_http = allow_plain_http.unwrap_or(self.allow_plain_http);
        self.ca_file = ca_file.or(self.ca_file.take());
    }

    /// Returns what the daemon speaks.
    #[must_use]
    pub fn transport(&self) -> Transport {
        match self.mode {
            TlsMode::Files | TlsMode::Local => Transport::Tls,
            TlsMode::Off if self.allow_plain_http => Transport::PlainHttpAccepted,
            TlsMode::Off => Transport::PlainHttp,
        }
    }

    /// Returns what a daemon that listens on `address` serves with; `None` for plain HTTP. The files of the local CA lie
    /// in `directory`, which has to be there. Blocks.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn open(
        &self,
        directory: &Path,
        address: SocketAddr,
        peer: &Peer,
    ) -> Result<Option<Served>, TlsError> {
        match (self.mode, &self.cert_file, &self.key_file) {
            (TlsMode::Files, Some(certificate), Some(key)) => {
                let own = OwnCertificate::in_files(certificate, key)?;
                let config = server_config(&own, None)?;
                let known_by = Some(certificate.clone());
                Ok(Some(Served { own, config, known_by, authority: None }))
            }
            (TlsMode::Local, ..) => {
                let authority = Arc::new(Authority::load_or_generate(directory)?);
                let peer = match peer {
                    Peer::Queen => Some(Peer::Queen),
                    Peer::Hive(_) => None,
                };
                let names = self.names_on(address.ip());
                let own = OwnCertificate::signed_by(Arc::clone(&authority), peer, names)?;
                let config = server_config(&own, Some(&Trust::of_authority(&authority)))?;
                let known_by = Some(Authority::certificate_file(directory));
                Ok(Some(Served { own, config, known_by, authority: Some(authority) }))
            }
            (TlsMode::Off | TlsMode::Files, ..) => Ok(None),
        }
    }

    fn names_on(&self, ip: IpAddr) -> Vec<String> {
        let own = OWN_NAMES.iter().map(ToString::to_string);
        let bound = (!ip.is_unspecified()).then(|| ip.to_canonical().to_string());
        let mut names: Vec<String> = own.chain(bound).chain(self.names.iter().cloned()).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Returns whom this program believes on other machines: the CA in `directory`, and those in `tls.ca_file`. Blocks.
    ///
    /// # Errors
    /// [`TlsError`], also where `tls.ca_file` is not there.
    pub fn trust(&self, directory: &Path) -> Result<Trust, TlsError> {
        self.check_ca_file()?;
        let own = Authority::certificate_file(directory);
        Trust::in_files([Some(own), self.ca_file.clone()].into_iter().flatten())
    }
}

/// What a daemon serves TLS with.
#[derive(Debug, Clone)]
pub struct Served {
    /// What it shows.
    pub own: OwnCertificate,
    /// How it answers.
    pub config: Arc<ServerConfig>,
    /// The file by which programs of the same machine know it; none do where it is absent.
    pub known_by: Option<PathBuf>,
    /// The CA that has signed it, where it is a local one.
    pub authority: Option<Arc<Authority>>,
}
