//! From the model store's errors to those that clients see.

use model_catalog::{CatalogError, StoreError};
use rbee_api::error::{ErrorCode, ErrorDetail};
use serde_json::json;

/// Returns the code, the message with its way out, and the figures. Logs what clients are not told.
pub(crate) fn detail_of(error: &StoreError) -> ErrorDetail {
    let detail = match error {
        StoreError::Unreadable { .. } => ErrorDetail::new(
            ErrorCode::FileNotFound,
            "the file does not exist on the hive's machine, or the hive's user may not read it",
        ),
        StoreError::NotAFile | StoreError::Header(_) | StoreError::SplitModel { .. } => {
            ErrorDetail::new(ErrorCode::InvalidModelFile, error.to_string())
        }
        StoreError::Changed => ErrorDetail::new(
            ErrorCode::InvalidModelFile,
            "the file changed while it was being read; pull it again once it is complete",
        ),
        StoreError::NoSpace { required_bytes, available_bytes } => ErrorDetail::new(
            ErrorCode::InsufficientDisk,
            format!("{error}; remove a model with `rbee rm`, or make room on the disk"),
        )
        .with_details(
            json!({"required_bytes": required_bytes, "available_bytes": available_bytes}),
        ),
        StoreError::ChecksumMismatch { .. } => {
            ErrorDetail::new(ErrorCode::ChecksumMismatch, error.to_string())
        }
        StoreError::Cancelled => ErrorDetail::new(
            ErrorCode::Draining,
            "the import was cancelled; nothing was kept of it",
        ),
        StoreError::NotFound { .. } => ErrorDetail::new(
            ErrorCode::ModelNotFound,
            format!("{error}; `rbee list` shows those that are"),
        ),
        StoreError::Catalog(CatalogError::AliasTaken { .. }) => ErrorDetail::new(
            ErrorCode::AliasTaken,
            format!("{error}; choose another, or remove that model with `rbee rm`"),
        )
        .with_param("alias"),
        StoreError::Catalog(CatalogError::FileTaken { .. } | CatalogError::NotAPlace { .. }) => {
            ErrorDetail::new(ErrorCode::ValidationFailed, error.to_string()).with_param("reference")
        }
        _ => {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            tracing::error!(error = %error, cause, "the model store failed");
            let message = "the model store failed; the hive's log says why";
            return ErrorDetail::new(ErrorCode::InternalError, message);
        }
    };
    tracing::info!(code = %detail.code, error = %error, "the model store refused");
    detail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_with_its_figures() {
        let detail = detail_of(&StoreError::NoSpace { required_bytes: 20, available_bytes: 10 });
        assert_eq!(detail.code, ErrorCode::InsufficientDisk);
        assert_eq!(detail.details.unwrap(), json!({"required_bytes": 20, "available_bytes": 10}));
        assert!(detail.message.contains("20") && detail.message.contains("rbee rm"));
    }

    #[test]
    fn what_the_operating_system_said_stays_in_the_log() {
        let source = std::io::Error::other("/home/someone/secret");
        let detail = detail_of(&StoreError::Io { action: "open", source });
        assert_eq!(detail.code, ErrorCode::InternalError);
        assert!(!detail.message.contains("someone"), "{}", detail.message);
    }
}
