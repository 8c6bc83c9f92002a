//! Settings: flag, then environment, then file, then default. The only file that reads the environment. Never opens
//! the home directory or a token; it only says where they are.

use std::ffi::OsString;
use std::path::PathBuf;

use rbee_home::{ConfigError, ConfigSearch, Home, HomeError, load_toml};
use serde::Deserialize;

use crate::cli::GlobalArgs;

/// `rbee.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ConfigFile {
    /// Directory of models, tokens and logs. Absent: `~/.rbee`.
    home: Option<PathBuf>,
    /// Base URL of the queen. Absent: the queen on this computer.
    queen_url: Option<String>,
    /// File with the token for the queen. Absent: `secrets/client.token` in the home.
    token_file: Option<PathBuf>,
    /// PEM file of the CA of a queen on another computer. Absent: `tls/ca.pem` in the home.
    ca_file: Option<PathBuf>,
}

/// What the environment says; empty variables count as absent.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    pub(crate) user_home: Option<PathBuf>,
    pub(crate) home: Option<PathBuf>,
    pub(crate) config: Option<PathBuf>,
    pub(crate) queen_url: Option<String>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) ca_file: Option<PathBuf>,
}

impl Environment {
    /// Reads the process's own environment.
    pub(crate) fn read() -> Self {
        Self {
            user_home: variable("HOME").map(PathBuf::from),
            home: variable("RBEE_HOME").map(PathBuf::from),
            config: variable("RBEE_CONFIG").map(PathBuf::from),
            // Bytes that are no text are no URL; the check on the URL says so.
            queen_url: variable("RBEE_QUEEN_URL").map(|url| url.to_string_lossy().into_owned()),
            token_file: variable("RBEE_TOKEN_FILE").map(PathBuf::from),
            ca_file: variable("RBEE_TLS_CA_FILE").map(PathBuf::from),
        }
    }
}

/// Returns what the variable of this name holds, for a key that the user keeps in the environment.
pub(crate) fn key_variable(name: &str) -> Option<OsString> {
    variable(name)
}

#[expect(clippy::disallowed_methods, reason = "this file is the one that reads the environment")]
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Where things are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// The home directory; `None` where this user has none and named none.
    home: Option<PathBuf>,
    /// The queen's base URL; `None` means the one on this computer.
    pub(crate) queen_url: Option<String>,
    /// The file with the token; `None` means the one in the home.
    pub(crate) token_file: Option<PathBuf>,
    /// The file with the CA of a queen on another computer; `None` means the one in the home.
    pub(crate) ca_file: Option<PathBuf>,
}

impl Config {
    /// Puts flags, environment and file together.
    ///
    /// # Errors
    /// [`ConfigError`] for a file that cannot be used and a URL that is none.
    pub(crate) fn load(args: &GlobalArgs, env: Environment) -> Result<Self, ConfigError> {
        let explicit = args.config.as_deref().or(env.config.as_deref());
        let user_home = env.user_home.as_deref();
        let file: ConfigFile =
            load_toml(ConfigSearch { program: "rbee", explicit, user_home })?.config;
        let queen_url = args.queen.clone().or(env.queen_url).or(file.queen_url);
        Ok(Self {
            home: args
                .home
                .clone()
                .or(env.home)
                .or(file.home)
                .or_else(|| Home::default_path(user_home).ok()),
            queen_url: queen_url.map(|url| base_url(&url)).transpose()?,
            token_file: args.token_file.clone().or(env.token_file).or(file.token_file),
            ca_file: args.ca_file.clone().or(env.ca_file).or(file.ca_file),
        })
    }

    /// Opens the home directory, creating what is missing of it.
    ///
    /// # Errors
    /// [`HomeError`].
    pub(crate) fn open_home(&self) -> Result<Home, HomeError> {
        Home::open(self.home.as_deref().ok_or(HomeError::NoHome)?)
    }
}

/// Checks a base URL and takes a trailing slash off, and the `/v1` that OpenAI's clients want.
fn base_url(text: &str) -> Result<String, ConfigError> {
    let wrong = |reason: &str| ConfigError::Value {
        key: "queen_url",
        reason: format!("{reason}; it has the form http://HOST:PORT or https://HOST:PORT"),
    };
    let uri: http::Uri = text.parse().map_err(|_not_a_uri| wrong("is not a URL"))?;
    let scheme = match uri.scheme_str() {
        Some(scheme @ ("http" | "https")) => scheme,
        _ => return Err(wrong("does not begin with http:// or https://")),
    };
    let authority = uri.authority().ok_or_else(|| wrong("names no host"))?;
    if authority.as_str().contains('@') {
        return Err(wrong(
            "holds a user name; put the token into a file and name it with --token-file",
        ));
    }
    if !matches!(uri.path(), "" | "/" | "/v1" | "/v1/") || uri.query().is_some() {
        return Err(wrong("has a path"));
    }
    Ok(format!("{scheme}://{authority}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    fn load(args: &[&str], env: Environment) -> Result<Config, ConfigError> {
        let typed = ["rbee", "ps"].into_iter().chain(args.iter().copied());
        Config::load(&Cli::try_parse_from(typed).unwrap().global, env)
    }

    #[test]
    fn a_flag_wins_over_the_environment_and_that_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rbee.toml");
        std::fs::write(&path, "queen_url = 'http://file:1'\ntoken_file = '/file'\nhome = '/h'")
            .unwrap();
        let env = || Environment {
            config: Some(path.clone()),
            queen_url: Some("http://env:2/v1".to_owned()),
            ..Environment::default()
        };
        let config = load(&["--queen", "http://flag:3/"], env()).unwrap();
        assert_eq!(config.queen_url.as_deref(), Some("http://flag:3"));
        assert_eq!(config.token_file, Some(PathBuf::from("/file")));
        assert_eq!(config.home, Some(PathBuf::from("/h")));
        assert_eq!(load(&[], env()).unwrap().queen_url.as_deref(), Some("http://env:2"));
    }

    #[test]
    fn without_settings_everything_lies_in_the_users_home() {
        let user_home = Some(PathBuf::from("/nonexistent/u"));
        let config = load(&[], Environment { user_home, ..Environment::default() }).unwrap();
        assert_eq!(config.home, Some(PathBuf::from("/nonexistent/u/.rbee")));
        assert_eq!((config.queen_url, config.token_file), (None, None));
        let homeless = load(&[], Environment::default()).unwrap();
        assert!(matches!(homeless.open_home(), Err(HomeError::NoHome)));
    }

    #[test]
    fn urls_that_cannot_be_a_queens_are_refused() {
        for url in
            ["", "queen:8080", "ftp://q", "http://", "http://u:p@q", "http://q/x", "http://q?a"]
        {
            let refused = load(&["--queen", url], Environment::default());
            assert!(matches!(refused, Err(ConfigError::Value { key: "queen_url", .. })), "{url}");
        }
    }
}
