//! The text types as JSON schemas, for the documents that tell a program's interface. Owns patterns that every accepted
//! text matches; whether a text is accepted is the parser's word alone.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::{KeyName, ModelAlias, ModelRef, NodeName, RequestId, Sha256Hex, WorkerId};

macro_rules! text_schema {
    ($name:ident, $pattern:literal, $description:literal) => {
        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "pattern": $pattern, "description": $description})
            }
        }
    };
}

text_schema!(NodeName, "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", "Names a machine, as a DNS label.");
text_schema!(KeyName, "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", "Names a key.");
text_schema!(WorkerId, "^[a-z0-9][a-z0-9-]{0,63}$", "Names a worker.");
text_schema!(
    RequestId,
    "^[!#-&(-\\[\\]-_a-~]{1,128}$",
    "Names a request across all hops: visible ASCII without quotes and backslash."
);
text_schema!(Sha256Hex, "^[0-9a-fA-F]{64}$", "A SHA-256 digest as hex digits.");
text_schema!(
    ModelAlias,
    "^[a-z0-9][a-z0-9._-]{0,63}(:[a-z0-9][a-z0-9._-]{0,63})?$",
    "A short name of a model, such as smollm2:135m; none of hf, file, http and https."
);
text_schema!(
    ModelRef,
    "^[A-Za-z0-9._+=,@:/%-]{1,512}$",
    "A model by its alias or reference: name[:tag], hf:owner/repo[@revision][:file-or-quant], https://host/path or file:/absolute/path."
);
