//! Config files: where one is looked for, and how it is read. Owns the words in which a wrong one is refused; never
//! knows a key.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use input_validation::SettingError;
use serde::de::DeserializeOwned;

use crate::ExitStatus;
use crate::nearest::nearest;

/// Largest config file: many times any real one, and it is read whole.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// Where to look for a config file.
#[derive(Debug, Clone, Copy)]
pub struct ConfigSearch<'a> {
    /// The program, which names the file: `<program>.toml`.
    pub program: &'a str,
    /// The file named by `--config` or, without that, by `RBEE_CONFIG`. It must exist.
    pub explicit: Option<&'a Path>,
    /// The user's own home directory, for `~/.config/rbee`.
    pub user_home: Option<&'a Path>,
}

/// A configuration and the file that it was read from; the defaults where there was none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded<T> {
    /// What the file says.
    pub config: T,
    /// The file.
    pub path: Option<PathBuf>,
}

/// Says why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file is not there or cannot be read.
    #[error("cannot read the config file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file does not say what a configuration can say.
    #[error("the config file {} is wrong in line {line}, column {column}: {message}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Where, counted from 1.
        line: usize,
        /// Where in the line, counted from 1 in characters.
        column: usize,
        /// What is wrong there.
        message: String,
        /// What was probably meant.
        suggestion: Option<String>,
    },
    /// A value is well-formed and cannot be used, whether from flag, environment or file.
    #[error("the setting {key} {reason}")]
    Value {
        /// The key, as it stands in the file.
        key: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
}

impl From<SettingError> for ConfigError {
    fn from(SettingError { key, reason }: SettingError) -> Self {
        Self::Value { key, reason }
    }
}

impl ConfigError {
    /// Returns the exit code of a program that cannot go on.
    #[must_use]
    pub fn exit_status(&self) -> ExitStatus {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                ExitStatus::NoPermission
            }
            Self::Read { .. } | Self::Content { .. } | Self::Value { .. } => ExitStatus::Config,
        }
    }

    /// Says what the user can do.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Read { path, .. } => {
                format!("check --config and RBEE_CONFIG, and that {} can be read", path.display())
            }
            Self::Content { suggestion: Some(meant), .. } => format!("did you mean `{meant}`?"),
            Self::Content { path, .. } => {
                format!("correct {}, and try it with --validate-config", path.display())
            }
            Self::Value { key, .. } => {
                format!("correct {key}, whose range stands in docs/CONFIG.md")
            }
        }
    }
}

/// Finds and reads the configuration of a program: the explicit file, `~/.config/rbee/<program>.toml` or
/// `/etc/rbee/<program>.toml`, whichever comes first, or the defaults where none exists.
///
/// # Errors
/// [`ConfigError::Read`] and [`ConfigError::Content`].
pub fn load_toml<T: DeserializeOwned + Default>(
    search: ConfigSearch<'_>,
) -> Result<Loaded<T>, ConfigError> {
    let name = format!("{}.toml", search.program);
    let candidates: Vec<PathBuf> = match search.explicit {
        Some(path) => vec![path.to_owned()],
        None => search
            .user_home
            .map(|home| home.join(".config"))
            .into_iter()
            .chain([PathBuf::from("/etc")])
            .map(|directory| directory.join("rbee").join(&name))
            .collect(),
    };
    for path in candidates {
        match read(&path) {
            Ok(text) => return Ok(Loaded { config: parse_toml(&text, &path)?, path: Some(path) }),
            Err(error) if search.explicit.is_none() && is_absent(&error) => {}
            Err(source) => return Err(ConfigError::Read { path, source }),
        }
    }
    Ok(Loaded { config: T::default(), path: None })
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn read(path: &Path) -> io::Result<String> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    if metadata.len() > CONFIG_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB"));
    }
    fs::read_to_string(path)
}

/// Reads a configuration out of the text of a file; `path` names the file in errors.
///
/// # Errors
/// [`ConfigError::Content`].
pub fn parse_toml<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    let read = toml::Deserializer::parse(text).map_err(|error| (String::new(), error));
    let parsed = read.and_then(|reader| {
        serde_path_to_error::deserialize(reader).map_err(|error| {
            let key = error.path().to_string();
            (key, error.into_inner())
        })
    });
    parsed.map_err(|(key, error)| {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or(text);
        let (line, column) = position_after(before);
        let message = error.message().trim().replace('\n', ", ");
        let suggestion = suggestion(&message);
        // All the words that are known would only hide the one that was meant.
        let message = match (&suggestion, message.split_once(", expected ")) {
            (Some(_), Some((what, _known))) => what.to_owned(),
            _ => message,
        };
        // A word that is not known stands in the message.
        let message = match suggestion.is_some()
            || key.is_empty()
            || key == "."
            || message.contains("unknown field")
        {
            true => message,
            false => format!("{key}: {message}"),
        };
        ConfigError::Content { path: path.to_owned(), line, column, message, suggestion }
    })
}

fn position_after(before: &str) -> (usize, usize) {
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

/// Finds a near match in serde's message, which quotes first the unknown word and then the known ones.
fn suggestion(message: &str) -> Option<String> {
    if !message.starts_with("unknown ") {
        return None;
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let typed = quoted.next()?;
    let known: Vec<&str> = quoted.collect();
    nearest(typed, &known).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        bind: String,
        workers_max: u32,
        log: SampleLog,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct SampleLog {
        level: String,
    }

    fn load_text(text: &str) -> Result<Sample, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rbee-hive.toml");
        fs::write(&path, text).unwrap();
        let search = ConfigSearch { program: "rbee-hive", explicit: Some(&path), user_home: None };
        load_toml(search).map(|loaded| loaded.config)
    }

    #[test]
    fn the_explicit_file_wins_over_the_users_and_must_exist() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join(".config/rbee");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("prog.toml"), "bind = 'user'").unwrap();
        fs::write(home.path().join("x.toml"), "bind = 'explicit'").unwrap();
        let bind = |explicit: Option<&Path>| {
            let user_home = Some(home.path());
            load_toml::<Sample>(ConfigSearch { program: "prog", explicit, user_home })
                .map(|loaded| loaded.config.bind)
        };
        assert_eq!(bind(None).unwrap(), "user");
        assert_eq!(bind(Some(&home.path().join("x.toml"))).unwrap(), "explicit");
        let missing = bind(Some(&home.path().join("none.toml"))).unwrap_err();
        assert!(matches!(missing, ConfigError::Read { .. }), "{missing}");
        assert_eq!(missing.exit_status(), ExitStatus::Config);
    }

    #[test]
    fn without_a_file_the_defaults_hold() {
        let home = tempfile::tempdir().unwrap();
        let search =
            ConfigSearch { program: "no-such", explicit: None, user_home: Some(home.path()) };
        assert_eq!(
            load_toml::<Sample>(search).unwrap(),
            Loaded { config: Sample::default(), path: None }
        );
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place_and_what_was_meant() {
        let error = load_text("workers_max = 3\n[log]\nlevl = 'debug'\n").unwrap_err();
        let told = error.to_string();
        assert!(told.contains("line 3, column 1") && told.contains("levl"), "{told}");
        assert!(told.ends_with("unknown field `levl`"), "the known ones are left out: {told}");
        assert_eq!(error.hint(), "did you mean `level`?");
        let far = load_text("colour = 'red'\n").unwrap_err().to_string();
        assert!(far.contains("`workers_max`"), "without a guess they are told: {far}");
    }

    #[test]
    fn wrong_types_and_broken_syntax_are_told_with_their_place() {
        for (text, place) in
            [("\nworkers_max = 'many'", "line 2"), ("bind = ", "line 1"), ("[log", "line 1")]
        {
            let error = load_text(text).unwrap_err();
            assert!(error.to_string().contains(place), "{error}");
            assert_eq!(error.exit_status(), ExitStatus::Config);
        }
    }

    #[test]
    fn what_is_not_a_file_of_text_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("binary");
        fs::write(&binary, b"\xff\xfe").unwrap();
        for path in [dir.path(), &binary] {
            let search = ConfigSearch { program: "p", explicit: Some(path), user_home: None };
            assert!(matches!(load_toml::<Sample>(search), Err(ConfigError::Read { .. })));
        }
    }
}
