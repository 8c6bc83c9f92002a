//! dump
use crate::tiny_models::*;
#[test]
fn dump() {
    for (name, model) in [
        ("enc-mean", TinyModel::encoder(Pooling::Mean)),
        ("enc-rank", TinyModel::encoder(Pooling::Rank)),
        ("dec-last", TinyModel::decoder(Pooling::Last)),
        ("dec-rank", TinyModel::decoder(Pooling::Rank)),
    ] {
        std::fs::copy(&model.path, format!("/tmp/lab/tiny-{name}.gguf")).unwrap();
    }
}
