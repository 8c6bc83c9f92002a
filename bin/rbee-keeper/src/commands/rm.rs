//! `rbee rm`: removes a model and its file, after asking.

use input_validation::ModelRef;
use rbee_api::error::{ErrorCode, ErrorDetail};

use crate::cli::RmArgs;
use crate::error::KeeperError;
use crate::keeper::Keeper;
use crate::model_argument::known_model;
use crate::queen_client::QueenClient;

pub(super) async fn rm(keeper: &Keeper, args: RmArgs) -> Result<(), KeeperError> {
    let model = known_model(&args.model)?;
    let output = &keeper.output;
    if !args.yes && !keeper.may_ask {
        let message = format!("not removing {model} without asking");
        return Err(KeeperError::usage(message, "say --yes to remove it"));
    }
    let queen = keeper.ensure_queen().await?;
    if !args.yes {
        check_known(&queen, &model).await?;
        if !output.confirm(&format!("Remove {model} and its file?")).await? {
            output.note("nothing was removed");
            return Ok(());
        }
    }
    let removed = queen.remove_model(&model).await?;
    if output.is_json() {
        return output.json(&removed);
    }
    output.line(&format!("removed {}", removed.removed))
}

/// Refuses a model that nobody has: there is nothing to ask about.
async fn check_known(queen: &QueenClient, model: &ModelRef) -> Result<(), KeeperError> {
    let list = queen.models().await?;
    if list.models.iter().any(|placed| placed.model.answers_to(model)) {
        return Ok(());
    }
    let detail = ErrorDetail::new(ErrorCode::ModelNotFound, format!("no machine has {model}"));
    Err(KeeperError::Refused(Box::new(detail.with_param("model"))))
}
