//! The guard against DNS rebinding on a loopback listener. Owns which Host and Origin headers come from this machine's
//! own user; never looks up a name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::is_loopback;

/// Says why a request to a loopback listener looks like a foreign web page's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// There is no Host header.
    #[error("the request has no host header")]
    MissingHost,
    /// The Host header does not name this machine's loopback.
    #[error("the host header does not name this machine; use localhost, 127.0.0.1 or [::1]")]
    ForeignHost,
    /// The Origin header names a web page from elsewhere.
    #[error("the origin header names a page that does not come from this machine")]
    ForeignOrigin,
}

impl HostError {
    /// Names the error for clients.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        "forbidden"
    }

    /// Answers whether the same request may pass later: never.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        false
    }
}

/// Accepts a request to a loopback listener when its Host, and its Origin if it has one, name `localhost`, an address in
/// 127.0.0.0/8 or `[::1]`, with any port.
///
/// A browser that was led to this listener by a foreign name still sends that name as Host, and a page's own origin as
/// Origin; programs send no Origin.
///
/// # Errors
/// [`HostError`]; each variant is a 403.
pub fn check_host(host: Option<&[u8]>, origin: Option<&[u8]>) -> Result<(), HostError> {
    let host = host.ok_or(HostError::MissingHost)?;
    if !names_loopback(host) {
        return Err(HostError::ForeignHost);
    }
    match origin {
        None => Ok(()),
        Some(origin) if is_own_page(origin) => Ok(()),
        Some(_) => Err(HostError::ForeignOrigin),
    }
}

fn is_own_page(origin: &[u8]) -> bool {
    [b"http://".as_slice(), b"https://".as_slice()]
        .into_iter()
        .any(|scheme| origin.strip_prefix(scheme).is_some_and(names_loopback))
}

/// Takes `host[:port]` and nothing more: a path, a user or a blank makes it foreign.
fn names_loopback(authority: &[u8]) -> bool {
    let Ok(authority) = std::str::from_utf8(authority) else { return false };
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split_once(']').is_some_and(|(ip, port)| {
            (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
                && ip.parse::<Ipv6Addr>().is_ok_and(|ip| is_loopback(IpAddr::V6(ip)))
        });
    }
    let (host, port_is_good) = match authority.split_once(':') {
        Some((host, port)) => (host, is_port(port)),
        None => (authority, true),
    };
    port_is_good
        && (host.eq_ignore_ascii_case("localhost")
            || host.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback()))
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn loopback_names_pass_with_any_port() {
        for host in [
            "localhost",
            "LocalHost:8080",
            "127.0.0.1",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]",
            "[::1]:65535",
        ] {
            assert_eq!(check_host(Some(host.as_bytes()), None), Ok(()), "{host}");
            for scheme in ["http", "https"] {
                let origin = format!("{scheme}://{host}");
                assert_eq!(
                    check_host(Some(b"localhost"), Some(origin.as_bytes())),
                    Ok(()),
                    "{origin}"
                );
            }
        }
    }

    #[test]
    fn foreign_hosts_are_refused() {
        for host in [
            "",
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "0.0.0.0",
            "192.168.0.1",
            "[::]",
            "[::2]",
            "[::1",
            "::1",
            "localhost:",
            "localhost:x",
            "localhost:99999",
            "localhost:+1",
            "localhost/v1/models?",
            "user@localhost",
            "localhost ",
            " localhost",
            "127.1",
            "2130706433",
            "0x7f.1",
            "localhost\0",
            "localhost,evil.example",
            "[::1]x",
            "[::1]:",
            "localhost:80:80",
        ] {
            assert_eq!(
                check_host(Some(host.as_bytes()), None),
                Err(HostError::ForeignHost),
                "{host:?}"
            );
        }
        assert_eq!(check_host(None, None), Err(HostError::MissingHost));
        assert_eq!(check_host(Some(b"\xff"), None), Err(HostError::ForeignHost));
    }

    #[test]
    fn foreign_origins_are_refused_on_a_good_host() {
        for origin in [
            "",
            "null",
            "http://evil.example",
            "file://",
            "ftp://localhost",
            "localhost",
            "http://",
        ] {
            let checked = check_host(Some(b"localhost:8080"), Some(origin.as_bytes()));
            assert_eq!(checked, Err(HostError::ForeignOrigin), "{origin:?}");
        }
    }

    proptest! {
        #[test]
        fn a_name_with_a_dot_and_a_letter_is_foreign(name in "[a-z0-9.-]{0,20}[a-z]\\.[a-z]{1,10}(:[0-9]{1,5})?") {
            prop_assert_eq!(check_host(Some(name.as_bytes()), None), Err(HostError::ForeignHost));
        }

        #[test]
        fn no_header_makes_the_check_panic(host in any::<Vec<u8>>(), origin in any::<Option<Vec<u8>>>()) {
            let known = check_host(Some(&host), origin.as_deref()).is_ok();
            prop_assert!(!known || host.is_ascii());
        }
    }
}
