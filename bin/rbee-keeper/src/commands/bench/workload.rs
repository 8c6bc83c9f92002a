//! What is asked: prompts of given lengths that share a beginning where they are meant to and nowhere else. Pure: a
//! function of the seed, the run and the request's number. Never knows an endpoint.

use fastrand::Rng;

use crate::cli::Span;
use crate::generation::Message;

const ADJECTIVES: [&str; 16] = [
    "old", "quiet", "narrow", "bright", "heavy", "distant", "careful", "wooden", "early", "simple",
    "broken", "warm", "empty", "famous", "green", "steady",
];
const NOUNS: [&str; 32] = [
    "river",
    "bridge",
    "clock",
    "garden",
    "map",
    "violin",
    "lighthouse",
    "train",
    "glacier",
    "market",
    "window",
    "letter",
    "harbour",
    "teacher",
    "forest",
    "engine",
    "village",
    "mirror",
    "baker",
    "mountain",
    "library",
    "doctor",
    "island",
    "farmer",
    "castle",
    "station",
    "painter",
    "valley",
    "kitchen",
    "sailor",
    "museum",
    "road",
];
const VERBS: [&str; 16] = [
    "follows",
    "remembers",
    "crosses",
    "repairs",
    "watches",
    "carries",
    "finds",
    "paints",
    "leaves",
    "opens",
    "measures",
    "visits",
    "describes",
    "guards",
    "builds",
    "studies",
];

/// One measured run or its warm-up; prompts of two runs have nothing in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RunId {
    /// Number of the level of load.
    pub(super) level: usize,
    /// Number of the round; `None` is the warm-up.
    pub(super) round: Option<usize>,
    /// Number of the load within the round, where there are several.
    pub(super) part: usize,
}

/// What a prompt asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// A long text about something.
    Essay,
    /// The prompt's own words again.
    Copy,
    /// A list, in words or under a JSON schema.
    List,
}

/// The beginning that prompts share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prefix {
    pub(super) words: u32,
    /// How many in a hundred requests have it.
    pub(super) percent: u32,
    /// Requests after which it is a new one; `None`: one for the whole run.
    pub(super) requests: Option<u32>,
}

/// Everything that decides what is asked.
#[derive(Debug, Clone)]
pub(super) struct Workload {
    pub(super) seed: u64,
    /// What every prompt begins with.
    pub(super) start: Option<String>,
    pub(super) task: Task,
    pub(super) prompt_words: Span,
    pub(super) output_tokens: Span,
    pub(super) prefix: Option<Prefix>,
}

/// One request, before an endpoint's own words for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) messages: Vec<Message>,
    pub(super) output_tokens: u32,
    /// Whether the reply has to follow the list's JSON schema.
    pub(super) form: Form,
}

/// Whether a reply is bound to a form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Free,
    JsonSchema,
}

impl Workload {
    /// Returns the request of this number.
    pub(super) fn ask(&self, run: RunId, number: usize) -> Ask {
        let mut rng = self.rng(run, number, Purpose::Prompt);
        let words = draw(&mut rng, self.prompt_words);
        let output_tokens = draw(&mut rng, self.output_tokens);
        let own = self.own_part(&mut rng, run, number, words);
        let content = match self.shared_part(run, number) {
            Some(shared) => format!("{shared}\n\n{own}"),
            None => own,
        };
        let content = match &self.start {
            Some(start) => format!("{start} {content}"),
            None => content,
        };
        Ask { messages: vec![user(content)], output_tokens, form: Form::Free }
    }

    /// Returns what follows a chat's first reply.
    pub(super) fn second_turn(&self, run: RunId, number: usize, first: &Ask, reply: &str) -> Ask {
        let mut rng = self.rng(run, number, Purpose::SecondTurn);
        let mut messages = first.messages.clone();
        messages.push(Message { role: "assistant", content: reply.to_owned() });
        let noun = pick(&mut rng, &NOUNS);
        messages.push(user(format!("Now tell me more about the {noun}, in detail.")));
        Ask { messages, ..first.clone() }
    }

    /// Returns the same conversation with another beginning, so that nothing of it is known.
    pub(super) fn unseen(&self, run: RunId, number: usize, known: &Ask) -> Ask {
        let mut messages = known.messages.clone();
        if let Some(first) = messages.first_mut() {
            let rest = first.content.split_once(". ").map_or("", |(_, rest)| rest);
            first.content = format!("{}. {rest}", self.label(run, number, Purpose::Unseen));
        }
        Ask { messages, ..known.clone() }
    }

    /// Returns a request with a prompt of `words` words and nothing shared.
    pub(super) fn long(&self, run: RunId, number: usize, words: u32) -> Ask {
        let alone = Self { prompt_words: Span::exactly(words), prefix: None, ..self.clone() };
        alone.ask(run, number)
    }

    fn shared_part(&self, run: RunId, number: usize) -> Option<String> {
        let prefix = self.prefix?;
        // Spread evenly: of any hundred in a row, `percent` share.
        let sharing_before =
            |count: usize| count.saturating_mul(usize::try_from(prefix.percent).unwrap_or(0)) / 100;
        let shares = sharing_before(number.saturating_add(1)) > sharing_before(number);
        let per_prefix = prefix.requests.and_then(|count| usize::try_from(count).ok());
        let group = per_prefix.map_or(0, |count| sharing_before(number) / count.max(1));
        shares.then(|| {
            let mut rng = self.rng(run, group, Purpose::Prefix);
            let label = self.label(run, group, Purpose::Prefix);
            let rest = prefix.words.saturating_sub(word_count(&label));
            format!("{label}. {}", sentences(&mut rng, rest))
        })
    }

    /// The request's own words: a label that no other has, filling, and the task.
    fn own_part(&self, rng: &mut Rng, run: RunId, number: usize, words: u32) -> String {
        let label = self.label(run, number, Purpose::Prompt);
        let task = match self.task {
            Task::Essay => {
                let (one, other) = (pick(rng, &NOUNS), pick(rng, &NOUNS));
                format!("Write a long and detailed essay about the {one} and the {other}.")
            }
            Task::Copy => "Repeat the text above word for word.".to_owned(),
            Task::List => "List twenty places of this story with their heights.".to_owned(),
        };
        let rest = words.saturating_sub(word_count(&label)).saturating_sub(word_count(&task));
        format!("{label}. {}\n\n{task}", sentences(rng, rest))
    }

    /// Words for a beginning that no other has within the run, and that differs from the first word on as far as the
    /// nouns go round.
    fn label(&self, run: RunId, number: usize, purpose: Purpose) -> String {
        let mut rng = self.rng(run, 0, purpose);
        let words = NOUNS.len() * ADJECTIVES.len();
        let place = rng.usize(0..words).wrapping_add(number);
        let noun = NOUNS.get(place % NOUNS.len()).copied().unwrap_or_default();
        let adjective = ADJECTIVES.get(place / NOUNS.len() % ADJECTIVES.len());
        let adjective = adjective.copied().unwrap_or_default();
        let serial = rng.usize(10_000..90_000).wrapping_add(place / words);
        format!("{noun} {adjective} {serial}")
    }

    fn rng(&self, run: RunId, number: usize, purpose: Purpose) -> Rng {
        let round = run.round.map_or(0, |round| round.wrapping_add(1));
        let parts = [run.level, round, run.part, number, purpose as usize];
        let seed = parts.into_iter().fold(self.seed, |seed, part| {
            let part = u64::try_from(part).unwrap_or(u64::MAX);
            // One step of the generator spreads each part over the whole seed.
            Rng::with_seed(seed.rotate_left(17) ^ part).u64(..)
        });
        Rng::with_seed(seed)
    }
}

/// What random numbers are for; each has its own.
#[derive(Debug, Clone, Copy)]
enum Purpose {
    Prompt,
    Prefix,
    SecondTurn,
    Unseen,
}

fn user(content: String) -> Message {
    Message { role: "user", content }
}

fn draw(rng: &mut Rng, span: Span) -> u32 {
    rng.u32(span.min..=span.max)
}

fn pick<'w>(rng: &mut Rng, words: &[&'w str]) -> &'w str {
    rng.choice(words).copied().unwrap_or_default()
}

fn word_count(text: &str) -> u32 {
    u32::try_from(text.split_whitespace().count()).unwrap_or(u32::MAX)
}

/// Plain English of exactly `words` words, most of them one token for most models.
fn sentences(rng: &mut Rng, words: u32) -> String {
    let mut text = String::new();
    for place in 0..words {
        let word = match place % 7 {
            0 => "The",
            1 | 5 => pick(rng, &ADJECTIVES),
            2 | 6 => pick(rng, &NOUNS),
            3 => pick(rng, &VERBS),
            _ => "the",
        };
        if place > 0 {
            text.push_str(if place % 7 == 0 { ". " } else { " " });
        }
        text.push_str(word);
    }
    if !text.is_empty() {
        text.push('.');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const RUN: RunId = RunId { level: 0, round: Some(0), part: 0 };

    fn workload() -> Workload {
        Workload {
            seed: 9,
            start: None,
            task: Task::Essay,
            prompt_words: Span::exactly(40),
            output_tokens: Span { min: 10, max: 20 },
            prefix: None,
        }
    }

    fn content(ask: &Ask) -> &str {
        &ask.messages[0].content
    }

    #[test]
    fn every_prompt_begins_with_the_text_that_was_asked_for() {
        let started = Workload { start: Some("Be brief.".to_owned()), ..workload() };
        for number in 0..3 {
            let plain = workload().ask(RUN, number);
            let expected = format!("Be brief. {}", content(&plain));
            assert_eq!(content(&started.ask(RUN, number)), expected);
        }
    }

    #[test]
    fn unique_prompts_differ_from_the_first_word_on_and_have_the_length_asked_for() {
        let asks: Vec<Ask> = (0..32).map(|number| workload().ask(RUN, number)).collect();
        let first = |ask: &Ask| content(ask).split(' ').next().unwrap().to_owned();
        assert_eq!(asks.iter().map(first).collect::<HashSet<_>>().len(), 32);
        for ask in &asks {
            assert_eq!(word_count(content(ask)), 40);
            assert!((10..=20).contains(&ask.output_tokens));
        }
        assert!(asks.iter().any(|ask| ask.output_tokens != asks[0].output_tokens));
        let label = |number| {
            let ask = workload().ask(RUN, number);
            content(&ask).split_once(". ").unwrap().0.to_owned()
        };
        let many: HashSet<String> = (0..2000).map(label).collect();
        assert_eq!(many.len(), 2000);
    }

    #[test]
    fn the_seed_the_run_and_the_number_decide_and_nothing_else() {
        let ask = workload().ask(RUN, 3);
        assert_eq!(ask, workload().ask(RUN, 3));
        let others = [
            Workload { seed: 10, ..workload() }.ask(RUN, 3),
            workload().ask(RunId { round: Some(1), ..RUN }, 3),
            workload().ask(RunId { round: None, ..RUN }, 3),
            workload().ask(RunId { level: 1, ..RUN }, 3),
            workload().ask(RunId { part: 1, ..RUN }, 3),
            workload().ask(RUN, 4),
        ];
        for other in others {
            assert_ne!(content(&ask)[..20], content(&other)[..20]);
        }
    }

    fn shared_with(percent: u32, requests: Option<u32>) -> Vec<Option<String>> {
        let prefix = Some(Prefix { words: 400, percent, requests });
        let workload = Workload { prefix, ..workload() };
        (0..100)
            .map(|number| {
                let ask = workload.ask(RUN, number);
                let (shared, own) = content(&ask).split_once(".\n\n")?;
                own.contains("\n\n").then(|| shared.to_owned())
            })
            .collect()
    }

    #[test]
    fn as_many_requests_share_as_were_asked_for_and_all_of_the_words() {
        let all = shared_with(100, None);
        let distinct: HashSet<_> = all.iter().flatten().collect();
        assert_eq!((all.iter().flatten().count(), distinct.len()), (100, 1));
        assert_eq!(word_count(all[0].as_ref().unwrap()), 400);

        let some = shared_with(30, None);
        assert_eq!(some.iter().flatten().count(), 30);

        let regrouped = shared_with(100, Some(25));
        let distinct: HashSet<_> = regrouped.iter().flatten().collect();
        assert_eq!(distinct.len(), 4);
        assert_eq!(regrouped[0], regrouped[24]);
        assert_ne!(regrouped[24], regrouped[25]);
    }

    #[test]
    fn a_second_turn_goes_on_where_the_first_ended_and_an_unseen_one_starts_anew() {
        let first = workload().ask(RUN, 0);
        let second = workload().second_turn(RUN, 0, &first, "the reply");
        assert_eq!(second.messages[0], first.messages[0]);
        assert_eq!(second.messages[1].content, "the reply");
        assert_eq!(second.messages.len(), 3);
        let unseen = workload().unseen(RUN, 0, &second);
        assert_eq!(unseen.messages[1..], second.messages[1..]);
        assert_ne!(content(&unseen)[..20], content(&second)[..20]);
        assert_eq!(word_count(content(&unseen)), word_count(content(&second)));
    }

    #[test]
    fn a_long_prompt_shares_nothing() {
        let prefix = Some(Prefix { words: 400, percent: 100, requests: None });
        let long = Workload { prefix, ..workload() }.long(RUN, 0, 1500);
        assert_eq!(word_count(content(&long)), 1500);
    }
}
