//! The arguments by which conversations are kept on disk.

use std::path::PathBuf;

use clap::Args;
use input_validation::Sha256Hex;

use crate::engine::disk::DiskConfig;
use crate::error::WorkerError;

#[derive(Debug, Args)]
pub(super) struct DiskArguments {
    /// Mebibytes of disk, of all workers that use --cache-dir, for conversations that outlive the worker; 0 keeps none
    #[arg(long, default_value_t = 0, value_name = "MIB", value_parser = clap::value_parser!(u64).range(0..=1 << 24))]
    cache_disk: u64,
    /// Directory for these conversations; it holds prompts in readable form
    #[arg(long, value_name = "PATH")]
    cache_dir: Option<PathBuf>,
    /// SHA-256 of the model file, as it was when the file was registered; without it the file is read to know it
    #[arg(long, value_name = "HEX")]
    model_sha256: Option<Sha256Hex>,
}

impl DiskArguments {
    /// The digest of the model's file, where it is told.
    pub(super) fn model_sha256(&self) -> Option<&Sha256Hex> {
        self.model_sha256.as_ref()
    }

    /// Checks what the parser cannot.
    pub(super) fn check(self, shared: bool) -> Result<Option<DiskConfig>, WorkerError> {
        if self.cache_disk == 0 {
            return Ok(None);
        }
        let Some(directory) = self.cache_dir else {
            let reason = "--cache-disk needs a directory; give one with --cache-dir".to_owned();
            return Err(WorkerError::Usage { reason });
        };
        let bytes_max = self.cache_disk * 1024 * 1024;
        Ok(Some(DiskConfig { directory, bytes_max, model_sha256: self.model_sha256, shared }))
    }
}
