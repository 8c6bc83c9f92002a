//! Foreign text made harmless for a log line or a terminal. Owns which characters are escaped; never shortens text.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Escapes everything that could break out of one log line or disguise it: control characters, line and paragraph
/// separators, and invisible characters that change the reading order.
#[must_use]
pub fn sanitize_for_log(text: &str) -> Cow<'_, str> {
    escape(text, disguises, |safe, c| write!(safe, "{}", c.escape_default()))
}

/// Escapes the same in a line of JSON, as JSON does it: a reader of the line gets the text as it was.
#[must_use]
pub fn sanitize_json_line(line: &str) -> Cow<'_, str> {
    escape(line, disguises, |safe, c| write!(safe, "\\u{:04x}", u32::from(c)))
}

/// Escapes what could steer a terminal or disguise text on it, and keeps newlines, tabs, and the marks that
/// right-to-left scripts need.
///
/// Works on any piece of a stream by itself: no state is carried from one call to the next.
#[must_use]
pub fn sanitize_for_terminal(text: &str) -> Cow<'_, str> {
    let is_dangerous = |c| (is_control(c) && c != '\n' && c != '\t') || is_reordering(c);
    escape(text, is_dangerous, |safe, c| write!(safe, "{}", c.escape_default()))
}

/// What can break out of a line or disguise it. All of it lies in the first plane of Unicode.
fn disguises(c: char) -> bool {
    is_control(c) || is_reordering(c) || is_direction_mark(c)
}

/// C0, DEL and C1 controls, and the two Unicode line breaks.
fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// Embeddings, overrides and isolates: they can make text read otherwise than it is.
const fn is_reordering(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

const fn is_direction_mark(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}')
}

fn escape(
    text: &str,
    is_dangerous: impl Fn(char) -> bool,
    write_escaped: impl Fn(&mut String, char) -> std::fmt::Result,
) -> Cow<'_, str> {
    if !text.contains(&is_dangerous) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_dangerous(c) {
            // Writing to a String cannot fail.
            write_escaped(&mut safe, c).ok();
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_forged_log_line_stays_one_line() {
        let forged = "model\r\n[ERROR] fake\u{1b}[31m\u{202e}\u{2028}";
        assert_eq!(
            sanitize_for_log(forged),
            "model\\r\\n[ERROR] fake\\u{1b}[31m\\u{202e}\\u{2028}"
        );
    }

    #[test]
    fn a_line_of_json_stays_json_with_the_same_text() {
        let line = "{\"a\":\"x\u{202e}y\u{7f}\u{9b}31m\u{2028}\"}";
        assert_eq!(sanitize_json_line(line), "{\"a\":\"x\\u202ey\\u007f\\u009b31m\\u2028\"}");
    }

    #[test]
    fn ordinary_text_is_passed_without_a_copy() {
        for text in ["", "plain", "汉字 é 😀 👩\u{200d}🚀", "back\\slash"] {
            assert!(matches!(sanitize_for_log(text), Cow::Borrowed(same) if same == text));
            assert!(matches!(sanitize_for_terminal(text), Cow::Borrowed(same) if same == text));
        }
    }

    #[test]
    fn a_terminal_keeps_newlines_and_tabs_and_loses_escapes() {
        assert_eq!(sanitize_for_terminal("a\n\tb\u{200f}"), "a\n\tb\u{200f}");
        assert_eq!(
            sanitize_for_terminal("\u{1b}]0;x\u{7}\r\u{9b}m"),
            "\\u{1b}]0;x\\u{7}\\r\\u{9b}m"
        );
    }

    proptest! {
        #[test]
        fn no_dangerous_character_is_left(text in any::<String>()) {
            let safe = sanitize_for_log(&text);
            prop_assert!(!safe.chars().any(|c| is_control(c) || is_reordering(c)));
            let safe = sanitize_for_terminal(&text);
            prop_assert!(!safe.chars().any(|c| c.is_control() && c != '\n' && c != '\t'));
        }

        #[test]
        fn a_stream_in_pieces_is_escaped_as_the_whole(text in any::<String>(), cut in any::<prop::sample::Index>()) {
            let cuts: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let (left, right) = text.split_at(*cut.get(&cuts));
            let pieces = format!("{}{}", sanitize_for_terminal(left), sanitize_for_terminal(right));
            prop_assert_eq!(pieces, sanitize_for_terminal(&text).into_owned());
        }
    }
}
