//! `--estimate` held to what a worker with the same settings really takes.

use std::process::{Output, Stdio};

use serde_json::Value;

use crate::llama::{ONE_AT_A_TIME, model_path};
use crate::process::{Worker, program};
use crate::tiny_models::{Pooling, TinyModel};

/// What a worker takes beside llama.cpp's buffers: code, vocabulary, threads.
const BESIDE_KIB: u64 = 80 * 1024;

fn estimate(arguments: &[&str]) -> Output {
    let mut command = program();
    command.arg("--estimate").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    command.output().unwrap()
}

/// The estimate of a model that fits.
fn of(arguments: &[&str]) -> Value {
    let output = estimate(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn number(device: &Value, key: &str) -> u64 {
    device[key].as_u64().unwrap()
}

#[tokio::test]
async fn an_estimate_is_what_a_worker_takes() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let model = model_path();
    for (slots, context, kind, kv_bytes) in [
        ("1", "1024", "f16", 1024 * 23_040),
        ("8", "2048", "f16", 8 * 2048 * 23_040),
        ("4", "4096", "q8_0", 4 * 4096 * 12_240),
    ] {
        let settings = [
            &format!("--model={model}")[..],
            &format!("--slots={slots}"),
            &format!("--context={context}"),
            &format!("--cache-type-k={kind}"),
            &format!("--cache-type-v={kind}"),
            "--mmap=off",
        ];
        let estimate = of(&settings);
        let case = format!("{slots} × {context} {kind}: {estimate}");
        assert_eq!(estimate["slots"].to_string(), slots, "{case}");
        assert_eq!(estimate["context_tokens"].to_string(), context, "{case}");
        assert_eq!(
            (estimate["kind"].as_str(), &estimate["fits"]),
            (Some("generate"), &true.into())
        );
        let [device] = estimate["devices"].as_array().unwrap().as_slice() else { panic!("{case}") };
        assert_eq!(device["name"], "CPU", "{case}");
        assert_eq!(number(device, "kv_bytes"), kv_bytes, "{case}");
        let buffers: u64 = ["weights_bytes", "kv_bytes", "compute_bytes"]
            .iter()
            .map(|part| number(device, part))
            .sum();
        let store = number(device, "store_bytes");
        assert_eq!(store, 512 << 20, "{case}");
        assert_eq!(number(device, "required_bytes"), buffers + store, "{case}");

        let worker = Worker::start_engine(&settings).await;
        let taken = worker.resident_kib();
        let expected = buffers / 1024;
        // Pages of a step that none has computed yet are not there, and 5 % is little.
        let least = expected - number(device, "compute_bytes") / 1024 - expected / 20;
        let most = expected + expected / 20 + BESIDE_KIB;
        assert!((least..=most).contains(&taken), "{taken} KiB of {expected}; {case}");
    }
}

#[test]
fn an_embedding_model_is_estimated_too_and_keeps_no_conversations() {
    let encoder = TinyModel::encoder(Pooling::Mean);
    let estimate = of(&["--model", encoder.path.to_str().unwrap()]);
    assert_eq!(estimate["kind"], "embed");
    assert_eq!(estimate["slots"], 64);
    assert_eq!(estimate["devices"][0]["store_bytes"], 0);
}

#[test]
fn what_does_not_fit_is_printed_and_told_by_the_exit_code() {
    let model = model_path();
    let output =
        estimate(&["--model", &model, "--slots=256", "--context=8192", "--cache-ram=16777216"]);
    assert_eq!(output.status.code(), Some(71));
    let estimate: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&estimate["fits"], &estimate["devices"][0]["fits"]),
        (&false.into(), &false.into())
    );
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("does not fit"), "{stderr}");
}

#[test]
fn an_estimate_needs_a_model_that_can_be_read_and_devices_that_are_there() {
    let model = model_path();
    for (arguments, code, named) in [
        (&["--model=/no/such.gguf"][..], 66, "/no/such.gguf"),
        (&["--model=/etc/passwd"], 65, "not usable"),
        (&["--engine=echo"], 2, "--estimate"),
        (&[], 2, "--model"),
        (&["--model", &model, "--device=NoGpu0"], 78, "NoGpu0"),
        (&["--model", &model, "--cache-type-v=q8_0", "--flash-attention=off"], 2, "--cache-type-v"),
    ] {
        let output = estimate(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(named), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}
