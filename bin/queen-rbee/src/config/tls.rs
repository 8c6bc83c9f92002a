//! What the command line and the environment say about TLS.

use std::path::PathBuf;

use rbee_tls::{TlsMode, TlsSettings};

/// The flags.
#[derive(Debug, clap::Args)]
pub(super) struct TlsArguments {
    /// Where the certificate comes from: off, files or local [default: off]
    #[arg(long = "tls", env = "RBEE_QUEEN_TLS", value_name = "MODE")]
    mode: Option<TlsMode>,
    /// Speak plain HTTP even where others on the network can read it
    #[arg(long, env = "RBEE_QUEEN_ALLOW_PLAIN_HTTP", num_args = 0..=1, default_missing_value = "true",
        value_name = "true|false")]
    allow_plain_http: Option<bool>,
    /// PEM file of the CAs of hives on other machines [default: the CA of the home]
    #[arg(long, env = "RBEE_TLS_CA_FILE", value_name = "FILE")]
    tls_ca_file: Option<PathBuf>,
}

impl TlsArguments {
    /// Puts what they say in the place of what the file says.
    pub(super) fn replace(self, settings: &mut TlsSettings) {
        settings.replace(self.mode, self.allow_plain_http, self.tls_ca_file);
    }
}
