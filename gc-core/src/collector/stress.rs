//! The stress of a heap with `stress_phases` or `continuous`: every phase of a cycle stays open for
//! long enough that mutators meet it, however small the heap is. (A `continuous` heap also collects
//! all the time.)
//!
//! A heap of a few hundred cells is marked in the stop that scans its roots, or within microseconds
//! after it. A program that runs for milliseconds would never store an edge while cells are marked.
//! So with stress
//!
//! * mutators run after every scan, also if the heap is small;
//! * odd cycles sleep before they trace: meanwhile only the roots' own cells are marked, and only
//!   the barrier keeps a cell that is unlinked;
//! * even cycles sleep when all is traced: logs fill up until the next stop takes them;
//! * of four cycles, one leaves `Finish` at its first try, though nothing was left, one resumes the
//!   mutators as soon as it is decided which cells are dead, and one after it has cleared weak
//!   words. So mutators run between the phases that usually share a stop.

use std::time::Duration;

use super::phase::Phase;

/// The time that a cycle sleeps: enough for a mutator to run on, also for one that shares a core.
pub(super) const BREATH: Duration = Duration::from_micros(200);

/// The stress of one cycle, or none.
#[derive(Default)]
pub(super) struct Stress {
    /// The cycle's number; 0: no stress.
    number: u64,
    breathed: bool,
    left: bool,
    parted: bool,
}

impl Stress {
    /// The stress of cycle `number`; none unless the heap has `stress_phases`.
    pub(super) fn new(stress_phases: bool, number: u64) -> Self {
        Self {
            number: if stress_phases { number } else { 0 },
            ..Self::default()
        }
    }

    /// Whether mutators run between `Scan` and `Finish`, whatever the heap's size.
    pub(super) fn parts_stops(&self) -> bool {
        self.number != 0
    }

    /// Whether the roots that are scanned beside the mutators wait for the sleep, too. If they
    /// wait, only the log keeps the cells of roots that are ended meanwhile. If they do not, only
    /// the log keeps cells that are unlinked and then put into a root.
    pub(super) fn scans_late(&self) -> bool {
        self.number % 4 == 3
    }

    /// Sleeps in an odd cycle, once. Before anything is traced beside the mutators.
    pub(super) fn before_tracing(&mut self) {
        if self.number % 2 == 1 && !core::mem::replace(&mut self.breathed, true) {
            std::thread::sleep(BREATH);
        }
    }

    /// Sleeps, unless the cycle has slept before. When no marker has a grey cell any more.
    pub(super) fn after_tracing(&mut self) {
        if self.number != 0 && !core::mem::replace(&mut self.breathed, true) {
            std::thread::sleep(BREATH);
        }
    }

    /// Whether the first `Finish`, before `after`, is to fail, as if more were grey than a stop has
    /// time for.
    pub(super) fn leaves(&mut self, after: Phase) -> bool {
        let leaves = self.turn() == Some(1) && after == Phase::ClearWeak && !self.left;
        if leaves {
            self.left = true;
            self.breathed = false;
        }
        leaves
    }

    /// Whether mutators are to run from `phase`, at the cycle's end, on, as if more had died than a
    /// stop has time for.
    pub(super) fn parts(&self, phase: Phase) -> bool {
        let first = match phase {
            Phase::ClearWeak => Some(2),
            _ => Some(3),
        };
        self.turn() == first && !self.parted
    }

    /// Mutators have been resumed: sleeps.
    pub(super) fn parted(&mut self) {
        self.parted = true;
        if self.number != 0 {
            std::thread::sleep(BREATH);
        }
    }

    fn turn(&self) -> Option<u64> {
        (self.number != 0).then_some(self.number / 2 % 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heap_without_stress_is_left_alone() {
        let mut none = Stress::new(false, 7);
        assert!(!none.parts_stops() && !none.leaves(Phase::ClearWeak));
        assert!(!none.parts(Phase::ClearWeak) && !none.parts(Phase::QueueForDrop));
    }

    #[test]
    fn mutators_run_between_phases_in_three_cycles_of_four() {
        let mut turns = [0; 3];
        for number in 1..=80 {
            let mut stress = Stress::new(true, number);
            turns[0] += usize::from(stress.leaves(Phase::ClearWeak));
            assert!(!stress.leaves(Phase::ClearWeak) && !stress.leaves(Phase::ClearLong));
            for (phase, turn) in [(Phase::ClearWeak, 1), (Phase::Resurrect, 2)] {
                if stress.parts(phase) {
                    turns[turn] += 1;
                    stress.parted();
                }
            }
            assert!(!stress.parts(Phase::QueueForDrop));
        }
        assert_eq!(turns, [20; 3]);
    }
}
