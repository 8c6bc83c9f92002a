//! `GET /v1/models`.

use axum::Json;
use axum::extract::State;
use rbee_api::model::ModelKind;
use rbee_api::openai::{ModelCard, ModelCardList};

use super::App;
use crate::engine::backend::Loaded;

pub(super) async fn list(State(app): State<App>) -> Json<ModelCardList> {
    let kind = app.engine().loaded().map(Loaded::kind);
    let capabilities = || kind.map_or(&[][..], ModelKind::capabilities);
    let card = |name: &input_validation::ModelRef| ModelCard {
        id: name.to_string(),
        object: "model".to_owned(),
        created: app.0.started_at,
        owned_by: "rbee".to_owned(),
        capabilities: capabilities().iter().map(ToString::to_string).collect(),
    };
    Json(ModelCardList {
        object: "list".to_owned(),
        data: app.0.model.names.iter().map(card).collect(),
    })
}
