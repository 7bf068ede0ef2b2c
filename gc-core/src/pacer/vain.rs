//! Keeps allocations that fail at a hard limit from collecting again and again.
//!
//! A request that finds no room collects, since the program may have dropped cells. If the
//! collection frees none, it is in vain, and so is that of the next request: a program that goes on
//! after [`AllocError`](crate::AllocError) would only collect. So each collection for room takes a
//! token, and a request that then finds room gives all tokens back. While no token is left,
//! requests fail at once. Tokens come back with time, so that a later collection finds the cells
//! that the program has dropped. So collecting in vain takes at most a tenth of the time, and
//! happens at most twenty times a second.

/// The tokens of a heap. Times in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vain {
    tokens: u32,
    /// The time when the last token came back, or the first was taken.
    since: u64,
    /// The time that a token takes to come back.
    interval: u64,
    /// The number of the last collection that took a token. Several threads may have waited for it,
    /// and only one token is taken.
    last: u64,
}

/// The most tokens: enough for four requests that fail.
const MOST: u32 = 12;

/// The time that a token takes to come back: this many times the last collection's time, and at
/// least this many nanoseconds.
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

    /// Collection `number`, which was for room, took `took` nanoseconds: takes a token.
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

    /// The request found room after a collection: gives all tokens back.
    pub(crate) fn found_room(&mut self) {
        self.tokens = MOST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// The number of collections in `ms` milliseconds of a program that always asks, if each takes
    /// `took` nanoseconds.
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
