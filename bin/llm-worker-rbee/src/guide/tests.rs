//! What output under a guide looks like, with random likelihoods in place of a
//! model: whatever is likely, the output has to satisfy the schema.

use std::time::Duration;

use rbee_api::openai::Sampling;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::sampler::Sampler;
use crate::sampler::constraint::ConstraintError;

/// Every byte, some longer texts, a marker without text, two ends.
#[derive(Debug)]
struct Letters {
    words: Vec<Vec<u8>>,
}

const LONG: [&str; 12] =
    ["{\"", "\":", "\", \"", "true", "name", "age", "null", "  ", "\u{e9}", "12", "\"}", "]}"];
/// The marker, and after it the two ends.
const MARKER: u32 = 256 + 12;

pub(super) fn letters() -> Guide {
    let mut words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    words.extend(LONG.iter().map(|word| word.as_bytes().to_vec()));
    words.extend(vec![Vec::new(); 3]);
    Guide::new(Arc::new(Letters { words }))
}

impl Vocabulary for Letters {
    fn len(&self) -> u32 {
        u32::try_from(self.words.len()).unwrap()
    }

    fn text(&self, token: u32) -> &[u8] {
        &self.words[token as usize]
    }

    fn is_end(&self, token: u32) -> bool {
        token > MARKER
    }

    fn tokenize(&self, text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }
}

/// Schemas of all the kinds that are honoured.
fn schemas() -> Vec<Value> {
    let person = json!({"type": "object", "additionalProperties": false,
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
        "required": ["name", "age"]});
    vec![
        person.clone(),
        json!({"type": "object"}),
        json!({"type": "array", "items": person, "minItems": 1, "maxItems": 2}),
        json!({"enum": ["red", "gr\u{fc}n", 7, null, {"a": [1, true]}]}),
        json!({"const": {"kind": "x"}}),
        json!({"type": ["string", "null"], "minLength": 2, "maxLength": 4}),
        json!({"type": "string", "pattern": "^[a-c]{2}-[0-9]+$"}),
        json!({"type": "string", "format": "date"}),
        json!({"type": "integer", "minimum": -3, "exclusiveMaximum": 12}),
        json!({"type": "number", "minimum": 0, "maximum": 1}),
        json!({"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 1000}),
        json!({"anyOf": [{"type": "boolean"}, {"type": "integer", "maximum": 9, "minimum": 0}]}),
        json!({"oneOf": [{"type": "null"}, {"type": "boolean"}]}),
        json!({"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 5}]}),
        json!({"type": "array", "prefixItems": [{"type": "boolean"}, {"const": 1}],
            "items": false, "minItems": 2}),
        json!({"type": "object", "minProperties": 1, "maxProperties": 2,
            "patternProperties": {"^p": {"type": "boolean"}}, "additionalProperties": false}),
        json!({"$defs": {"tree": {"type": "object", "additionalProperties": false,
            "properties": {"left": {"$ref": "#/$defs/tree"}, "leaf": {"type": "boolean"}},
            "required": ["leaf"]}}, "$ref": "#/$defs/tree"}),
        json!(true),
    ]
}

/// The text that random likelihoods give; `None` where it is not complete
/// within so many tokens.
fn said(guide: &Guide, format: &OutputFormat, seed: u64, tokens_max: usize) -> Option<String> {
    let settings = Sampling { top_k: 0, temperature: 1.0, ..Sampling::default() };
    let mut sampler = Sampler::new(settings, seed);
    sampler.constrain(guide.compile(format).unwrap().unwrap());
    let mut noise = seed;
    let mut text = Vec::new();
    for _ in 0..tokens_max {
        let row: Vec<f32> = (0..guide.vocabulary.len())
            .map(|token| {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(token.into());
                // Quotes and brackets that close are likely, so that texts end.
                let closing = matches!(guide.vocabulary.text(token), b"\"" | b"}" | b"]");
                f32::from((noise >> 48) as u16) / 8192.0 + if closing { 4.0 } else { 0.0 }
            })
            .collect();
        let token = sampler.choose(&row).unwrap_or_else(|| panic!("{:?}", sampler.failure()));
        assert_ne!(token, MARKER, "a marker was chosen");
        text.extend_from_slice(guide.vocabulary.text(token));
        if guide.vocabulary.is_end(token) || sampler.is_complete() {
            return Some(String::from_utf8(text).unwrap());
        }
    }
    None
}

#[test]
fn whatever_is_likely_complete_output_satisfies_its_schema() {
    let guide = letters();
    for schema in schemas() {
        let validator = jsonschema::validator_for(&schema).unwrap();
        let format = OutputFormat::JsonSchema(schema.clone());
        let mut complete = 0;
        for seed in 0..40 {
            let Some(text) = said(&guide, &format, seed, 400) else { continue };
            complete += 1;
            let value: Value = match serde_json::from_str(&text) {
                Ok(value) => value,
                // JSON knows no largest number, this parser does.
                Err(error) if error.to_string().contains("out of range") => continue,
                Err(error) => panic!("seed {seed}: {error}: {text:?} for {schema}"),
            };
            assert!(validator.is_valid(&value), "seed {seed}: {text:?} for {schema}");
        }
        assert!(complete >= 10, "only {complete} of 40 texts for {schema} were complete");
    }
}

#[test]
fn copies_of_a_constraint_go_their_own_ways() {
    let guide = letters();
    let format = OutputFormat::JsonSchema(json!({"enum": ["bee", "beetle", "ant"]}));
    let mut first = guide.compile(&format).unwrap().unwrap();
    let mut second = first.try_clone().unwrap();
    let write = |constraint: &mut Box<dyn Constraint>, text: &str| {
        text.bytes().map(u32::from).all(|byte| {
            let allowed = constraint.allows(byte).unwrap();
            if allowed {
                constraint.accept(byte).unwrap();
            }
            allowed
        })
    };
    assert!(write(&mut first, "\"be") && write(&mut second, "\"an"));
    let mut third = first.try_clone().unwrap();
    assert!(write(&mut first, "e") && !write(&mut second, "e"));
    assert!(write(&mut third, "etl") && write(&mut second, "t"));
    let mut row = vec![0.0; guide.vocabulary.len() as usize];
    third.mask(&mut row).unwrap();
    let allowed = (0_u32..).zip(&row).filter(|(_, logit)| logit.is_finite());
    assert_eq!(allowed.map(|(token, _)| token).collect::<Vec<_>>(), [u32::from(b'e')]);
    for (constraint, rest) in [(&mut first, "\""), (&mut second, "\""), (&mut third, "e\"")] {
        assert!(!constraint.is_complete());
        assert!(write(constraint, rest) && constraint.is_complete(), "{rest}");
    }
    let mut later = guide.later_end(Some(1));
    let mut copy = later.try_clone().unwrap();
    later.accept(1).unwrap();
    assert!(later.allows(MARKER + 1).unwrap() && !copy.allows(MARKER + 1).unwrap());
}

#[test]
fn a_json_object_is_an_object() {
    let guide = letters();
    let texts = (0..30).filter_map(|seed| said(&guide, &OutputFormat::JsonObject, seed, 400));
    let objects: Vec<Value> = texts.map(|text| serde_json::from_str(&text).unwrap()).collect();
    assert!(objects.len() >= 10 && objects.iter().all(Value::is_object), "{objects:?}");
}

#[test]
fn properties_come_in_the_order_of_the_schema() {
    let schema = r#"{"type": "object", "additionalProperties": false, "required": ["z", "a", "m"],
        "properties": {"z": {"const": 1}, "a": {"const": 2}, "m": {"const": 3}}}"#;
    let format = OutputFormat::JsonSchema(serde_json::from_str(schema).unwrap());
    let guide = letters();
    let texts: Vec<String> = (0..8).filter_map(|seed| said(&guide, &format, seed, 200)).collect();
    assert!(!texts.is_empty());
    for text in texts {
        let places = ["\"z\"", "\"a\"", "\"m\""].map(|name| text.find(name).unwrap());
        assert!(places.is_sorted(), "{text}");
    }
}

#[test]
fn a_schema_that_cannot_be_compiled_names_its_place() {
    let not = json!({"not": {}});
    let cases = [
        (json!({"type": "strin"}), ""),
        (json!({"properties": {"a": {"properties": {"b": not}}}}), ".properties.a.properties.b"),
        (json!({"anyOf": [{"type": "null"}, not]}), ".anyOf[1]"),
        (json!({"prefixItems": [true, {"items": not}]}), ".prefixItems[1].items"),
        (json!({"$defs": {"x": not}, "properties": {"a": {"$ref": "#/$defs/x"}}}), ".$defs.x"),
        (json!({"properties": {"a": {"$ref": "http://x.org/y"}}}), ".properties.a"),
        (json!({"properties": {"a": {"$ref": "#/$defs/x"}}}), ".properties.a"),
        (json!({"properties": {"a": {"pattern": "(("}}}), ".properties.a"),
        (json!({"properties": {"a": 5}}), ".properties.a"),
        (
            json!({"items": {"minimum": 3, "maximum": 2, "type": "integer"}, "minItems": 1,
            "type": "array"}),
            ".items",
        ),
        (json!({"oneOf": [{"type": "string"}, {"minLength": 1}]}), ""),
        (json!({"$ref": "#"}), ""),
        (json!(false), ""),
    ];
    let guide = letters();
    for (schema, place) in cases {
        let error = guide.compile(&OutputFormat::JsonSchema(schema.clone())).unwrap_err();
        let detail = error.into_detail();
        assert_eq!(detail.code, ErrorCode::ValidationFailed, "{schema}");
        let expected = format!("response_format.json_schema.schema{place}");
        assert_eq!(detail.param, Some(expected.clone()), "{schema}: {}", detail.message);
        let reason = detail.message.strip_prefix(&expected).unwrap();
        assert!(reason.len() > 10 && !reason.contains('\n'), "{schema}: {reason:?}");
    }
}

/// Longest that a hostile schema or one token under it may take here; a loaded
/// machine is slow.
const PATIENCE: Duration = Duration::from_secs(5);

/// Definitions of which each names the next.
fn chain(count: u32, link: impl Fn(u32) -> Value) -> Value {
    let definition = |i| (format!("d{i}"), if i == count { json!(true) } else { link(i + 1) });
    let all: Value = (0..=count).map(definition).collect();
    json!({"$defs": all, "$ref": "#/$defs/d0"})
}

#[test]
fn hostile_schemas_end_soon_and_end_alone() {
    let object = |count: u32, name: &str| {
        let property = |i| (format!("{name}{i}"), json!({"type": "string", "maxLength": 50}));
        json!({"type": "object", "properties": (0..count).map(property).collect::<Value>()})
    };
    let deep = (0..40).fold(json!({"type": "string"}), |inner, _| {
        json!({"type": "object", "properties": {"a": inner, "b": true}, "required": ["a"]})
    });
    let crossed: Vec<Value> = (0..30)
        .map(|i| {
            json!({"anyOf": [object(1, &format!("p{i}")),
        object(1, &format!("q{i}"))]})
        })
        .collect();
    let cases = [
        json!({"type": "string", "pattern": "(a{1,1000}){1,1000}"}),
        json!({"type": "string", "pattern": "^(((a|b)*c){1,300}d){1,300}$"}),
        json!({"type": "string", "pattern": "^(.*a.{30}|.*b.{31}|.*c.{29})$"}),
        json!({"type": "string", "minLength": 100_000}),
        json!({"type": "array", "minItems": 1_000_000}),
        json!({"allOf": crossed}),
        object(1500, "p"),
        deep,
        chain(2200, |i| json!({"$ref": format!("#/$defs/d{i}")})),
        json!({"type": "string", "pattern": "ab?".repeat(20_000)}),
        json!({"type": "string", "pattern": format!("{}a{}", "(b".repeat(200), ")*".repeat(200))}),
        json!({"const": "x".repeat(60_000)}),
        chain(1500, |i| json!({"allOf": [{"$ref": format!("#/$defs/d{i}")}]})),
        chain(
            700,
            |i| json!({"type": "object", "properties": {"x": {"$ref": format!("#/$defs/d{i}")}}}),
        ),
        chain(
            700,
            |i| json!({"type": "array", "minItems": 1, "items": {"$ref": format!("#/$defs/d{i}")}}),
        ),
    ];
    let guide = letters();
    for (case, schema) in cases.into_iter().enumerate() {
        let started = Instant::now();
        let format = OutputFormat::JsonSchema(schema);
        let compiled = guide.compile(&format);
        assert!(started.elapsed() < PATIENCE, "case {case}: {:?}", started.elapsed());
        let Ok(Some(constraint)) = compiled else { continue };
        let mut sampler = Sampler::new(Sampling::default(), 1);
        sampler.constrain(constraint);
        for step in 0..60_u16 {
            let started = Instant::now();
            let row: Vec<f32> = (0..guide.vocabulary.len()).map(|t| (t % 97) as f32).collect();
            let token = sampler.choose(&row);
            assert!(started.elapsed() < PATIENCE, "case {case}, step {step}");
            if token.is_none() {
                assert!(
                    matches!(sampler.failure(), Some(ConstraintError::TooComplex { .. })),
                    "case {case}: {:?}",
                    sampler.failure()
                );
                break;
            }
        }
    }
    assert!(said(&guide, &OutputFormat::JsonSchema(json!({"type": "null"})), 1, 9).is_some());
}

fn pattern(pattern: &str) -> OutputFormat {
    OutputFormat::JsonSchema(json!({"type": "string", "pattern": pattern}))
}

/// Why a form ends the output that random likelihoods give, if it does within so many tokens.
fn failure(format: &OutputFormat, tokens_max: u32) -> Option<ConstraintError> {
    let guide = letters();
    let mut sampler =
        Sampler::new(Sampling { top_k: 0, temperature: 2.0, ..Sampling::default() }, 1);
    sampler.constrain(guide.compile(format).unwrap().unwrap());
    let mut noise = 7_u64;
    for step in 0..tokens_max {
        let row: Vec<f32> = (0..guide.vocabulary.len())
            .map(|token| {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(token.into());
                let ends = token == u32::from(b'"') && step > 0;
                if ends { -50.0 } else { f32::from((noise >> 48) as u16) / 8192.0 }
            })
            .collect();
        if sampler.choose(&row).is_none() {
            return sampler.failure().cloned();
        }
    }
    None
}

#[test]
fn each_limit_of_the_compiler_ends_a_form_that_no_other_one_ends() {
    let classes: String = (0x2190..0x21e0).map(|i| format!("[\\p{{L}}\\u{{{i:x}}}]")).collect();
    let names: Value = (0..130).map(|i| (format!("p{i}"), json!({}))).collect();
    let merged: Vec<Value> = (0..130)
        .map(|i| json!({"allOf": [{"$ref": "#/$defs/b"}, {"properties": {"p0": {"const": i}}}]}))
        .collect();
    let merged = json!({"$defs": {"b": {"properties": names, "additionalProperties": false}},
        "anyOf": merged});
    for (limit, form) in [
        ("the lexer's fuel", pattern(&format!("^{classes}$"))),
        ("symbols", OutputFormat::JsonSchema(merged)),
    ] {
        let error = letters().compile(&form).expect_err(limit);
        assert!(error.to_string().contains("more work"), "{limit}: {error}");
    }
    let words: Vec<String> = (0..3000).map(|i| format!("(w{i}x*){{1,500}}")).collect();
    for (limit, form, tokens_max) in [
        ("a step's fuel", pattern(&format!("^({})$", words.join("|"))), 5),
        ("states", pattern(&format!("^{}$", "\\p{L}\\p{N}?".repeat(4000))), 2000),
    ] {
        let failure = failure(&form, tokens_max);
        assert!(
            matches!(failure, Some(ConstraintError::TooComplex { .. })),
            "{limit}: {failure:?}"
        );
    }
}

#[test]
fn the_end_comes_exactly_when_the_output_is_complete() {
    let guide = letters();
    let format = OutputFormat::JsonSchema(json!({"type": "integer", "minimum": 5}));
    let mut constraint = guide.compile(&format).unwrap().unwrap();
    let end = MARKER + 1;
    let digit = |byte: u8| u32::from(byte);
    assert_eq!(constraint.allows(end), Ok(false));
    assert_eq!(constraint.allows(digit(b'1')), Ok(true));
    constraint.accept(digit(b'1')).unwrap();
    assert_eq!(constraint.allows(end), Ok(false), "1 is below the minimum");
    constraint.accept(digit(b'2')).unwrap();
    assert_eq!((constraint.allows(end), constraint.allows(end + 1)), (Ok(true), Ok(true)));
    let mut row = vec![0.0; guide.vocabulary.len() as usize + 3];
    constraint.mask(&mut row).unwrap();
    for (token, logit) in (0..guide.vocabulary.len()).zip(&row) {
        assert_eq!(constraint.allows(token), Ok(logit.is_finite()), "token {token}");
    }
    assert!(row.iter().skip(guide.vocabulary.len() as usize).all(|logit| !logit.is_finite()));
}

#[test]
fn what_is_forced_is_offered_as_a_draft() {
    let guide = letters();
    let schema = json!({"type": "object", "properties": {"name": {"type": "null"}},
        "required": ["name"], "additionalProperties": false});
    let mut sampler = Sampler::new(Sampling { temperature: 0.0, ..Sampling::default() }, 1);
    sampler.constrain(guide.compile(&OutputFormat::JsonSchema(schema)).unwrap().unwrap());
    let token = sampler.choose(&vec![0.0; guide.vocabulary.len() as usize]).unwrap();
    assert_eq!(guide.vocabulary.text(token).first(), Some(&b'{'));
    let row: Vec<f32> =
        (0..guide.vocabulary.len()).map(|t| f32::from(t == u32::from(b'"'))).collect();
    sampler.choose(&row).unwrap();
    let draft: Vec<u8> =
        sampler.forced_tokens().iter().map(|t| u8::try_from(*t).unwrap()).collect();
    assert!(b"\"name\"".windows(draft.len()).any(|w| w == draft) && draft.len() >= 3, "{draft:?}");
}

#[test]
fn an_end_that_is_put_off_comes_later_or_never() {
    let guide = letters();
    let end = MARKER + 1;
    let row: Vec<f32> = (0..guide.vocabulary.len()).map(|t| f32::from(t >= end)).collect();
    for (tokens_min, expected) in [(Some(2), [false, false, true]), (None, [false; 3])] {
        for temperature in [0.0, 1.0] {
            let settings = Sampling { temperature, top_k: 2, ..Sampling::default() };
            let mut sampler = Sampler::new(settings, 1);
            sampler.constrain(guide.later_end(tokens_min));
            let ended = [(); 3].map(|()| sampler.choose(&row).unwrap() >= end);
            assert_eq!(ended, expected, "{tokens_min:?} at {temperature}");
        }
    }
}
