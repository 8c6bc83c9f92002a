//! The logs of workers, as text for people. Owns where a log is begun to be read, how it is followed, and which old
//! ones go; a worker's words are foreign text and leave here without control characters.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use deadline_propagation::Deadline;
use futures_util::Stream;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use input_validation::{WorkerId, sanitize_for_log};
use rbee_http::{former_log, open_at_last_lines};
use tokio::io::AsyncReadExt as _;

use crate::registry::Registry;

/// Logs of workers that are kept when a hive starts, newest first.
const LOGS_KEPT: usize = 20;
/// Bytes read at once, and the longest line that is shown as one.
const PIECE_BYTES: usize = 64 * 1024;
/// How often a log that is followed is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

/// How much of a log is to be shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// The last lines to begin with.
    pub(crate) lines: usize,
    /// Whether to go on with what is written until the worker is gone.
    pub(crate) follow: bool,
    /// When to end at the latest.
    pub(crate) deadline: Deadline,
}

/// Opens the log of a worker, dead or alive, as a response.
///
/// # Errors
/// The operating system's reason, `NotFound` above all.
pub(crate) async fn open(
    registry: Arc<Registry>,
    worker: WorkerId,
    path: PathBuf,
    extent: Extent,
) -> io::Result<Response> {
    let opened = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || open_at_last_lines(&path, extent.lines)).await
    };
    let file = tokio::fs::File::from_std(opened.map_err(io::Error::other)??);
    let reader = Reader { file, path, registry, worker, extent, rest: Vec::new() };
    let mut response = Body::from_stream(text_of(reader)).into_response();
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

struct Reader {
    file: tokio::fs::File,
    path: PathBuf,
    registry: Arc<Registry>,
    worker: WorkerId,
    extent: Extent,
    /// The beginning of a line whose end has not come yet.
    rest: Vec<u8>,
}

fn text_of(reader: Reader) -> impl Stream<Item = Result<Bytes, Infallible>> {
    futures_util::stream::unfold(reader, |mut reader| async move {
        let text = reader.next().await?;
        Some((Ok(text), reader))
    })
}

impl Reader {
    /// Returns the next whole lines, `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            // Asked before reading: what a worker wrote before it ended is read after it has.
            let may_grow =
                self.extent.follow && self.is_alive() && !self.extent.deadline.is_expired();
            // Looked at before reading: nothing is added to the file any more once another one has its name.
            let next = tokio::fs::metadata(&self.path).await.map(|next| next.ino());
            let mut piece = vec![0; PIECE_BYTES];
            let count = match self.file.read(&mut piece).await {
                Ok(count) => count,
                Err(error) => {
                    tracing::warn!(worker_id = %self.worker, error = %error, "cannot read a worker's log");
                    return None;
                }
            };
            self.rest.extend(piece.into_iter().take(count));
            if let Some(lines) = self.take_lines(count == 0 && !may_grow) {
                return Some(lines);
            }
            if count == 0 {
                if self.goes_on_in(next).await {
                    continue;
                }
                if !may_grow {
                    return None;
                }
                tokio::time::sleep(FOLLOW_INTERVAL).await;
            }
        }
    }

    /// Whether the log goes on in another file, as which it was begun anew; that one is read from now on.
    async fn goes_on_in(&mut self, next: io::Result<u64>) -> bool {
        let (Ok(next), Ok(now)) = (next, self.file.metadata().await) else { return false };
        if next == now.ino() {
            return false;
        }
        match tokio::fs::File::open(&self.path).await {
            Ok(file) => {
                self.file = file;
                true
            }
            Err(_) => false,
        }
    }

    fn is_alive(&self) -> bool {
        self.registry.get(&self.worker).is_some_and(|info| info.failure.is_none())
    }

    /// Takes the whole lines out, and at the end, or when a line is too long, the rest as well.
    fn take_lines(&mut self, is_end: bool) -> Option<Bytes> {
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let end = if is_end || (whole == 0 && self.rest.len() >= PIECE_BYTES) {
            self.rest.len()
        } else {
            whole
        };
        if end == 0 {
            return None;
        }
        let taken: Vec<u8> = self.rest.drain(..end).collect();
        Some(printable(&taken).into())
    }
}

/// Makes each line harmless for a log or a terminal, and ends it.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.lines().flat_map(|line| [sanitize_for_log(line).into_owned(), "\n".to_owned()]).collect()
}

/// Removes all but the newest logs of workers, and those of workers that live, with what was moved aside of each. Their
/// names are ordered by time.
pub(crate) fn remove_old(directory: &Path, living: &[PathBuf]) -> io::Result<()> {
    let mut logs: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("w-") && name.ends_with(".log") {
            logs.push(path);
        }
    }
    logs.sort_unstable_by(|left, right| right.cmp(left));
    for log in logs.iter().skip(LOGS_KEPT).filter(|log| !living.contains(log)) {
        fs::remove_file(log)?;
        match fs::remove_file(former_log(log)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_writes_cannot_steer_a_terminal() {
        assert_eq!(
            printable(b"plain\n\x1b[2Jred\xff\r\nend"),
            "plain\n\\u{1b}[2Jred\u{fffd}\nend\n"
        );
    }

    #[test]
    fn only_old_logs_of_workers_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("rbee-hive.log"), b"").unwrap();
        for index in 0..LOGS_KEPT + 3 {
            fs::write(dir.path().join(format!("w-{index:04}.log")), b"").unwrap();
            fs::write(dir.path().join(format!("w-{index:04}.log.1")), b"").unwrap();
        }
        remove_old(dir.path(), &[dir.path().join("w-0001.log")]).unwrap();
        let left = |name: &str| dir.path().join(name).exists();
        assert!(left("rbee-hive.log") && left("w-0003.log") && left("w-0022.log"));
        assert!(left("w-0003.log.1"));
        assert!(!left("w-0000.log") && !left("w-0002.log") && !left("w-0002.log.1"));
        assert!(left("w-0001.log"), "its worker lives");
    }
}
