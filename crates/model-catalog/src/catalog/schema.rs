//! The schema of the catalog's database; knows no query.

use rusqlite_migration::{M, Migrations};

/// Steps of the schema, one for each released version of it. A step is never changed once released.
const STEPS: &[M<'_>] = &[
    M::up(
        "CREATE TABLE models (
         reference   TEXT PRIMARY KEY,
         alias       TEXT UNIQUE,
         path        TEXT NOT NULL UNIQUE,
         size_bytes  INTEGER NOT NULL CHECK (size_bytes >= 0),
         sha256      TEXT NOT NULL CHECK (length(sha256) = 64),
         header      TEXT NOT NULL CHECK (json_valid(header)),
         added_at_ms INTEGER NOT NULL
     ) STRICT",
    ),
    // Files that are on their way in or out: without a model they are nobody's.
    M::up("CREATE TABLE moving (path TEXT PRIMARY KEY NOT NULL) STRICT"),
];

pub(super) const SCHEMA: Migrations<'_> = Migrations::from_slice(STEPS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_is_well_formed() {
        SCHEMA.validate().unwrap();
    }
}
