//! The commands: which one runs, and what they have in common. Each file is one command.

mod audit;
mod bench;
mod chat;
mod completions;
mod embed;
mod env;
mod hive;
mod key;
mod list;
mod logs;
mod man;
mod ps;
mod pull;
mod queen;
mod rm;
mod run;
mod status;
mod stop;
mod token;
mod workers;

use std::time::{SystemTime, UNIX_EPOCH};

use rbee_home::ExitStatus;

use crate::cli::Command;
use crate::error::KeeperError;
use crate::interrupt::Signals;
use crate::keeper::Keeper;

/// Runs one command to its end, or until a signal; a signal drops the work, and with it every open connection.
///
/// # Errors
/// Whatever kept the command from doing what was asked.
pub(crate) async fn carry_out(
    keeper: &Keeper,
    command: Command,
) -> Result<ExitStatus, KeeperError> {
    let mut signals = Signals::listen()?;
    if let Command::Run(args) = &command {
        return run::run(keeper, args, &mut signals).await;
    }
    signals.unless_stopped(Box::pin(dispatch(keeper, command))).await
}

async fn dispatch(keeper: &Keeper, command: Command) -> Result<ExitStatus, KeeperError> {
    match command {
        // `run` listens to signals itself, because a chat goes on after one.
        Command::Run(_) => Ok(()),
        Command::Embed(args) => embed::embed(keeper, args).await,
        Command::Pull(args) => pull::pull(keeper, args).await,
        Command::List => list::list(keeper).await,
        Command::Ps => ps::ps(keeper).await,
        Command::Workers(args) => workers::workers(keeper, args.action).await,
        Command::Stop(args) => stop::stop(keeper, args).await,
        Command::Rm(args) => rm::rm(keeper, args).await,
        Command::Logs(args) => logs::logs(keeper, args).await,
        Command::Status => return status::status(keeper).await,
        Command::Queen(args) => return queen::queen(keeper, args.action).await,
        Command::Bench(args) => return bench::bench(keeper, &args).await,
        Command::Key(args) => key::key(keeper, args.action).await,
        Command::Hive(args) => hive::hive(keeper, args.action).await,
        Command::Usage(args) => key::usage(keeper, args).await,
        Command::Token(args) => token::token(keeper, args.action).await,
        Command::Audit(args) => audit::audit(keeper, args.action).await,
        Command::Env(args) => env::env(keeper, args.shell).await,
        Command::Completions(args) => completions::completions(keeper, args.shell),
        Command::Man(args) => man::man(keeper, args.command.as_deref()),
    }
    .map(|()| ExitStatus::Success)
}

/// Milliseconds since the epoch, the unit of the queen's own times.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
