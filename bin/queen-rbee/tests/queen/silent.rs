//! A machine that stands still with its connections open, as one does whose hive was stopped or whose kernel alone lives.

use std::sync::Arc;
use std::time::Duration;

use rbee_api::worker::WorkerState;
use reqwest::Method;
use secrets_management::Secret;
use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::continuing::{DONE, SHA, error_code, head, token, told};
use crate::daemon::{PATIENCE, Queen, TestHome, eventually, eventually_every};
use crate::fake_hive::{End, FakeHive, Reply};
use crate::pair::{ALIAS, Pair, REFERENCE};

/// A machine is stale after four intervals of one second.
const STALE: Duration = Duration::from_secs(4);
/// How often the machine reports that does not stand still.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// A queen, a machine that reports and has a worker that is starting, and one elsewhere with a ready worker.
struct Machines {
    queen: Queen,
    near: Arc<FakeHive>,
    far: Arc<FakeHive>,
    home: TestHome,
}

impl Machines {
    async fn new() -> Self {
        let home = TestHome::new();
        drop(Queen::start(&home, "local_hive = false\n").await);
        let token = || Secret::from_bytes(home.hive_token().as_bytes(), "test").unwrap();
        let (near, far) = (FakeHive::start(token()).await, FakeHive::start(token()).await);
        for (hive, worker, state) in
            [(&near, "w-near", WorkerState::Starting), (&far, "w-far", WorkerState::Ready)]
        {
            hive.add_model(Some(ALIAS), REFERENCE);
            hive.set_worker(worker, state);
        }
        let database = rusqlite::Connection::open(home.home.beehives_db()).unwrap();
        let row = "INSERT INTO hive (name, url, created_at_ms) VALUES ('attic', ?1, 1)";
        database.execute(row, [&far.url]).unwrap();
        let settings = format!("local_hive_url = '{}'\nheartbeat_interval_seconds = 1\n", near.url);
        let queen = Queen::start(&home, &settings).await;
        let machines = Self { queen, near, far, home };
        eventually("both machines are online", async || {
            machines.near.report(&machines.queen.url).await;
            machines.far.report_as("attic", &machines.queen.url).await;
            (machines.states().await == ["online", "online"]).then_some(())
        })
        .await;
        machines
    }

    /// The states of both, the far one first.
    async fn states(&self) -> Vec<String> {
        let listed = self.queen.get_json("/api/v1/hives").await;
        let hives = listed["hives"].as_array().unwrap().iter();
        hives.map(|hive| hive["state"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits for something while the near machine reports and the far one does not.
    async fn while_one_reports<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let work = tokio::spawn(work);
        eventually_every(REPORT_EVERY, "it comes to an end", async || {
            self.near.report(&self.queen.url).await;
            work.is_finished().then_some(())
        })
        .await;
        work.await.unwrap()
    }
}

#[tokio::test]
async fn a_stream_through_a_machine_that_stands_still_goes_on_elsewhere() {
    let machines = Machines::new().await;
    let Machines { queen, near, far, .. } = &machines;
    let begun = vec![head(SHA), token("a"), told(&[1]), token("lost")];
    far.script([Reply::Events(begun, End::Open)]);
    let rest = vec![head(SHA), token("b"), told(&[2]), DONE.to_owned()];
    near.script([Reply::Events(rest, End::Whole)]);
    let last_heard = Instant::now();
    far.report_as("attic", &queen.url).await;
    let mut reply = queen.chat(ALIAS, true).send().await.unwrap();
    assert_eq!(reply.chunk().await.unwrap().unwrap(), token("a"));
    near.set_worker("w-near", WorkerState::Ready);
    let rest = machines.while_one_reports(reply.text()).await.unwrap();
    assert_eq!(rest, [token("b"), DONE.to_owned()].concat());
    assert!(last_heard.elapsed() >= STALE, "{:?}", last_heard.elapsed());
    let sent = near.forwarded.lock().unwrap()[0].delivered().unwrap();
    assert_eq!(sent.choices[0].tokens, [1]);
    timeout(PATIENCE, far.let_go.notified()).await.expect("the far machine is let go");
    assert_eq!(machines.states().await, ["stale", "online"], "nobody looks for it");
    eventually("the log says so", async || {
        let log = machines.home.log();
        let line = log.lines().find(|line| line.contains("machine is not well"))?;
        (line.contains("hive=attic") && log.contains("state=\"stale\"")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_request_of_which_nothing_has_come_goes_elsewhere_too() {
    for stream in [false, true] {
        let machines = Machines::new().await;
        let Machines { queen, near, far, .. } = &machines;
        far.script([Reply::Events(Vec::new(), End::Open)]);
        near.script([Reply::Events(vec![DONE.to_owned()], End::Whole)]);
        let last_heard = Instant::now();
        far.report_as("attic", &queen.url).await;
        let request = tokio::spawn(queen.chat(ALIAS, stream).send());
        eventually("it is sent", async || (far.forwarded_count() == 1).then_some(())).await;
        near.set_worker("w-near", WorkerState::Ready);
        let reply = machines.while_one_reports(request).await.unwrap().unwrap();
        assert_eq!((reply.status().as_u16(), reply.text().await.unwrap()), (200, DONE.to_owned()));
        assert!(last_heard.elapsed() >= STALE, "{stream}: {:?}", last_heard.elapsed());
    }
}

#[tokio::test]
async fn a_stream_that_nobody_can_go_on_with_ends_with_an_error_once_its_machine_is_stale() {
    let machines = Machines::new().await;
    let Machines { queen, far, .. } = &machines;
    let other_file = SHA.replace('7', "8");
    let marked = vec![head(&other_file), token("a"), told(&[1])];
    let plain = vec![token("a"), "data: {\"half".to_owned()];
    for begun in [marked, plain] {
        far.script([Reply::Events(begun, End::Open)]);
        far.report_as("attic", &queen.url).await;
        eventually("it is online", async || (machines.states().await[0] == "online").then_some(()))
            .await;
        let mut reply = queen.chat(ALIAS, true).send().await.unwrap();
        assert_eq!(reply.chunk().await.unwrap().unwrap(), token("a"));
        let rest = machines.while_one_reports(reply.text()).await.unwrap();
        assert_eq!(error_code(&rest), "hive_unreachable", "{rest}");
    }
}

#[tokio::test]
async fn a_pull_at_a_machine_that_stands_still_fails() {
    let pair = Pair::silent("heartbeat_interval_seconds = 1").await;
    let progress = "data: {\"event\":\"progress\",\"done_bytes\":1,\"total_bytes\":2}\n\n";
    *pair.hive.pull.lock().unwrap() = (vec![progress.to_owned()], End::Open);
    eventually("the hive is online", async || {
        pair.report().await;
        let status = pair.queen.get_json("/api/v1/status").await;
        (status["hives"][0]["state"] == "online").then_some(())
    })
    .await;
    let body = json!({"reference": "file:/models/new.gguf"});
    let request = pair.queen.request(Method::POST, "/api/v1/models/pull").json(&body);
    let told = request.send().await.unwrap().text().await.unwrap();
    let last = told.strip_prefix(progress).unwrap();
    assert!(last.contains("\"failed\"") && last.contains("hive_unreachable"), "{told}");
}
