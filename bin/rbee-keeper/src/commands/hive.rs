//! `rbee hive`: machines taken into the cluster, listed and forgotten.

use input_validation::NodeName;
use rbee_api::hive::HiveInfo;
use rbee_api::pairing::CreatePairing;

use crate::cli::HiveAction;
use crate::error::KeeperError;
use crate::keeper::Keeper;

pub(super) async fn hive(keeper: &Keeper, action: HiveAction) -> Result<(), KeeperError> {
    match action {
        HiveAction::Pair { name, url } => {
            pair(keeper, CreatePairing { name, queen_url: url }).await
        }
        HiveAction::List => list(keeper).await,
        HiveAction::Forget { name } => forget(keeper, &name).await,
    }
}

async fn pair(keeper: &Keeper, wanted: CreatePairing) -> Result<(), KeeperError> {
    let made = keeper.ensure_queen().await?.create_pairing(&wanted).await?;
    let output = &keeper.output;
    if output.is_json() {
        return output.json(&made);
    }
    output.line(&made.code.0)?;
    if made.code.parts().is_some_and(|code| code.names_one_machine()) {
        output.note(
            "warning: this code names an address of this machine alone; for another machine bind the queen to an \
             address that it reaches, or name one with --url",
        );
    }
    output.note(&format!(
        "give it to `rbee-hive --pair` on {}, on its standard input; it can be used once, for {} minutes",
        made.name,
        made.expires_in_seconds / 60
    ));
    Ok(())
}

async fn list(keeper: &Keeper) -> Result<(), KeeperError> {
    let list = keeper.ensure_queen().await?.hives().await?;
    if keeper.output.is_json() {
        return keeper.output.json(&list);
    }
    let row =
        |hive: &HiveInfo| [hive.name.to_string(), hive.state.as_str().to_owned(), hive.url.clone()];
    keeper.output.table(["MACHINE", "STATE", "ADDRESS"], list.hives.iter().map(row))
}

async fn forget(keeper: &Keeper, name: &NodeName) -> Result<(), KeeperError> {
    let removed = keeper.ensure_queen().await?.forget_hive(name).await?;
    if keeper.output.is_json() {
        return keeper.output.json(&removed);
    }
    keeper.output.line(&format!("{} is forgotten", removed.removed))
}
