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
mod ending;
mod error;
mod first_contact;
mod hive_launcher;
mod hives;
mod http;
mod jwt;
mod kept;
mod keys;
mod listening;
mod marked_frames;
mod pairing;
mod placement;
mod pull_relay;
mod queue;
mod registry;
mod reloads;
mod retry_budget;
mod running;
mod search;
mod shutdown;
mod standings;
mod starts;
mod tasks;
mod telemetry;
mod tls;
mod turns;
mod usage;

use std::net::SocketAddr;
use std::sync::Arc;

use audit_logging::{Auditor, Event, Kind};
use auth_min::{TOKEN_LENGTH_MIN, is_loopback};
use rbee_api::openapi;
use rbee_api::queen::{AuthMode, RunFile};
use rbee_home::{Daemon, Home, raise_descriptor_limit};
use rbee_http::{
    HopClient, Metrics, Principal, Readiness, Server, bound_log, init_logs, keep_fresh,
    reached_from_here,
};
use rbee_tls::Trust;
use secrets_management::forbid_core_dumps;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use active::ActiveRequests;
use app::App;
use ending::{CLOSE_TIME, Ending};
use hive_launcher::{HiveLauncher, LauncherOptions};
use hives::Hives;
use jwt::Gate;
use kept::{Credentials, Seat, open_audit, open_gate, open_pairings, read_home};
use keys::Keys;
use listening::{is_plain_on_network, listen};
use pairing::Pairings;
use registry::Registry;
use reloads::Reloads;
use retry_budget::RetryBudget;
use starts::Starts;
use tasks::{HiveKeeper, Tasks};
use tls::Tls;
use turns::Turns;

pub use config::{AuthSettings, Command, Config, JwtSettings, QueueSettings, Settings};
pub use error::QueenError;
pub use jwt::JwtError;
pub use marked_frames::client_events;
pub use shutdown::Shutdown;

/// Threads for calls that block: databases and files, a few at a time.
const BLOCKING_THREADS_MAX: usize = 8;

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

/// Checks what can only be told with the machine at hand: the configured address, and the files that are named. Touches no
/// others.
///
/// # Errors
/// What would keep the queen from starting.
pub fn check(config: &Config) -> Result<(), QueenError> {
    listening::check_openness(&config.settings, config.settings.bind)?;
    Ok(config.settings.tls.check_files()?)
}

/// Serves for the life of the process: until SIGTERM, SIGINT or a request to stop.
///
/// # Errors
/// Tells why the queen could not start.
pub fn serve(config: Config) -> Result<(), QueenError> {
    init_logs(&config.settings.log).map_err(QueenError::setup("logs"))?;
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
        bound_log(&seat.home.daemon_log(Daemon::Queen), config.settings.log.max_mib);
        let kept = read_home(&config, &seat.home).await?;
        let listener = listen(&config.settings, &kept.0).await?;
        run(config, seat, kept, listener, (shutdown, reloads)).await
    });
    runtime.shutdown_timeout(CLOSE_TIME);
    outcome
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
    let tls = Tls::open(&config.settings, &seat.home, address).await?;
    let metrics = Metrics::install("queen").map_err(QueenError::setup("metrics"))?;
    let audit = open_audit(&config, &seat.home).await?;
    let pairings = open_pairings(&seat.home, &tls, &hives).await?;
    let app = build_app(
        &config,
        &seat.home,
        (&hives, keys),
        &credentials,
        Host { shutdown, metrics, audit, pairings, address, trust: tls.trust.clone() },
        &tasks,
    )?;
    let readiness = Readiness::new({
        let app = Arc::clone(&app);
        move || app.readiness()
    });
    let gate = open_gate(&config.settings).await?;
    gate.iter().for_each(|gate| tasks.spawn(Arc::clone(gate).keep_fresh()));
    let length_min = if is_loopback(address.ip()) { 0 } else { TOKEN_LENGTH_MIN };
    tls.own().into_iter().for_each(|own| tasks.spawn(keep_fresh(own)));
    tasks.spawn(reloads.keep(credentials.clone(), length_min, tls.own(), app.audit.clone()));
    let router = router(&app, &credentials, gate, readiness)?;
    let closing = CancellationToken::new();
    let server = Server::new(listener, router, CLOSE_TIME).over(tls.served.as_ref());
    let server = tokio::spawn(server.run(closing.clone()));

    let run = RunFile {
        url: format!("{}://{}", tls.scheme(), reached_from_here(address)),
        pid: std::process::id(),
        certificate_file: tls.served.as_ref().and_then(|served| served.known_by.clone()),
        worker_url: None,
    };
    let run_file = seat.home.write_run_file(Daemon::Queen, &seat.lock, &run)?;
    let keeper =
        HiveKeeper::start(launcher(&config, seat.home.clone(), &app, (&credentials, &tls)));
    let machines = hives.remote.iter().map(|hive| hive.name.clone()).collect();
    tasks.spawn(first_contact::greet(Arc::clone(&app.registry), machines));
    tasks.spawn(standings::tell_changes(Arc::clone(&app.registry)));
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "queen serves");

    app.shutdown.asked().cancelled().await;
    let begun = Instant::now();
    let ending = Ending::within(app.settings.shutdown_timeout(), app.settings.drain(), begun);
    ending.drain(&app).await;
    let launcher = keeper.release().await?;
    launcher.stop_local_hive(ending.hive_end, app.shutdown.hurried()).await;
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
    let (keys, pairings) = (Arc::clone(&app.keys), Arc::clone(&app.pairings));
    let authenticator = http::authenticator(credentials, keys, pairings, gate);
    Ok(routes.build(Arc::clone(app), authenticator, app.metrics.clone()))
}

/// What a queen is given by the process around her.
struct Host {
    shutdown: Shutdown,
    metrics: Metrics,
    audit: Auditor,
    pairings: Arc<Pairings>,
    /// Where the queen listens.
    address: SocketAddr,
    /// By whom she knows hives on other machines.
    trust: Trust,
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
    let Host { shutdown, metrics, audit, pairings, address, trust } = host;
    let registry = Arc::new(Registry::new(hives.local.clone(), settings.heartbeat_interval()));
    for hive in &hives.remote {
        if let Some(url) = &hive.url {
            let client = match &hive.certificate {
                Some(certificate) => pairings.client(&hive.name, url, certificate)?,
                None => HopClient::trusting(url, credentials.hive.clone(), &trust)?,
            };
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
        pairings,
        address,
        retries: RetryBudget::new(settings.retry_budget_percent),
        shutdown,
        cut: CancellationToken::new(),
        running: TaskTracker::new(),
        local: hives.local.clone(),
        metrics,
        audit,
        audit_dir: home.audit_dir(),
        plain_http_on_network: is_plain_on_network(&settings, address),
        settings,
        started: Instant::now(),
    }))
}

fn launcher(
    config: &Config,
    home: Home,
    app: &App,
    (credentials, tls): (&Credentials, &Tls),
) -> HiveLauncher {
    HiveLauncher::new(LauncherOptions {
        home,
        name: app.local.clone(),
        program: config.hive_program.clone(),
        url: config.settings.local_hive_url.clone(),
        may_start: config.settings.local_hive,
        token: credentials.hive.clone(),
        trust: tls.trust.clone(),
        registry: Arc::clone(&app.registry),
    })
}
