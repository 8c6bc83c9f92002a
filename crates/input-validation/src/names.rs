//! The short names: machines, workers, requests. Owns their alphabets and lengths; never generates one.

use crate::ValidationError;
use crate::text::{check, text_conversions};

/// Longest machine name: one DNS label.
pub const NODE_NAME_MAX: usize = 63;

/// Longest worker id: room for a prefix and a UUID, and still one table column.
pub const WORKER_ID_MAX: usize = 64;

/// How the ids that we make begin, which sets a worker's files apart from those of other programs.
pub const WORKER_ID_PREFIX: &str = "w-";

/// Longest request id echoed from a client: enough for every tracing scheme in use, short enough for a log field.
pub const REQUEST_ID_MAX: usize = 128;

/// Longest name of a key: a person's or a service's, and still one table column.
pub const KEY_NAME_MAX: usize = 64;

/// Names a machine: 1 to 63 of `a-z 0-9 -`, neither first nor last a hyphen, as a DNS label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName {
    text: String,
}

impl NodeName {
    fn parse(text: &str) -> Result<Self, ValidationError> {
        let field = "node name";
        check(field, text, NODE_NAME_MAX, "a-z, 0-9, -", is_label_character)?;
        if text.starts_with('-') || text.ends_with('-') {
            return Err(ValidationError::Malformed {
                field,
                expected: "a host name without a hyphen at either end",
            });
        }
        Ok(Self { text: text.to_owned() })
    }
}

text_conversions!(NodeName);

/// Names a worker: 1 to 64 of `a-z 0-9 -`, not starting with a hyphen, opaque to everyone but its maker.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId {
    text: String,
}

impl WorkerId {
    fn parse(text: &str) -> Result<Self, ValidationError> {
        let field = "worker id";
        check(field, text, WORKER_ID_MAX, "a-z, 0-9, -", is_label_character)?;
        if text.starts_with('-') {
            return Err(ValidationError::Malformed {
                field,
                expected: "an id without a leading hyphen",
            });
        }
        Ok(Self { text: text.to_owned() })
    }
}

impl WorkerId {
    /// Makes the id of a new worker from a number that its maker knows to be fresh, such as a UUID.
    #[must_use]
    pub fn from_u128(fresh: u128) -> Self {
        Self { text: format!("{WORKER_ID_PREFIX}{fresh:032x}") }
    }
}

text_conversions!(WorkerId);

/// Names a request across all hops: 1 to 128 visible ASCII characters without quotes or backslash, so that it can
/// stand in a header, a log field and a JSON string as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId {
    text: String,
}

impl RequestId {
    fn parse(text: &str) -> Result<Self, ValidationError> {
        check(
            "request id",
            text,
            REQUEST_ID_MAX,
            "visible ASCII without quotes and backslash",
            |c| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '`' | '\\'),
        )?;
        Ok(Self { text: text.to_owned() })
    }
}

impl RequestId {
    /// Makes the id of a new request from a number that its maker knows to be fresh, such as a UUID.
    #[must_use]
    pub fn from_u128(fresh: u128) -> Self {
        Self { text: format!("{fresh:032x}") }
    }
}

text_conversions!(RequestId);

/// Names a key for people: 1 to 64 of letters, digits and `. _ -`, the first one a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyName {
    text: String,
}

impl KeyName {
    fn parse(text: &str) -> Result<Self, ValidationError> {
        let field = "key name";
        check(field, text, KEY_NAME_MAX, "a-z, A-Z, 0-9, ., _, -", |c| {
            c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
        })?;
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(ValidationError::Malformed {
                field,
                expected: "a name that begins with a letter or digit",
            });
        }
        Ok(Self { text: text.to_owned() })
    }
}

text_conversions!(KeyName);

const fn is_label_character(c: char) -> bool {
    matches!(c, 'a'..='z' | '0'..='9' | '-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOSTILE: &[&str] = &[
        "",
        "a/b",
        "..",
        "a\0",
        "😀",
        "a b",
        "A",
        "a_b",
        "-a",
        "a\n",
        "$(x)",
        "a;b",
        "\u{1b}[0m",
        "é",
    ];

    #[test]
    fn node_names_follow_the_host_name_rule_to_the_limit() {
        for good in ["a", "node-1", "0", &"a".repeat(NODE_NAME_MAX)] {
            assert_eq!(good.parse::<NodeName>().unwrap().as_str(), good);
        }
        for bad in HOSTILE {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?}");
        }
        assert!("a-".parse::<NodeName>().is_err());
        assert!("a".repeat(NODE_NAME_MAX + 1).parse::<NodeName>().is_err());
    }

    #[test]
    fn key_names_stand_in_paths_tables_and_labels_as_they_are() {
        for good in ["ci", "Alice.W", "team_a-2", "0", &"a".repeat(KEY_NAME_MAX)] {
            assert_eq!(good.parse::<KeyName>().unwrap().as_str(), good);
        }
        for bad in HOSTILE.iter().filter(|bad| !matches!(**bad, "A" | "a_b")) {
            assert!(bad.parse::<KeyName>().is_err(), "{bad:?}");
        }
        for bad in [".a", "_a", "a:b", "a@b", &"a".repeat(KEY_NAME_MAX + 1)] {
            assert!(bad.parse::<KeyName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn worker_ids_are_opaque_and_bounded() {
        for good in ["worker-1", "w-0190f3", "a", &"a".repeat(WORKER_ID_MAX)] {
            assert_eq!(good.parse::<WorkerId>().unwrap().to_string(), good);
        }
        for bad in HOSTILE {
            assert!(bad.parse::<WorkerId>().is_err(), "{bad:?}");
        }
        for length in [WORKER_ID_MAX + 1, 300] {
            assert!("a".repeat(length).parse::<WorkerId>().is_err());
        }
    }

    #[test]
    fn request_ids_are_visible_ascii_to_the_limit() {
        for good in ["req-1", "A/b:c=d", "01J|x", &"~".repeat(REQUEST_ID_MAX)] {
            assert!(good.parse::<RequestId>().is_ok(), "{good:?}");
        }
        for bad in ["", "a b", "a\"", "a'", "a`", "a\\", "a\r\n", "é", "\u{7f}"] {
            assert!(bad.parse::<RequestId>().is_err(), "{bad:?}");
        }
        assert!("~".repeat(REQUEST_ID_MAX + 1).parse::<RequestId>().is_err());
    }

    #[test]
    fn json_goes_through_the_parser_both_ways() {
        let name: NodeName = serde_json::from_str("\"node-1\"").unwrap();
        assert_eq!(serde_json::to_string(&name).unwrap(), "\"node-1\"");
        let refused = serde_json::from_str::<NodeName>("\"a b\"").unwrap_err().to_string();
        assert!(refused.contains("node name"), "{refused}");
    }

    proptest! {
        #[test]
        fn any_text_is_kept_as_it_is_or_refused(text in any::<String>()) {
            if let Ok(name) = text.parse::<NodeName>() {
                prop_assert_eq!(name.as_str(), &text);
                prop_assert!(text.len() <= NODE_NAME_MAX && !text.starts_with('-'));
            }
            if let Ok(id) = text.parse::<RequestId>() {
                prop_assert!(id.as_str().bytes().all(|b| b.is_ascii_graphic()));
            }
        }

        #[test]
        fn every_label_is_a_node_name(text in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?") {
            prop_assert!(text.parse::<NodeName>().is_ok());
            prop_assert!(text.parse::<WorkerId>().is_ok());
        }
    }
}
