//! The hive: one per machine. Keeps models on disk, decides whether a worker fits, starts, watches and stops workers,
//! and forwards requests to them. Never chooses between machines, and never opens a model on a device.

mod admission;
mod cgroup;
mod checkpoints;
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
use std::time::Duration;

use audit_logging::{Auditor, Event, Kind, Options, Outcome, Signer, remove_old_logs};
use auth_min::TOKEN_LENGTH_MIN;
use rbee_api::audit::AuditMode;
use rbee_api::error::ErrorCode;
use rbee_api::openapi;
use rbee_api::queen::RunFile;
use rbee_home::{Daemon, Home, LockGuard};
use rbee_http::{
    Authenticator, Credential, Metrics, Principal, Readiness, Server, bind, inherited,
};
use secrets_management::load_or_generate;
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
use supervisor::{AuditOfWorkers, Launcher, Rules, Supervisor};

/// The program of workers, whose audit logs lie under this name.
const WORKER_PROGRAM: &str = "llm-worker-rbee";

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

/// Returns the OpenAPI document of the routes as JSON text.
#[must_use]
pub fn openapi_document() -> String {
    openapi::to_text(&openapi::hive())
}

/// Loads the token that queen and hive show each other.
///
/// # Errors
/// [`HiveError::Config`] and [`HiveError::Secret`].
pub fn load_token(config: &Config, held: &HeldHome) -> Result<Credential, HiveError> {
    let source = config.auth.hive_token(&held.home)?;
    Ok(Credential::load(source, config.auth.overlap())?)
}

/// Binds the configured address, or takes the listener that a service manager has bound. The policy is asked about the
/// address before there is a listener.
///
/// # Errors
/// [`HiveError::BindPolicy`] and [`HiveError::Bind`].
pub async fn listen(config: &Config, token: &Credential) -> Result<TcpListener, HiveError> {
    let refused = |source| HiveError::Bind { address: config.bind, source };
    let handed_over = inherited().map_err(refused)?;
    let address = match &handed_over {
        Some(listener) => listener.local_addr().map_err(refused)?,
        None => config.bind,
    };
    auth_min::check_bind(address, token.current().expose().len())?;
    if !auth_min::is_loopback(address.ip()) {
        tracing::warn!(%address, "traffic on this address can be read by others on the network; put TLS or a VPN before it");
    }
    match handed_over {
        Some(listener) => Ok(listener),
        None => bind(address).await.map_err(refused),
    }
}

/// Runs a hive until it is told to end, by signal or by request, and all its workers are gone.
///
/// # Errors
/// [`HiveError`], before it has begun to serve.
pub async fn run(
    config: Config,
    held: HeldHome,
    token: Credential,
    listener: TcpListener,
    signals: EndSignals,
) -> Result<(), HiveError> {
    let HeldHome { home, lock } = held;
    let address = listener.local_addr().map_err(HiveError::Setup)?;
    let length_min = if auth_min::is_loopback(address.ip()) { 0 } else { TOKEN_LENGTH_MIN };
    let allowed_hosts = config.allowed_hosts()?;
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
    remove_old_audit_logs(&hive);
    let run_file = RunFile { url: url.clone(), pid: std::process::id() };
    let run_file = hive.home.write_run_file(Daemon::Hive, &lock, &run_file)?;

    let registry = Arc::clone(&hive.registry);
    let readiness = Readiness::new(move || match registry.is_draining() {
        true => Err(ErrorCode::Draining),
        false => Ok(()),
    });
    let routes = http::routes(readiness).allow_hosts(allowed_hosts).audited(hive.audit.clone());
    let router = routes.build(
        Arc::clone(&hive),
        authenticator(token.clone(), Arc::clone(&hive.registry)),
        hive.metrics.clone(),
    );
    let stop_serving = CancellationToken::new();
    let server =
        tokio::spawn(Server::new(listener, router, ending::LAST_LIMIT).run(stop_serving.clone()));
    let stop_tasks = CancellationToken::new();
    tasks::start(&hive, (token, length_min), signals, &stop_tasks);
    tracing::info!(url, name = %hive.config.name, managed = hive.config.managed, "hive serves");

    hive.shutdown.stop.cancelled().await;
    ending::end(&hive, Running { server, stop_serving, stop_tasks }).await;
    hive.audit.close(Event::of_daemon(Kind::Stop, env!("CARGO_PKG_VERSION"))).await;
    drop(run_file);
    Ok(())
}

fn assemble(config: Config, home: Home, url: &str, ledger: Ledger) -> Result<Arc<Hive>, HiveError> {
    let key = load_or_generate(&home.worker_key())?;
    let metrics = Metrics::install("hive")?;
    let audit = open_audit(&config, &home)?;
    let auditor = audit.auditor.clone();
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
        audit,
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
        audit: auditor,
        tasks: TaskTracker::new(),
        started: Instant::now(),
        epoch: clock::wall_clock_micros(),
    }))
}

/// Opens the hive's audit log, with which it begins to be accountable.
fn open_audit(config: &Config, home: &Home) -> Result<AuditOfWorkers, HiveError> {
    let settings = config.audit;
    let directory = home.audit_dir().join(WORKER_PROGRAM);
    if settings.mode == AuditMode::Off {
        tracing::warn!("the audit log is off: nobody can tell later who did what");
        return Ok(AuditOfWorkers { auditor: Auditor::off(), settings, key: None, directory });
    }
    let root = load_or_generate(&home.audit_key())?;
    let program = Daemon::Hive.program();
    let service = format!("{program}/{}", config.name);
    let options = Options {
        directory: home.audit_dir().join(program),
        signer: Signer::new(&root.derive("audit", program)?, &service),
        service,
        settings,
    };
    let start = Event::of_daemon(Kind::Start, env!("CARGO_PKG_VERSION"));
    let auditor = Auditor::open(options, start)?;
    Ok(AuditOfWorkers { auditor, settings, key: Some(root), directory })
}

/// Removes the audit logs of workers that are long gone. That they are is written down.
fn remove_old_audit_logs(hive: &Hive) {
    if hive.config.audit.mode == AuditMode::Off {
        return;
    }
    let living = hive.registry.snapshot();
    let is_living = |name: &str| living.iter().any(|worker| worker.id.as_str() == name);
    let age = Duration::from_secs(hive.config.audit.retention_days * 24 * 60 * 60);
    match remove_old_logs(&hive.home.audit_dir().join(WORKER_PROGRAM), age, is_living) {
        Ok(0) => {}
        Ok(removed) => {
            let event = Event::new(Kind::Retention, Outcome::Success);
            hive.audit.note(event.with_number("worker_logs_removed", removed));
        }
        Err(error) => tracing::warn!(%error, "cannot remove the audit logs of old workers"),
    }
}

/// Knows the queen by the shared token, and each live worker by its own.
fn authenticator(token: Credential, registry: Arc<Registry>) -> Authenticator {
    Arc::new(move |shown| {
        let digest = shown.digest();
        let worker = registry.caller(&digest).map(Principal::Worker);
        if token.matches(&digest) { Some(Principal::Peer) } else { worker }
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
