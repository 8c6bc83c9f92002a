//! SIGHUP: the queen reads her tokens again, so that they can be replaced
//! without a restart. Owns the signal; which tokens are good then is the
//! credentials' own business.

use std::io;

use audit_logging::{Auditor, Event, Kind, Outcome, SubjectKind};
use rbee_http::Credential;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::Credentials;

/// The wishes to read the tokens again.
#[derive(Debug)]
pub(crate) struct Reloads(Signal);

impl Reloads {
    /// Listens to SIGHUP from now on. To be called before anything else is set
    /// up, since an unheard signal kills; needs a runtime.
    ///
    /// # Errors
    /// Fails if the signal cannot be listened to.
    pub(crate) fn on_signals() -> io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }

    /// Reads the tokens again at each signal. One shorter than `length_min` is not taken.
    pub(crate) async fn keep(
        mut self,
        credentials: Credentials,
        length_min: usize,
        audit: Auditor,
    ) {
        while self.0.recv().await.is_some() {
            let Credentials { client, hive } = credentials.clone();
            let audit = audit.clone();
            let read = tokio::task::spawn_blocking(move || {
                reload("client", &client, length_min, &audit);
                reload("hive", &hive, length_min, &audit);
            });
            // It has told of its errors, and panics nowhere.
            read.await.ok();
        }
    }
}

fn reload(whose: &'static str, credential: &Credential, length_min: usize, audit: &Auditor) {
    let event = |outcome| Event::new(Kind::KeyRotate, outcome).on(SubjectKind::Key, whose);
    match credential.reload(length_min) {
        Ok(token) => {
            tracing::info!(whose, %token, "token read again");
            audit.note(event(Outcome::Success).with("key", token));
        }
        Err(error) => {
            audit.note(event(Outcome::Failure).with("reason", &error));
            tracing::error!(whose, %error, "the new token cannot be used; the old one stays in force");
        }
    }
}
