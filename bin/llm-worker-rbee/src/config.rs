//! The command line, and with `handover` all else that the hive hands over at
//! the start. The only reader of the environment.
//! Checks everything before the engine starts; loads nothing.

pub(crate) mod audit;
mod disk;
pub(crate) mod handover;
mod log;
pub(crate) mod placement;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use input_validation::{ModelRef, Sha256Hex, WorkerId};
use rbee_api::model::ModelKind;
use rbee_api::worker::Backend;

use crate::config::audit::AuditArguments;
use crate::config::disk::DiskArguments;
use crate::config::log::LogArguments;
use crate::engine::SLOTS_MAX;
use crate::engine::backend::Speculation;
use crate::engine::disk::DiskConfig;
use crate::engine::memory::Layout;
use crate::error::WorkerError;
use placement::{Placement, PlacementArguments};

/// Longest queue that may be asked for.
const QUEUE_MAX: u32 = 4096;

/// Turns requests to one model into tokens. Started by rbee-hive, which hands
/// over a listening socket as descriptor 3 (LISTEN_FDS=1) and the secrets on
/// standard input.
#[derive(Debug, Parser)]
#[command(name = "llm-worker-rbee", version)]
pub struct Arguments {
    /// Name of this worker
    #[arg(long, required_unless_present_any = ["print_routes", "print_openapi", "estimate"])]
    worker_id: Option<WorkerId>,
    /// What computes: `llama`, or `echo` for tests
    #[arg(long, value_enum, default_value = "llama")]
    engine: EngineKind,
    /// What the echo engine stands for; a real model says so itself
    #[arg(long, value_enum, default_value = "generate")]
    kind: EchoKind,
    /// Milliseconds that the echo engine pretends to load for
    #[arg(long, default_value_t = 0, hide = true, value_parser = clap::value_parser!(u64).range(0..=600_000))]
    echo_load_ms: u64,
    /// The GGUF file; needed by the llama engine
    #[arg(long, value_name = "PATH", required_if_eq("engine", "llama"))]
    #[arg(required_unless_present_any = ["print_routes", "print_openapi", "engine"])]
    model: Option<PathBuf>,
    /// A name that requests may use for the model; can be repeated
    #[arg(long, value_name = "NAME")]
    #[arg(required_unless_present_any = ["print_routes", "print_openapi", "estimate"])]
    model_name: Vec<ModelRef>,
    /// Where the hive listens, such as http://127.0.0.1:9200
    #[arg(long, value_name = "URL")]
    #[arg(required_unless_present_any = ["print_routes", "print_openapi", "estimate"])]
    hive_url: Option<String>,
    /// File that tells the address of the hive that runs now, for when the one at --hive-url is gone
    #[arg(long, value_name = "PATH")]
    hive_run_file: Option<PathBuf>,
    /// Requests decoded at once [default: 8, fewer where memory is short]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(SLOTS_MAX)))]
    slots: Option<u32>,
    /// Tokens of context for each request [default: what the model was trained with, at most 4096]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(8..=1 << 20))]
    context: Option<u32>,
    #[command(flatten)]
    placement: PlacementArguments,
    /// Threads that compute [default: physical cores]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=512))]
    threads: Option<u32>,
    /// How slots lie in the context memory [default: split on a processor, unified on a GPU]
    #[arg(long, value_enum)]
    kv_layout: Option<KvLayout>,
    /// Mebibytes of memory for conversations that have no slot any more; 0 keeps none
    #[arg(long, default_value_t = 512, value_name = "MIB", value_parser = clap::value_parser!(u64).range(0..=1 << 24))]
    cache_ram: u64,
    #[command(flatten)]
    cache_disk: DiskArguments,
    #[command(flatten)]
    audit: AuditArguments,
    /// Whether replies that repeat earlier text are guessed ahead
    #[arg(long, value_enum, default_value = "auto")]
    speculation: Speculation,
    /// Requests of different users may share computed prompts
    #[arg(long)]
    cache_shared: bool,
    /// Requests that may wait for a slot
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=i64::from(QUEUE_MAX)))]
    queue: u32,
    /// Seconds without contact to the hive after which the worker ends
    #[arg(long, default_value_t = 900, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    lease_seconds: u64,
    /// Seconds between heartbeats
    #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    heartbeat_seconds: u64,
    /// Seconds that running requests have to finish after a stop
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    drain_seconds: u64,
    /// Seconds that one engine step may take before the engine counts as hung
    #[arg(long, default_value_t = 300, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    stall_seconds: u64,
    #[command(flatten)]
    pub(crate) log: LogArguments,
    /// Print the routes and exit
    #[arg(long)]
    pub(crate) print_routes: bool,
    /// Print the OpenAPI document of the routes and exit
    #[arg(long)]
    pub(crate) print_openapi: bool,
    /// Print as JSON what the model would take of each device, and exit: 0 where it fits, 71 where not
    #[arg(long)]
    pub(crate) estimate: bool,
    /// Check the arguments and exit
    #[arg(long)]
    pub(crate) validate_config: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum EngineKind {
    Llama,
    Echo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum EchoKind {
    Generate,
    Embed,
    Rerank,
}

impl From<EchoKind> for ModelKind {
    fn from(kind: EchoKind) -> Self {
        match kind {
            EchoKind::Generate => Self::Generate,
            EchoKind::Embed => Self::Embed,
            EchoKind::Rerank => Self::Rerank,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum KvLayout {
    Split,
    Unified,
}

/// Everything the worker runs by, checked.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) worker_id: WorkerId,
    pub(crate) engine: EngineConfig,
    /// The names that requests may use; at least one, the first for listings.
    pub(crate) model_names: Vec<ModelRef>,
    /// SHA-256 of the model file, where the hive told it.
    pub(crate) model_sha256: Option<Sha256Hex>,
    pub(crate) hive_url: String,
    /// Where a hive on this machine writes down its address.
    pub(crate) hive_run_file: Option<PathBuf>,
    /// Whether requests of different users may share computed prompts.
    pub(crate) cache_shared: bool,
    /// Requests that may wait for a slot.
    pub(crate) queue_max: u32,
    /// Time without contact to the hive after which the worker ends.
    pub(crate) lease: Duration,
    /// Time between heartbeats.
    pub(crate) heartbeat_interval: Duration,
    /// Time that running requests have to finish after a stop.
    pub(crate) drain: Duration,
    /// Time that one engine step may take.
    pub(crate) stall: Duration,
    /// How the audit log is kept.
    pub(crate) audit: AuditArguments,
}

/// What computes, and its sizes; `None` leaves a size to the engine.
#[derive(Debug, Clone)]
pub(crate) struct EngineConfig {
    /// The model file; `None` for the echo engine.
    pub(crate) model: Option<PathBuf>,
    /// What the echo engine is for; a model says it itself.
    pub(crate) kind: ModelKind,
    /// Time that the echo engine pretends to load for.
    pub(crate) echo_load: Duration,
    pub(crate) slots: Option<u32>,
    pub(crate) context: Option<u32>,
    pub(crate) threads: Option<u32>,
    pub(crate) layout: Option<Layout>,
    pub(crate) placement: Placement,
    /// Bytes of conversations kept outside the slots.
    pub(crate) store_bytes_max: u64,
    /// Where conversations outlive the worker.
    pub(crate) disk: Option<DiskConfig>,
    pub(crate) speculation: Speculation,
}

impl EngineConfig {
    pub(crate) fn backend(&self) -> Backend {
        if self.model.is_some() { Backend::Llama } else { Backend::Echo }
    }
}

impl Arguments {
    /// Checks what the parser cannot.
    ///
    /// # Errors
    /// [`WorkerError::Usage`].
    pub(crate) fn check(self) -> Result<Config, WorkerError> {
        let worker_id = self.worker_id.clone().ok_or_else(|| missing("--worker-id"))?;
        let hive_url = self.hive_url.clone().ok_or_else(|| missing("--hive-url"))?;
        if !is_base_url(&hive_url) {
            let reason = format!("--hive-url {hive_url:?} is not like http://127.0.0.1:9200");
            return Err(WorkerError::Usage { reason });
        }
        Ok(Config {
            worker_id,
            model_names: self.model_name.clone(),
            model_sha256: self.cache_disk.model_sha256().cloned(),
            hive_url,
            hive_run_file: self.hive_run_file.clone(),
            cache_shared: self.cache_shared,
            queue_max: self.queue,
            lease: Duration::from_secs(self.lease_seconds),
            heartbeat_interval: Duration::from_secs(self.heartbeat_seconds),
            drain: Duration::from_secs(self.drain_seconds),
            stall: Duration::from_secs(self.stall_seconds),
            audit: self.audit.clone(),
            engine: self.check_engine()?,
        })
    }

    /// Checks what concerns the engine alone.
    ///
    /// # Errors
    /// [`WorkerError::Usage`].
    pub(crate) fn check_engine(self) -> Result<EngineConfig, WorkerError> {
        let model = match self.engine {
            EngineKind::Llama => Some(self.model.ok_or_else(|| missing("--model"))?),
            EngineKind::Echo => None,
        };
        Ok(EngineConfig {
            model,
            kind: self.kind.into(),
            echo_load: Duration::from_millis(self.echo_load_ms),
            slots: self.slots,
            context: self.context,
            threads: self.threads,
            layout: self.kv_layout.map(|layout| match layout {
                KvLayout::Split => Layout::Split,
                KvLayout::Unified => Layout::Unified,
            }),
            store_bytes_max: self.cache_ram * 1024 * 1024,
            placement: self.placement.check()?,
            disk: self.cache_disk.check(self.cache_shared)?,
            speculation: self.speculation,
        })
    }
}

fn missing(what: &str) -> WorkerError {
    WorkerError::Usage { reason: format!("{what} is missing") }
}

fn is_base_url(text: &str) -> bool {
    let uri: Result<http::Uri, _> = text.parse();
    uri.is_ok_and(|uri| {
        uri.scheme_str() == Some("http") && uri.host().is_some() && matches!(uri.path(), "" | "/")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(arguments: &[&str]) -> Result<Config, String> {
        let parsed = Arguments::try_parse_from([&["llm-worker-rbee"], arguments].concat());
        parsed.map_err(|error| error.to_string())?.check().map_err(|error| error.to_string())
    }

    const GOOD: [&str; 8] = [
        "--worker-id=w-1",
        "--engine=echo",
        "--model-name=smollm2:135m",
        "--model-name=file:/m.gguf",
        "--hive-url=http://127.0.0.1:9200",
        "--slots=3",
        "--lease-seconds=5",
        "--context=64",
    ];

    #[test]
    fn good_arguments_become_a_config() {
        let config = check(&GOOD).unwrap();
        assert_eq!(config.model_names.len(), 2);
        assert_eq!(config.lease, Duration::from_secs(5));
        assert_eq!((config.engine.slots, config.engine.context), (Some(3), Some(64)));
        assert_eq!(config.engine.backend(), Backend::Echo);
    }

    #[test]
    fn what_is_missing_or_out_of_range_is_named() {
        for (without, with, named) in [
            ("--worker-id", "", "--worker-id"),
            ("--model-name", "", "--model-name"),
            ("--hive-url", "", "--hive-url"),
            ("--engine", "", "--model"),
            ("--engine", "--engine=llama", "--model"),
            ("--slots", "--slots=0", "--slots"),
            ("--slots", "--slots=257", "--slots"),
            ("--hive-url", "--hive-url=127.0.0.1:9200", "--hive-url"),
            ("--hive-url", "--hive-url=http://127.0.0.1:9200/x", "--hive-url"),
            ("--worker-id", "--worker-id=A b", "--worker-id"),
            ("-", "--cache-disk=5", "--cache-dir"),
            ("-", "--model-sha256=5", "--model-sha256"),
        ] {
            let kept =
                GOOD.iter().filter(|argument| without == "-" || !argument.starts_with(without));
            let arguments: Vec<&str> =
                kept.copied().chain([with]).filter(|a| !a.is_empty()).collect();
            let refused = check(&arguments).unwrap_err();
            assert!(refused.contains(named), "{without} {with}: {refused}");
        }
    }

    #[test]
    fn the_routes_can_be_asked_for_without_anything_else() {
        assert!(Arguments::try_parse_from(["llm-worker-rbee", "--print-routes"]).is_ok());
    }
}
