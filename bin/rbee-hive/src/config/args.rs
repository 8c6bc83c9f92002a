//! The command line, and the variables of the environment that stand for a flag.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use input_validation::NodeName;
use rbee_api::worker::Backend;
use rbee_http::LogFormat;

use super::auth::AuthArgs;
use super::tls::TlsArgs;

/// One per machine: keeps models on disk and runs workers for them.
#[derive(Debug, Default, Parser)]
#[command(name = "rbee-hive", version)]
pub(super) struct Args {
    /// Directory of all state [default: ~/.rbee]
    #[arg(long, value_name = "DIR", env = "RBEE_HOME")]
    pub(super) home: Option<PathBuf>,
    /// Config file [default: ~/.config/rbee/rbee-hive.toml, then /etc/rbee/rbee-hive.toml]
    #[arg(long, value_name = "FILE", env = "RBEE_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// Address to listen on [default: 127.0.0.1:9200]
    #[arg(long, value_name = "ADDRESS:PORT", env = "RBEE_HIVE_BIND")]
    pub(super) bind: Option<SocketAddr>,
    /// The machine's name in the cluster [default: local]
    #[arg(long, env = "RBEE_HIVE_NAME")]
    pub(super) name: Option<NodeName>,
    /// The queen to report to [default: the one that runs on the same home]
    #[arg(long, value_name = "URL", env = "RBEE_HIVE_QUEEN_URL")]
    pub(super) queen_url: Option<String>,
    /// Started by a queen, which also stops it
    #[arg(long)]
    pub(super) managed: bool,
    /// Become a machine of a cluster: read the code that `rbee hive pair` printed from standard input, and end
    #[arg(long, conflicts_with = "managed")]
    pub(super) pair: bool,
    /// With --pair: by which URL the queen reaches this hive [default: https:// and --bind]
    #[arg(long, value_name = "URL", requires = "pair")]
    pub(super) own_url: Option<String>,
    /// First port tried for a worker; 0 takes any [default: 8081]
    #[arg(long, value_name = "PORT", env = "RBEE_HIVE_WORKER_PORT_FIRST")]
    pub(super) worker_port_first: Option<u16>,
    /// The worker program [default: llm-worker-rbee beside this program]
    #[arg(long, value_name = "FILE", env = "RBEE_HIVE_WORKER_PATH")]
    pub(super) worker_path: Option<PathBuf>,
    /// What turns requests into tokens: llama, or echo for tests [default: llama]
    #[arg(long, env = "RBEE_HIVE_WORKER_ENGINE", value_parser = parse_engine)]
    pub(super) worker_engine: Option<Backend>,
    /// Seconds without a request after which a worker is stopped; 0 is never [default: 300]
    #[arg(long, value_name = "SECONDS", env = "RBEE_HIVE_IDLE_STOP_SECONDS")]
    pub(super) idle_stop_seconds: Option<u64>,
    /// Form of log lines: human or json [default: human]
    #[arg(long, env = "RBEE_LOG_FORMAT", value_parser = parse_log_format)]
    pub(super) log_format: Option<LogFormat>,
    /// Level or directives of the log [default: info]
    #[arg(long, env = "RBEE_LOG")]
    pub(super) log_level: Option<String>,
    #[command(flatten)]
    pub(super) auth: AuthArgs,
    #[command(flatten)]
    pub(super) tls: TlsArgs,
    /// Print the routes with who may call them, and end
    #[arg(long)]
    pub(super) print_routes: bool,
    /// Print the OpenAPI document of the routes, and end
    #[arg(long)]
    pub(super) print_openapi: bool,
    /// Check the configuration, and end
    #[arg(long)]
    pub(super) validate_config: bool,
}

fn parse_engine(text: &str) -> Result<Backend, &'static str> {
    match text {
        "llama" => Ok(Backend::Llama),
        "echo" => Ok(Backend::Echo),
        _ => Err("expected llama or echo"),
    }
}

fn parse_log_format(text: &str) -> Result<LogFormat, &'static str> {
    match text {
        "human" => Ok(LogFormat::Human),
        "json" => Ok(LogFormat::Json),
        _ => Err("expected human or json"),
    }
}
