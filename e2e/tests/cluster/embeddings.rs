//! Embeddings and ranking through all four programs, with models made for it.

use e2e::{Cluster, TinyKind};
use serde_json::{Value, json};

use crate::tiny_models::{Pooling, TinyModel};

fn vectors(reply: &Value) -> Vec<Vec<f64>> {
    let numbers = |data: &Value| -> Vec<f64> {
        let numbers = data["embedding"].as_array().expect("a vector");
        numbers.iter().map(|number| number.as_f64().expect("a number")).collect()
    };
    reply["data"].as_array().expect("a list").iter().map(numbers).collect()
}

#[test]
fn real_models_embed_and_rank_through_the_whole_chain() {
    let cluster = Cluster::llama();
    let models = [
        ("embedder", TinyModel::encoder(Pooling::Mean)),
        ("ranker", TinyModel::decoder(Pooling::Rank)),
    ];
    for (alias, model) in &models {
        let path = model.path.to_str().expect("a UTF-8 path");
        drop(cluster.rbee(&["pull", path, "--name", alias]).ok());
    }
    let queen = cluster.queen();
    let texts = ["the bees make honey", "a hive"];
    let together =
        queen.post("/v1/embeddings", &json!({"model": "embedder", "input": texts})).json();
    let together = vectors(&together);
    for (text, expected) in texts.iter().zip(&together) {
        let alone = queen.post("/v1/embeddings", &json!({"model": "embedder", "input": text}));
        let alone = &vectors(&alone.json())[0];
        let cosine: f64 = alone.iter().zip(expected).map(|(a, b)| a * b).sum();
        assert!((cosine - 1.0).abs() < 1e-4, "{text}: {cosine}");
    }
    let lines = cluster.rbee(&["embed", "-m", "embedder", texts[0], texts[1]]).ok();
    assert_eq!(lines.lines().count(), 2, "{lines}");

    let documents = ["honey", "the weather", "bees"];
    let asked =
        json!({"model": "ranker", "query": "where is honey", "documents": documents, "top_n": 2});
    let reply = queen.post("/v1/rerank", &asked).json();
    let results = reply["results"].as_array().expect("results");
    let score = |at: usize| results[at]["relevance_score"].as_f64().expect("a score");
    assert!(results.len() == 2 && score(0) >= score(1), "{reply}");
    assert!((0.0..=1.0).contains(&score(0)), "{reply}");

    let slots: Vec<_> =
        cluster.workers().iter().map(|worker| worker["slots_total"].clone()).collect();
    assert_eq!(slots, [64, 64], "an embedding model is not given a text model's slots");
}

#[test]
fn listings_tell_what_a_model_is_for_and_nothing_is_loaded_for_what_it_is_not() {
    let cluster = Cluster::echo();
    let kinds = [
        ("writer", TinyKind::Generate, "generate", "chat"),
        ("embedder", TinyKind::Embed, "embed", "embedding"),
        ("ranker", TinyKind::Rerank, "rerank", "rerank"),
    ];
    for (alias, tiny, _, _) in kinds {
        cluster.import_tiny_of(alias, tiny);
    }
    let queen = cluster.queen();
    let listed = cluster.rbee(&["list"]).ok();
    for (alias, _, kind, capability) in kinds {
        let card = queen.get(&format!("/v1/models/{alias}")).json();
        assert_eq!(card["capabilities"][0], capability, "{card}");
        let row = listed.lines().find(|line| line.starts_with(alias)).expect("a row");
        assert!(row.contains(kind), "{row}");
    }
    let chat = json!([{"role": "user", "content": "hi"}]);
    for (path, body, fits) in [
        ("/v1/chat/completions", json!({"messages": chat}), "writer"),
        ("/v1/completions", json!({"prompt": "hi"}), "writer"),
        ("/v1/embeddings", json!({"input": "hi"}), "embedder"),
        ("/v1/rerank", json!({"query": "hi", "documents": ["hi", "ho"]}), "ranker"),
    ] {
        for (alias, ..) in kinds.iter().filter(|(alias, ..)| *alias != fits) {
            let mut body = body.clone();
            body["model"] = json!(alias);
            let refused = queen.post(path, &body);
            let error = refused.json()["error"].clone();
            assert_eq!(refused.status, 400, "{path} {alias}");
            assert_eq!(
                (&error["code"], &error["param"]),
                (&json!("unsupported_parameter"), &json!("model"))
            );
        }
    }
    assert_eq!(cluster.workers().len(), 0, "a worker was started to say no");

    let asked = json!({"model": "ranker", "query": "a b", "documents": ["x", "a", "a b"]});
    let reply = queen.post("/v1/rerank", &asked).json();
    let order: Vec<&Value> = reply["results"]
        .as_array()
        .expect("results")
        .iter()
        .map(|result| &result["index"])
        .collect();
    assert_eq!(order, [&json!(2), &json!(1), &json!(0)]);
    let metrics = queen.get("/metrics").body;
    assert!(metrics.contains("operation=\"rerank\""), "{metrics}");
}
