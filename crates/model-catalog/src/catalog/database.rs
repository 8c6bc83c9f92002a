//! The database file. Owns its settings, its schema, and what happens to a damaged one; knows no query.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};
use rusqlite_migration::{M, MigrationDefinitionError, Migrations};

use crate::CatalogError;

/// How long a call waits for another process's transaction: many times what ours take.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Steps of the schema, one for each released version of it. A step is never changed once released.
const STEPS: &[M<'_>] = &[M::up(
    "CREATE TABLE models (
         reference   TEXT PRIMARY KEY,
         alias       TEXT UNIQUE,
         path        TEXT NOT NULL UNIQUE,
         size_bytes  INTEGER NOT NULL CHECK (size_bytes >= 0),
         sha256      TEXT NOT NULL CHECK (length(sha256) = 64),
         header      TEXT NOT NULL CHECK (json_valid(header)),
         added_at_ms INTEGER NOT NULL
     ) STRICT",
)];

const SCHEMA: Migrations<'_> = Migrations::from_slice(STEPS);

/// Opens the database; a damaged one is replaced by an empty one, and its new place is returned as well.
pub(super) fn open_or_replace(path: &Path) -> Result<(Connection, Option<PathBuf>), CatalogError> {
    match open(path) {
        Ok(connection) => Ok((connection, None)),
        Err(error) if is_damage(&error) => {
            let aside = set_aside(path).map_err(|source| CatalogError::SetAside { source })?;
            Ok((open(path)?, Some(aside)))
        }
        Err(error) => Err(error),
    }
}

fn open(path: &Path) -> Result<Connection, CatalogError> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // An acknowledged registration survives a power cut.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(CatalogError::Corrupt { detail: verdict });
    }
    SCHEMA.to_latest(&mut connection).map_err(migration_error)?;
    Ok(connection)
}

fn migration_error(error: rusqlite_migration::Error) -> CatalogError {
    match error {
        rusqlite_migration::Error::MigrationDefinition(
            MigrationDefinitionError::DatabaseTooFarAhead,
        ) => CatalogError::NewerSchema,
        rusqlite_migration::Error::RusqliteError { err, .. } => CatalogError::Sql(err),
        source => CatalogError::Migration { source },
    }
}

fn is_damage(error: &CatalogError) -> bool {
    match error {
        CatalogError::Corrupt { .. } => true,
        CatalogError::Sql(error) => {
            matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
            )
        }
        _ => false,
    }
}

/// Moves the database and its two companions to the first free `.corrupt-<n>`.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let mut number = 1_u32;
    let aside = loop {
        let candidate = with_suffix(path, &format!(".corrupt-{number}"));
        if !candidate.try_exists()? {
            break candidate;
        }
        number += 1;
    };
    fs::rename(path, &aside)?;
    for companion in ["-wal", "-shm"] {
        match fs::rename(with_suffix(path, companion), with_suffix(&aside, companion)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
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
    use super::*;

    #[test]
    fn the_schema_is_well_formed() {
        SCHEMA.validate().unwrap();
    }
}
