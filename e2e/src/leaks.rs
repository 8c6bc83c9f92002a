//! Whether a home tells its secrets: looked at for each cluster at its end, so that every test of the suite is one of
//! this, too. Owns which files hold secrets and which must not.

use std::fs;
use std::path::{Path, PathBuf};

use crate::process::Process;

/// Folders that hold secrets by design, and the one of models, which are large and come from elsewhere.
const NOT_SEARCHED: [&str; 3] = ["secrets", "tls", "models"];
/// What is shorter is no secret of ours, and would be found in anything.
const SECRET_BYTES_MIN: usize = 16;

/// A secret and where it lies.
struct Secret {
    file: PathBuf,
    value: Vec<u8>,
}

/// Returns each place, in files of the homes in `folder` and in arguments and environments of `processes`, that shows a
/// secret of one of them.
pub(crate) fn leaks(folder: &Path, processes: &[Process]) -> Vec<String> {
    let (mut secrets, mut places) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let home = entry.path();
        // Beside homes lie what tests hand over themselves, secrets among it.
        if home.join("secrets").is_dir() {
            secrets.extend(secrets_in(&home.join("secrets")));
            files(&home, &mut places);
        }
    }
    for process in processes {
        let folder = PathBuf::from(format!("/proc/{}", process.pid));
        places.extend(["cmdline", "environ"].map(|file| folder.join(file)));
    }
    let mut found = Vec::new();
    for place in places {
        // A process may be gone, a file be on its way out.
        let content = fs::read(&place).unwrap_or_default();
        let shown = secrets.iter().filter(|secret| contains(&content, &secret.value));
        found.extend(shown.map(|s| format!("{} shows {}", place.display(), s.file.display())));
    }
    found
}

/// Tokens and keys: the files of one line.
fn secrets_in(folder: &Path) -> Vec<Secret> {
    let mut secrets = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let file = entry.path();
        let value = fs::read(&file).unwrap_or_default().trim_ascii().to_vec();
        if value.len() >= SECRET_BYTES_MIN && !value.contains(&b'\n') && !value.contains(&b'{') {
            secrets.push(Secret { file, value });
        }
    }
    secrets
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_searched = !NOT_SEARCHED.iter().any(|name| entry.file_name() == *name);
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && is_searched => files(&path, found),
            Ok(kind) if kind.is_file() => found.push(path),
            Ok(_) | Err(_) => {}
        }
    }
}

fn contains(content: &[u8], value: &[u8]) -> bool {
    let first = value.first();
    let mut rest = content;
    while let Some(at) = rest.iter().position(|byte| Some(byte) == first) {
        rest = rest.get(at..).unwrap_or_default();
        if rest.starts_with(value) {
            return true;
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_wherever_it_was_written_and_its_own_file_is_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |path: &str| folder.path().join("home").join(path);
        for folder in ["secrets", "logs/old"] {
            fs::create_dir_all(at(folder)).expect("a folder");
        }
        fs::write(at("secrets/client.token"), "0123456789abcdef\n").expect("a file");
        fs::write(at("secrets/short"), "abc\n").expect("a file");
        fs::write(at("logs/queen.log"), "abc 0123456789abcde 0012345").expect("a file");
        assert_eq!(leaks(folder.path(), &[]), Vec::<String>::new());
        fs::write(at("logs/old/hive.log"), [b"\0\xff00123456789", &b"abcdef"[..]].concat())
            .expect("a file");
        let found = leaks(folder.path(), &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("hive.log") && found[0].contains("client.token"), "{found:?}");
    }
}
