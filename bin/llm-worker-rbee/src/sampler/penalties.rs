//! Makes tokens less likely that the window of recent tokens holds: the
//! repetition, frequency and presence penalties. Touches only those tokens.

use std::collections::{HashMap, VecDeque};

use rbee_api::openai::Sampling;

/// The window and what it costs to stand in it.
#[derive(Debug)]
pub(super) struct Penalties {
    repeat: f32,
    frequency: f32,
    presence: f32,
    window_len: usize,
    window: VecDeque<u32>,
    /// How often each token of the window stands in it.
    counts: HashMap<u32, u32>,
}

impl Penalties {
    /// Returns `None` when the settings change nothing.
    #[expect(clippy::float_cmp, reason = "exactly the neutral values switch a penalty off")]
    pub(super) fn new(settings: &Sampling) -> Option<Self> {
        let neutral = settings.repeat_penalty == 1.0
            && settings.frequency_penalty == 0.0
            && settings.presence_penalty == 0.0;
        if neutral || settings.repeat_last_n == 0 {
            return None;
        }
        Some(Self {
            repeat: settings.repeat_penalty,
            frequency: settings.frequency_penalty,
            presence: settings.presence_penalty,
            window_len: settings.repeat_last_n as usize,
            window: VecDeque::new(),
            counts: HashMap::new(),
        })
    }

    pub(super) fn accept(&mut self, tokens: &[u32]) {
        let seen = tokens.len().saturating_sub(self.window_len);
        for token in tokens.iter().skip(seen) {
            if self.window.len() == self.window_len {
                self.forget_oldest();
            }
            self.window.push_back(*token);
            *self.counts.entry(*token).or_insert(0) += 1;
        }
    }

    fn forget_oldest(&mut self) {
        let Some(oldest) = self.window.pop_front() else { return };
        if let Some(count) = self.counts.get_mut(&oldest) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
    }

    /// Lowers the logits of the tokens in the window.
    pub(super) fn apply(&self, row: &mut [f32]) {
        for (token, count) in &self.counts {
            let Some(logit) = row.get_mut(*token as usize) else { continue };
            // Dividing a negative logit would make the token more likely.
            *logit = if *logit > 0.0 { *logit / self.repeat } else { *logit * self.repeat };
            #[expect(clippy::cast_precision_loss, reason = "a window is far below 2^24 tokens")]
            let times = *count as f32;
            *logit -= times * self.frequency + self.presence;
        }
    }
}
