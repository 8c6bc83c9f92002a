//! Model files for tests: a small valid one, and the means to spoil it. Owns the writing side of the format.

/// A metadata value to write.
#[derive(Clone, Debug)]
pub(crate) enum Kv {
    U8(u8),
    I32(i32),
    U32(u32),
    U64(u64),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    U32s(Vec<u32>),
    /// A type id and the bytes that follow it, as they are.
    Raw(u32, Vec<u8>),
}

/// A tensor to describe; its data is zeros.
#[derive(Clone, Debug)]
pub(crate) struct TensorSpec {
    pub(crate) name: String,
    pub(crate) dimensions: Vec<u64>,
    pub(crate) type_id: u32,
    pub(crate) offset: u64,
}

/// A model file to write. The default is a valid one.
#[derive(Clone, Debug)]
pub(crate) struct TestFile {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) tensor_count: Option<u64>,
    pub(crate) entry_count: Option<u64>,
    pub(crate) entries: Vec<(String, Kv)>,
    pub(crate) tensors: Vec<TensorSpec>,
    pub(crate) data_bytes: usize,
}

impl Default for TestFile {
    fn default() -> Self {
        let entry = |key: &str, value| (key.to_owned(), value);
        let tensor = |name: &str, dimensions: &[u64], type_id, offset| TensorSpec {
            name: name.to_owned(),
            dimensions: dimensions.to_vec(),
            type_id,
            offset,
        };
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            entry_count: None,
            entries: vec![
                entry("general.architecture", Kv::Text("llama".to_owned())),
                entry("general.name", Kv::Text("Tiny".to_owned())),
                entry("general.file_type", Kv::U32(3)),
                entry("llama.context_length", Kv::U32(2048)),
                entry("llama.block_count", Kv::U32(2)),
                entry("llama.embedding_length", Kv::U32(64)),
                entry("llama.feed_forward_length", Kv::U32(256)),
                entry("llama.attention.head_count", Kv::U32(4)),
                entry("llama.attention.head_count_kv", Kv::U32(2)),
                entry("llama.rope.freq_base", Kv::F32(10_000.0)),
                entry("llama.some.flag", Kv::Bool(true)),
                entry(
                    "tokenizer.ggml.tokens",
                    Kv::Texts(vec!["a".to_owned(), "bc".to_owned(), String::new()]),
                ),
                entry("tokenizer.chat_template", Kv::Text("{{ messages }}".repeat(50))),
            ],
            // 3 rows of 64 as Q4_1 are 120 bytes, padded to 128; 64 of F32 are 256.
            tensors: vec![
                tensor("token_embd.weight", &[64, 3], 3, 0),
                tensor("norm.weight", &[64], 0, 128),
            ],
            data_bytes: 128 + 256,
        }
    }
}

impl TestFile {
    /// Sets an entry, replacing one of the same key.
    pub(crate) fn with(mut self, key: &str, value: Kv) -> Self {
        self.entries.retain(|(other, _)| other != key);
        self.entries.push((key.to_owned(), value));
        self
    }

    /// Leaves an entry out.
    pub(crate) fn without(mut self, key: &str) -> Self {
        self.entries.retain(|(other, _)| other != key);
        self
    }

    /// Has one tensor alone, at offset 0.
    pub(crate) fn with_tensor(mut self, dimensions: &[u64], type_id: u32) -> Self {
        self.tensors.truncate(1);
        self.tensors[0].dimensions = dimensions.to_vec();
        self.tensors[0].type_id = type_id;
        self
    }

    /// Writes the file, with data aligned to 32.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.entry_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            text(&mut out, key);
            value.write(&mut out);
        }
        for tensor in &self.tensors {
            text(&mut out, &tensor.name);
            out.extend(u32::try_from(tensor.dimensions.len()).unwrap().to_le_bytes());
            tensor.dimensions.iter().for_each(|extent| out.extend(extent.to_le_bytes()));
            out.extend(tensor.type_id.to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32) + self.data_bytes, 0);
        out
    }
}

impl Kv {
    fn write(&self, out: &mut Vec<u8>) {
        let mut typed = |type_id: u32, bytes: &[u8]| {
            out.extend(type_id.to_le_bytes());
            out.extend(bytes);
        };
        match self {
            Self::U8(number) => typed(0, &number.to_le_bytes()),
            Self::U32(number) => typed(4, &number.to_le_bytes()),
            Self::I32(number) => typed(5, &number.to_le_bytes()),
            Self::F32(number) => typed(6, &number.to_le_bytes()),
            Self::Bool(flag) => typed(7, &[u8::from(*flag)]),
            Self::U64(number) => typed(10, &number.to_le_bytes()),
            Self::Raw(type_id, bytes) => typed(*type_id, bytes),
            Self::Text(content) => {
                typed(8, &[]);
                text(out, content);
            }
            Self::Texts(contents) => {
                typed(9, &8_u32.to_le_bytes());
                out.extend((contents.len() as u64).to_le_bytes());
                contents.iter().for_each(|content| text(out, content));
            }
            Self::U32s(numbers) => {
                typed(9, &4_u32.to_le_bytes());
                out.extend((numbers.len() as u64).to_le_bytes());
                numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
            }
        }
    }
}

fn text(out: &mut Vec<u8>, content: &str) {
    out.extend((content.len() as u64).to_le_bytes());
    out.extend(content.as_bytes());
}
