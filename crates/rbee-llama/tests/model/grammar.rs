//! Grammars over the test model's vocabulary.

use rbee_llama::grammar::{Grammar, GrammarError};
use rbee_llama::vocab::{AddSpecial, Special, Token};

use crate::model;

const COLOUR: &str = "root ::= \"{\\\"colour\\\": \" (\"\\\"red\\\"\" | \"\\\"grün\\\"\") \"}\"\n";

fn tokens(text: &str) -> Vec<Token> {
    model().vocab().tokenize(text, AddSpecial::No, Special::Parse).expect("it is tokenized")
}

fn grammar() -> Grammar {
    Grammar::new(model(), COLOUR).expect("it compiles")
}

#[test]
fn a_text_of_the_grammar_is_accepted_and_can_end_only_where_it_is_whole() {
    for text in ["{\"colour\": \"red\"}", "{\"colour\": \"grün\"}"] {
        let mut grammar = grammar();
        let eos = model().vocab().eos().expect("the model has one");
        for token in tokens(text) {
            assert!(!grammar.allows(eos), "{text}");
            assert!(grammar.allows(token) && grammar.accept(token), "{text}");
        }
        assert!(grammar.allows(eos));
        assert!(!grammar.allows(tokens("x")[0]));
    }
}

#[test]
fn a_mask_leaves_exactly_the_tokens_that_may_come_next() {
    let model = model();
    let vocab = model.vocab();
    let mut grammar = grammar();
    for token in tokens("{\"colour\": \"grün\"}") {
        let mut logits = vec![1.0_f32; vocab.len()];
        grammar.mask(&mut logits).expect("it is masked");
        for (id, logit) in (0_u32..).zip(&logits) {
            assert_eq!(logit.is_finite(), grammar.allows(Token(id)), "token {id} before {token:?}");
        }
        assert!(logits.iter().all(|logit| *logit == 1.0 || *logit == f32::NEG_INFINITY));
        assert!(grammar.accept(token));
    }
}

#[test]
fn a_wrong_token_ends_the_grammar_and_not_the_process() {
    let model = model();
    let eos = model.vocab().eos().expect("the model has one");
    for wrong in [eos, tokens("x")[0], Token(u32::MAX)] {
        let mut grammar = grammar();
        assert!(!grammar.accept(wrong));
        let is_known = (wrong.0 as usize) < model.vocab().len();
        assert_eq!(grammar.allows(tokens("{\"")[0]), !is_known);
        let masked = grammar.mask(&mut vec![1.0; model.vocab().len()]);
        assert_eq!(matches!(masked, Err(GrammarError::Left { .. })), is_known, "{masked:?}");
    }
}

#[test]
fn a_row_of_another_length_is_an_error() {
    let mut row = vec![0.0; 7];
    assert!(matches!(grammar().mask(&mut row), Err(GrammarError::Row { got: 7, .. })));
}

#[test]
fn what_is_no_grammar_is_an_error() {
    for source in ["", "root = x", "leaf ::= \"x\"", "root ::= root \"x\"", "root ::= \"\0\""] {
        let made = Grammar::new(model(), source);
        assert!(matches!(made, Err(GrammarError::Syntax { .. })), "{source:?}: {made:?}");
    }
}

#[test]
fn a_grammar_that_waits_begins_within_the_token_that_holds_its_trigger() {
    let source = "root ::= \"<<\" [0-9]+ \">\"\n";
    let mut grammar = Grammar::beginning_at(model(), source, "<<").expect("it compiles");
    for token in tokens("anything, even x") {
        assert!(grammar.allows(token) && grammar.accept(token));
    }
    let free = tokens("word")[0];
    assert!(grammar.allows(free));
    let begun = tokens(" <<1");
    assert!(model().vocab().piece_bytes(begun[0]).starts_with(b" <"));
    for token in begun {
        assert!(grammar.accept(token));
    }
    assert!(!grammar.allows(free));
    assert!(grammar.allows(tokens("2")[0]));
}

#[test]
fn grammars_move_between_threads() {
    let mut grammar = grammar();
    let first = tokens("{\"")[0];
    assert!(std::thread::spawn(move || grammar.accept(first)).join().expect("it does not panic"));
}
