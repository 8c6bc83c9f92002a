//! The settings of who is let in: whether clients need a token, and where the
//! tokens are kept.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rbee_api::queen::AuthMode;
use rbee_home::{ConfigError, Home};
use secrets_management::SecretSource;
use serde::Deserialize;

/// Longest time for which a replaced token may stay good: a day.
const OVERLAP_SECONDS_MAX: u64 = 86_400;

/// The keys under `[auth]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthSettings {
    /// `token`, or `none`: whoever reaches the queen is a client; on loopback addresses alone. Default `token`.
    pub mode: AuthMode,
    /// File of the token that clients show; also `RBEE_CLIENT_TOKEN_FILE`. Default: absent, and `secrets/client.token` in the home, made at the first start.
    pub client_token_file: Option<PathBuf>,
    /// Name of the systemd credential that is the token that clients show. Default: absent.
    pub client_token_credential: Option<String>,
    /// File of the token that queen and hives show each other; also `RBEE_HIVE_TOKEN_FILE`. Default: absent, and `secrets/hive.token` in the home, made at the first start.
    pub hive_token_file: Option<PathBuf>,
    /// Name of the systemd credential that is the token that queen and hives show each other. Default: absent.
    pub hive_token_credential: Option<String>,
    /// Seconds for which a token stays good that `rbee token rotate` has replaced, 0 to 86400. Default 300.
    pub token_overlap_seconds: u64,
    /// Where systemd put the credentials; `CREDENTIALS_DIRECTORY` alone.
    #[serde(skip)]
    pub credentials_directory: Option<PathBuf>,
}

/// What the environment says about it.
#[derive(Debug, clap::Args)]
pub(super) struct AuthArguments {
    /// File of the token that clients show [default: secrets/client.token in the home]
    #[arg(long, env = "RBEE_CLIENT_TOKEN_FILE", value_name = "FILE")]
    client_token_file: Option<PathBuf>,
    /// File of the token that queen and hives show each other [default: secrets/hive.token in the home]
    #[arg(long, env = "RBEE_HIVE_TOKEN_FILE", value_name = "FILE")]
    hive_token_file: Option<PathBuf>,
    /// Directory of systemd's credentials
    #[arg(long, env = "CREDENTIALS_DIRECTORY", value_name = "DIRECTORY", hide = true)]
    credentials_directory: Option<PathBuf>,
}

impl Default for AuthSettings {
    fn default() -> Self {
        Self {
            mode: AuthMode::Token,
            client_token_file: None,
            client_token_credential: None,
            hive_token_file: None,
            hive_token_credential: None,
            token_overlap_seconds: 300,
            credentials_directory: None,
        }
    }
}

impl AuthSettings {
    /// Takes over what the command line and the environment say.
    pub(super) fn replace(&mut self, arguments: AuthArguments) {
        if let Some(file) = arguments.client_token_file {
            (self.client_token_file, self.client_token_credential) = (Some(file), None);
        }
        if let Some(file) = arguments.hive_token_file {
            (self.hive_token_file, self.hive_token_credential) = (Some(file), None);
        }
        self.credentials_directory = arguments.credentials_directory;
    }

    /// Returns how long a replaced token stays good.
    pub(crate) const fn overlap(&self) -> Duration {
        Duration::from_secs(self.token_overlap_seconds)
    }

    /// Returns where the token of clients is.
    pub(crate) fn client_token(&self, home: &Home) -> Result<SecretSource, ConfigError> {
        let file = self.client_token_file.as_deref();
        let credential = self.client_token_credential.as_deref();
        let keys = ("auth.client_token_file", "auth.client_token_credential");
        self.source(keys, file, credential, home.client_token())
    }

    /// Returns where the token of the hives is.
    pub(crate) fn hive_token(&self, home: &Home) -> Result<SecretSource, ConfigError> {
        let file = self.hive_token_file.as_deref();
        let credential = self.hive_token_credential.as_deref();
        let keys = ("auth.hive_token_file", "auth.hive_token_credential");
        self.source(keys, file, credential, home.hive_token())
    }

    fn source(
        &self,
        (file_key, credential_key): (&'static str, &'static str),
        file: Option<&Path>,
        credential: Option<&str>,
        own: PathBuf,
    ) -> Result<SecretSource, ConfigError> {
        let wrong = |key, reason: String| Err(ConfigError::Value { key, reason });
        match (file, credential) {
            (Some(_), Some(_)) => {
                wrong(credential_key, format!("stands beside {file_key}; only one can hold"))
            }
            (Some(file), None) if file.is_absolute() => Ok(SecretSource::File(file.to_owned())),
            (Some(_), None) => wrong(file_key, "must be an absolute path".to_owned()),
            (None, Some(name)) => {
                SecretSource::credential(self.credentials_directory.as_deref(), name)
                    .or_else(|error| wrong(credential_key, format!("cannot be used: {error}")))
            }
            (None, None) => Ok(SecretSource::OwnFile(own)),
        }
    }

    /// Checks what can be checked before the home is opened.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.token_overlap_seconds > OVERLAP_SECONDS_MAX {
            let reason = format!(
                "is {} and must be between 0 and {OVERLAP_SECONDS_MAX}",
                self.token_overlap_seconds
            );
            return Err(ConfigError::Value { key: "auth.token_overlap_seconds", reason });
        }
        let client = (self.client_token_file.as_deref(), self.client_token_credential.as_deref());
        let hive = (self.hive_token_file.as_deref(), self.hive_token_credential.as_deref());
        let client_keys = ("auth.client_token_file", "auth.client_token_credential");
        let hive_keys = ("auth.hive_token_file", "auth.hive_token_credential");
        self.source(client_keys, client.0, client.1, PathBuf::new())?;
        self.source(hive_keys, hive.0, hive.1, PathBuf::new()).map(drop)
    }
}
