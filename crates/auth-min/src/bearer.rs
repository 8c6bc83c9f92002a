//! The `Authorization` header. Owns its parsing after RFC 6750; never shows a token, not in Debug and not in an error.

use std::fmt;

use crate::TokenDigest;

/// Longest header value that is looked at: no token of ours or of an identity provider comes near.
pub const BEARER_HEADER_BYTES_MAX: usize = 8 * 1024;

/// Borrows the token out of an `Authorization` header.
#[derive(Clone, Copy)]
pub struct BearerToken<'a>(&'a str);

impl fmt::Debug for BearerToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken(…)")
    }
}

/// Says why a caller is not let in. Every variant is a 401.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The header is longer than [`BEARER_HEADER_BYTES_MAX`].
    #[error("the authorization header is longer than {BEARER_HEADER_BYTES_MAX} bytes")]
    TooLong,
    /// The header holds bytes outside visible ASCII and space.
    #[error("the authorization header holds characters that a token cannot have")]
    ForbiddenCharacter,
    /// The scheme is not `Bearer`.
    #[error("the authorization scheme is not Bearer")]
    WrongScheme,
    /// The scheme is right and no token follows.
    #[error("the bearer token is empty")]
    EmptyToken,
    /// More than one word follows the scheme.
    #[error("the bearer token contains a space")]
    MalformedToken,
}

impl AuthError {
    /// Names the error for clients.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        "unauthorized"
    }

    /// Answers whether the same request may pass later: never.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        false
    }
}

impl<'a> BearerToken<'a> {
    /// Parses the value of an `Authorization` header.
    ///
    /// The scheme is compared without case and may be followed by several spaces. The token may be any visible ASCII,
    /// which is wider than RFC 6750's alphabet, so that an operator's own token file works whatever it holds.
    ///
    /// # Errors
    /// [`AuthError`].
    pub fn parse(header: &'a [u8]) -> Result<Self, AuthError> {
        if header.len() > BEARER_HEADER_BYTES_MAX {
            return Err(AuthError::TooLong);
        }
        let text =
            std::str::from_utf8(header).map_err(|_not_text| AuthError::ForbiddenCharacter)?;
        if !text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
            return Err(AuthError::ForbiddenCharacter);
        }
        let text = text.trim_matches(' ');
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(AuthError::WrongScheme);
        }
        let token = rest.trim_start_matches(' ');
        if token.is_empty() {
            return Err(AuthError::EmptyToken);
        }
        if token.contains(' ') {
            return Err(AuthError::MalformedToken);
        }
        Ok(Self(token))
    }

    /// Returns the token itself, for those that are read and not compared: signed ones.
    #[must_use]
    pub const fn expose(&self) -> &'a str {
        self.0
    }

    /// Computes the digest, the only form in which a received token of ours is kept or compared.
    #[must_use]
    pub fn digest(&self) -> TokenDigest {
        TokenDigest::of(self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn well_formed_headers_give_the_token() {
        for header in ["Bearer abc", "bearer abc", "BEARER  abc", "bEaReR abc "] {
            let digest = BearerToken::parse(header.as_bytes()).unwrap().digest();
            assert!(digest.matches(&TokenDigest::of("abc")), "{header:?}");
        }
        assert!(BearerToken::parse(b"Bearer p@ss!w0rd{}").is_ok());
    }

    #[test]
    fn everything_else_is_refused_with_its_reason() {
        for (header, expected) in [
            ("", AuthError::WrongScheme),
            ("Basic x", AuthError::WrongScheme),
            ("BearerX", AuthError::WrongScheme),
            ("BearerX abc", AuthError::WrongScheme),
            ("abc", AuthError::WrongScheme),
            ("Bearer", AuthError::EmptyToken),
            ("Bearer ", AuthError::EmptyToken),
            ("Bearer    ", AuthError::EmptyToken),
            ("Bearer a b", AuthError::MalformedToken),
            ("Bearer a, Bearer b", AuthError::MalformedToken),
            ("Bearer\tabc", AuthError::ForbiddenCharacter),
            ("Bearer abc\n", AuthError::ForbiddenCharacter),
            ("Bearer a\0c", AuthError::ForbiddenCharacter),
            ("Bearer \u{7f}", AuthError::ForbiddenCharacter),
            ("Bearer é", AuthError::ForbiddenCharacter),
        ] {
            assert_eq!(BearerToken::parse(header.as_bytes()).unwrap_err(), expected, "{header:?}");
        }
        assert_eq!(BearerToken::parse(b"Bearer \xff").unwrap_err(), AuthError::ForbiddenCharacter);
    }

    #[test]
    fn the_length_limit_is_itself_accepted() {
        let header = |length: usize| format!("Bearer {}", "a".repeat(length - 7));
        assert!(BearerToken::parse(header(BEARER_HEADER_BYTES_MAX).as_bytes()).is_ok());
        let over = header(BEARER_HEADER_BYTES_MAX + 1);
        assert_eq!(BearerToken::parse(over.as_bytes()).unwrap_err(), AuthError::TooLong);
    }

    #[test]
    fn debug_does_not_show_the_token() {
        let token = BearerToken::parse(b"Bearer s3cret-canary").unwrap();
        assert!(!format!("{token:?}").contains("s3cret"));
    }

    proptest! {
        #[test]
        fn no_header_makes_the_parser_panic(header in any::<Vec<u8>>()) {
            if let Ok(token) = BearerToken::parse(&header) {
                prop_assert!(!token.0.is_empty() && token.0.bytes().all(|b| b.is_ascii_graphic()));
            }
        }

        #[test]
        fn every_visible_token_is_accepted(token in "[!-~]{1,200}") {
            let header = format!("Bearer {token}");
            prop_assert_eq!(BearerToken::parse(header.as_bytes()).unwrap().0, token);
        }
    }
}
