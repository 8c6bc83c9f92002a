//! `rbee`, the command line: asks, shows, ends with a meaningful exit code. Talks to a queen and, when it is
//! to measure, to the endpoints that the user names; keeps no state and decides nothing about work.

mod cli;
mod commands;
mod config;
mod error;
mod event_stream;
mod figures;
mod generation;
mod interrupt;
mod keeper;
mod line_editor;
mod model_argument;
mod output;
mod prompt;
mod queen_client;
mod queen_process;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use clap::Parser as _;

pub use cli::Cli;
use config::{Config, Environment};
use error::KeeperError;
pub use event_stream::read_events;
use keeper::Keeper;
use output::Output;
use rbee_home::ExitStatus;

/// Reads the arguments.
///
/// # Errors
/// The exit code, with help, version or usage error shown.
pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Cli, ExitCode> {
    let args: Vec<OsString> = args.collect();
    Cli::try_parse_from(&args).map_err(|text| {
        // Arguments that cannot be parsed are searched: after `--` come only values.
        let json = args.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--json");
        output::show_usage(&text, json);
        if text.use_stderr() { ExitStatus::Usage.into() } else { ExitStatus::Success.into() }
    })
}

/// Carries out what was typed, shows why it failed where it did, and returns the exit code.
pub async fn run(cli: Cli) -> ExitCode {
    let output = Output::new(&cli.global);
    let config = match Config::load(&cli.global, Environment::read()) {
        Ok(config) => config,
        Err(error) => return report(&output, &error.into()),
    };
    let may_ask = !cli.global.no_input && output.can_ask();
    let keeper = Keeper { config, output, may_ask };
    match commands::carry_out(&keeper, cli.command).await {
        Ok(status) => status.into(),
        Err(error) => report(&keeper.output, &error),
    }
}

/// Says that the runtime could not be started.
#[must_use]
pub fn report_no_runtime(cli: &Cli, source: io::Error) -> ExitCode {
    let error = KeeperError::Setup { action: "start the runtime", source };
    report(&Output::new(&cli.global), &error)
}

fn report(output: &Output, error: &KeeperError) -> ExitCode {
    if error.is_broken_pipe() {
        // Whoever read the output has what they wanted.
        return ExitStatus::Success.into();
    }
    if !matches!(error, KeeperError::Stopped(_)) {
        output.error(error);
    }
    error.exit_code().into()
}
