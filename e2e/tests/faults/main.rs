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
mod busy_processor;
mod clock_jumps;
mod clock_shim;
mod connects;
mod crash_catalog;
mod crash_hive;
mod crash_points;
mod crash_queen;
mod ends;
mod failing;
mod failing_calls;
mod figures;
mod full_disk;
mod hangups;
mod hive_stage;
mod hostile_queen;
mod keeper_gone;
mod killed_streams;
mod ledger;
mod many_workers;
mod nemesis;
mod network;
mod no_name;
mod no_processes;
mod partition;
mod pid_reuse;
mod pid_room;
mod poison;
mod requests;
mod resets;
mod restarts;
mod site;
mod soak;
mod soak_streams;
mod starved;
mod storm;
mod taken_port;
mod tracing;
mod two_machines;
mod volume;
