//! What the hive hands over besides the command line: the listening socket and
//! the secrets. Keeps no copy of what it read.

use std::io::{IsTerminal, Read};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use auth_min::TokenDigest;
use rbee_api::worker::WorkerSecrets;
use secrets_management::{SECRET_BYTES_MAX, Secret};
use zeroize::Zeroizing;

use crate::error::WorkerError;

/// Most bytes of standard input that are looked at: three secrets and their names.
const SECRETS_BYTES_MAX: usize = 3 * SECRET_BYTES_MAX + 256;

/// Takes the listening socket that the hive has bound.
///
/// # Errors
/// [`WorkerError::NoListener`] without one; [`WorkerError::BadListener`] for
/// one that other machines could reach.
pub(crate) fn take_listener() -> Result<TcpListener, WorkerError> {
    let bad = |reason: String| WorkerError::BadListener { reason };
    let taken = listenfd::ListenFd::from_env().take_tcp_listener(0);
    let listener = taken.map_err(|error| bad(error.to_string()))?.ok_or(WorkerError::NoListener)?;
    let address: SocketAddr = listener.local_addr().map_err(|error| bad(error.to_string()))?;
    if !address.ip().is_loopback() {
        return Err(bad(format!("{address} is not a loopback address")));
    }
    listener.set_nonblocking(true).map_err(|error| bad(error.to_string()))?;
    Ok(listener)
}

/// The secrets of a worker.
#[derive(Debug)]
pub(crate) struct Secrets {
    /// Whoever calls the worker shows the token with this digest.
    pub(crate) token: TokenDigest,
    /// The worker shows this to its hive.
    pub(crate) callback: Arc<Secret>,
    /// The key of its audit log is made of this.
    pub(crate) audit_key: Option<Secret>,
}

/// Reads the secrets from standard input, to its end.
///
/// # Errors
/// [`WorkerError::Secrets`].
pub(crate) fn read_secrets() -> Result<Secrets, WorkerError> {
    let input = std::io::stdin();
    if input.is_terminal() {
        return Err(refused("it is a terminal"));
    }
    // Enough from the start: growing would leave a copy behind.
    let mut content = Zeroizing::new(Vec::with_capacity(SECRETS_BYTES_MAX + 1));
    let read = input.lock().take(SECRETS_BYTES_MAX as u64 + 1).read_to_end(&mut content);
    read.map_err(|error| refused(&error.to_string()))?;
    parse_secrets(&content)
}

fn parse_secrets(content: &[u8]) -> Result<Secrets, WorkerError> {
    if content.is_empty() {
        return Err(refused("it is empty"));
    }
    if content.len() > SECRETS_BYTES_MAX {
        return Err(refused("it is too long"));
    }
    // The parser's own message could quote what it read.
    let parsed: WorkerSecrets =
        serde_json::from_slice(content).map_err(|_| refused("it is not the JSON expected"))?;
    let secrets = [("token", parsed.token), ("callback_token", parsed.callback_token)]
        .map(|(name, text)| Secret::from_bytes(Zeroizing::new(text).as_bytes(), name));
    let [token, callback] = secrets;
    let token = token.map_err(|error| refused(&error.to_string()))?;
    let callback = callback.map_err(|error| refused(&error.to_string()))?;
    let audit_key = parsed.audit_key.map(|text| {
        Secret::from_bytes(Zeroizing::new(text).as_bytes(), "audit_key")
            .map_err(|error| refused(&error.to_string()))
    });
    let audit_key = audit_key.transpose()?;
    Ok(Secrets { token: TokenDigest::of(token.expose()), callback: Arc::new(callback), audit_key })
}

fn refused(reason: &str) -> WorkerError {
    WorkerError::Secrets { reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_good_tokens_and_nothing_else() {
        assert!(parse_secrets(br#"{"token":"aaaa","callback_token":"bbbb"}"#).is_ok());
        let with_key = br#"{"token":"aaaa","callback_token":"bbbb","audit_key":"cccc"}"#;
        assert!(parse_secrets(with_key).unwrap().audit_key.is_some());
        for bad in [
            &b""[..],
            b"garbage",
            b"{}",
            br#"{"token":"canary-1"}"#,
            br#"{"token":"canary-1","callback_token":""}"#,
            br#"{"token":"canary-1","callback_token":"y","audit_key":""}"#,
            br#"{"token":"canary-1 x","callback_token":"y"}"#,
            br#"{"token":"canary-1","callback_token":"y","more":1}"#,
            br#"{"token":"canary-1","callback_token":"y"} z"#,
            &[b'x'; 20_000],
        ] {
            let refused = parse_secrets(bad).unwrap_err();
            assert_eq!(refused.exit_code(), std::process::ExitCode::from(78));
            assert!(!refused.to_string().contains("canary"), "{refused}");
        }
    }
}
