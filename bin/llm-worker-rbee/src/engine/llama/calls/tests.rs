//! Replies spelled out token by token, with the vocabulary of the starter model.

use std::path::PathBuf;
use std::sync::OnceLock;

use rbee_llama::chat::{ChatMessage, ChatRequest, ChatTemplate, Tool, ToolChoice};
use rbee_llama::model_params::ModelParams;
use serde_json::{Map, Value, json};

use super::*;

fn model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    let load = || {
        #[expect(clippy::disallowed_methods, reason = "a test may be given another model")]
        let given = std::env::var_os("RBEE_TEST_MODEL");
        let usual = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../target/rbee-test/models/SmolLM2-135M-Instruct.Q4_1.gguf"
        );
        let path = given.map_or_else(|| PathBuf::from(usual), PathBuf::from);
        let go_on = |_| std::ops::ControlFlow::Continue(());
        Model::load(&path, &ModelParams::default(), go_on).expect("`make test` fetches the model")
    };
    Arc::clone(MODEL.get_or_init(load))
}

/// The grammar of a reply to a request with one tool, by a published template.
fn grammar(template: &str, tool_choice: ToolChoice) -> CallGrammar {
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}},
        "required": ["n"], "additionalProperties": false});
    grammar_of(schema, template, tool_choice)
}

/// The same with this schema.
fn grammar_of(schema: Value, template: &str, tool_choice: ToolChoice) -> CallGrammar {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../crates/rbee-llama/tests");
    let source = std::fs::read_to_string(path.join("templates").join(template)).unwrap();
    let template = ChatTemplate::from_model(&model(), Some(&source)).unwrap();
    let tool = Tool { name: "f".to_owned(), description: String::new(), parameters: schema };
    let message =
        ChatMessage { role: "user".to_owned(), content: "Hi".to_owned(), ..Default::default() };
    let request = ChatRequest {
        messages: &[message],
        tools: &[tool],
        tool_choice,
        parallel_tool_calls: Some(false),
        add_generation_prompt: true,
        enable_thinking: true,
        arguments: &Map::new(),
    };
    let format = template.render(&request).unwrap().reply.unwrap();
    CallGrammar::new(&model(), &format).unwrap().unwrap()
}

/// The first token of a text.
fn first(text: &str) -> u32 {
    tokens(text)[0]
}

fn tokens(text: &str) -> Vec<u32> {
    let tokens = model().vocab().tokenize(text, AddSpecial::No, Special::Parse).unwrap();
    tokens.into_iter().map(|token| token.0).collect()
}

/// Writes a text as the sampler does and says whether every token was allowed.
fn write(grammar: &mut dyn Constraint, text: &str) -> bool {
    tokens(text).into_iter().all(|token| {
        let allowed = grammar.allows(token).unwrap();
        if allowed {
            grammar.accept(token).unwrap();
        }
        allowed
    })
}

#[test]
fn text_is_free_until_a_call_begins_and_the_call_is_held() {
    let mut held = grammar("qwen2.5.jinja", ToolChoice::Auto);
    assert!(write(&mut held, "Free {text} with a <tool> in it, and then:\n\n<tool_call>\n"));
    assert!(!held.allows(first("hello")).unwrap());
    let mut masked = vec![0.0; model().vocab().len()];
    held.mask(&mut masked).unwrap();
    assert!(masked[first("{\"") as usize].is_finite());
    assert!(masked[first("hello") as usize].is_infinite());
    assert!(write(&mut held, "{\"name\": \"f\", \"arguments\": {\"n\": 12"));
    let end = model().vocab().eos().unwrap().0;
    assert!(!held.allows(first("\"text\"")).unwrap() && !held.allows(end).unwrap());
    assert!(write(&mut held, "}}\n</tool_call>"));
    assert!(held.allows(end).unwrap());
}

#[test]
fn what_is_thought_of_a_call_is_free() {
    let mut held = grammar("qwen3.jinja", ToolChoice::Auto);
    assert!(write(&mut held, "<think>\nMaybe <tool_call>\nor not</think>"));
    assert!(write(&mut held, "\n\n<tool_call>\n"));
    assert!(!held.allows(first("or")).unwrap());
    // The prompt of this one ends with the beginning of the thoughts.
    let mut held = grammar("deepseek-r1-distill.jinja", ToolChoice::Auto);
    assert!(write(&mut held, "Maybe <｜tool▁calls▁begin｜> or not</think>\n\nSo: "));
    assert!(write(&mut held, "<｜tool▁calls▁begin｜>"));
    assert!(!held.allows(first("or")).unwrap());
}

#[test]
fn a_required_call_comes_at_once() {
    for template in ["qwen2.5.jinja", "gemma-form.jinja", "phi-3.5.jinja"] {
        let mut held = grammar(template, ToolChoice::Required);
        assert!(!held.allows(first("Sure")).unwrap(), "{template}");
        assert!(write(&mut held, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"n\": 1}}\n"));
        assert!(write(&mut held, "</tool_call>"), "{template}");
        // One call is all that was asked for.
        assert!(!write(&mut held, "\n<tool_call>"), "{template}");
    }
    let mut held = grammar("llama-3-form.jinja", ToolChoice::Required);
    assert!(!held.allows(first("Sure")).unwrap());
    assert!(write(&mut held, "{\"name\": \"f\", \"parameters\": {\"n\": 1}}"));
}

#[test]
fn a_required_call_may_be_thought_about() {
    let mut held = grammar("qwen3.jinja", ToolChoice::Required);
    assert!(write(&mut held, "<think>\nI want to.\n</think>\n\n<tool_call>\n{\"name\": \"f\""));
    let mut held = grammar("deepseek-r1-distill.jinja", ToolChoice::Required);
    assert!(write(&mut held, "I want to.\n</think>"));
    assert!(!held.allows(first("Sure")).unwrap());
}

#[test]
fn a_reply_that_leaves_the_grammar_is_text_again() {
    let mut held = grammar("qwen2.5.jinja", ToolChoice::Auto);
    assert!(write(&mut held, "<tool_call>\n"));
    held.accept(first("hello")).unwrap();
    assert!(matches!(held.state, State::Free));
    let mut row = vec![0.5; model().vocab().len()];
    held.mask(&mut row).unwrap();
    assert!(row.iter().all(|logit| *logit == 0.5));
    assert!(write(&mut held, "whatever comes"));
}

#[test]
fn copies_go_on_from_where_they_were_made_each_its_own_way() {
    for choice in [ToolChoice::Auto, ToolChoice::Required] {
        let mut first_one = grammar("qwen2.5.jinja", choice);
        let mut second = first_one.try_clone().unwrap();
        assert!(write(&mut first_one, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"n\": 1"));
        let mut third = first_one.try_clone().unwrap();
        assert!(write(&mut first_one, "2}}\n</tool_call>"));
        assert!(write(second.as_mut(), "<tool_call>\n"));
        assert!(!second.allows(first("hello")).unwrap());
        assert!(!third.allows(first("hello")).unwrap());
        assert!(write(third.as_mut(), "}}\n</tool_call>"));
        let end = model().vocab().eos().unwrap().0;
        assert!(first_one.allows(end).unwrap() && third.allows(end).unwrap());
        assert!(!second.allows(end).unwrap());
    }
}

#[test]
fn a_schema_that_can_be_read_in_ever_more_ways_ends_its_own_reply() {
    let level = |next: Value| {
        let object = |more: Value| {
            let mut properties = json!({"a": next});
            properties.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"type": "object", "properties": properties, "required": ["a"]})
        };
        json!({"anyOf": [object(json!({})), object(json!({"b": {"type": "null"}}))]})
    };
    let mut definitions = Map::new();
    for depth in 0..18 {
        let next = json!({"$ref": format!("#/$defs/d{}", depth + 1)});
        definitions.insert(format!("d{depth}"), level(next));
    }
    definitions.insert("d18".to_owned(), json!({"type": "null"}));
    let schema = json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/d0"}}, "required": ["a"],
        "$defs": definitions});
    let mut held = grammar_of(schema, "qwen2.5.jinja", ToolChoice::Required);
    let text = format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {}", "{\"a\": ".repeat(18));
    let failed = tokens(&text).into_iter().find_map(|token| {
        assert!(held.allows(token).unwrap_or(true));
        held.accept(token).err()
    });
    assert_eq!(failed, Some(ConstraintError::TooComplex { param: "tools" }));
}
