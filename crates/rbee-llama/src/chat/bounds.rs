//! What a chat template may look like before it is parsed. A template comes out of a model file, and llama.cpp's parser
//! and interpreter call themselves once for each level of nesting, so a template nested deep enough ends the process.
//! Looks at the text alone and gives it no meaning.

/// Longest template, in bytes: ten times the longest in use.
const SOURCE_BYTES_MAX: usize = 256 * 1024;
/// Deepest nesting of brackets in one tag.
const BRACKETS_MAX: usize = 64;
/// Deepest nesting of blocks.
const BLOCKS_MAX: usize = 64;
/// Most words, numbers, texts and signs in one tag: each can be a level, and takes about a kilobyte of a stack of two
/// megabytes.
const TOKENS_MAX: usize = 1024;

/// Words that open a block. `set` does so only sometimes, and is not counted.
const OPENERS: [&str; 5] = ["for", "if", "macro", "call", "filter"];

/// Says why a template is not parsed.
///
/// # Errors
/// The reason, in words.
pub(super) fn check(source: &str) -> Result<(), String> {
    if source.len() > SOURCE_BYTES_MAX {
        return Err(format!("it has {} bytes, at most {SOURCE_BYTES_MAX} are read", source.len()));
    }
    let mut rest = source;
    let mut blocks = 0_usize;
    while let Some(start) = rest.find('{') {
        let tag = rest.get(start + 1..).unwrap_or_default();
        rest = match tag.as_bytes().first() {
            Some(b'#') => tag.split_once("#}").map_or("", |(_, after)| after),
            Some(b'%' | b'{') => {
                let inside = tag.get(1..).unwrap_or_default();
                let words = first_word(inside);
                let (length, shape) = walk(inside);
                shape.check()?;
                if tag.starts_with('%') {
                    blocks = match words {
                        word if OPENERS.contains(&word) => blocks + 1,
                        word if word.starts_with("end") => blocks.saturating_sub(1),
                        _ => blocks,
                    };
                    if blocks > BLOCKS_MAX {
                        return Err(format!("its blocks are nested more than {BLOCKS_MAX} deep"));
                    }
                }
                inside.get(length..).unwrap_or_default()
            }
            _ => tag,
        };
    }
    Ok(())
}

/// How large one tag is.
#[derive(Default)]
struct Shape {
    brackets_max: usize,
    tokens: usize,
}

impl Shape {
    fn check(&self) -> Result<(), String> {
        if self.brackets_max > BRACKETS_MAX {
            return Err(format!("its brackets are nested more than {BRACKETS_MAX} deep"));
        }
        if self.tokens > TOKENS_MAX {
            return Err(format!("a tag of it has more than {TOKENS_MAX} words and signs"));
        }
        Ok(())
    }
}

fn first_word(inside: &str) -> &str {
    let text = inside.trim_start_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default()
}

/// Walks to the end of a tag, over texts in quotes; returns where it ends and how large it is.
fn walk(inside: &str) -> (usize, Shape) {
    let mut shape = Shape::default();
    let mut brackets = 0_usize;
    let mut in_word = false;
    let mut bytes = inside.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        let closes = matches!(inside.get(at..at + 2), Some("}}" | "%}"));
        match byte {
            b'}' | b'%' if closes && brackets == 0 => return (at + 2, shape),
            b'\'' | b'"' => {
                shape.tokens += 1;
                while let Some((_, next)) = bytes.next() {
                    match next {
                        b'\\' => drop(bytes.next()),
                        _ if next == byte => break,
                        _ => {}
                    }
                }
            }
            b'(' | b'[' | b'{' => {
                brackets += 1;
                shape.tokens += 1;
                shape.brackets_max = shape.brackets_max.max(brackets);
            }
            b')' | b']' | b'}' => brackets = brackets.saturating_sub(1),
            _ => {}
        }
        let is_word = byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii();
        let is_sign = byte.is_ascii_punctuation() && !is_word && !b"'\"()[]{}".contains(&byte);
        shape.tokens += usize::from((is_word && !in_word) || is_sign);
        in_word = is_word;
    }
    (inside.len(), shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_in_use_is_far_within_the_bounds() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/templates");
        let mut seen = 0;
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let source = std::fs::read_to_string(entry.path()).unwrap();
            assert_eq!(check(&source), Ok(()), "{}", entry.path().display());
            assert!(source.len() < SOURCE_BYTES_MAX / 4);
            seen += 1;
        }
        assert!(seen >= 3, "{seen} templates");
    }

    #[test]
    fn ordinary_text_is_not_looked_at() {
        for source in [
            "",
            "{",
            "{{",
            "{%",
            "{# {{ ((((( #}",
            "{{ '}}' ~ \"%}\\\"\" }}",
            &"{ [ ( ".repeat(1000),
            &"{% if x %}a{% endif %}".repeat(1000),
            &"{{ {'a': {'b': 1}} }}".repeat(100),
        ] {
            assert_eq!(check(source), Ok(()), "{source:.60}");
        }
    }

    #[test]
    fn what_would_nest_without_end_is_refused() {
        let nested = |open: &str, close: &str, depth: usize| {
            format!("{{{{ {}x{} }}}}", open.repeat(depth), close.repeat(depth))
        };
        for source in [
            "x".repeat(SOURCE_BYTES_MAX + 1),
            nested("(", ")", BRACKETS_MAX + 1),
            nested("[", "]", 50_000),
            nested("{'a': ", "}", BRACKETS_MAX + 1),
            nested("not ", "", TOKENS_MAX),
            nested("-", "", TOKENS_MAX),
            nested("", " + x", TOKENS_MAX),
            nested("", ".x", TOKENS_MAX),
            nested("", "|trim", TOKENS_MAX),
            nested("x if y else ", "", TOKENS_MAX / 3),
            "{% if x %}".repeat(BLOCKS_MAX + 1),
            "{%- for x in y -%}".repeat(BLOCKS_MAX + 1),
            // What is closed closes no more than itself.
            nested("(()", ")", BRACKETS_MAX + 1),
            "{% if x %}{% if y %}{% endif %}".repeat(BLOCKS_MAX + 1),
        ] {
            assert!(check(&source).is_err(), "{source:.60}");
        }
        assert_eq!(check(&nested("(", ")", BRACKETS_MAX)), Ok(()));
    }
}
