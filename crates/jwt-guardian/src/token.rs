//! The token itself: three parts, a header, a signature. Owns the order of
//! checks: nothing of what a token says is believed before its signature is
//! good, and only what is needed to find the key is read before.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::algorithm::Algorithm;
use crate::claims::{Claims, Refused, Rules};
use crate::key_set::KeySet;
use crate::object::Object;

/// Longest token that is looked at: that of the header it stands in.
const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Longest key id that is compared.
const KEY_ID_BYTES_MAX: usize = 256;

/// Verifies a token at `now_s`, in seconds since the epoch. Keys and addresses
/// that the token itself brings (`jwk`, `jku`, `x5u`, `x5c`) are not looked at.
///
/// # Errors
/// [`Refused`].
pub fn verify(token: &str, keys: &KeySet, rules: &Rules, now_s: u64) -> Result<Claims, Refused> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Refused::Malformed);
    }
    let (message, signature) = token.rsplit_once('.').ok_or(Refused::Malformed)?;
    let (header, payload) = message.split_once('.').ok_or(Refused::Malformed)?;
    if payload.contains('.') {
        return Err(Refused::Malformed);
    }
    let header = read(header)?;
    let (algorithm, key_id) = (algorithm(&header, rules)?, key_id(&header)?);
    let Some(key) = keys.find(key_id, algorithm) else {
        return Err(if keys.knows(key_id) { Refused::Algorithm } else { Refused::UnknownKey });
    };
    if !key.verifies(message.as_bytes(), &decode(signature)?) {
        return Err(Refused::Signature);
    }
    Claims::check(read(payload)?, rules, now_s)
}

fn algorithm(header: &Object, rules: &Rules) -> Result<Algorithm, Refused> {
    // What is critical and not understood must be refused, and nothing is understood.
    if header.get("crit").is_some() {
        return Err(Refused::Algorithm);
    }
    let name = header.get("alg").and_then(Value::as_str).ok_or(Refused::Algorithm)?;
    let algorithm = Algorithm::from_name(name).ok_or(Refused::Algorithm)?;
    if rules.algorithms.contains(&algorithm) { Ok(algorithm) } else { Err(Refused::Algorithm) }
}

fn key_id(header: &Object) -> Result<Option<&str>, Refused> {
    match header.get("kid") {
        None => Ok(None),
        Some(Value::String(id)) if id.len() <= KEY_ID_BYTES_MAX => Ok(Some(id)),
        Some(_) => Err(Refused::Malformed),
    }
}

fn read(part: &str) -> Result<Object, Refused> {
    Object::read(&decode(part)?).ok_or(Refused::Malformed)
}

fn decode(part: &str) -> Result<Vec<u8>, Refused> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_not_base64| Refused::Malformed)
}
