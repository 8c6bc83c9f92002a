//! `rbee list`: the models on disk.

use super::now_ms;
use crate::error::KeeperError;
use crate::figures;
use crate::keeper::Keeper;

pub(super) async fn list(keeper: &Keeper) -> Result<(), KeeperError> {
    let list = keeper.ensure_queen().await?.models().await?;
    let output = &keeper.output;
    if output.is_json() {
        return output.json(&list);
    }
    if list.models.is_empty() {
        output.note("no models yet; add one with `rbee pull FILE --name NAME`");
    }
    let now = now_ms();
    let rows = list.models.iter().map(|placed| {
        let model = &placed.model;
        let hives: Vec<&str> = placed.hives.iter().map(AsRef::as_ref).collect();
        [
            model.display_name(),
            model.kind.to_string(),
            figures::bytes(model.size_bytes),
            model.parameters.map_or_else(|| "-".to_owned(), figures::count),
            model.quantisation.clone().unwrap_or_else(|| "-".to_owned()),
            model.context_length.to_string(),
            figures::ago(model.added_at_ms, now),
            hives.join(","),
        ]
    });
    output.table(["MODEL", "KIND", "SIZE", "WEIGHTS", "QUANT", "CONTEXT", "ADDED", "ON"], rows)
}
