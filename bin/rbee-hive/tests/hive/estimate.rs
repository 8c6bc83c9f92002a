//! The estimate by which a hive admits workers, held to the one that the worker makes with llama.cpp.

use std::path::Path;
use std::process::Command;

use model_catalog::{CacheType, GgufHeader, MemoryParams, Scores, estimate_memory};
use serde_json::Value;

use crate::program::worker_program;

/// What the hive's formula may be off by: it does not know which weights llama.cpp keeps twice, nor its graphs.
const TOLERANCE_PERCENT: u64 = 15;
/// The same for small models.
const TOLERANCE_BYTES: u64 = 48 << 20;

fn starter_model() -> String {
    #[expect(clippy::disallowed_methods, reason = "a test may be given another model")]
    let given = std::env::var("RBEE_TEST_MODEL");
    let usual = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../target/rbee-test/models/SmolLM2-135M-Instruct.Q4_1.gguf"
    );
    let path = given.unwrap_or_else(|_| usual.to_owned());
    assert!(Path::new(&path).is_file(), "{path} is missing; `make test` fetches it");
    path
}

/// The worker's estimate of the processor's memory.
fn of_worker(arguments: &[String]) -> Value {
    #[expect(clippy::disallowed_methods, reason = "a test of a program starts the program")]
    let output = Command::new(worker_program()).arg("--estimate").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn hive_and_worker_estimate_the_same() {
    let path = starter_model();
    let header = GgufHeader::read_file(Path::new(&path)).unwrap();
    for (slots, context_per_slot, kind, unified) in [
        (1, 512, CacheType::F16, false),
        (8, 4096, CacheType::F16, false),
        (8, 4096, CacheType::Q8, false),
        (4, 2048, CacheType::F32, true),
        (64, 1024, CacheType::Q4, false),
    ] {
        let layout = if unified { "unified" } else { "split" };
        let estimate = of_worker(&[
            format!("--model={path}"),
            format!("--slots={slots}"),
            format!("--context={context_per_slot}"),
            format!("--cache-type-k={}", kind.as_str()),
            format!("--cache-type-v={}", kind.as_str()),
            format!("--kv-layout={layout}"),
            "--device=none".to_owned(),
            "--cache-ram=0".to_owned(),
        ]);
        let [device] = estimate["devices"].as_array().unwrap().as_slice() else {
            panic!("{estimate}");
        };
        let own = estimate_memory(
            &header,
            MemoryParams {
                context_per_slot,
                slots,
                step_tokens: 512,
                step_outputs: slots,
                cache_type_k: kind,
                cache_type_v: kind,
                cache_unified: unified,
                scores: if kind == CacheType::F32 { Scores::WhereSmall } else { Scores::No },
            },
        );
        let case = format!("{own:?} {device}");
        assert_eq!(device["kv_bytes"], own.kv_bytes, "{case}");
        let required = device["required_bytes"].as_u64().unwrap();
        let apart = required.abs_diff(own.total_bytes);
        assert!(apart <= TOLERANCE_BYTES + required / 100 * TOLERANCE_PERCENT, "{apart}: {case}");
    }
}
