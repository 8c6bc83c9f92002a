//! Tests of the catalog: its operations, two handles at once, and what it does with foreign and damaged files.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::GgufHeader;
use crate::gguf::test_file::TestFile;

fn model(reference: &str, alias: Option<&str>, path: &str) -> Model {
    let bytes = TestFile::default().bytes();
    Model {
        reference: reference.parse().unwrap(),
        alias: alias.map(|alias| alias.parse().unwrap()),
        path: PathBuf::from(path),
        size_bytes: bytes.len() as u64,
        sha256: "ab".repeat(32).parse().unwrap(),
        header: GgufHeader::read(std::io::Cursor::new(&bytes), bytes.len() as u64).unwrap(),
        added_at_ms: 1_700_000_000_000,
    }
}

fn reference(text: &str) -> ModelRef {
    text.parse().unwrap()
}

fn fresh() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("models.db");
    (dir, path)
}

fn open(path: &Path) -> Catalog {
    let opened = Catalog::open(path).unwrap();
    assert_eq!(opened.damaged, None);
    opened.catalog
}

#[test]
fn a_model_is_found_by_reference_and_alias_also_after_reopening() {
    let (_dir, path) = fresh();
    let smol = model("file:/m/smol.gguf", Some("smollm2:135m"), "/m/smol.gguf");
    let other = model("hf:o/r:Q4_K_M", None, "/m/other.gguf");
    let catalog = open(&path);
    catalog.register(&smol).unwrap();
    catalog.register(&other).unwrap();
    drop(catalog);
    let catalog = open(&path);
    assert_eq!(catalog.list().unwrap(), [smol.clone(), other.clone()]);
    for name in ["smollm2:135m", "file:/m/smol.gguf"] {
        assert_eq!(catalog.get(&reference(name)).unwrap(), Some(smol.clone()));
    }
    assert_eq!(catalog.get(&reference("o/r:Q4_K_M")).unwrap(), Some(other));
    for name in ["smollm2", "hf:o/r", "file:/m/smol"] {
        assert_eq!(catalog.get(&reference(name)).unwrap(), None, "{name}");
    }
}

#[test]
fn registering_again_updates_and_keeps_the_alias() {
    let (_dir, path) = fresh();
    let catalog = open(&path);
    catalog.register(&model("hf:o/r", Some("name"), "/m/one.gguf")).unwrap();
    let newer = Model { size_bytes: 7, added_at_ms: 9, ..model("hf:o/r", None, "/m/two.gguf") };
    catalog.register(&newer).unwrap();
    let expected = Model { alias: Some("name".parse().unwrap()), ..newer };
    assert_eq!(catalog.list().unwrap(), [expected]);
    catalog.register(&model("hf:o/r", Some("renamed"), "/m/two.gguf")).unwrap();
    assert_eq!(catalog.list().unwrap()[0].display_name(), "renamed");
}

#[test]
fn an_alias_and_a_file_belong_to_one_model() {
    let (_dir, path) = fresh();
    let catalog = open(&path);
    let first = model("hf:o/r", Some("name"), "/m/one.gguf");
    catalog.register(&first).unwrap();
    let error = catalog.register(&model("hf:o/other", Some("name"), "/m/two.gguf")).unwrap_err();
    assert!(
        matches!(&error, CatalogError::AliasTaken { reference, .. } if *reference == first.reference)
    );
    let error = catalog.register(&model("hf:o/other", None, "/m/one.gguf")).unwrap_err();
    assert!(
        matches!(&error, CatalogError::FileTaken { reference } if *reference == first.reference)
    );
    let error = catalog.register(&model("plain:alias", None, "/m/two.gguf")).unwrap_err();
    assert!(matches!(error, CatalogError::NotAPlace { .. }));
    assert_eq!(catalog.list().unwrap(), [first]);
}

#[test]
fn a_removed_model_is_gone_for_every_handle() {
    let (_dir, path) = fresh();
    let (one, other) = (open(&path), open(&path));
    let smol = model("file:/m/smol.gguf", Some("smol"), "/m/smol.gguf");
    one.register(&smol).unwrap();
    assert_eq!(other.remove(&reference("smol")).unwrap(), Some(smol));
    assert_eq!(one.list().unwrap(), []);
    assert_eq!(one.remove(&reference("smol")).unwrap(), None);
}

#[test]
fn two_handles_write_at_once_and_lose_nothing() {
    let (_dir, path) = fresh();
    let (one, other) = (open(&path), open(&path));
    std::thread::scope(|scope| {
        for (name, catalog) in [("one", &one), ("other", &other)] {
            scope.spawn(move || {
                for number in 0..40 {
                    let file = format!("/m/{name}-{number}.gguf");
                    catalog.register(&model(&format!("hf:{name}/{number}"), None, &file)).unwrap();
                    catalog
                        .register(&model("hf:shared/row", Some("shared"), "/m/shared.gguf"))
                        .unwrap();
                }
            });
        }
    });
    assert_eq!(one.list().unwrap().len(), 81);
    assert_eq!(one.list().unwrap(), other.list().unwrap());
}

#[test]
fn a_damaged_database_is_moved_aside_and_replaced() {
    let (dir, path) = fresh();
    let catalog = open(&path);
    for number in 0..200 {
        catalog.register(&model(&format!("hf:o/{number}"), None, &format!("/m/{number}"))).unwrap();
    }
    drop(catalog);
    let mut damaged = fs::read(&path).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle..].fill(0xa5);
    let not_a_database = b"not a database at all, but long enough to be looked at ".repeat(40);
    for (number, content) in [damaged, not_a_database].into_iter().enumerate() {
        fs::write(&path, &content).unwrap();
        let opened = Catalog::open(&path).unwrap();
        let aside = dir.path().join(format!("models.db.corrupt-{}", number + 1));
        assert_eq!(opened.damaged, Some(aside.clone()));
        assert_eq!(opened.catalog.list().unwrap(), []);
        opened.catalog.register(&model("hf:o/r", None, "/m/x.gguf")).unwrap();
        assert!(aside.exists());
    }
    assert_eq!(open(&path).list().unwrap().len(), 1);
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let (_dir, path) = fresh();
    open(&path).register(&model("hf:o/r", None, "/m/x.gguf")).unwrap();
    let set_version = |version: u32| {
        Connection::open(&path).unwrap().pragma_update(None, "user_version", version).unwrap();
    };
    let version = Connection::open(&path)
        .unwrap()
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .unwrap();
    set_version(99);
    let error = Catalog::open(&path).unwrap_err();
    assert!(matches!(error, CatalogError::NewerSchema), "{error:?}");
    assert!(error.to_string().contains("newer version"));
    set_version(version);
    assert_eq!(open(&path).list().unwrap().len(), 1);
}

#[test]
fn an_unreadable_row_is_told_by_its_name() {
    let (_dir, path) = fresh();
    let catalog = open(&path);
    catalog.register(&model("hf:o/r", None, "/m/x.gguf")).unwrap();
    catalog.lock().execute("UPDATE models SET header = '{}'", []).unwrap();
    let error = catalog.list().unwrap_err();
    assert!(matches!(error, CatalogError::BadRow { column: "header", .. }), "{error:?}");
}

#[test]
fn a_database_in_a_missing_directory_is_an_error() {
    let (dir, _path) = fresh();
    assert!(Catalog::open(&dir.path().join("none/models.db")).is_err());
}
