//! The settings of who is let in: whether clients need a token, and where the
//! tokens are kept.

use std::path::PathBuf;
use std::time::Duration;

use rbee_api::queen::AuthMode;
use rbee_home::{ConfigError, Home, SecretSetting};
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
        self.client_setting().source(home.client_token())
    }

    /// Returns where the token of the hives is.
    pub(crate) fn hive_token(&self, home: &Home) -> Result<SecretSource, ConfigError> {
        self.hive_setting().source(home.hive_token())
    }

    fn client_setting(&self) -> SecretSetting<'_> {
        SecretSetting {
            file: ("auth.client_token_file", self.client_token_file.as_deref()),
            credential: ("auth.client_token_credential", self.client_token_credential.as_deref()),
            credentials_directory: self.credentials_directory.as_deref(),
        }
    }

    fn hive_setting(&self) -> SecretSetting<'_> {
        SecretSetting {
            file: ("auth.hive_token_file", self.hive_token_file.as_deref()),
            credential: ("auth.hive_token_credential", self.hive_token_credential.as_deref()),
            credentials_directory: self.credentials_directory.as_deref(),
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
        self.client_setting().source(PathBuf::new())?;
        self.hive_setting().source(PathBuf::new()).map(drop)
    }
}
