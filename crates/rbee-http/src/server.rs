//! The accept loop. Own, because the ready-made one has no limit on the time a
//! client may take for its headers, and one slow client would hold a
//! connection for ever.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tower_http::add_extension::AddExtension;

use crate::vanished::notice;

/// A client has this long to send its request line and headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest request line and headers together.
const HEADER_BYTES_MAX: usize = 32 * 1024;
/// Most connections at once; a further one waits in the kernel's backlog.
const CONNECTIONS_MAX: usize = 4096;
/// Pause after a failed accept, which mostly means that descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where a request came from: the other end of its connection, whatever its
/// headers say. Every request that a [`Server`] takes has it as an extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteAddress(pub SocketAddr);

/// Binds a listener.
///
/// # Errors
/// Returns the operating system's reason, such as a port that is taken.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves one router on one listener until told to stop.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    router: Router,
    drain: Duration,
}

impl Server {
    /// `drain` is how long running requests may take to finish after the stop.
    #[must_use]
    pub fn new(listener: TcpListener, router: Router, drain: Duration) -> Self {
        Self { listener, router, drain }
    }

    /// Serves until `stop` is cancelled, then takes no new connection and
    /// returns when the running requests are done, or after the drain time.
    pub async fn run(self, stop: CancellationToken) {
        let graceful = GracefulShutdown::new();
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(HEADER_BYTES_MAX)
            .keep_alive(true);
        loop {
            let (stream, remote, permit) = tokio::select! {
                () = stop.cancelled() => break,
                accepted = accept(&self.listener, &permits) => match accepted {
                    Some(accepted) => accepted,
                    None => continue,
                },
            };
            let service = TowerToHyperService::new(AddExtension::new(self.router.clone(), remote));
            let connection = http.serve_connection(TokioIo::new(stream), service);
            let watched = graceful.watch(connection);
            tokio::spawn(async move {
                if let Err(error) = watched.await {
                    tracing::debug!(error = %error, "connection ended early");
                }
                drop(permit);
            });
        }
        drop(self.listener);
        if tokio::time::timeout(self.drain, graceful.shutdown()).await.is_err() {
            tracing::warn!("requests were cut off: the drain time is over");
        }
    }
}

/// Accepts one connection, or says `None` after a pause if that failed.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, RemoteAddress, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => {
            // Without this a stream of tokens stalls about 40 ms at each hop.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(error = %error, "cannot set TCP_NODELAY");
            }
            if let Err(error) = notice(&stream) {
                tracing::debug!(error = %error, "cannot watch over a connection");
            }
            Some((stream, RemoteAddress(address), permit))
        }
        Err(error) => {
            tracing::warn!(error = %error, "cannot accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}
