//! The table of models. Owns the SQL and nothing else does; never touches a model file.

mod schema;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use input_validation::{ModelAlias, ModelRef, Provider};
use rbee_sqlite::Opened;
use rusqlite::{Connection, OptionalExtension as _, Row, TransactionBehavior, params};

use crate::{CatalogError, Model};

use schema::SCHEMA;

/// Columns in the order in which [`read_model`] reads them.
const COLUMNS: &str = "reference, alias, path, size_bytes, sha256, header, added_at_ms";

/// Holds the catalog's database. Safe to share between threads, and the database between processes.
#[derive(Debug)]
pub struct Catalog {
    connection: Mutex<Connection>,
}

/// Holds a catalog just opened, and what became of a damaged one.
#[derive(Debug)]
pub struct OpenedCatalog {
    /// The catalog, empty if its predecessor was damaged.
    pub catalog: Catalog,
    /// Where the damaged predecessor lies now; the caller rebuilds the catalog from the model directory.
    pub damaged: Option<PathBuf>,
}

impl Catalog {
    /// Opens the database at `path`, creating it if need be.
    ///
    /// A damaged database is moved aside, to the same name with `.corrupt-<n>`, and an empty one takes its place.
    ///
    /// # Errors
    /// [`CatalogError::NewerSchema`] when a newer program wrote it, which leaves it untouched, and errors of SQLite and
    /// the operating system.
    pub fn open(path: &Path) -> Result<OpenedCatalog, CatalogError> {
        let Opened { connection, damaged } = rbee_sqlite::open(path, &SCHEMA)?;
        Ok(OpenedCatalog { catalog: Self { connection: Mutex::new(connection) }, damaged })
    }

    /// Writes a model, replacing what stood under the same reference. Without an alias an earlier one is kept.
    ///
    /// # Errors
    /// [`CatalogError::AliasTaken`], [`CatalogError::FileTaken`], [`CatalogError::NotAPlace`],
    /// [`CatalogError::PathNotUtf8`], and errors of SQLite; then nothing has changed.
    pub fn register(&self, model: &Model) -> Result<(), CatalogError> {
        if model.provider() == Provider::Alias {
            return Err(CatalogError::NotAPlace { reference: model.reference.clone() });
        }
        let path = model.path.to_str().ok_or(CatalogError::PathNotUtf8)?;
        let header = serde_json::to_string(&model.header)
            .map_err(|source| bad_row(model.reference.as_str(), "header", source))?;
        let size = i64::try_from(model.size_bytes)
            .map_err(|source| bad_row(model.reference.as_str(), "size_bytes", source))?;
        let reference = model.reference.as_str();
        let alias = model.alias.as_ref().map(ModelAlias::as_str);
        let mut connection = self.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if let Some(alias) = &model.alias
            && let Some(other) = other_owner(&transaction, "alias", alias.as_str(), reference)?
        {
            return Err(CatalogError::AliasTaken { alias: alias.clone(), reference: other });
        }
        if let Some(other) = other_owner(&transaction, "path", path, reference)? {
            return Err(CatalogError::FileTaken { reference: other });
        }
        transaction.execute(
            "INSERT OR IGNORE INTO moving SELECT path FROM models WHERE reference = ?1 AND path <> ?2",
            [reference, path],
        )?;
        transaction.execute("DELETE FROM moving WHERE path = ?1", [path])?;
        transaction.execute(
            "INSERT INTO models (reference, alias, path, size_bytes, sha256, header, added_at_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (reference) DO UPDATE SET
                 alias = COALESCE(excluded.alias, alias), path = excluded.path, size_bytes = excluded.size_bytes,
                 sha256 = excluded.sha256, header = excluded.header, added_at_ms = excluded.added_at_ms",
            params![reference, alias, path, size, model.sha256.as_str(), header, model.added_at_ms],
        )?;
        transaction.commit()?;
        Ok(())
    }

    /// Returns all models, in the order of their references.
    ///
    /// # Errors
    /// Errors of SQLite, and [`CatalogError::BadRow`].
    pub fn list(&self) -> Result<Vec<Model>, CatalogError> {
        let connection = self.lock();
        let mut statement = connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM models ORDER BY reference"))?;
        let mut rows = statement.query([])?;
        let mut models = Vec::new();
        while let Some(row) = rows.next()? {
            models.push(read_model(row)?);
        }
        Ok(models)
    }

    /// Returns the model that a reference or an alias names.
    ///
    /// # Errors
    /// Errors of SQLite, and [`CatalogError::BadRow`].
    pub fn get(&self, reference: &ModelRef) -> Result<Option<Model>, CatalogError> {
        let column = key_column(reference);
        one(&self.lock(), &format!("SELECT {COLUMNS} FROM models WHERE {column} = ?1"), reference)
    }

    /// Removes the model that a reference or an alias names, and returns what was removed. Its file stays, on its way
    /// out.
    ///
    /// # Errors
    /// Errors of SQLite, and [`CatalogError::BadRow`].
    pub(crate) fn remove(&self, reference: &ModelRef) -> Result<Option<Model>, CatalogError> {
        let column = key_column(reference);
        let mut connection = self.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute(
            &format!("INSERT OR IGNORE INTO moving SELECT path FROM models WHERE {column} = ?1"),
            [reference.as_str()],
        )?;
        let sql = format!("DELETE FROM models WHERE {column} = ?1 RETURNING {COLUMNS}");
        let model = one(&transaction, &sql, reference)?;
        transaction.commit()?;
        Ok(model)
    }

    /// Writes down that a file is about to be put into the directory, so that it is removed if nothing comes of it.
    ///
    /// # Errors
    /// [`CatalogError::PathNotUtf8`], and errors of SQLite.
    pub(crate) fn moving(&self, path: &Path) -> Result<(), CatalogError> {
        let path = path.to_str().ok_or(CatalogError::PathNotUtf8)?;
        self.lock().execute("INSERT OR IGNORE INTO moving VALUES (?1)", [path])?;
        Ok(())
    }

    /// Strikes out a file that was on its way and is gone.
    ///
    /// # Errors
    /// [`CatalogError::PathNotUtf8`], and errors of SQLite.
    pub(crate) fn moved(&self, path: &Path) -> Result<(), CatalogError> {
        let path = path.to_str().ok_or(CatalogError::PathNotUtf8)?;
        self.lock().execute("DELETE FROM moving WHERE path = ?1", [path])?;
        Ok(())
    }

    /// Returns the files that were on their way when a process ended, and that no model has.
    ///
    /// # Errors
    /// Errors of SQLite.
    pub(crate) fn stranded(&self) -> Result<Vec<PathBuf>, CatalogError> {
        let connection = self.lock();
        let sql = "SELECT path FROM moving WHERE path NOT IN (SELECT path FROM models)";
        let mut statement = connection.prepare(sql)?;
        let paths = statement.query_map([], |row| row.get::<_, String>(0))?;
        Ok(paths.map(|path| path.map(PathBuf::from)).collect::<Result<_, _>>()?)
    }

    /// Says which other model has the alias.
    pub(crate) fn alias_owner(
        &self,
        alias: &ModelAlias,
        reference: &ModelRef,
    ) -> Result<Option<ModelRef>, CatalogError> {
        other_owner(&self.lock(), "alias", alias.as_str(), reference.as_str())
    }

    /// Says which other model has the file.
    pub(crate) fn file_owner(
        &self,
        path: &Path,
        reference: &ModelRef,
    ) -> Result<Option<ModelRef>, CatalogError> {
        let path = path.to_str().ok_or(CatalogError::PathNotUtf8)?;
        other_owner(&self.lock(), "path", path, reference.as_str())
    }

    /// A thread that panicked has left its transaction rolled back, so the connection stays usable.
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn one(
    connection: &Connection,
    sql: &str,
    reference: &ModelRef,
) -> Result<Option<Model>, CatalogError> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([reference.as_str()])?;
    let model = rows.next()?.map(read_model).transpose()?;
    // A DELETE takes effect only when it has been stepped to its end.
    while rows.next()?.is_some() {}
    Ok(model)
}

fn key_column(reference: &ModelRef) -> &'static str {
    match reference.provider() {
        Provider::Alias => "alias",
        Provider::Hf | Provider::Https | Provider::File => "reference",
    }
}

/// Finds the model, other than `reference`, in which `column` has `value`.
fn other_owner(
    connection: &Connection,
    column: &'static str,
    value: &str,
    reference: &str,
) -> Result<Option<ModelRef>, CatalogError> {
    let sql = format!("SELECT reference FROM models WHERE {column} = ?1 AND reference <> ?2");
    let owner: Option<String> = connection
        .prepare_cached(&sql)?
        .query_row([value, reference], |row| row.get(0))
        .optional()?;
    owner
        .map(|owner| owner.parse().map_err(|source| bad_row(&owner, "reference", source)))
        .transpose()
}

fn read_model(row: &Row<'_>) -> Result<Model, CatalogError> {
    let reference: String = row.get(0)?;
    let alias: Option<String> = row.get(1)?;
    let path: String = row.get(2)?;
    let size_bytes: i64 = row.get(3)?;
    let sha256: String = row.get(4)?;
    let header: String = row.get(5)?;
    Ok(Model {
        alias: alias
            .map(|alias| alias.parse::<ModelAlias>())
            .transpose()
            .map_err(|source| bad_row(&reference, "alias", source))?,
        path: PathBuf::from(path),
        size_bytes: u64::try_from(size_bytes)
            .map_err(|source| bad_row(&reference, "size_bytes", source))?,
        sha256: sha256.parse().map_err(|source| bad_row(&reference, "sha256", source))?,
        header: serde_json::from_str(&header)
            .map_err(|source| bad_row(&reference, "header", source))?,
        added_at_ms: row.get(6)?,
        reference: reference.parse().map_err(|source| bad_row(&reference, "reference", source))?,
    })
}

fn bad_row(
    reference: &str,
    column: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> CatalogError {
    CatalogError::BadRow { reference: reference.to_owned(), column, source: source.into() }
}

#[cfg(test)]
mod tests;
