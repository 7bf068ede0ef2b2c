//! Assists: mutators that allocate while a cycle marks do marking, in proportion to the bytes that
//! they allocate, within bounds.
//!
//! Marking should be done when the heap reaches its goal. So after each allocated byte, some of the
//! work should have been done: a line from (bytes at the beginning, no cell) to (goal, all cells).
//! Go keeps accounts: an allocation makes a debt, background markers make credit that pays it, and
//! a mutator pays the rest by marking. This pacer compares with the line directly: the cells marked
//! so far, by all threads, are the credit, and a mutator that allocates marks only while they are
//! *below* the line. In steady state the trigger is early enough for the background to stay above
//! the line, and no mutator assists.
//!
//! Three bounds keep an assist from being a pause of another kind:
//! - The work of one allocation: at most twice its share of what is left, and at most a
//!   millisecond, in pieces that are short enough for a stop to wait for.
//! - A mutator's time: a quarter while the heap is below its goal. Past the goal it rises up to all
//!   of it, when the heap has grown by half as much again as it should: then memory is scarcer than
//!   time. It rises with the fourth power, so that the program still runs for 70 % of the time when
//!   the heap is half of the way there.
//! - No wait for another thread, except past that last bound, and there for a millisecond a run:
//!   two threads cannot mark a graph that is one long list, so assists are in vain and only waiting
//!   keeps the heap bounded.

use core::time::Duration;

/// The line of one cycle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marking {
    /// Bytes in use when the snapshot was taken.
    pub begin: u64,
    /// Bytes in use at which marking should be done. More than `begin`.
    pub goal: u64,
    /// Bytes in use from which on mutators spend all their time in assists. More than `goal`.
    pub hard: u64,
    /// Cells that are expected to be marked.
    pub work: u64,
    /// Cells that are marked if everything is alive.
    pub most: u64,
}

/// The part of a mutator's time for assists, in thousandths, while the heap is below its goal.
const EASY: u64 = 250;

/// The most cells that an allocation of a run marks: some 50 to 100 µs of work.
const MOST_CELLS: u64 = 4096;

/// The factor by which an allocation of many runs' bytes may mark more: one or two milliseconds in
/// a window of ten.
const MOST_RUNS: u64 = 16;

/// Bytes of a run.
const RUN: u64 = 8 << 10;

/// The least cells of an assist: fewer are not worth its fixed cost.
const LEAST_CELLS: u64 = 64;

impl Marking {
    /// The number of cells that an allocation of `bytes` bytes should mark, when `used` bytes are
    /// in use and `done` cells are marked.
    pub(crate) fn owed(&self, used: u64, done: u64, bytes: u64) -> u64 {
        let Self { begin, hard, .. } = *self;
        let (mut goal, mut work) = (self.goal, self.work);
        if done > work {
            // More is alive than was expected: the heap has grown, and the next cycle's goal will
            // be higher anyway. The line goes on at its slope up to the hard goal, so that no
            // mutator works harder because of a wrong prediction (Go's `revise`).
            let runway = u128::from(goal - begin) * u128::from(self.most) / u128::from(work.max(1));
            goal = u64::try_from(u128::from(begin) + runway).map_or(hard, |g| g.clamp(goal, hard));
            work = self.most;
        }
        let left = work.saturating_sub(done);
        if left == 0 {
            return 0;
        }
        let most = MOST_CELLS * (bytes / RUN).clamp(1, MOST_RUNS);
        if used >= goal {
            return left.min(most);
        }
        let (passed, runway) = (used.saturating_sub(begin), goal - begin);
        let line =
            |cells: u64, of: u64| (u128::from(cells) * u128::from(of) / u128::from(runway)) as u64;
        // Markers need time to begin: at the beginning they may be a sixteenth below the line, and
        // less towards the goal.
        let due = line(work, passed).saturating_sub(line(work / 16, runway - passed));
        let behind = due.saturating_sub(done);
        if behind == 0 {
            return 0;
        }
        let fair = u128::from(left) * u128::from(bytes) * 2 / u128::from(goal - used);
        behind
            .min(u64::try_from(fair).unwrap_or(u64::MAX))
            .clamp(LEAST_CELLS, most)
    }

    /// The part of a mutator's time for assists, in thousandths, when `used` bytes are in use.
    pub(crate) fn share(&self, used: u64) -> u64 {
        let range = self.hard.saturating_sub(self.goal).max(1);
        let over = used.saturating_sub(self.goal).min(range);
        let over = (u128::from(over) * 1000 / u128::from(range)) as u64;
        EASY + (1000 - EASY) * over.pow(4) / 1000_u64.pow(4)
    }

    /// Must a mutator wait for the markers, after assists in vain?
    pub(crate) fn waits(&self, used: u64) -> bool {
        used >= self.hard
    }
}

/// The longest time for which an allocation of `bytes` waits for a late collector.
pub(crate) fn moment(bytes: u64) -> Duration {
    Duration::from_millis((bytes / RUN).clamp(1, 1000))
}

/// The time for which a mutator that has assisted for `spent` allocates without assists, so that
/// assists take `share` thousandths of its time. In the unit of `spent`.
pub(crate) fn assist_credit(spent: u64, share: u64) -> u64 {
    let share = share.clamp(1, 1000);
    spent.saturating_mul(1000 - share) / share
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: Marking = Marking {
        begin: 100_000_000,
        goal: 120_000_000,
        hard: 180_000_000,
        work: 1_000_000,
        most: 3_000_000,
    };

    #[test]
    fn nobody_helps_while_the_markers_are_above_the_line() {
        for percent in 0..100 {
            let used = M.begin + 200_000 * percent;
            assert_eq!(M.owed(used, 10_000 * percent, 8192), 0);
        }
        assert_eq!(M.owed(M.goal, M.most, 8192), 0);
    }

    #[test]
    fn who_allocates_below_the_line_marks_its_share_and_no_more() {
        // Half way, and a quarter done: 3/4 of the work is left for half of the bytes.
        let owed = M.owed(110_000_000, 250_000, 8192);
        assert_eq!(owed, 750_000 * 8192 * 2 / 10_000_000);
        assert_eq!(
            M.owed(110_000_000, 250_000, 1 << 40),
            MOST_CELLS * MOST_RUNS
        );
        assert_eq!(M.owed(110_000_000, 250_000, 16), LEAST_CELLS);
    }

    #[test]
    fn a_heap_that_turns_out_larger_keeps_the_slope() {
        // All of the expected work is marked at the goal, and more cells are found: the line is
        // three times as long.
        assert_eq!(M.owed(M.goal, 1_000_001, 8192), 0);
        assert_eq!(M.owed(139_000_000, 2_000_000, 8192), 0);
        assert!(M.owed(179_000_000, 2_000_000, 8192) > 0);
    }

    #[test]
    fn past_the_goal_help_is_all_that_counts() {
        assert_eq!(M.owed(M.goal, 900_000, 8192), MOST_CELLS);
        let shares = [M.begin, M.goal, 150_000_000, M.hard, u64::MAX].map(|used| M.share(used));
        assert_eq!(shares, [250, 250, 296, 1000, 1000]);
        assert!(!M.waits(M.hard - 1) && M.waits(M.hard));
    }

    #[test]
    fn a_wait_has_an_end() {
        assert_eq!(
            [0, 16, RUN, 3 * RUN, u64::MAX].map(|b| moment(b).as_millis()),
            [1, 1, 1, 3, 1000]
        );
    }

    #[test]
    fn a_mutator_that_helped_is_left_alone() {
        assert_eq!(assist_credit(100, 250), 300);
        assert_eq!(assist_credit(100, 1000), 0);
        assert_eq!(assist_credit(100, 0), 99_900);
    }

    #[test]
    fn no_numbers_are_too_large() {
        for used in [0, 1, 1 << 40, u64::MAX - 1] {
            for work in [0, 1, u64::MAX / 2] {
                let marking = Marking {
                    begin: 0,
                    goal: u64::MAX - 1,
                    hard: u64::MAX,
                    work,
                    most: u64::MAX,
                };
                for done in [0, work, u64::MAX] {
                    assert!(marking.owed(used, done, u64::MAX) <= MOST_CELLS * MOST_RUNS);
                    assert!(marking.share(used) <= 1000);
                }
            }
        }
    }
}
