//! What a person can type after `rbee bench`. Checks the form of single values; what they mean together, and what a
//! scenario makes of those that are left out, is `commands/bench/settings.rs`'s business.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Most streams at once; more is a test of the operating system's limits.
const STREAMS_MAX: u32 = 1024;
/// A prompt's label and its task are about this long.
const PROMPT_WORDS_MIN: u32 = 16;
/// Most words of one prompt, far beyond any context that runs here.
const WORDS_MAX: u32 = 1_000_000;
/// Most tokens of one reply, far beyond any context that runs here.
const OUTPUT_TOKENS_MAX: u32 = 1_000_000;
/// Most arrivals a second; the clock that times them has a millisecond's precision.
const RATE_MAX: f64 = 1000.0;

pub(crate) const EXAMPLES: &str = "\
Examples:
  rbee bench -m smollm2:135m                               the queen on this computer
  rbee bench -m m --url http://127.0.0.1:8080 --streams 1,4,8,16
  rbee bench -m m --scenario shared-prefix --peer llama-server=http://127.0.0.1:8081
  rbee bench -m m --rate 0.5,1,2 --duration 60 --slo-ttft-ms 500 --slo-tpot-ms 50

Scenarios (every one works with any server that speaks OpenAI's API):
  unique               no two prompts have words in common at their beginning
  shared-prefix        8 streams; all prompts of a round begin with the same 400 words
  second-turn          8 chats get a first reply; then their second turn, and the same text cold
  long-prompt-arrives  4 streams run while a prompt of 1,500 words arrives
  copy                 the reply repeats the prompt
  json-schema          8 streams, free and with response_format json_schema

With --peer, the endpoints take turns round by round, in alternating order, and what is compared
are the ratios within a round: their median, least and greatest.

Exit code 1 when a request failed, unless --allow-errors. docs/BENCH.md describes the JSON.";

/// `rbee bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// The model's name, as the endpoint knows it
    #[arg(short, long)]
    pub(crate) model: String,
    /// The endpoint, with or without /v1 at its end, and a name for it [default: the queen]
    #[arg(long, value_name = "[NAME=]URL")]
    pub(crate) url: Option<String>,
    /// Read the endpoint's API key from this file
    #[arg(long, value_name = "FILE", requires = "url", conflicts_with = "key_env")]
    pub(crate) key_file: Option<PathBuf>,
    /// Read the endpoint's API key from this environment variable
    #[arg(long, value_name = "VARIABLE", requires = "url")]
    pub(crate) key_env: Option<String>,
    /// Compare with this endpoint; may be given several times
    #[arg(long, value_name = "[NAME=]URL")]
    pub(crate) peer: Vec<String>,
    /// The model's name at the peers [default: the same]
    #[arg(long, value_name = "MODEL", requires = "peer")]
    pub(crate) peer_model: Option<String>,
    /// Read the peers' API key from this file
    #[arg(long, value_name = "FILE", requires = "peer", conflicts_with = "peer_key_env")]
    pub(crate) peer_key_file: Option<PathBuf>,
    /// Read the peers' API key from this environment variable
    #[arg(long, value_name = "VARIABLE", requires = "peer")]
    pub(crate) peer_key_env: Option<String>,
    /// What kind of load
    #[arg(long, value_enum, default_value = "unique")]
    pub(crate) scenario: Scenario,
    /// Keep this many requests running at once; a list is measured one after the other
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=i64::from(STREAMS_MAX)))]
    pub(crate) streams: Vec<u32>,
    /// Send this many requests a second, however many are running; latency counts from when a request was due
    #[arg(long, value_name = "PER_SECOND,…", value_delimiter = ',', value_parser = rate, conflicts_with = "streams")]
    pub(crate) rate: Vec<f64>,
    /// How the requests of --rate are spaced
    #[arg(long, value_enum, default_value = "poisson", requires = "rate")]
    pub(crate) arrivals: ArrivalPattern,
    /// Requests for each stream of a round; with --rate, requests of a round [default: by scenario; with --rate, 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000), conflicts_with = "duration")]
    pub(crate) requests: Option<u32>,
    /// Begin new requests for this many seconds of each round, instead of counting them
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) duration: Option<u64>,
    /// Measure each level of load this many times [default: 1; with --peer, 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: Option<u32>,
    /// Do not send a first wave that is not counted
    #[arg(long)]
    pub(crate) no_warmup: bool,
    /// Words of each prompt's own part, one number or a range [default: by scenario]
    #[arg(long, value_name = "N|MIN-MAX", value_parser = |text: &str| Span::parse(text, PROMPT_WORDS_MIN, WORDS_MAX))]
    pub(crate) prompt_words: Option<Span>,
    /// Begin each prompt with this text
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt_start: Option<String>,
    /// Most tokens of each reply, one number or a range [default: by scenario]
    #[arg(long, value_name = "N|MIN-MAX", value_parser = |text: &str| Span::parse(text, 1, OUTPUT_TOKENS_MAX))]
    pub(crate) output_tokens: Option<Span>,
    /// Begin prompts with this many words that they share [default: by scenario]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(WORDS_MAX)))]
    pub(crate) shared_prefix_words: Option<u32>,
    /// How many in a hundred requests begin with the shared words
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) shared_percent: u32,
    /// Take new shared words after this many requests [default: every round]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) requests_per_prefix: Option<u32>,
    /// How many chats are alive in the scenario second-turn
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=i64::from(STREAMS_MAX)))]
    pub(crate) chats: u32,
    /// Words of the prompt that arrives in the scenario long-prompt-arrives
    #[arg(long, value_name = "N", default_value_t = 1500, value_parser = clap::value_parser!(u32).range(i64::from(PROMPT_WORDS_MIN)..=i64::from(WORDS_MAX)))]
    pub(crate) long_words: u32,
    /// Which route to ask
    #[arg(long, value_enum, default_value = "chat")]
    pub(crate) api: Api,
    /// 0 always takes the likeliest token
    #[arg(long, value_name = "F", default_value = "0", value_parser = |text: &str| super::number(text, 0.0, 2.0))]
    pub(crate) temperature: f32,
    /// Add these fields to each request's body, a JSON object
    #[arg(long, value_name = "JSON", value_parser = body)]
    pub(crate) body: Option<ExtraFields>,
    /// Make the prompts and arrivals repeatable; the same seed again may find its prompts in a cache [default: the time]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Give a request up after this many seconds
    #[arg(long, value_name = "SECS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) timeout: u64,
    /// A request counts as good when its first token comes within this time
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    pub(crate) slo_ttft_ms: Option<f64>,
    /// A request counts as good when its tokens take at most this long each
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    pub(crate) slo_tpot_ms: Option<f64>,
    /// End with 0 although requests failed
    #[arg(long)]
    pub(crate) allow_errors: bool,
    /// Write everything that was measured to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json_file: Option<PathBuf>,
}

/// Kinds of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    Unique,
    SharedPrefix,
    SecondTurn,
    LongPromptArrives,
    Copy,
    JsonSchema,
}

/// How requests are spaced that do not wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ArrivalPattern {
    /// As independent users come: exponential gaps.
    Poisson,
    /// Equal gaps.
    Constant,
}

/// Routes that generate text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Api {
    Chat,
    Completions,
}

/// A number, or a range from which each request takes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) min: u32,
    pub(crate) max: u32,
}

impl Span {
    pub(crate) const fn exactly(count: u32) -> Self {
        Self { min: count, max: count }
    }

    fn parse(text: &str, least: u32, limit: u32) -> Result<Self, String> {
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        match (min.trim().parse(), max.trim().parse()) {
            (Ok(min), Ok(max)) if least <= min && min <= max && max <= limit => {
                Ok(Self { min, max })
            }
            _ => Err(format!(
                "it must be a number from {least} to {limit}, or a range such as 20-60"
            )),
        }
    }
}

/// Fields to add to a request's body.
pub(crate) type ExtraFields = serde_json::Map<String, serde_json::Value>;

/// What decides how a reply is read belongs to the program, and what is asked to the scenario.
const OWN_FIELDS: [&str; 7] =
    ["model", "messages", "prompt", "stream", "stream_options", "max_tokens", "n"];

fn body(text: &str) -> Result<ExtraFields, String> {
    let fields: ExtraFields =
        serde_json::from_str(text).map_err(|error| format!("it must be a JSON object: {error}"))?;
    match OWN_FIELDS.iter().find(|field| fields.contains_key(**field)) {
        Some(field) => Err(format!("{field} is set by the scenario and the other options")),
        None => Ok(fields),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= RATE_MAX => Ok(rate),
        _ => Err(format!("it must be a number above 0 and up to {RATE_MAX}")),
    }
}

fn milliseconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(time) if time > 0.0 && time.is_finite() => Ok(time),
        _ => Err("it must be a number above 0".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::cli::Cli;

    #[test]
    fn values_that_cannot_be_meant_are_refused() {
        for args in [
            &["--streams", "0"][..],
            &["--streams", "1,,4"],
            &["--rate", "0"],
            &["--rate", "NaN"],
            &["--rate", "1", "--streams", "1"],
            &["--requests", "1", "--duration", "1"],
            &["--prompt-words", "30-20"],
            &["--prompt-words", "15"],
            &["--output-tokens", "0"],
            &["--body", "[]"],
            &["--body", "{\"stream\":false}"],
            &["--shared-percent", "101"],
            &["--key-file", "/k"],
            &["--peer-key-env", "KEY"],
            &["--slo-ttft-ms", "-1"],
            &["--scenario", "none"],
        ] {
            let typed = ["rbee", "bench", "-m", "m"].iter().chain(args);
            assert_eq!(Cli::try_parse_from(typed).unwrap_err().exit_code(), 2, "{args:?}");
        }
        Cli::try_parse_from(["rbee", "bench", "-m", "m", "--streams", "1,4,8"]).unwrap();
    }
}
