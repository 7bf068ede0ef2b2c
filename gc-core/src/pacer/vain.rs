//! Keeps allocations that fail at a hard limit from collecting again and again.
//!
//! A request that finds no room collects, since the program may have dropped something. Otherwise
//! the collection is in vain, and so is that of the next request: a program that goes on after
//! [`AllocError`](crate::AllocError) would only collect. So each collection for room takes a token
//! of a few, and a request that then finds room gives all of them back. Where no token is left,
//! requests fail at once. Tokens come back with time, so that a later collection finds what the
//! program has dropped: collecting in vain takes a tenth of the time at most, and happens twenty
//! times a second at most.

/// Tokens, and how they come back. Times in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vain {
    tokens: u32,
    /// When the last one came back, or the first was taken.
    since: u64,
    /// How long one takes to come back.
    interval: u64,
    /// The last collection that took one: several threads may have waited for it.
    last: u64,
}

/// Four requests that fail.
const MOST: u32 = 12;

/// A token takes so many times as long to come back as a collection takes, and at least so many
/// nanoseconds.
const PART: u64 = 10;
const LEAST: u64 = 50_000_000;

impl Default for Vain {
    fn default() -> Self {
        Self {
            tokens: MOST,
            since: 0,
            interval: LEAST,
            last: 0,
        }
    }
}

impl Vain {
    /// May a request collect for room?
    pub(crate) fn may_collect(&mut self, now: u64) -> bool {
        let back = now.saturating_sub(self.since) / self.interval;
        if back != 0 {
            self.since += back * self.interval;
            let tokens = u64::from(self.tokens).saturating_add(back);
            self.tokens = tokens.min(u64::from(MOST)) as u32;
        }
        self.tokens != 0
    }

    /// Collection `number` was for room, and took so long.
    pub(crate) fn collected(&mut self, now: u64, number: u64, took: u64) {
        if number <= self.last {
            return;
        }
        self.last = number;
        if self.tokens == MOST {
            self.since = now;
        }
        self.tokens = self.tokens.saturating_sub(1);
        self.interval = took.saturating_mul(PART).max(LEAST);
    }

    /// There was room afterwards.
    pub(crate) fn found_room(&mut self) {
        self.tokens = MOST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Collections within so many milliseconds of a program that asks each of them, where each
    /// takes `took`.
    fn collections(vain: &mut Vain, from: u64, ms: u64, took: u64) -> u64 {
        let mut number = vain.last;
        let before = number;
        for now in (from..from + ms).map(|ms| ms * MS) {
            if vain.may_collect(now) {
                number += 1;
                vain.collected(now, number, took);
            }
        }
        number - before
    }

    #[test]
    fn collecting_in_vain_comes_to_an_end_and_is_tried_again_later() {
        let mut vain = Vain::default();
        let most = u64::from(MOST);
        assert_eq!(collections(&mut vain, 1000, 49, MS), most);
        assert!((18..=20).contains(&collections(&mut vain, 1049, 1000, MS)));
        // A collection of 100 ms is tried once a second.
        assert!(collections(&mut vain, 3000, 10_000, 100 * MS) <= most + 10);
    }

    #[test]
    fn a_request_that_finds_room_makes_up_for_all() {
        let mut vain = Vain::default();
        collections(&mut vain, 1000, 40, MS);
        assert!(!vain.may_collect(1040 * MS));
        vain.found_room();
        assert!(vain.may_collect(1040 * MS));
    }

    #[test]
    fn threads_that_share_a_collection_pay_for_one() {
        let mut vain = Vain::default();
        for _ in 0..100 {
            vain.collected(MS, 1, MS);
        }
        assert_eq!(vain.tokens, MOST - 1);
    }
}
