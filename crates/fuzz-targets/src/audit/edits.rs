//! Changes to a file of lines as a fuzzer invents them: bytes and whole lines that are overwritten, put in, taken out,
//! repeated or put elsewhere. Any bytes are a list of changes, and none are no change.

/// Longest file that is changed on: a line that is repeated onto itself doubles.
const FILE_BYTES_MAX: usize = 16 * 1024;

/// Carries out the changes that `script` lists.
pub(super) fn edited(content: &[u8], script: &[u8]) -> Vec<u8> {
    let mut file = content.to_vec();
    let mut script = Script { rest: script };
    while file.len() <= FILE_BYTES_MAX
        && let Some(kind) = script.byte()
    {
        change(&mut file, kind, &mut script);
    }
    file
}

fn change(file: &mut Vec<u8>, kind: u8, script: &mut Script<'_>) {
    match kind % 8 {
        0 => {
            let at = script.place(file.len());
            let bytes = script.bytes();
            let end = (at + bytes.len()).min(file.len());
            file.splice(at..end, bytes.iter().copied());
        }
        1 => {
            let at = script.place(file.len());
            file.splice(at..at, script.bytes().iter().copied());
        }
        2 => {
            let at = script.place(file.len());
            let length = usize::from(script.byte().unwrap_or(1));
            file.drain(at..(at + length).min(file.len()));
        }
        3 => file.truncate(script.place(file.len())),
        4 => file.extend_from_slice(script.bytes()),
        kind => change_lines(file, kind, script),
    }
}

fn change_lines(file: &mut Vec<u8>, kind: u8, script: &mut Script<'_>) {
    let mut lines: Vec<&[u8]> = file.split_inclusive(|byte| *byte == b'\n').collect();
    if lines.is_empty() {
        return;
    }
    let mut line = || usize::from(script.byte().unwrap_or(0)) % lines.len();
    let (from, to) = (line(), line());
    match kind {
        5 => drop(lines.remove(from)),
        6 => lines.swap(from, to),
        _ => {
            let repeated = lines.get(from).copied().unwrap_or_default();
            lines.insert(to, repeated);
        }
    }
    *file = lines.concat();
}

/// What is left to read of the list.
struct Script<'a> {
    rest: &'a [u8],
}

impl<'a> Script<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    /// A place in a file of so many bytes, its end included.
    fn place(&mut self, length: usize) -> usize {
        let [high, low] = [self.byte(), self.byte()].map(|byte| usize::from(byte.unwrap_or(0)));
        (high << 8 | low) % (length + 1)
    }

    /// Bytes after a number that counts them.
    fn bytes(&mut self) -> &'a [u8] {
        let count = usize::from(self.byte().unwrap_or(0)).min(self.rest.len());
        let (bytes, rest) = self.rest.split_at(count);
        self.rest = rest;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &[u8] = b"one\ntwo\nthree\n";

    #[test]
    fn a_list_says_what_becomes_of_a_file() {
        for (script, expected) in [
            (&b""[..], "one\ntwo\nthree\n"),
            (b"\x00\x00\x04\x03TWO", "one\nTWO\nthree\n"),
            (b"\x00\x00\x0d\x03abc", "one\ntwo\nthreeabc"),
            (b"\x01\x00\x00\x01x", "xone\ntwo\nthree\n"),
            (b"\x02\x00\x00\x04", "two\nthree\n"),
            (b"\x02\x00\x0d\xff", "one\ntwo\nthree"),
            (b"\x03\x00\x05", "one\nt"),
            (b"\x04\x02ab", "one\ntwo\nthree\nab"),
            (b"\x05\x01\x00", "one\nthree\n"),
            (b"\x06\x00\x02", "three\ntwo\none\n"),
            (b"\x07\x00\x02", "one\ntwo\none\nthree\n"),
            (b"\x03\x00\x00\x05\x00\x00\x04\x01x", "x"),
            (b"\x00", "one\ntwo\nthree\n"),
            (b"\x01\x00\x0e\xff", "one\ntwo\nthree\n"),
        ] {
            let result = edited(FILE, script);
            assert_eq!(String::from_utf8_lossy(&result), expected, "{}", script.escape_ascii());
        }
    }
}
