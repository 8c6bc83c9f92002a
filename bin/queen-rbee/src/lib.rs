//! One queen: takes the requests of clients, knows every machine and worker,
//! decides where each request runs, and forwards it. Never starts a worker
//! process, never parses a model file, never touches a GPU.

mod active;
mod app;
mod attempt;
mod cluster;
mod config;
mod continuing;
mod dispatch;
mod error;
mod hive_launcher;
mod hives;
mod http;
mod jwt;
mod keys;
mod marked_frames;
mod placement;
mod pull_relay;
mod queue;
mod registry;
mod reloads;
mod retry_budget;
mod running;
mod search;
mod shutdown;
mod starts;
mod tasks;
mod telemetry;
mod turns;
mod usage;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use audit_logging::{Auditor, Event, Kind, Options, Signer};
use auth_min::{TOKEN_LENGTH_MIN, check_bind, check_open_bind, is_loopback};
use rbee_api::audit::AuditMode;
use rbee_api::openapi;
use rbee_api::queen::{AuthMode, RunFile};
use rbee_home::{Daemon, Home, LockGuard, raise_descriptor_limit};
use rbee_http::{
    Credential, HopClient, Metrics, Principal, Readiness, Server, inherited, init_logs,
};
use secrets_management::{forbid_core_dumps, load_or_generate};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use active::ActiveRequests;
use app::App;
use hive_launcher::{HiveLauncher, LauncherOptions};
use hives::Hives;
use jwt::Gate;
use keys::Keys;
use registry::Registry;
use reloads::Reloads;
use retry_budget::RetryBudget;
use starts::Starts;
use tasks::{HiveKeeper, Tasks};
use turns::Turns;

pub use config::{
    AuthSettings, Command, Config, JwtSettings, LogSettings, QueueSettings, Settings,
};
pub use error::QueenError;
pub use jwt::JwtError;
pub use marked_frames::client_events;
pub use shutdown::Shutdown;

/// Threads for calls that block: databases and files, a few at a time.
const BLOCKING_THREADS_MAX: usize = 8;
/// How long requests that are cut off have to tell their clients.
const CUT_TIME: Duration = Duration::from_secs(1);
/// Time that the local hive gets at least, however long the requests took.
const HIVE_TIME_MIN: Duration = Duration::from_secs(1);
/// How long connections have to close once all requests have ended.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// What a queen holds before it opens a port: the home directory and its lock.
#[derive(Debug)]
pub struct Seat {
    home: Home,
    lock: LockGuard,
}

impl Seat {
    /// Opens the home directory and takes the queen's lock on it.
    ///
    /// # Errors
    /// Fails if another queen runs there, or if the directory cannot be used.
    pub fn take(config: &Config) -> Result<Self, QueenError> {
        let home = Home::open(&config.home)?;
        let lock = home.lock(Daemon::Queen)?;
        Ok(Self { home, lock })
    }
}

/// Lists the routes, one a line: method, path, who may call it.
#[must_use]
pub fn route_listing() -> String {
    http::routes(Readiness::new(|| Ok(()))).listing()
}

/// Returns the OpenAPI document of the routes as JSON text.
#[must_use]
pub fn openapi_document() -> String {
    openapi::to_text(&openapi::queen())
}

/// Serves for the life of the process: until SIGTERM, SIGINT or a request to stop.
///
/// # Errors
/// Tells why the queen could not start.
pub fn serve(config: Config) -> Result<(), QueenError> {
    let log = &config.settings.log;
    init_logs(log.format, &log.level).map_err(QueenError::setup("logs"))?;
    forbid_core_dumps().map_err(QueenError::setup("the limit on core dumps"))?;
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.settings.threads)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()
        .map_err(QueenError::setup("threads"))?;
    let outcome = runtime.block_on(async {
        let shutdown = Shutdown::on_signals().map_err(QueenError::setup("signals"))?;
        let reloads = Reloads::on_signals().map_err(QueenError::setup("signals"))?;
        let seat = Seat::take(&config)?;
        let kept = read_home(&config, &seat.home).await?;
        let listener = listen(&config.settings, &kept.0).await?;
        run(config, seat, kept, listener, (shutdown, reloads)).await
    });
    runtime.shutdown_timeout(CLOSE_TIME);
    outcome
}

/// Opens the port, or takes the one that a service manager has opened. The policy is asked about
/// the address before there is a listener.
async fn listen(settings: &Settings, credentials: &Credentials) -> Result<TcpListener, QueenError> {
    let handed_over = inherited().map_err(QueenError::setup("the inherited listener"))?;
    let configured = settings.bind;
    let address = match &handed_over {
        Some(listener) => listener.local_addr().map_err(QueenError::listen(configured))?,
        None => configured,
    };
    check_bind(address, credentials.shortest())?;
    match settings.auth.mode {
        AuthMode::Token => {}
        AuthMode::None => {
            check_open_bind(address)?;
            tracing::warn!(
                "auth.mode is \"none\": every program and every user of this machine is a client"
            );
        }
    }
    if !is_loopback(address.ip()) {
        tracing::warn!(%address, "listening on the network: plain HTTP can be read on its way");
    }
    match handed_over {
        Some(listener) => Ok(listener),
        None => rbee_http::bind(address).await.map_err(QueenError::listen(address)),
    }
}

/// Serves on `listener` until `shutdown` asks to stop, then stops in order: no
/// new work, running requests finish, the local hive ends, the port closes.
async fn run(
    config: Config,
    seat: Seat,
    (credentials, hives, keys): (Credentials, Hives, Keys),
    listener: TcpListener,
    (shutdown, reloads): (Shutdown, Reloads),
) -> Result<(), QueenError> {
    let address = listener.local_addr().map_err(QueenError::listen(config.settings.bind))?;
    let tasks = Tasks::default();
    let metrics = Metrics::install("queen").map_err(QueenError::setup("metrics"))?;
    let audit = open_audit(&config, &seat.home).await?;
    let app = build_app(
        &config,
        &seat.home,
        (&hives, keys),
        &credentials,
        Host { shutdown, metrics, audit },
        &tasks,
    )?;
    let readiness = Readiness::new({
        let app = Arc::clone(&app);
        move || app.readiness()
    });
    let gate = open_gate(&config.settings).await?;
    gate.iter().for_each(|gate| tasks.spawn(Arc::clone(gate).keep_fresh()));
    let length_min = if is_loopback(address.ip()) { 0 } else { TOKEN_LENGTH_MIN };
    tasks.spawn(reloads.keep(credentials.clone(), length_min, app.audit.clone()));
    let router = router(&app, &credentials, gate, readiness)?;
    let closing = CancellationToken::new();
    let server = tokio::spawn(Server::new(listener, router, CLOSE_TIME).run(closing.clone()));

    let run = RunFile { url: format!("http://{}", from_here(address)), pid: std::process::id() };
    let run_file = seat.home.write_run_file(Daemon::Queen, &seat.lock, &run)?;
    let keeper = HiveKeeper::start(launcher(&config, seat.home.clone(), &app, &credentials));
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "queen serves");

    app.shutdown.asked().cancelled().await;
    let begun = Instant::now();
    let end = begun + app.settings.shutdown_timeout();
    drain(&app, end).await;
    let launcher = keeper.release().await?;
    let left = end.saturating_duration_since(Instant::now()).saturating_sub(CLOSE_TIME);
    launcher.stop_local_hive(left.max(HIVE_TIME_MIN), app.shutdown.hurried()).await;
    closing.cancel();
    server.await.map_err(QueenError::setup("the end of the server"))?;
    tasks.finish().await;
    app.keys.save().await;
    app.audit.close(Event::of_daemon(Kind::Stop, env!("CARGO_PKG_VERSION"))).await;
    drop(run_file);
    let duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(duration_ms, "queen stopped");
    Ok(())
}

fn router(
    app: &Arc<App>,
    credentials: &Credentials,
    gate: Option<Arc<Gate>>,
    readiness: Readiness,
) -> Result<axum::Router, QueenError> {
    let routes = http::routes(readiness)
        .audited(app.audit.clone())
        .allow_hosts(app.settings.allowed_hosts()?);
    let routes = match app.settings.auth.mode {
        AuthMode::Token => routes,
        AuthMode::None => routes.without_credentials(Principal::Client),
    };
    let authenticator = http::authenticator(credentials, Arc::clone(&app.keys), gate);
    Ok(routes.build(Arc::clone(app), authenticator, app.metrics.clone()))
}

/// Returns the address at which programs of this machine reach a listener.
fn from_here(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The tokens of the two conversations the queen takes part in.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    pub(crate) client: Credential,
    pub(crate) hive: Credential,
}

impl Credentials {
    /// Returns the characters of the shorter one.
    fn shortest(&self) -> usize {
        [&self.client, &self.hive]
            .map(|credential| credential.current().expose().len())
            .into_iter()
            .min()
            .unwrap_or_default()
    }
}

async fn read_home(config: &Config, home: &Home) -> Result<(Credentials, Hives, Keys), QueenError> {
    let home = home.clone();
    let auth = config.settings.auth.clone();
    let read = tokio::task::spawn_blocking(move || {
        let client = Credential::load(auth.client_token(&home)?, auth.overlap())?;
        let hive = Credential::load(auth.hive_token(&home)?, auth.overlap())?;
        let hives = hives::load(&home.beehives_db())?;
        let path = home.keys_db();
        let keys = Keys::open(&path).map_err(|source| QueenError::Keys { path, source })?;
        Ok((Credentials { client, hive }, hives, keys))
    });
    read.await.map_err(QueenError::setup("the home directory"))?
}

/// Sets up what believes signed tokens, where that is configured.
async fn open_gate(settings: &Settings) -> Result<Option<Arc<Gate>>, QueenError> {
    let Some(settings) = settings.jwt.clone() else { return Ok(None) };
    let opened = tokio::task::spawn_blocking(move || Gate::open(&settings));
    let gate = opened.await.map_err(QueenError::setup("signed tokens"))??;
    Ok(Some(Arc::new(gate)))
}

/// Opens the queen's audit log, with which she begins to be accountable.
async fn open_audit(config: &Config, home: &Home) -> Result<Auditor, QueenError> {
    let settings = config.settings.audit;
    if settings.mode == AuditMode::Off {
        tracing::warn!("the audit log is off: nobody can tell later who did what");
        return Ok(Auditor::off());
    }
    let home = home.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let service = Daemon::Queen.program();
        let key = load_or_generate(&home.audit_key())?.derive("audit", service)?;
        let options = Options {
            directory: home.audit_dir().join(service),
            service: service.to_owned(),
            settings,
            signer: Signer::new(&key, service),
        };
        let start = Event::of_daemon(Kind::Start, env!("CARGO_PKG_VERSION"));
        Ok(Auditor::open(options, start)?)
    });
    opened.await.map_err(QueenError::setup("the audit log"))?
}

/// What a queen is given by the process around her.
struct Host {
    shutdown: Shutdown,
    metrics: Metrics,
    audit: Auditor,
}

fn build_app(
    config: &Config,
    home: &Home,
    (hives, keys): (&Hives, Keys),
    credentials: &Credentials,
    host: Host,
    tasks: &Tasks,
) -> Result<Arc<App>, QueenError> {
    let settings = config.settings.clone();
    let Host { shutdown, metrics, audit } = host;
    let registry = Arc::new(Registry::new(hives.local.clone(), settings.heartbeat_interval()));
    for hive in &hives.remote {
        if let Some(url) = &hive.url {
            let client = HopClient::new(url, credentials.hive.clone())?;
            registry.add_remote(hive.name.clone(), client);
        }
    }
    let turns = Turns::new(settings.queue.limits(), Arc::clone(&registry));
    tasks.spawn(Arc::clone(&turns).keep_dealing());
    let keys = Arc::new(keys);
    tasks.spawn(Arc::clone(&keys).keep_saving());
    Ok(Arc::new(App {
        active: ActiveRequests::default(),
        turns,
        starts: Starts::new(Arc::clone(&registry), tasks.clone()),
        registry,
        keys,
        retries: RetryBudget::new(settings.retry_budget_percent),
        shutdown,
        cut: CancellationToken::new(),
        running: TaskTracker::new(),
        local: hives.local.clone(),
        metrics,
        audit,
        audit_dir: home.audit_dir(),
        settings,
        started: Instant::now(),
    }))
}

fn launcher(config: &Config, home: Home, app: &App, credentials: &Credentials) -> HiveLauncher {
    HiveLauncher::new(LauncherOptions {
        home,
        name: app.local.clone(),
        program: config.hive_program.clone(),
        url: config.settings.local_hive_url.clone(),
        may_start: config.settings.local_hive,
        token: credentials.hive.clone(),
        registry: Arc::clone(&app.registry),
    })
}

/// Lets running requests finish, for as long as the settings allow and until `end` at most.
async fn drain(app: &App, end: Instant) {
    app.running.close();
    let patience = Instant::now() + Duration::from_secs(app.settings.drain_seconds);
    tracing::info!(requests = app.running.len(), "running requests finish");
    tokio::select! {
        () = app.running.wait() => return,
        () = sleep_until(patience.min(end)) => {}
        () = app.shutdown.hurried().cancelled() => {}
    }
    tracing::warn!(requests = app.running.len(), "cutting off requests that still run");
    app.cut.cancel();
    if timeout(CUT_TIME, app.running.wait()).await.is_err() {
        tracing::warn!(requests = app.running.len(), "some clients do not read their replies");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queen_that_listens_everywhere_is_reached_by_loopback_from_here() {
        for (bound, reached) in [
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("[::]:8080", "[::1]:8080"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("192.168.1.5:80", "192.168.1.5:80"),
        ] {
            assert_eq!(from_here(bound.parse().unwrap()).to_string(), reached);
        }
    }
}
