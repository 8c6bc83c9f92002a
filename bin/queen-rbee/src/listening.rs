//! The queen's port. Owns the policy of where she may listen, and the warnings about what is allowed and open.

use std::net::SocketAddr;

use auth_min::{Transport, check_bind, check_open_bind, check_transport, is_loopback};
use rbee_api::queen::AuthMode;
use rbee_http::{bind, inherited};
use tokio::net::TcpListener;

use crate::config::Settings;
use crate::error::QueenError;
use crate::kept::Credentials;

/// Opens the port, or takes the one that a service manager has opened. The policy is asked about
/// the address before there is a listener.
pub(crate) async fn listen(
    settings: &Settings,
    credentials: &Credentials,
) -> Result<TcpListener, QueenError> {
    let handed_over = inherited().map_err(QueenError::setup("the inherited listener"))?;
    let configured = settings.bind;
    let address = match &handed_over {
        Some(listener) => listener.local_addr().map_err(QueenError::listen(configured))?,
        None => configured,
    };
    check_bind(address, credentials.shortest())?;
    check_openness(settings, address)?;
    if settings.auth.mode == AuthMode::None {
        tracing::warn!(
            "auth.mode is \"none\": every program and every user of this machine is a client"
        );
    }
    if is_plain_on_network(settings, address) {
        tracing::warn!(%address, "listening on the network: plain HTTP can be read on its way");
    }
    match handed_over {
        Some(listener) => Ok(listener),
        None => bind(address).await.map_err(QueenError::listen(address)),
    }
}

/// Says whether she may listen on `address` as she is configured, but for the tokens.
///
/// # Errors
/// [`QueenError`] for the policy.
pub(crate) fn check_openness(settings: &Settings, address: SocketAddr) -> Result<(), QueenError> {
    if settings.auth.mode == AuthMode::None {
        check_open_bind(address)?;
    }
    Ok(check_transport(address, settings.tls.transport())?)
}

/// Says whether others can read what is said to a queen who listens on `address`.
pub(crate) fn is_plain_on_network(settings: &Settings, address: SocketAddr) -> bool {
    settings.tls.transport() != Transport::Tls && !is_loopback(address.ip())
}
