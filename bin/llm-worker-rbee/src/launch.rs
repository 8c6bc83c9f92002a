//! From arguments to a running worker: the log, the socket, the secrets, the
//! runtime. The only place that writes to standard output.

use std::io::Write;

use rbee_api::error::ErrorCode;
use rbee_api::openapi;
use rbee_home::raise_descriptor_limit;
use rbee_http::{Metrics, Readiness};
use secrets_management::forbid_core_dumps;
use tokio::net::TcpListener;
use tokio::runtime::Builder;

use crate::config::Arguments;
use crate::config::EngineConfig;
use crate::config::handover::{read_secrets, take_listener};
use crate::error::{EngineFailure, WorkerError};
use crate::{http, llama_loader, run};

/// Threads for prompts too long for the main thread; more would take cores
/// from the engine.
const BLOCKING_THREADS_MAX: usize = 2;

/// Stack of such a thread. llama.cpp calls itself for each level of a tool's schema, whose nesting is bounded to what
/// needs some ten megabytes; only what is used takes memory.
const BLOCKING_STACK_BYTES: usize = 64 << 20;

/// Runs the program.
///
/// # Errors
/// [`WorkerError`], which knows the exit code.
pub fn launch(arguments: Arguments) -> Result<(), WorkerError> {
    let setup = |what, source| WorkerError::Setup { what, source };
    if arguments.print_routes || arguments.print_openapi {
        let text = if arguments.print_routes {
            http::routes(Readiness::new(|| Err(ErrorCode::Loading))).listing()
        } else {
            openapi::to_text(&openapi::worker())
        };
        let written = std::io::stdout().write_all(text.as_bytes());
        return written.map_err(|error| setup("the listing of routes", error.into()));
    }
    arguments
        .log
        .start()
        .map_err(|error| WorkerError::Usage { reason: format!("--log-level: {error}") })?;
    load_backends()?;
    if arguments.estimate {
        return estimate(arguments.check_engine()?);
    }
    let validate_only = arguments.validate_config;
    let config = arguments.check()?;
    if validate_only {
        return Ok(());
    }
    let listener = take_listener()?;
    let secrets = read_secrets()?;
    // Not before: until the secrets come, the hive sets up what holds this process.
    forbid_core_dumps().map_err(|error| setup("the limit on core dumps", error.into()))?;
    raise_descriptor_limit();
    // One thread serves thousands of streams, and on a small machine every
    // further one would take time from the threads that compute.
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_stack_size(BLOCKING_STACK_BYTES)
        .build()
        .map_err(|error| setup("the runtime", error.into()))?;
    let outcome = runtime.block_on(async {
        let metrics =
            Metrics::install("worker").map_err(|error| setup("the metrics", error.into()))?;
        let listener =
            TcpListener::from_std(listener).map_err(|error| setup("the listener", error.into()))?;
        Box::pin(run(config, secrets, listener, metrics)).await
    });
    // A prompt that is still being prepared must not hold up the end.
    runtime.shutdown_background();
    if let Err(WorkerError::Engine(EngineFailure::Hung)) = &outcome {
        tracing::error!("the engine hangs; aborting");
        // Its thread still computes, and an orderly exit would take its memory
        // away under it.
        std::process::abort();
    }
    outcome
}

/// Loads what computes, where that lies in shared libraries beside this program.
#[cfg(feature = "dynamic-backends")]
fn load_backends() -> Result<(), WorkerError> {
    let own = std::env::current_exe().map_err(|error| WorkerError::Setup {
        what: "the compute backends",
        source: error.into(),
    })?;
    if let Some(directory) = own.parent() {
        rbee_llama::backend::load_backends(directory);
    }
    Ok(())
}

/// What computes is part of this program.
#[cfg(not(feature = "dynamic-backends"))]
#[expect(clippy::unnecessary_wraps, reason = "a build with shared libraries can fail here")]
const fn load_backends() -> Result<(), WorkerError> {
    Ok(())
}

/// Prints what a model would take, as one line of JSON.
fn estimate(engine: EngineConfig) -> Result<(), WorkerError> {
    let loader = llama_loader(engine).ok_or_else(|| WorkerError::Usage {
        reason: "--estimate needs a model, and the echo engine has none".to_owned(),
    })?;
    let estimate = loader.estimate().map_err(EngineFailure::from)?;
    let printed = serde_json::to_string(&estimate)
        .map_err(std::io::Error::from)
        .and_then(|line| writeln!(std::io::stdout(), "{line}"));
    printed.map_err(|error| WorkerError::Setup { what: "the estimate", source: error.into() })?;
    if estimate.fits { Ok(()) } else { Err(WorkerError::DoesNotFit) }
}
