//! The configuration: every setting with its unit, default and range, and the order in which flag, environment and
//! file are asked. The only reader of the environment; never acts on a setting.

mod args;
mod auth;
mod check;
mod restart;
mod tls;
mod worker;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use audit_logging::AuditSettings;
use auth_min::Transport;
use clap::Parser;
use input_validation::NodeName;
use rbee_home::{ConfigError, ConfigSearch, Daemon, Home, load_toml};
use rbee_http::{AllowedHosts, LogFormat, LogSettings};
use rbee_tls::TlsSettings;
use serde::Deserialize;

use crate::error::HiveError;
use crate::liveness::LivenessLimits;
use crate::pairing::Pairing;
use crate::reservations::KeptFree;
use args::Args;
use auth::AuthConfig;
use restart::RestartConfig;
use worker::WorkerConfig;
pub(crate) use worker::{KvLayout, WorkerMemoryLimit};

/// A mebibyte is 2 to this many bytes.
const MIB_SHIFT: u32 = 20;

/// What a worker inherits of the hive's environment: what finding programs and libraries, and choosing devices, needs.
const WORKER_ENVIRONMENT: [&str; 9] = [
    "PATH",
    "HOME",
    "TMPDIR",
    "LANG",
    "TZ",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "GGML_VK_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
];

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Print the route table and end.
    PrintRoutes,
    /// Print the OpenAPI document and end.
    PrintOpenapi,
    /// Say that the configuration is good, which it is, and end.
    ConfigIsValid,
    /// Become a machine of a cluster with the code on standard input, and end.
    Pair(Box<Config>),
    /// Run.
    Run(Box<Config>),
}

/// The settings of a hive. The file has the same names; what it leaves out has its default.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `$RBEE_HOME`, by `--home` or `RBEE_HOME` alone. Default: `~/.rbee`.
    #[serde(skip)]
    pub(crate) home: PathBuf,
    /// Started by a queen, which also stops it; by `--managed` alone.
    #[serde(skip)]
    pub(crate) managed: bool,
    /// By which URL the queen shall call this hive; by `--own-url` alone, for pairing.
    #[serde(skip)]
    pub(crate) own_url: Option<String>,
    /// What was kept of the pairing, on a machine that was paired.
    #[serde(skip)]
    pub(crate) pairing: Option<Arc<Pairing>>,
    /// What workers inherit of the environment.
    #[serde(skip)]
    pub(crate) worker_environment: Vec<(OsString, OsString)>,
    /// Address to listen on. Default: `127.0.0.1:9200`. Port 0: any free one.
    pub(crate) bind: SocketAddr,
    /// Further host names and addresses, without port, by which the hive may be called. Default: none, which means
    /// `localhost` and loopback addresses on connections over the loopback, and any name on others.
    pub(crate) allowed_hosts: Vec<String>,
    /// The machine's name in the cluster. Default: `local`.
    pub(crate) name: NodeName,
    /// The queen's base URL, such as `http://127.0.0.1:8080`. Absent: that of the queen that runs on the same home.
    pub(crate) queen_url: Option<String>,
    /// Workers that may run at once. Default: 8. Range: 1 to 64.
    pub(crate) workers_max: u32,
    /// First port tried for a worker; the next free one is taken. Default: 8081. 0: any free one.
    pub(crate) worker_port_first: u16,
    /// The worker program. Absent: `llm-worker-rbee` beside this program.
    pub(crate) worker_path: Option<PathBuf>,
    /// Seconds without a request after which a worker is stopped. Default: 300. Range: 0 to 604800. 0: never.
    pub(crate) idle_stop_seconds: u64,
    /// Whether idle workers are stopped when a request asks for another model and there is no room for it. Default: true.
    pub(crate) stop_idle_for_room: bool,
    /// Seconds a worker may take to load its model, and 1 more for each 64 MiB of it. Default: 300. Range: 1 to 86400.
    pub(crate) load_timeout_seconds: u64,
    /// Seconds after which a load is given up that no longer comes on, and 1 more for each 64 MiB. Default: 30. Range: 1 to 86400.
    pub(crate) load_stall_seconds: u64,
    /// Seconds that one step of a worker's engine may take before the hive kills the worker, which itself gives up after ten
    /// elevenths of them. Default: 330, and so 300. Range: 1 to 86400.
    pub(crate) hang_timeout_seconds: u64,
    /// Seconds between two contacts, worker to hive and hive to queen. Default: 30. Range: 1 to 3600.
    pub(crate) heartbeat_interval_seconds: u64,
    /// Seconds a worker has to finish after each of request and signal to stop. Default: 10. Range: 1 to 13, so that
    /// a hive ends within 30 s.
    pub(crate) stop_grace_seconds: u64,
    /// Seconds within which a hive has ended that is told to; workers that are left shortly before are killed.
    /// Default: 30. Range: 1 to 600.
    pub(crate) shutdown_timeout_seconds: u64,
    /// Mebibytes of main memory that no worker is granted. Default: 256. Range: 0 to 16777216.
    pub(crate) memory_min_free_mib: u64,
    /// Mebibytes of the GPUs' memory that no worker is granted. Default: 256. Range: 0 to 16777216.
    pub(crate) vram_min_free_mib: u64,
    /// Mebibytes that have to be free on the disk of the models for a worker to start. Default: 64. Range: 0 to 16777216.
    pub(crate) disk_min_free_mib: u64,
    /// Files that have to be possible there for a worker to start. Default: 64. Range: 0 to 4294967295.
    pub(crate) inodes_min_free: u64,
    /// Directories from which `file:` models may be imported. Absent: all of them (`["/"]`) on a hive that only this
    /// machine can reach, none on any other.
    pub(crate) import_roots: Option<Vec<PathBuf>>,
    /// Where the token of queen and hive is.
    pub(crate) auth: AuthConfig,
    /// Whether TLS is spoken, and with which certificate.
    pub(crate) tls: TlsSettings,
    /// How workers are started.
    pub(crate) worker: WorkerConfig,
    /// When failed workers are started again.
    pub(crate) restart: RestartConfig,
    /// Who did what, written down by hive and workers alike.
    pub(crate) audit: AuditSettings,
    /// What is logged, by hive and workers alike.
    pub(crate) log: LogSettings,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            home: PathBuf::new(),
            managed: false,
            own_url: None,
            pairing: None,
            worker_environment: Vec::new(),
            bind: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9200),
            allowed_hosts: Vec::new(),
            name: local_name(),
            queen_url: None,
            workers_max: 8,
            worker_port_first: 8081,
            worker_path: None,
            idle_stop_seconds: 300,
            stop_idle_for_room: true,
            load_timeout_seconds: 300,
            load_stall_seconds: 30,
            hang_timeout_seconds: 330,
            heartbeat_interval_seconds: 30,
            stop_grace_seconds: 10,
            shutdown_timeout_seconds: 30,
            memory_min_free_mib: 256,
            vram_min_free_mib: 256,
            disk_min_free_mib: 64,
            inodes_min_free: 64,
            import_roots: None,
            auth: AuthConfig::default(),
            tls: TlsSettings::default(),
            worker: WorkerConfig::default(),
            restart: RestartConfig::default(),
            audit: AuditSettings::default(),
            log: LogSettings::default(),
        }
    }
}

#[expect(clippy::expect_used, reason = "a constant that is a name, held by a test")]
fn local_name() -> NodeName {
    "local".parse().expect("`local` is a machine name")
}

impl Config {
    /// Reads command line, environment and file. Ends the process for `--help`, `--version` and a wrong command line.
    ///
    /// # Errors
    /// [`HiveError`] when the configuration cannot be used.
    #[expect(clippy::disallowed_methods, reason = "this file is the reader of the environment")]
    pub fn from_process() -> Result<Invocation, HiveError> {
        let args = Args::parse();
        if args.print_routes {
            return Ok(Invocation::PrintRoutes);
        }
        if args.print_openapi {
            return Ok(Invocation::PrintOpenapi);
        }
        let (validate_only, pair) = (args.validate_config, args.pair);
        let mut config = Self::resolve(args, std::env::home_dir().as_deref())?;
        if validate_only {
            config.check_files()?;
            return Ok(Invocation::ConfigIsValid);
        }
        if pair {
            return Ok(Invocation::Pair(Box::new(config)));
        }
        let inherited = |name: &&str| std::env::var_os(name).map(|value| (name.into(), value));
        config.worker_environment = WORKER_ENVIRONMENT.iter().filter_map(inherited).collect();
        if config.worker_path.is_none() {
            let own = std::env::current_exe().map_err(HiveError::OwnPath)?;
            config.worker_path = Some(own.with_file_name("llm-worker-rbee"));
        }
        Ok(Invocation::Run(Box::new(config)))
    }

    fn resolve(args: Args, user_home: Option<&Path>) -> Result<Self, HiveError> {
        let program = Daemon::Hive.program();
        let explicit = args.config.as_deref();
        let mut config: Self = load_toml(ConfigSearch { program, explicit, user_home })?.config;
        config.home = match args.home {
            Some(home) => home,
            None => Home::default_path(user_home)?,
        };
        config.managed = args.managed;
        config.own_url = args.own_url;
        replace(&mut config.bind, args.bind);
        replace(&mut config.name, args.name);
        replace(&mut config.worker_port_first, args.worker_port_first);
        replace(&mut config.worker.engine, args.worker_engine);
        replace(&mut config.idle_stop_seconds, args.idle_stop_seconds);
        replace(&mut config.log.format, args.log_format);
        replace(&mut config.log.level, args.log_level);
        config.queen_url = args.queen_url.or(config.queen_url);
        config.worker_path = args.worker_path.or(config.worker_path);
        config.auth.replace(args.auth);
        args.tls.replace(&mut config.tls);
        config.check()?;
        Ok(config)
    }

    /// Returns the configuration of the machine that this home was paired as: what the queen has given wins over file and
    /// flags. A hive that a queen has started is hers, and not a machine of another one.
    ///
    /// # Errors
    /// [`HiveError::Pairing`].
    pub(crate) fn paired(mut self, home: &Home) -> Result<Self, HiveError> {
        if self.managed {
            return Ok(self);
        }
        if let Some(pairing) = Pairing::load(home)? {
            self.name = pairing.name.clone();
            self.queen_url = Some(pairing.queen_url.clone());
            self.pairing = Some(Arc::new(pairing));
        }
        Ok(self)
    }

    /// Returns what the hive speaks.
    pub(crate) fn transport(&self) -> Transport {
        if self.pairing.is_some() { Transport::Tls } else { self.tls.transport() }
    }

    /// Returns the names by which the hive may be called.
    ///
    /// # Errors
    /// Names the one that is not a name.
    pub(crate) fn allowed_hosts(&self) -> Result<AllowedHosts, ConfigError> {
        AllowedHosts::new(&self.allowed_hosts).map_err(|error| ConfigError::Value {
            key: "allowed_hosts",
            reason: format!("cannot be used: {error}"),
        })
    }

    /// Returns the time without a request after which a worker is stopped; `None` is never.
    pub(crate) fn idle_stop(&self) -> Option<Duration> {
        (self.idle_stop_seconds > 0).then(|| Duration::from_secs(self.idle_stop_seconds))
    }

    /// Returns the time a worker may take to load.
    pub(crate) const fn load_timeout(&self) -> Duration {
        Duration::from_secs(self.load_timeout_seconds)
    }

    /// Returns how long workers may take for what they do.
    pub(crate) const fn liveness(&self) -> LivenessLimits {
        LivenessLimits {
            hang: Duration::from_secs(self.hang_timeout_seconds),
            load_stall: Duration::from_secs(self.load_stall_seconds),
        }
    }

    /// Returns the seconds after which a worker itself gives up on a step: somewhat sooner than it would be killed, so that one
    /// that still can tells its clients and ends in order. At least 1, the least that a worker takes.
    pub(crate) fn stall_seconds(&self) -> u64 {
        (self.hang_timeout_seconds * 10 / 11).max(1)
    }

    /// Returns the time between two contacts.
    pub(crate) const fn heartbeat_interval(&self) -> Duration {
        Duration::from_secs(self.heartbeat_interval_seconds)
    }

    /// Returns the time a worker has to finish after each of request and signal to stop.
    pub(crate) const fn stop_grace(&self) -> Duration {
        Duration::from_secs(self.stop_grace_seconds)
    }

    /// Returns the time within which a hive has ended that is told to.
    pub(crate) const fn shutdown_timeout(&self) -> Duration {
        Duration::from_secs(self.shutdown_timeout_seconds)
    }

    /// Returns what no worker is granted.
    pub(crate) const fn kept_free(&self) -> KeptFree {
        KeptFree {
            memory_bytes: self.memory_min_free_mib << MIB_SHIFT,
            vram_bytes: self.vram_min_free_mib << MIB_SHIFT,
            disk_bytes: self.disk_min_free_mib << MIB_SHIFT,
            inodes: self.inodes_min_free,
        }
    }

    /// Returns the whole environment of a worker.
    pub(crate) fn environment_of_workers(&self) -> Vec<(OsString, OsString)> {
        let format = match self.log.format {
            LogFormat::Human => "human",
            LogFormat::Json => "json",
        };
        let threads = self.worker.omp_num_threads.map(|count| count.to_string());
        let spin = self.worker.gomp_spincount.to_string();
        let settings = [
            ("RBEE_LOG", Some(self.log.level.clone())),
            ("RBEE_LOG_FORMAT", Some(format.to_owned())),
            ("OMP_NUM_THREADS", threads),
            ("GOMP_SPINCOUNT", Some(spin)),
        ];
        let set =
            settings.into_iter().filter_map(|(name, value)| Some((name.into(), value?.into())));
        self.worker_environment.iter().cloned().chain(set).collect()
    }

    /// Returns the directories from which models may be imported.
    pub(crate) fn import_roots(&self) -> Vec<PathBuf> {
        match &self.import_roots {
            Some(roots) => roots.clone(),
            None if auth_min::is_loopback(self.bind.ip()) => vec![PathBuf::from("/")],
            None => Vec::new(),
        }
    }
}

fn replace<T>(setting: &mut T, given: Option<T>) {
    if let Some(value) = given {
        *setting = value;
    }
}

#[cfg(test)]
mod tests;
