//! Chat templates, as llama-server renders them.

use std::sync::LazyLock;

use rbee_llama::chat::{
    ChatMessage, ChatRequest, ChatTemplate, Rendered, TemplateError, ToolChoice,
};
use serde_json::{Map, Value};

use crate::model;

static NO_ARGUMENTS: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);

/// Asks for an answer to the messages, without tools.
fn plain(messages: &[ChatMessage]) -> ChatRequest<'_> {
    ChatRequest {
        messages,
        tools: &[],
        tool_choice: ToolChoice::Auto,
        parallel_tool_calls: None,
        add_generation_prompt: true,
        enable_thinking: true,
        arguments: &NO_ARGUMENTS,
    }
}

fn said(role: &str, content: &str) -> ChatMessage {
    let (role, content) = (role.to_owned(), content.to_owned());
    ChatMessage { role, content, ..ChatMessage::default() }
}

/// Who says what.
type Messages<'a> = &'a [(&'a str, &'a str)];

fn render(
    override_source: Option<&str>,
    messages: Messages<'_>,
    add_generation_prompt: bool,
) -> Result<Rendered, TemplateError> {
    let messages: Vec<_> = messages.iter().map(|(role, content)| said(role, content)).collect();
    let request = ChatRequest { add_generation_prompt, ..plain(&messages) };
    ChatTemplate::from_model(&model(), override_source)?.render(&request)
}

#[test]
fn the_models_own_template_is_rendered_to_the_letter() {
    let default_system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, \
                          trained by Hugging Face<|im_end|>\n";
    let cases: [(Messages<'_>, bool, String); 4] = [
        (
            &[("user", "Hi")],
            true,
            format!("{default_system}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        ),
        (
            &[("user", "Hi")],
            false,
            format!("{default_system}<|im_start|>user\nHi<|im_end|>\n"),
        ),
        (
            &[("system", "Be brief."), ("user", "日本 \"🦀\"\n\\n")],
            true,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n日本 \"🦀\"\n\\n<|im_end|>\n\
             <|im_start|>assistant\n"
                .to_owned(),
        ),
        (
            &[("system", "S"), ("user", "1"), ("assistant", "2"), ("user", "3")],
            true,
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n1<|im_end|>\n\
             <|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\n3<|im_end|>\n\
             <|im_start|>assistant\n"
                .to_owned(),
        ),
    ];
    for (messages, add_generation_prompt, expected) in cases {
        let rendered = render(None, messages, add_generation_prompt).expect("it is rendered");
        assert_eq!(rendered.prompt, expected);
        assert_eq!(rendered.stops, [""; 0]);
    }
}

#[test]
fn the_template_can_be_replaced() {
    let source = "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}\
                  {% if add_generation_prompt %}>{% endif %}";
    let rendered = render(Some(source), &[("user", "Hi")], true).expect("it is rendered");
    assert_eq!(rendered.prompt, "[user: Hi]>");
}

#[test]
fn chatml_is_known_by_name() {
    let rendered = render(Some("chatml"), &[("user", "Hi")], true).expect("it is rendered");
    assert_eq!(rendered.prompt, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

#[test]
fn a_template_is_told_whether_to_think() {
    let source = "{{ messages[0].content }}{% if not enable_thinking %} /no_think{% endif %}";
    let template = ChatTemplate::from_model(&model(), Some(source)).expect("it is parsed");
    let messages = [said("user", "Hi")];
    for (enable_thinking, expected) in [(true, "Hi"), (false, "Hi /no_think")] {
        let rendered = template
            .render(&ChatRequest { enable_thinking, ..plain(&messages) })
            .expect("it is rendered");
        assert_eq!(rendered.prompt, expected);
    }
}

#[test]
fn a_template_that_is_no_jinja_is_refused_with_the_reason() {
    match render(Some("{% for m in messages %}"), &[("user", "Hi")], true) {
        Err(TemplateError::Syntax { reason }) => {
            assert_ne!(reason, "std::exception");
            assert_ne!(reason, "no reason given");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_template_says_about_the_messages_reaches_the_caller() {
    let source = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}\
                  {{ raise_exception('only users may speak') }}{% endif %}{% endfor %}";
    match render(Some(source), &[("assistant", "Hi")], true) {
        Err(TemplateError::Refused { reason }) => {
            assert!(reason.contains("only users may speak"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_template_from_the_model_is_told_from_a_guess() {
    let own = ChatTemplate::from_model(&model(), None).expect("it is parsed");
    assert!(own.is_explicit());
}

#[test]
fn many_threads_render_one_template() {
    let template = ChatTemplate::from_model(&model(), None).expect("it is parsed");
    std::thread::scope(|scope| {
        for speaker in 0..4 {
            let template = &template;
            scope.spawn(move || {
                let messages = [said("user", &format!("I am {speaker}"))];
                for _ in 0..10 {
                    let rendered = template.render(&plain(&messages)).expect("it is rendered");
                    assert!(rendered.prompt.contains(&messages[0].content));
                }
            });
        }
    });
}
