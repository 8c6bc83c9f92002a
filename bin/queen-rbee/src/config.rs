//! What can be configured: every key with unit, default and range, and the one
//! place that reads flags, environment and the config file. A flag wins over
//! the environment, that over the file, that over the default.

mod auth;
mod jwt;
mod tls;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use audit_logging::AuditSettings;
use clap::Parser;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use deadline_propagation::{DEADLINE_CAP, DEADLINE_DEFAULT};
use rbee_home::{ConfigError, ConfigSearch, Daemon, Home, Loaded, load_toml};
use rbee_http::{AllowedHosts, LogFormat, LogSettings, check_log_filter};
use rbee_tls::TlsSettings;
use serde::Deserialize;

use crate::error::QueenError;
use crate::queue::Limits;
use auth::AuthArguments;
pub use auth::AuthSettings;
use tls::TlsArguments;

pub use jwt::JwtSettings;

/// The port clients know.
const PORT: u16 = 8080;
/// The program that is started for the local machine.
const HIVE_PROGRAM: &str = "rbee-hive";

/// Everything a queen can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `--home`, `RBEE_HOME`: the home directory; default `~/.rbee`.
    pub home: PathBuf,
    /// The executable of the hive, absolute or to be found on the search path.
    pub hive_program: PathBuf,
    /// The keys of the config file.
    pub settings: Settings,
}

/// The keys of `queen-rbee.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where to listen, `address:port`; also `--bind` and `RBEE_QUEEN_BIND`. Port 0 takes a free one. Default `127.0.0.1:8080`.
    pub bind: SocketAddr,
    /// Further host names and addresses, without port, by which clients may call the queen. Default: none, which means
    /// `localhost` and loopback addresses on connections over the loopback, and any name on others.
    pub allowed_hosts: Vec<String>,
    /// Whether to start a hive on this machine when none runs, and to keep it running. Default true.
    pub local_hive: bool,
    /// Address of a hive on this machine that someone else starts and stops, such as `http://127.0.0.1:9200`.
    /// Default: absent, and the hive's run file tells.
    pub local_hive_url: Option<String>,
    /// Executable of the hive to start. Default: absent, which means `rbee-hive` beside this program.
    pub hive_path: Option<PathBuf>,
    /// Seconds between two reports of a hive, 1 to 300. Default 30.
    pub heartbeat_interval_seconds: u64,
    /// Seconds a request has that asks for no time of its own, 1 to `request_timeout_max_seconds`. Default 600.
    pub request_timeout_seconds: u64,
    /// Most seconds a request may ask for, 1 to 86400. Default 3600.
    pub request_timeout_max_seconds: u64,
    /// Requests tried again before their first byte, to a hundred of the last ten seconds, 0 to 100; ten in ten seconds
    /// are allowed in any case. Default 20.
    pub retry_budget_percent: u64,
    /// Most seconds that a stream whose worker ended waits for another one to go on, 0 to 3600; 0 ends it with an error
    /// event. Default 120.
    pub continuation_wait_seconds: u64,
    /// Seconds that running requests get to finish when the queen stops, 0 to 600. Default 10.
    pub drain_seconds: u64,
    /// Seconds within which the queen has ended with her hive and its workers, 1 to 600. Default 30.
    pub shutdown_timeout_seconds: u64,
    /// Threads that serve requests, 1 to 64. Default 2.
    pub threads: usize,
    /// Who is let in, and where the tokens are.
    pub auth: AuthSettings,
    /// Whether TLS is spoken, and with which certificate.
    pub tls: TlsSettings,
    /// Requests that wait for a worker.
    pub queue: QueueSettings,
    /// Signed tokens of an identity provider. Default: absent, and none are believed.
    pub jwt: Option<JwtSettings>,
    /// Who did what, written down.
    pub audit: AuditSettings,
    /// What is logged; also `--log-format` and `RBEE_LOG_FORMAT`, `--log-level` and `RBEE_LOG`.
    pub log: LogSettings,
}

/// The keys under `[queue]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueSettings {
    /// Most requests that wait for one model, 1 to 65536. Default 512.
    pub requests_max: usize,
    /// Most MiB of request bodies that are held for requests that wait and run, 4 to 65536. Default 256.
    pub bytes_max_mib: u64,
    /// Longest wait in seconds, by measured pace, that a request is let into, 1 to 86400; its own time bounds it, too. Default 600.
    pub wait_max_seconds: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bind: (Ipv4Addr::LOCALHOST, PORT).into(),
            allowed_hosts: Vec::new(),
            local_hive: true,
            local_hive_url: None,
            hive_path: None,
            heartbeat_interval_seconds: 30,
            request_timeout_seconds: DEADLINE_DEFAULT.as_secs(),
            request_timeout_max_seconds: DEADLINE_CAP.as_secs(),
            retry_budget_percent: 20,
            continuation_wait_seconds: 120,
            drain_seconds: 10,
            shutdown_timeout_seconds: 30,
            threads: 2,
            auth: AuthSettings::default(),
            tls: TlsSettings::default(),
            queue: QueueSettings::default(),
            jwt: None,
            audit: AuditSettings::default(),
            log: LogSettings::default(),
        }
    }
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self { requests_max: 512, bytes_max_mib: 256, wait_max_seconds: 600 }
    }
}

impl QueueSettings {
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            requests_max: self.requests_max,
            bytes_max: self.bytes_max_mib.saturating_mul(1024 * 1024),
            wait_max: Duration::from_secs(self.wait_max_seconds),
        }
    }
}

/// One queen for a cluster: takes the requests of clients, knows every machine
/// and worker, and forwards each request to the one that can run it.
#[derive(Debug, Parser)]
#[command(name = "queen-rbee", version)]
struct Arguments {
    /// Home directory of rbee [default: ~/.rbee]
    #[arg(long, env = "RBEE_HOME", value_name = "DIRECTORY")]
    home: Option<PathBuf>,
    /// Config file [default: ~/.config/rbee/queen-rbee.toml, then /etc/rbee/queen-rbee.toml]
    #[arg(long, env = "RBEE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, env = "RBEE_QUEEN_BIND", value_name = "ADDRESS:PORT")]
    bind: Option<SocketAddr>,
    /// Form of log lines [default: human]
    #[arg(long, env = "RBEE_LOG_FORMAT", value_parser = PossibleValuesParser::new(["human", "json"]).map(|text| log_format(&text)))]
    log_format: Option<LogFormat>,
    /// Log level, or tracing directives such as info,queen_rbee=debug [default: info]
    #[arg(long, env = "RBEE_LOG", value_name = "LEVEL")]
    log_level: Option<String>,
    #[command(flatten)]
    auth: AuthArguments,
    #[command(flatten)]
    tls: TlsArguments,
    /// Print the table of routes and exit
    #[arg(long)]
    print_routes: bool,
    /// Print the OpenAPI document of the routes and exit
    #[arg(long)]
    print_openapi: bool,
    /// Check the configuration and exit
    #[arg(long)]
    validate_config: bool,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Serve until told to stop.
    Serve(Box<Config>),
    /// Print the table of routes.
    PrintRoutes,
    /// Print the OpenAPI document.
    PrintOpenapi,
    /// Say whether the configuration is valid.
    ValidateConfig(Box<Config>),
}

impl Command {
    /// Reads flags, environment and config file. A wrong command line ends the
    /// process with exit code 2, as does `--help` with 0.
    ///
    /// # Errors
    /// Tells what is wrong with the configuration.
    pub fn from_process() -> Result<Self, QueenError> {
        let arguments = Arguments::parse();
        if arguments.print_routes {
            return Ok(Self::PrintRoutes);
        }
        if arguments.print_openapi {
            return Ok(Self::PrintOpenapi);
        }
        let validate_only = arguments.validate_config;
        let program = std::env::current_exe().ok();
        let config = assemble(arguments, std::env::home_dir().as_deref(), program.as_deref())?;
        let config = Box::new(config);
        Ok(if validate_only { Self::ValidateConfig(config) } else { Self::Serve(config) })
    }
}

fn log_format(text: &str) -> LogFormat {
    if text == "json" { LogFormat::Json } else { LogFormat::Human }
}

fn assemble(
    arguments: Arguments,
    user_home: Option<&Path>,
    program: Option<&Path>,
) -> Result<Config, QueenError> {
    let explicit = arguments.config.as_deref();
    let search = ConfigSearch { program: Daemon::Queen.program(), explicit, user_home };
    let Loaded { config: mut settings, .. } = load_toml::<Settings>(search)?;
    settings.bind = arguments.bind.unwrap_or(settings.bind);
    settings.log.format = arguments.log_format.unwrap_or(settings.log.format);
    settings.log.level = arguments.log_level.unwrap_or(settings.log.level);
    settings.auth.replace(arguments.auth);
    arguments.tls.replace(&mut settings.tls);
    settings.validate()?;
    let home = match arguments.home {
        Some(home) => home,
        None => Home::default_path(user_home)?,
    };
    let beside = program.map(|program| program.with_file_name(HIVE_PROGRAM));
    let hive_program = settings.hive_path.clone().or(beside).unwrap_or_else(|| HIVE_PROGRAM.into());
    Ok(Config { home, hive_program, settings })
}

impl Settings {
    /// How often a hive reports.
    #[must_use]
    pub fn heartbeat_interval(&self) -> Duration {
        Duration::from_secs(self.heartbeat_interval_seconds)
    }

    /// The time within which the queen has ended with her hive and its workers.
    #[must_use]
    pub fn shutdown_timeout(&self) -> Duration {
        Duration::from_secs(self.shutdown_timeout_seconds)
    }

    /// The time that running requests get to finish when the queen stops.
    #[must_use]
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }

    /// Returns the names by which the queen may be called.
    ///
    /// # Errors
    /// Names the one that is not a name.
    pub(crate) fn allowed_hosts(&self) -> Result<AllowedHosts, ConfigError> {
        AllowedHosts::new(&self.allowed_hosts).map_err(|error| ConfigError::Value {
            key: "allowed_hosts",
            reason: format!("cannot be used: {error}"),
        })
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let ranges = [
            ("heartbeat_interval_seconds", self.heartbeat_interval_seconds, 1, 300),
            ("request_timeout_max_seconds", self.request_timeout_max_seconds, 1, 86_400),
            (
                "request_timeout_seconds",
                self.request_timeout_seconds,
                1,
                self.request_timeout_max_seconds,
            ),
            ("retry_budget_percent", self.retry_budget_percent, 0, 100),
            ("continuation_wait_seconds", self.continuation_wait_seconds, 0, 3600),
            ("drain_seconds", self.drain_seconds, 0, 600),
            ("shutdown_timeout_seconds", self.shutdown_timeout_seconds, 1, 600),
            ("threads", self.threads.try_into().unwrap_or(u64::MAX), 1, 64),
            (
                "queue.requests_max",
                self.queue.requests_max.try_into().unwrap_or(u64::MAX),
                1,
                65_536,
            ),
            ("queue.bytes_max_mib", self.queue.bytes_max_mib, 4, 65_536),
            ("queue.wait_max_seconds", self.queue.wait_max_seconds, 1, 86_400),
            (
                "log.max_mib",
                self.log.max_mib,
                *LogSettings::MAX_MIB.start(),
                *LogSettings::MAX_MIB.end(),
            ),
        ];
        for (key, value, min, max) in ranges {
            if value < min || value > max {
                let reason = format!("is {value} and must be between {min} and {max}");
                return Err(ConfigError::Value { key, reason });
            }
        }
        self.audit.check()?;
        self.tls.check()?;
        check_log_filter(&self.log.level).map_err(|error| {
            let reason = format!("(or RBEE_LOG, or --log-level) cannot be used: {error}");
            ConfigError::Value { key: "log.level", reason }
        })?;
        self.allowed_hosts()?;
        self.auth.validate()?;
        self.jwt.as_ref().map_or(Ok(()), JwtSettings::validate)?;
        match self.local_hive_url.as_deref().map(is_base_url) {
            Some(false) => {
                let reason = "must be like http://127.0.0.1:9200".to_owned();
                Err(ConfigError::Value { key: "local_hive_url", reason })
            }
            Some(true) | None => Ok(()),
        }
    }
}

/// `http://host:port` or `https://host:port`, without a path: every call appends its own.
fn is_base_url(text: &str) -> bool {
    text.parse::<http::Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.authority().is_some_and(|authority| authority.port().is_some())
            && uri.path() == "/"
            && uri.query().is_none()
            && !text.ends_with('/')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(list: &[&str]) -> Arguments {
        Arguments::try_parse_from(["queen-rbee", "--home", "/h"].iter().chain(list)).unwrap()
    }

    fn with_file(text: &str, flags: &[&str]) -> Result<Config, QueenError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("queen.toml");
        std::fs::write(&path, text).unwrap();
        let mut arguments = arguments(flags);
        arguments.config = Some(path);
        assemble(arguments, None, Some(Path::new("/opt/rbee/queen-rbee")))
    }

    #[test]
    fn without_a_file_the_documented_defaults_hold() {
        let user_home = tempfile::tempdir().unwrap();
        let program = Some(Path::new("/opt/rbee/queen-rbee"));
        let config = assemble(arguments(&[]), Some(user_home.path()), program).unwrap();
        assert_eq!(config.settings, Settings::default());
        assert_eq!(config.settings.bind.to_string(), "127.0.0.1:8080");
        assert_eq!(config.settings.heartbeat_interval(), Duration::from_secs(30));
        assert_eq!(config.hive_program, Path::new("/opt/rbee/rbee-hive"));
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let file = "bind = '127.0.0.1:1'\nhive_path = '/x/hive'\n[log]\nlevel = 'debug'\nformat = 'json'\n";
        let config = with_file(file, &["--bind", "127.0.0.1:2", "--log-format", "human"]).unwrap();
        assert_eq!(config.settings.bind.port(), 2);
        assert_eq!(config.settings.log.format, LogFormat::Human);
        assert_eq!(config.settings.log.level, "debug");
        assert_eq!(config.hive_program, Path::new("/x/hive"));
    }

    #[test]
    fn values_out_of_range_are_refused_with_the_key() {
        for (file, key) in [
            ("heartbeat_interval_seconds = 0", "heartbeat_interval_seconds"),
            ("heartbeat_interval_seconds = 301", "heartbeat_interval_seconds"),
            ("request_timeout_seconds = 3601", "request_timeout_seconds"),
            ("request_timeout_max_seconds = 86401", "request_timeout_max_seconds"),
            ("retry_budget_percent = 101", "retry_budget_percent"),
            ("continuation_wait_seconds = 3601", "continuation_wait_seconds"),
            ("drain_seconds = 601", "drain_seconds"),
            ("shutdown_timeout_seconds = 0", "shutdown_timeout_seconds"),
            ("threads = 0", "threads"),
            ("[queue]\nrequests_max = 0", "queue.requests_max"),
            ("[queue]\nbytes_max_mib = 3", "queue.bytes_max_mib"),
            ("[queue]\nwait_max_seconds = 86401", "queue.wait_max_seconds"),
            ("local_hive_url = 'ftp://127.0.0.1:9200'", "local_hive_url"),
            ("local_hive_url = 'http://127.0.0.1:9200/'", "local_hive_url"),
            ("local_hive_url = 'http://127.0.0.1'", "local_hive_url"),
            ("local_hive_url = '127.0.0.1:9200'", "local_hive_url"),
            ("[log]\nlevel = 'inof'", "log.level"),
            ("[jwt]\nissuer = 'i'", "audience"),
            ("[jwt]\nissuer = 'i'\naudience = 'a'", "jwt.jwks_file"),
            (
                "[jwt]\nissuer = 'i'\naudience = 'a'\njwks_url = 'http://id.example/k'",
                "jwt.jwks_url",
            ),
            (
                "[jwt]\nissuer = 'i'\naudience = 'a'\njwks_file = '/k'\nleeway_seconds = 301",
                "jwt.leeway_seconds",
            ),
            (
                "[jwt]\nissuer = 'i'\naudience = 'a'\njwks_file = '/k'\nalgorithms = ['HS256']",
                "jwt.algorithms",
            ),
            ("allowed_hosts = ['http://rbee.lan']", "allowed_hosts"),
            ("[auth]\ntoken_overlap_seconds = 86401", "auth.token_overlap_seconds"),
            ("[log]\nmax_mib = 0", "log.max_mib"),
            ("[auth]\nclient_token_file = 'relative'", "auth.client_token_file"),
            ("[auth]\nhive_token_credential = '../x'", "auth.hive_token_credential"),
            (
                "[auth]\nclient_token_file = '/a'\nclient_token_credential = 'b'",
                "auth.client_token_credential",
            ),
            ("[auth]\nmode = 'open'", "mode"),
            ("[tls]\nmode = 'on'", "mode"),
            ("[tls]\nmode = 'files'", "tls.cert_file"),
            ("[tls]\nmode = 'files'\ncert_file = '/c'", "tls.key_file"),
            ("[tls]\nmode = 'files'\ncert_file = 'c'\nkey_file = '/k'", "tls.cert_file"),
            ("[tls]\nmode = 'local'\nkey_file = '/k'", "tls.key_file"),
            ("[tls]\nca_file = 'ca.pem'", "tls.ca_file"),
            ("[tls]\nmode = 'local'\nnames = ['https://queen.lan']", "tls.names"),
            ("[audit]\nsegment_mib = 0", "audit.segment_mib"),
            ("[audit]\nmode = 'on'", "audit.mode"),
        ] {
            let error = with_file(file, &[]).unwrap_err();
            assert!(error.to_string().contains(key), "{file}: {error}");
            assert_eq!(error.exit_status(), rbee_home::ExitStatus::Config);
        }
        assert!(with_file("local_hive_url = 'http://127.0.0.1:9200'", &[]).is_ok());
        assert!(with_file("local_hive_url = 'https://127.0.0.1:9200'", &[]).is_ok());
    }

    #[test]
    fn unknown_keys_are_refused() {
        let error = with_file("heartbeat_interval = 3", &[]).unwrap_err();
        assert!(error.to_string().contains("heartbeat_interval"), "{error}");
    }
}
