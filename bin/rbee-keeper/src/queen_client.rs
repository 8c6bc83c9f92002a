//! The conversation with the queen, one method a request. Knows paths and types; never starts a queen and never prints.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use deadline_propagation::{DEADLINE_CAP, Deadline};
use futures_util::{Stream, StreamExt as _};
use input_validation::{ModelRef, NodeName, RequestId, WorkerId};
use rbee_api::key::{CreateKey, CreatedKey, KeyInfo, KeyList, UsageList};
use rbee_api::model::PullRequest;
use rbee_api::openai::{ChatCompletion, EmbeddingList};
use rbee_api::pairing::{CreatePairing, CreatedPairing};
use rbee_api::queen::{
    HiveList, PlacedModelList, PlacedWorkerList, PlacedWorkerReset, QueenStatus, Removed, RunFile,
};
use rbee_http::{CallError, HopClient, collect};
use rbee_tls::Trust;
use secrets_management::Secret;
use serde_json::{Value, json};

use crate::error::KeeperError;
use crate::event_stream::EventReader;

/// Time for an answer from memory.
const QUICK: Duration = Duration::from_secs(10);
/// Time for what waits for a process to end: the drain, the signals and some room.
const STOPPING: Duration = Duration::from_secs(60);

/// Calls one queen.
#[derive(Debug, Clone)]
pub(crate) struct QueenClient {
    http: HopClient,
    token: Arc<Secret>,
}

/// How long one request may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    deadline: Deadline,
    seconds: u64,
}

impl Budget {
    /// Starts now.
    pub(crate) fn new(time: Duration) -> Self {
        Self { deadline: Deadline::after(time), seconds: time.as_secs() }
    }
}

impl QueenClient {
    /// Calls the queen of this computer, whom her run file describes.
    pub(crate) fn here(run: &RunFile, token: Secret) -> Result<Self, KeeperError> {
        let known_by = Trust::in_files(run.certificate_file.iter());
        Self::new(&run.url, token, &known_by.map_err(KeeperError::Tls)?)
    }

    /// Calls the queen at `url`, where `trust` believes who answers there.
    pub(crate) fn new(url: &str, token: Secret, trust: &Trust) -> Result<Self, KeeperError> {
        let token = Arc::new(token);
        let http = HopClient::trusting(url, Arc::clone(&token), trust);
        let http = http.map_err(KeeperError::Client)?;
        Ok(Self { http, token })
    }

    /// Returns the queen's address, without a slash at the end.
    pub(crate) fn url(&self) -> &str {
        self.http.base_url()
    }

    /// Returns the token, for the one command whose job is to show it.
    pub(crate) fn token(&self) -> &Secret {
        &self.token
    }

    /// Asks whether the queen takes work.
    ///
    /// # Errors
    /// [`CallError`], so that the caller can tell a queen that is not ready from none.
    pub(crate) async fn ready(&self, time: Duration) -> Result<(), CallError> {
        self.http.get::<Value>("/readyz", Deadline::after(time)).await.map(|_| ())
    }

    pub(crate) async fn status(&self) -> Result<QueenStatus, KeeperError> {
        self.get("/api/v1/status").await
    }

    pub(crate) async fn workers(&self) -> Result<PlacedWorkerList, KeeperError> {
        self.get("/api/v1/workers").await
    }

    pub(crate) async fn models(&self) -> Result<PlacedModelList, KeeperError> {
        self.get("/api/v1/models").await
    }

    /// Stops a worker and waits until it is gone.
    pub(crate) async fn stop_worker(&self, id: &WorkerId) -> Result<Removed, KeeperError> {
        self.delete(&format!("/api/v1/workers/{id}")).await
    }

    /// Has the failures of a worker's model forgotten, and another started in the place of a failed one.
    pub(crate) async fn reset_worker(
        &self,
        id: &WorkerId,
    ) -> Result<PlacedWorkerReset, KeeperError> {
        let budget = Budget::new(STOPPING);
        let path = format!("/api/v1/workers/{id}/reset");
        let nothing = json!({});
        let call = self.http.post(&path, &nothing, budget.deadline);
        call.await.map_err(self.failed(budget))
    }

    /// Removes a model and its file.
    pub(crate) async fn remove_model(&self, model: &ModelRef) -> Result<Removed, KeeperError> {
        // Of a reference's alphabet only the percent sign means something else in a path.
        let encoded = model.as_str().replace('%', "%25");
        self.delete(&format!("/api/v1/models/{encoded}")).await
    }

    pub(crate) async fn keys(&self) -> Result<KeyList, KeeperError> {
        self.get("/api/v1/keys").await
    }

    /// Makes a key; the answer is the only one that holds its value.
    pub(crate) async fn create_key(&self, wanted: &CreateKey) -> Result<CreatedKey, KeeperError> {
        let budget = Budget::new(QUICK);
        let call = self.http.post("/api/v1/keys", wanted, budget.deadline);
        call.await.map_err(self.failed(budget))
    }

    /// Takes a key back, by name or id.
    pub(crate) async fn revoke_key(&self, key: &str) -> Result<KeyInfo, KeeperError> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if key.is_empty() || !key.chars().all(is_plain) || key.starts_with('.') {
            let message = "that is neither the name nor the id of a key";
            return Err(KeeperError::usage(message, "`rbee key list` shows both"));
        }
        self.delete(&format!("/api/v1/keys/{key}")).await
    }

    /// Makes a one-time code for a machine; the answer is the only one that holds it.
    pub(crate) async fn create_pairing(
        &self,
        wanted: &CreatePairing,
    ) -> Result<CreatedPairing, KeeperError> {
        let budget = Budget::new(QUICK);
        let call = self.http.post("/api/v1/pairings", wanted, budget.deadline);
        call.await.map_err(self.failed(budget))
    }

    pub(crate) async fn hives(&self) -> Result<HiveList, KeeperError> {
        self.get("/api/v1/hives").await
    }

    /// Has a paired machine believed no more.
    pub(crate) async fn forget_hive(&self, name: &NodeName) -> Result<Removed, KeeperError> {
        self.delete(&format!("/api/v1/hives/{name}")).await
    }

    /// Asks what was used in the last `days` days.
    pub(crate) async fn usage(&self, days: u32) -> Result<UsageList, KeeperError> {
        self.get(&format!("/api/v1/usage?days={days}")).await
    }

    /// Asks the queen to stop, with what it started.
    pub(crate) async fn shutdown(&self) -> Result<(), KeeperError> {
        let budget = Budget::new(QUICK);
        let call = self.http.post::<_, Value>("/api/v1/shutdown", &Value::Null, budget.deadline);
        call.await.map(|_| ()).map_err(self.failed(budget))
    }

    /// Starts a pull; the events are `PullEvent`s.
    pub(crate) async fn pull(&self, request: &PullRequest) -> Result<EventReader, KeeperError> {
        let budget = Budget::new(DEADLINE_CAP);
        let call = self.http.post_stream("/api/v1/models/pull", request, budget.deadline);
        let response = call.await.map_err(self.failed(budget))?;
        Ok(EventReader::new(response.bytes_stream(), budget.deadline, budget.seconds))
    }

    /// Starts a chat completion with `"stream": true`; the events are `ChatChunk`s.
    pub(crate) async fn chat_stream(
        &self,
        body: Bytes,
        id: &RequestId,
        budget: Budget,
    ) -> Result<EventReader, KeeperError> {
        let call = self.http.forward("/v1/chat/completions", body, id, budget.deadline);
        let response = call.await.map_err(self.failed(budget))?;
        Ok(EventReader::new(response.bytes_stream(), budget.deadline, budget.seconds))
    }

    /// Asks for a whole chat completion.
    pub(crate) async fn chat(
        &self,
        body: Bytes,
        id: &RequestId,
        budget: Budget,
    ) -> Result<ChatCompletion, KeeperError> {
        let call = self.http.forward("/v1/chat/completions", body, id, budget.deadline);
        let response = call.await.map_err(self.failed(budget))?;
        let reply = collect(response, budget.deadline).await.map_err(self.failed(budget))?;
        serde_json::from_slice(&reply).map_err(KeeperError::Garbled)
    }

    /// Asks for embeddings.
    pub(crate) async fn embed(
        &self,
        body: Bytes,
        id: &RequestId,
        budget: Budget,
    ) -> Result<EmbeddingList, KeeperError> {
        let call = self.http.forward("/v1/embeddings", body, id, budget.deadline);
        let response = call.await.map_err(self.failed(budget))?;
        let reply = collect(response, budget.deadline).await.map_err(self.failed(budget))?;
        serde_json::from_slice(&reply).map_err(KeeperError::Garbled)
    }

    /// Opens a worker's log, whole, and with `follow` what is added to it.
    pub(crate) async fn worker_log(
        &self,
        id: &WorkerId,
        lines: usize,
        follow: bool,
    ) -> Result<impl Stream<Item = Result<Bytes, KeeperError>> + use<>, KeeperError> {
        let budget = Budget::new(DEADLINE_CAP);
        let path = format!("/api/v1/workers/{id}/logs?lines={lines}&follow={follow}");
        let response =
            self.http.get_stream(&path, budget.deadline).await.map_err(self.failed(budget))?;
        Ok(response.bytes_stream().map(|piece| piece.map_err(|_error| KeeperError::BrokenOff)))
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, KeeperError> {
        let budget = Budget::new(QUICK);
        self.http.get(path, budget.deadline).await.map_err(self.failed(budget))
    }

    async fn delete<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, KeeperError> {
        let budget = Budget::new(STOPPING);
        self.http.delete(path, budget.deadline).await.map_err(self.failed(budget))
    }

    fn failed(&self, budget: Budget) -> impl FnOnce(CallError) -> KeeperError {
        let url = self.url().to_owned();
        move |error| KeeperError::from_call(error, &url, budget.seconds)
    }
}
