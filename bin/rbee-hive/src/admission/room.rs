//! What a new worker could take of the machine, and what a disk has to have left for one to start.

use std::time::Duration;

use rbee_api::error::{ErrorCode, ErrorDetail};
use serde_json::json;

use super::mebibytes;

/// What a new worker could take, all of the same moment. What is not known refuses nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Room {
    /// Main memory that is not kept free, that no process holds, and that no worker is yet to take.
    pub(crate) memory_bytes: Option<u64>,
    /// The same of all GPUs together, where workers have to fit into them.
    pub(crate) vram_bytes: Option<u64>,
    /// Where the models lie.
    pub(crate) disk: Option<DiskRoom>,
    /// What of this is out of date.
    pub(crate) unanswered: Unanswered,
}

/// Parts of a machine that do not answer, and for how long they have not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Unanswered {
    pub(crate) disk: Option<Duration>,
    pub(crate) gpus: Option<Duration>,
}

impl Unanswered {
    /// Checks that everything answers: a start would rest on figures that are out of date, and hang.
    ///
    /// # Errors
    /// What does not.
    pub(crate) fn check(self) -> Result<(), Box<ErrorDetail>> {
        let disk = self
            .disk
            .map(|silence| (ErrorCode::InsufficientDisk, "the file system of the models", silence));
        let gpus =
            self.gpus.map(|silence| (ErrorCode::InsufficientMemory, "the GPUs' driver", silence));
        let Some((code, what, silence)) = disk.or(gpus) else { return Ok(()) };
        let seconds = silence.as_secs();
        let message = format!(
            "{what} has not answered for {seconds} s, so it is not known whether a worker has room; see to it, and try again"
        );
        Err(Box::new(ErrorDetail::new(code, message)))
    }
}

/// A disk, and what has to be left on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskRoom {
    pub(crate) available_bytes: u64,
    pub(crate) required_bytes: u64,
    /// Files that can still be made; `None` where there is no such limit.
    pub(crate) inodes_available: Option<u64>,
    pub(crate) inodes_required: u64,
}

impl DiskRoom {
    /// Checks that a worker has room for its log and for what it keeps.
    ///
    /// # Errors
    /// What is short, with figures.
    pub(crate) fn check(self) -> Result<(), Box<ErrorDetail>> {
        let short = |message, figures| {
            let detail = ErrorDetail::new(ErrorCode::InsufficientDisk, message);
            Err(Box::new(detail.with_details(figures)))
        };
        if self.available_bytes < self.required_bytes {
            let (free, least) = (mebibytes(self.available_bytes), mebibytes(self.required_bytes));
            let message = format!(
                "{free} are free on the disk of the models and {least} have to stay free; make room there, or lower \
                 disk_min_free_mib"
            );
            let (required, available) = (self.required_bytes, self.available_bytes);
            return short(
                message,
                json!({"required_bytes": required, "available_bytes": available}),
            );
        }
        if let Some(available) = self.inodes_available
            && available < self.inodes_required
        {
            let required = self.inodes_required;
            let message = format!(
                "{available} files can still be made on the disk of the models and {required} have to be possible; \
                 remove files there, or lower inodes_min_free"
            );
            return short(
                message,
                json!({"required_inodes": required, "available_inodes": available}),
            );
        }
        Ok(())
    }
}
