//! Where the numbers of a model file's header stand. Reads good files only.

/// Walks through a good file of format version 3 and returns the place and width of each number in its header: counts,
/// lengths, types, values, dimensions, offsets.
pub(crate) fn fields(file: &[u8]) -> Vec<(usize, usize)> {
    let mut walk = Walk { file, at: 4, fields: Vec::new() };
    walk.number(4);
    let tensors = walk.number(8);
    let entries = walk.number(8);
    for _ in 0..entries {
        walk.text();
        let kind = walk.number(4);
        walk.value(kind);
    }
    for _ in 0..tensors {
        walk.text();
        for _ in 0..walk.number(4) {
            walk.number(8);
        }
        walk.number(4);
        walk.number(8);
    }
    walk.fields
}

struct Walk<'a> {
    file: &'a [u8],
    at: usize,
    fields: Vec<(usize, usize)>,
}

impl Walk<'_> {
    fn number(&mut self, width: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(&self.file[self.at..self.at + width]);
        self.fields.push((self.at, width));
        self.at += width;
        u64::from_le_bytes(bytes)
    }

    fn text(&mut self) {
        self.at += usize::try_from(self.number(8)).expect("a length in memory");
    }

    fn value(&mut self, kind: u64) {
        match kind {
            8 => self.text(),
            9 => {
                let element = self.number(4);
                for _ in 0..self.number(8) {
                    self.value(element);
                }
            }
            0 | 1 | 7 => _ = self.number(1),
            2 | 3 => _ = self.number(2),
            4..=6 => _ = self.number(4),
            _ => _ = self.number(8),
        }
    }
}
