//! `GET /v1/models`.

use axum::Json;
use axum::extract::State;
use rbee_api::openai::{ModelCard, ModelCardList};

use super::App;

pub(super) async fn list(State(app): State<App>) -> Json<ModelCardList> {
    let card = |name: &input_validation::ModelRef| ModelCard {
        id: name.to_string(),
        object: "model".to_owned(),
        created: app.0.started_at,
        owned_by: "rbee".to_owned(),
    };
    Json(ModelCardList {
        object: "list".to_owned(),
        data: app.0.model_names.iter().map(card).collect(),
    })
}
