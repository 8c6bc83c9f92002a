//! Opens the database files of rbee's programs. Owns their settings, the way to a newer schema, and what happens to a
//! damaged file; knows no table and no query, and never deletes anything.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, MAIN_DB};
use rusqlite_migration::{MigrationDefinitionError, Migrations};

/// How long a call waits for another process's transaction: many times what ours take.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Says why a database cannot be opened. Shows no path, because the errors of some callers reach HTTP bodies.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// A newer program wrote it; it was left as it is.
    #[error("the database was written by a newer version of rbee")]
    Newer,
    /// It is damaged, and the file that should take its place is too.
    #[error("the database is damaged: {detail}")]
    Damaged {
        /// What SQLite found.
        detail: String,
    },
    /// It could be opened for reading alone.
    #[error("the database cannot be opened for writing")]
    ReadOnly,
    /// The damaged file cannot be moved away.
    #[error("cannot move the damaged database aside")]
    Stuck(#[source] io::Error),
    /// SQLite failed.
    #[error("the database cannot be used")]
    Sql(#[from] rusqlite::Error),
    /// The schema cannot be brought up to date.
    #[error("the database's schema cannot be brought up to date")]
    Migration(#[source] rusqlite_migration::Error),
}

/// Holds a database just opened, and what became of a damaged one.
#[derive(Debug)]
pub struct Opened {
    /// The connection; to an empty database if its predecessor was damaged.
    pub connection: Connection,
    /// Where the damaged predecessor lies now.
    pub damaged: Option<PathBuf>,
}

/// Opens the database at `path` and brings it to `schema`, creating it if need be. What a call has acknowledged
/// survives a power cut. A damaged file is moved to the same name with `.corrupt-<n>`, and an empty one takes its
/// place. Blocks.
///
/// # Errors
/// [`DatabaseError`].
pub fn open(path: &Path, schema: &Migrations<'_>) -> Result<Opened, DatabaseError> {
    match connect(path, schema) {
        Ok(connection) => Ok(Opened { connection, damaged: None }),
        Err(error) if is_damage(&error) => {
            let aside = set_aside(path).map_err(DatabaseError::Stuck)?;
            Ok(Opened { connection: connect(path, schema)?, damaged: Some(aside) })
        }
        Err(error) => Err(error),
    }
}

fn connect(path: &Path, schema: &Migrations<'_>) -> Result<Connection, DatabaseError> {
    let mut connection = Connection::open(path)?;
    // What SQLite cannot open for writing, such as for want of descriptors at that moment, it opens for reading alone
    // and says nothing.
    if connection.is_readonly(MAIN_DB)? {
        return Err(DatabaseError::ReadOnly);
    }
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // Opening is lazy, so damage shows only when something is read.
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(DatabaseError::Damaged { detail: verdict });
    }
    schema.to_latest(&mut connection).map_err(|error| match error {
        rusqlite_migration::Error::MigrationDefinition(
            MigrationDefinitionError::DatabaseTooFarAhead,
        ) => DatabaseError::Newer,
        rusqlite_migration::Error::RusqliteError { err, .. } => DatabaseError::Sql(err),
        source => DatabaseError::Migration(source),
    })?;
    Ok(connection)
}

fn is_damage(error: &DatabaseError) -> bool {
    match error {
        DatabaseError::Damaged { .. } => true,
        DatabaseError::Sql(error) => matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
        ),
        DatabaseError::Newer
        | DatabaseError::ReadOnly
        | DatabaseError::Stuck(_)
        | DatabaseError::Migration(_) => false,
    }
}

/// Moves the database and its two companions to the first free `.corrupt-<n>`. The companions go first: without them
/// the file alone would pass for whole.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let mut number = 1_u32;
    let aside = loop {
        let candidate = with_suffix(path, &format!(".corrupt-{number}"));
        if !candidate.try_exists()? {
            break candidate;
        }
        number += 1;
    };
    for suffix in ["-wal", "-shm", ""] {
        match fs::rename(with_suffix(path, suffix), with_suffix(&aside, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(aside)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use rusqlite_migration::M;

    use super::*;

    const STEPS: &[M<'static>] = &[M::up("CREATE TABLE thing (name TEXT NOT NULL) STRICT")];
    const SCHEMA: Migrations<'static> = Migrations::from_slice(STEPS);

    fn things(connection: &Connection) -> u32 {
        connection.query_row("SELECT COUNT(*) FROM thing", [], |row| row.get(0)).unwrap()
    }

    fn database() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("some.db");
        let opened = open(&path, &SCHEMA).unwrap();
        opened.connection.execute("INSERT INTO thing VALUES ('x')", []).unwrap();
        (directory, path)
    }

    #[test]
    fn what_was_written_is_there_again() {
        let (_directory, path) = database();
        let again = open(&path, &SCHEMA).unwrap();
        assert_eq!((things(&again.connection), again.damaged), (1, None));
    }

    #[test]
    fn every_damage_moves_the_file_aside_whole_and_an_empty_one_takes_its_place() {
        let mut torn = {
            let (_directory, path) = database();
            fs::read(&path).unwrap()
        };
        torn.truncate(torn.len() - 4096);
        for damage in [b"not a database at all, but long enough".to_vec(), vec![0xff; 4096], torn] {
            let (directory, path) = database();
            for number in 1..=2 {
                fs::write(&path, &damage).unwrap();
                let opened = open(&path, &SCHEMA).unwrap();
                let aside = directory.path().join(format!("some.db.corrupt-{number}"));
                assert_eq!(opened.damaged.as_ref(), Some(&aside));
                assert_eq!(fs::read(&aside).unwrap(), damage);
                assert_eq!(things(&opened.connection), 0);
            }
        }
    }

    #[test]
    fn the_database_of_a_newer_program_is_refused_and_left_alone() {
        let (_directory, path) = database();
        open(&path, &SCHEMA).unwrap().connection.pragma_update(None, "user_version", 9).unwrap();
        assert!(matches!(open(&path, &SCHEMA), Err(DatabaseError::Newer)));
        let version: u32 = Connection::open(&path)
            .unwrap()
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .unwrap();
        assert_eq!(version, 9);
    }

    #[test]
    fn a_database_that_can_be_read_alone_is_an_error() {
        let (_directory, path) = database();
        let only_to_read = format!("file:{}?mode=ro", path.display());
        assert!(matches!(open(Path::new(&only_to_read), &SCHEMA), Err(DatabaseError::ReadOnly)));
    }

    #[test]
    fn a_directory_in_the_way_is_an_error_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("some.db");
        fs::create_dir(&path).unwrap();
        assert!(matches!(open(&path, &SCHEMA), Err(DatabaseError::Sql(_))));
        assert!(path.is_dir());
    }
}
