//! What a `lingering` heap does to its mutators, and a `continuous` one besides collecting all the time: it keeps every phase of a cycle
//! open for long enough that they meet it, however small the heap is.
//!
//! A heap of a few hundred cells is marked in the stop that scans its roots, and if it were not, within microseconds of it: programs
//! that run for milliseconds would never store an edge while cells are marked. So with stress
//!
//! * mutators run after every scan, also where the heap is small;
//! * odd cycles begin to trace only after a breath: until then all that the snapshot has, but for the roots' own cells, is unmarked,
//!   and only the barrier keeps what is unlinked;
//! * even cycles breathe when all is traced: logs fill up until the next stop takes them;
//! * three cycles of four leave one of the three `Finish`es at their first try, though nothing was left, so that mutators run between
//!   the phases that usually share a stop.

use std::time::Duration;

use super::Phase;

/// Long enough for a mutator to get somewhere, and for a thread that shares a core to get it.
pub(super) const BREATH: Duration = Duration::from_micros(200);

/// One cycle's stress, or none.
#[derive(Default)]
pub(super) struct Stress {
    /// The cycle's number; 0: no stress.
    number: u64,
    breathed: bool,
    left: bool,
}

impl Stress {
    /// For cycle `number` of a heap that lingers, or not.
    pub(super) fn new(lingers: bool, number: u64) -> Self {
        Self {
            number: if lingers { number } else { 0 },
            ..Self::default()
        }
    }

    /// Whether mutators run between scan and `Finish`, whatever the heap's size.
    pub(super) fn parts_stops(&self) -> bool {
        self.number != 0
    }

    /// Before anything is traced beside the mutators.
    pub(super) fn before_tracing(&mut self) {
        if self.number % 2 == 1 && !core::mem::replace(&mut self.breathed, true) {
            std::thread::sleep(BREATH);
        }
    }

    /// When nobody knows of a grey cell any more.
    pub(super) fn after_tracing(&mut self) {
        if self.number != 0 && !core::mem::replace(&mut self.breathed, true) {
            std::thread::sleep(BREATH);
        }
    }

    /// Whether the `Finish` before `after` is to be left, as if more were grey than a stop has time for.
    pub(super) fn leaves(&mut self, after: Phase) -> bool {
        let number = match after {
            Phase::Resurrect => 1,
            Phase::ClearWeak => 2,
            _ => 3,
        };
        let leaves = self.number != 0 && self.number / 2 % 4 == number && !self.left;
        if leaves {
            self.left = true;
            self.breathed = false;
        }
        leaves
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heap_without_stress_is_left_alone() {
        let mut none = Stress::new(false, 7);
        assert!(!none.parts_stops() && !none.leaves(Phase::Resurrect));
    }

    #[test]
    fn each_finish_is_left_once_by_one_cycle_of_four_pairs() {
        let phases = [Phase::Resurrect, Phase::ClearWeak, Phase::Flip];
        let mut left = [0; 3];
        for number in 1..=80 {
            let mut stress = Stress::new(true, number);
            for (phase, left) in phases.into_iter().zip(&mut left) {
                *left += usize::from(stress.leaves(phase)) + usize::from(stress.leaves(phase));
            }
        }
        assert_eq!(left, [20; 3]);
    }
}
