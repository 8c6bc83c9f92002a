//! Where a daemon listens: the socket that a service manager has opened, one of its own, and the address at which
//! programs of the same machine reach it. Owns no policy: who may listen where is asked before.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpListener;

/// Takes the listening socket that a service manager has bound (`LISTEN_FDS`),
/// if it handed one over.
///
/// # Errors
/// Fails where the first descriptor is no TCP listener.
pub fn inherited() -> io::Result<Option<TcpListener>> {
    let Some(listener) = listenfd::ListenFd::from_env().take_tcp_listener(0)? else {
        return Ok(None);
    };
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener).map(Some)
}

/// Binds a listener.
///
/// # Errors
/// Returns the operating system's reason, such as a port that is taken.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Returns the address at which programs of this machine reach a listener.
#[must_use]
pub const fn reached_from_here(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_everywhere_is_reached_by_loopback_from_here() {
        for (bound, reached) in [
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("[::]:8080", "[::1]:8080"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("192.168.1.5:80", "192.168.1.5:80"),
        ] {
            assert_eq!(reached_from_here(bound.parse().unwrap()).to_string(), reached);
        }
    }
}
