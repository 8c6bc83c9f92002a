//! `rbee rm`: removes a model and its file, after asking.

use crate::cli::RmArgs;
use crate::error::KeeperError;
use crate::keeper::Keeper;
use crate::model_argument::known_model;

pub(super) async fn rm(keeper: &Keeper, args: RmArgs) -> Result<(), KeeperError> {
    let model = known_model(&args.model)?;
    let output = &keeper.output;
    if !args.yes {
        if !keeper.may_ask {
            let message = format!("not removing {model} without asking");
            return Err(KeeperError::usage(message, "say --yes to remove it"));
        }
        if !output.confirm(&format!("Remove {model} and its file?")).await? {
            output.note("nothing was removed");
            return Ok(());
        }
    }
    let removed = keeper.ensure_queen().await?.remove_model(&model).await?;
    if output.is_json() {
        return output.json(&removed);
    }
    output.line(&format!("removed {}", removed.removed))
}
