//! `rbee man`: the manual page, made from the command line's own description.

use clap::CommandFactory as _;
use clap_mangen::Man;

use crate::cli::Cli;
use crate::error::KeeperError;
use crate::keeper::Keeper;

pub(super) fn man(keeper: &Keeper, name: Option<&str>) -> Result<(), KeeperError> {
    let mut rbee = Cli::command();
    rbee.build();
    let command = match name {
        None => rbee,
        Some(name) => rbee.find_subcommand(name).cloned().ok_or_else(|| {
            KeeperError::usage(format!("rbee has no command {name}"), "`rbee --help` lists them")
        })?,
    };
    let mut page = Vec::new();
    Man::new(command).render(&mut page).map_err(KeeperError::Output)?;
    keeper.output.raw(&page)
}
