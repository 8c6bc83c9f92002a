//! The smallest model file that a catalog takes: a whole header and two tensors of zeros.

/// Returns the bytes of a valid file. `seed` makes its content, and so its digest, different.
pub(crate) fn tiny(seed: u8) -> Vec<u8> {
    let texts = [
        ("general.architecture", "llama"),
        ("general.name", "Tiny"),
        ("tokenizer.chat_template", "{{ x }}"),
    ];
    let numbers = [
        ("general.file_type", 3_u32),
        ("llama.context_length", 512),
        ("llama.block_count", 1),
        ("llama.embedding_length", 64),
        ("llama.feed_forward_length", 64),
        ("llama.attention.head_count", 1),
        ("llama.attention.head_count_kv", 1),
    ];
    let mut file = b"GGUF".to_vec();
    file.extend(3_u32.to_le_bytes());
    file.extend(2_u64.to_le_bytes());
    file.extend((texts.len() as u64 + numbers.len() as u64 + 1).to_le_bytes());
    for (key, value) in texts {
        text(&mut file, key);
        file.extend(8_u32.to_le_bytes());
        text(&mut file, value);
    }
    for (key, value) in numbers {
        text(&mut file, key);
        file.extend(4_u32.to_le_bytes());
        file.extend(value.to_le_bytes());
    }
    text(&mut file, "tokenizer.ggml.tokens");
    file.extend(9_u32.to_le_bytes());
    file.extend(8_u32.to_le_bytes());
    file.extend(3_u64.to_le_bytes());
    for token in ["a", "b", "c"] {
        text(&mut file, token);
    }
    // 3 rows of 64 as Q4_1 are 120 bytes, padded to 128; 64 of F32 are 256.
    tensor(&mut file, "token_embd.weight", &[64, 3], 3, 0);
    tensor(&mut file, "norm.weight", &[64], 0, 128);
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend([seed; 128 + 256]);
    file
}

fn text(file: &mut Vec<u8>, text: &str) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
}

fn tensor(file: &mut Vec<u8>, name: &str, dimensions: &[u64], kind: u32, offset: u64) {
    text(file, name);
    file.extend(u32::try_from(dimensions.len()).unwrap().to_le_bytes());
    for dimension in dimensions {
        file.extend(dimension.to_le_bytes());
    }
    file.extend(kind.to_le_bytes());
    file.extend(offset.to_le_bytes());
}
