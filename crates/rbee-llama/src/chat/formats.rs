//! Remembers how replies are read for the sets of tools that were seen last:
//! an agent sends the same tools with every request, and to find out how a
//! template's model calls them costs far more than rendering the prompt.

use std::sync::{Arc, Mutex, PoisonError};

use crate::reply::ReplyFormat;

/// Sets of tools that are remembered: more than the agents that share a worker.
const FORMATS_MAX: usize = 16;

/// The formats seen last, the latest first.
#[derive(Debug, Default)]
pub(super) struct Formats(Mutex<Vec<(String, Arc<ReplyFormat>)>>);

impl Formats {
    /// Returns what is remembered, if it is for prompts that end so or for any.
    pub(super) fn find(&self, key: &str, prompt_end: &str) -> Option<Arc<ReplyFormat>> {
        let mut formats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let index = formats.iter().position(|(known, format)| {
            known == key && (format.borrowed || format.generation_prompt == prompt_end)
        })?;
        let entry = formats.remove(index);
        let format = Arc::clone(&entry.1);
        formats.insert(0, entry);
        Some(format)
    }

    /// Remembers a format in place of the one that was longest unused.
    pub(super) fn add(&self, key: String, format: Arc<ReplyFormat>) {
        let mut formats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        formats.insert(0, (key, format));
        formats.truncate(FORMATS_MAX);
    }
}
