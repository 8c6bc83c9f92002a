//! How many processes of this machine the kernel has killed for want of memory, looked at at intervals: whether it has
//! lately, and not whom.

use super::cause::MemoryWas;

/// The counts of the last two looks. The last one alone would not do: a worker that was killed just before it is buried just
/// after it, and its death would stand in both counts that are compared.
#[derive(Debug, Clone, Copy)]
pub(super) struct OomKills {
    before: u64,
    last: u64,
}

impl OomKills {
    /// Begins with a first look.
    pub(super) const fn new(count: u64) -> Self {
        Self { before: count, last: count }
    }

    /// Takes note of a further look.
    pub(super) const fn look(&mut self, count: u64) {
        self.before = self.last;
        self.last = count;
    }

    /// Says what the memory was like since the look before the last one, by the count now.
    pub(super) const fn since(&self, count: u64) -> MemoryWas {
        if count > self.before { MemoryWas::Short } else { MemoryWas::Enough }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_is_known_from_the_look_before_it_to_the_second_one_after_it() {
        let mut kills = OomKills::new(7);
        assert_eq!(kills.since(7), MemoryWas::Enough, "what was before counts for nobody");
        assert_eq!(kills.since(8), MemoryWas::Short);
        kills.look(8);
        assert_eq!(kills.since(8), MemoryWas::Short, "a look came between the kill and the burial");
        kills.look(8);
        assert_eq!(kills.since(8), MemoryWas::Enough, "that was long ago");
    }
}
