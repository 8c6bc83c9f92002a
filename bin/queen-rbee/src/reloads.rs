//! SIGHUP: the queen reads her tokens and her certificate again, so that they can
//! be replaced without a restart. Owns the signal; which tokens are good then is
//! the credentials' own business.

use std::io;

use audit_logging::{Auditor, Event, Kind, Outcome, SubjectKind};
use rbee_http::Credential;
use rbee_tls::OwnCertificate;
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

    /// Reads tokens and certificate again at each signal. A token shorter than `length_min` is not taken.
    pub(crate) async fn keep(
        mut self,
        credentials: Credentials,
        length_min: usize,
        certificate: Option<OwnCertificate>,
        audit: Auditor,
    ) {
        while self.0.recv().await.is_some() {
            let Credentials { client, hive } = credentials.clone();
            let (audit, certificate) = (audit.clone(), certificate.clone());
            let read = tokio::task::spawn_blocking(move || {
                reload("client", &client, length_min, &audit);
                reload("hive", &hive, length_min, &audit);
                if let Some(certificate) = certificate {
                    renew(&certificate, &audit);
                }
            });
            // It has told of its errors, and panics nowhere.
            read.await.ok();
        }
    }
}

fn reload(whose: &'static str, credential: &Credential, length_min: usize, audit: &Auditor) {
    let event = |outcome| Event::new(Kind::KeyRotate, outcome).on(SubjectKind::Key, whose);
    let former = credential.fingerprint();
    match credential.reload(length_min) {
        Ok(token) if token == former => tracing::info!(whose, %token, "token read again: the same"),
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

fn renew(certificate: &OwnCertificate, audit: &Auditor) {
    let event = |outcome| Event::new(Kind::KeyRotate, outcome).on(SubjectKind::Key, "certificate");
    match certificate.renew() {
        Ok(()) => {
            tracing::info!("certificate read again");
            audit.note(event(Outcome::Success));
        }
        Err(error) => {
            audit.note(event(Outcome::Failure).with("reason", &error));
            tracing::error!(%error, "the new certificate cannot be used; the old one stays in force");
        }
    }
}
