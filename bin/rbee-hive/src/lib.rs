//! The hive: one per machine. Keeps models on disk, decides whether a worker fits, starts, watches and stops workers,
//! and forwards requests to them. Never chooses between machines, and never opens a model on a device.

mod admission;
mod cgroup;
mod clock;
mod config;
mod ending;
mod error;
mod forward;
mod gpus;
mod hive;
mod http;
mod idle;
mod ledger;
mod liveness;
mod machine;
mod models;
mod platform;
mod queen_contact;
mod registry;
mod reservations;
mod restart;
mod shutdown;
mod supervisor;
mod tasks;
mod waiting;
mod watchdog;
mod worker_logs;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use auth_min::TokenDigest;
use rbee_api::error::ErrorCode;
use rbee_api::queen::RunFile;
use rbee_home::{Daemon, Home, LockGuard};
use rbee_http::{Authenticator, Metrics, Principal, Readiness, Server, bind};
use secrets_management::{Secret, load_or_generate};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{Config, Invocation};
pub use error::HiveError;
pub use shutdown::EndSignals;

use admission::CacheRules;
use cgroup::Cgroups;
use config::KvLayout;
use ending::Running;
use hive::Hive;
use ledger::Ledger;
use machine::ThisMachine;
use models::Models;
use registry::Registry;
use reservations::Reservations;
use restart::Moment;
use shutdown::Shutdown;
use supervisor::{Launcher, Rules, Supervisor};

/// The home directory, held against a second hive.
#[derive(Debug)]
pub struct HeldHome {
    home: Home,
    lock: LockGuard,
}

impl HeldHome {
    /// Opens the home directory of `config` and takes the hive's lock on it.
    ///
    /// # Errors
    /// [`HiveError::Home`].
    pub fn take(config: &Config) -> Result<Self, HiveError> {
        let home = Home::open(&config.home)?;
        let lock = home.lock(Daemon::Hive)?;
        Ok(Self { home, lock })
    }
}

/// Starts logging as configured.
///
/// # Errors
/// [`HiveError::Logs`].
pub fn init_logs(config: &Config) -> Result<(), HiveError> {
    Ok(rbee_http::init_logs(config.log.format, &config.log.level)?)
}

/// Returns the route table as text, one route a line.
#[must_use]
pub fn route_listing() -> String {
    http::routes(Readiness::new(|| Ok(()))).listing()
}

/// Binds the configured address.
///
/// # Errors
/// [`HiveError::Bind`].
pub async fn listen(config: &Config) -> Result<TcpListener, HiveError> {
    bind(config.bind).await.map_err(|source| HiveError::Bind { address: config.bind, source })
}

/// Runs a hive until it is told to end, by signal or by request, and all its workers are gone.
///
/// # Errors
/// [`HiveError`], before it has begun to serve.
pub async fn run(
    config: Config,
    held: HeldHome,
    listener: TcpListener,
    signals: EndSignals,
) -> Result<(), HiveError> {
    let HeldHome { home, lock } = held;
    let address = listener.local_addr().map_err(HiveError::Setup)?;
    let token = Arc::new(load_or_generate(&home.hive_token())?);
    auth_min::check_bind(address, token.expose().len())?;
    if !auth_min::is_loopback(address.ip()) {
        tracing::warn!(%address, "traffic on this address can be read by others on the network; put TLS or a VPN before it");
    }
    let url = url_for_neighbours(address);
    let (ledger, left) = Ledger::open(&home.workers_db())?;
    let (tally, failing) = (ledger.tally()?, ledger.failing()?);
    let hive = assemble(config, home, &url, ledger)?;
    ending::show_tally(tally);
    hive.registry.restore(failing, Moment::now());
    hive.supervisor.adopt(left).await;
    let living =
        hive.registry.snapshot().into_iter().map(|worker| hive.home.worker_log(&worker.id));
    if let Err(error) = worker_logs::remove_old(&hive.home.logs_dir(), &living.collect::<Vec<_>>())
    {
        tracing::warn!(error = %error, "cannot remove old worker logs");
    }
    let run_file = RunFile { url: url.clone(), pid: std::process::id() };
    let run_file = hive.home.write_run_file(Daemon::Hive, &lock, &run_file)?;

    let registry = Arc::clone(&hive.registry);
    let readiness = Readiness::new(move || match registry.is_draining() {
        true => Err(ErrorCode::Draining),
        false => Ok(()),
    });
    let router = http::routes(readiness).build(
        Arc::clone(&hive),
        authenticator(&token, Arc::clone(&hive.registry)),
        hive.metrics.clone(),
    );
    let stop_serving = CancellationToken::new();
    let server =
        tokio::spawn(Server::new(listener, router, ending::LAST_LIMIT).run(stop_serving.clone()));
    let stop_tasks = CancellationToken::new();
    tasks::start(&hive, token, signals, &stop_tasks);
    tracing::info!(url, name = %hive.config.name, managed = hive.config.managed, "hive serves");

    hive.shutdown.stop.cancelled().await;
    ending::end(&hive, Running { server, stop_serving, stop_tasks }).await;
    drop(run_file);
    Ok(())
}

fn assemble(config: Config, home: Home, url: &str, ledger: Ledger) -> Result<Arc<Hive>, HiveError> {
    let key = load_or_generate(&home.worker_key())?;
    let metrics = Metrics::install("hive")?;
    let models = Arc::new(Models::open(&home, config.import_roots())?);
    let registry = Arc::new(Registry::new(config.restart.rules(), config.heartbeat_interval()));
    let reservations = Arc::new(Reservations::new(
        Arc::clone(&registry),
        Box::new(ThisMachine::new(home.models_dir())),
        config.kept_free(),
        config.worker.needs_vram(),
    ));
    let rules = Rules {
        workers_max: config.workers_max,
        slots: config.worker.slots,
        context_tokens: config.worker.context_tokens,
        cache: CacheRules {
            type_k: config.worker.cache_type_k,
            type_v: config.worker.cache_type_v,
            unified: config.worker.kv_layout == Some(KvLayout::Unified),
            scores: config.worker.scores(),
            store_mib: config.worker.cache_ram_mib,
        },
        load_timeout: config.load_timeout(),
        stop_grace: config.stop_grace(),
    };
    let launcher = Launcher {
        program: config.worker_path.clone().unwrap_or_default(),
        engine: config.worker.engine,
        threads: config.worker.threads.unwrap_or_else(platform::physical_cores),
        port_first: config.worker_port_first,
        heartbeat_seconds: config.heartbeat_interval_seconds,
        stop_grace_seconds: config.stop_grace_seconds,
        worker_arguments: config.worker.arguments(&home.cache_dir()),
        hive_url: url.to_owned(),
        environment: config.environment_of_workers(),
        home: home.clone(),
        memory_limit: config.worker.memory_limit(),
        cgroups: Cgroups::open(),
    };
    let supervisor = Arc::new(Supervisor::new(
        Arc::clone(&registry),
        Arc::clone(&reservations),
        Arc::clone(&models),
        launcher,
        rules,
        ledger,
        key,
    ));
    Ok(Arc::new(Hive {
        shutdown: Shutdown::new(config.shutdown_timeout()),
        config,
        home,
        registry,
        reservations,
        models,
        supervisor,
        metrics,
        tasks: TaskTracker::new(),
        started: Instant::now(),
        epoch: clock::wall_clock_micros(),
    }))
}

/// Knows the queen by the shared token, and each live worker by its own.
fn authenticator(token: &Secret, registry: Arc<Registry>) -> Authenticator {
    let peer = TokenDigest::of(token.expose());
    Arc::new(move |shown| {
        let digest = shown.digest();
        let worker = registry.caller(&digest).map(Principal::Worker);
        if peer.matches(&digest) { Some(Principal::Peer) } else { worker }
    })
}

/// Returns the URL at which programs of this machine reach a listener.
fn url_for_neighbours(address: SocketAddr) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_told_an_address_that_can_be_called() {
        for (bound, url) in [
            ("127.0.0.1:9200", "http://127.0.0.1:9200"),
            ("0.0.0.0:9200", "http://127.0.0.1:9200"),
            ("[::]:1", "http://[::1]:1"),
            ("192.168.1.5:9200", "http://192.168.1.5:9200"),
        ] {
            assert_eq!(url_for_neighbours(bound.parse().unwrap()), url);
        }
    }
}
