//! The models of this machine as the hive's clients see them: list, look up, import, remove. Owns the way from the
//! catalog's blocking calls and errors to replies; the catalog itself stands in its own crate.

mod failure;
mod import;

use std::path::PathBuf;
use std::sync::Arc;

use input_validation::ModelRef;
use model_catalog::{Catalog, Model, ModelStore, Purpose, StoreError};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::model::{ModelInfo, ModelKind};
use rbee_home::Home;
use rbee_http::ApiError;
use tokio::sync::Semaphore;

use crate::error::HiveError;

pub(crate) use import::ImportContext;

use failure::detail_of;

/// Imports at once: one keeps a disk busy, and two would only slow each other down.
const IMPORTS_MAX: usize = 1;

/// The model directory and its catalog.
#[derive(Debug)]
pub(crate) struct Models {
    store: Arc<ModelStore>,
    import_roots: Vec<PathBuf>,
    imports: Arc<Semaphore>,
    was_damaged: bool,
}

impl Models {
    pub(crate) fn open(home: &Home, import_roots: Vec<PathBuf>) -> Result<Self, HiveError> {
        let opened = Catalog::open(&home.models_db())?;
        let was_damaged = opened.damaged.is_some();
        let store = ModelStore::open(&home.models_dir(), opened.catalog)?;
        let imports = Arc::new(Semaphore::new(IMPORTS_MAX));
        Ok(Self { store: Arc::new(store), import_roots, imports, was_damaged })
    }

    /// Fills the catalog again from the model files, if it had to be replaced. Reads all of them.
    pub(crate) async fn rebuild_if_damaged(&self) {
        if !self.was_damaged {
            return;
        }
        tracing::warn!("the model catalog was damaged and is being rebuilt from the model files");
        match self.blocking(ModelStore::rebuild).await {
            Ok(rebuilt) => {
                for file in &rebuilt.rejected {
                    tracing::warn!(path = %file.path.display(), error = %file.error, "a model file was not registered");
                }
                tracing::info!(models = rebuilt.registered.len(), "the model catalog was rebuilt");
            }
            Err(error) => tracing::error!(error = %error, "the model catalog could not be rebuilt"),
        }
    }

    /// Returns all models, oldest first.
    pub(crate) async fn list(&self) -> Result<Vec<ModelInfo>, ApiError> {
        let mut models = self.blocking(|store| Ok(store.catalog().list()?)).await?;
        models.sort_by_key(|model| model.added_at_ms);
        Ok(models.iter().map(describe).collect())
    }

    pub(crate) async fn find(&self, reference: &ModelRef) -> Result<Option<Model>, ApiError> {
        let reference = reference.clone();
        self.blocking(move |store| Ok(store.catalog().get(&reference)?)).await
    }

    /// Returns a model, having looked that its file is still the one that was registered.
    pub(crate) async fn find_usable(
        &self,
        reference: &ModelRef,
    ) -> Result<Option<Model>, ApiError> {
        let reference = reference.clone();
        let look = move |store: &ModelStore| {
            let model = store.catalog().get(&reference)?;
            let checked = model.as_ref().map_or(Ok(()), |model| store.check(model));
            Ok((model, checked))
        };
        let (model, checked) = self.blocking(look).await?;
        checked.map_err(|error| {
            tracing::warn!(model = %reference_of(model.as_ref()), error = %error, "a model file is not what was registered");
            let message = "the model's file is gone or has changed since it was pulled; remove the model with \
                           `rbee rm` and pull it again";
            ErrorDetail::new(ErrorCode::InvalidModelFile, message)
        })?;
        Ok(model)
    }

    /// Removes a model, and its file where that lies in the model directory.
    pub(crate) async fn remove(&self, reference: &ModelRef) -> Result<(), ApiError> {
        let reference = reference.clone();
        self.blocking(move |store| store.remove(&reference)).await.map(drop)
    }

    /// Calls the store where blocking harms nobody.
    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&ModelStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let store = Arc::clone(&self.store);
        match tokio::task::spawn_blocking(move || call(&store)).await {
            Ok(result) => result.map_err(|error| detail_of(&error).into()),
            Err(error) => {
                tracing::error!(error = %error, "a call to the model store did not end");
                Err(ApiError::new(ErrorCode::InternalError, "the model store failed"))
            }
        }
    }
}

fn reference_of(model: Option<&Model>) -> &str {
    model.map_or("", |model| model.reference.as_str())
}

/// Says what a model is for in the words that programs share.
pub(crate) const fn kind_of(purpose: Purpose) -> ModelKind {
    match purpose {
        Purpose::Generate => ModelKind::Generate,
        Purpose::Embed => ModelKind::Embed,
        Purpose::Rerank => ModelKind::Rerank,
    }
}

/// Describes a model to other programs.
pub(crate) fn describe(model: &Model) -> ModelInfo {
    ModelInfo {
        reference: model.reference.clone(),
        alias: model.alias.clone(),
        size_bytes: model.size_bytes,
        sha256: model.sha256.clone(),
        kind: kind_of(model.header.purpose),
        architecture: model.header.architecture.clone(),
        quantisation: Some(model.header.quantisation.clone()),
        context_length: model.header.context_length,
        parameters: Some(model.header.parameter_count),
        added_at_ms: u64::try_from(model.added_at_ms).unwrap_or(0),
    }
}
