//! How the queen is told to stop, by signal or by request, and that it is in a
//! hurry. Owns the signals; the order of what then happens stands in `lib.rs`.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A wish to stop, shared by everything that may utter or must heed it.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    asked: CancellationToken,
    hurried: CancellationToken,
}

impl Shutdown {
    /// Listens to SIGTERM and SIGINT from now on: the first asks to stop, each
    /// further one hurries. To be called before anything else is set up, since
    /// an unheard signal kills; needs a runtime.
    ///
    /// # Errors
    /// Fails if the signals cannot be listened to.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::default();
        let signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        // Ends with the runtime: until then a signal may come.
        tokio::spawn(heed(signals, shutdown.clone()));
        Ok(shutdown)
    }

    /// Asks to stop; asking again changes nothing.
    pub fn ask(&self) {
        self.asked.cancel();
    }

    /// Says whether the queen was asked to stop.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked.is_cancelled()
    }

    /// Returns what ends when the queen is asked to stop.
    pub(crate) fn asked(&self) -> &CancellationToken {
        &self.asked
    }

    /// Returns what ends when there is no time left to stop in good order.
    pub(crate) fn hurried(&self) -> &CancellationToken {
        &self.hurried
    }
}

async fn heed((mut terminate, mut interrupt): (Signal, Signal), shutdown: Shutdown) {
    loop {
        let name = tokio::select! {
            Some(()) = terminate.recv() => "SIGTERM",
            Some(()) = interrupt.recv() => "SIGINT",
            else => return,
        };
        if shutdown.is_asked() {
            tracing::info!(signal = name, "told to hurry");
            shutdown.hurried.cancel();
        } else {
            tracing::info!(signal = name, "told to stop");
            shutdown.ask();
        }
    }
}
