//! Models: import, list, remove, and what is refused.

use std::fs;

use rbee_api::error::ErrorCode;
use rbee_api::model::{ModelList, PullEvent};
use serde_json::json;

use crate::program::{Hive, Place, code, refused};
use crate::stream::{Chat, pull};
use crate::{gguf, processes};

async fn listed(hive: &Hive) -> Vec<String> {
    let list: ModelList = hive.get("/api/v1/models").await.unwrap();
    list.models.iter().map(|model| model.display_name()).collect()
}

fn files(hive: &Hive) -> usize {
    fs::read_dir(hive.home().join("models")).unwrap().count()
}

#[tokio::test]
async fn a_file_is_imported_with_progress_listed_and_removed() {
    let hive = Place::new().start().await;
    let source = hive.place().file("my.gguf", &gguf::tiny(1));
    let request = json!({"reference": format!("file:{}", source.display()), "alias": "tiny:1"});
    let events = pull(&hive.client, &request).await.unwrap();
    assert!(matches!(events[0], PullEvent::Progress { .. }), "{events:?}");
    let Some(PullEvent::Done { model }) = events.last() else { panic!("{events:?}") };
    assert_eq!((model.architecture.as_str(), model.context_length), ("llama", 512));
    assert_eq!(model.size_bytes, gguf::tiny(1).len() as u64);
    assert_eq!(listed(&hive).await, ["tiny:1"]);
    assert!(files(&hive) > 0);
    let removed = hive.remove_model("tiny:1").await.unwrap();
    assert_eq!(removed.removed, model.reference.to_string());
    assert_eq!((listed(&hive).await.len(), files(&hive)), (0, 0));
    assert!(source.exists(), "the original is not the hive's to remove");
    assert_eq!(code(hive.remove_model("tiny:1").await), ErrorCode::ModelNotFound);
}

#[tokio::test]
async fn a_model_can_be_named_by_its_whole_reference() {
    let hive = Place::new().start().await;
    let model = hive.import("tiny").await;
    let removed = hive.remove_model(model.reference.as_str()).await.unwrap();
    assert_eq!(removed.removed, model.reference.to_string());
}

#[tokio::test]
async fn what_is_no_whole_model_is_refused_and_nothing_is_left() {
    let hive = Place::new().start().await;
    let whole = gguf::tiny(1);
    let file =
        |name: &str, content: &[u8]| format!("file:{}", hive.place().file(name, content).display());
    let mut corrupt = whole.clone();
    corrupt[8] = 0xff;
    let directory = format!("file:{}", hive.place().directory.path().display());
    let zeros = "0".repeat(64);
    for (reference, sha256, expected) in [
        (file("garbage.gguf", b"no model at all"), None, ErrorCode::InvalidModelFile),
        (file("empty.gguf", b""), None, ErrorCode::InvalidModelFile),
        (file("corrupt.gguf", &corrupt), None, ErrorCode::InvalidModelFile),
        (file("cut-data.gguf", &whole[..whole.len() - 1]), None, ErrorCode::InvalidModelFile),
        (file("cut-header.gguf", &whole[..100]), None, ErrorCode::InvalidModelFile),
        (directory, None, ErrorCode::InvalidModelFile),
        (file("other.gguf", &whole), Some(&zeros), ErrorCode::ChecksumMismatch),
    ] {
        let events =
            pull(&hive.client, &json!({"reference": reference, "sha256": sha256})).await.unwrap();
        let Some(PullEvent::Failed { error }) = events.last() else {
            panic!("{reference}: {events:?}")
        };
        assert_eq!(error.code, expected, "{reference}: {error}");
        assert!(!error.message.contains("/tmp"), "{error}");
    }
    assert_eq!((listed(&hive).await.len(), files(&hive)), (0, 0));
}

/// Cuts, and counts and lengths at their edges, all over the header.
#[tokio::test]
async fn hostile_headers_are_refused_one_after_the_other_and_the_hive_goes_on() {
    let hive = Place::new().start().await;
    let whole = gguf::tiny(1);
    let cuts = (0..whole.len()).step_by(37).map(|length| whole[..length].to_vec());
    let mut hostile: Vec<Vec<u8>> = cuts.collect();
    for place in [8, 16, 24] {
        for number in [u64::MAX, u64::MAX - 1, 1 << 63, 1 << 32] {
            let mut file = whole.clone();
            file[place..place + 8].copy_from_slice(&number.to_le_bytes());
            hostile.push(file);
        }
    }
    for content in hostile {
        let source = hive.place().file("hostile.gguf", &content);
        let request =
            json!({"reference": format!("file:{}", source.display()), "alias": "hostile"});
        let events = pull(&hive.client, &request).await.unwrap();
        let Some(PullEvent::Failed { error }) = events.last() else {
            panic!("{} bytes: {events:?}", content.len())
        };
        assert_eq!(error.code, ErrorCode::InvalidModelFile, "{} bytes: {error}", content.len());
        assert_eq!(files(&hive), 0, "{} bytes", content.len());
    }
    assert_eq!(listed(&hive).await.len(), 0);
    hive.import("tiny").await;
}

#[tokio::test]
async fn what_names_no_file_of_this_machine_is_refused_at_once() {
    let place = Place::new();
    let allowed = place.directory.path().join("allowed");
    fs::create_dir(&allowed).unwrap();
    let outside = place.file("outside.gguf", &gguf::tiny(1));
    let hive = place.start_with(&format!("import_roots = ['{}']", allowed.display()), &[]).await;
    for (reference, expected) in [
        (format!("file:{}", allowed.join("none.gguf").display()), ErrorCode::FileNotFound),
        (format!("file:{}", outside.display()), ErrorCode::Forbidden),
        ("hf:owner/repo".to_owned(), ErrorCode::UnsupportedParameter),
        ("some:alias".to_owned(), ErrorCode::ValidationFailed),
        ("../x".to_owned(), ErrorCode::ValidationFailed),
    ] {
        let refusal = refused(pull(&hive.client, &json!({"reference": reference})).await);
        let detail = refusal.unwrap_err();
        assert_eq!(detail.code, expected, "{reference}");
        assert_eq!(detail.param.as_deref(), Some("reference"), "{reference}");
    }
}

#[tokio::test]
async fn an_alias_has_one_owner() {
    let hive = Place::new().start().await;
    hive.import("tiny").await;
    let other = hive.place().file("other.gguf", &gguf::tiny(9));
    let request = json!({"reference": format!("file:{}", other.display()), "alias": "tiny"});
    let events = pull(&hive.client, &request).await.unwrap();
    assert!(
        matches!(events.last(), Some(PullEvent::Failed { error }) if error.code == ErrorCode::AliasTaken),
        "{events:?}"
    );
    assert_eq!(listed(&hive).await, ["tiny"]);
}

#[tokio::test]
async fn a_model_that_answers_stays_and_one_whose_worker_is_idle_goes_with_it() {
    let hive = Place::new().start().await;
    let worker = hive.ready_worker("tiny").await;
    let mut chat = Chat::begin(&hive.client, worker.id.as_str(), "[[tokens=10000 delay_ms=20]] x")
        .await
        .unwrap();
    chat.more().await;
    assert_eq!(code(hive.remove_model("tiny").await), ErrorCode::ModelInUse);
    assert_eq!(hive.workers().await.len(), 1);
    drop(chat);
    let freed = std::time::Duration::from_millis(250);
    processes::eventually("the request ends with its client", freed, || async {
        hive.remove_model("tiny").await.ok()
    })
    .await;
    assert_eq!((hive.workers().await.len(), listed(&hive).await.len()), (0, 0));
    assert_eq!(processes::working_in(&hive.home()), [0; 0]);
}

#[tokio::test]
async fn a_file_that_has_changed_is_not_loaded() {
    let hive = Place::new().start().await;
    hive.import("tiny").await;
    let models = fs::read_dir(hive.home().join("models")).unwrap();
    let model = models
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "gguf"));
    let model = model.unwrap();
    let whole = fs::read(&model).unwrap();
    fs::write(&model, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(code(hive.start_worker("tiny").await), ErrorCode::InvalidModelFile);
    fs::remove_file(&model).unwrap();
    assert_eq!(code(hive.start_worker("tiny").await), ErrorCode::InvalidModelFile);
    assert_eq!(hive.workers().await.len(), 0);
}
