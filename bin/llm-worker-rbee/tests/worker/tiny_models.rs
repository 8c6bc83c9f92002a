//! Writes embedding and reranking models small enough to be made by a test:
//! the architectures that people use, with weights from a seeded generator, so
//! that every machine has the same file.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

/// Numbers in an embedding of the encoder.
pub(crate) const ENCODER_WIDTH: u32 = 32;
/// Numbers in an embedding of the decoder.
pub(crate) const DECODER_WIDTH: u32 = 64;
/// Context of the encoder: longer than a usual step of the engine.
pub(crate) const ENCODER_CONTEXT: u32 = 700;
/// Context of the decoder: longer than two such steps.
pub(crate) const DECODER_CONTEXT: u32 = 1300;

/// What a model's tokens are pooled to (`pooling_type` in the file).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    Mean = 1,
    Last = 3,
    Rank = 4,
}

/// A model file, removed when dropped.
#[derive(Debug)]
pub(crate) struct TinyModel {
    _directory: TempDir,
    pub(crate) path: PathBuf,
}

impl TinyModel {
    fn write(name: &str, file: &File) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        fs::write(&path, file.bytes()).unwrap();
        Self { _directory: directory, path }
    }

    /// A text encoder as BERT is: WordPiece, attention in both directions, one
    /// piece an input. `Rank` gives it a classifier, as BGE's rerankers have.
    pub(crate) fn encoder(pooling: Pooling) -> Self {
        let mut file = File::new("bert", "Tiny Encoder", u64::from(ENCODER_WIDTH), pooling);
        file.number("context_length", ENCODER_CONTEXT);
        file.float("attention.layer_norm_epsilon", 1e-12);
        file.number("attention.head_count", 4);
        file.entry("bert.attention.causal", Value::Bool(false));
        file.word_pieces();
        let (wide, inner) = (file.width, file.inner);
        file.tensor("token_types.weight", &[wide, 2]);
        file.tensor("position_embd.weight", &[wide, u64::from(ENCODER_CONTEXT)]);
        file.norm_with_bias("token_embd_norm", wide);
        for layer in 0..LAYERS {
            let name = |part: &str| format!("blk.{layer}.{part}");
            for part in ["attn_q", "attn_k", "attn_v", "attn_output"] {
                file.linear(&name(part), wide, wide);
            }
            file.norm_with_bias(&name("attn_output_norm"), wide);
            file.linear(&name("ffn_up"), wide, inner);
            file.linear(&name("ffn_down"), inner, wide);
            file.norm_with_bias(&name("layer_output_norm"), wide);
        }
        if pooling == Pooling::Rank {
            file.linear("cls", wide, wide);
            file.linear("cls.output", wide, 1);
        }
        Self::write("encoder.gguf", &file)
    }

    /// A text decoder as Qwen3 is: bytes as tokens, attention to what came
    /// before. `Rank` gives it the two classes and the template of Qwen3's
    /// reranker.
    pub(crate) fn decoder(pooling: Pooling) -> Self {
        let name = "Qwen3 Embedding Tiny";
        let mut file = File::new("qwen3", name, u64::from(DECODER_WIDTH), pooling);
        file.number("context_length", DECODER_CONTEXT);
        file.float("attention.layer_norm_rms_epsilon", 1e-6);
        file.float("rope.freq_base", 10_000.0);
        for (key, number) in [
            ("attention.head_count", 4),
            ("attention.head_count_kv", 2),
            ("attention.key_length", 16),
            ("attention.value_length", 16),
        ] {
            file.number(key, number);
        }
        file.bytes_as_tokens();
        let (wide, inner) = (file.width, file.inner);
        file.norm("output_norm", wide);
        for layer in 0..LAYERS {
            let name = |part: &str| format!("blk.{layer}.{part}");
            let weights = [
                ("attn_q", wide, wide),
                ("attn_k", wide, 32),
                ("attn_v", wide, 32),
                ("attn_output", wide, wide),
                ("ffn_gate", wide, inner),
                ("ffn_up", wide, inner),
                ("ffn_down", inner, wide),
            ];
            for (part, inputs, outputs) in weights {
                file.tensor(&format!("{}.weight", name(part)), &[inputs, outputs]);
            }
            file.norm(&name("attn_norm"), wide);
            file.norm(&name("ffn_norm"), wide);
            file.norm(&name("attn_q_norm"), 16);
            file.norm(&name("attn_k_norm"), 16);
        }
        if pooling == Pooling::Rank {
            file.tensor("cls.output.weight", &[wide, 2]);
            file.entry("qwen3.classifier.output_labels", texts(["yes", "no"]));
            let template = "<Query>: {query}\n<Document>: {document}<|endoftext|>";
            file.entry("tokenizer.chat_template.rerank", Value::Text(template.to_owned()));
        }
        Self::write("decoder.gguf", &file)
    }
}

const LAYERS: u32 = 2;

/// A metadata value.
#[derive(Debug)]
enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
}

fn texts<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Value {
    Value::Texts(texts.into_iter().map(Into::into).collect())
}

/// A model file being put together.
#[derive(Debug)]
struct File {
    architecture: &'static str,
    width: u64,
    /// Width of the feed-forward network.
    inner: u64,
    entries: Vec<(String, Value)>,
    tensors: Vec<(String, Vec<u64>, Vec<f32>)>,
    /// State of the generator of weights.
    state: u64,
}

impl File {
    fn new(architecture: &'static str, name: &str, width: u64, pooling: Pooling) -> Self {
        let (entries, tensors) = (Vec::new(), Vec::new());
        let inner = 2 * width;
        let mut file = Self { architecture, width, inner, entries, tensors, state: 0x5EED };
        file.entry("general.architecture", Value::Text(architecture.to_owned()));
        file.entry("general.name", Value::Text(name.to_owned()));
        file.number("embedding_length", u32::try_from(width).unwrap());
        file.number("feed_forward_length", u32::try_from(inner).unwrap());
        file.number("block_count", LAYERS);
        file.number("pooling_type", pooling as u32);
        file
    }

    fn entry(&mut self, key: &str, value: Value) {
        self.entries.push((key.to_owned(), value));
    }

    fn number(&mut self, key: &str, number: u32) {
        self.entry(&format!("{}.{key}", self.architecture), Value::U32(number));
    }

    fn float(&mut self, key: &str, number: f32) {
        self.entry(&format!("{}.{key}", self.architecture), Value::F32(number));
    }

    /// Every letter, and a few words, at the beginning of a word (marked as
    /// llama.cpp marks it) and inside one.
    fn word_pieces(&mut self) {
        let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_owned);
        let pieces: Vec<String> = ('a'..='z')
            .map(String::from)
            .chain(["bee", "honey", "hive", "the", "ing"].map(str::to_owned))
            .collect();
        let first = pieces.iter().map(|piece| format!("\u{2581}{piece}"));
        let tokens: Vec<String> =
            special.into_iter().chain(first).chain(pieces.iter().cloned()).collect();
        let kinds = (0..tokens.len()).map(|id| if id < 5 { 3 } else { 1 }).collect();
        self.tensor("token_embd.weight", &[self.width, tokens.len() as u64]);
        self.entry("tokenizer.ggml.model", Value::Text("bert".to_owned()));
        self.entry("tokenizer.ggml.tokens", texts(tokens));
        self.entry("tokenizer.ggml.token_type", Value::I32s(kinds));
        self.entry("tokenizer.ggml.token_type_count", Value::U32(2));
        for (name, id) in [("padding", 0), ("unknown", 1), ("bos", 2), ("cls", 2), ("mask", 4)] {
            self.entry(&format!("tokenizer.ggml.{name}_token_id"), Value::U32(id));
        }
        // llama.cpp's own spelling.
        self.entry("tokenizer.ggml.seperator_token_id", Value::U32(3));
    }

    /// The 256 bytes as GPT-2 writes them, one merged pair, and an end token
    /// that is put after every text.
    fn bytes_as_tokens(&mut self) {
        let is_plain = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let mut shifted = 256_u32..;
        let bytes = (0..256_u32).map(|byte| {
            let code = if is_plain(byte) { byte } else { shifted.next().unwrap() };
            char::from_u32(code).unwrap().to_string()
        });
        let tokens: Vec<String> =
            bytes.chain(["he".to_owned(), "<|endoftext|>".to_owned()]).collect();
        let end = u32::try_from(tokens.len() - 1).unwrap();
        let kinds = (0..=end).map(|id| if id == end { 3 } else { 1 }).collect();
        self.tensor("token_embd.weight", &[self.width, tokens.len() as u64]);
        self.entry("tokenizer.ggml.model", Value::Text("gpt2".to_owned()));
        self.entry("tokenizer.ggml.pre", Value::Text("qwen2".to_owned()));
        self.entry("tokenizer.ggml.tokens", texts(tokens));
        self.entry("tokenizer.ggml.token_type", Value::I32s(kinds));
        self.entry("tokenizer.ggml.merges", texts(["h e"]));
        self.entry("tokenizer.ggml.eos_token_id", Value::U32(end));
        self.entry("tokenizer.ggml.add_eos_token", Value::Bool(true));
        self.entry("tokenizer.ggml.add_bos_token", Value::Bool(false));
    }

    /// Numbers spread evenly around 0, as far as the inputs of the layer allow.
    fn tensor(&mut self, name: &str, extents: &[u64]) {
        let reach = 2.0 / (extents[0] as f32).sqrt();
        let count = extents.iter().product::<u64>();
        let numbers = (0..count).map(|_| reach * self.next_number()).collect();
        self.tensors.push((name.to_owned(), extents.to_vec(), numbers));
    }

    fn linear(&mut self, name: &str, inputs: u64, outputs: u64) {
        self.tensor(&format!("{name}.weight"), &[inputs, outputs]);
        self.tensor(&format!("{name}.bias"), &[outputs]);
    }

    fn norm(&mut self, name: &str, width: u64) {
        let numbers = (0..width).map(|_| 1.0 + 0.2 * self.next_number()).collect();
        self.tensors.push((format!("{name}.weight"), vec![width], numbers));
    }

    fn norm_with_bias(&mut self, name: &str, width: u64) {
        self.norm(name, width);
        self.tensor(&format!("{name}.bias"), &[width]);
    }

    /// The next number from -1 to 1, by SplitMix64.
    fn next_number(&mut self) -> f32 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        // 24 bits, exact in a float.
        let bits = u32::try_from(mixed >> 40).unwrap();
        bits as f32 / 8_388_608.0 - 1.0
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            write_text(&mut out, key);
            value.write(&mut out);
        }
        let mut offset = 0_u64;
        for (name, extents, numbers) in &self.tensors {
            write_text(&mut out, name);
            out.extend(u32::try_from(extents.len()).unwrap().to_le_bytes());
            extents.iter().for_each(|extent| out.extend(extent.to_le_bytes()));
            out.extend(0_u32.to_le_bytes()); // F32
            out.extend(offset.to_le_bytes());
            offset += (numbers.len() as u64 * 4).next_multiple_of(32);
        }
        for (_, _, numbers) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out
    }
}

impl Value {
    fn write(&self, out: &mut Vec<u8>) {
        let mut typed = |type_id: u32, bytes: &[u8]| {
            out.extend(type_id.to_le_bytes());
            out.extend(bytes);
        };
        match self {
            Self::U32(number) => typed(4, &number.to_le_bytes()),
            Self::F32(number) => typed(6, &number.to_le_bytes()),
            Self::Bool(flag) => typed(7, &[u8::from(*flag)]),
            Self::Text(text) => {
                typed(8, &[]);
                write_text(out, text);
            }
            Self::Texts(texts) => {
                typed(9, &8_u32.to_le_bytes());
                out.extend((texts.len() as u64).to_le_bytes());
                texts.iter().for_each(|text| write_text(out, text));
            }
            Self::I32s(numbers) => {
                typed(9, &5_u32.to_le_bytes());
                out.extend((numbers.len() as u64).to_le_bytes());
                numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
            }
        }
    }
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
