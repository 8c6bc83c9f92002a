//! Does the time that a comparison of tokens takes tell anything of the secret? Welch's t-test on a million samples, as
//! dudect makes it: above 4.5 it does. Run by `make timing`, never by `make test`, since a busy machine is no place to
//! measure on.

#![expect(clippy::disallowed_types, reason = "measures real time")]

use std::hint::black_box;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use auth_min::TokenDigest;
use fastrand::Rng;

/// Samples of one test.
const SAMPLES: u32 = 1_000_000;
/// Comparisons in one sample: enough to be long beside the clock's own step.
const COMPARISONS: u32 = 16;
/// Samples before the test, which tell from what time on one was interrupted.
const WARM_UP: usize = 50_000;
/// Share of the samples that count; the rest was interrupted.
const KEPT_PERCENT: usize = 90;
/// Beyond it, two times differ for a reason.
const T_MAX: f64 = 4.5;
/// Times that each test is made; each has to pass.
const ROUNDS: u32 = 5;

/// Two kinds of work that must take the same time.
struct Case {
    name: &'static str,
    /// Does the work of kind 0 or 1 once.
    work: Box<dyn Fn(usize) -> bool>,
    /// Whether they do take the same time; the others show that the test would see it.
    is_alike: bool,
}

/// Mean and variance of what has been added so far.
#[derive(Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn add(&mut self, sample: f64) {
        self.count += 1.0;
        let distance = sample - self.mean;
        self.mean += distance / self.count;
        self.squares += distance * (sample - self.mean);
    }

    /// The variance of the mean.
    fn error(&self) -> f64 {
        self.squares / (self.count - 1.0) / self.count
    }
}

impl Case {
    fn sample(&self, kind: usize) -> u64 {
        let begun = Instant::now();
        for _ in 0..COMPARISONS {
            black_box((self.work)(black_box(kind)));
        }
        u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Welch's t of the two kinds.
    fn t(&self, rng: &mut Rng) -> f64 {
        let mut warm: Vec<u64> = (0..WARM_UP).map(|_| self.sample(rng.usize(0..2))).collect();
        warm.sort_unstable();
        let slowest = warm.get(WARM_UP * KEPT_PERCENT / 100).copied().unwrap_or(u64::MAX);
        let mut kinds = [Moments::default(), Moments::default()];
        for _ in 0..SAMPLES {
            let kind = rng.usize(0..2);
            let sample = self.sample(kind);
            if let (true, Some(moments)) = (sample <= slowest, kinds.get_mut(kind)) {
                // Far below the 2^53 that stay exact.
                moments.add(u32::try_from(sample).map_or(f64::MAX, f64::from));
            }
        }
        let [first, second] = kinds;
        (first.mean - second.mean) / (first.error() + second.error()).sqrt()
    }
}

fn pick<T>(of: &[T; 2], kind: usize) -> &T {
    let [first, second] = of;
    if kind == 0 { first } else { second }
}

/// Compares as nobody should.
fn leaky(one: &[u8], other: &[u8]) -> bool {
    one.iter().zip(other).all(|(a, b)| black_box(a) == black_box(b))
}

fn cases(rng: &mut Rng) -> Vec<Case> {
    let secret: String = (0..64).map(|_| rng.alphanumeric()).collect();
    let changed_at = |place: usize| {
        let change = |(at, c): (usize, char)| match (at == place, c) {
            (true, 'a') => 'b',
            (true, _) => 'a',
            (false, c) => c,
        };
        secret.chars().enumerate().map(change).collect::<String>()
    };
    let wrong = [changed_at(0), changed_at(63)];
    let expected = TokenDigest::of(&secret);
    // A secret of half the length, behind the same guess.
    let lengths = [expected, TokenDigest::of(&secret.chars().take(32).collect::<String>())];
    let guess = wrong.clone();
    let right = [secret.clone(), changed_at(31)];
    let alike =
        [digest_that_begins(&expected, true, rng), digest_that_begins(&expected, false, rng)];
    let (plain_wrong, plain_secret) = (wrong.clone(), secret.clone());
    vec![
        Case {
            name: "wrong in the first or in the last byte",
            work: Box::new(move |kind| {
                TokenDigest::of(pick(&wrong, kind).as_str()).matches(&expected)
            }),
            is_alike: true,
        },
        Case {
            name: "a secret of the guess's length or of another",
            work: Box::new(move |kind| {
                let [guess, _] = &guess;
                TokenDigest::of(guess).matches(pick(&lengths, kind))
            }),
            is_alike: true,
        },
        Case {
            name: "right or wrong",
            work: Box::new(move |kind| {
                TokenDigest::of(pick(&right, kind).as_str()).matches(&expected)
            }),
            is_alike: true,
        },
        Case {
            name: "a digest that begins as the right one does, or not",
            work: Box::new(move |kind| pick(&alike, kind).matches(&expected)),
            is_alike: true,
        },
        Case {
            name: "control: bytes compared one by one",
            work: Box::new(move |kind| {
                leaky(pick(&plain_wrong, kind).as_bytes(), plain_secret.as_bytes())
            }),
            is_alike: false,
        },
    ]
}

/// Finds a digest whose first three bytes, the fingerprint's, are those of another, or none of whose are.
fn digest_that_begins(as_this: &TokenDigest, alike: bool, rng: &mut Rng) -> TokenDigest {
    let wanted = as_this.fingerprint().to_string();
    let length = if alike { 4 } else { 0 };
    loop {
        let digest = TokenDigest::of(&rng.u64(..).to_string());
        let found = digest.fingerprint().to_string();
        let common = found.bytes().zip(wanted.bytes()).take_while(|(a, b)| a == b).count();
        if common >= length && (alike || common == 0) {
            return digest;
        }
    }
}

fn main() -> ExitCode {
    let seed = fastrand::u64(..);
    let mut rng = Rng::with_seed(seed);
    let mut failures = 0;
    let say = |line: String| writeln!(std::io::stdout(), "{line}").ok();
    say(format!("seed {seed}, {SAMPLES} samples, |t| < {T_MAX} in {ROUNDS} of {ROUNDS}"));
    for case in cases(&mut rng) {
        let ts: Vec<f64> = (0..ROUNDS).map(|_| case.t(&mut rng).abs()).collect();
        let passed = ts.iter().all(|t| (*t < T_MAX) == case.is_alike);
        let shown: Vec<String> = ts.iter().map(|t| format!("{t:.2}")).collect();
        say(format!(
            "{}: |t| {}: {}",
            case.name,
            shown.join(" "),
            if passed { "good" } else { "BAD" }
        ));
        failures += u32::from(!passed);
    }
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
