//! References to models: `hf:`, `https:`, `file:` and aliases. Owns their syntax and canonical text; never resolves
//! one. Whether a `file:` path lies under an allowed root, or a host may be contacted, is decided where it is used.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use crate::text::{check, text_conversions};
use crate::{ModelAlias, ValidationError, percent};

/// Longest reference, in characters: fits any real one, and bounds every log line and database key that holds it.
pub const MODEL_REF_MAX: usize = 512;

const FIELD: &str = "model reference";
const ALLOWED: &str = "letters, digits and . _ - + = , @ : / %";
const FORM: &str = "name[:tag], hf:owner/repo[@revision][:file-or-quant], https://host/path or file:/absolute/path";
const HF_FORM: &str = "hf:owner/repo[@revision][:file-or-quant]";
const HTTPS_FORM: &str = "https://host[:port]/path, without user, query and fragment";
const FILE_FORM: &str = "file:/absolute/path, percent-encoded, without . and .. in it";

/// Names a model, wherever it lies. Two references are equal when their canonical texts are.
///
/// Accepted: `hf:owner/repo[@revision][:file-or-quant]` (also without `hf:`), `https://host[:port]/path`,
/// `file:/absolute/path` with percent-encoding, and aliases such as `smollm2:135m`. At most [`MODEL_REF_MAX`]
/// characters of a small alphabet without white space and shell metacharacters; no `..`, no leading `-`. A bare path is
/// no reference; [`ModelRef::from_file_path`] makes one of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelRef {
    text: String,
    /// Boxed, so that errors and messages with a reference in them stay small.
    target: Box<ModelTarget>,
}

/// Says what kind of place a reference points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Provider {
    /// A repository on Hugging Face.
    Hf,
    /// A file on a web server.
    Https,
    /// A file on the machine itself.
    File,
    /// A name that the catalog resolves.
    Alias,
}

impl Provider {
    /// Returns the name used in JSON and in the catalog.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hf => "hf",
            Self::Https => "https",
            Self::File => "file",
            Self::Alias => "alias",
        }
    }
}

impl std::fmt::Display for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Holds the parts of a reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ModelTarget {
    /// A repository on Hugging Face, perhaps one revision or file of it.
    Hf(HfModel),
    /// A URL, whole.
    Https(String),
    /// An absolute path, decoded.
    File(PathBuf),
    /// A name that the catalog resolves.
    Alias(ModelAlias),
}

/// Holds the parts of a Hugging Face reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HfModel {
    owner: String,
    repo: String,
    revision: Option<String>,
    file: Option<String>,
}

impl HfModel {
    /// Returns the user or organisation.
    #[must_use]
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Returns the repository.
    #[must_use]
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// Returns the branch, tag or commit, when one is named.
    #[must_use]
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// Returns the file inside the repository, or the quantisation, when one is named.
    #[must_use]
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }
}

impl ModelRef {
    fn parse(text: &str) -> Result<Self, ValidationError> {
        check(FIELD, text, MODEL_REF_MAX, ALLOWED, is_reference_character)?;
        if text.starts_with('-') || text.contains("..") {
            return Err(malformed(FORM));
        }
        if let Some(rest) = text.strip_prefix("hf:") {
            parse_hf(rest)
        } else if let Some(rest) = text.strip_prefix("https://") {
            parse_https(rest)
        } else if let Some(rest) = text.strip_prefix("file:") {
            parse_file(rest)
        } else if text.starts_with("http:") || text.starts_with("https:") {
            Err(malformed(HTTPS_FORM))
        } else if text.contains('/') {
            parse_shorthand(text)
        } else {
            Ok(ModelAlias::parse(text)?.into())
        }
    }

    /// Makes a `file:` reference of an absolute path, encoding what the alphabet leaves out.
    ///
    /// # Errors
    /// [`ValidationError`] when the path is relative, holds `..`, or is too long once encoded.
    pub fn from_file_path(path: &Path) -> Result<Self, ValidationError> {
        let text = format!("file:{}", percent::encode(path.as_os_str().as_bytes()));
        Self::parse(&text)
    }

    /// Says what kind of place the reference points to.
    #[must_use]
    pub const fn provider(&self) -> Provider {
        match *self.target {
            ModelTarget::Hf(_) => Provider::Hf,
            ModelTarget::Https(_) => Provider::Https,
            ModelTarget::File(_) => Provider::File,
            ModelTarget::Alias(_) => Provider::Alias,
        }
    }

    /// Returns the parts.
    #[must_use]
    pub const fn target(&self) -> &ModelTarget {
        &self.target
    }
}

text_conversions!(ModelRef);

impl From<ModelAlias> for ModelRef {
    fn from(alias: ModelAlias) -> Self {
        Self { text: alias.as_str().to_owned(), target: Box::new(ModelTarget::Alias(alias)) }
    }
}

/// `owner/repo…` without `hf:`. A relative path to a model file looks alike, so one is told apart by its ending.
fn parse_shorthand(text: &str) -> Result<ModelRef, ValidationError> {
    let parsed = parse_hf(text).map_err(|_reason| malformed(FORM))?;
    match parsed.target() {
        ModelTarget::Hf(hf) if !hf.repo.to_ascii_lowercase().ends_with(".gguf") => Ok(parsed),
        _ => Err(malformed(FORM)),
    }
}

fn parse_hf(rest: &str) -> Result<ModelRef, ValidationError> {
    let (rest, file) = split_suffix(rest, ':');
    let (name, revision) = split_suffix(rest, '@');
    let (owner, repo) = name.split_once('/').ok_or_else(|| malformed(HF_FORM))?;
    let parts_are_good = is_segment(owner)
        && is_segment(repo)
        && revision.is_none_or(is_segments)
        && file.is_none_or(is_segments);
    if !parts_are_good {
        return Err(malformed(HF_FORM));
    }
    let hf = HfModel {
        owner: owner.to_owned(),
        repo: repo.to_owned(),
        revision: revision.map(str::to_owned),
        file: file.map(str::to_owned),
    };
    let revision = revision.map_or_else(String::new, |revision| format!("@{revision}"));
    let file = file.map_or_else(String::new, |file| format!(":{file}"));
    let text = format!("hf:{owner}/{repo}{revision}{file}");
    within_limit(ModelRef { text, target: Box::new(ModelTarget::Hf(hf)) })
}

fn parse_https(rest: &str) -> Result<ModelRef, ValidationError> {
    let (authority, path) = rest.split_once('/').ok_or_else(|| malformed(HTTPS_FORM))?;
    let (host, port) = split_suffix(authority, ':');
    let host_is_good = host.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    });
    let port_is_good = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    let decoded = percent::decode(path).ok_or_else(|| malformed(HTTPS_FORM))?;
    let path_is_good = !path.is_empty() && is_visible(&decoded) && !has_dot_segment(&decoded);
    if !(host_is_good && port_is_good && path_is_good) {
        return Err(malformed(HTTPS_FORM));
    }
    let text = format!("https://{}/{path}", authority.to_ascii_lowercase());
    Ok(ModelRef { text: text.clone(), target: Box::new(ModelTarget::Https(text)) })
}

fn parse_file(rest: &str) -> Result<ModelRef, ValidationError> {
    let decoded = percent::decode(rest).ok_or_else(|| malformed(FILE_FORM))?;
    let is_good = decoded.starts_with(b"/")
        && !decoded.ends_with(b"/")
        && is_visible(&decoded)
        && !has_dot_segment(&decoded);
    if !is_good {
        return Err(malformed(FILE_FORM));
    }
    let text = format!("file:{}", percent::encode(&decoded));
    let path = PathBuf::from(OsString::from_vec(decoded));
    within_limit(ModelRef { text, target: Box::new(ModelTarget::File(path)) })
}

/// Canonical text may be longer than what was typed: a prefix or an encoding is added.
fn within_limit(parsed: ModelRef) -> Result<ModelRef, ValidationError> {
    if parsed.text.len() > MODEL_REF_MAX {
        return Err(ValidationError::TooLong {
            field: FIELD,
            max: MODEL_REF_MAX,
            unit: "characters",
        });
    }
    Ok(parsed)
}

const fn malformed(expected: &'static str) -> ValidationError {
    ValidationError::Malformed { field: FIELD, expected }
}

const fn is_reference_character(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || matches!(c, '.' | '_' | '-' | '+' | '=' | ',' | '@' | ':' | '/' | '%')
}

fn split_suffix(text: &str, separator: char) -> (&str, Option<&str>) {
    match text.split_once(separator) {
        Some((head, tail)) => (head, Some(tail)),
        None => (text, None),
    }
}

/// One path segment or repository name: not hidden, not an option, and nothing a URL or shell would read otherwise.
fn is_segment(segment: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+');
    segment.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && segment.bytes().all(is_plain)
}

fn is_segments(path: &str) -> bool {
    path.split('/').all(is_segment)
}

fn is_visible(bytes: &[u8]) -> bool {
    !bytes.iter().any(u8::is_ascii_control)
}

fn has_dot_segment(bytes: &[u8]) -> bool {
    bytes.split(|&b| b == b'/' || b == b'\\').any(|segment| segment == b"." || segment == b"..")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<ModelRef, ValidationError> {
        text.parse()
    }

    #[test]
    fn every_form_has_a_canonical_text() {
        for (text, canonical, provider) in [
            ("hf:org/repo", "hf:org/repo", Provider::Hf),
            ("org/repo:file.gguf", "hf:org/repo:file.gguf", Provider::Hf),
            ("hf:Org/Repo-1.5@main:Q4_K_M", "hf:Org/Repo-1.5@main:Q4_K_M", Provider::Hf),
            ("hf:o/r@refs/pr/1:sub/model.gguf", "hf:o/r@refs/pr/1:sub/model.gguf", Provider::Hf),
            (
                "https://Host.Example:8443/a/B.gguf",
                "https://host.example:8443/a/B.gguf",
                Provider::Https,
            ),
            ("https://h/a%20b.gguf", "https://h/a%20b.gguf", Provider::Https),
            ("file:/models/a.gguf", "file:/models/a.gguf", Provider::File),
            ("file:/a%2Db%20c.gguf", "file:/a-b%20c.gguf", Provider::File),
            ("smollm2:135m", "smollm2:135m", Provider::Alias),
        ] {
            let parsed = parse(text).unwrap();
            assert_eq!((parsed.as_str(), parsed.provider()), (canonical, provider), "{text}");
        }
    }

    #[test]
    fn the_parts_of_a_repository_are_told_apart() {
        let parsed = parse("hf:o/r@v1:sub/x.gguf").unwrap();
        let ModelTarget::Hf(hf) = parsed.target() else { panic!("{parsed:?}") };
        let parts = (hf.owner(), hf.repo(), hf.revision(), hf.file());
        assert_eq!(parts, ("o", "r", Some("v1"), Some("sub/x.gguf")));
    }

    /// Hostile references, blank-separated.
    const HOSTILE: &str = "a;b `id` a|b a&b $(id) $HOME a>b a<b a*b a?b a!b a'b a\"b a#b a[b] a{b} \
        ../x /etc/passwd ./x.gguf models/x.gguf a/b/c.gguf ~/x a\\b . .. / -rf --help Ａ 😀 \u{1b}[0m a\0 \
        hf: hf:o hf:o/ hf:/r hf:o/r/x hf:o/r@ hf:o/r: hf:o/r:../x hf:-o/r hf:o/r:a//b hf:o/r:/abs \
        hf:o/r:a:b hf:o/r@a@b hf:.o/r hf:o/%2e%2e hf:o/r:-x \
        http://h/x https:/h/x https://h https://h/ https://u@h/x https://h:0/x ftp://h/x \
        https://h:99999/x https:///x https://h/%2e%2e/x https://h/%00 https://h/%zz https://-h/x \
        file: file:x file:./x file:/ file:/a/../b file:/a/%2e%2e/b file:/a%0Ab file:/a%00 file:/a/ \
        hf:o/r..x https://h/a..b file:/a..b";

    #[test]
    fn hostile_references_are_refused() {
        for bad in HOSTILE.split(' ').chain(["", " ", "a b", "a\n", "a\tb", "a\r"]) {
            let error = parse(bad).expect_err(bad).to_string();
            assert!(!error.contains(|c: char| c.is_control()), "{error}");
        }
    }

    #[test]
    fn the_length_limit_counts_the_canonical_text() {
        let of_length = |n: usize| format!("file:/{}", "a".repeat(n - 6));
        assert!(parse(&of_length(MODEL_REF_MAX)).is_ok());
        assert!(parse(&of_length(MODEL_REF_MAX + 1)).is_err());
        let shorthand = format!("o/{}", "r".repeat(MODEL_REF_MAX - 2));
        assert!(matches!(parse(&shorthand), Err(ValidationError::Malformed { .. })));
    }

    #[test]
    fn a_path_becomes_a_reference_and_comes_back() {
        for path in [
            "/m/My Models/a (1).gguf",
            "/m/é.gguf",
            "/m/a...b.gguf",
            "/m/100%.gguf",
            "/m/$x;y.gguf",
        ] {
            let reference = ModelRef::from_file_path(Path::new(path)).unwrap();
            assert_eq!(parse(reference.as_str()).unwrap(), reference);
            assert_eq!(reference.target(), &ModelTarget::File(PathBuf::from(path)));
        }
        for path in ["x.gguf", "", "/m/../x", "/m/line\nbreak"] {
            assert!(ModelRef::from_file_path(Path::new(path)).is_err(), "{path:?}");
        }
    }

    proptest! {
        #[test]
        fn canonical_text_is_bounded_plain_and_stable(text in "(hf:|https://|file:/|)[a-zA-Z0-9._:/@%+-]{1,40}") {
            if let Ok(parsed) = parse(&text) {
                prop_assert_eq!(&parse(parsed.as_str()).unwrap(), &parsed);
                prop_assert!(parsed.as_str().chars().all(is_reference_character));
                prop_assert!(!parsed.as_str().contains(".."));
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in any::<String>()) {
            if let Ok(parsed) = parse(&text) {
                prop_assert!(parsed.as_str().len() <= MODEL_REF_MAX);
            }
        }
    }
}
