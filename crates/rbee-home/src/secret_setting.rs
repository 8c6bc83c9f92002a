//! The two settings that say where a secret is kept: a file, or a credential of systemd. Owns what they mean together;
//! reads no secret.

use std::path::{Path, PathBuf};

use secrets_management::SecretSource;

use crate::ConfigError;

/// Where a configuration says that a secret is.
#[derive(Debug, Clone, Copy)]
pub struct SecretSetting<'a> {
    /// The key of the file, and what it says.
    pub file: (&'static str, Option<&'a Path>),
    /// The key of the credential's name, and what it says.
    pub credential: (&'static str, Option<&'a str>),
    /// Where systemd put the credentials.
    pub credentials_directory: Option<&'a Path>,
}

impl SecretSetting<'_> {
    /// Returns where the secret is; `own` is the file that the program makes itself where nothing is configured.
    ///
    /// # Errors
    /// [`ConfigError::Value`] with the key that cannot be used.
    pub fn source(self, own: PathBuf) -> Result<SecretSource, ConfigError> {
        let wrong = |key, reason: String| Err(ConfigError::Value { key, reason });
        let ((file_key, file), (credential_key, credential)) = (self.file, self.credential);
        match (file, credential) {
            (Some(_), Some(_)) => {
                wrong(credential_key, format!("stands beside {file_key}; only one can hold"))
            }
            (Some(file), None) if file.is_absolute() => Ok(SecretSource::File(file.to_owned())),
            (Some(_), None) => wrong(file_key, "must be an absolute path".to_owned()),
            (None, Some(name)) => SecretSource::credential(self.credentials_directory, name)
                .or_else(|error| wrong(credential_key, format!("cannot be used: {error}"))),
            (None, None) => Ok(SecretSource::OwnFile(own)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(file: Option<&str>, credential: Option<&str>) -> Result<SecretSource, String> {
        let setting = SecretSetting {
            file: ("auth.file", file.map(Path::new)),
            credential: ("auth.credential", credential),
            credentials_directory: Some(Path::new("/run/credentials")),
        };
        setting.source("/home/token".into()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_secret_is_in_one_place_and_in_the_home_where_nothing_is_said() {
        assert_eq!(source(None, None), Ok(SecretSource::OwnFile("/home/token".into())));
        assert_eq!(source(Some("/etc/t"), None), Ok(SecretSource::File("/etc/t".into())));
        let named = SecretSource::Credential("/run/credentials/t".into());
        assert_eq!(source(None, Some("t")), Ok(named));
        for (file, credential, key) in [
            (Some("t"), None, "auth.file must be an absolute path"),
            (Some("/etc/t"), Some("t"), "auth.credential stands beside auth.file"),
            (None, Some("../t"), "auth.credential cannot be used"),
        ] {
            let refused = source(file, credential).unwrap_err();
            assert!(refused.contains(key), "{refused}");
        }
    }
}
