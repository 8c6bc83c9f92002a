//! Keys in memory and on disk, without a queen around them.

use rbee_api::key::KeyLimits;

use super::*;

fn open(directory: &tempfile::TempDir) -> Keys {
    Keys::open(&directory.path().join("keys.db")).unwrap()
}

fn wanted(name: &str) -> CreateKey {
    CreateKey {
        name: name.parse().unwrap(),
        models: Vec::new(),
        routes: None,
        expires_at_ms: None,
        limits: KeyLimits::default(),
    }
}

fn recognised(keys: &Keys, value: &str) -> Option<Arc<Grant>> {
    let header = format!("Bearer {value}");
    keys.recognise(&BearerToken::parse(header.as_bytes()).unwrap())
}

#[tokio::test]
async fn a_key_is_known_over_restarts_until_it_is_revoked() {
    let directory = tempfile::tempdir().unwrap();
    let keys = open(&directory);
    let made = keys.create(wanted("ci")).await.unwrap();
    let value = made.key.0.clone();
    assert!(value.starts_with("rbee_") && value.len() == 5 + 64, "not 256 bits");
    assert_eq!(recognised(&keys, &value).unwrap().subject, "ci");
    let again = open(&directory);
    let grant = recognised(&again, &value).unwrap();
    assert_eq!(grant.routes, ROUTES_DEFAULT);
    assert!(recognised(&again, &value[..68]).is_none());
    assert_eq!(again.create(wanted("ci")).await.unwrap_err().code(), ErrorCode::KeyTaken);

    assert!(!grant.revoked.is_cancelled());
    assert_eq!(again.revoke("ci").await.unwrap(), made.info);
    assert!(grant.revoked.is_cancelled());
    assert!(recognised(&again, &value).is_none());
    assert!(recognised(&open(&directory), &value).is_none());
    assert_eq!(again.revoke("ci").await.unwrap_err().code(), ErrorCode::KeyNotFound);
    let second = again.create(wanted("ci")).await.unwrap();
    assert_ne!((&second.info.id, &second.key), (&made.info.id, &made.key));
    assert_ne!(recognised(&again, &second.key.0).unwrap().cache_scope(), grant.cache_scope());
    assert_eq!(again.revoke(&second.info.id).await.unwrap().name.as_str(), "ci");
}

#[tokio::test]
async fn a_key_that_has_ended_is_not_known() {
    let directory = tempfile::tempdir().unwrap();
    let keys = open(&directory);
    let now_ms = Moment::now().unix_ms;
    let soon = CreateKey { expires_at_ms: Some(now_ms + 60_000), ..wanted("soon") };
    let value = keys.create(soon).await.unwrap().key.0;
    assert!(recognised(&keys, &value).is_some());
    let mut held = keys.held.write().unwrap();
    for held in held.values_mut().flatten() {
        held.key.info.expires_at_ms = Some(now_ms);
    }
    drop(held);
    assert!(recognised(&keys, &value).is_none());
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_with_its_field() {
    let directory = tempfile::tempdir().unwrap();
    let keys = open(&directory);
    let limits = KeyLimits { streams_max: Some(0), ..KeyLimits::default() };
    let models = (0..=KEY_MODELS_MAX).map(|n| format!("m{n}").parse().unwrap()).collect();
    for (bad, field) in [
        (wanted(CLIENT_TOKEN), "name"),
        (CreateKey { models, ..wanted("a") }, "models"),
        (CreateKey { expires_at_ms: Some(1), ..wanted("a") }, "expires_at_ms"),
        (CreateKey { limits, ..wanted("a") }, "limits.streams_max"),
        (CreateKey { routes: Some(Vec::new()), ..wanted("a") }, "routes"),
    ] {
        let error = keys.create(bad).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::ValidationFailed, "{field}");
        assert_eq!(error.detail().param.as_deref(), Some(field));
    }
    assert!(keys.list().is_empty());
}

#[tokio::test]
async fn usage_is_what_was_saved_and_what_was_not() {
    let directory = tempfile::tempdir().unwrap();
    let keys = open(&directory);
    let spend = |keys: &Keys| {
        let spending = keys.accounts().begin(keys.client_token(), Moment::now()).unwrap();
        spending.add(Tokens { prompt: 5, cached: 1, completion: 2 });
    };
    spend(&keys);
    keys.save().await;
    spend(&keys);
    let rows = keys.usage(1, None).await.unwrap().usage;
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!((row.key.as_str(), row.requests), (CLIENT_TOKEN, 2));
    assert_eq!((row.prompt_tokens, row.cached_tokens, row.completion_tokens), (10, 2, 4));
    assert_eq!(row.day, date(Moment::now().day()));
    assert_eq!(open(&directory).usage(1, None).await.unwrap().usage, rows);
    assert_eq!(keys.usage(400, Some("ci".to_owned())).await.unwrap().usage, []);
}

#[test]
fn days_have_their_dates() {
    for (day, expected) in [
        (0, "1970-01-01"),
        (59, "1970-03-01"),
        (11_016, "2000-02-29"),
        (19_782, "2024-02-29"),
        (20_454, "2026-01-01"),
        (20_819, "2027-01-01"),
        (47_540, "2100-02-28"),
        (47_541, "2100-03-01"),
    ] {
        assert_eq!(date(day), expected);
    }
}
