//! What a person can type. The doc comments are the help text, the man page and the completions. Checks the form of
//! single values; what they mean together is the command's own business.

mod audit;
mod bench;
mod hive;
mod key;
mod token;

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use rbee_api::limits;

pub(crate) use audit::{AuditAction, AuditArgs, ExportArgs, ExportFormat, TailArgs, VerifyArgs};
pub(crate) use bench::{Api, ArrivalPattern, BenchArgs, ExtraFields, Scenario, Span};
pub(crate) use hive::{HiveAction, HiveArgs};
pub(crate) use key::{CreateArgs, KeyAction, KeyArgs, OneKey, UsageArgs};
pub(crate) use token::{TokenAction, TokenArgs, WhichToken};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const EXAMPLES: &str = "\
Nothing has to be started first: `rbee run` starts what it needs.

Examples:
  rbee pull ./smollm2.gguf --name smollm2:135m   add a model file under a short name
  rbee run smollm2:135m \"Why is the sky blue?\"   answer one prompt
  rbee run smollm2:135m < question.txt           take the prompt from a file
  rbee run smollm2:135m                          chat
  rbee bench -m smollm2:135m                     measure how fast it answers
  eval \"$(rbee env --shell)\"                     point OpenAI's clients at this computer

Exit codes:
  0 done   1 failed   2 wrong usage   69 not running, not reachable, or a port is taken
  71 the operating system refused something   75 busy, try again   77 not allowed
  78 wrong configuration   130 Ctrl-C   143 terminated

Data goes to standard output, everything else to standard error. With --json, an error is
one line {\"error\":{\"message\",\"code\",\"hint\",\"exit_code\",…}} on standard error.";

const RUN_EXAMPLES: &str = "\
Examples:
  rbee run smollm2:135m \"Name three rivers\"
  rbee infer -m smollm2:135m -p \"Name three rivers\" --max-tokens 40 --temperature 0
  git diff | rbee run smollm2:135m
  rbee run smollm2:135m \"Summarise this:\" - < notes.txt

Without a prompt and at a terminal it is a chat: /help shows its commands.

With --json: {\"model\",\"text\",\"finish_reason\",\"usage\":{\"prompt_tokens\",\"completion_tokens\",
\"total_tokens\"},\"timings\":{\"first_token_ms\",\"total_ms\",\"tokens_per_second\"},\"request_id\"}";

const EMBED_EXAMPLES: &str = "\
Examples:
  rbee embed -m bge:small \"the bees make honey\" \"the sky is blue\"
  rbee embed -m bge:small < sentences.txt > embeddings.jsonl

Each line is {\"index\",\"text\",\"embedding\":[NUMBER,…]}, with --json and without.";

const QUEEN_JSON: &str = "\
With --json: {\"running\",\"url\",\"pid\",\"version\",\"uptime_ms\",\"draining\"}";

const ENV_EXAMPLES: &str = "\
Examples:
  eval \"$(rbee env --shell)\"                        sh, bash, zsh
  rbee env --shell fish | source                    fish
  rbee env --shell powershell | Invoke-Expression   PowerShell

This prints the token that opens the queen: keep it off shared screens and out of logs.";

const MAN_EXAMPLES: &str = "\
Examples:
  rbee man | man -l -
  rbee man run | man -l -";

/// Private AI on the computers you own: in the terminal, and for every client that speaks OpenAI's language
#[derive(Debug, Parser)]
#[command(name = "rbee", version, styles = STYLES, after_help = EXAMPLES, max_term_width = 100)]
#[command(propagate_version = false, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// What holds for every command.
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
}

/// What holds for every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArgs {
    /// Ask the queen at this address instead of the one on this computer [env: RBEE_QUEEN_URL]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) queen: Option<String>,
    /// Read the token for the queen from this file [env: RBEE_TOKEN_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Know a queen on another computer, or a server that is measured, by the CAs in this PEM file [env: RBEE_TLS_CA_FILE] [default: tls/ca.pem in the home]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Keep models, tokens and logs here [env: RBEE_HOME] [default: ~/.rbee]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Read settings from this file [env: RBEE_CONFIG] [default: ~/.config/rbee/rbee.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print data, and errors, as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say nothing but data and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Say more: token counts, speed, request ids
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
    /// Never ask; fail where an answer is needed
    #[arg(long, global = true)]
    pub(crate) no_input: bool,
    /// When to use colour; NO_COLOR is honoured
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: ColorWhen,
}

/// When to use colour; `auto` means on a terminal that can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorWhen {
    Auto,
    Always,
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Answer a prompt, or chat
    #[command(visible_alias = "infer", after_help = RUN_EXAMPLES)]
    #[command(
        override_usage = "rbee run [OPTIONS] MODEL [PROMPT]...\n       rbee run [OPTIONS] -m MODEL [-p PROMPT]"
    )]
    Run(RunArgs),
    /// Turn texts into embeddings, one JSON object a line
    #[command(after_help = EMBED_EXAMPLES)]
    Embed(EmbedArgs),
    /// Add a model
    #[command(
        after_help = "With --json: {\"model\":{\"reference\",\"alias\",\"size_bytes\",\"sha256\",…}}"
    )]
    Pull(PullArgs),
    /// List the models
    #[command(visible_alias = "ls")]
    #[command(after_help = "With --json: what the queen answers to GET /api/v1/models")]
    List,
    /// List the workers, which are the models in memory
    #[command(after_help = "With --json: what the queen answers to GET /api/v1/workers")]
    Ps,
    /// Look after workers
    Workers(WorkersArgs),
    /// Stop workers and free their memory
    #[command(after_help = "With --json: {\"stopped\":[WORKER,…]}")]
    Stop(StopArgs),
    /// Remove a model and its file
    #[command(after_help = "With --json: {\"removed\":REFERENCE}")]
    Rm(RmArgs),
    /// Show the log of a program
    Logs(LogsArgs),
    /// Show machines, workers and whether a queen runs (exit code 69 when none does)
    #[command(
        after_help = "With --json: what the queen answers to GET /api/v1/status, with \"running\" and \"url\""
    )]
    Status,
    /// Start, stop or look at the queen on this computer
    Queen(QueenArgs),
    /// Make, list and revoke keys for other people and programs
    #[command(after_help = key::KEY_EXAMPLES)]
    Key(KeyArgs),
    /// Take machines into the cluster, list and forget them
    #[command(after_help = hive::EXAMPLES)]
    Hive(HiveArgs),
    /// Show what was used under each key, by day
    #[command(after_help = "With --json: what the queen answers to GET /api/v1/usage")]
    Usage(UsageArgs),
    /// Measure how fast an OpenAI endpoint answers, alone or beside another
    #[command(after_help = bench::EXAMPLES)]
    Bench(Box<BenchArgs>),
    /// Replace tokens, or show which are in force
    #[command(after_help = token::EXAMPLES)]
    Token(TokenArgs),
    /// Check, show or print the logs of who did what
    #[command(after_help = audit::EXAMPLES)]
    Audit(AuditArgs),
    /// Print what OpenAI's clients need to find rbee
    #[command(after_help = ENV_EXAMPLES)]
    Env(EnvArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page
    #[command(after_help = MAN_EXAMPLES)]
    Man(ManArgs),
}

/// `rbee run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The model, then the prompt; `-` stands for standard input
    #[arg(value_name = "MODEL PROMPT")]
    pub(crate) words: Vec<String>,
    /// The model: a short name such as smollm2:135m, or a reference such as file:/data/m.gguf
    #[arg(short, long)]
    pub(crate) model: Option<String>,
    /// The prompt; `-` reads it from standard input
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: Option<String>,
    /// Instructions for the whole conversation
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Most tokens to generate [default: up to the end of the context]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::MAX_TOKENS_MAX)))]
    pub(crate) max_tokens: Option<u32>,
    /// 0 always takes the likeliest token, 2 is wildest [default: 0.8]
    #[arg(long, value_name = "F", value_parser = |s: &str| number(s, 0.0, 2.0))]
    pub(crate) temperature: Option<f32>,
    /// Make the answer repeatable
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) seed: Option<i64>,
    /// Choose among the likeliest tokens up to this share of the probability [default: 0.95]
    #[arg(long, value_name = "F", value_parser = |s: &str| number(s, 0.0, 1.0))]
    pub(crate) top_p: Option<f32>,
    /// Choose among this many likeliest tokens, 0 for all [default: 40]
    #[arg(long, value_name = "N")]
    pub(crate) top_k: Option<u32>,
    /// Stop before this text; up to four times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = stop_sequence)]
    pub(crate) stop: Vec<String>,
    /// Give up after this many seconds, loading included
    #[arg(long, value_name = "SECS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) timeout: u64,
    /// Print the answer when it is whole
    #[arg(long)]
    pub(crate) no_stream: bool,
}

/// `rbee embed`.
#[derive(Debug, Args)]
pub(crate) struct EmbedArgs {
    /// The model: a short name or a reference; `rbee list` shows which are of kind embed
    #[arg(short, long)]
    pub(crate) model: String,
    /// The texts; without any, the lines of standard input
    #[arg(value_name = "TEXT")]
    pub(crate) texts: Vec<String>,
    /// Numbers in each embedding, where the model allows fewer than it gives
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) dimensions: Option<u32>,
    /// Give up after this many seconds, loading included
    #[arg(long, value_name = "SECS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) timeout: u64,
}

/// `rbee pull`.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// A GGUF file on this computer, or file:/absolute/path on the hive's
    #[arg(value_name = "REF")]
    pub(crate) reference: String,
    /// The short name to give it, such as smollm2:135m
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// The SHA-256 the file must have
    #[arg(long, value_name = "HEX")]
    pub(crate) sha256: Option<String>,
}

/// `rbee workers`.
#[derive(Debug, Args)]
pub(crate) struct WorkersArgs {
    /// What to do with them.
    #[command(subcommand)]
    pub(crate) action: WorkersAction,
}

/// What to do with workers.
#[derive(Debug, Subcommand)]
pub(crate) enum WorkersAction {
    /// Forget the failures of workers, and start those that failed again at once
    #[command(
        after_help = "With --json: {\"reset\":[WORKER,…]}, the workers that start or run, each with failures_cleared and breaker_was"
    )]
    Reset(ResetArgs),
}

/// `rbee workers reset`.
#[derive(Debug, Args)]
pub(crate) struct ResetArgs {
    /// A worker's id from `rbee ps`, or a model, which means its workers on all machines
    #[arg(value_name = "WORKER|MODEL", required_unless_present = "all")]
    pub(crate) target: Option<String>,
    /// Reset every worker that has failures
    #[arg(long, conflicts_with = "target")]
    pub(crate) all: bool,
}

/// `rbee stop`.
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// A worker's id from `rbee ps`, or a model, which means all its workers
    #[arg(value_name = "WORKER|MODEL", required_unless_present = "all")]
    pub(crate) target: Option<String>,
    /// Stop every worker
    #[arg(long, conflicts_with = "target")]
    pub(crate) all: bool,
}

/// `rbee rm`.
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// The model's short name or reference
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
}

/// `rbee logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// queen, hive, or a worker's id from `rbee ps`
    #[arg(value_name = "PROGRAM", default_value = "queen")]
    pub(crate) program: String,
    /// Go on showing new lines until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// How many of the last lines to show, of a worker's log 10000 at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, value_parser = lines)]
    pub(crate) lines: usize,
}

/// `rbee queen`.
#[derive(Debug, Args)]
pub(crate) struct QueenArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub(crate) action: QueenAction,
}

/// What to do with the queen.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum QueenAction {
    /// Start a queen in the background, unless one runs
    #[command(after_help = QUEEN_JSON)]
    Start,
    /// Stop the queen, and the hive and workers it started
    #[command(after_help = "With --json: {\"stopped\":BOOL}")]
    Stop,
    /// Say whether a queen runs (exit code 69 when none does)
    #[command(after_help = QUEEN_JSON)]
    Status,
}

/// `rbee env`.
#[derive(Debug, Args)]
pub(crate) struct EnvArgs {
    /// The shell that will read it
    #[arg(long, value_name = "SHELL", num_args = 0..=1, default_value = "sh", default_missing_value = "sh")]
    pub(crate) shell: EnvShell,
}

/// Shells that differ in how a variable is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EnvShell {
    #[value(aliases = ["bash", "zsh", "dash", "ksh"])]
    Sh,
    Fish,
    #[value(aliases = ["pwsh"])]
    Powershell,
}

/// `rbee completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: Shell,
}

/// `rbee man`.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The command to describe [default: rbee itself]
    pub(crate) command: Option<String>,
}

/// Most lines that `logs` keeps in memory.
const LINES_MAX: usize = 100_000;

fn number(text: &str, min: f32, max: f32) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if (min..=max).contains(&value) => Ok(value),
        _ => Err(format!("it must be a number from {min} to {max}")),
    }
}

fn stop_sequence(text: &str) -> Result<String, String> {
    if (1..=limits::STOP_BYTES_MAX).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err(format!("it must have 1 to {} bytes", limits::STOP_BYTES_MAX))
    }
}

fn lines(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count <= LINES_MAX => Ok(count),
        _ => Err(format!("it must be a number from 0 to {LINES_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for args in [
            ["--temperature", "2.1"],
            ["--temperature", "NaN"],
            ["--top-p", "-0.1"],
            ["--max-tokens", "0"],
            ["--timeout", "0"],
            ["--top-k", "-1"],
            ["--stop", ""],
            ["--stop", &"x".repeat(257)],
        ] {
            let typed = ["rbee", "run", "m"].into_iter().chain(args);
            let error = Cli::try_parse_from(typed).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{args:?}");
        }
    }

    #[test]
    fn both_names_of_run_and_both_forms_parse_alike() {
        let parse = |typed: &[&str]| match Cli::try_parse_from(typed).unwrap().command {
            Command::Run(args) => args,
            other => panic!("{other:?}"),
        };
        assert_eq!(parse(&["rbee", "run", "m", "hi", "you"]).words, ["m", "hi", "you"]);
        let flags = parse(&["rbee", "infer", "-m", "m", "-p", "-"]);
        assert_eq!((flags.model.as_deref(), flags.prompt.as_deref()), (Some("m"), Some("-")));
    }
}
