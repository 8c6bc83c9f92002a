//! Many at once: batching, separation, health, and clients that leave.

use std::time::{Duration, SystemTime};

use e2e::{Cluster, Http, STARTER_MODEL, Sse, wait_until};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
/// The time that a request has which asks for none.
const REQUEST_TIMEOUT_MS: u64 = 600_000;

fn chat(model: &str, said: &str, extra: &Value) -> Value {
    let mut body = json!({
        "model": model, "stream": true, "messages": [{"role": "user", "content": said}],
    });
    for (name, value) in extra.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

/// Reads a stream to its end and returns its text; it must end well.
fn text_of(stream: Sse) -> String {
    let events: Vec<String> = stream.collect();
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"), "{events:?}");
    let chunk = |event: &String| serde_json::from_str::<Value>(event).expect("JSON");
    events[..events.len() - 1]
        .iter()
        .filter_map(|event| {
            chunk(event)["choices"][0]["delta"]["content"].as_str().map(str::to_owned)
        })
        .collect()
}

fn worker_status(cluster: &Cluster) -> Value {
    let id = cluster.workers()[0]["id"].as_str().expect("an id").to_owned();
    cluster.queen().get(&format!("/api/v1/workers/{id}")).json()["status"].clone()
}

#[test]
fn eight_streams_of_the_real_model_share_one_batch_and_stay_apart() {
    let cluster = Cluster::llama();
    cluster.import_starter();
    let topics = ["river", "bread", "clock", "train", "violin", "garden", "bridge", "island"];
    let questions = topics.map(|topic| format!("Describe a {topic} in one sentence."));
    let options = json!({"temperature": 0, "max_tokens": 48});
    drop(cluster.rbee(&["run", "-m", STARTER_MODEL, "-p", "hi", "--max-tokens", "1"]).ok());
    let queen = cluster.queen();
    let together: Vec<String> = std::thread::scope(|scope| {
        let streams: Vec<_> = questions
            .iter()
            .map(|question| {
                let (queen, options) = (&queen, &options);
                scope.spawn(move || {
                    text_of(queen.stream(CHAT, &chat(STARTER_MODEL, question, options)))
                })
            })
            .collect();
        streams.into_iter().map(|stream| stream.join().expect("a stream")).collect()
    });
    let status = worker_status(&cluster);
    assert_eq!(status["batch_requests_max"], 8, "{status}");
    for (topic, text) in topics.iter().zip(&together) {
        let text = text.to_lowercase();
        assert!(text.contains(topic), "the stream about a {topic} says: {text}");
        let strangers = topics.iter().filter(|other| *other != topic && text.contains(*other));
        assert!(strangers.count() < 2, "streams are mixed: {text}");
    }
}

#[test]
fn health_answers_while_the_real_model_generates() {
    let cluster = Cluster::llama();
    cluster.import_starter();
    let queen = cluster.queen();
    let mut stream = queen.stream(
        CHAT,
        &chat(STARTER_MODEL, "Tell a long story.", &json!({"max_tokens": 400, "temperature": 0})),
    );
    assert!(stream.next().is_some());
    let url = cluster.workers()[0]["url"].as_str().expect("a URL").to_owned();
    let worker = Http::new(&url, None);
    let mut waits: Vec<Duration> = (0..21)
        .map(|_| {
            let start = SystemTime::now();
            assert_eq!(worker.get("/health").status, 200);
            start.elapsed().expect("a clock that goes forward")
        })
        .collect();
    waits.sort_unstable();
    assert!(waits[10] < Duration::from_millis(50), "health took {waits:?}");
    assert!(worker_status(&cluster)["requests_running"] == 1, "it was generating all the while");
    drop(stream);
}

#[test]
fn a_client_that_leaves_frees_its_slot_at_every_hop() {
    let cluster = Cluster::llama();
    cluster.import_starter();
    let queen = cluster.queen();
    let endless = json!({"max_tokens": 1500, "temperature": 0});
    let mut streams: Vec<Sse> = (0..3)
        .map(|_| queen.stream(CHAT, &chat(STARTER_MODEL, "Count to one million.", &endless)))
        .collect();
    for stream in &mut streams {
        assert!(stream.next().is_some());
    }
    wait_until("three requests run", Duration::from_secs(10), || {
        worker_status(&cluster)["requests_running"] == 3
    });
    let listed = cluster.workers()[0]["requests"].clone();
    let same = worker_status(&cluster)["requests"].clone();
    assert_eq!(listed.as_array().map(Vec::len), Some(3), "{listed}");
    for request in listed.as_array().into_iter().flatten() {
        let left = request["time_left_ms"].as_u64().expect("a time");
        assert!((1..=REQUEST_TIMEOUT_MS).contains(&left), "{request}");
        let at_worker = same.as_array().into_iter().flatten();
        let at_worker = at_worker.filter(|other| other["id"] == request["id"]);
        let left_there: Vec<_> = at_worker.map(|other| other["time_left_ms"].as_u64()).collect();
        // Each hop counts from when the request reached it, and the listing may be a moment old.
        let is_same = |there: u64| there.abs_diff(left) < 5_000;
        assert!(matches!(left_there[..], [Some(there)] if is_same(there)), "{request}: {same}");
    }
    drop(streams);
    wait_until("the slots are free", Duration::from_secs(2), || {
        let status = worker_status(&cluster);
        status["requests_running"] == 0
            && status["slots_available"] == status["slots_total"]
            && status["requests"] == json!([])
    });
    assert_eq!(cluster.workers()[0]["requests"], json!([]));
    assert_eq!(queen.get("/api/v1/status").json()["requests_running"], 0);
}

#[test]
fn more_requests_than_slots_wait_their_turn() {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    drop(cluster.rbee(&["infer", "-m", "tiny", "-p", "x"]).ok());
    let queen = cluster.queen();
    let texts: Vec<String> = std::thread::scope(|scope| {
        let streams: Vec<_> = (0..20)
            .map(|n| {
                let said = format!("[[tokens=10 delay_ms=2]] n{n}");
                let queen = &queen;
                scope.spawn(move || text_of(queen.stream(CHAT, &chat("tiny", &said, &json!({})))))
            })
            .collect();
        streams.into_iter().map(|stream| stream.join().expect("a stream")).collect()
    });
    for (n, text) in texts.iter().enumerate() {
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(words, vec![format!("n{n}"); 10]);
    }
}

#[test]
fn two_models_on_the_same_cores_do_not_starve_each_other() {
    let cluster = Cluster::llama();
    cluster.import_starter();
    let copy = cluster.home().join("copy.gguf");
    std::fs::copy(e2e::starter_model_file(), &copy).expect("a second model");
    drop(cluster.rbee(&["pull", copy.to_str().expect("UTF-8"), "--name", "second"]).ok());
    for model in [STARTER_MODEL, "second"] {
        drop(cluster.rbee(&["run", "-m", model, "-p", "hi", "--max-tokens", "1"]).ok());
    }
    let options = json!({"temperature": 0, "max_tokens": 32});
    let queen = cluster.queen();
    let texts = std::thread::scope(|scope| {
        let both = [STARTER_MODEL, "second"].map(|model| {
            let (queen, options) = (&queen, &options);
            scope.spawn(move || text_of(queen.stream(CHAT, &chat(model, "Name a river.", options))))
        });
        both.map(|stream| stream.join().expect("a stream"))
    });
    assert_eq!(texts[0], texts[1], "the same weights and one stream each say the same");
    let workers = cluster.processes().into_iter().filter(|p| p.program == "llm-worker-rbee");
    let limited = workers.filter(|worker| {
        let environment = std::fs::read(format!("/proc/{}/environ", worker.pid)).expect("readable");
        String::from_utf8_lossy(&environment).contains("GOMP_SPINCOUNT=")
    });
    assert_eq!(limited.count(), 2, "whoever waits leaves the processor to others");
}
