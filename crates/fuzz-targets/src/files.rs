//! Files: model headers and configuration.

use std::io::Cursor;
use std::path::Path;

use e2e::{TinyKind, tiny_gguf};
use model_catalog::GgufHeader;
use rbee_home::parse_toml;

use crate::Target;

/// The reader of model files.
pub const GGUF_HEADER: Target = Target {
    name: "gguf_header",
    run: |data| {
        let header = GgufHeader::read(Cursor::new(data), data.len() as u64);
        if let Ok(header) = header {
            assert!(header.weights_bytes <= data.len() as u64, "tensors beyond the file");
            assert!(header.block_count > 0 && header.split_count > 0);
        }
    },
    seeds: || {
        let kinds = [TinyKind::Generate, TinyKind::Embed, TinyKind::Rerank];
        let mut seeds: Vec<Vec<u8>> =
            kinds.iter().zip(0..).map(|(kind, salt)| tiny_gguf(salt, *kind)).collect();
        // The shortest files that other readers failed on.
        seeds.push(b"GGUF".to_vec());
        seeds.push([&b"GGUF\x03\0\0\0"[..], &[0xff; 16]].concat());
        seeds
    },
    words: &[
        "GGUF",
        "general.architecture",
        "general.alignment",
        "general.file_type",
        "general.name",
        "llama.attention.head_count_kv",
        "llama.vocab_size",
        "llama.pooling_type",
        "llama.attention.causal",
        "split.count",
        "tokenizer.ggml.tokens",
        "tokenizer.chat_template",
    ],
};

/// Configuration files of queen and hive.
pub const CONFIG_FILE: Target = Target {
    name: "config_file",
    run: |data| {
        let Ok(text) = std::str::from_utf8(data) else { return };
        let path = Path::new("fuzzed.toml");
        let errors = [
            parse_toml::<queen_rbee::Settings>(text, path).err(),
            parse_toml::<rbee_hive::Config>(text, path).err(),
        ];
        for error in errors.into_iter().flatten() {
            assert!(!error.to_string().contains('\n'), "an error of several lines: {error}");
            assert!(!error.hint().is_empty());
        }
    },
    seeds: || {
        let texts = [
            "bind = \"127.0.0.1:8080\"\nlocal_hive = true\n[queue]\nrequests_max = 512\n[log]\nformat = \"json\"\n",
            "bind = '127.0.0.1:9200'\nworkers_max = 3\n[worker]\nengine = 'echo'\ndevice = \"auto\"\n",
            "threads = 0x10\nx = [1, {a = 1979-05-27T07:32:00Z}]\n\"\\u00e9\" = '''a\n'''\n",
        ];
        texts.map(|text| text.as_bytes().to_vec()).into()
    },
    words: &[
        "[log]", "[worker]", "[[a]]", "\"\"\"", "'''", " = ", "\\u", "nan", "-inf", "{", "}", "[",
        "]",
    ],
};
