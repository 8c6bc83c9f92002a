//! Keeps a certificate of the local CA fresh while a daemon runs. Owns when it looks; what is due, the certificate knows.

use std::time::{Duration, SystemTime};

use rbee_tls::OwnCertificate;
use tokio::time::sleep;

/// How often is looked: by the clock on the wall, since a machine that sleeps ages its certificates too.
const LOOK_EVERY: Duration = Duration::from_secs(60 * 60);

/// Renews `own` whenever it is due; to be dropped with the daemon.
pub async fn keep_fresh(own: OwnCertificate) {
    loop {
        sleep(LOOK_EVERY).await;
        if !own.is_due(SystemTime::now()) {
            continue;
        }
        match own.renew() {
            Ok(()) => tracing::info!("the certificate was renewed"),
            Err(error) => tracing::error!(%error, "the certificate is not renewed; trying again"),
        }
    }
}
