//! `rbee pull`: adds a model to the hive's disk, with progress.

use input_validation::{ModelAlias, Sha256Hex};
use rbee_api::model::{ModelInfo, PullEvent, PullRequest};
use serde_json::json;

use crate::cli::PullArgs;
use crate::error::KeeperError;
use crate::event_stream::{EventReader, Next};
use crate::figures;
use crate::keeper::Keeper;
use crate::model_argument::{model_source, parse};

pub(super) async fn pull(keeper: &Keeper, args: PullArgs) -> Result<(), KeeperError> {
    let reference = model_source(&args.reference)?;
    let alias =
        args.name.as_deref().map(|name| parse::<ModelAlias>("the name", name)).transpose()?;
    let sha256 =
        args.sha256.as_deref().map(|hex| parse::<Sha256Hex>("the digest", hex)).transpose()?;
    let request = PullRequest { reference, alias, sha256 };

    let queen = keeper.ensure_queen().await?;
    let events = queen.pull(&request).await?;
    let model = watch(keeper, events, &request).await?;
    let output = &keeper.output;
    if output.is_json() {
        return output.json(&json!({ "model": model }));
    }
    let name = model.display_name();
    output.line(&format!(
        "{name}  {}  {}",
        figures::bytes(model.size_bytes),
        model.architecture
    ))?;
    output.note(&format!("run it with `rbee run {name}`"));
    Ok(())
}

async fn watch(
    keeper: &Keeper,
    mut events: EventReader,
    request: &PullRequest,
) -> Result<ModelInfo, KeeperError> {
    let progress = keeper.output.progress(format!("adding {}", short_name(request)));
    loop {
        match events.next().await? {
            Next::Event(PullEvent::Progress { done_bytes, total_bytes }) => {
                progress.set(done_bytes, total_bytes);
            }
            Next::Event(PullEvent::Done { model }) => return Ok(model),
            Next::Event(PullEvent::Failed { error }) => {
                return Err(KeeperError::Refused(Box::new(error)));
            }
            Next::Done | Next::End => return Err(KeeperError::BrokenOff),
        }
    }
}

/// A name that leaves room for the bar beside it.
fn short_name(request: &PullRequest) -> String {
    let reference = request.reference.as_str();
    request.alias.as_ref().map_or_else(
        || reference.rsplit('/').next().unwrap_or(reference).to_owned(),
        ToString::to_string,
    )
}
