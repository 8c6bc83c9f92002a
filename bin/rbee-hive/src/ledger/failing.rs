//! The models whose workers have failed, and what is planned for them, for a hive that takes over from one that was
//! killed. What the past means, `restart.rs` knows; here it is text.

use rbee_sqlite::DatabaseError;
use rusqlite::Error::ToSqlConversionFailure;

use super::Ledger;
use crate::registry::KeptPast;

impl Ledger {
    /// Reads what was written down last. What cannot be read is left out. Blocks.
    pub(crate) fn failing(&self) -> Result<Vec<KeptPast>, DatabaseError> {
        let connection = self.lock();
        let mut statement = connection.prepare("SELECT past FROM failing ORDER BY model_ref")?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        let mut pasts = Vec::new();
        for text in rows {
            match serde_json::from_str(&text?) {
                Ok(past) => pasts.push(past),
                Err(error) => {
                    tracing::warn!(%error, "failures of a model cannot be read and are forgotten")
                }
            }
        }
        Ok(pasts)
    }

    /// Writes down the past of all models that have one, in the place of what was written before.
    pub(crate) async fn keep_failing(&self, pasts: Vec<KeptPast>) -> Result<(), DatabaseError> {
        self.write(move |connection| {
            let transaction = connection.unchecked_transaction()?;
            transaction.execute("DELETE FROM failing", [])?;
            for past in &pasts {
                let text = serde_json::to_string(past);
                let text = text.map_err(|error| ToSqlConversionFailure(Box::new(error)))?;
                transaction.execute(
                    "INSERT INTO failing (model_ref, past) VALUES (?1, ?2)",
                    (past.model.as_str(), text),
                )?;
            }
            transaction.commit().map(|()| pasts.len())
        })
        .await
    }
}
