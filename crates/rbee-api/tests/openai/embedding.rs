//! Inputs to embed and documents to rank.

use super::*;

fn embedding_with(extra: Value) -> Result<EmbeddingRequest, RequestError> {
    let mut body = json!({"model": "bge:small", "input": "hi"});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    EmbeddingRequest::parse(body.to_string().as_bytes())
}

fn rerank_with(extra: Value) -> Result<RerankRequest, RequestError> {
    let mut body = json!({"model": "bge:rank", "query": "hi", "documents": ["a", "b"]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    RerankRequest::parse(body.to_string().as_bytes())
}

#[test]
fn what_is_embedded_comes_in_four_forms() {
    let inputs = |input: Value| embedding_with(json!({"input": input})).map(|r| r.inputs);
    let text = |text: &str| EmbeddingInput::Text(text.to_owned());
    assert_eq!(inputs(json!("a")).unwrap(), [text("a")]);
    assert_eq!(inputs(json!(["a", "b"])).unwrap(), [text("a"), text("b")]);
    assert_eq!(inputs(json!([1, 2])).unwrap(), [EmbeddingInput::Tokens(vec![1, 2])]);
    let lists = [EmbeddingInput::Tokens(vec![1]), EmbeddingInput::Tokens(vec![2, 3])];
    assert_eq!(inputs(json!([[1], [2, 3]])).unwrap(), lists);
    for (wrong, param) in [
        (json!(""), "input"),
        (json!([]), "input"),
        (json!(["a", ""]), "input[1]"),
        (json!([[1], []]), "input[1]"),
        (json!(["a", "b\u{0}"]), "input[1]"),
        (json!(["a", 1]), "input"),
        (json!([-1]), "input"),
        (json!({"text": "a"}), "input"),
        (json!(null), "input"),
        (json!(vec!["a"; limits::EMBEDDING_INPUTS_MAX + 1]), "input"),
    ] {
        assert_refused(inputs(wrong), ErrorCode::ValidationFailed, param);
    }
    assert_eq!(inputs(json!(vec!["a"; limits::EMBEDDING_INPUTS_MAX])).unwrap().len(), 2048);
}

#[test]
fn embeddings_are_numbers_or_base64_of_a_width_if_asked_for() {
    let request = embedding_with(json!({"user": "u", "safety_identifier": "u"})).unwrap();
    assert_eq!((request.encoding, request.dimensions), (EmbeddingEncoding::Float, None));
    let request = embedding_with(json!({"encoding_format": "base64", "dimensions": 8})).unwrap();
    assert_eq!((request.encoding, request.dimensions), (EmbeddingEncoding::Base64, Some(8)));
    for (extra, code, param) in [
        (json!({"encoding_format": "int8"}), ErrorCode::ValidationFailed, "encoding_format"),
        (json!({"dimensions": 0}), ErrorCode::ValidationFailed, "dimensions"),
        (json!({"dimensions": 1.5}), ErrorCode::ValidationFailed, "dimensions"),
        (json!({"task": "query"}), ErrorCode::UnsupportedParameter, "task"),
    ] {
        assert_refused(embedding_with(extra), code, param);
    }
    let encoded = EmbeddingVector::encode(vec![1.0, -2.5], EmbeddingEncoding::Base64);
    assert_eq!(encoded, EmbeddingVector::Base64("AACAPwAAIMA=".to_owned()));
}

#[test]
fn documents_to_rank_are_texts_or_objects_with_one() {
    let request = rerank_with(json!({"documents": ["a", {"text": "b"}], "top_n": 1})).unwrap();
    assert_eq!((request.documents, request.top_n), (vec!["a".into(), "b".into()], Some(1)));
    assert!(!request.return_documents);
    assert!(rerank_with(json!({"return_documents": true})).unwrap().return_documents);
    for (extra, code, param) in [
        (json!({"query": ""}), ErrorCode::ValidationFailed, "query"),
        (json!({"query": 1}), ErrorCode::ValidationFailed, "query"),
        (json!({"documents": []}), ErrorCode::ValidationFailed, "documents"),
        (json!({"documents": "a"}), ErrorCode::ValidationFailed, "documents"),
        (json!({"documents": ["a", ""]}), ErrorCode::ValidationFailed, "documents[1]"),
        (json!({"documents": ["a", {"title": "b"}]}), ErrorCode::ValidationFailed, "documents[1]"),
        (json!({"top_n": 0}), ErrorCode::ValidationFailed, "top_n"),
        (json!({"rank_fields": ["a"]}), ErrorCode::UnsupportedParameter, "rank_fields"),
    ] {
        assert_refused(rerank_with(extra), code, param);
    }
}
