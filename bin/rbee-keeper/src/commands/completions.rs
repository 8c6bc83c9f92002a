//! `rbee completions`: a completion script, made from the command line's own description.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::error::KeeperError;
use crate::keeper::Keeper;

pub(super) fn completions(keeper: &Keeper, shell: Shell) -> Result<(), KeeperError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "rbee", &mut script);
    keeper.output.raw(&script)
}
