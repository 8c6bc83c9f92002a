//! Headers and names: what stands in a request before its body.

use std::time::Duration;

use auth_min::{BEARER_HEADER_BYTES_MAX, BearerToken};
use deadline_propagation::{Deadline, TIMEOUT_HEADER, WALL_CLOCK_HEADER};
use http::{HeaderMap, HeaderValue};
use input_validation::{
    MODEL_REF_MAX, ModelAlias, ModelRef, NodeName, RequestId, Sha256Hex, WorkerId,
    sanitize_for_log, sanitize_for_terminal,
};

use crate::Target;

/// Credentials.
pub const BEARER_HEADER: Target = Target {
    name: "bearer_header",
    run: |data| match BearerToken::parse(data) {
        Ok(token) => {
            assert!(data.len() <= BEARER_HEADER_BYTES_MAX);
            assert_eq!(format!("{token:?}"), "BearerToken(…)", "a token is never shown");
            assert!(token.digest().matches(&token.digest()));
        }
        Err(error) => assert_eq!(error.code(), "unauthorized"),
    },
    seeds: || {
        let texts =
            ["Bearer abc", "bearer  x.y-z_~+/=", "Basic dXNlcjpwYXNz", "Bearer a b", "Bearer"];
        texts.map(|text| text.as_bytes().to_vec()).into()
    },
    words: &["Bearer ", "bearer", " ", "\t", "\0", ",", "=", "é"],
};

/// The most time that the tests give a request.
const CAP: Duration = Duration::from_secs(3600);

/// The two headers that say how long a request may take.
pub const DEADLINE_HEADERS: Target = Target {
    name: "deadline_headers",
    run: |data| {
        let mut headers = HeaderMap::new();
        let lines = data.split(|byte| *byte == b'\n').take(4);
        for (line, name) in lines.zip([&TIMEOUT_HEADER, &WALL_CLOCK_HEADER].into_iter().cycle()) {
            if let Ok(value) = HeaderValue::from_bytes(line)
                && !line.is_empty()
            {
                headers.append(name, value);
            }
        }
        match Deadline::from_headers(&headers, Duration::from_secs(600), CAP) {
            Ok(deadline) => {
                assert!(deadline.remaining() <= CAP);
                assert!(
                    deadline.header_value().to_str().is_ok_and(|text| text.parse::<u64>().is_ok())
                );
            }
            Err(error) => assert!(error.to_string().contains(error.header().as_str())),
        }
    },
    seeds: || {
        let texts = [
            "1000\n2030-01-01T00:00:00Z",
            "0\n",
            "\n2030-01-01T01:00:10+01:00",
            "18446744073709551615\n1970-01-01T00:00:00Z\n1",
            "\n-009999-01-01T00:00:00Z[Europe/Zurich]",
        ];
        texts.map(|text| text.as_bytes().to_vec()).into()
    },
    words: &["T", "Z", "+", "-", ":", "2030-01-01", "00:00:00", "[UTC]", ".999999999", "\n", "1e9"],
};

/// Names, model references, and what makes foreign text fit for logs and terminals.
pub const NAMES: Target = Target {
    name: "names",
    run: |data| {
        let text = String::from_utf8_lossy(data);
        if let Ok(reference) = text.parse::<ModelRef>() {
            let canonical = reference.to_string();
            assert!(canonical.len() <= MODEL_REF_MAX && !canonical.contains(".."), "{canonical}");
            assert_eq!(
                canonical.parse::<ModelRef>().ok().as_ref(),
                Some(&reference),
                "{canonical}"
            );
        }
        let short = [
            text.parse::<ModelAlias>().map(|name| name.to_string()),
            text.parse::<NodeName>().map(|name| name.to_string()),
            text.parse::<WorkerId>().map(|name| name.to_string()),
            text.parse::<RequestId>().map(|name| name.to_string()),
            text.parse::<Sha256Hex>().map(|name| name.to_string()),
        ];
        for name in short.into_iter().flatten() {
            assert!(
                !name.contains(['/', '\0', ' ', '\n', '\u{1b}']) || name.is_ascii(),
                "{name:?}"
            );
            assert!(!name.is_empty() && name.chars().all(|c| c.is_ascii_graphic()), "{name:?}");
        }
        assert!(!sanitize_for_log(&text).chars().any(char::is_control));
        assert!(!sanitize_for_terminal(&text).contains(['\u{1b}', '\r', '\u{202e}']));
    },
    seeds: || {
        let texts = [
            "smollm2:135m",
            "hf:owner/repo@main:Q4_K_M",
            "https://host.example:8443/a/b.gguf",
            "file:/data/a%20b/%25.gguf",
            "w-01a1ff5417627463a1dbd04f0c80cabb",
            "node-1",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "model\r\n[ERROR] fake\u{1b}[31m\u{202e}",
        ];
        texts.map(|text| text.as_bytes().to_vec()).into()
    },
    words: &[
        "hf:",
        "file:",
        "file:///",
        "https://",
        "http://",
        "..",
        "/",
        "%2e%2e",
        "%2F",
        "%00",
        "%",
        "@",
        ":",
        "-",
        "\u{1b}[0m",
        "\u{202e}",
        "\r\n",
        "[::1]",
        "user@",
        "?q",
        "#f",
    ],
};
