//! Which cycles are young ones.
//!
//! A young cycle frees what was allocated since the last one and is dead; what is old it takes for alive, and does not mark (`heap/sticky.rs`). So it
//! costs what lives of the young, and a look at old cells that may have changed. It pays
//!
//! * where most cells with edges cannot have changed: by the bytes of their spans, half of the heap;
//! * while most of what is allocated dies young. Whatever of the young is alive becomes old, and takes from the room that the last whole cycle
//!   left to its goal. When less than half of that room is left, a whole cycle follows and finds what has died since;
//! * for a while: what is old and dies is not noticed, so after [`MOST_IN_A_ROW`] young cycles a whole one follows in any case. Else a program that has
//!   dropped what it was built on, and keeps nothing new, would have it for ever.
//!
//! A program whose data live for a while and then die, in the order in which they were made, gets nothing from young cycles but their
//! cost. There the first one after a whole cycle has used up the room. Then there are none after the next whole cycle, none after the next two, three
//! and so on, up to [`MOST_SHUNNED`]; one that frees enough ends that.

use super::Cycle;
use crate::config::Young;

/// The least heap that has young cycles, in bytes that are alive. A smaller one is marked within 0.1 ms.
const LEAST: u64 = 1 << 20;

/// Young cycles in a row at most: a whole one of so many costs a small part of what they save.
const MOST_IN_A_ROW: u32 = 32;

/// Whole cycles in a row at most without a young one where these do not pay.
const MOST_SHUNNED: u32 = 15;

/// What is known of young cycles.
#[derive(Clone, Debug, Default)]
pub(super) struct Generation {
    /// Bytes between what the last whole cycle found alive and its goal.
    pub(super) room: u64,
    /// Young cycles since.
    since: u32,
    /// Cells that the last young one marked.
    marked: Option<u64>,
    /// Whole cycles that are still to pass without a young one, and how many it was the last time.
    shun: u32,
    shunned: u32,
}

impl Generation {
    /// A whole cycle has ended: may the next be young?
    pub(super) fn begins(&mut self, policy: Young, cycle: &Cycle) -> bool {
        self.since = 0;
        match policy {
            Young::Never => false,
            Young::Always => true,
            Young::WherePays => {
                let waits = self.shun != 0;
                self.shun = self.shun.saturating_sub(1);
                !waits && pays(cycle)
            }
        }
    }

    /// A young cycle has ended, and there are so many bytes between what is old and the goal: may the next be young, too?
    pub(super) fn goes_on(&mut self, policy: Young, cycle: &Cycle, left: u64) -> bool {
        self.since += 1;
        self.marked = Some(cycle.marked);
        let enough = left >= self.room / 2;
        if enough {
            self.shunned = 0;
        } else if self.since == 1 {
            self.shunned = (self.shunned + 1).min(MOST_SHUNNED);
            self.shun = self.shunned;
        }
        match policy {
            Young::Never => false,
            // Every fourth one looks at all cells, or what has died and is old would never go.
            Young::Always => self.since < 3,
            Young::WherePays => enough && self.since < MOST_IN_A_ROW && pays(cycle),
        }
    }

    /// Cells that the next cycle marks, if it is young.
    pub(super) fn work(&self, whole: &Cycle) -> u64 {
        self.marked.unwrap_or(whole.marked / 4)
    }
}

/// Might a cycle after the next one be young?
pub(super) fn might_be(policy: Young, cycle: &Cycle) -> bool {
    match policy {
        Young::Never => false,
        Young::Always => true,
        Young::WherePays => pays(cycle),
    }
}

/// Need most of what is old not be looked at?
fn pays(cycle: &Cycle) -> bool {
    cycle.live >= LEAST && cycle.settled >= cycle.live.saturating_add(cycle.born) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cycle(live: u64, settled: u64) -> Cycle {
        Cycle {
            live,
            settled,
            ..Cycle::default()
        }
    }

    #[test]
    fn a_heap_of_cells_that_may_change_has_none() {
        for (live, settled, pays) in [
            (100 << 20, 60 << 20, true),
            (100 << 20, 40 << 20, false),
            (100 << 10, 100 << 10, false),
        ] {
            let mut generation = Generation::default();
            let cycle = cycle(live, settled);
            assert_eq!(generation.begins(Young::WherePays, &cycle), pays);
            assert_eq!(generation.goes_on(Young::WherePays, &cycle, u64::MAX), pays);
            assert!(!generation.begins(Young::Never, &cycle));
            assert!(!generation.goes_on(Young::Never, &cycle, u64::MAX));
            assert!(generation.begins(Young::Always, &cycle));
        }
    }

    #[test]
    fn they_go_on_while_half_of_the_room_is_left() {
        let mut generation = Generation::default();
        let cycle = cycle(100 << 20, 100 << 20);
        assert!(generation.begins(Young::WherePays, &cycle));
        generation.room = 100;
        assert!(generation.goes_on(Young::WherePays, &cycle, 80));
        assert!(generation.goes_on(Young::WherePays, &cycle, 50));
        assert!(!generation.goes_on(Young::WherePays, &cycle, 49));
        // The room was used up bit by bit, which is what it is for.
        assert!(generation.begins(Young::WherePays, &cycle));
    }

    #[test]
    fn after_many_a_whole_one_follows() {
        let mut generation = Generation::default();
        let cycle = cycle(100 << 20, 100 << 20);
        for _ in 0..3 {
            assert!(generation.begins(Young::WherePays, &cycle));
            generation.room = 100;
            let mut young = 1;
            while generation.goes_on(Young::WherePays, &cycle, 100) {
                young += 1;
            }
            assert_eq!(young, MOST_IN_A_ROW);
        }
    }

    #[test]
    fn what_does_not_pay_is_tried_less_and_less_and_never_given_up() {
        let mut generation = Generation::default();
        let cycle = cycle(100 << 20, 100 << 20);
        let mut gaps = Vec::new();
        let mut gap = 0;
        for _ in 0..300 {
            let young = generation.begins(Young::WherePays, &cycle);
            generation.room = 100;
            if young {
                assert!(!generation.goes_on(Young::WherePays, &cycle, 10));
                gaps.push(gap);
                gap = 0;
            } else {
                gap += 1;
            }
        }
        assert_eq!(gaps[..6], [0, 1, 2, 3, 4, 5]);
        assert_eq!(*gaps.iter().max().unwrap(), MOST_SHUNNED);
        assert_eq!(gaps.last(), Some(&MOST_SHUNNED));
        // A success ends that.
        while !generation.begins(Young::WherePays, &cycle) {}
        assert!(generation.goes_on(Young::WherePays, &cycle, 90));
        assert!(generation.begins(Young::WherePays, &cycle));
        assert!(!generation.goes_on(Young::WherePays, &cycle, 10));
        assert!(!generation.begins(Young::WherePays, &cycle));
        assert!(generation.begins(Young::WherePays, &cycle));
    }
}
