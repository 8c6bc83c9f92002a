//! The accept loop. Own, because the ready-made one has no limit on the time a
//! client may take for its headers, and one slow client would hold a
//! connection for ever.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use rbee_api::limits::{HEADER_BYTES_MAX, HEADERS_MAX};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::connections::{Connections, Held, Place};
use crate::host::ArrivedAt;
use crate::vanished::notice;

/// A connection has this long for its first byte; until then it takes next to no memory.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(2);
/// A client has this long to send its request line and headers, and to begin
/// with the next request on the same connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Most connections at once; for a further one, the one that has waited
/// longest without a request is closed.
const CONNECTIONS_MAX: usize = 4096;
/// Pause after a failed accept, which mostly means that descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where a request came from: the other end of its connection, whatever its
/// headers say. Every request that a [`Server`] takes has it as an extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteAddress(pub SocketAddr);

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
        let connections = Connections::new(CONNECTIONS_MAX);
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(HEADER_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .keep_alive(true);
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = accept(&self.listener, &connections) => accepted,
            };
            let Some(Accepted { stream, remote, arrived, place }) = accepted else { continue };
            let (router, at) = (self.router.clone(), place.clone());
            let service = service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(remote);
                request.extensions_mut().insert(arrived);
                answer(router.clone(), request, at.clone())
            });
            let (http, watcher, stop) = (http.clone(), graceful.watcher(), stop.clone());
            tokio::spawn(async move {
                let conversation = async {
                    if !begins(&stream, &stop).await {
                        return Ok(());
                    }
                    let connection = http.serve_connection(TokioIo::new(stream), service);
                    Box::pin(watcher.watch(connection)).await
                };
                match place.until_given_up(conversation).await {
                    Some(Ok(())) => {}
                    Some(Err(error)) => {
                        tracing::debug!(error = %error, "connection ended early");
                    }
                    None => tracing::debug!("an idle connection was closed for a new one"),
                }
            });
        }
        drop(self.listener);
        if timeout(self.drain, graceful.shutdown()).await.is_err() {
            tracing::warn!("requests were cut off: the drain time is over");
        }
    }
}

/// Says whether something came on a connection in time, before the daemon stops.
async fn begins(stream: &TcpStream, stop: &CancellationToken) -> bool {
    let mut first = [0];
    let came = timeout(BEGIN_TIMEOUT, stream.peek(&mut first));
    matches!(stop.run_until_cancelled(came).await, Some(Ok(Ok(1))))
}

/// Has the router answer, and the connection count as busy until the reply's last byte.
async fn answer(
    router: Router,
    request: Request<Incoming>,
    place: Place,
) -> Result<Response, Infallible> {
    let busy = place.busy();
    let response = router.oneshot(request).await?;
    Ok(response.map(|body| Body::new(Held::new(body, busy))))
}

/// A connection and the room it has.
struct Accepted {
    stream: TcpStream,
    remote: RemoteAddress,
    arrived: ArrivedAt,
    place: Place,
}

/// Accepts one connection, or says `None` where that failed, after a pause
/// if more would fail.
async fn accept(listener: &TcpListener, connections: &Connections) -> Option<Accepted> {
    let (stream, address) = match listener.accept().await {
        Ok(accepted) => accepted,
        Err(error) => {
            tracing::warn!(error = %error, "cannot accept a connection");
            connections.give_up_one();
            tokio::time::sleep(ACCEPT_PAUSE).await;
            return None;
        }
    };
    // Fails where the client has left already.
    let arrived = ArrivedAt(stream.local_addr().ok()?);
    // Without this a stream of tokens stalls about 40 ms at each hop.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(error = %error, "cannot set TCP_NODELAY");
    }
    if let Err(error) = notice(&stream) {
        tracing::debug!(error = %error, "cannot watch over a connection");
    }
    let place = connections.enter().await;
    Some(Accepted { stream, remote: RemoteAddress(address), arrived, place })
}
