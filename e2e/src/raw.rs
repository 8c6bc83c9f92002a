//! Requests byte by byte, as an attacker writes them, from any loopback address.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, Socket, Type};

/// Longer than any answer takes that a test waits for.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawReply {
    /// The status; 0 when the connection was closed without an answer.
    pub status: u16,
    /// Status line and headers, in lower case.
    pub head: String,
    /// The body.
    pub body: String,
}

impl RawReply {
    /// Returns the error code of the body, empty where there is none.
    #[must_use]
    pub fn code(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        body["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// Takes the address out of a base URL.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn address_of(url: &str) -> SocketAddr {
    let address = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    address.and_then(|rest| rest.parse().ok()).expect("an address in the URL")
}

/// Connects from one of the loopback addresses.
///
/// # Panics
/// When that fails.
#[must_use]
pub fn connect_from(source: Ipv4Addr, address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((source, 0)).into()).expect("a loopback address");
    socket.connect_timeout(&address.into(), TIMEOUT).expect("a listener");
    socket.into()
}

/// Sends bytes and reads until the other side closes.
///
/// # Panics
/// When it does not within 20 s.
#[must_use]
pub fn raw(source: Ipv4Addr, address: SocketAddr, request: &[u8]) -> RawReply {
    let mut stream = connect_from(source, address);
    stream.set_read_timeout(Some(TIMEOUT)).expect("a limit on reading");
    // The answer may come, and the connection end, before everything was sent.
    stream.write_all(request).ok();
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert!(error.kind() != ErrorKind::WouldBlock, "no answer to {:?}", request.get(..200));
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    RawReply { status, head: head.to_lowercase(), body: body.to_owned() }
}
