//! Asks hives what they have before they report: one that ran before this queen reports only when its interval is over,
//! and nothing on it could be used until then. Owns the two questions; what comes of the answers is the registry's.

use std::sync::Arc;
use std::time::Duration;

use deadline_propagation::Deadline;
use futures_util::future::join_all;
use input_validation::NodeName;
use rbee_api::hive::{HiveSnapshot, HiveStatus};
use rbee_api::model::ModelList;
use rbee_http::{CallError, HopClient};

use crate::registry::Registry;

/// How long a hive on another machine may take for an answer.
const FAR_LIMIT: Duration = Duration::from_secs(5);

/// Asks for a hive's status.
///
/// # Errors
/// As the call.
pub(crate) async fn status_of(
    client: &HopClient,
    limit: Duration,
) -> Result<HiveStatus, CallError> {
    client.get("/api/v1/status", Deadline::after(limit)).await
}

/// Asks a hive for the rest of what it would report; older than any report.
///
/// # Errors
/// As the call.
pub(crate) async fn what_it_has(
    client: &HopClient,
    status: HiveStatus,
    limit: Duration,
) -> Result<HiveSnapshot, CallError> {
    let ModelList { models } = client.get("/api/v1/models", Deadline::after(limit)).await?;
    Ok(HiveSnapshot {
        epoch: 0,
        sequence: 0,
        draining: status.draining,
        plain_http_on_network: status.plain_http_on_network,
        resources: status.resources,
        models,
        workers: status.workers,
    })
}

/// Asks the machines that are known from before, each once and all at the same time.
pub(crate) async fn greet(registry: Arc<Registry>, machines: Vec<NodeName>) {
    let greeted = machines.iter().map(async |machine| {
        let Some(client) = registry.client(machine) else { return };
        let asked = async {
            let status = status_of(&client, FAR_LIMIT).await?;
            what_it_has(&client, status, FAR_LIMIT).await
        };
        match asked.await {
            Ok(told) => registry.told(machine, told),
            Err(error) => {
                tracing::info!(hive = %machine, %error, "a machine does not answer yet");
            }
        }
    });
    join_all(greeted).await;
}
