//! The hive's port. Owns the policy of where it may listen, and the warning about what is allowed and open.

use std::net::SocketAddr;

use auth_min::{Transport, check_bind, check_transport, is_loopback};
use rbee_http::{Credential, bind, inherited};
use tokio::net::TcpListener;

use crate::config::Config;
use crate::error::HiveError;

/// Binds the configured address, or takes the listener that a service manager has bound. The policy is asked about the
/// address before there is a listener.
///
/// # Errors
/// [`HiveError::BindPolicy`] and [`HiveError::Bind`].
pub async fn listen(config: &Config, token: &Credential) -> Result<TcpListener, HiveError> {
    let refused = |source| HiveError::Bind { address: config.bind, source };
    let handed_over = inherited().map_err(refused)?;
    let address = match &handed_over {
        Some(listener) => listener.local_addr().map_err(refused)?,
        None => config.bind,
    };
    check_bind(address, token.current().expose().len())?;
    check_transport(address, config.transport())?;
    if is_plain_on_network(config, address) {
        tracing::warn!(%address, "listening on the network: plain HTTP can be read on its way");
    }
    match handed_over {
        Some(listener) => Ok(listener),
        None => bind(address).await.map_err(refused),
    }
}

/// Says whether others can read what is said to a hive that listens on `address`.
pub(crate) fn is_plain_on_network(config: &Config, address: SocketAddr) -> bool {
    config.transport() != Transport::Tls && !is_loopback(address.ip())
}
