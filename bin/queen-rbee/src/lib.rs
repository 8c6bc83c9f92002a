//! One queen: takes the requests of clients, knows every machine and worker,
//! decides where each request runs, and forwards it. Never starts a worker
//! process, never parses a model file, never touches a GPU.

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
mod marked_frames;
mod placement;
mod pull_relay;
mod queue;
mod registry;
mod retry_budget;
mod running;
mod search;
mod shutdown;
mod starts;
mod tasks;
mod telemetry;
mod turns;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use auth_min::{check_bind, is_loopback};
use rbee_api::queen::RunFile;
use rbee_home::{Daemon, Home, LockGuard};
use rbee_http::{HopClient, Metrics, Readiness, Server, init_logs};
use secrets_management::{Secret, load_or_generate};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use app::App;
use hive_launcher::{HiveLauncher, LauncherOptions};
use hives::Hives;
use registry::Registry;
use retry_budget::RetryBudget;
use starts::Starts;
use tasks::{HiveKeeper, Tasks};
use turns::Turns;

pub use config::{Command, Config, LogSettings, QueueSettings, Settings};
pub use error::QueenError;
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

/// Serves for the life of the process: until SIGTERM, SIGINT or a request to stop.
///
/// # Errors
/// Tells why the queen could not start.
pub fn serve(config: Config) -> Result<(), QueenError> {
    let log = &config.settings.log;
    init_logs(log.format, &log.level).map_err(QueenError::setup("logs"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.settings.threads)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()
        .map_err(QueenError::setup("threads"))?;
    let outcome = runtime.block_on(async {
        let shutdown = Shutdown::on_signals().map_err(QueenError::setup("signals"))?;
        let seat = Seat::take(&config)?;
        let address = config.settings.bind;
        let listener = rbee_http::bind(address).await.map_err(QueenError::listen(address))?;
        run(config, seat, listener, shutdown).await
    });
    runtime.shutdown_timeout(CLOSE_TIME);
    outcome
}

/// Serves on `listener` until `shutdown` asks to stop, then stops in order: no
/// new work, running requests finish, the local hive ends, the port closes.
///
/// # Errors
/// Tells why the queen could not start; once it serves, it ends well.
pub async fn run(
    config: Config,
    seat: Seat,
    listener: TcpListener,
    shutdown: Shutdown,
) -> Result<(), QueenError> {
    let address = listener.local_addr().map_err(QueenError::listen(config.settings.bind))?;
    let (credentials, hives) = read_home(&seat.home).await?;
    let token_length = credentials.client.expose().len().min(credentials.hive.expose().len());
    check_bind(address, token_length)?;
    if !is_loopback(address.ip()) {
        tracing::warn!(%address, "listening on the network: plain HTTP can be read on its way");
    }

    let tasks = Tasks::default();
    let app = build_app(&config, &hives, &credentials, shutdown, &tasks)?;
    let readiness = Readiness::new({
        let app = Arc::clone(&app);
        move || app.readiness()
    });
    let authenticator = http::authenticator(&credentials.client, &credentials.hive);
    let router =
        http::routes(readiness).build(Arc::clone(&app), authenticator, app.metrics.clone());
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
    drop(run_file);
    let duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(duration_ms, "queen stopped");
    Ok(())
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
struct Credentials {
    client: Secret,
    hive: Arc<Secret>,
}

async fn read_home(home: &Home) -> Result<(Credentials, Hives), QueenError> {
    let home = home.clone();
    let read = tokio::task::spawn_blocking(move || {
        let client = load_or_generate(&home.client_token())?;
        let hive = Arc::new(load_or_generate(&home.hive_token())?);
        let hives = hives::load(&home.beehives_db())?;
        Ok((Credentials { client, hive }, hives))
    });
    read.await.map_err(QueenError::setup("the home directory"))?
}

fn build_app(
    config: &Config,
    hives: &Hives,
    credentials: &Credentials,
    shutdown: Shutdown,
    tasks: &Tasks,
) -> Result<Arc<App>, QueenError> {
    let settings = config.settings.clone();
    let metrics = Metrics::install("queen").map_err(QueenError::setup("metrics"))?;
    let registry = Arc::new(Registry::new(hives.local.clone(), settings.heartbeat_interval()));
    for hive in &hives.remote {
        if let Some(url) = &hive.url {
            let client = HopClient::new(url, Arc::clone(&credentials.hive))?;
            registry.add_remote(hive.name.clone(), client);
        }
    }
    let turns = Turns::new(settings.queue.limits(), Arc::clone(&registry));
    tasks.spawn(Arc::clone(&turns).keep_dealing());
    Ok(Arc::new(App {
        turns,
        starts: Starts::new(Arc::clone(&registry), tasks.clone()),
        registry,
        retries: RetryBudget::new(settings.retry_budget_percent),
        shutdown,
        cut: CancellationToken::new(),
        running: TaskTracker::new(),
        local: hives.local.clone(),
        metrics,
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
        token: Arc::clone(&credentials.hive),
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
