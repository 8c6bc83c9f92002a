//! What a token says, believed only in the one form that each claim has: a
//! number that is a string, or a time with a fraction, is a refusal and never
//! "absent". Pure: takes the time.

use std::time::Duration;

use serde_json::Value;

use crate::algorithm::Algorithm;
use crate::object::Object;

/// The end of the year 9999 in seconds since the epoch; later times are a mistake or a trick.
const TIME_MAX: u64 = 253_402_300_799;
/// Longest subject and token id: room for any provider's, and still one log field.
const TEXT_BYTES_MAX: usize = 256;

/// What a token must say to be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Who must have issued it, compared as text.
    pub issuer: String,
    /// Whom it must be for; of several audiences of a token one is enough.
    pub audience: String,
    /// How far the clocks of the issuer and this machine may differ.
    pub leeway: Duration,
    /// The signatures that are accepted.
    pub algorithms: Vec<Algorithm>,
    /// Whether it must have an id, by which it could be revoked.
    pub needs_id: bool,
}

/// Why a token is not believed. Every variant is a 401; none repeats the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It has not the form of a signed token.
    #[error("the token is malformed")]
    Malformed,
    /// Its header names an algorithm that is not accepted, or `crit`.
    #[error("the token's algorithm is not accepted")]
    Algorithm,
    /// No key has the id that its header names.
    #[error("the token's key is not known")]
    UnknownKey,
    /// The signature is not the key's.
    #[error("the token's signature is wrong")]
    Signature,
    /// A claim is missing or has another form than it must.
    #[error("the token's claim {0} is missing or malformed")]
    Claim(&'static str),
    /// Another issuer.
    #[error("the token has another issuer")]
    Issuer,
    /// Another audience.
    #[error("the token is for another audience")]
    Audience,
    /// It has ended.
    #[error("the token has expired")]
    Expired,
    /// It has not begun.
    #[error("the token is not valid yet")]
    NotYet,
}

/// What a believed token says.
#[derive(Debug, Clone, PartialEq)]
pub struct Claims {
    /// Whom it is about.
    pub subject: String,
    /// Its own id, where it has one.
    pub id: Option<String>,
    object: Object,
}

impl Claims {
    /// Checks the claims of a token whose signature is good; `now_s` is in seconds since the epoch.
    pub(crate) fn check(object: Object, rules: &Rules, now_s: u64) -> Result<Self, Refused> {
        if text(&object, "iss")?.ok_or(Refused::Claim("iss"))? != rules.issuer {
            return Err(Refused::Issuer);
        }
        check_audience(&object, &rules.audience)?;
        let leeway = rules.leeway.as_secs();
        let expires = time(&object, "exp")?.ok_or(Refused::Claim("exp"))?;
        if now_s >= expires.saturating_add(leeway) {
            return Err(Refused::Expired);
        }
        for begins in ["nbf", "iat"] {
            let begins = time(&object, begins)?;
            if begins.is_some_and(|begins| now_s.saturating_add(leeway) < begins) {
                return Err(Refused::NotYet);
            }
        }
        let subject = text(&object, "sub")?.ok_or(Refused::Claim("sub"))?.to_owned();
        let id = text(&object, "jti")?.map(str::to_owned);
        if rules.needs_id && id.is_none() {
            return Err(Refused::Claim("jti"));
        }
        Ok(Self { subject, id, object })
    }

    /// Says whether the token has a claim, whatever is in it.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.object.get(name).is_some()
    }

    /// Returns the words of a claim: a list of texts, or one text with spaces
    /// between them. Empty where the token has no such claim, `None` where it
    /// has another form.
    #[must_use]
    pub fn words(&self, name: &str) -> Option<Vec<&str>> {
        match self.object.get(name) {
            None => Some(Vec::new()),
            Some(Value::String(text)) => {
                Some(text.split(' ').filter(|word| !word.is_empty()).collect())
            }
            Some(Value::Array(words)) => words.iter().map(Value::as_str).collect(),
            Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => None,
        }
    }
}

fn check_audience(object: &Object, audience: &str) -> Result<(), Refused> {
    let wrong = Err(Refused::Claim("aud"));
    let is_ours = match object.get("aud") {
        Some(Value::String(text)) => text == audience,
        Some(Value::Array(all)) => {
            if !all.iter().all(Value::is_string) {
                return wrong;
            }
            all.iter().any(|one| one.as_str() == Some(audience))
        }
        _ => return wrong,
    };
    if is_ours { Ok(()) } else { Err(Refused::Audience) }
}

/// Reads a text that can stand in a log and a table; absent is `None`.
fn text<'o>(object: &'o Object, name: &'static str) -> Result<Option<&'o str>, Refused> {
    match object.get(name) {
        None => Ok(None),
        Some(Value::String(text))
            if (1..=TEXT_BYTES_MAX).contains(&text.len())
                && text.chars().all(|c| c == ' ' || (c.is_ascii() && c.is_ascii_graphic())) =>
        {
            Ok(Some(text))
        }
        Some(_) => Err(Refused::Claim(name)),
    }
}

/// Reads whole seconds since the epoch; absent is `None`, anything else a refusal.
fn time(object: &Object, name: &'static str) -> Result<Option<u64>, Refused> {
    match object.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => {
            let seconds = number.as_u64().filter(|seconds| *seconds <= TIME_MAX);
            seconds.map(Some).ok_or(Refused::Claim(name))
        }
        Some(_) => Err(Refused::Claim(name)),
    }
}
