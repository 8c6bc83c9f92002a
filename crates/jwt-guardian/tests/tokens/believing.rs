//! Every trick that was played on readers of tokens, and what a good one is.

use std::time::Duration;

use jwt_guardian::{Algorithm, Claims, KeySet, Refused, Rules, verify};
use proptest::prelude::*;
use ring::hmac;
use serde_json::{Value, json};

use crate::signer::{Signer, encode};

const NOW: u64 = 1_800_000_000;
const LEEWAY: u64 = 60;
const ED_HEADER: &str = r#"{"alg":"EdDSA","kid":"ed"}"#;

fn rules() -> Rules {
    Rules {
        issuer: "https://id.example".to_owned(),
        audience: "rbee".to_owned(),
        leeway: Duration::from_secs(LEEWAY),
        algorithms: Algorithm::ALL.to_vec(),
        needs_id: false,
    }
}

fn claims() -> Value {
    json!({
        "iss": "https://id.example", "aud": "rbee", "sub": "alice", "exp": NOW + 300,
        "nbf": NOW, "iat": NOW, "jti": "t-1", "scope": "rbee:inference rbee:models",
    })
}

/// The good claims with one of them replaced; `None` leaves it out.
fn with(name: &str, value: Option<Value>) -> Value {
    let mut claims = claims();
    let fields = claims.as_object_mut().unwrap();
    match value {
        Some(value) => fields.insert(name.to_owned(), value),
        None => fields.remove(name),
    };
    claims
}

fn keys(signer: &Signer) -> KeySet {
    KeySet::read(signer.key_set().to_string().as_bytes()).unwrap()
}

fn check(signer: &Signer, token: &str) -> Result<Claims, Refused> {
    verify(token, &keys(signer), &rules(), NOW)
}

fn refusal(signer: &Signer, claims: &Value) -> Option<Refused> {
    check(signer, &signer.token("ed", claims)).err()
}

#[test]
fn a_good_token_of_each_algorithm_is_believed() {
    let signer = Signer::new();
    for key in ["rsa", "ec", "ed"] {
        let claims = check(&signer, &signer.token(key, &claims())).unwrap();
        assert_eq!((claims.subject.as_str(), claims.id.as_deref()), ("alice", Some("t-1")));
        assert_eq!(claims.words("scope").unwrap(), ["rbee:inference", "rbee:models"]);
    }
    let few =
        json!({"iss": "https://id.example", "aud": ["x", "rbee"], "sub": "a", "exp": NOW + 1});
    assert_eq!(check(&signer, &signer.token("ec", &few)).unwrap().id, None);
    let strict = Rules { needs_id: true, ..rules() };
    let token = signer.token("ed", &few);
    assert_eq!(verify(&token, &keys(&signer), &strict, NOW), Err(Refused::Claim("jti")));
}

/// The signed examples of RFC 7515 (A.2, A.3) and RFC 8037 (A.4) are good and then end at the claims.
#[test]
fn the_signatures_of_the_standards_examples_are_good() {
    let payload = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let rsa = r#"{"keys":[{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}]}"#;
    let rs256 = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
    let ec = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;
    let es256 =
        "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    for (header, keys, signature) in
        [("eyJhbGciOiJSUzI1NiJ9", rsa, rs256), ("eyJhbGciOiJFUzI1NiJ9", ec, es256)]
    {
        let keys = KeySet::read(keys.as_bytes()).unwrap();
        let token = format!("{header}.{payload}.{signature}");
        assert_eq!(verify(&token, &keys, &rules(), NOW), Err(Refused::Issuer), "{header}");
        let changed = format!("{header}.{}A.{signature}", &payload[..payload.len() - 1]);
        assert_eq!(verify(&changed, &keys, &rules(), NOW), Err(Refused::Signature), "{header}");
    }
    let ed = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    let keys = KeySet::read(ed.as_bytes()).unwrap();
    let token = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    assert_eq!(verify(token, &keys, &rules(), NOW), Err(Refused::Malformed), "no claims");
}

#[test]
fn the_header_has_no_say_in_how_it_is_checked() {
    let signer = Signer::new();
    let payload = claims().to_string();
    for algorithm in
        ["none", "None", "nOnE", "HS256", "HS384", "RS512", "PS256", "ES384", "eddsa", ""]
    {
        let header = json!({"alg": algorithm, "kid": "ed"}).to_string();
        let message = format!("{}.{}", encode(&header), encode(&payload));
        let signed = signer.sign("ed", &header, &payload);
        for token in [signed, format!("{message}.")] {
            assert_eq!(check(&signer, &token), Err(Refused::Algorithm), "{algorithm}");
        }
    }
    // The public key taken for a shared secret.
    for secret in [signer.modulus(), signer.key_set().to_string().into_bytes()] {
        let header = json!({"alg": "HS256", "kid": "rsa"}).to_string();
        let message = format!("{}.{}", encode(header), encode(&payload));
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let token = format!("{message}.{}", encode(hmac::sign(&key, message.as_bytes())));
        assert_eq!(check(&signer, &token), Err(Refused::Algorithm));
    }
    // A good signature under the name of another kind, and by a key for another kind.
    for (header, expected) in [
        (r#"{"alg":"RS256","kid":"ed"}"#, Refused::Algorithm),
        (r#"{"alg":"EdDSA","kid":"rsa"}"#, Refused::Algorithm),
        (r#"{"alg":"RS256","kid":"rsa"}"#, Refused::Signature),
        (r#"{"alg":"EdDSA","kid":"ed","crit":["exp"]}"#, Refused::Algorithm),
        (r#"{"alg":"EdDSA","kid":"ed","crit":[]}"#, Refused::Algorithm),
        (r#"{"alg":["EdDSA"],"kid":"ed"}"#, Refused::Algorithm),
        (r#"{"alg":null,"kid":"ed"}"#, Refused::Algorithm),
        (r#"{"kid":"ed"}"#, Refused::Algorithm),
        (r#"{"alg":"EdDSA","alg":"EdDSA","kid":"ed"}"#, Refused::Malformed),
        (r#"{"alg":"EdDSA","kid":7}"#, Refused::Malformed),
        (r#"{"alg":"EdDSA","kid":null}"#, Refused::Malformed),
    ] {
        let token = signer.sign("ed", header, &payload);
        assert_eq!(check(&signer, &token), Err(expected), "{header}");
    }
    let only = Rules { algorithms: vec![Algorithm::Rs256], ..rules() };
    let token = signer.token("ed", &claims());
    assert_eq!(verify(&token, &keys(&signer), &only, NOW), Err(Refused::Algorithm));
}

#[test]
fn a_key_id_is_compared_and_never_followed() {
    let signer = Signer::new();
    let payload = claims().to_string();
    for id in [
        "../../../../dev/null",
        "/etc/passwd",
        "ed\0",
        "ED",
        "ed ",
        "' OR 1=1 --",
        "http://127.0.0.1/k",
        "",
    ] {
        let header = json!({"alg": "EdDSA", "kid": id}).to_string();
        let token = signer.sign("ed", &header, &payload);
        assert_eq!(check(&signer, &token), Err(Refused::UnknownKey), "{id:?}");
    }
    let long = json!({"alg": "EdDSA", "kid": "k".repeat(257)}).to_string();
    assert_eq!(check(&signer, &signer.sign("ed", &long, &payload)), Err(Refused::Malformed));
}

#[test]
fn keys_that_a_token_brings_are_not_looked_at() {
    let (signer, thief) = (Signer::new(), Signer::new());
    let theirs = thief.key_set()["keys"][2].clone();
    for (name, value) in [
        ("jwk", theirs),
        ("jku", json!("http://127.0.0.1:9/keys")),
        ("x5u", json!("http://127.0.0.1:9/chain")),
        ("x5c", json!(["MIIB"])),
    ] {
        let header = json!({"alg": "EdDSA", "kid": "ed", name: value}).to_string();
        let token = thief.sign("ed", &header, &claims().to_string());
        assert_eq!(check(&signer, &token), Err(Refused::Signature), "{name}");
        let good = signer.sign("ed", &header, &claims().to_string());
        assert!(check(&signer, &good).is_ok(), "{name} is ignored in a good token");
    }
}

#[test]
fn times_are_whole_seconds_or_a_refusal() {
    let signer = Signer::new();
    for name in ["exp", "nbf", "iat"] {
        for bad in [
            json!("1800000300"),
            json!(""),
            json!(-1),
            json!(1_800_000_300.5),
            json!(1.8e9),
            json!(u64::MAX),
            json!(253_402_300_800_u64),
            json!(null),
            json!(true),
            json!([1_800_000_300]),
            json!({}),
        ] {
            let refused = refusal(&signer, &with(name, Some(bad.clone())));
            assert_eq!(refused, Some(Refused::Claim(name)), "{name}: {bad}");
        }
        for bad in ["1e400", "-0", "01", "+1", "0x7fffffff", "18446744073709551616", "NaN"] {
            let payload = with(name, Some(json!("here"))).to_string().replace("\"here\"", bad);
            let token = signer.sign("ed", ED_HEADER, &payload);
            assert!(check(&signer, &token).is_err(), "{name}: {bad}");
        }
    }
    for (name, value, expected) in [
        ("exp", NOW - LEEWAY, Some(Refused::Expired)),
        ("exp", NOW - LEEWAY + 1, None),
        ("exp", 0, Some(Refused::Expired)),
        ("nbf", NOW + LEEWAY, None),
        ("nbf", NOW + LEEWAY + 1, Some(Refused::NotYet)),
        ("iat", NOW + LEEWAY, None),
        ("iat", NOW + LEEWAY + 1, Some(Refused::NotYet)),
    ] {
        assert_eq!(refusal(&signer, &with(name, Some(json!(value)))), expected, "{name} {value}");
    }
}

#[test]
fn claims_are_there_once_and_of_their_form() {
    let signer = Signer::new();
    for name in ["iss", "aud", "sub", "exp"] {
        assert_eq!(refusal(&signer, &with(name, None)), Some(Refused::Claim(name)), "no {name}");
        let refused = refusal(&signer, &with(name, Some(Value::Null)));
        assert_eq!(refused, Some(Refused::Claim(name)), "null {name}");
    }
    for (name, value, expected) in [
        ("iss", json!("https://id.example/"), Refused::Issuer),
        ("iss", json!("https://ID.example"), Refused::Issuer),
        ("iss", json!(["https://id.example"]), Refused::Claim("iss")),
        ("aud", json!("rbee2"), Refused::Audience),
        ("aud", json!("RBEE"), Refused::Audience),
        ("aud", json!([]), Refused::Audience),
        ("aud", json!(["rbee", 1]), Refused::Claim("aud")),
        ("aud", json!({"rbee": true}), Refused::Claim("aud")),
        ("sub", json!(""), Refused::Claim("sub")),
        ("sub", json!(7), Refused::Claim("sub")),
        ("sub", json!("a\nb"), Refused::Claim("sub")),
        ("sub", json!("\u{202e}a"), Refused::Claim("sub")),
        ("sub", json!("a".repeat(257)), Refused::Claim("sub")),
        ("jti", json!(null), Refused::Claim("jti")),
        ("jti", json!(1), Refused::Claim("jti")),
    ] {
        assert_eq!(
            refusal(&signer, &with(name, Some(value.clone()))),
            Some(expected),
            "{name} {value}"
        );
    }
    for double in [r#""exp":9999999999"#, r#""aud":"rbee""#, r#""other":1,"other":2"#] {
        let payload = claims().to_string().replacen('{', &format!("{{{double},"), 1);
        let token = signer.sign("ed", ED_HEADER, &payload);
        assert_eq!(check(&signer, &token), Err(Refused::Malformed), "{double}");
    }
}

#[test]
fn scopes_of_another_form_are_no_scopes() {
    let signer = Signer::new();
    let words = |value: Value| -> Option<Vec<String>> {
        let token = signer.token("ed", &with("scope", Some(value)));
        let claims = check(&signer, &token).unwrap();
        claims.words("scope").map(|words| words.into_iter().map(str::to_owned).collect())
    };
    assert_eq!(words(json!("a  b")).unwrap(), ["a", "b"]);
    assert_eq!(words(json!(["a", "b c"])).unwrap(), ["a", "b c"]);
    assert_eq!(words(json!("")).unwrap(), Vec::<String>::new());
    for bad in [json!(1), json!(null), json!(true), json!(["a", 1]), json!({"a": 1})] {
        assert_eq!(words(bad.clone()), None, "{bad}");
    }
}

#[test]
fn a_token_has_three_parts_and_nothing_around_them() {
    let signer = Signer::new();
    let good = signer.token("ed", &claims());
    assert!(check(&signer, &good).is_ok());
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (header, payload) = message.split_once('.').unwrap();
    for bad in [
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        "...".to_owned(),
        message.to_owned(),
        format!("{good}."),
        format!(".{good}"),
        format!("{good}.{signature}"),
        format!("{good} "),
        format!("{good}\n"),
        format!("{good}="),
        format!("{message}.{signature}AAAA"),
        format!("{message}.{}", &signature[..signature.len() - 4]),
        format!("{message}.{}", signature.replace(['-', '_'], "+")),
        format!("{header}=.{payload}.{signature}"),
        format!("{header}. {payload}.{signature}"),
        format!("{header}.{payload}.\u{ff0e}{signature}"),
        format!("{message}."),
        format!("{header}.{}.{signature}", "A".repeat(1024 * 1024)),
        "a".repeat(1024 * 1024),
        ".".repeat(8 * 1024),
    ] {
        let is_same = bad == good;
        assert!(is_same || check(&signer, &bad).is_err(), "{}", &bad[..bad.len().min(80)]);
    }
    // One that is good, and longer than the header it would stand in may be.
    let long = signer.token("ed", &with("x", Some(json!("x".repeat(8 * 1024)))));
    assert_eq!(check(&signer, &long), Err(Refused::Malformed));
    // What follows the claims in the signed part.
    for bad in ["{}", "x", "\0", ",", "]"] {
        let token = signer.sign("ed", ED_HEADER, &format!("{}{bad}", claims()));
        assert_eq!(check(&signer, &token), Err(Refused::Malformed), "{bad}");
    }
}

proptest! {
    #[test]
    fn nothing_makes_the_reader_panic(text in ".{0,300}", parts in prop::collection::vec("[A-Za-z0-9_-]{0,60}", 0..6)) {
        let signer = Signer::new();
        prop_assert!(check(&signer, &text).is_err());
        prop_assert!(check(&signer, &parts.join(".")).is_err());
    }

    /// A token with any one character changed, taken out or doubled is refused.
    #[test]
    fn a_changed_token_is_refused(place: prop::sample::Index, with in "[A-Za-z0-9_.-]", change in 0..3) {
        let signer = Signer::new();
        let good = signer.token("ed", &claims());
        let at = place.index(good.len());
        let mut changed = good.clone();
        match change {
            0 => changed.replace_range(at..=at, &with),
            1 => changed.replace_range(at..=at, ""),
            _ => changed.insert_str(at, &with),
        }
        prop_assume!(changed != good);
        prop_assert!(check(&signer, &changed).is_err(), "{changed}");
    }

    #[test]
    fn claims_of_any_form_are_read_without_a_panic(payload in "[ -~]{0,200}", bytes: Vec<u8>) {
        let signer = Signer::new();
        let token = signer.sign("ed", ED_HEADER, &payload);
        prop_assert!(check(&signer, &token).is_err());
        prop_assert!(KeySet::read(&bytes).is_err());
    }
}
