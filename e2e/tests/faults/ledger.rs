//! The hive's ledger of workers as a stranger reads and damages it. Knows the columns
//! that say which process a row means; no other.

use std::path::Path;

use rusqlite::Connection;

/// What a row says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) pid: Option<u32>,
    pub(crate) is_stopping: bool,
}

pub(crate) fn open(home: &Path) -> Connection {
    let connection = Connection::open(home.join("workers.db")).expect("a ledger");
    connection.busy_timeout(std::time::Duration::from_secs(5)).expect("a timeout");
    connection
}

/// Returns the rows; none where there is no ledger yet.
pub(crate) fn rows(home: &Path) -> Vec<Row> {
    if !home.join("workers.db").exists() {
        return Vec::new();
    }
    let connection = open(home);
    // A hive that was killed on its first start has a file without a table.
    let sql = "SELECT COUNT(*) FROM sqlite_schema WHERE name = 'worker'";
    if connection.query_row(sql, [], |row| row.get(0)) == Ok(0) {
        return Vec::new();
    }
    let columns = connection.prepare("SELECT id, pid, is_stopping FROM worker");
    let mut statement = columns.expect("the columns this file knows");
    let row = |row: &rusqlite::Row<'_>| {
        Ok(Row { id: row.get(0)?, pid: row.get(1)?, is_stopping: row.get(2)? })
    };
    statement.query_map([], row).expect("rows").map(|row| row.expect("a row")).collect()
}
