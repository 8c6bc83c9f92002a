//! Tells thoughts from what is said, and finds where a call of a tool may
//! begin, without looking at any text twice. Reads no call.

use rbee_llama::reply::ReplyFormat;

/// A part of the reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Thought(String),
    Content(String),
}

/// How far the text has been looked through.
#[derive(Debug)]
pub(super) struct Scan {
    thinking_start: String,
    thinking_end: Vec<String>,
    /// Texts that a call begins with.
    markers: Vec<String>,
    state: State,
    /// What stands before it has been told or left out.
    from: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is open whether the model thinks first.
    Start,
    /// White space before the next part is left out.
    BeforeThought,
    Thought,
    BeforeContent,
    Content,
}

impl Scan {
    pub(super) fn new(format: &ReplyFormat, markers: Vec<String>) -> Self {
        let state = if format.begins_thinking() {
            State::BeforeThought
        } else if format.thinking_start.is_empty() {
            State::Content
        } else {
            State::Start
        };
        Self {
            thinking_start: format.thinking_start.clone(),
            thinking_end: format.thinking_end.clone(),
            markers,
            state,
            from: 0,
        }
    }

    /// Looks on in a text that begins as before. Returns where a call may
    /// begin, after which there is nothing more to look for here.
    pub(super) fn advance(&mut self, text: &str, out: &mut Vec<Found>) -> Option<usize> {
        loop {
            let before = (self.state, self.from);
            let rest = text.get(self.from..).unwrap_or_default();
            match self.state {
                State::Start => self.decide(rest),
                State::BeforeThought | State::BeforeContent => self.skip_space(rest),
                State::Thought => self.think(rest, out),
                State::Content => {
                    if let Some(at) = self.say(rest, out) {
                        return Some(at);
                    }
                }
            }
            if before == (self.state, self.from) {
                return None;
            }
        }
    }

    /// Ends the text: what was held back belongs to the part that it is in.
    pub(super) fn finish(&mut self, text: &str, out: &mut Vec<Found>) {
        let rest = text.get(self.from..).unwrap_or_default();
        self.from = text.len();
        match self.state {
            State::Start | State::Content => found(rest, Found::Content, out),
            State::Thought => found(rest.trim_end(), Found::Thought, out),
            State::BeforeThought | State::BeforeContent => {}
        }
    }

    fn decide(&mut self, rest: &str) {
        let begun = rest.trim_start();
        if let Some(after) = begun.strip_prefix(self.thinking_start.as_str()) {
            self.from += rest.len() - after.len();
            self.state = State::BeforeThought;
        } else if !self.thinking_start.starts_with(begun) {
            self.state = State::Content;
        }
    }

    fn skip_space(&mut self, rest: &str) {
        let text = rest.trim_start();
        self.from += rest.len() - text.len();
        if !text.is_empty() {
            self.state = match self.state {
                State::BeforeThought => State::Thought,
                State::Start | State::Thought | State::BeforeContent | State::Content => {
                    State::Content
                }
            };
        }
    }

    fn think(&mut self, rest: &str, out: &mut Vec<Found>) {
        let thought = match first_of(rest, &self.thinking_end) {
            Some((at, len)) => {
                self.state = State::BeforeContent;
                self.from += at + len;
                rest.get(..at).unwrap_or_default().trim_end()
            }
            None => {
                let safe = before_begun(rest, &self.thinking_end).trim_end();
                self.from += safe.len();
                safe
            }
        };
        found(thought, Found::Thought, out);
    }

    fn say(&mut self, rest: &str, out: &mut Vec<Found>) -> Option<usize> {
        if self.markers.is_empty() {
            self.from += rest.len();
            found(rest, Found::Content, out);
            return None;
        }
        if let Some((at, _)) = first_of(rest, &self.markers) {
            let said = rest.get(..at).unwrap_or_default().trim_end();
            // White space before a call is no content; what stands before it is
            // needed whole should there be no call.
            self.from += said.len();
            found(said, Found::Content, out);
            return Some(self.from);
        }
        let safe = before_begun(rest, &self.markers).trim_end();
        self.from += safe.len();
        found(safe, Found::Content, out);
        None
    }
}

fn found(text: &str, part: impl Fn(String) -> Found, out: &mut Vec<Found>) {
    if !text.is_empty() {
        out.push(part(text.to_owned()));
    }
}

/// Where the first of several words stands, and its length.
fn first_of(text: &str, words: &[String]) -> Option<(usize, usize)> {
    words.iter().filter_map(|word| Some((text.find(word.as_str())?, word.len()))).min()
}

/// The text without what may be the beginning of a word at its end.
fn before_begun<'a>(text: &'a str, words: &[String]) -> &'a str {
    let begun = |word: &String| {
        let longest = word.len().saturating_sub(1).min(text.len());
        let beginnings = (1..=longest).rev().filter_map(|len| word.get(..len));
        beginnings
            .map(|beginning| (text.ends_with(beginning), beginning.len()))
            .find_map(|(ends, len)| ends.then_some(len))
    };
    let held = words.iter().filter_map(begun).max().unwrap_or(0);
    text.get(..text.len() - held).unwrap_or(text)
}
