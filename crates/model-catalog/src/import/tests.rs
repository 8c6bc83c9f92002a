//! Tests of importing: what a good import leaves, and that a failed one leaves nothing.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::Catalog;
use crate::gguf::test_file::{Kv, TestFile};

/// A home with a model directory, and a place for files to import.
struct Home {
    root: TempDir,
    store: ModelStore,
}

impl Home {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path());
        Self { root, store }
    }

    fn source(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.root.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn import(&self, request: &ImportRequest) -> Result<Model, StoreError> {
        self.store.import(request, |_| ControlFlow::Continue(()))
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.store.directory())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Nothing lies in the directory and nothing is registered.
    fn assert_untouched(&self) {
        assert_eq!(self.files(), [""; 0]);
        assert_eq!(self.store.catalog().list().unwrap(), []);
    }
}

fn open(root: &Path) -> ModelStore {
    let opened = Catalog::open(&root.join("models.db")).unwrap();
    ModelStore::open(&root.join("models"), opened.catalog).unwrap()
}

fn request(source: &Path) -> ImportRequest {
    ImportRequest {
        source: source.to_owned(),
        reference: ModelRef::from_file_path(source).unwrap(),
        alias: None,
        expected_sha256: None,
    }
}

fn digest(content: &[u8]) -> Sha256Hex {
    Sha256Hex::from_bytes(&Sha256::digest(content).into())
}

#[test]
fn a_good_file_is_copied_hashed_and_registered() {
    let home = Home::new();
    let bytes = TestFile::default().bytes();
    let source = home.source("My Model (1).gguf", &bytes);
    let mut last = None;
    let request = ImportRequest {
        alias: Some("tiny:1".parse().unwrap()),
        expected_sha256: Some(digest(&bytes)),
        ..request(&source)
    };
    let watch = |progress: Progress| {
        last = Some(progress);
        ControlFlow::Continue(())
    };
    let model = home.store.import(&request, watch).unwrap();
    let total = bytes.len() as u64;
    assert_eq!(last, Some(Progress { bytes_done: total, bytes_total: total }));
    assert_eq!((model.size_bytes, &model.sha256), (total, &digest(&bytes)));
    assert_eq!(fs::read(&model.path).unwrap(), bytes);
    assert!(home.store.holds(&model.path));
    let name = model.path.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(name.starts_with("My-Model--1--") && name.ends_with(".gguf"), "{name}");
    assert_eq!(home.files(), [name.clone(), format!("{name}.json")]);
    assert_eq!(home.store.catalog().get(&"tiny:1".parse().unwrap()).unwrap(), Some(model.clone()));
    home.store.check(&model).unwrap();
    assert!(source.exists());
}

#[test]
fn importing_the_same_again_changes_nothing() {
    let home = Home::new();
    let source = home.source("a.gguf", &TestFile::default().bytes());
    let first = home.import(&request(&source)).unwrap();
    let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(&first.path).unwrap());
    let before = inode();
    assert_eq!(home.import(&request(&source)).unwrap(), first);
    assert_eq!(inode(), before, "the file was copied again");
    let named = ImportRequest { alias: Some("name".parse().unwrap()), ..request(&source) };
    assert_eq!(home.import(&named).unwrap().path, first.path);
    assert_eq!(home.store.catalog().list().unwrap()[0].display_name(), "name");
    assert_eq!(inode(), before, "the file was copied for an alias");
}

#[test]
fn changed_content_replaces_the_model_and_its_file() {
    let home = Home::new();
    let source = home.source("a.gguf", &TestFile::default().bytes());
    let named = ImportRequest { alias: Some("name".parse().unwrap()), ..request(&source) };
    let first = home.import(&named).unwrap();
    fs::write(
        &source,
        TestFile::default().with("general.name", Kv::Text("New".to_owned())).bytes(),
    )
    .unwrap();
    let second = home.import(&request(&source)).unwrap();
    assert_ne!(first.sha256, second.sha256);
    assert_eq!(home.store.catalog().list().unwrap(), std::slice::from_ref(&second));
    assert_eq!(second.display_name(), "name");
    assert!(!first.path.exists());
    assert_eq!(home.files().len(), 2);
}

#[test]
fn a_damaged_model_is_mended_by_importing_it_again() {
    let home = Home::new();
    let bytes = TestFile::default().bytes();
    let source = home.source("a.gguf", &bytes);
    let model = home.import(&request(&source)).unwrap();
    fs::write(&model.path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(matches!(home.store.check(&model), Err(StoreError::Header(_))));
    home.import(&request(&source)).unwrap();
    home.store.check(&model).unwrap();
    fs::remove_file(&model.path).unwrap();
    assert!(matches!(home.store.check(&model), Err(StoreError::Unreadable { .. })));
    home.import(&request(&source)).unwrap();
    home.store.check(&model).unwrap();
}

#[test]
fn a_file_in_the_model_directory_is_registered_where_it_is() {
    let home = Home::new();
    let path = home.store.directory().join("starter.gguf");
    fs::write(&path, TestFile::default().bytes()).unwrap();
    let named = ImportRequest { alias: Some("smollm2:135m".parse().unwrap()), ..request(&path) };
    let model = home.import(&named).unwrap();
    assert_eq!(model.path, path);
    assert_eq!(home.files(), ["starter.gguf", "starter.gguf.json"]);
    let note = || fs::read(sidecar::path_of(&path)).unwrap();
    let before = note();
    let twice = ImportRequest { reference: "hf:o/r".parse().unwrap(), alias: None, ..named };
    let error = home.import(&twice).unwrap_err();
    assert!(matches!(error, StoreError::Catalog(CatalogError::FileTaken { .. })), "{error:?}");
    assert_eq!(home.store.catalog().list().unwrap(), [model]);
    assert_eq!(note(), before);
}

#[test]
fn what_is_no_whole_model_leaves_nothing() {
    let home = Home::new();
    let whole = TestFile::default().bytes();
    let split = TestFile::default().with("split.count", Kv::U32(3)).bytes();
    for (name, content, code) in [
        ("cut.gguf", &whole[..whole.len() - 1], "invalid_model_file"),
        ("empty.gguf", &[], "invalid_model_file"),
        ("foreign.gguf", b"hello, this is no model", "invalid_model_file"),
        ("split.gguf", &split, "invalid_model_file"),
    ] {
        let error = home.import(&request(&home.source(name, content))).unwrap_err();
        assert_eq!(error.code(), code, "{name}");
    }
    let missing = home.import(&request(&home.root.path().join("none.gguf"))).unwrap_err();
    assert!(matches!(missing, StoreError::Unreadable { .. }));
    let directory = home.import(&request(home.root.path())).unwrap_err();
    assert!(matches!(directory, StoreError::NotAFile));
    home.assert_untouched();
}

#[test]
fn wrong_names_are_refused_before_any_work() {
    let home = Home::new();
    let source = home.source("a.gguf", &TestFile::default().bytes());
    let untouched = |_: Progress| panic!("work was begun");
    let alias = ImportRequest { reference: "plain:alias".parse().unwrap(), ..request(&source) };
    let error = home.store.import(&alias, untouched).unwrap_err();
    assert!(matches!(error, StoreError::Catalog(CatalogError::NotAPlace { .. })));
    let named = |reference: &str| ImportRequest {
        reference: reference.parse().unwrap(),
        alias: Some("taken".parse().unwrap()),
        ..request(&source)
    };
    home.import(&named("hf:o/first")).unwrap();
    let error = home.store.import(&named("hf:o/second"), untouched).unwrap_err();
    assert!(matches!(error, StoreError::Catalog(CatalogError::AliasTaken { .. })));
    assert_eq!(home.store.catalog().list().unwrap().len(), 1);
}

#[test]
fn an_unexpected_digest_leaves_nothing() {
    let home = Home::new();
    let bytes = TestFile::default().bytes();
    let source = home.source("a.gguf", &bytes);
    let expecting = ImportRequest { expected_sha256: Some(digest(b"other")), ..request(&source) };
    let error = home.import(&expecting).unwrap_err();
    let StoreError::ChecksumMismatch { expected, actual } = error else { panic!("{error:?}") };
    assert_eq!((expected, actual), (digest(b"other"), digest(&bytes)));
    home.assert_untouched();
}

#[test]
fn a_disk_without_room_is_told_before_copying() {
    let mut home = Home::new();
    let bytes = TestFile::default().bytes();
    let source = home.source("a.gguf", &bytes);
    home.store.free_bytes = |_| Ok(FREE_BYTES_MIN);
    let error = home.import(&request(&source)).unwrap_err();
    let StoreError::NoSpace { required_bytes, available_bytes } = error else {
        panic!("{error:?}")
    };
    assert_eq!(
        (required_bytes, available_bytes),
        (FREE_BYTES_MIN + bytes.len() as u64, FREE_BYTES_MIN)
    );
    assert_eq!((error.code(), error.retryable()), ("insufficient_disk", true));
    home.assert_untouched();
}

#[test]
fn a_disk_that_runs_full_under_way_is_told_alike() {
    let mut home = Home::new();
    home.store.free_bytes = |_| Ok(5);
    let full = StoreError::Io {
        action: "write the model file",
        source: io::ErrorKind::StorageFull.into(),
    };
    let error = home.store.explain_full_disk(full, 100);
    assert!(matches!(error, StoreError::NoSpace { available_bytes: 5, .. }), "{error:?}");
    let other =
        StoreError::Io { action: "write the model file", source: io::ErrorKind::BrokenPipe.into() };
    assert!(matches!(home.store.explain_full_disk(other, 100), StoreError::Io { .. }));
}

#[test]
fn a_cancelled_import_leaves_nothing() {
    let home = Home::new();
    let source = home.source("a.gguf", &TestFile::default().bytes());
    for stop_at in [0, 1] {
        let mut calls = 0;
        let cancel = |_: Progress| {
            calls += 1;
            if calls > stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let error = home.store.import(&request(&source), cancel).unwrap_err();
        assert!(matches!(error, StoreError::Cancelled), "{error:?}");
        home.assert_untouched();
    }
}

#[test]
fn a_source_that_grows_while_it_is_copied_leaves_nothing() {
    let home = Home::new();
    let bytes = TestFile::default().bytes();
    let source = home.source("a.gguf", &bytes);
    let grow = |_: Progress| {
        fs::write(&source, [bytes.as_slice(), b"more"].concat()).unwrap();
        ControlFlow::Continue(())
    };
    let error = home.store.import(&request(&source), grow).unwrap_err();
    assert!(matches!(error, StoreError::Changed), "{error:?}");
    home.assert_untouched();
}

#[test]
fn a_catalog_that_fails_takes_the_copy_back() {
    let home = Home::new();
    let source = home.source("a.gguf", &TestFile::default().bytes());
    let other = home.source("b.gguf", &TestFile::default().bytes());
    let taken = || Some("taken".parse().unwrap());
    let mut raced = false;
    // Another import takes the alias while this one copies.
    let race = |_: Progress| {
        if !raced {
            raced = true;
            home.import(&ImportRequest { alias: taken(), ..request(&other) }).unwrap();
        }
        ControlFlow::Continue(())
    };
    let late = ImportRequest { alias: taken(), ..request(&source) };
    let error = home.store.import(&late, race).unwrap_err();
    assert!(matches!(error, StoreError::Catalog(CatalogError::AliasTaken { .. })), "{error:?}");
    assert_eq!(home.store.catalog().list().unwrap().len(), 1);
    assert_eq!(home.files().len(), 2, "{:?}", home.files());
}

#[test]
fn removing_a_model_removes_its_files() {
    let home = Home::new();
    let source = home.source("a.gguf", &TestFile::default().bytes());
    let model = home
        .import(&ImportRequest { alias: Some("x".parse().unwrap()), ..request(&source) })
        .unwrap();
    assert_eq!(home.store.remove(&"x".parse().unwrap()).unwrap(), model);
    home.assert_untouched();
    let error = home.store.remove(&"x".parse().unwrap()).unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }));
    assert!(source.exists());
}

#[test]
fn two_stores_import_at_once() {
    let home = Home::new();
    let second = open(home.root.path());
    let bytes = TestFile::default().bytes();
    let sources: Vec<PathBuf> = (0..4).map(|n| home.source(&format!("{n}.gguf"), &bytes)).collect();
    std::thread::scope(|scope| {
        for store in [&home.store, &second] {
            for source in &sources {
                scope.spawn(move || {
                    store.import(&request(source), |_| ControlFlow::Continue(())).unwrap()
                });
            }
        }
    });
    let models = second.catalog().list().unwrap();
    assert_eq!(models.len(), sources.len());
    for model in &models {
        second.check(model).unwrap();
    }
    assert_eq!(home.files().len(), 2 * sources.len());
}
