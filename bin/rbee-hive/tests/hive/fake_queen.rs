//! A queen that only listens: it keeps the snapshots that a hive sends.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use auth_min::TokenDigest;
use axum::Json;
use axum::extract::{Path, State};
use rbee_api::hive::{HeartbeatReply, HiveSnapshot};
use rbee_http::{Access, Authenticator, JsonBody, Metrics, Principal, RouteTable, Server, bind};
use secrets_management::load_or_generate;
use tokio_util::sync::CancellationToken;

use crate::program::Place;

type Snapshots = Arc<Mutex<Vec<(String, HiveSnapshot)>>>;

/// The queen, until dropped.
pub(crate) struct FakeQueen {
    pub(crate) url: String,
    snapshots: Snapshots,
    stop: CancellationToken,
}

impl Drop for FakeQueen {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl FakeQueen {
    /// Listens for the hive of `place`, which it knows by the shared token.
    pub(crate) async fn start(place: &Place) -> Self {
        static METRICS: OnceLock<Metrics> = OnceLock::new();
        let metrics = METRICS.get_or_init(|| Metrics::install("queen").unwrap()).clone();
        std::fs::create_dir_all(place.home()).unwrap();
        let token = load_or_generate(&place.home().join("secrets/hive.token")).unwrap();
        let digest = TokenDigest::of(token.expose());
        let authenticator: Authenticator =
            Arc::new(move |shown, _| shown.digest().matches(&digest).then_some(Principal::Peer));
        let snapshots = Snapshots::default();
        let router = RouteTable::new()
            .post("/api/v1/hives/{name}/heartbeat", Access::Peer, heartbeat)
            .build(Arc::clone(&snapshots), authenticator, metrics);
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        tokio::spawn(Server::new(listener, router, Duration::ZERO).run(stop.clone()));
        Self { url, snapshots, stop }
    }

    pub(crate) fn received(&self) -> Vec<(String, HiveSnapshot)> {
        self.snapshots.lock().unwrap().clone()
    }

    /// The newest snapshot, once there is one.
    pub(crate) fn last(&self) -> Option<HiveSnapshot> {
        self.snapshots.lock().unwrap().last().map(|(_, snapshot)| snapshot.clone())
    }
}

async fn heartbeat(
    State(snapshots): State<Snapshots>,
    Path(name): Path<String>,
    JsonBody(snapshot): JsonBody<HiveSnapshot>,
) -> Json<HeartbeatReply> {
    snapshots.lock().unwrap().push((name, snapshot));
    Json(HeartbeatReply { interval_ms: 30_000 })
}
