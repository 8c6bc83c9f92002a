//! The cluster harness: starts the real programs in a throw-away home and looks
//! at them from outside, as a user, a client and an operator would. Owns no
//! knowledge of how the programs work inside.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a harness that cannot go on has to fail the test that uses it"
)]

mod asked;
mod cluster;
mod gguf;
mod http;
mod leaks;
mod machines;
mod pair;
mod process;
mod raw;
mod told;
mod wait;

pub use asked::{asks, echoed_call, numbers_tool, tags_format};
pub use cluster::{Cluster, Finished, STARTER_MODEL, bin, starter_model_file};
pub use gguf::{TinyKind, tiny_gguf};
pub use http::{Http, Reply, Sse};
pub use machines::{Machine, free_address};
pub use pair::Pair;
pub use process::{Process, processes_of};
pub use raw::{RawReply, address_of, connect_from, raw};
pub use told::told;
pub use wait::{holds_within, wait_for, wait_until};
