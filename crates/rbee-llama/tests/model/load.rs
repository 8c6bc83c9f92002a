//! Loading: what the file says, and every way in which a file can be wrong.

use std::io::Write;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rbee_llama::context::Context;
use rbee_llama::model::{LoadError, Model};
use rbee_llama::model_params::{LoadMode, ModelParams};

use crate::{model, model_path};

fn load(path: &Path) -> Result<Arc<Model>, LoadError> {
    Model::load(path, &ModelParams::default(), |_| ControlFlow::Continue(()))
}

/// A file with the first `len` bytes of the test model.
fn truncated(len: usize) -> tempfile::NamedTempFile {
    let whole = std::fs::read(model_path()).expect("the test model is readable");
    file_with(&whole[..len])
}

fn file_with(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("the file is written");
    file
}

#[test]
fn a_model_knows_what_its_file_says() {
    let model = model();
    assert_eq!(model.n_ctx_train(), 8192);
    assert_eq!(model.n_embd(), 576);
    assert_eq!(model.n_layer(), 30);
    assert_eq!(model.n_swa(), 0);
    assert_eq!(model.vocab().len(), 49152);
    assert_eq!(model.n_params(), 134_515_008);
    assert!((80_000_000..100_000_000).contains(&model.size_bytes()));
    assert_eq!(model.description(), "llama 256M Q4_1");
    assert!(model.has_decoder() && !model.has_encoder());
    assert!(!model.has_recurrent_state());
    assert_eq!(model.meta("general.architecture").as_deref(), Some("llama"));
    assert_eq!(model.meta("no.such.key"), None);
    assert_eq!(model.meta("a\0key"), None);
    let template = model.chat_template().expect("an instruct model has one");
    assert_eq!(
        model.meta("tokenizer.chat_template").as_deref(),
        Some(template.as_str()),
        "a value longer than any buffer comes whole"
    );
}

#[test]
fn a_file_that_cannot_be_opened_is_told_from_one_that_cannot_be_used() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let missing = load(&dir.path().join("none.gguf"));
    assert!(matches!(missing, Err(LoadError::NotFound { .. })));
    let directory = load(dir.path());
    assert!(matches!(directory, Err(LoadError::Unreadable { .. })));
    let nul = load(Path::new("a\0b"));
    assert!(matches!(nul, Err(LoadError::Unreadable { .. })));
}

#[test]
fn a_damaged_file_is_an_error_and_never_the_end_of_the_process() {
    let cases = [
        ("empty", file_with(b"")),
        ("text", file_with(b"not a model at all, just some text\n")),
        ("magic alone", file_with(b"GGUF")),
        ("old version", file_with(b"GGUF\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0")),
        ("cut in the header", truncated(1000)),
        ("cut in the vocabulary", truncated(500_000)),
        ("cut in the weights", truncated(40_000_000)),
        ("cut at the end", truncated(98_000_000)),
    ];
    for (name, file) in cases {
        match load(file.path()) {
            Err(LoadError::Invalid { reason, .. }) => {
                assert_ne!(reason, "no reason given", "{name}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn progress_rises_to_one_and_can_stop_the_load() {
    let mut seen = Vec::new();
    let params = ModelParams { load_mode: LoadMode::Read, ..ModelParams::default() };
    let loaded = Model::load(&model_path(), &params, |share| {
        seen.push(share);
        ControlFlow::Continue(())
    });
    assert!(loaded.is_ok());
    assert!(seen.is_sorted(), "{seen:?}");
    assert!(seen.last().is_some_and(|last| (*last - 1.0).abs() < 1e-6));

    let mut calls = 0;
    let stopped = Model::load(&model_path(), &params, |_| {
        calls += 1;
        ControlFlow::Break(())
    });
    assert!(matches!(stopped, Err(LoadError::Aborted)));
    assert_eq!(calls, 1, "nothing is reported after the stop");
}

#[test]
fn a_panic_in_the_progress_function_arrives_at_the_caller() {
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        Model::load(&model_path(), &ModelParams::default(), |_| panic!("out of paper"))
    }));
    let panic = panicked.expect_err("the panic goes on");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"out of paper"));
}

#[test]
fn what_llama_cpp_logs_goes_to_tracing() {
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("one thread writes").extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let sink = Sink::default();
    let writer = sink.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::ERROR)
        .with_writer(move || writer.clone())
        .finish();
    let file = file_with(b"not a model at all, just some text\n");
    tracing::subscriber::with_default(subscriber, || load(file.path())).expect_err("no model");
    let logged = String::from_utf8(sink.0.lock().expect("it is done").clone()).expect("UTF-8");
    assert!(logged.contains("ERROR llama.cpp: "), "{logged}");
    assert!(logged.contains("magic"), "{logged}");
}

#[test]
fn the_build_uses_the_instructions_of_its_processor() {
    let info = rbee_llama::backend::system_info();
    assert!(info.contains("OPENMP = 1"), "{info}");
    if cfg!(target_feature = "avx512f") {
        assert!(info.contains("AVX512 = 1"), "{info}");
    }
    if cfg!(target_feature = "avx512vnni") {
        assert!(info.contains("AVX512_VNNI = 1"), "{info}");
    }
}

#[test]
fn models_are_shared_between_threads_and_contexts_move() {
    fn shared<T: Send + Sync + 'static>(_: &T) {}
    fn moves<T: Send + 'static>(_: &T) {}
    shared(&model());
    let context: Context = crate::context(|_| ());
    moves(&context);
    shared(&context.abort_handle());
}
