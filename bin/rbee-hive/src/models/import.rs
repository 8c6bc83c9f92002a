//! Importing a model file, told as it goes. The import ends with the client that asked for it, and then leaves nothing.

use std::convert::Infallible;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::response::Response;
use bytes::Bytes;
use deadline_propagation::Deadline;
use futures_util::Stream;
use input_validation::{ModelTarget, SafePath, ValidationError};
use model_catalog::{ImportRequest, Model, Progress};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::model::{PullEvent, PullRequest};
use rbee_http::{ApiError, event_stream_response, json_event};
use tokio::sync::mpsc;
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Models, describe, detail_of};

/// Events on their way to the client. A progress event that finds no room is left out: the next one says more.
const EVENTS_MAX: usize = 8;

/// What an import needs besides the request.
#[derive(Debug)]
pub(crate) struct ImportContext<'a> {
    /// How long the client waits for its turn.
    pub(crate) deadline: Deadline,
    /// Ends the import when the hive ends.
    pub(crate) stop: CancellationToken,
    /// Owns the work.
    pub(crate) tasks: &'a TaskTracker,
}

impl Models {
    /// Imports what `request` names; `on_done` is called when it is registered, where it may
    /// block. Answers with a stream of [`PullEvent`].
    ///
    /// # Errors
    /// What can be told before the work begins: a reference that names no file here, or no turn before the deadline.
    pub(crate) async fn import(
        &self,
        request: PullRequest,
        context: ImportContext<'_>,
        on_done: impl FnOnce(&Model) + Send + 'static,
    ) -> Result<Response, ApiError> {
        let source = self.source_of(&request)?;
        let turn = Arc::clone(&self.imports).acquire_owned();
        let permit = match timeout_at(context.deadline.instant(), turn).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) | Err(_) => {
                let message =
                    "another model was being imported all the time; try again when it is done";
                return Err(ApiError::new(ErrorCode::DeadlineExceeded, message));
            }
        };
        let (events, inbox) = mpsc::channel(EVENTS_MAX);
        let request = ImportRequest {
            source,
            reference: request.reference,
            alias: request.alias,
            expected_sha256: request.sha256,
        };
        let store = Arc::clone(&self.store);
        let stop = context.stop;
        context.tasks.spawn_blocking(move || {
            let result = store.import(&request, |progress| tell(&events, progress, &stop));
            drop(permit);
            let last = match result {
                Ok(model) => {
                    tracing::info!(model = %model.reference, size_bytes = model.size_bytes, "model imported");
                    on_done(&model);
                    PullEvent::Done { model: describe(&model) }
                }
                Err(error) => PullEvent::Failed { error: detail_of(&error) },
            };
            // The client may have left; what it asked for is done, or undone.
            events.blocking_send(last).ok();
        });
        Ok(event_stream_response(events_of(inbox)))
    }

    /// Finds the file that a reference names, inside the directories from which imports are allowed.
    fn source_of(&self, request: &PullRequest) -> Result<PathBuf, ApiError> {
        let path = match request.reference.target() {
            ModelTarget::File(path) => path,
            ModelTarget::Hf(_) | ModelTarget::Https(_) => {
                return Err(refuse(
                    ErrorCode::UnsupportedParameter,
                    "this hive imports files of its own machine; download the model and pull it as file:/path",
                ));
            }
            ModelTarget::Alias(_) => {
                return Err(refuse(
                    ErrorCode::ValidationFailed,
                    "an alias names a model that is here already; pull file:/path, and give it the alias",
                ));
            }
        };
        resolve(&self.import_roots, path)
    }
}

fn resolve(roots: &[PathBuf], path: &Path) -> Result<PathBuf, ApiError> {
    let mut is_missing = false;
    for root in roots {
        match SafePath::resolve(root, path) {
            Ok(safe) => return Ok(safe.as_path().to_owned()),
            Err(ValidationError::Unresolvable { field: "path", .. }) => is_missing = true,
            Err(error) => {
                tracing::debug!(root = %root.display(), error = %error, "not in this import root")
            }
        }
    }
    Err(if is_missing && path_is_below(roots, path) {
        refuse(
            ErrorCode::FileNotFound,
            "the file does not exist on the hive's machine, or the hive's user may not read it",
        )
    } else {
        refuse(
            ErrorCode::Forbidden,
            "models may not be imported from this directory; add it to import_roots in the hive's configuration",
        )
    })
}

/// Whether the path is written as one inside a root, so that saying that it does not exist tells nothing new.
fn path_is_below(roots: &[PathBuf], path: &Path) -> bool {
    roots.iter().any(|root| path.starts_with(root))
}

fn refuse(code: ErrorCode, message: &str) -> ApiError {
    ErrorDetail::new(code, message).with_param("reference").into()
}

fn tell(
    events: &mpsc::Sender<PullEvent>,
    progress: Progress,
    stop: &CancellationToken,
) -> ControlFlow<()> {
    let event =
        PullEvent::Progress { done_bytes: progress.bytes_done, total_bytes: progress.bytes_total };
    match events.try_send(event) {
        Err(mpsc::error::TrySendError::Closed(_)) => ControlFlow::Break(()),
        Ok(()) | Err(mpsc::error::TrySendError::Full(_)) if stop.is_cancelled() => {
            ControlFlow::Break(())
        }
        Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => ControlFlow::Continue(()),
    }
}

fn events_of(inbox: mpsc::Receiver<PullEvent>) -> impl Stream<Item = Result<Bytes, Infallible>> {
    futures_util::stream::unfold(inbox, |mut inbox| async move {
        let event = inbox.recv().await?;
        // An event is made of texts and numbers, which always have a form in JSON.
        let frame = json_event(&event).unwrap_or_default();
        Some((Ok(frame), inbox))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_files_inside_the_roots_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("in.gguf"), b"x").unwrap();
        fs::write(root.with_file_name("out.gguf"), b"x").unwrap();
        std::os::unix::fs::symlink(root.with_file_name("out.gguf"), root.join("link.gguf"))
            .unwrap();
        let roots = [dir.path().join("no-such-root"), root.clone()];
        assert_eq!(resolve(&roots, &root.join("in.gguf")).unwrap(), root.join("in.gguf"));
        for (path, code) in [
            (root.join("none.gguf"), ErrorCode::FileNotFound),
            (root.join("link.gguf"), ErrorCode::Forbidden),
            (root.with_file_name("out.gguf"), ErrorCode::Forbidden),
            (root.with_file_name("none.gguf"), ErrorCode::Forbidden),
        ] {
            assert_eq!(resolve(&roots, &path).unwrap_err().code(), code, "{}", path.display());
        }
        assert_eq!(resolve(&[], &root.join("in.gguf")).unwrap_err().code(), ErrorCode::Forbidden);
    }

    #[test]
    fn an_import_goes_on_as_long_as_somebody_listens_and_the_hive_runs() {
        let progress = Progress { bytes_done: 1, bytes_total: 2 };
        let stop = CancellationToken::new();
        let (events, inbox) = mpsc::channel(1);
        assert!(tell(&events, progress, &stop).is_continue());
        assert!(tell(&events, progress, &stop).is_continue(), "a slow reader holds nothing up");
        stop.cancel();
        assert!(tell(&events, progress, &stop).is_break());
        drop(inbox);
        assert!(tell(&events, progress, &CancellationToken::new()).is_break());
    }
}
