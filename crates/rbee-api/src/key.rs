//! Keys with names, and what was used under each: what `rbee key` and
//! `rbee usage` and the queen say to each other.

use std::fmt;

use input_validation::{KeyName, ModelRef};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most keys that a queen holds: a lookup stays a matter of microseconds, and
/// an organisation with more users has an identity provider.
pub const KEYS_MAX: usize = 1000;
/// Most models that one key names.
pub const KEY_MODELS_MAX: usize = 64;
/// Most days of usage that are kept, and that one listing goes back.
pub const USAGE_DAYS_MAX: u32 = 400;

/// The routes that a key can open, by what is done there.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum RouteGroup {
    /// Requests for tokens, embeddings and rankings.
    Inference,
    /// Listings of models.
    Models,
    /// The state of the queen, machines and workers, logs and metrics.
    Status,
    /// Everything, and all that changes something.
    Admin,
}

impl RouteGroup {
    /// All groups, in the order of what they allow.
    pub const ALL: [Self; 4] = [Self::Inference, Self::Models, Self::Status, Self::Admin];

    /// Returns the name on the wire and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inference => "inference",
            Self::Models => "models",
            Self::Status => "status",
            Self::Admin => "admin",
        }
    }

    /// Returns the group with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|group| group.as_str() == name)
    }
}

impl fmt::Display for RouteGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How much may be done with a key; absent means as much as wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KeyLimits {
    /// Requests a minute, 1 to 1,000,000; as many may come at once.
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and replies a day, which begins at 00:00 UTC.
    pub tokens_per_day: Option<u64>,
    /// Requests at the same time, streamed or not, 1 to 100,000.
    pub streams_max: Option<u32>,
}

impl KeyLimits {
    /// Returns what is wrong with the figures: the field, and its range.
    #[must_use]
    pub fn fault(&self) -> Option<(&'static str, &'static str)> {
        let outside =
            |value: Option<u64>, max: u64| value.is_some_and(|value| value == 0 || value > max);
        if outside(self.requests_per_minute.map(u64::from), 1_000_000) {
            return Some(("requests_per_minute", "1 to 1000000"));
        }
        if outside(self.tokens_per_day, 1_000_000_000_000) {
            return Some(("tokens_per_day", "1 to 1000000000000"));
        }
        if outside(self.streams_max.map(u64::from), 100_000) {
            return Some(("streams_max", "1 to 100000"));
        }
        None
    }
}

/// `POST /api/v1/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    /// What people and usage call it; no other key has this name.
    pub name: KeyName,
    /// The models that it may ask for, by alias or reference; empty means all.
    #[serde(default)]
    pub models: Vec<ModelRef>,
    /// The routes that it opens; absent means inference and models.
    #[serde(default)]
    pub routes: Option<Vec<RouteGroup>>,
    /// When it ends, milliseconds since the epoch; absent means never.
    #[serde(default)]
    pub expires_at_ms: Option<u64>,
    /// How much may be done with it.
    #[serde(default)]
    pub limits: KeyLimits,
}

/// A key as listings show it: all but its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyInfo {
    /// Names it for ever; a later key of the same name has another one.
    pub id: String,
    /// What people and usage call it.
    pub name: KeyName,
    /// The first six hex digits of its SHA-256, as logs show it.
    pub fingerprint: String,
    /// The models that it may ask for; empty means all.
    pub models: Vec<ModelRef>,
    /// The routes that it opens.
    pub routes: Vec<RouteGroup>,
    /// When it was made, milliseconds since the epoch.
    pub created_at_ms: u64,
    /// When it ends, milliseconds since the epoch; null means never.
    pub expires_at_ms: Option<u64>,
    /// How much may be done with it.
    pub limits: KeyLimits,
}

/// The value of a key, on its one way to the one who asked for it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct KeyValue(pub String);

impl fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyValue(…)")
    }
}

/// The answer to `POST /api/v1/keys`, the only one that ever holds the value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CreatedKey {
    /// The key.
    #[serde(flatten)]
    pub info: KeyInfo,
    /// What clients show.
    pub key: KeyValue,
}

/// `GET /api/v1/keys`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyList {
    /// One entry a key, in order of name.
    pub keys: Vec<KeyInfo>,
}

/// What was used under one name on one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UsageRow {
    /// The key's name, `client-token` for the token of the home directory, or
    /// `jwt:SUBJECT`.
    pub key: String,
    /// The day in UTC, such as `2026-01-31`.
    pub day: String,
    /// Requests that were let in.
    pub requests: u64,
    /// Tokens of their prompts.
    pub prompt_tokens: u64,
    /// Of these, tokens that did not have to be computed.
    pub cached_tokens: u64,
    /// Tokens of their replies.
    pub completion_tokens: u64,
}

/// `GET /api/v1/usage`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UsageList {
    /// One entry a key and day, the latest day first.
    pub usage: Vec<UsageRow>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_the_same_name_in_json_and_in_text() {
        for group in RouteGroup::ALL {
            assert_eq!(serde_json::to_string(&group).unwrap(), format!("\"{group}\""));
            assert_eq!(RouteGroup::from_name(group.as_str()), Some(group));
        }
        assert_eq!(RouteGroup::from_name("Admin"), None);
    }

    #[test]
    fn limits_that_mean_nothing_are_named() {
        let requests = |n| KeyLimits { requests_per_minute: Some(n), ..KeyLimits::default() };
        let tokens = |n| KeyLimits { tokens_per_day: Some(n), ..KeyLimits::default() };
        let streams = |n| KeyLimits { streams_max: Some(n), ..KeyLimits::default() };
        for good in [KeyLimits::default(), requests(1), requests(1_000_000), tokens(1), streams(1)]
        {
            assert_eq!(good.fault(), None, "{good:?}");
        }
        for (bad, field) in [
            (requests(0), "requests_per_minute"),
            (requests(1_000_001), "requests_per_minute"),
            (tokens(0), "tokens_per_day"),
            (tokens(u64::MAX), "tokens_per_day"),
            (streams(0), "streams_max"),
            (streams(u32::MAX), "streams_max"),
        ] {
            assert_eq!(bad.fault().unwrap().0, field, "{bad:?}");
        }
    }

    #[test]
    fn debug_does_not_show_the_value_of_a_key() {
        assert_eq!(format!("{:?}", KeyValue("rbee_canary".to_owned())), "KeyValue(…)");
    }
}
