//! A client as plain as `curl`: sends a request, keeps status, headers and body.

use std::io::{BufRead, BufReader, Read};
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;
use ureq::http::{Request, Response};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

/// Longer than any single reply in a test.
const TIMEOUT: Duration = Duration::from_secs(240);

/// One address and one credential.
#[derive(Debug, Clone)]
pub struct Http {
    agent: Agent,
    base_url: String,
    token: Option<String>,
}

/// A whole reply.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Reply {
    /// Parses the body.
    ///
    /// # Panics
    /// When it is not JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.body))
    }

    /// Returns the error code of the body, empty where there is none.
    #[must_use]
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

fn parsed(pem: &str) -> Certificate<'static> {
    Certificate::from_pem(pem.as_bytes()).expect("a certificate")
}

fn trust(ca_pem: &str) -> RootCerts {
    RootCerts::new_with_certs(&[parsed(ca_pem)])
}

impl Http {
    /// Takes a base URL without trailing slash.
    #[must_use]
    pub fn new(base_url: &str, token: Option<&str>) -> Self {
        Self::patient(base_url, token, TIMEOUT)
    }

    /// As `new`, with a limit on each reply.
    #[must_use]
    pub fn patient(base_url: &str, token: Option<&str>, limit: Duration) -> Self {
        Self::over(base_url, token, limit, TlsConfig::default())
    }

    /// As `new`, and believes servers with a certificate of the CA in `ca_pem` alone.
    ///
    /// # Panics
    /// When that is no certificate.
    #[must_use]
    pub fn trusting(base_url: &str, token: Option<&str>, ca_pem: &str) -> Self {
        Self::over(base_url, token, TIMEOUT, TlsConfig::builder().root_certs(trust(ca_pem)).build())
    }

    /// As `new`, believes whoever answers, and shows a certificate of its own with its key, if it has one: a thief.
    ///
    /// # Panics
    /// When they are none.
    #[must_use]
    pub fn credulous(base_url: &str, token: Option<&str>, own: Option<(&str, &str)>) -> Self {
        let own = own.map(|(certificate, key)| {
            let key = PrivateKey::from_pem(key.as_bytes()).expect("a key");
            ClientCert::new_with_certs(&[parsed(certificate)], key)
        });
        let tls = TlsConfig::builder().disable_verification(true).client_cert(own).build();
        Self::over(base_url, token, TIMEOUT, tls)
    }

    fn over(base_url: &str, token: Option<&str>, limit: Duration, tls: TlsConfig) -> Self {
        let agent = Agent::config_builder()
            .timeout_global(Some(limit))
            .http_status_as_error(false)
            .tls_config(tls)
            .build()
            .new_agent();
        Self { agent, base_url: base_url.to_owned(), token: token.map(str::to_owned) }
    }

    /// Returns the address.
    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Sends a request, with a JSON body if one is given.
    ///
    /// # Panics
    /// When there is no reply.
    #[must_use]
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Reply {
        self.try_call(method, path, body).expect("a reply")
    }

    /// As `call`, to whom may be gone: `None` when no whole reply comes.
    #[must_use]
    pub fn try_call(&self, method: &str, path: &str, body: Option<&Value>) -> Option<Reply> {
        read(self.send(method, path, body).ok()?)
    }

    /// As `stream`, to whom may be gone: `None` when no reply comes. The events of one
    /// that is no stream are none.
    #[must_use]
    pub fn try_stream(&self, path: &str, body: &Value) -> Option<(u16, Sse)> {
        let response = self.send("POST", path, Some(body)).ok()?;
        let status = response.status().as_u16();
        let lines = BufReader::new(Box::new(response.into_body().into_reader()) as Box<_>);
        Some((status, Sse { lines }))
    }

    /// Gets a path.
    #[must_use]
    pub fn get(&self, path: &str) -> Reply {
        self.call("GET", path, None)
    }

    /// Posts JSON.
    #[must_use]
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.call("POST", path, Some(body))
    }

    /// Posts text that claims to be JSON.
    ///
    /// # Panics
    /// When there is no reply.
    #[must_use]
    pub fn post_text(&self, path: &str, text: &str) -> Reply {
        let response = self.send_text("POST", path, Some(text.to_owned())).expect("a reply");
        read(response).expect("a text body")
    }

    /// Says whether anything answers at the path.
    #[must_use]
    pub fn answers(&self, path: &str) -> bool {
        self.send("GET", path, None).is_ok()
    }

    /// Posts JSON and reads the reply event by event.
    ///
    /// # Panics
    /// When the reply is not a stream.
    #[must_use]
    pub fn stream(&self, path: &str, body: &Value) -> Sse {
        let response = self.send("POST", path, Some(body)).expect("a reply");
        assert_eq!(response.status().as_u16(), 200, "{response:?}");
        Sse { lines: BufReader::new(Box::new(response.into_body().into_reader())) }
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<ureq::Body>, ureq::Error> {
        self.send_text(method, path, body.map(ToString::to_string))
    }

    fn send_text(
        &self,
        method: &str,
        path: &str,
        body: Option<String>,
    ) -> Result<Response<ureq::Body>, ureq::Error> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base_url));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        match body {
            None => self.agent.run(request.body(())?),
            Some(json) => {
                request = request.header("content-type", "application/json");
                self.agent.run(request.body(json)?)
            }
        }
    }
}

/// Reads a reply whole; `None` when it breaks off or is no text.
fn read(response: Response<ureq::Body>) -> Option<Reply> {
    let status = response.status().as_u16();
    let header = |(name, value): (&ureq::http::HeaderName, &ureq::http::HeaderValue)| {
        (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let headers = response.headers().iter().map(header).collect();
    let mut body = String::new();
    response.into_body().into_reader().read_to_string(&mut body).ok()?;
    Some(Reply { status, headers, body })
}

/// A reply read event by event; dropping it closes the connection.
pub struct Sse {
    lines: BufReader<Box<dyn Read + Send>>,
}

impl std::fmt::Debug for Sse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sse").finish_non_exhaustive()
    }
}

impl Iterator for Sse {
    type Item = String;

    /// Returns the data of the next event, `[DONE]` included.
    fn next(&mut self) -> Option<String> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.lines.read_line(&mut line).unwrap_or(0) == 0 {
                return None;
            }
            if let Some(data) = line.trim_end().strip_prefix("data: ") {
                return Some(data.to_owned());
            }
        }
    }
}
