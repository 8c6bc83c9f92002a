//! What the hives of this home have stopped so far, and how long the last shutdown took. Kept on disk, because whoever
//! collects figures comes too late for those of a hive that ends: the next one shows them. Counts nothing by itself.

use std::time::Duration;

use rbee_sqlite::DatabaseError;

use super::Ledger;

/// How a worker ended that was told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By itself, after a request or a signal that asked it to.
    Graceful,
    /// Killed.
    Forced,
}

impl Ending {
    /// Returns the word for logs.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Graceful => "graceful",
            Self::Forced => "forced",
        }
    }
}

/// All stops of this home's hives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) graceful: u64,
    pub(crate) forced: u64,
    /// How long the last hive that was told to end took; `None` before the first.
    pub(crate) last_shutdown: Option<Duration>,
}

impl Ledger {
    /// Reads the tally. Blocks.
    pub(crate) fn tally(&self) -> Result<Tally, DatabaseError> {
        let connection = self.lock();
        let tally = connection.query_row(
            "SELECT graceful, forced, last_shutdown_ms FROM tally",
            [],
            |row| {
                let last: Option<i64> = row.get(2)?;
                Ok(Tally {
                    graceful: row.get::<_, i64>(0)?.cast_unsigned(),
                    forced: row.get::<_, i64>(1)?.cast_unsigned(),
                    last_shutdown: last.map(|ms| Duration::from_millis(ms.cast_unsigned())),
                })
            },
        )?;
        Ok(tally)
    }

    /// Counts one worker that was told to end and has.
    pub(crate) async fn count(&self, ending: Ending) -> Result<(), DatabaseError> {
        let change = match ending {
            Ending::Graceful => "UPDATE tally SET graceful = graceful + 1",
            Ending::Forced => "UPDATE tally SET forced = forced + 1",
        };
        self.write(move |connection| connection.execute(change, [])).await
    }

    /// Writes down how long this hive took to end.
    pub(crate) async fn note_shutdown(&self, took: Duration) -> Result<(), DatabaseError> {
        let took_ms = i64::try_from(took.as_millis()).unwrap_or(i64::MAX);
        self.write(move |connection| {
            connection.execute("UPDATE tally SET last_shutdown_ms = ?1", [took_ms])
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_next_hive_reads_what_the_last_one_counted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("workers.db");
        let (ledger, _) = Ledger::open(&path).unwrap();
        assert_eq!(ledger.tally().unwrap(), Tally::default());
        for ending in [Ending::Graceful, Ending::Graceful, Ending::Forced] {
            ledger.count(ending).await.unwrap();
        }
        ledger.note_shutdown(Duration::from_millis(1234)).await.unwrap();
        drop(ledger);
        let last_shutdown = Some(Duration::from_millis(1234));
        let expected = Tally { graceful: 2, forced: 1, last_shutdown };
        assert_eq!(Ledger::open(&path).unwrap().0.tally().unwrap(), expected);
    }
}
