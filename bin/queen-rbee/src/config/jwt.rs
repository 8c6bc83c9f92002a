//! The keys under `[jwt]`: whose signed tokens are believed, and what they may do.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jwt_guardian::Algorithm;
use rbee_api::key::{KeyLimits, RouteGroup};
use rbee_home::ConfigError;
use rbee_http::DocumentClient;
use serde::Deserialize;

/// The keys under `[jwt]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtSettings {
    /// Who issues the tokens, as their `iss` says. Must be given.
    pub issuer: String,
    /// Whom the tokens are for, as their `aud` says. Must be given.
    pub audience: String,
    /// File with the issuer's public keys, a JWKS. This or `jwks_url` must be given.
    pub jwks_file: Option<PathBuf>,
    /// Address of the issuer's public keys: `https:`, or `http:` on this machine.
    pub jwks_url: Option<String>,
    /// Seconds by which clocks may differ, 0 to 300. Default 60.
    #[serde(default = "leeway")]
    pub leeway_seconds: u64,
    /// Seconds after which the public keys are read again, 10 to 86400. Default 300.
    #[serde(default = "refresh")]
    pub refresh_seconds: u64,
    /// The signatures that are accepted: `RS256`, `ES256`, `EdDSA`. Default all three.
    #[serde(default = "algorithms")]
    pub algorithms: Vec<String>,
    /// The claim whose words are looked up in `scopes`. Default `scope`.
    #[serde(default = "scopes_claim")]
    pub scopes_claim: String,
    /// What each word of that claim opens. Default `rbee:inference`, `rbee:models`, `rbee:status` and `rbee:admin`, each
    /// the routes of its name.
    #[serde(default = "scopes")]
    pub scopes: BTreeMap<String, Vec<RouteGroup>>,
    /// The claim that lists the models that a token may ask for; a token without it may ask for all. Default `rbee_models`.
    #[serde(default = "models_claim")]
    pub models_claim: String,
    /// File with the ids (`jti`) of tokens that are taken back, one a line; read again within a second of a change.
    /// Default: absent, and tokens need no id.
    pub revoked_file: Option<PathBuf>,
    /// How much each subject may use. Default: as much as wanted.
    #[serde(default)]
    pub limits: KeyLimits,
}

const fn leeway() -> u64 {
    60
}

const fn refresh() -> u64 {
    300
}

fn algorithms() -> Vec<String> {
    Algorithm::ALL.map(|algorithm| algorithm.as_str().to_owned()).to_vec()
}

fn scopes_claim() -> String {
    "scope".to_owned()
}

fn scopes() -> BTreeMap<String, Vec<RouteGroup>> {
    RouteGroup::ALL.map(|group| (format!("rbee:{group}"), vec![group])).into()
}

fn models_claim() -> String {
    "rbee_models".to_owned()
}

impl JwtSettings {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |key, reason: &str| Err(ConfigError::Value { key, reason: reason.to_owned() });
        if self.issuer.is_empty() {
            return refuse("jwt.issuer", "must not be empty");
        }
        if self.audience.is_empty() {
            return refuse("jwt.audience", "must not be empty");
        }
        if self.jwks_file.is_some() == self.jwks_url.is_some() {
            return refuse("jwt.jwks_file", "or jwt.jwks_url must be given, and not both");
        }
        if let Some(url) = &self.jwks_url
            && let Err(error) = DocumentClient::new(url)
        {
            return refuse("jwt.jwks_url", &format!("cannot be used: {error}"));
        }
        if self.leeway_seconds > 300 {
            return refuse("jwt.leeway_seconds", "must be between 0 and 300");
        }
        if !(10..=86_400).contains(&self.refresh_seconds) {
            return refuse("jwt.refresh_seconds", "must be between 10 and 86400");
        }
        let are_known = self.algorithms.iter().all(|name| Algorithm::from_name(name).is_some());
        if self.algorithms.is_empty() || !are_known {
            return refuse("jwt.algorithms", "must be some of RS256, ES256 and EdDSA");
        }
        match self.limits.fault() {
            Some((field, range)) => {
                refuse("jwt.limits", &format!("has a {field} that is not {range}"))
            }
            None => Ok(()),
        }
    }
}
