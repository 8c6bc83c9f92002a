//! What must hold when something breaks: real programs, real faults, one file a
//! kind of fault. The table of rows is docs/FAULTS.md. `make test` runs the short
//! form, `make faults` the full one, `make soak` the long run.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on has to fail"
)]

mod agreement;
mod crash_catalog;
mod crash_hive;
mod crash_points;
mod crash_queen;
mod ends;
mod figures;
mod full_disk;
mod killed_streams;
mod ledger;
mod many_workers;
mod nemesis;
mod network;
mod partition;
mod pid_reuse;
mod pid_room;
mod poison;
mod requests;
mod restarts;
mod site;
mod soak;
mod soak_streams;
mod starved;
mod storm;
mod tracing;
mod two_machines;
mod volume;
