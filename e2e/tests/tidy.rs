//! The rules of the repository, as tests: what a reviewer would otherwise have
//! to remember. Each rule is an invariant of ARCHITECTURE.md or STYLE.md.

#![expect(clippy::expect_used, reason = "a rule that cannot be checked has to fail")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, MetadataCommand};
use rbee_api::error::ErrorCode;

/// Which crates of the workspace a crate may depend on. Programs never depend
/// on programs; only the worker links llama.cpp.
const ALLOWED_EDGES: &[(&str, &[&str])] = &[
    ("audit-logging", &["auth-min", "input-validation", "rbee-api", "secrets-management"]),
    ("auth-min", &[]),
    ("deadline-propagation", &[]),
    ("input-validation", &[]),
    ("jwt-guardian", &[]),
    ("model-catalog", &["input-validation", "rbee-sqlite"]),
    ("rbee-api", &["input-validation"]),
    ("rbee-home", &["input-validation", "rbee-api", "secrets-management"]),
    (
        "rbee-http",
        &[
            "audit-logging",
            "auth-min",
            "deadline-propagation",
            "input-validation",
            "rbee-api",
            "rbee-tls",
            "secrets-management",
        ],
    ),
    ("rbee-llama", &[]),
    ("rbee-sqlite", &[]),
    ("rbee-tls", &["auth-min", "input-validation", "secrets-management"]),
    ("secrets-management", &[]),
    (
        "llm-worker-rbee",
        &[
            "audit-logging",
            "auth-min",
            "deadline-propagation",
            "input-validation",
            "rbee-api",
            "rbee-home",
            "rbee-http",
            "rbee-llama",
            "secrets-management",
        ],
    ),
    (
        "queen-rbee",
        &[
            "audit-logging",
            "auth-min",
            "deadline-propagation",
            "input-validation",
            "jwt-guardian",
            "rbee-api",
            "rbee-home",
            "rbee-http",
            "rbee-sqlite",
            "rbee-tls",
            "secrets-management",
        ],
    ),
    (
        "rbee-hive",
        &[
            "audit-logging",
            "auth-min",
            "deadline-propagation",
            "input-validation",
            "model-catalog",
            "rbee-api",
            "rbee-home",
            "rbee-http",
            "rbee-sqlite",
            "rbee-tls",
            "secrets-management",
        ],
    ),
    (
        "rbee-keeper",
        &[
            "audit-logging",
            "auth-min",
            "deadline-propagation",
            "input-validation",
            "rbee-api",
            "rbee-home",
            "rbee-http",
            "rbee-tls",
            "secrets-management",
        ],
    ),
    (
        "fuzz-targets",
        &[
            "audit-logging",
            "auth-min",
            "deadline-propagation",
            "e2e",
            "input-validation",
            "model-catalog",
            "queen-rbee",
            "rbee-api",
            "rbee-hive",
            "rbee-home",
            "rbee-keeper",
            "secrets-management",
        ],
    ),
    ("e2e", &["rbee-api"]),
];

/// The files that may start a process (ARCHITECTURE.md, invariant 5).
const PROCESS_STARTERS: &[&str] = &[
    "bin/rbee-keeper/src/queen_process.rs",
    "bin/queen-rbee/src/hive_launcher.rs",
    "bin/rbee-hive/src/supervisor.rs",
];

/// The files that compare secrets.
const SECRET_COMPARERS: &[&str] =
    &["crates/auth-min/src/digest.rs", "crates/secrets-management/src/secret.rs"];

/// The file that writes, names and removes model files.
const MODEL_FILE_WRITER: &str = "crates/model-catalog/src/durable.rs";

/// Names that say nothing about what a file owns.
const FORBIDDEN_NAMES: &[&str] =
    &["utils", "util", "common", "helpers", "helper", "misc", "manager", "data", "info"];

/// Longest file; beyond it a file is more than one idea.
const LINES_MAX: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_owned()
}

/// Returns the files of the repository with one of `extensions`, paths relative to its root.
fn files(extensions: &[&str]) -> Vec<PathBuf> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).expect("a readable folder").flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() {
                if name != "target" && name != ".git" && name != "node_modules" {
                    walk(&path, found);
                }
            } else {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &mut found);
    let wanted = |path: &PathBuf| {
        path.extension().is_some_and(|e| extensions.iter().any(|wanted| e == *wanted))
    };
    found.retain(wanted);
    found.iter().map(|path| path.strip_prefix(root()).expect("inside").to_owned()).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path)).expect("a text file")
}

/// Says whether a file is compiled for tests only: one in `tests/`, or a module
/// that its parent declares under `#[cfg(test)]`.
fn is_test_only(path: &Path) -> bool {
    if path.components().any(|part| part.as_os_str() == "tests") {
        return true;
    }
    let directory = path.parent().expect("a folder");
    let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a name");
    let parents = [directory.with_extension("rs"), directory.join("lib.rs")];
    parents.iter().any(|parent| {
        let text = fs::read_to_string(root().join(parent)).unwrap_or_default();
        text.contains(&format!("#[cfg(test)]\nmod {stem};"))
    })
}

#[track_caller]
fn assert_none(rule: &str, offenders: &[String]) {
    assert!(offenders.is_empty(), "{rule}:\n  {}", offenders.join("\n  "));
}

#[test]
fn crates_depend_only_on_what_the_table_allows() {
    let metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata");
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED_EDGES.iter().copied().collect();
    let members: BTreeSet<&str> = metadata.packages.iter().map(|p| p.name.as_str()).collect();
    let listed: BTreeSet<&str> = allowed.keys().copied().collect();
    assert_eq!(members, listed, "the table of crate edges lists exactly the workspace's crates");
    let mut offenders = Vec::new();
    for package in &metadata.packages {
        let normal = package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal);
        for dependency in normal.filter(|d| members.contains(d.name.as_str())) {
            if !allowed[package.name.as_str()].contains(&dependency.name.as_str()) {
                offenders.push(format!("{} -> {}", package.name, dependency.name));
            }
        }
    }
    assert_none("an edge that ALLOWED_EDGES does not have", &offenders);
}

#[test]
fn every_crate_has_the_workspace_lints() {
    let offenders: Vec<String> = files(&["toml"])
        .iter()
        .filter(|path| path.ends_with("Cargo.toml") && path.components().count() > 1)
        .filter(|path| !read(path).contains("[lints]\nworkspace = true"))
        .map(|path| path.display().to_string())
        .collect();
    assert_none("no `[lints] workspace = true`", &offenders);
}

#[test]
fn every_file_says_what_it_owns_and_is_short_enough() {
    let mut offenders = Vec::new();
    for path in files(&["rs"]) {
        let text = read(&path);
        if !text.starts_with("//!") {
            offenders.push(format!("{}: no //! header", path.display()));
        }
        let lines = text.lines().count();
        if lines > LINES_MAX {
            offenders.push(format!("{}: {lines} lines", path.display()));
        }
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        if FORBIDDEN_NAMES.contains(&stem) {
            offenders.push(format!("{}: a name that says nothing", path.display()));
        }
    }
    assert_none("files that break STYLE.md", &offenders);
}

#[test]
fn lints_are_expected_with_a_reason_and_never_allowed() {
    let mut offenders = Vec::new();
    for path in files(&["rs"]) {
        let text = read(&path);
        for (index, _) in text
            .match_indices("expect(")
            .filter(|(i, _)| text[..*i].ends_with("#[") || text[..*i].ends_with("#!["))
        {
            let attribute: &str = text[index..].split(")]").next().unwrap_or_default();
            if !attribute.contains("reason = \"") {
                offenders.push(format!("{}: {attribute}", path.display()));
            }
        }
        let allow = ["#[", "allow("].concat();
        if text.contains(&allow) {
            offenders.push(format!("{}: an allow", path.display()));
        }
    }
    assert_none("lint exceptions without a reason", &offenders);
}

#[test]
fn three_files_start_processes_and_config_reads_the_environment() {
    let mut offenders = Vec::new();
    for path in files(&["rs"]) {
        let name = path.display().to_string();
        let product = name.starts_with("bin/") || name.starts_with("crates/");
        if !product || is_test_only(&path) || name.ends_with("build.rs") {
            continue;
        }
        let text = read(&path);
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let command = ["Command::", "new("].concat();
        if code.contains(&command) && !PROCESS_STARTERS.contains(&name.as_str()) {
            offenders.push(format!("{name}: starts a process"));
        }
        let reads = ["env::", "var"].concat();
        if code.contains(&reads) && !name.ends_with("/config.rs") {
            offenders.push(format!("{name}: reads the environment"));
        }
        let unsafe_word = ["unsafe", " {"].concat();
        if code.contains(&unsafe_word) && !name.starts_with("crates/rbee-llama/") {
            offenders.push(format!("{name}: unsafe code"));
        }
        let bind = ["TcpListener::", "bind("].concat();
        let outside =
            !name.starts_with("crates/rbee-http/") && !PROCESS_STARTERS.contains(&name.as_str());
        if code.contains(&bind) && outside && !name.starts_with("bin/rbee-hive/src/supervisor/") {
            offenders.push(format!("{name}: opens a listener"));
        }
    }
    assert_none("ARCHITECTURE.md's invariants", &offenders);
}

/// Code without comments, its lines put together, so that a chain of calls is one piece.
fn on_one_line(code: &str) -> String {
    let lines = code.lines().filter_map(|line| line.split("//").next()).map(str::trim);
    lines.fold(String::new(), |whole, line| {
        let gap = if line.starts_with('.') { "" } else { " " };
        whole + gap + line
    })
}

/// How secrets would be compared so that the time it takes tells of them: the text that `expose` returns, or the bytes
/// of a digest, by an operator or a method, or a type that holds one by a derived `==`.
#[test]
fn secrets_are_compared_in_constant_time_alone() {
    let mut offenders = Vec::new();
    for path in files(&["rs"]) {
        let name = path.display().to_string();
        let product = name.starts_with("bin/") || name.starts_with("crates/");
        if !product || is_test_only(&path) || name.starts_with("crates/rbee-llama/") {
            continue;
        }
        let text = read(&path);
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        if SECRET_COMPARERS.contains(&name.as_str()) && !code.contains(".ct_eq(") {
            offenders.push(format!("{name}: compares without `subtle`"));
        }
        let comparisons = [" == ", " != ", ".eq(", ".ne(", ".cmp(", "starts_with(", "ends_with("];
        let shows = [".expose()", "token.as_bytes()", "digest.as_bytes()", "secret.as_bytes()"];
        let any_of = |ways: &[&str], text: &str| ways.iter().any(|way| text.contains(way));
        for statement in on_one_line(code).split([';', '{', '}']) {
            if any_of(&shows, statement) && any_of(&comparisons, statement) {
                offenders.push(format!("{name}: {}", statement.trim()));
            }
        }
        for derived in code.split("#[derive(").skip(1) {
            let (traits, item) = derived.split_once(")]").unwrap_or_default();
            let item = item.split(['{', '(', ';']).next().unwrap_or_default();
            let holds_one =
                ["Secret", "TokenDigest", "KeyDigest", "BearerToken"].iter().any(|of| {
                    item.split_whitespace().any(|word| word.trim_end_matches("<'a>").ends_with(of))
                });
            if holds_one && item.contains("struct ") && traits.contains("PartialEq") {
                offenders.push(format!("{name}: {} has a derived `==`", item.trim()));
            }
        }
    }
    assert_none("secrets are compared by `TokenDigest::matches` or as `Secret`", &offenders);
}

/// Where a path is made of a digest, it is made once.
#[test]
fn one_file_writes_model_files() {
    let ways =
        ["File::create", "OpenOptions", "fs::write(", "fs::rename(", "fs::copy(", "remove_file("];
    let mut offenders = Vec::new();
    for path in files(&["rs"]) {
        let name = path.display().to_string();
        let is_of_models = name.starts_with("crates/model-catalog/src/")
            || name.starts_with("bin/rbee-hive/src/models");
        if !is_of_models || is_test_only(&path) || name == MODEL_FILE_WRITER {
            continue;
        }
        let text = read(&path);
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let code = code.replace("durable::remove_file(", "");
        let found = ways.iter().filter(|way| code.contains(**way));
        offenders.extend(found.map(|way| format!("{name}: {way}")));
    }
    assert_none("model files are written by `durable.rs` alone", &offenders);
    assert!(root().join(MODEL_FILE_WRITER).exists());
}

#[test]
fn every_error_code_has_a_page_and_every_page_a_code() {
    let pages: BTreeSet<String> = fs::read_dir(root().join("docs/errors"))
        .expect("docs/errors")
        .flatten()
        .filter_map(|entry| entry.path().file_stem()?.to_str().map(str::to_owned))
        .collect();
    let codes: BTreeSet<String> = ErrorCode::ALL.iter().map(|c| c.as_str().to_owned()).collect();
    assert_eq!(pages, codes);
    let offenders: Vec<String> = ErrorCode::ALL
        .iter()
        .filter(|code| {
            let page = read(Path::new(&format!("docs/errors/{code}.md")));
            !page.contains(&code.status().to_string()) || page.lines().count() < 5
        })
        .map(ToString::to_string)
        .collect();
    assert_none("pages that do not tell the status and what to do", &offenders);
}

#[test]
fn paths_and_links_in_the_documents_exist() {
    let mut offenders = Vec::new();
    for document in files(&["md"]) {
        let text = read(&document);
        let directory = root().join(&document).parent().expect("a folder").to_owned();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            let outside = target.contains("://") || file.is_empty();
            if !outside && !directory.join(file).exists() {
                offenders.push(format!("{}: {target}", document.display()));
            }
        }
        if !document.ends_with("ARCHITECTURE.md") {
            continue;
        }
        for code in text.split('`').skip(1).step_by(2) {
            let looks_like_path = ["bin/", "crates/", "e2e/", "docs/", "scripts/"]
                .iter()
                .any(|prefix| code.starts_with(prefix));
            if looks_like_path && !code.contains(['*', '<', ' ']) && !root().join(code).exists() {
                offenders.push(format!("{}: `{code}`", document.display()));
            }
        }
    }
    assert_none("documents that point at nothing", &offenders);
}

/// A test is named as `path/to/file.rs::name`, further ones of the same file as `…::name`.
#[test]
fn tests_that_the_documents_name_exist() {
    let mut offenders = Vec::new();
    let mut named = 0;
    for document in files(&["md"]) {
        let text = read(&document);
        let mut file = "";
        for code in text.split('`').skip(1).step_by(2) {
            let Some((path, name)) = code.split_once("::") else { continue };
            match path {
                "…" => {}
                path if path.ends_with(".rs") => file = path,
                _ => continue,
            }
            named += 1;
            let source = fs::read_to_string(root().join(file)).unwrap_or_default();
            if !source.contains(&format!("fn {name}(")) {
                offenders.push(format!("{}: {file}::{name}", document.display()));
            }
        }
    }
    assert!(named > 20, "{named} tests are named");
    assert_none("documents that name tests there are none of", &offenders);
}

#[test]
fn the_code_map_answers_the_three_questions() {
    let map = read(Path::new("ARCHITECTURE.md"));
    for path in [
        "bin/queen-rbee/src/http.rs",
        "bin/queen-rbee/src/placement.rs",
        "bin/queen-rbee/src/hive_launcher.rs",
        "bin/rbee-hive/src/http.rs",
        "bin/rbee-hive/src/admission.rs",
        "bin/rbee-hive/src/supervisor.rs",
        "bin/llm-worker-rbee/src/http.rs",
        "bin/llm-worker-rbee/src/scheduler.rs",
    ] {
        assert!(map.contains(&format!("`{path}`")), "{path} is not in the code map");
    }
}

#[test]
fn nothing_is_left_open_in_the_code() {
    let words =
        [["TO", "DO"], ["FIX", "ME"], ["XX", "X"], ["#[ign", "ore"], ["unimpl", "emented!("]];
    let mut offenders = Vec::new();
    for path in files(&["rs", "py", "mjs", "toml"]) {
        let text = read(&path);
        for word in words.iter().map(|halves| halves.concat()) {
            if text.contains(&word) {
                offenders.push(format!("{}: {word}", path.display()));
            }
        }
    }
    assert_none("work that was put off", &offenders);
}
