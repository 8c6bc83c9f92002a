//! `beehives.db`: the machines of the cluster, the only state of the queen that
//! outlives it. Owns its schema and its recovery; never holds what a machine
//! reports, and keeps no connection open: machines change rarely.
//!
//! Calls block; they belong on a blocking thread.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use input_validation::NodeName;
use rbee_sqlite::{DatabaseError, Opened};
use rbee_tls::CertificateFingerprint;
use rusqlite::{Connection, OptionalExtension as _};
use rusqlite_migration::{M, Migrations};

/// The name of the machine the queen runs on.
const LOCAL: &str = "local";

/// One step a schema version; a step that was released is never changed.
const STEPS: &[M<'static>] = &[
    M::up(
        "CREATE TABLE hive (
        name TEXT PRIMARY KEY NOT NULL,
        url TEXT,
        created_at_ms INTEGER NOT NULL
    ) STRICT;",
    ),
    M::up(
        "CREATE TABLE pairing (
        name TEXT PRIMARY KEY NOT NULL REFERENCES hive (name) ON DELETE CASCADE,
        certificate BLOB NOT NULL
    ) STRICT;",
    ),
];
const SCHEMA: Migrations<'static> = Migrations::from_slice(STEPS);

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hive {
    pub(crate) name: NodeName,
    /// Its address; the local machine has none here, since its run file tells it.
    pub(crate) url: Option<String>,
    /// The certificate of its hive, where that was paired.
    pub(crate) certificate: Option<CertificateFingerprint>,
}

/// The machines that are known, this one apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hives {
    pub(crate) local: NodeName,
    pub(crate) remote: Vec<Hive>,
}

/// Says why the machines cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {}", path.display())]
pub struct HivesError {
    /// The database.
    pub path: PathBuf,
    /// Why not.
    pub source: DatabaseError,
}

/// Reads the machines from the database at `path`; creates what is missing, the
/// local machine's row included. A damaged database is moved aside, with a
/// warning, and a fresh one takes its place.
///
/// # Errors
/// [`HivesError`].
pub(crate) fn load(path: &Path) -> Result<Hives, HivesError> {
    read(path).map_err(|source| HivesError { path: path.to_owned(), source })
}

/// Writes down a machine that was paired, in the place of one of the same name.
///
/// # Errors
/// [`HivesError`].
pub(crate) fn add_paired(
    path: &Path,
    name: &NodeName,
    url: &str,
    certificate: &CertificateFingerprint,
) -> Result<(), HivesError> {
    let write = || {
        let mut connection = rbee_sqlite::open(path, &SCHEMA)?.connection;
        let change = connection.transaction()?;
        change.execute(
            "INSERT INTO hive (name, url, created_at_ms) VALUES (?1, ?2, ?3)
             ON CONFLICT (name) DO UPDATE SET url = ?2",
            (name.as_str(), url, now_ms()),
        )?;
        change.execute(
            "INSERT INTO pairing (name, certificate) VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE SET certificate = ?2",
            (name.as_str(), certificate.as_bytes()),
        )?;
        Ok(change.commit()?)
    };
    write().map_err(|source| HivesError { path: path.to_owned(), source })
}

/// Removes a machine that was paired, and says whether there was one; another stays.
///
/// # Errors
/// [`HivesError`].
pub(crate) fn remove_paired(path: &Path, name: &NodeName) -> Result<bool, HivesError> {
    let write = || {
        let mut connection = rbee_sqlite::open(path, &SCHEMA)?.connection;
        let change = connection.transaction()?;
        let removed = change.execute("DELETE FROM pairing WHERE name = ?1", [name.as_str()])?;
        if removed > 0 {
            change.execute("DELETE FROM hive WHERE name = ?1", [name.as_str()])?;
        }
        change.commit()?;
        Ok(removed > 0)
    };
    write().map_err(|source| HivesError { path: path.to_owned(), source })
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    i64::try_from(now).unwrap_or(i64::MAX)
}

fn read(path: &Path) -> Result<Hives, DatabaseError> {
    let Opened { connection, damaged } = rbee_sqlite::open(path, &SCHEMA)?;
    if let Some(aside) = damaged {
        tracing::warn!(
            database = %path.display(), moved_to = %aside.display(),
            "the database of machines is damaged; starting with a fresh one"
        );
    }
    Ok(rows(&connection)?)
}

fn rows(connection: &Connection) -> Result<Hives, rusqlite::Error> {
    connection.execute(
        "INSERT INTO hive (name, url, created_at_ms) VALUES (?1, NULL, ?2) ON CONFLICT DO NOTHING",
        (LOCAL, now_ms()),
    )?;
    let local = connection
        .query_row("SELECT name FROM hive WHERE name = ?1", [LOCAL], |row| name(row, 0))
        .optional()?
        .ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    let mut remote = connection.prepare(
        "SELECT hive.name, url, certificate FROM hive LEFT JOIN pairing USING (name) WHERE name <> ?1 ORDER BY name",
    )?;
    let certificate = |row: &rusqlite::Row<'_>| {
        let bytes: Option<[u8; 32]> = row.get(2)?;
        Ok::<_, rusqlite::Error>(bytes.map(CertificateFingerprint::from_bytes))
    };
    let remote = remote
        .query_map([LOCAL], |row| {
            Ok(Hive { name: name(row, 0)?, url: row.get(1)?, certificate: certificate(row)? })
        })?
        .collect::<Result<_, _>>()?;
    Ok(Hives { local, remote })
}

fn name(row: &rusqlite::Row<'_>, index: usize) -> Result<NodeName, rusqlite::Error> {
    row.get::<_, String>(index)?.parse().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(
            index,
            rusqlite::types::Type::Text,
            Box::<input_validation::ValidationError>::new(error),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("beehives.db");
        (directory, path)
    }

    #[test]
    fn migrations_can_be_applied() {
        SCHEMA.validate().unwrap();
    }

    #[test]
    fn a_fresh_database_holds_the_local_machine_and_keeps_others() {
        let (_directory, path) = database();
        let fresh = load(&path).unwrap();
        assert_eq!(fresh, Hives { local: "local".parse().unwrap(), remote: Vec::new() });
        Connection::open(&path)
            .unwrap()
            .execute("INSERT INTO hive VALUES ('attic', 'http://10.0.0.7:9200', 1)", [])
            .unwrap();
        let again = load(&path).unwrap();
        let attic = Hive {
            name: "attic".parse().unwrap(),
            url: Some("http://10.0.0.7:9200".to_owned()),
            certificate: None,
        };
        assert_eq!(again, Hives { local: fresh.local, remote: vec![attic] });
    }

    #[test]
    fn a_paired_machine_is_kept_with_its_certificate_until_it_is_forgotten() {
        let (_directory, path) = database();
        let local = load(&path).unwrap().local;
        let attic: NodeName = "attic".parse().unwrap();
        for byte in [7, 8] {
            let certificate = CertificateFingerprint::from_bytes([byte; 32]);
            add_paired(&path, &attic, "https://10.0.0.7:9200", &certificate).unwrap();
            let found = load(&path).unwrap().remote;
            let url = Some("https://10.0.0.7:9200".to_owned());
            assert_eq!(found, [Hive { name: attic.clone(), url, certificate: Some(certificate) }]);
        }
        assert!(remove_paired(&path, &attic).unwrap());
        assert!(!remove_paired(&path, &local).unwrap());
        assert_eq!(load(&path).unwrap(), Hives { local, remote: Vec::new() });
    }

    #[test]
    fn a_damaged_database_is_replaced_and_a_newer_one_refused() {
        let (_directory, path) = database();
        std::fs::write(&path, b"not a database at all, but long enough").unwrap();
        assert_eq!(load(&path).unwrap().local.as_str(), "local");
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(load(&path).unwrap_err().source, DatabaseError::Newer));
    }
}
