//! The hive: one per machine. Keeps models on disk, decides whether a worker fits, starts, watches and stops workers,
//! and forwards requests to them. Never chooses between machines, and never opens a model on a device.

mod admission;
mod audit;
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
mod listening;
mod liveness;
mod machine;
mod models;
mod pairing;
mod platform;
mod queen_contact;
mod registry;
mod reservations;
mod restart;
mod shutdown;
mod supervisor;
mod tasks;
mod tls;
mod vital;
mod waiting;
mod watchdog;
mod worker_logs;

use std::sync::Arc;

use audit_logging::{Event, Kind};
use auth_min::TOKEN_LENGTH_MIN;
use axum::Router;
use rbee_api::error::ErrorCode;
use rbee_api::openapi;
use rbee_api::pairing::PairingCode;
use rbee_api::queen::RunFile;
use rbee_home::{Daemon, Home, LockGuard};
use rbee_http::{
    Authenticator, Credential, Metrics, Principal, Readiness, Server, bound_log, reached_from_here,
};
use rbee_tls::{Peer, Served};
use secrets_management::load_or_generate;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{Config, Invocation};
pub use error::HiveError;
pub use listening::listen;
pub use pairing::PairingError;
pub use shutdown::EndSignals;

use admission::CacheRules;
use cgroup::Cgroups;
use config::KvLayout;
use ending::Running;
use gpus::EverSeen;
use hive::Hive;
use ledger::Ledger;
use listening::is_plain_on_network;
use machine::ThisMachine;
use models::Models;
use pairing::Pairing;
use registry::Registry;
use reservations::Reservations;
use restart::Moment;
use shutdown::Shutdown;
use supervisor::{Launcher, Rules, Supervisor};
use tasks::Renewed;
use tls::Tls;

/// The home directory, held against a second hive.
#[derive(Debug)]
pub struct HeldHome {
    home: Home,
    lock: LockGuard,
}

impl HeldHome {
    /// Opens the home directory of `config` and takes the hive's lock on it. Its log is bounded from now on.
    ///
    /// # Errors
    /// [`HiveError::Home`].
    pub fn take(config: &Config) -> Result<Self, HiveError> {
        let home = Home::open(&config.home)?;
        let lock = home.lock(Daemon::Hive)?;
        bound_log(&home.daemon_log(Daemon::Hive), config.log.max_mib);
        Ok(Self { home, lock })
    }
}

/// Starts logging as configured.
///
/// # Errors
/// [`HiveError::Logs`].
pub fn init_logs(config: &Config) -> Result<(), HiveError> {
    Ok(rbee_http::init_logs(&config.log)?)
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

/// Returns the configuration of the machine that this home was paired as, if it was.
///
/// # Errors
/// [`HiveError::Pairing`].
pub fn paired(config: Config, held: &HeldHome) -> Result<Config, HiveError> {
    config.paired(&held.home)
}

/// Makes this machine one of a cluster, with the code that the queen gave out. Returns what to tell.
///
/// # Errors
/// [`HiveError::Pairing`]; nothing has changed on this machine then.
pub async fn pair(config: &Config, held: &HeldHome, code: &str) -> Result<String, HiveError> {
    let code = PairingCode(code.to_owned());
    let own_url = pairing::own_url(config.own_url.as_deref(), config.bind, &code)?;
    let pairing = Pairing::ask(&code, &own_url).await?;
    pairing.keep(&held.home)?;
    let Pairing { name, queen_url, .. } = &pairing;
    Ok(format!(
        "this machine is {name} in the cluster of {queen_url}; start its hive with `rbee-hive --bind {}`\n",
        config.bind
    ))
}

/// Loads the token that queen and hive show each other.
///
/// # Errors
/// [`HiveError::Config`] and [`HiveError::Secret`].
pub fn load_token(config: &Config, held: &HeldHome) -> Result<Credential, HiveError> {
    if let Some(pairing) = &config.pairing {
        return Ok(Arc::new(pairing.token()?).into());
    }
    let source = config.auth.hive_token(&held.home)?;
    Ok(Credential::load(source, config.auth.overlap())?)
}

/// Runs a hive until it is told to end, by signal or by request, and all its workers are gone.
///
/// # Errors
/// [`HiveError`], before it has begun to serve; later [`HiveError::Defect`] alone, which leaves the workers running.
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
    let tls = Tls::open(&config, &home, address).await?;
    let url = format!("{}://{}", tls.scheme(), reached_from_here(address));
    let for_workers = tls.for_workers.as_ref().map(TcpListener::local_addr).transpose();
    let worker_url =
        for_workers.map_err(HiveError::Setup)?.map(|address| format!("http://{address}"));
    let (ledger, left) = Ledger::open(&home.workers_db())?;
    let (tally, failing) = (ledger.tally()?, ledger.failing()?);
    let plain_http_on_network = is_plain_on_network(&config, address);
    let reached =
        Reached { plain_http_on_network, by_workers: worker_url.as_ref().unwrap_or(&url) };
    let hive = assemble(config, home, &reached, ledger)?;
    ending::show_tally(tally);
    hive.registry.restore(failing, Moment::now());
    hive.supervisor.adopt(left).await;
    hive.supervisor.remove_old_logs().await;
    audit::remove_old(&hive);
    let run_file = RunFile {
        url: url.clone(),
        pid: std::process::id(),
        certificate_file: tls.served.as_ref().and_then(|served| served.known_by.clone()),
        worker_url,
    };
    let run_file = hive.home.write_run_file(Daemon::Hive, &lock, &run_file)?;

    let registry = Arc::clone(&hive.registry);
    let readiness = Readiness::new(move || match registry.is_draining() {
        true => Err(ErrorCode::Draining),
        false => Ok(()),
    });
    let routes = http::routes(readiness).allow_hosts(allowed_hosts).audited(hive.audit.clone());
    let router =
        routes.build(Arc::clone(&hive), authenticator(&hive, token.clone()), hive.metrics.clone());
    let stop_serving = CancellationToken::new();
    let Tls { served, for_workers } = tls;
    let serving = serve(listener, for_workers, router, served.clone(), stop_serving.clone());
    let vital = hive.supervisor.vital();
    let server = tokio::spawn(vital.clone().keep("server", serving));
    let stop_tasks = CancellationToken::new();
    let own = served.map(|served| served.own);
    tasks::start(&hive, Renewed { token, length_min, own }, signals, &stop_tasks);
    tracing::info!(url, name = %hive.config.name, managed = hive.config.managed, "hive serves");

    let stopped = Event::of_daemon(Kind::Stop, env!("CARGO_PKG_VERSION"));
    tokio::select! {
        biased;
        () = hive.shutdown.stop.cancelled() => {}
        () = vital.is_broken() => {
            hive.audit.close(stopped.with("reason", "a defect")).await;
            return Err(HiveError::Defect);
        }
    }
    ending::end(&hive, Running { server, stop_serving, stop_tasks }).await;
    hive.audit.close(stopped).await;
    drop(run_file);
    Ok(())
}

/// Serves everybody on `listener`, and workers on their own, where there is one.
async fn serve(
    listener: TcpListener,
    for_workers: Option<TcpListener>,
    router: Router,
    served: Option<Served>,
    stop: CancellationToken,
) {
    let all = Server::new(listener, router.clone(), ending::LAST_LIMIT).over(served.as_ref());
    let workers = async {
        if let Some(listener) = for_workers {
            Server::new(listener, router, ending::LAST_LIMIT).run(stop.clone()).await;
        }
    };
    tokio::join!(all.run(stop.clone()), workers);
}

/// How the hive is reached.
struct Reached<'u> {
    /// Whether others can read what is said to it.
    plain_http_on_network: bool,
    /// The URL that workers call.
    by_workers: &'u str,
}

fn assemble(
    config: Config,
    home: Home,
    reached: &Reached<'_>,
    ledger: Ledger,
) -> Result<Arc<Hive>, HiveError> {
    let key = load_or_generate(&home.worker_key())?;
    let metrics = Metrics::install("hive")?;
    let audit = audit::open(&config, &home)?;
    let auditor = audit.auditor.clone();
    let models = Arc::new(Models::open(&home, config.import_roots())?);
    let registry = Arc::new(Registry::new(config.restart.rules(), config.heartbeat_interval()));
    let reservations = Arc::new(Reservations::new(
        Arc::clone(&registry),
        Box::new(ThisMachine::new(home.models_dir()).map_err(HiveError::Setup)?),
        config.kept_free(),
        config.worker.gpus_used(),
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
        stops_idle: config.stop_idle_for_room,
    };
    let launcher = Launcher {
        program: config.worker_path.clone().unwrap_or_default(),
        engine: config.worker.engine,
        threads: config.worker.threads.unwrap_or_else(platform::physical_cores),
        port_first: config.worker_port_first,
        heartbeat_seconds: config.heartbeat_interval_seconds,
        stall_seconds: config.stall_seconds(),
        stop_grace_seconds: config.stop_grace_seconds,
        log_max_mib: config.log.max_mib,
        worker_arguments: config.worker.arguments(&home.cache_dir()),
        hive_url: reached.by_workers.to_owned(),
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
        gpus_seen: EverSeen::default(),
        tasks: TaskTracker::new(),
        started: Instant::now(),
        plain_http_on_network: reached.plain_http_on_network,
    }))
}

/// Knows the queen by the shared token, on a paired machine by her certificate, too; and each live worker by its own.
fn authenticator(hive: &Hive, token: Credential) -> Authenticator {
    let (registry, is_paired) = (Arc::clone(&hive.registry), hive.config.pairing.is_some());
    Arc::new(move |shown, certificate| {
        let digest = shown.digest();
        let worker = registry.caller(&digest).map(Principal::Worker);
        let may_be_queen = match certificate.map(|shown| &shown.peer) {
            Some(Peer::Queen) => true,
            Some(Peer::Hive(_)) => false,
            None => !is_paired,
        };
        if token.matches(&digest) && may_be_queen { Some(Principal::Peer) } else { worker }
    })
}
