//! The beginning of a connection on a port that speaks TLS. Owns how long it may take, and what a client is told that
//! speaks plain HTTP there; whom a certificate lets in is decided later.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rbee_api::error::{ErrorBody, ErrorCode, ErrorDetail};
use rbee_tls::PeerCertificate;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

/// A client has this long for its handshake: two round trips, even over a bad line.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// The first byte of a TLS connection: a record of the handshake.
const HANDSHAKE_RECORD: u8 = 22;
/// How much of a plain request is read, so that its sender gets to read the answer.
const PLAIN_BYTES_MAX: u64 = 64 * 1024;

/// A connection whose handshake is done.
pub(crate) struct Shaken {
    pub(crate) stream: TlsStream<TcpStream>,
    /// Which program of the cluster the other end is, where it has shown that.
    pub(crate) certificate: Option<PeerCertificate>,
}

/// Shakes hands with a client; `None` where that failed, or took too long. Who speaks plain HTTP is told.
pub(crate) async fn shake_hands(stream: TcpStream, tls: Arc<ServerConfig>) -> Option<Shaken> {
    let shaken = timeout(HANDSHAKE_TIMEOUT, async {
        if is_plain(&stream).await? {
            refuse_plain(stream).await?;
            return Ok(None);
        }
        TlsAcceptor::from(tls).accept(stream).await.map(Some)
    });
    let stream = match shaken.await {
        Ok(Ok(stream)) => stream?,
        Ok(Err(error)) => {
            tracing::debug!(error = %error, "no handshake came about");
            return None;
        }
        Err(_elapsed) => {
            tracing::debug!("a handshake took too long");
            return None;
        }
    };
    let chain = stream.get_ref().1.peer_certificates();
    let certificate = chain.and_then(PeerCertificate::read);
    Some(Shaken { stream, certificate })
}

async fn is_plain(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    match stream.peek(&mut first).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(first != [HANDSHAKE_RECORD]),
    }
}

/// Answers in plain HTTP that TLS is spoken here, and reads what the client still sends: closed over unread bytes, the
/// connection would be reset and the answer lost.
async fn refuse_plain(mut stream: TcpStream) -> io::Result<()> {
    let message = "this port speaks TLS; call it with https:// instead of http://";
    let error = ErrorDetail::new(ErrorCode::TlsRequired, message);
    let body = serde_json::to_string(&ErrorBody { error })?;
    let head = format!(
        "HTTP/1.1 {} Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        ErrorCode::TlsRequired.status(),
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(PLAIN_BYTES_MAX), &mut tokio::io::sink()).await?;
    Ok(())
}
