//! The files of certificates: what is made, what is kept, what is refused.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::Barrier;
use std::time::{Duration, SystemTime};

use rbee_tls::{Authority, HiveKey, OwnCertificate, TlsError, Trust};
use rcgen::KeyPair;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_ca_is_made_once_and_kept_private() {
    let dir = tempfile::tempdir().unwrap();
    let first = Authority::load_or_generate(dir.path()).unwrap();
    let again = Authority::load_or_generate(dir.path()).unwrap();
    assert_eq!(first.fingerprint(), again.fingerprint());
    assert_eq!(mode(&dir.path().join("ca.key")), 0o600);
    let told = format!("{first:?}");
    assert!(!told.contains("PRIVATE") && told.contains(&first.fingerprint().to_string()), "{told}");
}

#[test]
fn programs_that_start_at_once_end_with_one_ca() {
    for _ in 0..10 {
        let dir = tempfile::tempdir().unwrap();
        let start = Barrier::new(4);
        let found: Vec<_> = std::thread::scope(|scope| {
            let racer = || {
                start.wait();
                Authority::load_or_generate(dir.path()).unwrap().fingerprint()
            };
            let racers: Vec<_> = (0..4).map(|_| scope.spawn(racer)).collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        assert!(found.windows(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "a draft was left");
    }
}

#[test]
fn a_ca_whose_files_cannot_be_right_is_refused_and_left_as_it_is() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Authority::load_or_generate(ours.path()).unwrap();
    Authority::load_or_generate(theirs.path()).unwrap();
    let (key, certificate) = (ours.path().join("ca.key"), ours.path().join("ca.pem"));
    fs::copy(theirs.path().join("ca.pem"), &certificate).unwrap();
    let foreign = Authority::load_or_generate(ours.path()).unwrap_err();
    assert!(matches!(foreign, TlsError::ForeignCertificate { .. }), "{foreign}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let open = Authority::load_or_generate(ours.path()).unwrap_err().to_string();
    assert!(open.contains("chmod 600"), "{open}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&key, "no key\n").unwrap();
    let broken = Authority::load_or_generate(ours.path()).unwrap_err();
    assert!(matches!(broken, TlsError::NoKey { .. }), "{broken}");
    assert_eq!(fs::read_to_string(&key).unwrap(), "no key\n");
}

#[test]
fn a_lost_certificate_of_the_ca_is_written_again_and_what_it_signed_stays_good() {
    let dir = tempfile::tempdir().unwrap();
    let before = Authority::load_or_generate(dir.path()).unwrap();
    fs::remove_file(dir.path().join("ca.pem")).unwrap();
    let after = Authority::load_or_generate(dir.path()).unwrap();
    assert_ne!(before.fingerprint(), after.fingerprint(), "it is signed anew");
    assert!(after.pem().contains("BEGIN CERTIFICATE"));
}

#[test]
fn files_of_another_kind_are_named_in_the_error() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::load_or_generate(dir.path()).unwrap();
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let point = HiveKey::from_bytes(key.public_key_raw()).unwrap();
    let (pem, _) = authority.certify(&"attic".parse().unwrap(), &point).unwrap();
    let load = |pem: &str, key: &str| OwnCertificate::in_pem(pem, key, "the file").map(drop);
    assert!(load(&pem, &key.serialize_pem()).is_ok());
    for (pem, key, told) in [
        (pem.as_str(), other.serialize_pem(), "do not fit"),
        (pem.as_str(), "nothing".to_owned(), "no private key"),
        ("nothing", key.serialize_pem(), "no certificate"),
    ] {
        let error = load(pem, &key).unwrap_err().to_string();
        assert!(error.contains(told) && error.contains("the file"), "{error}");
    }
    let missing = Trust::in_files([dir.path().join("none.pem")]).unwrap();
    assert!(missing.is_empty());
    assert!(matches!(Trust::in_files([dir.path()]), Err(TlsError::Io { .. })));
}

#[test]
fn only_points_on_the_curve_that_is_used_are_signed_for() {
    let key = KeyPair::generate().unwrap();
    let raw = key.public_key_raw();
    let key = HiveKey::from_bytes(raw).unwrap();
    assert_eq!(key.to_string().parse(), Ok(key), "as it is sent");
    for bad in [&raw[1..], &[raw, &[0]].concat(), &[&[2], &raw[1..]].concat(), &[]] {
        assert!(HiveKey::from_bytes(bad).is_none(), "{} bytes", bad.len());
    }
}

#[test]
fn a_certificate_is_renewed_long_before_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Arc::new(Authority::load_or_generate(dir.path()).unwrap());
    let own = OwnCertificate::signed_by(authority, None, vec!["localhost".to_owned()]).unwrap();
    let day = Duration::from_secs(24 * 60 * 60);
    let now = SystemTime::now();
    assert!(!own.is_due(now + day));
    assert!(own.is_due(now + 11 * day));
    assert!(own.is_due(now - day), "a clock that was set back");
}
