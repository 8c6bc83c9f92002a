//! The directory against what can lie in it: states of others, leftovers of
//! writers that were killed, links, garbage; and the bound on its bytes.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const SCOPE: Scope = Scope([0; 32]);
const MIB: u64 = 1 << 20;

fn directory(root: &TempDir, model: u8, bytes_max: u64) -> Directory {
    Directory::new(root.path().join("cache"), Fingerprint([model; 32]), bytes_max)
}

/// A state of `bytes` for a conversation by number.
fn write_of(number: u32, bytes: usize, replaces: Vec<KeptId>) -> Write {
    let tokens = vec![number; 40];
    let id = KeptId::of(SCOPE, &tokens);
    Write { id, scope: SCOPE, tokens, state: Arc::new(vec![7; bytes]), replaces }
}

fn write(directory: &Directory, number: u32, bytes: usize) -> KeptId {
    let write = write_of(number, bytes, Vec::new());
    let written = directory.write(&write).unwrap();
    assert!(matches!(written, Writing::Done(_)), "{written:?}");
    write.id
}

fn listed(directory: &Directory) -> Vec<KeptId> {
    let mut ids = Vec::new();
    directory.list(|kept| ids.push(kept.id));
    ids.sort_unstable_by_key(|id| id.0);
    ids
}

/// Bytes of everything below a folder.
fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let bytes = entries.flatten().map(|entry| match fs::symlink_metadata(entry.path()) {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    bytes.sum()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_state_is_there_for_the_next_process_and_for_nobody_else() {
    let root = tempfile::tempdir().unwrap();
    let ours = directory(&root, 1, MIB);
    assert_eq!(ours.open().unwrap(), Change::default());
    let id = write(&ours, 5, 100);
    let next = directory(&root, 1, MIB);
    next.open().unwrap();
    assert_eq!(listed(&next), [id]);
    assert_eq!(next.read(id).unwrap(), [7; 100]);
    let other = directory(&root, 2, MIB);
    assert_eq!(listed(&other), []);
    assert!(matches!(other.read(id), Err(ReadError::Gone)));
    assert_eq!((mode(&ours.root), mode(&ours.own)), (0o700, 0o700));
    assert_eq!(mode(&ours.path(id, ENDING)), 0o600);
}

#[test]
fn what_was_used_longest_ago_goes_first_whoevers_it_is() {
    let root = tempfile::tempdir().unwrap();
    let (first, second) = (directory(&root, 1, 3500), directory(&root, 2, 3500));
    let old = write(&first, 1, 1000);
    let used = write(&first, 2, 1000);
    let others = write(&second, 3, 500);
    let ages = [(&first, old, 300), (&first, used, 200), (&second, others, 100)];
    for (directory, id, age) in ages {
        let file = File::options().append(true).open(directory.path(id, ENDING)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    }
    first.read(old).unwrap();
    let newest = write(&second, 4, 1000);
    assert_eq!((listed(&first), listed(&second).len()), (vec![old], 2));
    assert!(matches!(first.read(used), Err(ReadError::Gone)));
    let huge = second.write(&write_of(9, 4000, Vec::new())).unwrap();
    assert_eq!(huge, Writing::TooBig, "nothing goes for what never fits");
    assert!(second.read(newest).is_ok());
    // A smaller bound holds from the start on.
    let smaller = directory(&root, 2, 2600);
    assert_eq!(smaller.open().unwrap().gone, [others]);
}

#[test]
fn a_continuation_takes_the_place_of_what_it_continues() {
    let root = tempfile::tempdir().unwrap();
    let directory = directory(&root, 1, MIB);
    let (replaced, other) = (write(&directory, 1, 100), write(&directory, 2, 100));
    let next = write_of(3, 100, vec![replaced]);
    let Writing::Done(change) = directory.write(&next).unwrap() else { panic!("it fits") };
    assert_eq!(change.gone, [replaced]);
    assert_eq!(change.bytes, bytes_below(&directory.root));
    assert_eq!(listed(&directory).len(), 2);
    assert!(directory.read(other).is_ok());
}

#[test]
fn what_is_not_ours_is_neither_used_nor_touched() {
    let root = tempfile::tempdir().unwrap();
    let ours = directory(&root, 1, MIB);
    let id = write(&ours, 1, 100);
    let outside = root.path().join("outside");
    fs::rename(ours.path(id, ENDING), &outside).unwrap();
    // The name of a state, but a link to it.
    symlink(&outside, ours.path(id, ENDING)).unwrap();
    let strangers = [ours.own.join("notes.txt"), ours.own.join("abc.kv"), ours.root.join("x")];
    strangers.iter().for_each(|path| fs::write(path, "not ours").unwrap());
    assert_eq!(listed(&ours), []);
    assert!(ours.read(id).is_err());
    // A link in place of another model's folder, with a state in it.
    let linked = directory(&root, 2, MIB);
    let target = root.path().join("target");
    fs::create_dir(&target).unwrap();
    fs::copy(&outside, target.join(format!("{}.kv", Sha256Hex::from_bytes(&id.0)))).unwrap();
    symlink(&target, &linked.own).unwrap();
    assert_eq!(listed(&linked), []);
    assert!(linked.read(id).is_err());
    assert!(linked.write(&write_of(5, 10, Vec::new())).is_err());
    // All goes that is ours, and the bound does not look at the rest.
    let Writing::Done(change) = ours.write(&write_of(2, 100, Vec::new())).unwrap() else {
        panic!("it fits");
    };
    assert_eq!(change.bytes, format::file_bytes(40, 100));
    assert!(outside.exists() && target.read_dir().unwrap().count() == 1);
    assert!(strangers.iter().all(|path| path.exists()));
}

#[test]
fn a_file_under_another_name_or_cut_or_changed_is_removed_and_never_used() {
    let root = tempfile::tempdir().unwrap();
    let directory = directory(&root, 1, MIB);
    let id = write(&directory, 1, 50);
    let path = directory.path(id, ENDING);
    let whole = fs::read(&path).unwrap();
    let other = write_of(2, 50, Vec::new()).id;
    fs::write(directory.path(other, ENDING), &whole).unwrap();
    assert_eq!(listed(&directory), [id]);
    assert!(!directory.path(other, ENDING).exists());
    fs::write(directory.path(other, ENDING), &whole).unwrap();
    assert!(matches!(directory.read(other), Err(ReadError::Spoilt)));
    for offset in 0..whole.len() {
        let mut changed = whole.clone();
        changed[offset] ^= 1;
        for content in [&changed, &whole[..offset]] {
            fs::write(&path, content).unwrap();
            let read = directory.read(id);
            assert!(matches!(read, Err(ReadError::Spoilt)), "{offset}: {read:?}");
            assert!(!path.exists(), "{offset}");
        }
    }
}

#[test]
fn what_a_killed_writer_left_is_cleared_away() {
    let root = tempfile::tempdir().unwrap();
    let directory = directory(&root, 1, MIB);
    let id = write(&directory, 1, 50);
    let left = directory.path(id, UNFINISHED);
    fs::write(&left, vec![1; 5000]).unwrap();
    let change = directory.open().unwrap();
    assert!(!left.exists() && change.bytes == format::file_bytes(40, 50));
    fs::write(directory.path(write_of(2, 1, Vec::new()).id, UNFINISHED), b"half").unwrap();
    write(&directory, 2, 1);
    assert_eq!(listed(&directory).len(), 2);
}

#[test]
fn a_directory_that_others_can_write_to_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let directory = directory(&root, 1, MIB);
    fs::create_dir(&directory.root).unwrap();
    fs::set_permissions(&directory.root, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(directory.open(), Err(DirectoryError::Unusable(_))));
    assert!(directory.write(&write_of(1, 1, Vec::new())).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn the_bound_holds_whatever_is_written_by_whom(
        writes in proptest::collection::vec((0..2_u8, 0..12_u32, 1..900_usize), 1..40),
        bytes_max in 1000..5000_u64,
    ) {
        let root = tempfile::tempdir().unwrap();
        for (model, number, bytes) in writes {
            let directory = directory(&root, model, bytes_max);
            let write = write_of(number, bytes, Vec::new());
            let done = directory.write(&write).unwrap();
            prop_assert!(bytes_below(&directory.root) <= bytes_max);
            if let Writing::Done(change) = done {
                prop_assert_eq!(change.bytes, bytes_below(&directory.root));
                prop_assert!(directory.read(write.id).is_ok());
            }
        }
    }
}
