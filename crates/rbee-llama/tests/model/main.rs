//! Runs rbee-llama on a real model, SmolLM2 135M. `make test` fetches the file;
//! the environment variable `RBEE_TEST_MODEL` names another place for it.
// Tells clippy that the helpers below are test code too.
#![cfg(test)]

mod chat;
mod decode;
mod embeddings;
mod golden;
mod grammar;
mod graph;
mod load;
mod memory;
mod memory_use;
mod multiply;
mod oracle;
mod rows;
mod vocab;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rbee_llama::context::Context;
use rbee_llama::context_params::ContextParams;
use rbee_llama::model::Model;
use rbee_llama::model_params::ModelParams;

const FILE: &str = "../../target/rbee-test/models/SmolLM2-135M-Instruct.Q4_1.gguf";

/// The path of the test model, which exists.
#[expect(
    clippy::disallowed_methods,
    reason = "the one setting of the tests has no config file to stand in"
)]
fn model_path() -> PathBuf {
    let path = std::env::var_os("RBEE_TEST_MODEL")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE), PathBuf::from);
    assert!(path.is_file(), "{} is missing: run `make test`, which fetches it", path.display());
    path
}

/// The test model, loaded once for all tests.
fn model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    let model = MODEL.get_or_init(|| {
        Model::load(&model_path(), &ModelParams::default(), |_| ControlFlow::Continue(()))
            .expect("the test model loads")
    });
    Arc::clone(model)
}

/// A context of 512 tokens on two threads, as `change` alters it.
fn context(change: impl FnOnce(&mut ContextParams)) -> Context {
    let mut params = ContextParams {
        n_ctx: 512,
        n_batch: 512,
        n_ubatch: 128,
        n_threads: 2,
        n_threads_batch: 2,
        ..ContextParams::default()
    };
    change(&mut params);
    Context::new(model(), &params).expect("the context is made")
}
