//! The smallest file that is a valid model: what the echo engine is given.

/// What a model file says that its tokens are pooled to, and so what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TinyKind {
    /// To nothing: it writes text.
    Generate = 0,
    /// To their mean: it embeds.
    Embed = 1,
    /// To a score: it ranks.
    Rerank = 4,
}

/// Builds a GGUF file with one tensor; `salt` makes files differ.
#[must_use]
pub fn tiny_gguf(salt: u8, kind: TinyKind) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend_from_slice(b"GGUF");
    file.extend_from_slice(&3_u32.to_le_bytes());
    file.extend_from_slice(&1_u64.to_le_bytes()); // tensors
    let numbers = [
        ("llama.context_length", 2048_u32),
        ("llama.block_count", 1),
        ("llama.embedding_length", 32),
        ("llama.attention.head_count", 1),
        ("general.alignment", 32),
        ("llama.pooling_type", kind as u32),
    ];
    file.extend_from_slice(&(numbers.len() as u64 + 1).to_le_bytes());
    text(&mut file, "general.architecture");
    file.extend_from_slice(&8_u32.to_le_bytes());
    text(&mut file, "llama");
    for (key, value) in numbers {
        text(&mut file, key);
        file.extend_from_slice(&4_u32.to_le_bytes());
        file.extend_from_slice(&value.to_le_bytes());
    }
    text(&mut file, "token_embd.weight");
    file.extend_from_slice(&1_u32.to_le_bytes()); // dimensions
    file.extend_from_slice(&32_u64.to_le_bytes());
    file.extend_from_slice(&0_u32.to_le_bytes()); // F32
    file.extend_from_slice(&0_u64.to_le_bytes()); // offset
    file.resize(file.len().next_multiple_of(32), 0);
    file.resize(file.len() + 32 * 4, salt);
    file
}

fn text(file: &mut Vec<u8>, text: &str) {
    file.extend_from_slice(&(text.len() as u64).to_le_bytes());
    file.extend_from_slice(text.as_bytes());
}
