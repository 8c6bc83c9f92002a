//! Text to tokens and back.

use rbee_llama::vocab::{AddSpecial, Special, Token};

use crate::{model, oracle};

const TEXTS: [&str; 7] = [
    "",
    "The capital of France is Paris.",
    "  leading and trailing spaces  ",
    "line\nbreaks\r\n\tand tabs",
    "naïve café, Straße, Привет",
    "日本語と中文，한국어",
    "🦀🐝 family 👩‍👩‍👧‍👦 flag 🇫🇷",
];

#[test]
fn a_text_survives_the_way_to_tokens_and_back() {
    let model = model();
    for text in TEXTS {
        let tokens = model
            .vocab()
            .tokenize(text, AddSpecial::No, Special::AsText)
            .expect("the text is tokenized");
        assert_eq!(oracle::text(tokens), text);
    }
}

#[test]
fn a_control_token_is_one_token_or_plain_text_as_asked() {
    let model = model();
    let vocab = model.vocab();
    let name = "<|im_end|>";

    let parsed =
        vocab.tokenize(name, AddSpecial::No, Special::Parse).expect("the text is tokenized");
    let [token] = parsed[..] else {
        panic!("one token, not {parsed:?}");
    };
    assert!(vocab.is_eog(token) && vocab.is_control(token));
    assert_eq!(vocab.piece_bytes(token), b"", "a reader sees nothing of it");
    assert_eq!(vocab.eos(), Some(token));

    let plain =
        vocab.tokenize(name, AddSpecial::No, Special::AsText).expect("the text is tokenized");
    assert!(plain.len() > 1);
    assert!(!plain.iter().any(|token| vocab.is_control(*token)));
    assert_eq!(oracle::text(plain), name);
}

#[test]
fn a_control_token_that_does_not_end_anything_is_invisible_too() {
    let model = model();
    let vocab = model.vocab();
    let start = vocab
        .tokenize("<|im_start|>", AddSpecial::No, Special::Parse)
        .expect("the text is tokenized")[0];
    assert!(vocab.is_control(start) && !vocab.is_eog(start));
    assert_eq!(vocab.piece_bytes(start), b"");
    assert_eq!(vocab.bos(), Some(start));
}

#[test]
fn special_tokens_are_added_only_as_the_vocabulary_asks() {
    let model = model();
    let vocab = model.vocab();
    let added =
        vocab.tokenize("Hi", AddSpecial::Yes, Special::Parse).expect("the text is tokenized");
    assert_eq!(added.first() == vocab.bos().as_ref(), vocab.add_bos());
}

#[test]
fn a_token_that_does_not_exist_has_no_bytes() {
    let model = model();
    for token in [Token(49152), Token(u32::MAX)] {
        assert_eq!(model.vocab().piece_bytes(token), b"");
        assert!(!model.vocab().is_control(token));
    }
}

#[test]
fn many_threads_tokenize_at_once() {
    let expected: Vec<_> = TEXTS.map(oracle::tokens).into();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let tokens: Vec<_> = TEXTS.map(oracle::tokens).into();
                    assert_eq!(tokens, expected);
                }
            });
        }
    });
}
