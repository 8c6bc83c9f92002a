//! A port for a worker: bound here and handed over, so that no other process can take it in between.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use rbee_http::bind;

/// Ports tried before giving up: many times the most workers.
const ATTEMPTS: u16 = 1024;

/// Binds the first free port from `first` upward on loopback; any free one for 0.
pub(super) async fn bind_free(first: u16) -> io::Result<TcpListener> {
    let last = if first == 0 { 0 } else { first.saturating_add(ATTEMPTS) };
    let mut taken = io::Error::from(io::ErrorKind::AddrInUse);
    for port in first..=last {
        match bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await {
            Ok(listener) => return listener.into_std(),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => taken = error,
            Err(error) => return Err(error),
        }
    }
    Err(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_passed_over() {
        let taken = bind_free(0).await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let next = bind_free(port).await.unwrap();
        assert_ne!(next.local_addr().unwrap().port(), port);
        assert!(next.local_addr().unwrap().ip().is_loopback());
    }
}
