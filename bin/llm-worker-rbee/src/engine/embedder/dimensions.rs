//! How many numbers an embedding may have. A model trained for it (Matryoshka
//! representation learning) puts what matters most first, so that its
//! embeddings can be cut; those of others lose their meaning.

use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_http::ApiError;

/// The widths of a model's embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dimensions {
    /// Numbers that the model gives.
    pub(crate) full: u32,
    /// Fewest that its embeddings may be cut to; `None` where they may not.
    pub(crate) least: Option<u32>,
}

/// Models trained so that their embeddings can be cut, by a part of the name in
/// the file, and the fewest numbers their makers publish results for. GGUF has
/// no key for it, so this is what their model cards say.
const CUTTABLE: [(&str, u32); 12] = [
    ("qwen3 embedding", 32),
    ("qwen3 vl embedding", 64),
    ("embeddinggemma", 128),
    ("embedding gemma", 128),
    ("nomic embed text v1 5", 64),
    ("nomic embed text v2", 256),
    ("mxbai embed large", 64),
    ("jina embeddings v3", 32),
    ("jina embeddings v4", 128),
    ("snowflake arctic embed m v1 5", 256),
    ("snowflake arctic embed m v2 0", 256),
    ("snowflake arctic embed l v2 0", 256),
];

impl Dimensions {
    /// Says how far embeddings of `full` numbers may be cut, by the names that
    /// the file has for its model.
    pub(crate) fn of_model<'a>(full: u32, names: impl Iterator<Item = &'a str>) -> Self {
        let least = names.map(plain).find_map(|name| {
            let known = CUTTABLE.iter().find(|(part, _)| name.contains(part));
            known.map(|(_, least)| (*least).min(full))
        });
        Self { full, least }
    }

    /// Chooses the width of a request's embeddings.
    ///
    /// # Errors
    /// The model does not give embeddings of the width wanted.
    pub(crate) fn choose(self, wanted: Option<u32>) -> Result<u32, ApiError> {
        let Self { full, least } = self;
        let refuse = |code, message: String| {
            Err(ErrorDetail::new(code, message).with_param("dimensions").into())
        };
        match (wanted, least) {
            (None, _) => Ok(full),
            (Some(wanted), _) if wanted == full => Ok(full),
            (Some(wanted), Some(least)) if (least..=full).contains(&wanted) => Ok(wanted),
            (Some(_), Some(least)) => {
                let message = format!("this model gives embeddings of {least} to {full} numbers");
                refuse(ErrorCode::ValidationFailed, message)
            }
            (Some(_), None) => {
                let message = format!(
                    "this model gives embeddings of {full} numbers and is not known to be trained \
                     for fewer; leave dimensions out"
                );
                refuse(ErrorCode::UnsupportedParameter, message)
            }
        }
    }
}

/// Lower case, and a space for whatever is no letter or digit.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_alphanumeric() { c.to_ascii_lowercase() } else { ' ' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_models_trained_for_it_are_cut() {
        let of = |name: &str, full| Dimensions::of_model(full, [name].into_iter());
        assert_eq!(of("Qwen3 Embedding 0.6B", 1024).least, Some(32));
        assert_eq!(of("Qwen3-Embedding-8B", 4096).least, Some(32));
        assert_eq!(of("nomic-embed-text-v1.5", 768).least, Some(64));
        assert_eq!(of("nomic-embed-text-v1", 768).least, None);
        assert_eq!(of("bge-small-en-v1.5", 384).least, None);
        assert_eq!(of("embeddinggemma-300M", 64).least, Some(64), "never more than there are");
    }

    #[test]
    fn a_width_is_the_models_own_or_within_what_it_was_trained_for() {
        let cut = Dimensions { full: 768, least: Some(64) };
        for (wanted, expected) in
            [(None, Ok(768)), (Some(768), Ok(768)), (Some(64), Ok(64)), (Some(100), Ok(100))]
        {
            assert_eq!(cut.choose(wanted), expected);
        }
        let whole = Dimensions { full: 384, least: None };
        assert_eq!(whole.choose(Some(384)), Ok(384));
        for (dimensions, wanted, code) in [
            (cut, 63, ErrorCode::ValidationFailed),
            (cut, 769, ErrorCode::ValidationFailed),
            (whole, 383, ErrorCode::UnsupportedParameter),
        ] {
            let refused = dimensions.choose(Some(wanted)).unwrap_err();
            assert_eq!(refused.code(), code);
            assert_eq!(refused.detail().param.as_deref(), Some("dimensions"));
        }
    }
}
