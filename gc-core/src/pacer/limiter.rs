//! Keeps collections from taking more time than the program has itself.
//!
//! This is Go's GC CPU limiter (`mgclimit.go`, design 48409), with its bucket. The bucket fills
//! with the time that collecting takes and drains with the time that mutators have. While it has no
//! room for another cycle the heap may grow past its memory limit. So a short spell of hard
//! collecting passes, and over time the mutators have at least half of the time that both need. The
//! bucket never drains below empty, or an idle day would pay for a spell without end. This bucket
//! changes once a cycle instead of every 10 ms, since only a cycle's end decides anything.

/// The leaky bucket. Times in nanoseconds of processor time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limiter {
    /// The time in the bucket; at most `capacity`.
    fill: u64,
    capacity: u64,
}

impl Limiter {
    /// An empty bucket that holds a second of every processor's time.
    pub(crate) fn new(cores: u32) -> Self {
        Self {
            fill: 0,
            capacity: u64::from(cores.max(1)) * 1_000_000_000,
        }
    }

    /// Adds the time that collecting took, and subtracts the time that mutators had since the last
    /// call.
    pub(crate) fn add(&mut self, collector: u64, mutators: u64) {
        self.fill = self
            .fill
            .saturating_add(collector)
            .saturating_sub(mutators)
            .min(self.capacity);
    }

    /// Must the collector do less, if a cycle takes `cost`? A full bucket loses the time that does
    /// not fit, so the answer has to come before it is full.
    pub(crate) fn has_no_room_for(&self, cost: u64) -> bool {
        self.capacity - self.fill < cost.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_short_spell_passes_and_a_long_one_does_not() {
        let mut limiter = Limiter::new(2);
        for _ in 0..19 {
            limiter.add(100 * MS, 0);
            assert!(!limiter.has_no_room_for(0));
        }
        limiter.add(100 * MS, 0);
        assert!(limiter.has_no_room_for(0));
        limiter.add(0, MS);
        assert!(!limiter.has_no_room_for(0));
    }

    #[test]
    fn half_of_the_time_is_never_too_much() {
        let mut limiter = Limiter::new(1);
        for _ in 0..100_000 {
            limiter.add(10 * MS, 10 * MS);
            assert!(!limiter.has_no_room_for(0));
        }
    }

    #[test]
    fn an_idle_day_pays_for_nothing() {
        let mut limiter = Limiter::new(1);
        limiter.add(0, u64::MAX);
        limiter.add(1000 * MS, 0);
        assert!(limiter.has_no_room_for(0));
        limiter.add(u64::MAX, 0);
        assert!(limiter.has_no_room_for(0));
    }
}
