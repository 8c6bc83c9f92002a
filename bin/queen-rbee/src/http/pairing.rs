//! Machines on their way into the cluster, and out of it.

use std::net::SocketAddr;
use std::sync::Arc;

use audit_logging::{Event, Kind, Outcome, SubjectKind};
use axum::Extension;
use axum::Json;
use axum::extract::{Path, State};
use input_validation::NodeName;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::pairing::{
    CodeParts, CreatePairing, CreatedPairing, PairReply, PairRequest, PairingCode,
};
use rbee_api::queen::Removed;
use rbee_http::{ApiError, Caller, JsonBody, Principal};
use rbee_tls::{HiveKey, NoHiveKey};

use super::hives::not_found;
use crate::app::App;
use crate::pairing::CODE_TIME;

/// Opens the way for one machine.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    JsonBody(CreatePairing { name, queen_url }): JsonBody<CreatePairing>,
) -> Result<Json<CreatedPairing>, ApiError> {
    let queen_url = match queen_url {
        Some(url) => https_url("queen_url", &url)?,
        None => url_of(app.address)?,
    };
    if name == app.local {
        return Err(wrong("name", "this is the name of the machine that the queen runs on"));
    }
    let event = Event::new(Kind::HivePair, Outcome::Requested);
    Caller::current().record(event.on(SubjectKind::Machine, &name)).await?;
    let (fingerprint, secret) = app.pairings.begin(&name)?;
    let code = PairingCode::of(&CodeParts {
        name: name.as_str(),
        queen_url: &queen_url,
        fingerprint: &fingerprint.to_string(),
        secret: secret.expose(),
    });
    Ok(Json(CreatedPairing { name, code, expires_in_seconds: CODE_TIME.as_secs() }))
}

/// Takes a machine in that has shown the code for this name.
pub(super) async fn claim(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Extension(caller): Extension<Principal>,
    JsonBody(PairRequest { url, public_key }): JsonBody<PairRequest>,
) -> Result<Json<PairReply>, ApiError> {
    let name: NodeName = name.parse().map_err(|_| not_found())?;
    if !matches!(caller, Principal::Applicant(own) if own == name) {
        return Err(ApiError::new(ErrorCode::Forbidden, "this code is for another machine"));
    }
    let url = https_url("url", &url)?;
    let key: HiveKey =
        public_key.parse().map_err(|error: NoHiveKey| wrong("public_key", &error.to_string()))?;
    let event = Event::new(Kind::HivePair, Outcome::Success).on(SubjectKind::Machine, &name);
    Caller::current().record(event.with("url", &url)).await?;
    if !app.pairings.use_up(&name) {
        return Err(ApiError::new(ErrorCode::Unauthorized, "this code was used"));
    }
    let (reply, client) = blocking({
        let (app, name) = (Arc::clone(&app), name.clone());
        move || app.pairings.admit(&name, &url, &key)
    })
    .await?;
    tracing::info!(hive = %name, url = client.base_url(), "machine paired");
    app.registry.add_remote(name, client);
    Ok(Json(reply))
}

/// Believes a hive no more, also where that cannot be written into the audit log: what protects is not given up with
/// the disk.
pub(super) async fn forget(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<Removed>, ApiError> {
    let name: NodeName = name.parse().map_err(|_| not_found())?;
    let event = Event::new(Kind::HiveForget, Outcome::Requested);
    Caller::current().note(event.on(SubjectKind::Machine, &name));
    let was_paired = blocking({
        let (app, name) = (Arc::clone(&app), name.clone());
        move || app.pairings.forget(&name)
    })
    .await?;
    if !was_paired {
        let message = "no machine of this name was paired; `rbee hive list` shows the machines";
        return Err(ApiError::new(ErrorCode::HiveNotFound, message));
    }
    app.registry.remove(&name);
    Ok(Json(Removed { removed: name.to_string() }))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    // It panics nowhere; a runtime that ends answers nobody.
    done.unwrap_or_else(|_| Err(ApiError::new(ErrorCode::InternalError, "the queen is ending")))
}

/// Returns the URL of a queen who listens on `address`, where that is one to be called at.
fn url_of(address: SocketAddr) -> Result<String, ApiError> {
    if address.ip().is_unspecified() {
        return Err(wrong(
            "queen_url",
            "the queen listens on all addresses; say by which one the machine reaches her (`rbee hive pair --url`)",
        ));
    }
    Ok(format!("https://{address}"))
}

fn https_url(param: &'static str, text: &str) -> Result<String, ApiError> {
    let text = text.trim_end_matches('/');
    let is_base = text.parse::<http::Uri>().is_ok_and(|uri| {
        uri.scheme_str() == Some("https")
            && uri.authority().is_some_and(|at| at.port().is_some() && !at.as_str().contains('@'))
            && uri.path() == "/"
            && uri.query().is_none()
    });
    let is_short = text.len() <= URL_BYTES_MAX && !text.contains('#');
    if is_base && is_short {
        Ok(text.to_owned())
    } else {
        Err(wrong(param, "this is not like https://10.0.0.7:9200"))
    }
}

/// Longest URL of a program: a host name of full length, and the rest.
const URL_BYTES_MAX: usize = 300;

fn wrong(param: &'static str, message: &str) -> ApiError {
    let detail = ErrorDetail::new(ErrorCode::ValidationFailed, format!("{param}: {message}"));
    detail.with_param(param).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_base_url_over_tls_is_taken() {
        for good in ["https://10.0.0.7:9200", "https://attic.lan:1/", "https://[fe80::1]:9200"] {
            assert_eq!(https_url("url", good).unwrap(), good.trim_end_matches('/'));
        }
        for bad in [
            "",
            "10.0.0.7:9200",
            "http://10.0.0.7:9200",
            "https://10.0.0.7",
            "https://a@b:1",
            "https://a:1/x",
            "https://a:1?x",
            "https://a:1#x",
            "file:///etc/passwd",
        ] {
            let refused = https_url("url", bad).unwrap_err();
            assert_eq!(refused.detail().param.as_deref(), Some("url"), "{bad}");
        }
    }
}
