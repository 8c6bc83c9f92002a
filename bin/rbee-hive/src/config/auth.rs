//! The settings of the token that queen and hive show each other: where it is kept, and how long one that was replaced
//! stays good.

use std::path::PathBuf;
use std::time::Duration;

use rbee_home::{ConfigError, Home, SecretSetting};
use secrets_management::SecretSource;
use serde::Deserialize;

use super::check::check_range;

/// The keys under `[auth]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AuthConfig {
    /// File of the token that queen and hive show each other; also `RBEE_HIVE_TOKEN_FILE`. Absent: `secrets/hive.token`
    /// in the home, made at the first start.
    hive_token_file: Option<PathBuf>,
    /// Name of the systemd credential that is this token. Absent: none.
    hive_token_credential: Option<String>,
    /// Seconds for which a token stays good that `rbee token rotate hive` has replaced. Default: 300. Range: 0 to 86400.
    token_overlap_seconds: u64,
    /// Where systemd put the credentials; `CREDENTIALS_DIRECTORY` alone.
    #[serde(skip)]
    credentials_directory: Option<PathBuf>,
}

/// What command line and environment say about it.
#[derive(Debug, Default, clap::Args)]
pub(super) struct AuthArgs {
    /// File of the token that queen and hive show each other [default: secrets/hive.token in the home]
    #[arg(long, env = "RBEE_HIVE_TOKEN_FILE", value_name = "FILE")]
    hive_token_file: Option<PathBuf>,
    /// Directory of systemd's credentials
    #[arg(long, env = "CREDENTIALS_DIRECTORY", value_name = "DIR", hide = true)]
    credentials_directory: Option<PathBuf>,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            hive_token_file: None,
            hive_token_credential: None,
            token_overlap_seconds: 300,
            credentials_directory: None,
        }
    }
}

impl AuthConfig {
    pub(super) fn replace(&mut self, args: AuthArgs) {
        if let Some(file) = args.hive_token_file {
            (self.hive_token_file, self.hive_token_credential) = (Some(file), None);
        }
        self.credentials_directory = args.credentials_directory;
    }

    /// Returns how long a replaced token stays good.
    pub(crate) const fn overlap(&self) -> Duration {
        Duration::from_secs(self.token_overlap_seconds)
    }

    /// Returns where the token is.
    pub(crate) fn hive_token(&self, home: &Home) -> Result<SecretSource, ConfigError> {
        self.setting().source(home.hive_token())
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        check_range("auth.token_overlap_seconds", self.token_overlap_seconds, 0, 86_400)?;
        self.setting().source(PathBuf::new()).map(drop)
    }

    fn setting(&self) -> SecretSetting<'_> {
        SecretSetting {
            file: ("auth.hive_token_file", self.hive_token_file.as_deref()),
            credential: ("auth.hive_token_credential", self.hive_token_credential.as_deref()),
            credentials_directory: self.credentials_directory.as_deref(),
        }
    }
}
