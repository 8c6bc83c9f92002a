//! How it is noticed that the other end of a connection has vanished without a word: its
//! machine lost power, or the network loses everything. Without this a reader waits until
//! its deadline, and a writer holds its slot for a quarter of an hour. Ends nothing itself.

use std::io;
use std::time::Duration;

use reqwest::ClientBuilder;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Silence after which the other end is asked whether it is there, and time between questions.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// How long questions and data may go unanswered. Longer than a network takes to find another
/// way, so that a short interruption breaks no stream.
const UNANSWERED_MAX: Duration = Duration::from_secs(15);

/// Has the connections of a client ask.
pub(crate) fn notice_in(client: ClientBuilder) -> ClientBuilder {
    let client = client.tcp_keepalive(ASK_EVERY).tcp_keepalive_interval(ASK_EVERY);
    #[cfg(target_os = "linux")]
    let client = client.tcp_user_timeout(UNANSWERED_MAX);
    client
}

/// Has an accepted connection ask.
pub(crate) fn notice(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(ASK_EVERY).with_interval(ASK_EVERY))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNANSWERED_MAX))?;
    Ok(())
}
