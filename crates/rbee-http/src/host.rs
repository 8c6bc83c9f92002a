//! By which names a daemon may be called. Refuses requests that name another
//! host and those that foreign web pages send, so that a page in a browser
//! cannot reach a daemon of the same machine under a name of its own (DNS
//! rebinding). Never looks at credentials, nor at what a proxy claims.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use auth_min::is_loopback;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, Uri};
use rbee_api::error::ErrorCode;

use crate::error::ApiError;

/// This end of the connection that a request came in on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ArrivedAt(pub(crate) SocketAddr);

/// Further names by which a daemon may be called, beside those of the loopback.
/// Where there are any, every request has to name one; where there are none,
/// only the requests that come in over the loopback are held to its names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedHosts(Arc<[String]>);

/// A name that cannot stand in the list of allowed hosts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is not a host name or address; write it without scheme, port and wildcard, such as rbee.example"
)]
pub struct BadHostName {
    name: String,
}

impl AllowedHosts {
    /// Takes the names as they are configured: host names and addresses, without port.
    ///
    /// # Errors
    /// [`BadHostName`] for the first one that is something else.
    pub fn new(names: &[String]) -> Result<Self, BadHostName> {
        let parsed = names.iter().map(|name| match host_of(name) {
            Some(host) if authority(name).is_some_and(|whole| whole.port().is_none()) => {
                Ok(host.to_ascii_lowercase())
            }
            Some(_) | None => Err(BadHostName { name: name.clone() }),
        });
        Ok(Self(parsed.collect::<Result<_, _>>()?))
    }

    /// Says whether a host, without port, is this daemon.
    fn allows(&self, host: &str) -> bool {
        let is_own = host.eq_ignore_ascii_case("localhost")
            || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| is_loopback(ip));
        is_own || self.0.iter().any(|name| name.eq_ignore_ascii_case(host))
    }

    /// Says whether a request may be looked at any further.
    fn admit(&self, arrived: Option<ArrivedAt>, uri: &Uri, headers: &HeaderMap) -> bool {
        let is_from_outside = arrived.is_some_and(|ArrivedAt(local)| !is_loopback(local.ip()));
        if is_from_outside && self.0.is_empty() {
            return true;
        }
        let in_target = uri.authority().is_none_or(|named| self.names_us(named.as_str()));
        let in_header = match only(headers, &HOST) {
            Ok(host) => host.is_some_and(|host| self.names_us(host)),
            Err(Several) => false,
        };
        let of_our_page = match only(headers, &ORIGIN) {
            Ok(origin) => origin.is_none_or(|origin| self.is_our_page(origin)),
            Err(Several) => false,
        };
        in_target && in_header && of_our_page
    }

    fn names_us(&self, authority: &str) -> bool {
        host_of(authority).is_some_and(|host| self.allows(host))
    }

    fn is_our_page(&self, origin: &str) -> bool {
        let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        rest.is_some_and(|authority| self.names_us(authority))
    }
}

/// A header that may stand once stands more often, or is no text.
struct Several;

fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h str>, Several> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(Several);
    }
    first.map(|value| value.to_str().map_err(|_not_text| Several)).transpose()
}

/// Parses `host` or `host:port`, with nothing else around it.
fn authority(text: &str) -> Option<Authority> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    let well_formed = !text.is_empty() && text.bytes().all(is_plain);
    let parsed: Authority = if well_formed { text.parse().ok()? } else { return None };
    let rest = text.strip_prefix(parsed.host())?;
    let is_port =
        |rest: &str| rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    (rest.is_empty() || is_port(rest)).then_some(parsed)
}

/// Returns the host of `host` or `host:port`.
fn host_of(text: &str) -> Option<&str> {
    text.get(..authority(text)?.host().len()).filter(|host| !host.is_empty())
}

/// The layer itself. Outside of credentials, so that a foreign page learns
/// nothing, and inside the outermost layer, so that it is counted.
pub(crate) async fn check_host(
    State(hosts): State<AllowedHosts>,
    request: Request,
    next: Next,
) -> Response {
    let arrived = request.extensions().get::<ArrivedAt>().copied();
    if hosts.admit(arrived, request.uri(), request.headers()) {
        return next.run(request).await;
    }
    let message = "this program does not answer to the host that the request names, or to the web page that it \
                   comes from; call it as localhost or 127.0.0.1, or add the name to allowed_hosts";
    ApiError::new(ErrorCode::HostNotAllowed, message).into_response()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const LOOPBACK: &str = "127.0.0.1:8080";

    fn admitted(names: &[&str], at: &str, target: &str, pairs: &[(&'static str, &str)]) -> bool {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let arrived = Some(ArrivedAt(at.parse().unwrap()));
        AllowedHosts::new(&names).unwrap().admit(arrived, &target.parse().unwrap(), &headers)
    }

    #[test]
    fn over_the_loopback_only_its_own_names_are_answered() {
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "localhost:1",
            "127.0.0.1",
            "127.0.0.1:8080",
            "127.8.9.10",
            "[::1]",
            "[::1]:9",
            "[::ffff:127.0.0.1]:80",
        ] {
            assert!(admitted(&[], LOOPBACK, "/", &[("host", host)]), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "localhost.",
            "127.0.0.1.evil.example",
            "127.1",
            "0x7f.1",
            "2130706433",
            "0",
            "0.0.0.0",
            "[::]",
            "[::2]",
            "10.0.0.1",
            "localhost@evil.example",
            "evil.example@localhost",
            "localhost/",
            "localhost?x",
            "localhost#",
            "localhost,evil.example",
            "localhost evil.example",
            "localhost:",
            "localhost:x",
            "localhost:99999",
            "localhost:80:80",
            "[::1",
            "::1]",
            "[[::1]]",
            "*",
            "*.localhost",
            "http://localhost",
            "%6cocalhost",
            "loc\u{430}lhost",
        ] {
            assert!(!admitted(&[], LOOPBACK, "/", &[("host", host)]), "{host:?}");
        }
        assert!(!admitted(&[], LOOPBACK, "/", &[]), "a request without a host");
        let twice = [("host", "localhost"), ("host", "localhost")];
        assert!(!admitted(&[], LOOPBACK, "/", &twice));
        assert!(!admitted(&[], "[::ffff:127.0.0.1]:1", "/", &[("host", "evil.example")]));
    }

    #[test]
    fn a_whole_url_in_the_request_line_has_to_name_us_too() {
        let host = [("host", "localhost")];
        assert!(admitted(&[], LOOPBACK, "http://localhost:8080/v1/models", &host));
        for target in ["http://evil.example/health", "http://a@localhost/", "evil.example:80"] {
            assert!(!admitted(&[], LOOPBACK, target, &host), "{target}");
        }
        assert!(!admitted(&[], LOOPBACK, "http://localhost/", &[("host", "evil.example")]));
    }

    #[test]
    fn foreign_pages_are_refused_and_proxies_are_not_believed() {
        let with = |origin: &str| {
            admitted(&[], LOOPBACK, "/", &[("host", "localhost"), ("origin", origin)])
        };
        for own in ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:1"] {
            assert!(with(own), "{own}");
        }
        for foreign in [
            "null",
            "",
            "*",
            "http://evil.example",
            "https://localhost.evil.example",
            "localhost",
            "file://",
            "http://",
            "chrome-extension://localhost",
            "http://localhost/x",
            "http://localhost http://evil.example",
            "HTTP://localhost",
        ] {
            assert!(!with(foreign), "{foreign:?}");
        }
        for claim in ["x-forwarded-host", "forwarded", "x-original-host"] {
            let hostile = [("host", "evil.example"), (claim, "localhost")];
            assert!(!admitted(&[], LOOPBACK, "/", &hostile), "{claim}");
            let honest = [("host", "localhost"), (claim, "evil.example")];
            assert!(admitted(&[], LOOPBACK, "/", &honest), "{claim}");
        }
    }

    #[test]
    fn configured_names_are_answered_to_and_then_hold_everywhere() {
        let named = |at, host| admitted(&["Rbee.lan", "10.0.0.5"], at, "/", &[("host", host)]);
        for at in [LOOPBACK, "10.0.0.5:8080"] {
            for host in ["rbee.lan:8080", "10.0.0.5", "localhost"] {
                assert!(named(at, host), "{at} {host}");
            }
            assert!(!named(at, "evil.example"), "{at}");
        }
        let anything = [("host", "evil.example"), ("origin", "http://evil.example")];
        assert!(admitted(&[], "10.0.0.5:8080", "/", &anything), "names that are not configured");
        let nowhere = AllowedHosts::default().admit(None, &"/".parse().unwrap(), &HeaderMap::new());
        assert!(!nowhere, "without knowing where, the strict rule holds");
    }

    #[test]
    fn only_plain_names_can_be_configured() {
        for bad in ["", "*", "*.lan", "http://rbee.lan", "rbee.lan:80", "a b", "a/b", "a@b", "é"] {
            let refused = AllowedHosts::new(&[bad.to_owned()]).unwrap_err();
            assert!(refused.to_string().contains("without scheme"), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_the_check_panic_or_opens_it(host in "\\PC{0,40}", origin in any::<Vec<u8>>()) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(host.as_bytes()) {
                headers.insert(HOST, value);
            }
            if let Ok(value) = HeaderValue::from_bytes(&origin) {
                headers.insert(ORIGIN, value);
            }
            let admitted = AllowedHosts::default().admit(None, &"/".parse().unwrap(), &headers);
            let lower = host.to_ascii_lowercase();
            prop_assert!(!admitted || lower.starts_with("localhost") || host.starts_with("127.") || host.starts_with('['));
        }
    }
}
