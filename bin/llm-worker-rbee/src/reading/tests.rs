//! Replies of the model families that people use, read as a whole and in every
//! way of cutting them.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use rbee_api::continuation::ReadingProgress;
use rbee_llama::chat::{ChatMessage, ChatRequest, ChatTemplate, Tool, ToolChoice};
use serde_json::{Map, Value, json};

use super::*;

/// What `crates/rbee-llama/tests` holds for both crates.
fn shared(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/rbee-llama/tests");
    fs::read_to_string(path.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn template(family: &str) -> ChatTemplate {
    let source = match family {
        "chatml" => family.to_owned(),
        _ => shared(&format!("templates/{family}.jinja")),
    };
    ChatTemplate::from_source(&source).unwrap()
}

/// How a family's reply to a question with two tools is read.
fn format(template: &ChatTemplate, tool_choice: ToolChoice) -> Option<Arc<ReplyFormat>> {
    let tool = |name: &str, properties: Value, required: &str| Tool {
        name: name.to_owned(),
        description: String::new(),
        parameters: json!({"type": "object", "properties": properties, "required": [required]}),
    };
    let weather = json!({"city": {"type": "string"}, "days": {"type": "integer"}});
    let tools = [
        tool("get_weather", weather, "city"),
        tool("get", json!({"key": {"type": "string"}}), "key"),
    ];
    let message =
        ChatMessage { role: "user".to_owned(), content: "Hi".to_owned(), ..Default::default() };
    let arguments = Map::from_iter([("date_string".to_owned(), json!("26 Jul 2024"))]);
    let request = ChatRequest {
        messages: &[message],
        tools: &tools,
        tool_choice,
        parallel_tool_calls: Some(true),
        add_generation_prompt: true,
        enable_thinking: true,
        arguments: &arguments,
    };
    template.render(&request).unwrap().reply
}

/// A reply and what it is to be read as.
#[derive(Debug, Clone)]
struct Case {
    name: String,
    format: Option<Arc<ReplyFormat>>,
    text: String,
    expected: Value,
}

fn cases() -> Vec<Case> {
    let replies: Map<String, Value> = serde_json::from_str(&shared("golden/replies.json")).unwrap();
    let mut cases = Vec::new();
    for (family, list) in replies {
        let template = template(&family);
        for expected in list.as_array().unwrap() {
            let choice = match expected["choice"].as_str() {
                Some("required") => ToolChoice::Required,
                Some("none") => ToolChoice::None,
                _ => ToolChoice::Auto,
            };
            let text = expected["text"].as_str().unwrap().to_owned();
            let name = format!("{family} {choice:?} {text:?}");
            let format = format(&template, choice);
            cases.push(Case { name, format, text, expected: expected.clone() });
        }
    }
    cases
}

/// What comes of a reply that is cut into pieces.
fn read(case: &Case, pieces: &[&str]) -> (Message, Message) {
    let Some(format) = &case.format else {
        let message = Message { content: case.text.clone(), ..Message::default() };
        return (message.clone(), message);
    };
    let mut reader = ReplyReader::new(Arc::clone(format), case.name.clone());
    let mut deltas = Vec::new();
    for piece in pieces {
        // As if time had passed, so that every piece is read.
        reader.read_at = None;
        reader.push(piece, &mut deltas);
    }
    reader.finish(&mut deltas);
    (put_together(deltas), reader.message().clone())
}

/// What a client makes of the deltas.
fn put_together(deltas: Vec<Delta>) -> Message {
    let mut message = Message::default();
    for delta in deltas {
        match delta {
            Delta::Content(text) => message.content.push_str(&text),
            Delta::Reasoning(text) => message.reasoning.push_str(&text),
            Delta::Call { index, id, name } => {
                assert_eq!(index as usize, message.calls.len(), "calls come in order");
                message.calls.push(ToolCall { id, name, arguments: String::new() });
            }
            Delta::Arguments { index, text } => {
                assert_eq!(index as usize + 1, message.calls.len(), "calls come one by one");
                message.calls[index as usize].arguments.push_str(&text);
            }
        }
    }
    message
}

/// The message in the form of the golden file, without the ids.
fn golden(message: &Message) -> Value {
    let call = |call: &ToolCall| {
        assert!(call.id.starts_with("call_"), "{call:?}");
        json!({"name": call.name, "arguments": call.arguments})
    };
    json!({
        "content": message.content,
        "reasoning": message.reasoning,
        "calls": message.calls.iter().map(call).collect::<Vec<_>>(),
    })
}

fn expected(case: &Case) -> Value {
    let part = |name: &str| case.expected[name].as_str().unwrap_or_default();
    let calls = case.expected.get("calls").cloned().unwrap_or_else(|| json!([]));
    json!({"content": part("content"), "reasoning": part("reasoning"), "calls": calls})
}

#[test]
fn golden_replies_are_read_whole_and_character_by_character() {
    for case in cases() {
        let (client, reader) = read(&case, &[&case.text]);
        assert_eq!(golden(&reader), expected(&case), "{}", case.name);
        assert_eq!(client, reader, "{}", case.name);
        let characters: Vec<String> = case.text.chars().map(String::from).collect();
        let pieces: Vec<&str> = characters.iter().map(String::as_str).collect();
        let (client, reader) = read(&case, &pieces);
        assert_eq!(golden(&client), expected(&case), "by character: {}", case.name);
        assert_eq!(client, reader, "{}", case.name);
        for (at, _) in case.text.char_indices() {
            let (before, after) = case.text.split_at(at);
            let (client, reader) = read(&case, &[before, after]);
            assert_eq!(golden(&client), expected(&case), "cut at {at}: {}", case.name);
            assert_eq!(client, reader, "{}", case.name);
        }
    }
}

#[test]
fn another_reader_goes_on_wherever_the_first_one_was() {
    for case in cases() {
        let Some(format) = &case.format else { continue };
        // Read at every character, at every third, and at none but the first.
        for pace in [1, 3, usize::MAX] {
            let new = || ReplyReader::new(Arc::clone(format), case.name.clone());
            let mut reader = new();
            reader.note_reads();
            let (mut told, mut deltas) = (ReadingProgress::default(), Vec::new());
            for (n, (at, character)) in case.text.char_indices().enumerate() {
                let end = at + character.len_utf8();
                reader.read_at = (n % pace != 0).then(Instant::now);
                reader.reading_took = Duration::from_secs(60);
                reader.push(&case.text[at..end], &mut deltas);
                let progress = reader.progress();
                let reads = [told.reads, progress.reads].concat();
                told = ReadingProgress { reads, ..progress };
                let (mut other, mut rest) = (new(), deltas.clone());
                other
                    .resume(&case.text[..end], &told)
                    .unwrap_or_else(|e| panic!("{e} at {end}: {}", case.name));
                other.push(&case.text[end..], &mut rest);
                other.finish(&mut rest);
                assert_eq!(golden(&put_together(rest)), expected(&case), "at {end}: {}", case.name);
            }
        }
    }
}

#[test]
fn a_reader_that_reads_another_reply_says_so() {
    let format = format(&template("qwen3"), ToolChoice::Auto).unwrap();
    let mut reader = ReplyReader::new(format, "r".to_owned());
    let told = ReadingProgress { content_bytes: 3, ..ReadingProgress::default() };
    assert_eq!(reader.resume("nothing", &told), Err(ReadsDifferently));
}

#[test]
fn every_call_has_an_id_of_its_own() {
    let calls = cases().into_iter().flat_map(|case| read(&case, &[&case.text]).1.calls);
    let ids: Vec<String> = calls.map(|call| call.id).collect();
    let unique: std::collections::HashSet<&String> = ids.iter().collect();
    assert!(ids.len() > 10);
    assert_eq!(unique.len(), ids.len());
}

#[test]
fn content_is_told_as_soon_as_it_can_no_longer_begin_a_call() {
    let format = format(&template("qwen3"), ToolChoice::Auto).unwrap();
    let mut reader = ReplyReader::new(Arc::clone(&format), "r".to_owned());
    for (piece, told) in [
        ("<think>\nHm", vec![Delta::Reasoning("Hm".to_owned())]),
        (" </thi", vec![]),
        ("nk>\n\nSo", vec![Delta::Content("So".to_owned())]),
        (" it <tool", vec![Delta::Content(" it".to_owned())]),
        ("box>", vec![Delta::Content(" <toolbox>".to_owned())]),
        (" is.\n", vec![Delta::Content(" is.".to_owned())]),
        ("\n<tool_call>\n{\"name\": \"get\"", vec![]),
    ] {
        let mut deltas = Vec::new();
        reader.push(piece, &mut deltas);
        assert_eq!(deltas, told, "{piece:?}");
    }
    assert!(matches!(reader.phase, Phase::Parse { .. }));
}

#[test]
fn arguments_are_told_while_they_come() {
    let format = format(&template("qwen3"), ToolChoice::Auto).unwrap();
    let mut reader = ReplyReader::new(Arc::clone(&format), "r".to_owned());
    let mut deltas = Vec::new();
    for piece in ["<tool_call>\n{\"name\": \"get\", \"argu", "ments\": {\"key\": \"lo", "ng"] {
        reader.read_at = None;
        reader.push(piece, &mut deltas);
    }
    let [Delta::Call { index: 0, name, .. }, Delta::Arguments { text, .. }, rest @ ..] =
        deltas.as_slice()
    else {
        panic!("{deltas:?}")
    };
    assert_eq!((name.as_str(), text.as_str()), ("get", "{\"key\": \"lo"));
    assert_eq!(rest, [Delta::Arguments { index: 0, text: "ng".to_owned() }]);
}

#[test]
fn a_call_is_not_read_again_with_every_token() {
    let format = format(&template("qwen3"), ToolChoice::Auto).unwrap();
    let mut reader = ReplyReader::new(Arc::clone(&format), "r".to_owned());
    let mut deltas = Vec::new();
    reader.push("<tool_call>\n{\"name\": \"get\", \"arguments\": {\"key\": \"", &mut deltas);
    reader.reading_took = Duration::from_secs(60);
    reader.push("x\n", &mut deltas);
    let told = deltas.len();
    reader.push("y", &mut deltas);
    assert_eq!(deltas.len(), told, "it was read although nine times its cost had not passed");
    reader.push("\"}}\n</tool_call>", &mut deltas);
    reader.finish(&mut deltas);
    assert_eq!(reader.message().calls[0].arguments, "{\"key\": \"x\ny\"}");
}

#[test]
fn what_cannot_be_read_is_not_lost() {
    let call = "<tool_call>\n{\"name\": \"get\", \"arguments\": {\"key\": \"a\"}}\n</tool_call>";
    let cut = "So: <tool_call>\n{\"na";
    let after = format!("{call}\nDone. <tool_call>\nnothing");
    let deep = format!("<tool_call>\n{}", "[".repeat(100_000));
    let format = format(&template("qwen3"), ToolChoice::Auto).unwrap();
    for (text, content, calls) in [
        (cut, cut, 0),
        (after.as_str(), "\nDone. <tool_call>\nnothing", 1),
        (deep.as_str(), deep.as_str(), 0),
    ] {
        let mut reader = ReplyReader::new(Arc::clone(&format), "r".to_owned());
        let mut deltas = Vec::new();
        reader.push(text, &mut deltas);
        reader.finish(&mut deltas);
        assert_eq!(reader.message().content, content);
        assert_eq!(reader.message().calls.len(), calls);
        assert_eq!(&put_together(deltas), reader.message());
    }
}

#[test]
fn more_calls_than_asked_for_are_left_out() {
    let call = "<tool_call>\n{\"name\": \"get\", \"arguments\": {\"key\": \"a\"}}\n</tool_call>";
    let mut one = (*format(&template("qwen3"), ToolChoice::Auto).unwrap()).clone();
    one.calls_max = 1;
    let mut reader = ReplyReader::new(Arc::new(one), "r".to_owned());
    let mut deltas = Vec::new();
    reader.push(&format!("{call}\n{call}"), &mut deltas);
    reader.finish(&mut deltas);
    assert_eq!(reader.message().calls.len(), 1);
    assert_eq!(reader.message().content, "");
}

proptest! {
    #[test]
    fn any_cutting_of_a_reply_is_read_as_the_whole(
        choice in any::<prop::sample::Index>(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        static CASES: std::sync::LazyLock<Vec<Case>> = std::sync::LazyLock::new(cases);
        let case = choice.get(&CASES);
        let boundary = |index: &prop::sample::Index| {
            let mut at = index.index(case.text.len() + 1);
            while !case.text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let mut cuts: Vec<usize> =
            cuts.iter().map(boundary).chain([0, case.text.len()]).collect();
        cuts.sort_unstable();
        let pieces: Vec<&str> =
            cuts.windows(2).map(|pair| &case.text[pair[0]..pair[1]]).collect();
        let (client, reader) = read(case, &pieces);
        prop_assert_eq!(golden(&client), expected(case), "{} in {:?}", case.name, pieces);
        prop_assert_eq!(client, reader);
    }
}

#[test]
fn text_with_braces_is_told_at_once_by_models_whose_calls_are_bare_objects() {
    let format = format(&template("llama-3-form"), ToolChoice::Auto).unwrap();
    let mut reader = ReplyReader::new(format, "r".to_owned());
    let mut told = String::new();
    for piece in ["if x ", "{ ", "y", " } ", "and more"] {
        let mut deltas = Vec::new();
        reader.read_at = None;
        reader.push(piece, &mut deltas);
        told.push_str(&put_together(deltas).content);
    }
    assert_eq!(told, "if x { y } and more");
}
