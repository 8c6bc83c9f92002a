//! The parser of GBNF: rules, alternatives, sequences, literals, character
//! classes, repetition, comments.

use std::collections::HashMap;
use std::iter::Peekable;
use std::str::Chars;

use super::{Grammar, NESTING_MAX, NODES_MAX, Node, REPEAT_MAX, RULES_MAX, Ranges};

/// The last character of all.
const LAST: u32 = char::MAX as u32;

struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
    line: u32,
    nesting: usize,
    nodes: usize,
    names: HashMap<String, usize>,
    /// What each named rule is; `None` until it is defined.
    rules: Vec<Option<Node>>,
}

pub(super) fn parse(source: &str) -> Result<Grammar, String> {
    let mut parser = Parser {
        rest: source.chars().peekable(),
        line: 1,
        nesting: 0,
        nodes: 0,
        names: HashMap::new(),
        rules: Vec::new(),
    };
    let outcome = parser.grammar();
    let line = parser.line;
    outcome.map_err(|reason| format!("line {line}: {reason}"))?;
    let Parser { names, rules, .. } = parser;
    let Some(root) = names.get("root").copied() else {
        return Err("there is no rule named root".to_owned());
    };
    let undefined = names.iter().filter(|(_, i)| rules.get(**i).is_none_or(Option::is_none));
    if let Some(name) = undefined.map(|(name, _)| name).min() {
        return Err(format!("the rule {name} is not defined"));
    }
    Ok(Grammar { rules: rules.into_iter().flatten().collect(), root })
}

impl Parser<'_> {
    fn grammar(&mut self) -> Result<(), String> {
        self.skip(Lines::Cross);
        while self.rest.peek().is_some() {
            let name = self.name()?;
            let index = self.rule(name.clone())?;
            self.skip(Lines::Stay);
            for expected in "::=".chars() {
                if self.next() != Some(expected) {
                    return Err(format!("expected ::= after {name}"));
                }
            }
            self.skip(Lines::Cross);
            let node = self.choice()?;
            match self.rules.get_mut(index) {
                Some(place @ None) => *place = Some(node),
                _ => return Err(format!("{name} is defined twice")),
            }
            if self.rest.peek().is_some_and(|c| *c != '\n' && *c != '\r') {
                return Err("expected the end of the rule".to_owned());
            }
            self.skip(Lines::Cross);
        }
        Ok(())
    }

    /// The index of a rule, which may be defined later.
    fn rule(&mut self, name: String) -> Result<usize, String> {
        let next = self.rules.len();
        let index = *self.names.entry(name).or_insert(next);
        if index == next {
            self.rules.push(None);
        }
        if self.rules.len() > RULES_MAX {
            return Err(format!("a grammar has at most {RULES_MAX} rules"));
        }
        Ok(index)
    }

    fn name(&mut self) -> Result<String, String> {
        let mut name = String::new();
        while let Some(c) =
            self.rest.next_if(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        {
            name.push(c);
        }
        if name.is_empty() { Err("expected the name of a rule".to_owned()) } else { Ok(name) }
    }

    fn choice(&mut self) -> Result<Node, String> {
        let mut options = vec![self.sequence()?];
        while self.rest.next_if_eq(&'|').is_some() {
            self.skip(Lines::Cross);
            options.push(self.sequence()?);
        }
        Ok(one_or(options, Node::Choice))
    }

    fn sequence(&mut self) -> Result<Node, String> {
        let mut parts = Vec::new();
        while let Some(c) = self.rest.peek().copied() {
            let part = match c {
                '"' => self.literal()?,
                '[' => self.class()?,
                '.' => {
                    self.next();
                    Node::One(vec![(0, LAST)])
                }
                '(' => self.group()?,
                c if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') => {
                    let name = self.name()?;
                    Node::Rule(self.rule(name)?)
                }
                '|' | ')' | '\n' | '\r' => break,
                '<' | '!' => return Err("tokens in a grammar are not supported".to_owned()),
                other => return Err(format!("{other:?} is not expected here")),
            };
            self.nodes += 1;
            if self.nodes > NODES_MAX {
                return Err(format!("a grammar has at most {NODES_MAX} parts"));
            }
            parts.push(self.repeated(part)?);
            self.skip(if self.nesting > 0 { Lines::Cross } else { Lines::Stay });
        }
        Ok(one_or(parts, Node::Sequence))
    }

    fn group(&mut self) -> Result<Node, String> {
        self.nesting += 1;
        if self.nesting > NESTING_MAX {
            return Err(format!("parentheses are nested at most {NESTING_MAX} deep"));
        }
        self.next();
        self.skip(Lines::Cross);
        let inner = self.choice()?;
        if self.next() != Some(')') {
            return Err("expected a closing parenthesis".to_owned());
        }
        self.nesting -= 1;
        Ok(inner)
    }

    /// What follows a part and says how often it comes.
    fn repeated(&mut self, part: Node) -> Result<Node, String> {
        let mut part = part;
        let mut times = 0;
        while let Some(c) = self.rest.peek().copied() {
            let (min, max) = match c {
                '*' => (0, None),
                '+' => (1, None),
                '?' => (0, Some(1)),
                '{' => self.bounds()?,
                _ => break,
            };
            if c != '{' {
                self.next();
            }
            times += 1;
            if times > 2 {
                return Err("a part is repeated at most twice over".to_owned());
            }
            part = Node::Repeat(Box::new(part), min, max);
        }
        Ok(part)
    }

    /// `{m}`, `{m,}` or `{m,n}`.
    fn bounds(&mut self) -> Result<(u32, Option<u32>), String> {
        self.next();
        let min = self.number()?.ok_or("expected a number after {")?;
        let max = match self.rest.next_if_eq(&',') {
            None => Some(min),
            Some(_) => self.number()?,
        };
        if self.next() != Some('}') {
            return Err("expected } after the bounds".to_owned());
        }
        if max.is_some_and(|max| max < min) {
            return Err("the upper bound is below the lower one".to_owned());
        }
        Ok((min, max))
    }

    fn number(&mut self) -> Result<Option<u32>, String> {
        self.skip(Lines::Stay);
        let mut number = None;
        while let Some(digit) = self.rest.peek().and_then(|c| c.to_digit(10)) {
            self.next();
            let value = number.unwrap_or(0_u32) * 10 + digit;
            if value > REPEAT_MAX {
                return Err(format!("a part is repeated at most {REPEAT_MAX} times"));
            }
            number = Some(value);
        }
        self.skip(Lines::Stay);
        Ok(number)
    }

    fn literal(&mut self) -> Result<Node, String> {
        self.next();
        let mut parts = Vec::new();
        loop {
            match self.next() {
                Some('"') => break,
                None | Some('\n') => return Err("a literal does not end".to_owned()),
                Some(c) => {
                    let c = self.character(c)?;
                    parts.push(Node::One(vec![(c, c)]));
                }
            }
        }
        self.nodes += parts.len();
        Ok(one_or(parts, Node::Sequence))
    }

    fn class(&mut self) -> Result<Node, String> {
        self.next();
        let negated = self.rest.next_if_eq(&'^').is_some();
        let mut ranges = Ranges::new();
        loop {
            match self.next() {
                Some(']') => break,
                None | Some('\n') => return Err("a character class does not end".to_owned()),
                Some(c) => {
                    let from = self.character(c)?;
                    let mut ahead = self.rest.clone();
                    let ranged = ahead.next() == Some('-') && ahead.next() != Some(']');
                    let to = if ranged {
                        self.next();
                        let end = self.next().ok_or("a character class does not end")?;
                        self.character(end)?
                    } else {
                        from
                    };
                    if to < from {
                        return Err("a range of characters is the wrong way round".to_owned());
                    }
                    ranges.push((from, to));
                    self.nodes += 1;
                }
            }
        }
        let ranges = merge(ranges);
        let ranges = if negated { complement(&ranges) } else { ranges };
        if ranges.is_empty() {
            return Err("a character class holds no character".to_owned());
        }
        Ok(Node::One(ranges))
    }

    /// The character that begins with `c`, which may begin an escape.
    fn character(&mut self, c: char) -> Result<u32, String> {
        if c != '\\' {
            return Ok(u32::from(c));
        }
        let escape = self.next().ok_or("an escape does not end")?;
        let digits = match escape {
            'n' => return Ok(u32::from('\n')),
            'r' => return Ok(u32::from('\r')),
            't' => return Ok(u32::from('\t')),
            '\\' | '"' | '[' | ']' | '-' | '^' => return Ok(u32::from(escape)),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            other => return Err(format!("\\{other} is not a known escape")),
        };
        let mut value = 0_u64;
        for _ in 0..digits {
            let digit = self.next().and_then(|c| c.to_digit(16));
            value = value * 16 + u64::from(digit.ok_or("an escape lacks hexadecimal digits")?);
        }
        let character = u32::try_from(value).ok().filter(|value| char::from_u32(*value).is_some());
        character.ok_or_else(|| "an escape names no character".to_owned())
    }

    fn next(&mut self) -> Option<char> {
        let next = self.rest.next();
        if next == Some('\n') {
            self.line += 1;
        }
        next
    }

    /// Skips blanks and comments.
    fn skip(&mut self, lines: Lines) {
        while let Some(c) = self.rest.peek().copied() {
            match c {
                ' ' | '\t' => {
                    self.next();
                }
                '#' => while self.rest.next_if(|c| *c != '\n').is_some() {},
                '\n' | '\r' if lines == Lines::Cross => {
                    self.next();
                }
                _ => break,
            }
        }
    }
}

/// Whether blanks reach across line ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lines {
    Cross,
    Stay,
}

/// A single part as it is, several as a whole.
fn one_or(parts: Vec<Node>, several: fn(Vec<Node>) -> Node) -> Node {
    match <[Node; 1]>::try_from(parts) {
        Ok([part]) => part,
        Err(parts) => several(parts),
    }
}

fn merge(mut ranges: Ranges) -> Ranges {
    ranges.sort_unstable();
    let mut merged = Ranges::new();
    for (from, to) in ranges {
        match merged.last_mut() {
            Some((_, end)) if from <= end.saturating_add(1) => *end = to.max(*end),
            _ => merged.push((from, to)),
        }
    }
    merged
}

fn complement(ranges: &Ranges) -> Ranges {
    let mut rest = Ranges::new();
    let mut next = 0;
    for (from, to) in ranges {
        if *from > next {
            rest.push((next, from - 1));
        }
        next = to + 1;
    }
    if next <= LAST {
        rest.push((next, LAST));
    }
    rest
}
