//! The worker: one loaded model behind HTTP. `run` is its whole life: start the
//! engine, serve, keep contact with the hive, drain, end. `launch` is the way
//! into it from the command line.

mod config;
mod contact;
mod embedding;
mod engine;
mod error;
mod generation;
mod guide;
mod http;
mod launch;
mod live;
mod reading;
mod reply;
mod sampler;
mod scheduler;
mod stream;
mod tasks;
mod text;
mod threads;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use audit_logging::{Auditor, Event, Kind, Options, Signer};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::model::ModelKind;
use rbee_http::{HopClient, Metrics, Readiness, Server};
use secrets_management::Secret;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

pub use crate::config::Arguments;
pub use crate::error::{EngineFailure, LoadFailure, WorkerError, chain};
pub use crate::launch::launch;

use crate::config::audit::AuditArguments;
use crate::config::handover::Secrets;
use crate::config::{Config, EngineConfig};
use crate::contact::{Contact, Heard, Orphaned};
use crate::engine::EngineEnd;
use crate::engine::backend::Loader;
use crate::engine::echo::EchoLoader;
use crate::engine::embedder::echo::EchoEmbedLoader;
use crate::engine::llama::LlamaLoader;
use crate::http::{App, ModelIdentity};

/// Time that the last bytes of ended requests have to reach their readers, and
/// the engine to end once it has nothing to do.
const FLUSH: Duration = Duration::from_secs(2);
/// The name under which its audit log lies.
const PROGRAM: &str = "llm-worker-rbee";
/// Slots of the echo engine where none are given.
const ECHO_SLOTS: u32 = 8;
/// Context of the echo engine where none is given.
const ECHO_CONTEXT_TOKENS: u32 = 4096;

/// Serves one model until told to stop, or until the engine fails.
///
/// # Errors
/// [`WorkerError`], which knows the exit code.
async fn run(
    config: Config,
    secrets: Secrets,
    listener: TcpListener,
    metrics: Metrics,
) -> Result<(), WorkerError> {
    let setup = |what, source| WorkerError::Setup { what, source };
    let service = format!("{PROGRAM}/{}", config.worker_id);
    let audit = open_audit(&config.audit, service, secrets.audit_key)?;
    let shutdown = CancellationToken::new();
    let ignore_sigterm = Arc::new(AtomicBool::new(false));
    let signals = tasks::watch_signals(shutdown.clone(), Arc::clone(&ignore_sigterm))
        .map_err(|error| setup("the signal handlers", error.into()))?;
    let hive = HopClient::new(&config.hive_url, secrets.callback)
        .map_err(|error| setup("the HTTP client", error.into()))?;
    let backend = config.engine.backend();
    let (engine, mut engine_end) =
        engine::start(loader(config.engine, ignore_sigterm), config.queue_max)
            .map_err(|error| setup("the engine thread", error.into()))?;
    let contact = Contact {
        hive,
        hive_run_file: config.hive_run_file,
        worker_id: config.worker_id.clone(),
        interval: config.heartbeat_interval,
        lease: config.lease,
        heard: Heard::default(),
    };
    let app = App::new(
        config.worker_id,
        backend,
        ModelIdentity { names: config.model_names, sha256: config.model_sha256 },
        config.cache_shared,
        engine,
        shutdown.clone(),
        metrics,
    );
    let serving = CancellationToken::new();
    let readiness = readiness(app.clone());
    let router = http::routes(readiness).audited(audit.clone()).build(
        app.clone(),
        http::authenticator(secrets.token),
        app.metrics().clone(),
    );
    let server = tokio::spawn(Server::new(listener, router, FLUSH).run(serving.clone()));
    let mut background = JoinSet::new();
    background.spawn(signals);
    let mut farewell = contact.clone();
    let orphaned = Arc::new(OnceLock::new());
    let told = Arc::clone(&orphaned);
    background.spawn(tasks::keep_contact(app.clone(), contact, shutdown.clone(), told));

    let outcome = tokio::select! {
        () = shutdown.cancelled() => drain(&app, config.drain, &mut engine_end).await,
        end = &mut engine_end => unexpected(end),
        () = tasks::watch_engine(app.clone(), config.stall) => Err(EngineFailure::Hung),
    };
    if outcome.is_err() {
        app.drain();
        let detail = ErrorDetail::new(ErrorCode::WorkerFailed, "the worker's engine failed");
        app.live().end_all(&detail);
    }
    serving.cancel();
    if let Err(error) = server.await {
        tracing::error!(%error, "the server ended badly");
    }
    background.shutdown().await;
    let ended = whole_end(outcome, orphaned.get());
    let reason = ended.as_ref().map_or_else(|error| chain(error), |()| "told to".to_owned());
    audit
        .close(Event::of_daemon(Kind::Stop, env!("CARGO_PKG_VERSION")).with("reason", reason))
        .await;
    if let Err(error) = &ended {
        farewell.tell_ending(error.exit_number()).await;
    }
    ended
}

/// Returns how the process ends, of which its engine's end is one part.
fn whole_end(engine: EngineEnd, orphaned: Option<&Orphaned>) -> Result<(), WorkerError> {
    match (engine, orphaned) {
        (Err(failure), _) => Err(WorkerError::from(failure)),
        (Ok(()), Some(Orphaned::LeaseOver)) => Err(WorkerError::LeaseOver),
        (Ok(()), Some(Orphaned::Disowned) | None) => Ok(()),
    }
}

/// Opens the audit log, where the hive wants one and has handed over its key.
fn open_audit(
    arguments: &AuditArguments,
    service: String,
    key: Option<Secret>,
) -> Result<Auditor, WorkerError> {
    let (Some(directory), Some(key)) = (arguments.directory(), key) else {
        return Ok(Auditor::off());
    };
    let options = Options {
        directory: directory.to_owned(),
        signer: Signer::new(&key, &service),
        service,
        settings: arguments.settings(),
    };
    let start = Event::of_daemon(Kind::Start, env!("CARGO_PKG_VERSION"));
    Auditor::open(options, start)
        .map_err(|error| WorkerError::Setup { what: "the audit log", source: error.into() })
}

/// Takes no new requests, lets those inside finish until the time is over, and
/// ends the engine, which has what is left of the time to write conversations to disk.
async fn drain(
    app: &App,
    limit: Duration,
    engine_end: &mut oneshot::Receiver<EngineEnd>,
) -> EngineEnd {
    app.drain();
    let drained_by = Instant::now() + limit;
    tokio::select! {
        finished = timeout(limit, tasks::wait_until_idle(app)) => if finished.is_err() {
            let detail = ErrorDetail::new(ErrorCode::Draining, "the worker shut down meanwhile");
            let requests = app.live().end_all(&detail);
            tracing::warn!(requests, "requests were cut off: the drain time is over");
        },
        end = &mut *engine_end => return unexpected(end),
    }
    let keep_until = drained_by.max(Instant::now() + FLUSH);
    app.engine().keep_and_stop(keep_until);
    match timeout_at(keep_until + FLUSH, engine_end).await {
        Ok(end) => end.unwrap_or(Err(EngineFailure::Panicked)),
        Err(_) => {
            tracing::warn!("the engine does not end; leaving it behind");
            Ok(())
        }
    }
}

/// An engine that ends without being told to has failed.
fn unexpected(end: Result<EngineEnd, oneshot::error::RecvError>) -> EngineEnd {
    match end {
        Ok(Err(failure)) => Err(failure),
        Ok(Ok(())) | Err(_) => Err(EngineFailure::Panicked),
    }
}

fn readiness(app: App) -> Readiness {
    Readiness::new(move || app.ready().map(drop).map_err(|error| error.code()))
}

fn loader(engine: EngineConfig, ignore_sigterm: Arc<AtomicBool>) -> Box<dyn Loader> {
    let EngineConfig { kind, slots, context, store_bytes_max, echo_load, .. } = engine;
    let disk = engine.disk.clone();
    let slots = slots.unwrap_or(ECHO_SLOTS);
    let context_tokens = context.unwrap_or(ECHO_CONTEXT_TOKENS);
    match (llama_loader(engine), kind) {
        (Some(loader), _) => Box::new(loader),
        (None, ModelKind::Generate) => Box::new(EchoLoader {
            slots,
            context_tokens,
            store_bytes_max,
            load_time: echo_load,
            disk,
            ignore_sigterm,
        }),
        (None, ModelKind::Embed | ModelKind::Rerank) => {
            Box::new(EchoEmbedLoader { kind, slots, context_tokens })
        }
    }
}

/// What loads the model file; `None` for the echo engine.
fn llama_loader(engine: EngineConfig) -> Option<LlamaLoader> {
    Some(LlamaLoader {
        path: engine.model?,
        slots: engine.slots,
        context_tokens: engine.context,
        threads: engine.threads,
        placement: engine.placement,
        layout: engine.layout,
        store_bytes_max: engine.store_bytes_max,
        disk: engine.disk,
        speculation: engine.speculation,
    })
}
