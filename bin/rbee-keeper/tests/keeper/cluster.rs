//! What the queen of the tests knows: one machine, one model, two workers.

use serde_json::{Value, json};

const DIGEST: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

pub(crate) fn model() -> Value {
    json!({
        "reference": "file:/data/smollm2.gguf",
        "alias": "smollm2:135m",
        "size_bytes": 98_362_432_u64,
        "sha256": DIGEST,
        "kind": "generate",
        "architecture": "llama",
        "quantisation": "Q4_1",
        "context_length": 8192,
        "parameters": 134_515_008_u64,
        "added_at_ms": 1_000,
    })
}

pub(crate) fn models() -> Value {
    let mut model = model();
    model["hives"] = json!(["local"]);
    json!({ "models": [model] })
}

fn worker(id: &str, state: &str, failure: Value) -> Value {
    json!({
        "hive": "local",
        "hive_state": "online",
        "id": id,
        "model_ref": "file:/data/smollm2.gguf",
        "alias": "smollm2:135m",
        "backend": "llama",
        "device": "cpu",
        "url": "http://127.0.0.1:8081",
        "state": state,
        "load_progress": 1.0,
        "slots_total": 4,
        "slots_available": 3,
        "pid": 4242,
        "started_at_ms": 1_000,
        "last_heartbeat_ms": null,
        "failure": failure,
        "restart_count": 0,
        "last_exit": null,
        "breaker": "closed",
        "next_try_at_ms": null,
        "requests": [{"id": "r-1", "time_left_ms": 59_000}],
    })
}

/// A worker that loads the model `heavy`.
pub(crate) fn loading_worker() -> Value {
    let mut worker = worker("w-3", "starting", Value::Null);
    worker["alias"] = json!("heavy");
    worker["load_progress"] = json!(0.42);
    worker
}

pub(crate) fn workers() -> Value {
    let failure = json!({
        "message": "the model file is damaged", "type": "invalid_request_error",
        "code": "invalid_model_file", "param": null, "request_id": null, "retryable": false,
        "details": null,
    });
    let mut failed = worker("w-2", "failed", failure);
    failed["restart_count"] = json!(3);
    failed["last_exit"] =
        json!({"cause": "bad_model", "exit_code": 65, "signal": null, "at_ms": 1});
    failed["breaker"] = json!("open");
    failed["next_try_at_ms"] = json!(4_000_000_000_000_u64);
    json!({ "workers": [worker("w-1", "ready", Value::Null), failed] })
}

/// What a reset answers: the worker that starts in the place of the failed one, or the one that runs.
pub(crate) fn reset(id: &str) -> Value {
    let is_failed = id == "w-2";
    let mut reset = if is_failed {
        worker("w-4", "starting", Value::Null)
    } else {
        worker(id, "ready", Value::Null)
    };
    if let Some(fields) = reset.as_object_mut() {
        fields.remove("hive_state");
        fields.remove("requests");
    }
    reset["failures_cleared"] = json!(if is_failed { 3 } else { 0 });
    reset["breaker_was"] = json!(if is_failed { "open" } else { "closed" });
    reset
}

pub(crate) fn status() -> Value {
    json!({
        "version": "0.1.0",
        "pid": 77,
        "draining": false,
        "uptime_ms": 180_000,
        "auth_mode": "token",
        "plain_http_on_network": false,
        "audit": {"mode": "file", "entries": 7, "entries_lost": 0, "failing": false},
        "requests_running": 1,
        "queues": [],
        "hives": [{
            "name": "local",
            "url": "http://127.0.0.1:9200",
            "state": "online",
            "plain_http_on_network": false,
            "last_heartbeat_age_ms": 10,
            "resources": {
                "memory_total_bytes": 16_000_000_000_u64,
                "memory_available_bytes": 9_000_000_000_u64,
                "memory_reserved_bytes": 0,
                "memory_limit": "unenforced",
                "disk_total_bytes": null,
                "disk_available_bytes": null,
                "vram_total_bytes": null,
                "vram_available_bytes": null,
                "cores": 8,
                "workers_max": 4,
            },
            "workers": 2,
            "models": 1,
        }],
        "workers": workers()["workers"],
    })
}
