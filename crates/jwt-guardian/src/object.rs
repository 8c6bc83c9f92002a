//! JSON objects as tokens must have them: one object and nothing after it,
//! each name once. Two readers of a doubled name may each believe another one.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

/// The members of one object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Object(pub(crate) BTreeMap<String, Value>);

impl Object {
    /// Reads one object; `None` for anything else, for a doubled name, and for
    /// what follows the object.
    pub(crate) fn read(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if members.insert(name, value).is_some() {
                        return Err(A::Error::custom("a name stands twice"));
                    }
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_object_with_each_name_once_is_read() {
        let good = Object::read(br#" {"a":1,"b":{"a":2}} "#).unwrap();
        assert_eq!(good.get("a"), Some(&Value::from(1)));
        for bad in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"a":1}{"a":1}"#,
            r#"{"a":1}x"#,
            "[]",
            "null",
            "",
            r#"{"a":1"#,
            r#"{"a":}"#,
        ] {
            assert_eq!(Object::read(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(Object::read(b"{\"a\":\"\xff\"}"), None);
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(Object::read(deep.as_bytes()), None, "it is not followed to its depth");
    }
}
