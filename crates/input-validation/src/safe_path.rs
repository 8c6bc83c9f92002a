//! Paths that stay inside a directory. Owns the proof by canonicalisation; never opens or creates a file.

use std::path::{Path, PathBuf};

use crate::ValidationError;

/// Holds the canonical path of an existing file or directory that lies inside an allowed root.
///
/// The proof holds for the moment it was made: whoever opens the path and does not own the directories in between
/// opens it without following links.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SafePath {
    path: PathBuf,
}

impl SafePath {
    /// Follows `candidate`, taken relative to `root` unless absolute, and keeps it when it ends inside `root`.
    ///
    /// # Errors
    /// [`ValidationError::Unresolvable`] when either path does not exist or cannot be searched, and
    /// [`ValidationError::OutsideRoot`] when the target lies elsewhere.
    pub fn resolve(root: &Path, candidate: &Path) -> Result<Self, ValidationError> {
        let root = canonical("allowed directory", root)?;
        let path = canonical("path", &root.join(candidate))?;
        if path.starts_with(&root) {
            Ok(Self { path })
        } else {
            Err(ValidationError::OutsideRoot { field: "path" })
        }
    }

    /// Returns the canonical path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.path
    }
}

impl AsRef<Path> for SafePath {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

fn canonical(field: &'static str, path: &Path) -> Result<PathBuf, ValidationError> {
    path.canonicalize().map_err(|source| ValidationError::Unresolvable { field, source })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_targets_inside_the_root_are_safe() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::create_dir(dir.path().join("root-sibling")).unwrap();
        fs::write(root.join("sub/inside"), b"x").unwrap();
        fs::write(dir.path().join("outside"), b"x").unwrap();
        fs::write(dir.path().join("root-sibling/file"), b"x").unwrap();
        symlink(dir.path().join("outside"), root.join("link-out")).unwrap();
        symlink(root.join("sub/inside"), root.join("link-in")).unwrap();
        let absolute_inside = root.join("sub/inside");
        for good in [
            Path::new("sub/inside"),
            Path::new("sub/../sub/inside"),
            Path::new("link-in"),
            &absolute_inside,
        ] {
            let safe = SafePath::resolve(&root, good).unwrap();
            assert_eq!(safe.as_path(), absolute_inside.canonicalize().unwrap());
        }
        for bad in
            ["../outside", "../../etc/passwd", "/etc/passwd", "link-out", "../root-sibling/file"]
        {
            let error = SafePath::resolve(&root, Path::new(bad)).unwrap_err();
            assert!(
                matches!(
                    error,
                    ValidationError::OutsideRoot { .. } | ValidationError::Unresolvable { .. }
                ),
                "{bad}"
            );
        }
        let missing = SafePath::resolve(&root, Path::new("missing")).unwrap_err();
        assert!(matches!(missing, ValidationError::Unresolvable { field: "path", .. }));
    }
}
