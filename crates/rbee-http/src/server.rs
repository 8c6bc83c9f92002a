//! The accept loop. Own, because the ready-made one has no limit on the time a
//! client may take for its headers, and one slow client would hold a
//! connection for ever.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use futures_util::FutureExt as _;
use http::Request;
use http::header::CONNECTION;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rbee_api::limits::{HEADER_BYTES_MAX, HEADERS_MAX};
use rbee_tls::{PeerCertificate, Served};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::connections::{Connections, Held, Place};
use crate::handshake::shake_hands;
use crate::host::ArrivedAt;
use crate::unread::Unread;
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
/// headers say. Every request that a [`Server`] takes has it as an extension, and
/// beside it the certificate of the cluster that the other end has shown, if any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteAddress(pub SocketAddr);

/// Serves one router on one listener until told to stop.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    router: Router,
    drain: Duration,
    tls: Option<Arc<ServerConfig>>,
}

impl Server {
    /// `drain` is how long running requests may take to finish after the stop.
    #[must_use]
    pub fn new(listener: TcpListener, router: Router, drain: Duration) -> Self {
        Self { listener, router, drain, tls: None }
    }

    /// Speaks TLS, and plain HTTP to nobody; `None` changes nothing.
    #[must_use]
    pub fn over(self, tls: Option<&Served>) -> Self {
        Self { tls: tls.map(|tls| Arc::clone(&tls.config)), ..self }
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
            let talk = Talk {
                http: http.clone(),
                watcher: graceful.watcher(),
                router: self.router.clone(),
                place: place.clone(),
                remote,
                arrived,
            };
            let (tls, stop) = (self.tls.clone(), stop.clone());
            // What takes memory is made when something has come; boxed, since a future that is handed on is in each
            // that waits for it.
            let served = Box::pin(async move {
                if !begins(&stream, &stop).await {
                    return;
                }
                let Some(tls) = tls else { return Box::pin(talk.over(stream, None)).await };
                let shaken = Box::pin(shake_hands(stream, tls));
                if let Some(Some(shaken)) = stop.run_until_cancelled(shaken).await {
                    Box::pin(talk.over(shaken.stream, shaken.certificate)).await;
                }
            });
            tokio::spawn(async move {
                if place.until_given_up(served).await.is_none() {
                    tracing::debug!("an idle connection was closed for a new one");
                }
            });
        }
        drop(self.listener);
        if timeout(self.drain, graceful.shutdown()).await.is_err() {
            tracing::warn!("requests were cut off: the drain time is over");
        }
    }
}

/// What is needed to answer the requests of one connection.
struct Talk {
    http: http1::Builder,
    watcher: Watcher,
    router: Router,
    place: Place,
    remote: RemoteAddress,
    arrived: ArrivedAt,
}

impl Talk {
    /// Answers until the connection ends. A slow client costs what this future takes: each part of it is there once.
    fn over<I>(self, io: I, certificate: Option<PeerCertificate>) -> impl Future<Output = ()> + Send
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { http, watcher, router, place, remote, arrived } = self;
        let service = service_fn(move |mut request: Request<Incoming>| {
            let extensions = request.extensions_mut();
            extensions.insert(remote);
            extensions.insert(arrived);
            if let Some(certificate) = &certificate {
                extensions.insert(certificate.clone());
            }
            answer(router.clone(), request, place.clone())
        });
        watcher.watch(http.serve_connection(TokioIo::new(io), service)).map(|ended| {
            if let Err(error) = ended {
                tracing::debug!(error = %error, "connection ended early");
            }
        })
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
    let (request, unread) = Unread::lend(request);
    let response = router.oneshot(request).await?;
    // Who is sent away for good is sent away at once.
    let is_last = response.headers().get(CONNECTION).is_some_and(|value| value == "close");
    if let Some(unread) = unread.filter(|_| !is_last) {
        unread.forget().await;
    }
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
