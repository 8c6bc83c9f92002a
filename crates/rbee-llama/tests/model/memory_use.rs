//! What a model takes of memory: measured without its weights, and as it is.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use rbee_llama::context::Context;
use rbee_llama::context_params::{ContextParams, FlashAttention};
use rbee_llama::device::DeviceKind;
use rbee_llama::kv_type::KvType;
use rbee_llama::memory_use::MeasuredModel;
use rbee_llama::model::{LoadError, Model};
use rbee_llama::model_params::{LoadMode, ModelParams};

use crate::{model, model_path};

fn params(slots: u32, context: u32, kind: KvType) -> ContextParams {
    ContextParams {
        n_ctx: slots * context,
        n_batch: 512,
        n_ubatch: 512,
        n_seq_max: slots,
        n_outputs_max: slots,
        type_k: kind,
        type_v: kind,
        ..ContextParams::default()
    }
}

#[test]
fn a_measured_model_takes_what_a_loaded_one_takes() {
    let measured = MeasuredModel::load(&model_path(), &ModelParams::default()).unwrap();
    // A mapped file counts whole, although the parts that are kept in another
    // order as well are not needed any more.
    let read = ModelParams { load_mode: LoadMode::Read, ..ModelParams::default() };
    let loaded = Model::load(&model_path(), &read, |_| ControlFlow::Continue(())).unwrap();
    for (slots, context, kind, kv_bytes) in [
        (1, 512, KvType::F16, 512 * 23_040),
        (4, 1024, KvType::F16, 4096 * 23_040),
        (2, 2048, KvType::Q8_0, 4096 * 12_240),
        (2, 256, KvType::F32, 512 * 46_080),
    ] {
        let params = params(slots, context, kind);
        let estimate = measured.measure(&params).unwrap();
        let running = Context::new(Arc::clone(&loaded), &params).unwrap();
        let real = running.memory_use().unwrap();
        let case = format!("{slots} × {context} {kind}: {estimate:?} {real:?}");
        assert_eq!(estimate[0].device.kind, DeviceKind::Cpu);
        assert_eq!(estimate.len(), real.len(), "{case}");
        for (estimate, real) in estimate.iter().zip(&real) {
            assert_eq!(estimate.device.name, real.device.name, "{case}");
            assert_eq!(estimate.kv_bytes, real.kv_bytes, "{case}");
            assert_eq!(estimate.compute_bytes, real.compute_bytes, "{case}");
            assert_eq!(estimate.weights_bytes, real.weights_bytes, "{case}");
        }
        let kv: u64 = real.iter().map(|used| used.kv_bytes).sum();
        assert_eq!(kv, kv_bytes, "{case}");
    }
}

#[test]
fn a_measured_model_knows_its_file() {
    let measured = MeasuredModel::load(&model_path(), &ModelParams::default()).unwrap();
    let (known, loaded) = (measured.model(), model());
    assert_eq!(known.n_layer(), loaded.n_layer());
    assert_eq!(known.n_ctx_train(), loaded.n_ctx_train());
    assert_eq!(known.size_bytes(), loaded.size_bytes());
    assert_eq!(known.chat_template(), loaded.chat_template());
    let missing = MeasuredModel::load(Path::new("/none.gguf"), &ModelParams::default());
    assert!(matches!(missing, Err(LoadError::NotFound { .. })));
    let off = FlashAttention::Off;
    let refused = ContextParams { flash_attention: off, ..params(1, 256, KvType::Q4_0) };
    assert!(measured.measure(&refused).is_err());
}

#[test]
fn a_gpu_that_is_not_there_is_named() {
    let params = ModelParams { devices: Some(vec!["NoGpu7".to_owned()]), ..ModelParams::default() };
    let load =
        |params: &ModelParams| Model::load(&model_path(), params, |_| ControlFlow::Continue(()));
    let refused = load(&params).unwrap_err();
    assert!(matches!(&refused, LoadError::NoSuchDevice { name, .. } if name == "NoGpu7"));
    assert!(refused.to_string().contains("NoGpu7"), "{refused}");
    // The processor is no GPU.
    let params = ModelParams { devices: Some(vec!["CPU".to_owned()]), ..params };
    assert!(matches!(load(&params), Err(LoadError::NoSuchDevice { .. })));
    let none = ModelParams { devices: Some(Vec::new()), ..params };
    assert!(load(&none).is_ok());
}
