//! Who did what, in a form in which later changes show: an append-only file of JSON lines, each of which holds the hash
//! of the one before, with signed checkpoints, and the verifier of all that. Never sends anything, never holds a
//! prompt or a secret: what can be written down has types without room for one.

mod auditor;
mod chain;
mod checkpoints;
mod entry;
mod error;
mod event;
mod failures;
mod hash;
mod held;
mod old_logs;
mod read;
mod segments;
mod settings;
mod signature;
mod trail;
mod verify;
mod writer;

pub use auditor::{Auditor, Options};
pub use entry::{ActorView, EntryView, SubjectView};
pub use error::AuditError;
pub use event::{Actor, ActorKind, Event, Kind, Outcome, SubjectKind};
pub use held::held_in;
pub use old_logs::remove_old_logs;
pub use read::{Follower, LogReader, services};
pub use settings::AuditSettings;
pub use signature::{Signer, key_of};
pub use trail::Trail;
pub use verify::{Flaw, Problem, Verification, read_checkpoints, verify};
