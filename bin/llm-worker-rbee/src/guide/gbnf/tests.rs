//! Holds rewritten grammars to a slow matcher of the grammar itself, text by
//! text and beginning by beginning.

use std::collections::BTreeSet;

use proptest::prelude::*;
use rbee_api::openai::OutputFormat;

use super::*;
use crate::guide::tests::letters;

/// For each rule and place in a text, where the rule can end that begins there.
type Table = Vec<Vec<BTreeSet<usize>>>;

/// Where a part that begins at one of these places can end.
fn ends(node: &Node, text: &[char], from: &BTreeSet<usize>, table: &Table) -> BTreeSet<usize> {
    match node {
        Node::One(ranges) => {
            let fits = |at: &&usize| {
                let c = text.get(**at).map(|c| u32::from(*c));
                c.is_some_and(|c| ranges.iter().any(|(from, to)| (*from..=*to).contains(&c)))
            };
            from.iter().filter(fits).map(|at| at + 1).collect()
        }
        Node::Sequence(parts) => {
            parts.iter().fold(from.clone(), |from, part| ends(part, text, &from, table))
        }
        Node::Choice(options) => {
            options.iter().flat_map(|option| ends(option, text, from, table)).collect()
        }
        Node::Repeat(inner, min, max) => {
            let (mut at, mut found) = (from.clone(), BTreeSet::new());
            let rounds = max.map_or(text.len() + *min as usize + 1, |max| max as usize);
            for round in 0..=rounds {
                if round >= *min as usize {
                    found.extend(at.iter().copied());
                }
                at = ends(inner, text, &at, table);
            }
            found
        }
        Node::Rule(rule) => from.iter().flat_map(|at| table[*rule][*at].iter().copied()).collect(),
    }
}

/// Whether a grammar derives a text: the smallest table that agrees with itself.
fn matches(grammar: &Grammar, text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let mut table: Table = vec![vec![BTreeSet::new(); text.len() + 1]; grammar.rules.len()];
    loop {
        let row = |body: &Node| {
            (0..=text.len()).map(|at| ends(body, &text, &[at].into(), &table)).collect()
        };
        let next: Table = grammar.rules.iter().map(row).collect();
        if next == table {
            return table[grammar.root][0].contains(&text.len());
        }
        table = next;
    }
}

/// Whether the compiled grammar takes a text, byte by byte, as complete.
fn accepted(source: &str, texts: &[String]) -> Vec<bool> {
    let guide = letters();
    let format = OutputFormat::Grammar(source.to_owned());
    let end = guide.vocabulary.len() - 1;
    // One that derives no text at all is refused.
    if guide.compile(&format).is_err() {
        return vec![false; texts.len()];
    }
    let takes = |text: &String| {
        let mut constraint = guide.compile(&format).unwrap().unwrap();
        for byte in text.bytes().map(u32::from) {
            if constraint.is_complete() || !constraint.allows(byte).unwrap() {
                return false;
            }
            constraint.accept(byte).unwrap();
        }
        constraint.allows(end).unwrap()
    };
    texts.iter().map(takes).collect()
}

#[track_caller]
fn assert_same(source: &str, texts: &[String]) {
    let grammar = parse::parse(source).unwrap();
    for (text, got) in texts.iter().zip(accepted(source, texts)) {
        assert_eq!(got, matches(&grammar, text), "{text:?} in\n{source}\n{:?}", to_lark(source));
    }
}

/// All texts of these letters up to a length.
fn all_texts(letters: &str, length: usize) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut last = all.clone();
    for _ in 0..length {
        last = last.iter().flat_map(|t| letters.chars().map(move |c| format!("{t}{c}"))).collect();
        all.extend(last.iter().cloned());
    }
    all
}

#[test]
fn a_rewritten_grammar_takes_the_texts_that_the_grammar_derives() {
    for source in [
        "root ::= \"ab\"",
        "root ::= \"a\" \"b\" | \"ab\" \"c\"",
        "root ::= [a-b]* \"b\"",
        "root ::= x+\nx ::= \"a\" | \"ab\" | \"bc\"",
        "root ::= [^a]{1,2} .? # no a first",
        "root ::= (\n  \"a\" |\n  \"b\"\n)",
        "root ::= \"a\" | ",
        "root ::= ",
        // Recursion, to the right, to the left, in the middle.
        "root ::= \"a\" root | \"b\"",
        "root ::= root \"a\" | \"b\"",
        "root ::= \"a\" root \"b\" | \"c\"?",
        // Rules that could be terminals if the longest match were always right.
        "root ::= x root | \"c\"\nx ::= [ab]+ ",
        "root ::= \"c\" root | x \"b\"\nx ::= \"a\"+ \"b\"*",
        "root ::= x y root | \"c\"\nx ::= \"a\" | \"ab\"\ny ::= \"bc\" | \"b\"",
        "root ::= x root | y\nx ::= \"ab\"\ny ::= \"abc\"{2}",
        "root ::= s root | \"c\"\ns ::= \"a\" [b]* \"a\"",
        "root ::= w \"(\" root \")\" | w\nw ::= [ab]*",
        "root ::= e\ne ::= t (\"b\" t)*\nt ::= \"a\" | \"c\" e \"c\"",
    ] {
        assert_same(source, &all_texts("abc", 5));
    }
}

#[test]
fn escapes_and_classes_are_those_of_llama_cpp() {
    let texts = ["\n\t\\", "\"", "\u{e9}\u{1f600}", "]-^", "x", "\u{e000}", "\u{d7ff}"];
    let texts = texts.map(str::to_owned);
    for source in [
        r#"root ::= "\n\t\\""#,
        r#"root ::= "\"""#,
        r#"root ::= "\xe9\U0001F600""#,
        r#"root ::= [\u00e9] [^\u00e9]"#,
        r"root ::= [\]\-\^]+",
        r"root ::= [^\uE000]",
        "root ::= .",
    ] {
        assert_same(source, &texts);
    }
}

#[test]
fn the_json_grammar_of_llama_cpp_takes_json_and_nothing_else() {
    let source = r#"
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
    string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"#;
    let lark = to_lark(source).unwrap();
    assert!(lark.contains("\nN") && lark.matches("\nr").count() == 4, "{lark}");
    let texts = [
        r#"{}"#,
        r#"{"a": [1, -2.5e3, "x\n\u00e9"], "b": {"c": null}}"#,
        "{\n  \"a\":true}",
        r#"{"a":}"#,
        r#"{"a":01}"#,
        r#"["a"]"#,
        r#"{"a":"\x"}"#,
    ];
    let taken = accepted(source, &texts.map(str::to_owned));
    assert_eq!(taken, [true, true, true, false, false, false, false]);
}

#[test]
fn mistakes_name_their_line_and_are_bounded() {
    let deep = format!("root ::= {}", "(".repeat(40));
    let many: String = (0..300).map(|i| format!("r{i} ::= r{}\n", i + 1)).collect();
    for (source, expected) in [
        ("x ::= \"a\"", "no rule named root"),
        ("root ::= y", "rule y is not defined"),
        ("root ::= \"a\"\nroot ::= \"b\"", "line 2: root is defined twice"),
        ("root ::= \"a", "line 1: a literal does not end"),
        ("root ::= [a", "a character class does not end"),
        ("root ::= []", "holds no character"),
        ("root ::= [b-a]", "wrong way round"),
        ("\n\nroot = x", "line 3: expected ::="),
        ("root ::= \"a\")", "expected the end of the rule"),
        ("root ::= (\"a\"", "closing parenthesis"),
        ("root ::= \"\\q\"", "not a known escape"),
        ("root ::= \"\\ud800\"", "names no character"),
        ("root ::= \"a\"{2,1}", "below the lower"),
        ("root ::= \"a\"{1001}", "at most 1000 times"),
        ("root ::= \"a\"{99999999999}", "at most 1000 times"),
        ("root ::= <[1]>", "tokens in a grammar"),
        (deep.as_str(), "at most 32 deep"),
        (many.as_str(), "at most 256 rules"),
    ] {
        let reason = to_lark(source).unwrap_err();
        assert!(reason.contains(expected), "{reason:?} for {expected:?}");
    }
}

/// A grammar of a few rules over few letters.
fn grammars() -> impl Strategy<Value = String> {
    let atom = prop_oneof![
        3 => "[abc]{1,2}".prop_map(|text| format!("\"{text}\"")),
        2 => prop::sample::select(vec!["[ab]", "[^a]", "[bc]"]).prop_map(str::to_owned),
        3 => prop::sample::select(vec!["root", "x", "y", "z"]).prop_map(str::to_owned),
    ];
    let repeated = (atom, prop::sample::select(vec!["", "", "", "*", "+", "?", "{2}", "{0,2}"]))
        .prop_map(|(atom, times)| format!("{atom}{times}"));
    let sequence = prop::collection::vec(repeated, 1..4).prop_map(|parts| parts.join(" "));
    let body = prop::collection::vec(sequence, 1..3).prop_map(|options| options.join(" | "));
    prop::collection::vec(body, 4).prop_map(|bodies| {
        let rules = ["root", "x", "y", "z"].iter().zip(bodies);
        rules.map(|(name, body)| format!("{name} ::= {body} | \"c\"\n")).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn any_grammar_is_rewritten_to_the_same_texts(source in grammars()) {
        let grammar = parse::parse(&source).unwrap();
        let texts = all_texts("abc", 4);
        for (text, got) in texts.iter().zip(accepted(&source, &texts)) {
            prop_assert_eq!(got, matches(&grammar, text), "{:?} in\n{}\n{:?}", text, source, to_lark(&source));
        }
    }
}
