//! From what a user types to a model reference. Owns what counts as a path; never asks whether a model is known.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use input_validation::{ModelRef, Provider, ValidationError};

use crate::error::KeeperError;

const FORM: &str =
    "write a short name such as smollm2:135m, hf:owner/repo, or the path of a GGUF file";

/// Reads the name of a model that should be known already. A path stands for the file at it.
///
/// # Errors
/// [`KeeperError::Invalid`] and [`KeeperError::Usage`].
pub(crate) fn known_model(typed: &str) -> Result<ModelRef, KeeperError> {
    if typed.is_empty() {
        return Err(KeeperError::usage("the model's name is empty", FORM));
    }
    if looks_like_path(typed) {
        return file_reference(typed, Path::new(typed));
    }
    parse("the model's name", typed)
}

/// Reads where a new model is to come from. The name of a file that exists is enough.
///
/// # Errors
/// As [`known_model`], [`KeeperError::NoFile`] and [`KeeperError::NotAFile`].
pub(crate) fn model_source(typed: &str) -> Result<ModelRef, KeeperError> {
    if typed.is_empty() {
        return Err(KeeperError::usage("the reference is empty", FORM));
    }
    let path = Path::new(typed);
    if path.is_file() {
        return file_reference(typed, path);
    }
    if looks_like_path(typed) || typed.to_ascii_lowercase().ends_with(".gguf") && !has_scheme(typed)
    {
        let path = path.to_owned();
        return Err(if path.exists() {
            KeeperError::NotAFile { path }
        } else {
            KeeperError::NoFile { path }
        });
    }
    let reference: ModelRef = parse("the reference", typed)?;
    if reference.provider() == Provider::Alias {
        return Err(KeeperError::usage(
            format!("{reference} is a short name, which says not where the model is"),
            format!("name a GGUF file: rbee pull ./model.gguf --name {reference}"),
        ));
    }
    Ok(reference)
}

/// Reads a value of one of the checked text types.
///
/// # Errors
/// [`KeeperError::Invalid`], which calls the value `what`.
pub(crate) fn parse<T>(what: &str, typed: &str) -> Result<T, KeeperError>
where
    T: FromStr<Err = ValidationError>,
{
    typed.parse().map_err(|source| KeeperError::Invalid { what: what.to_owned(), source })
}

fn looks_like_path(typed: &str) -> bool {
    ["/", "./", "../"].iter().any(|start| typed.starts_with(start))
}

fn has_scheme(typed: &str) -> bool {
    ["hf:", "https:", "http:", "file:"].iter().any(|scheme| typed.starts_with(scheme))
}

fn file_reference(typed: &str, path: &Path) -> Result<ModelRef, KeeperError> {
    let absolute = absolute(path).unwrap_or_else(|| path.to_owned());
    ModelRef::from_file_path(&absolute)
        .map_err(|source| KeeperError::Invalid { what: format!("the path {typed}"), source })
}

/// Makes a path absolute and resolves `..` in it. A link in the last place is kept, because its name is the one that
/// the user knows.
fn absolute(path: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).ok()?;
    let directory = absolute.parent()?.canonicalize().ok()?;
    Some(directory.join(absolute.file_name()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_becomes_a_reference_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("sub")).unwrap();
        std::fs::write(root.join("my model.gguf"), b"x").unwrap();
        let typed = format!("{}/sub/../my model.gguf", root.display());
        let expected = format!("file:{}/my%20model.gguf", root.display());
        assert_eq!(model_source(&typed).unwrap().as_str(), expected);
        assert_eq!(known_model(&typed).unwrap().as_str(), expected);
    }

    #[test]
    fn names_and_references_are_taken_as_they_are() {
        for (typed, expected) in [
            ("smollm2:135m", "smollm2:135m"),
            ("owner/repo", "hf:owner/repo"),
            ("file:/data/m.gguf", "file:/data/m.gguf"),
        ] {
            assert_eq!(known_model(typed).unwrap().as_str(), expected);
        }
        assert_eq!(model_source("hf:o/r:m.gguf").unwrap().as_str(), "hf:o/r:m.gguf");
    }

    #[test]
    fn what_is_no_reference_is_wrong_usage() {
        for typed in ["", "Bad Name", "a;b", "-x", "hf:", "../"] {
            let error = known_model(typed).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{typed}: {error}");
        }
        assert_eq!(model_source("smollm2:135m").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_file_that_is_not_there_is_no_usage_error() {
        for typed in ["./no-such.gguf", "no-such.gguf", "/no/such/file"] {
            let error = model_source(typed).unwrap_err();
            assert!(matches!(error, KeeperError::NoFile { .. }), "{typed}: {error}");
        }
    }

    #[test]
    fn what_is_there_but_no_file_is_said_to_be_so() {
        for typed in ["/", "./", "/dev/zero"] {
            let error = model_source(typed).unwrap_err();
            assert_eq!(error.to_string(), format!("{typed} is not a regular file"));
            assert_eq!(error.exit_code(), 1);
        }
    }
}
