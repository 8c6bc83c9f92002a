//! Chooses slots: for a prompt that comes, and for a job that should move next
//! to the others.

use super::Held;
use super::{Layout, Memory, Scope};

impl Memory {
    /// Chooses one of the slots that are not busy, and makes it busy.
    pub(crate) fn occupy(&mut self, scope: Scope, prompt: &[u32]) -> Option<u32> {
        let slot = match self.limits.layout {
            Layout::Unified => self.best_of(scope, prompt, |_| true),
            Layout::Split => self.neighbour_of_busy(scope, prompt),
        }?;
        self.held_mut(slot)?.busy = true;
        Some(slot)
    }

    /// The busy slot that should move, and the free one it should move to, so
    /// that the busy ones become neighbours.
    pub(crate) fn gap(&self) -> Option<(u32, u32)> {
        if self.limits.layout == Layout::Unified || !self.limits.can_cut {
            return None;
        }
        let (first, last) = self.busy_range()?;
        let hole = (first..last).find(|slot| self.held(*slot).is_some_and(|held| !held.busy))?;
        Some((last, hole))
    }

    fn busy_range(&self) -> Option<(u32, u32)> {
        let mut busy = (0_u32..).zip(&self.slots).filter(|(_, held)| held.busy);
        let (first, _) = busy.next()?;
        Some((first, busy.last().map_or(first, |(last, _)| last)))
    }

    /// A free slot that makes no gap, if there is one: in a gap first, else
    /// beside the busy ones. Without anything busy every slot will do.
    fn neighbour_of_busy(&self, scope: Scope, prompt: &[u32]) -> Option<u32> {
        let Some((first, last)) = self.busy_range() else {
            return self.best_of(scope, prompt, |_| true);
        };
        self.best_of(scope, prompt, |slot| (first..last).contains(&slot))
            .or_else(|| self.best_of(scope, prompt, |slot| slot + 1 == first || slot == last + 1))
            .or_else(|| self.best_of(scope, prompt, |_| true))
    }

    /// Of the free slots wanted: one that holds nothing but a beginning of the
    /// prompt, else an empty one, else the one used longest ago.
    fn best_of(&self, scope: Scope, prompt: &[u32], wanted: impl Fn(u32) -> bool) -> Option<u32> {
        let free = (0_u32..).zip(&self.slots);
        let free = free.filter(|(slot, held)| !held.busy && wanted(*slot));
        let rank = |held: &Held| {
            let goes_on = held.scope == scope && prompt.starts_with(&held.tokens);
            let shared = if goes_on { held.tokens.len() } else { 0 };
            let emptiness = u8::from(!held.tokens.is_empty());
            (std::cmp::Reverse(shared), emptiness, held.used)
        };
        free.min_by_key(|(_, held)| rank(held)).map(|(slot, _)| slot)
    }
}
