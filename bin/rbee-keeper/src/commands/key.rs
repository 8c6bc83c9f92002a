//! `rbee key`: keys with names, made, listed and taken back; and `rbee usage`: what was used under them.

use jiff::Timestamp;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::key::{CreateKey, KeyInfo, KeyLimits, RouteGroup};

use super::now_ms;
use crate::cli::{CreateArgs, KeyAction, OneKey, UsageArgs};
use crate::error::KeeperError;
use crate::figures;
use crate::keeper::Keeper;

pub(super) async fn key(keeper: &Keeper, action: KeyAction) -> Result<(), KeeperError> {
    match action {
        KeyAction::Create(args) => create(keeper, args).await,
        KeyAction::List => list(keeper).await,
        KeyAction::Show(args) => show(keeper, args).await,
        KeyAction::Revoke(args) => revoke(keeper, args).await,
    }
}

async fn create(keeper: &Keeper, args: CreateArgs) -> Result<(), KeeperError> {
    let routes = match (args.read_only, args.admin) {
        (true, _) => Some(vec![RouteGroup::Models, RouteGroup::Status]),
        (_, true) => Some(vec![RouteGroup::Admin]),
        (false, false) => (!args.routes.is_empty()).then_some(args.routes),
    };
    let wanted = CreateKey {
        name: args.name,
        models: args.models,
        routes,
        expires_at_ms: args.expires.map(|end| u64::try_from(end.as_millisecond()).unwrap_or(0)),
        limits: KeyLimits {
            requests_per_minute: args.requests_per_minute,
            tokens_per_day: args.tokens_per_day,
            streams_max: args.streams,
        },
    };
    let queen = keeper.ensure_queen().await?;
    let made = queen.create_key(&wanted).await?;
    let output = &keeper.output;
    if output.is_json() {
        return output.json(&made);
    }
    output.line(&made.key.0)?;
    let ends = ends(&made.info);
    output.note(&format!("key {} made; it ends {ends}; it is not shown again", made.info.name));
    Ok(())
}

async fn list(keeper: &Keeper) -> Result<(), KeeperError> {
    let list = keeper.ensure_queen().await?.keys().await?;
    if keeper.output.is_json() {
        return keeper.output.json(&list);
    }
    if list.keys.is_empty() {
        keeper.output.note("no keys yet; make one with `rbee key create NAME`");
    }
    table(keeper, &list.keys)
}

async fn show(keeper: &Keeper, OneKey { key: wanted }: OneKey) -> Result<(), KeeperError> {
    let keys = keeper.ensure_queen().await?.keys().await?.keys;
    let by_id = keys.iter().find(|key| key.id == wanted);
    let found = by_id.or_else(|| keys.iter().find(|key| key.name.as_str() == wanted));
    let Some(found) = found else {
        let message = format!("no key is called {wanted}; `rbee key list` shows them");
        let detail = ErrorDetail::new(ErrorCode::KeyNotFound, message);
        return Err(KeeperError::Refused(Box::new(detail)));
    };
    if keeper.output.is_json() {
        return keeper.output.json(found);
    }
    table(keeper, std::slice::from_ref(found))
}

async fn revoke(keeper: &Keeper, OneKey { key }: OneKey) -> Result<(), KeeperError> {
    let gone = keeper.ensure_queen().await?.revoke_key(&key).await?;
    if keeper.output.is_json() {
        return keeper.output.json(&gone);
    }
    keeper.output.line(&format!("revoked {}", gone.name))
}

fn table(keeper: &Keeper, keys: &[KeyInfo]) -> Result<(), KeeperError> {
    let now = now_ms();
    let rows = keys.iter().map(|key| {
        [
            key.name.to_string(),
            key.id.clone(),
            key.fingerprint.clone(),
            listed(key.routes.iter().map(|group| group.as_str()), "none"),
            listed(key.models.iter().map(AsRef::as_ref), "all"),
            limits(&key.limits),
            ends(key),
            figures::ago(key.created_at_ms, now),
        ]
    });
    let headers = ["NAME", "ID", "TOKEN", "ROUTES", "MODELS", "LIMITS", "ENDS", "CREATED"];
    keeper.output.table(headers, rows)
}

fn listed<'a>(items: impl Iterator<Item = &'a str>, nothing: &str) -> String {
    let items: Vec<&str> = items.collect();
    if items.is_empty() { nothing.to_owned() } else { items.join(",") }
}

fn limits(limits: &KeyLimits) -> String {
    let KeyLimits { requests_per_minute, tokens_per_day, streams_max } = limits;
    let requests = requests_per_minute.map(|count| format!("{count}/min"));
    let tokens = tokens_per_day.map(|count| format!("{} tokens/day", figures::count(count)));
    let streams = streams_max.map(|count| format!("{count} at once"));
    let limits: Vec<String> = [requests, tokens, streams].into_iter().flatten().collect();
    if limits.is_empty() { "-".to_owned() } else { limits.join(", ") }
}

fn ends(key: &KeyInfo) -> String {
    let Some(end_ms) = key.expires_at_ms else { return "never".to_owned() };
    let end = i64::try_from(end_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    end.map_or_else(|| "never".to_owned(), |end| end.strftime("%Y-%m-%d %H:%M UTC").to_string())
}

pub(super) async fn usage(keeper: &Keeper, args: UsageArgs) -> Result<(), KeeperError> {
    let list = keeper.ensure_queen().await?.usage(args.days).await?;
    let output = &keeper.output;
    if output.is_json() {
        return output.json(&list);
    }
    if list.usage.is_empty() {
        output.note("nothing was used in that time");
    }
    let rows = list.usage.iter().map(|row| {
        [
            row.day.clone(),
            row.key.clone(),
            row.requests.to_string(),
            row.prompt_tokens.to_string(),
            row.cached_tokens.to_string(),
            row.completion_tokens.to_string(),
        ]
    });
    output.table(["DAY", "KEY", "REQUESTS", "PROMPT", "CACHED", "COMPLETION"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_in_few_words() {
        assert_eq!(limits(&KeyLimits::default()), "-");
        let all = KeyLimits {
            requests_per_minute: Some(60),
            tokens_per_day: Some(1_500_000),
            streams_max: Some(4),
        };
        assert_eq!(limits(&all), "60/min, 1.5M tokens/day, 4 at once");
    }
}
