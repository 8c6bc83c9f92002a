//! The client for a small document that somebody else publishes, such as the
//! keys of an identity provider. Sends no credential, follows no redirect, and
//! goes in the open only to this machine.

use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};

/// Why a document could not be had.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The address is neither `https:` nor `http:` on loopback.
    #[error("the address must begin with https://, or with http:// and name this machine")]
    Address,
    /// It could not be fetched whole, in time and within the limit.
    #[error("it could not be fetched")]
    Fetch(#[source] Box<ureq::Error>),
    /// The server answered with something else.
    #[error("the server answered with status {0}")]
    Status(u16),
    /// The thread that fetched it ended early.
    #[error("fetching it was broken off")]
    BrokenOff,
}

/// Fetches one document again and again.
#[derive(Debug, Clone)]
pub struct DocumentClient {
    agent: Agent,
    url: String,
}

impl DocumentClient {
    /// Checks the address and sets the client up; certificates are those the system trusts.
    ///
    /// # Errors
    /// [`DocumentError::Address`].
    pub fn new(url: &str) -> Result<Self, DocumentError> {
        if !may_be_fetched(url) {
            return Err(DocumentError::Address);
        }
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .build()
            .new_agent();
        Ok(Self { agent, url: url.to_owned() })
    }

    /// Fetches the document, of at most `bytes_max` bytes and within `time`.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub async fn get(&self, bytes_max: u64, time: Duration) -> Result<Bytes, DocumentError> {
        let this = self.clone();
        let fetched = tokio::task::spawn_blocking(move || this.fetch(bytes_max, time));
        fetched.await.unwrap_or(Err(DocumentError::BrokenOff))
    }

    fn fetch(&self, bytes_max: u64, time: Duration) -> Result<Bytes, DocumentError> {
        let failed = |error| DocumentError::Fetch(Box::new(error));
        let request = self.agent.get(&self.url).config().timeout_global(Some(time)).build();
        let mut response = request.call().map_err(failed)?;
        let status = response.status();
        if status != http::StatusCode::OK {
            return Err(DocumentError::Status(status.as_u16()));
        }
        // The limit is the first size that is too large.
        let too_large = bytes_max.saturating_add(1);
        let body = response.body_mut().with_config().limit(too_large).read_to_vec();
        body.map(Bytes::from).map_err(failed)
    }
}

fn may_be_fetched(url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else { return false };
    let host = uri.host().unwrap_or_default();
    let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    let is_here = host == "localhost" || literal.parse().is_ok_and(auth_min::is_loopback);
    !has_user
        && match uri.scheme_str() {
            Some("https") => !host.is_empty(),
            Some("http") => is_here,
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::listener::bind;

    #[test]
    fn only_this_machine_is_asked_in_the_open() {
        for good in [
            "https://id.example/keys",
            "https://10.0.0.1/keys",
            "http://127.0.0.1:8081/keys",
            "http://localhost/keys",
            "http://[::1]:1/keys",
        ] {
            assert!(may_be_fetched(good), "{good}");
        }
        for bad in [
            "http://id.example/keys",
            "http://169.254.169.254/latest",
            "http://127.0.0.1.example/keys",
            "http://localhost@id.example/keys",
            "https://user:secret@id.example/keys",
            "file:///etc/passwd",
            "ftp://127.0.0.1/keys",
            "/keys",
            "",
        ] {
            assert!(!may_be_fetched(bad), "{bad}");
        }
    }

    /// Answers each request with the next of `replies`, and closes.
    async fn serve(replies: Vec<String>) -> DocumentClient {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        tokio::spawn(async move {
            for reply in replies {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 1024];
                let length = stream.read(&mut head).await.unwrap();
                assert!(head.starts_with(b"GET /keys HTTP/1.1\r\n"));
                let head = String::from_utf8_lossy(&head[..length]).to_lowercase();
                assert!(!head.contains("authorization"), "{head}");
                stream.write_all(reply.as_bytes()).await.unwrap();
            }
        });
        DocumentClient::new(&url).unwrap()
    }

    fn reply(status: &str, headers: &str, body: &str) -> String {
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{body}"
        )
    }

    #[tokio::test]
    async fn a_document_is_fetched_within_its_limits_and_redirects_are_not_followed() {
        let elsewhere = "Location: http://127.0.0.1:1/other\r\n";
        let client = serve(vec![
            reply("200 OK", "", "12345678"),
            reply("200 OK", "", "123456789"),
            reply("302 Found", elsewhere, ""),
            reply("404 Not Found", "", "no"),
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123".to_owned(),
        ])
        .await;
        let time = Duration::from_secs(5);
        assert_eq!(client.get(8, time).await.unwrap(), "12345678");
        assert!(matches!(client.get(8, time).await, Err(DocumentError::Fetch(_))));
        assert!(matches!(client.get(8, time).await, Err(DocumentError::Status(302))));
        assert!(matches!(client.get(8, time).await, Err(DocumentError::Status(404))));
        assert!(matches!(client.get(8, time).await, Err(DocumentError::Fetch(_))));
        // Nobody listens any more.
        assert!(matches!(client.get(8, time).await, Err(DocumentError::Fetch(_))));
    }
}
