//! Where a program finds a secret: a file of its own, a file that somebody keeps for it, or a credential that systemd
//! hands over. Owns the rule for names of credentials.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::file::load_handed_over;
use crate::{Secret, SecretError, load_file, load_former, load_or_generate};

/// Longest name of a credential, as for any file name.
const NAME_BYTES_MAX: usize = 255;

/// Where a secret comes from, now and when it is read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// A file that the program makes itself where there is none.
    OwnFile(PathBuf),
    /// A file that somebody else keeps; it has to be there.
    File(PathBuf),
    /// A file in systemd's directory of credentials; made by [`SecretSource::credential`].
    Credential(PathBuf),
}

impl SecretSource {
    /// Names a credential in `directory`, which systemd tells in `CREDENTIALS_DIRECTORY`.
    ///
    /// # Errors
    /// [`SecretError::CredentialName`] for a name that is no plain file name, and [`SecretError::NoCredentials`]
    /// without a directory.
    pub fn credential(directory: Option<&Path>, name: &str) -> Result<Self, SecretError> {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let is_name = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_plain);
        if !is_name || name.starts_with('.') {
            return Err(SecretError::CredentialName { name: name.to_owned() });
        }
        match directory {
            Some(directory) => Ok(Self::Credential(directory.join(name))),
            None => Err(SecretError::NoCredentials { name: name.to_owned() }),
        }
    }

    /// Loads the secret. Blocks.
    ///
    /// # Errors
    /// [`SecretError`], naming the file and what to do.
    pub fn load(&self) -> Result<Secret, SecretError> {
        match self {
            Self::OwnFile(path) => load_or_generate(path),
            Self::File(path) => load_file(path),
            Self::Credential(path) => load_handed_over(path),
        }
    }

    /// Loads the secret that was there before, with the time for which it is still good out of `overlap`. systemd keeps
    /// no former credentials. Blocks.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn load_former(
        &self,
        overlap: Duration,
    ) -> Result<Option<(Secret, Duration)>, SecretError> {
        match self {
            Self::OwnFile(path) | Self::File(path) => load_former(path, overlap),
            Self::Credential(_) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use tempfile::tempdir;

    use super::*;

    #[test]
    fn a_credential_is_a_plain_name_in_the_directory_that_systemd_tells() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("api-token");
        fs::write(&path, "from-systemd\n").unwrap();
        for (mode, is_good) in [
            (0o400, true),
            (0o440, true),
            (0o600, true),
            (0o444, false),
            (0o660, false),
            (0o500, false),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let loaded = SecretSource::credential(Some(dir.path()), "api-token").unwrap().load();
            assert_eq!(
                loaded.is_ok_and(|secret| secret.expose() == "from-systemd"),
                is_good,
                "{mode:o}"
            );
        }
        let missing = SecretSource::credential(Some(dir.path()), "other").unwrap().load();
        assert!(matches!(missing, Err(SecretError::NotFound { .. })));
        let nowhere = SecretSource::credential(None, "api-token").unwrap_err();
        assert!(nowhere.to_string().contains("CREDENTIALS_DIRECTORY"), "{nowhere}");
    }

    #[test]
    fn no_name_leads_out_of_the_directory() {
        let outside = tempdir().unwrap();
        fs::write(outside.path().join("token"), "outside").unwrap();
        let dir = outside.path().join("credentials");
        fs::create_dir(&dir).unwrap();
        for name in [
            "",
            ".",
            "..",
            "../token",
            "/etc/passwd",
            "a/../../token",
            ".hidden",
            "a\0b",
            "a b",
            "é",
            &"x".repeat(256),
        ] {
            let refused = SecretSource::credential(Some(&dir), name).unwrap_err();
            assert!(matches!(refused, SecretError::CredentialName { .. }), "{name:?}");
        }
        symlink("../token", dir.join("link")).unwrap();
        let linked = SecretSource::credential(Some(&dir), "link").unwrap().load();
        assert!(matches!(linked, Err(SecretError::SymbolicLink { .. })));
    }

    #[test]
    fn only_a_file_of_its_own_is_made() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("token");
        let given = SecretSource::File(path.clone()).load();
        assert!(matches!(given, Err(SecretError::NotFound { .. })));
        let own = SecretSource::OwnFile(path.clone()).load().unwrap();
        assert!(own == SecretSource::File(path).load().unwrap());
    }
}
