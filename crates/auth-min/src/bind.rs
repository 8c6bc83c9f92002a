//! Where a daemon may listen. Owns the rule that only a token opens a daemon to the network; never opens a socket.

use std::net::{IpAddr, SocketAddr};

/// Shortest token, in characters, that allows a listener on the network: beyond guessing by request.
pub const TOKEN_LENGTH_MIN: usize = 16;

/// Says why a daemon may not listen on an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// There is no token.
    #[error(
        "listening on {addr} opens this daemon to the network and needs a token of at least {TOKEN_LENGTH_MIN} \
         characters; configure one, or listen on 127.0.0.1"
    )]
    NoToken {
        /// The address refused.
        addr: SocketAddr,
    },
    /// No credential is asked for.
    #[error(
        "auth.mode = \"none\" lets in whoever reaches this daemon, and {addr} can be reached from the network; set \
         auth.mode = \"token\", or listen on 127.0.0.1"
    )]
    Open {
        /// The address refused.
        addr: SocketAddr,
    },
    /// What is said there can be read on its way.
    #[error(
        "listening on {addr} in plain HTTP lets others on the network read tokens and prompts; set mode = \"local\" or \
         mode = \"files\" under [tls], listen on 127.0.0.1, or accept it with allow_plain_http = true under [tls] \
         (--allow-plain-http)"
    )]
    PlainHttp {
        /// The address refused.
        addr: SocketAddr,
    },
    /// There is a token, and it could be guessed.
    #[error(
        "listening on {addr} opens this daemon to the network and needs a token of at least {TOKEN_LENGTH_MIN} \
         characters; the configured one has {token_length}. Use a longer one, or listen on 127.0.0.1"
    )]
    TokenTooShort {
        /// The address refused.
        addr: SocketAddr,
        /// Characters in the token at hand.
        token_length: usize,
    },
}

/// Allows any loopback address, and other addresses when the token has at least [`TOKEN_LENGTH_MIN`] characters.
///
/// `token_length` is 0 when there is no token. To be asked about the address a socket is bound to in the end, which
/// for an inherited socket is not the configured one.
///
/// # Errors
/// [`BindError`], with what to do in its message.
pub const fn check_bind(addr: SocketAddr, token_length: usize) -> Result<(), BindError> {
    if is_loopback(addr.ip()) || token_length >= TOKEN_LENGTH_MIN {
        Ok(())
    } else if token_length == 0 {
        Err(BindError::NoToken { addr })
    } else {
        Err(BindError::TokenTooShort { addr, token_length })
    }
}

/// Allows a daemon that asks for no credential loopback addresses alone.
///
/// # Errors
/// [`BindError::Open`].
pub const fn check_open_bind(addr: SocketAddr) -> Result<(), BindError> {
    if is_loopback(addr.ip()) { Ok(()) } else { Err(BindError::Open { addr }) }
}

/// What a daemon speaks on its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TLS.
    Tls,
    /// HTTP that whoever is on the way can read.
    PlainHttp,
    /// The same, and whoever configured it has said that this is meant.
    PlainHttpAccepted,
}

/// Allows TLS anywhere, and plain HTTP on loopback addresses, or where it is accepted.
///
/// # Errors
/// [`BindError::PlainHttp`], with what to do in its message.
pub const fn check_transport(addr: SocketAddr, transport: Transport) -> Result<(), BindError> {
    match transport {
        Transport::PlainHttp if !is_loopback(addr.ip()) => Err(BindError::PlainHttp { addr }),
        Transport::Tls | Transport::PlainHttp | Transport::PlainHttpAccepted => Ok(()),
    }
}

/// Answers whether only this machine reaches the address, IPv4 written as IPv6 (`::ffff:127.0.0.1`) included.
#[must_use]
pub const fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_needs_no_token() {
        for addr in ["127.0.0.1:0", "127.8.9.10:80", "[::1]:8080", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(check_bind(addr.parse().unwrap(), 0), Ok(()), "{addr}");
        }
    }

    #[test]
    fn every_other_address_needs_a_token_of_sixteen() {
        for addr in [
            "0.0.0.0:8080",
            "[::]:8080",
            "192.168.1.5:1",
            "[::ffff:0.0.0.0]:1",
            "[::ffff:10.0.0.1]:1",
            "[fe80::1]:1",
            "128.0.0.1:1",
            "[::127.0.0.1]:1",
        ] {
            let addr: SocketAddr = addr.parse().unwrap();
            assert_eq!(check_bind(addr, 0), Err(BindError::NoToken { addr }));
            let too_short = Err(BindError::TokenTooShort { addr, token_length: 15 });
            assert_eq!(check_bind(addr, 15), too_short);
            assert_eq!(check_bind(addr, 16), Ok(()));
        }
    }

    #[test]
    fn a_daemon_without_credentials_is_for_this_machine_alone() {
        for addr in ["127.0.0.1:8080", "[::1]:0", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(check_open_bind(addr.parse().unwrap()), Ok(()), "{addr}");
        }
        for addr in ["0.0.0.0:8080", "[::]:1", "10.0.0.1:1", "[::ffff:0.0.0.0]:1"] {
            let addr = addr.parse().unwrap();
            assert_eq!(check_open_bind(addr), Err(BindError::Open { addr }));
        }
    }

    #[test]
    fn plain_http_is_for_this_machine_unless_it_is_accepted() {
        for addr in ["127.0.0.1:8080", "[::1]:0", "[::ffff:127.0.0.1]:1"] {
            let addr = addr.parse().unwrap();
            assert_eq!(check_transport(addr, Transport::PlainHttp), Ok(()), "{addr}");
        }
        for addr in ["0.0.0.0:8080", "[::]:1", "10.0.0.1:1", "[::ffff:0.0.0.0]:1"] {
            let addr = addr.parse().unwrap();
            let refused = Err(BindError::PlainHttp { addr });
            assert_eq!(check_transport(addr, Transport::PlainHttp), refused);
            assert_eq!(check_transport(addr, Transport::PlainHttpAccepted), Ok(()));
            assert_eq!(check_transport(addr, Transport::Tls), Ok(()));
        }
    }

    #[test]
    fn the_message_says_what_to_do() {
        let message = check_bind("0.0.0.0:8080".parse().unwrap(), 0).unwrap_err().to_string();
        for part in ["0.0.0.0:8080", "token", "16", "127.0.0.1"] {
            assert!(message.contains(part), "{message}");
        }
    }
}
