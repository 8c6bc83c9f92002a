//! A queen and her only hive, which does what the test says.

use std::sync::Arc;

use crate::daemon::{Queen, TestHome, eventually};
use crate::fake_hive::FakeHive;
use rbee_api::worker::WorkerState;
use secrets_management::Secret;

pub(crate) const ALIAS: &str = "smollm2:135m";
pub(crate) const REFERENCE: &str = "hf:HuggingFaceTB/SmolLM2-135M-Instruct:Q4_1";

/// A queen and her only hive.
pub(crate) struct Pair {
    pub(crate) queen: Queen,
    pub(crate) hive: Arc<FakeHive>,
    pub(crate) home: TestHome,
}

impl Pair {
    /// A hive with one model that has reported nothing yet, and a queen that knows its address.
    pub(crate) async fn silent(more_settings: &str) -> Self {
        let home = TestHome::new();
        let token = Secret::from_bytes(home.hive_token().as_bytes(), "test").unwrap();
        let hive = FakeHive::start(token).await;
        hive.add_model(Some(ALIAS), REFERENCE);
        let settings = format!("local_hive_url = '{}'\n{more_settings}", hive.url);
        let queen = Queen::start(&home, &settings).await;
        Self { queen, hive, home }
    }

    /// The same once the queen has heard of the hive; no worker runs.
    pub(crate) async fn cold(more_settings: &str) -> Self {
        let pair = Self::silent(more_settings).await;
        pair.report().await;
        pair.online().await;
        pair
    }

    /// The same with ready workers.
    pub(crate) async fn ready(workers: &[&str]) -> Self {
        let pair = Self::silent("").await;
        for id in workers {
            pair.hive.set_worker(id, WorkerState::Ready);
        }
        pair.report().await;
        pair.online().await;
        pair
    }

    pub(crate) async fn report(&self) {
        self.hive.report(&self.queen.url).await;
    }

    pub(crate) async fn online(&self) {
        eventually("the hive is online", async || {
            let status = self.queen.get_json("/api/v1/status").await;
            (status["hives"][0]["state"] == "online").then_some(())
        })
        .await;
    }

    pub(crate) fn starts(&self) -> usize {
        self.hive.starts.load(std::sync::atomic::Ordering::SeqCst)
    }
}
