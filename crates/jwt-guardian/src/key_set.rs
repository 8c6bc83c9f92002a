//! The keys of an identity provider (JWKS, RFC 7517). Owns the reading of a
//! set: keys for other uses and of unknown kinds are left out, and a key is
//! found by comparing its id, which is never a path or an address.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::algorithm::{Algorithm, PublicKey};
use crate::object::Object;

/// Largest key set that is read: providers have a handful of keys.
pub const KEY_SET_BYTES_MAX: usize = 256 * 1024;
/// Most keys of one set.
const KEYS_MAX: usize = 64;
/// Bytes of an RSA modulus: 2048 to 8192 bits.
const MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;
/// Bytes of a coordinate of P-256, and of a key of Ed25519.
const POINT_BYTES: usize = 32;

/// Says why a key set cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// It is larger than [`KEY_SET_BYTES_MAX`].
    #[error("the key set is larger than {KEY_SET_BYTES_MAX} bytes")]
    TooLarge,
    /// It is no JSON object with a list `keys` of at most 64 objects.
    #[error("the key set is not of the form {{\"keys\":[…]}} with at most {KEYS_MAX} keys")]
    Malformed,
    /// Two of its keys have the same id.
    #[error("two keys of the set have the same kid")]
    DoubledId,
    /// None of its keys is for signatures that are understood.
    #[error("the key set has no key for RS256, ES256 or EdDSA")]
    NoUsableKey,
}

/// The keys that signatures are checked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySet {
    keys: Vec<(Option<String>, PublicKey)>,
}

impl KeySet {
    /// Reads a set.
    ///
    /// # Errors
    /// [`KeySetError`].
    pub fn read(json: &[u8]) -> Result<Self, KeySetError> {
        if json.len() > KEY_SET_BYTES_MAX {
            return Err(KeySetError::TooLarge);
        }
        let set = Object::read(json).ok_or(KeySetError::Malformed)?;
        let Some(Value::Array(entries)) = set.get("keys") else {
            return Err(KeySetError::Malformed);
        };
        if entries.len() > KEYS_MAX || !entries.iter().all(Value::is_object) {
            return Err(KeySetError::Malformed);
        }
        let mut keys: Vec<(Option<String>, PublicKey)> = Vec::new();
        for entry in entries {
            let Some(key) = public_key(entry) else { continue };
            let id = text(entry, "kid").map(str::to_owned);
            if id.is_some() && keys.iter().any(|(known, _)| *known == id) {
                return Err(KeySetError::DoubledId);
            }
            keys.push((id, key));
        }
        if keys.is_empty() { Err(KeySetError::NoUsableKey) } else { Ok(Self { keys }) }
    }

    /// Returns the key with this id for this algorithm; without an id, the only
    /// key there is for it.
    pub(crate) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<&PublicKey> {
        let mut fit = self.keys.iter().filter(|(known, key)| {
            key.algorithm() == algorithm && (id.is_none() || known.as_deref() == id)
        });
        let (_, found) = fit.next()?;
        fit.next().is_none().then_some(found)
    }

    /// Says whether a key has this id, whatever it is for.
    pub(crate) fn knows(&self, id: Option<&str>) -> bool {
        id.is_none() || self.keys.iter().any(|(known, _)| known.as_deref() == id)
    }
}

fn text<'v>(entry: &'v Value, name: &str) -> Option<&'v str> {
    entry.get(name).and_then(Value::as_str)
}

/// Reads one key; `None` for one that no signature here is checked with.
fn public_key(entry: &Value) -> Option<PublicKey> {
    if text(entry, "use").is_some_and(|purpose| purpose != "sig") {
        return None;
    }
    let bytes = |name| URL_SAFE_NO_PAD.decode(text(entry, name)?).ok();
    let point = |name| bytes(name).filter(|bytes| bytes.len() == POINT_BYTES);
    let key = match (text(entry, "kty")?, text(entry, "crv")) {
        ("RSA", _) => {
            let modulus = bytes("n").filter(|modulus| MODULUS_BYTES.contains(&modulus.len()))?;
            PublicKey::Rsa { modulus, exponent: bytes("e")? }
        }
        ("EC", Some("P-256")) => {
            // The uncompressed form: 4, x, y.
            PublicKey::P256 { point: [&[4][..], &point("x")?, &point("y")?].concat() }
        }
        ("OKP", Some("Ed25519")) => PublicKey::Ed25519 { point: point("x")? },
        _ => return None,
    };
    let named = entry.get("alg");
    let fits = named.is_none_or(|name| name.as_str() == Some(key.algorithm().as_str()));
    fits.then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

    fn okp(kid: &str) -> String {
        format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"{kid}","x":"{X}"}}"#)
    }

    fn read(keys: &[String]) -> Result<KeySet, KeySetError> {
        KeySet::read(format!("{{\"keys\":[{}]}}", keys.join(",")).as_bytes())
    }

    #[test]
    fn a_key_is_found_by_id_and_algorithm_and_without_an_id_when_it_is_the_only_one() {
        let one = read(&[okp("a")]).unwrap();
        assert!(one.find(Some("a"), Algorithm::EdDsa).is_some());
        assert!(one.find(None, Algorithm::EdDsa).is_some());
        assert!(one.find(Some("a"), Algorithm::Rs256).is_none());
        assert!(one.find(Some("b"), Algorithm::EdDsa).is_none());
        let two = read(&[okp("a"), okp("b")]).unwrap();
        assert!(two.find(None, Algorithm::EdDsa).is_none(), "which one is not said");
        assert!(two.knows(Some("b")) && !two.knows(Some("../../b")));
    }

    #[test]
    fn what_is_not_for_signatures_is_left_out() {
        let other = [
            r#"{"kty":"oct","k":"c2VjcmV0"}"#.to_owned(),
            format!(r#"{{"kty":"OKP","crv":"X25519","x":"{X}"}}"#),
            format!(r#"{{"kty":"OKP","crv":"Ed25519","use":"enc","x":"{X}"}}"#),
            format!(r#"{{"kty":"OKP","crv":"Ed25519","alg":"HS256","x":"{X}"}}"#),
            r#"{"kty":"OKP","crv":"Ed25519","x":"AAAA"}"#.to_owned(),
            r#"{"kty":"RSA","n":"AQAB","e":"AQAB"}"#.to_owned(),
            format!(r#"{{"kty":"EC","crv":"P-256","x":"{X}"}}"#),
            "{}".to_owned(),
        ];
        assert_eq!(read(&other), Err(KeySetError::NoUsableKey));
        let mut all = other.to_vec();
        all.push(okp("a"));
        assert_eq!(read(&all).unwrap(), read(&[okp("a")]).unwrap());
    }

    #[test]
    fn what_is_no_key_set_is_refused_with_its_reason() {
        for bad in ["", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[1]}"#, r#"{"keys":[],"keys":[]}"#]
        {
            assert_eq!(KeySet::read(bad.as_bytes()), Err(KeySetError::Malformed), "{bad}");
        }
        assert_eq!(read(&[]), Err(KeySetError::NoUsableKey));
        assert_eq!(read(&[okp("a"), okp("a")]), Err(KeySetError::DoubledId));
        assert_eq!(read(&vec![okp("a"); KEYS_MAX + 1]), Err(KeySetError::Malformed));
        assert_eq!(KeySet::read(&vec![b' '; KEY_SET_BYTES_MAX + 1]), Err(KeySetError::TooLarge));
    }
}
