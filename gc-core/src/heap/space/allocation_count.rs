//! The methods of [`Space`] on the allocation count.

use std::sync::atomic::Ordering;

use super::super::allocation_count::{MOST, PART, Unreported};
use super::Space;

impl Space {
    /// Counts cells that a mutator got.
    #[inline]
    pub(crate) fn count_allocated(&self, unreported: &Unreported, cells: usize, bytes: usize) {
        let cells = unreported.cells.load(Ordering::Relaxed) + cells as u64;
        let bytes = unreported.bytes.load(Ordering::Relaxed) + bytes as u64;
        unreported.cells.store(cells, Ordering::Relaxed);
        unreported.bytes.store(bytes, Ordering::Relaxed);
        if bytes > self.report_at.load(Ordering::Relaxed) {
            self.report(unreported);
        }
    }

    /// Reports a mutator's unreported count. By the mutator under `no_preempt`, or while it is
    /// stopped.
    pub(crate) fn report(&self, unreported: &Unreported) {
        if !seam::reports() {
            return;
        }
        let cells = unreported.cells.load(Ordering::Relaxed);
        if cells != 0 {
            let bytes = unreported.bytes.load(Ordering::Relaxed);
            unreported.cells.store(0, Ordering::Relaxed);
            unreported.bytes.store(0, Ordering::Relaxed);
            self.count_at_once(cells as usize, bytes as usize);
        }
    }

    /// In a stop: `room` bytes may be allocated until the next goal, by `mutators` mutators. These
    /// numbers bound what each mutator leaves unreported and what it reserves.
    pub(crate) fn foresee(&self, room: u64, mutators: usize) {
        let at = (room / PART / mutators.max(1) as u64).min(MOST);
        self.report_at.store(at, Ordering::Relaxed);
        self.mutators.store(mutators, Ordering::Relaxed);
    }

    /// Counts cells at once, without a mutator's own count.
    pub(super) fn count_at_once(&self, cells: usize, bytes: usize) {
        self.allocation_count
            .cells
            .fetch_add(cells as i64, Ordering::Relaxed);
        self.allocation_count
            .bytes
            .fetch_add(bytes as i64, Ordering::Relaxed);
    }

    /// Counts cells that a mutator gave back.
    pub(crate) fn take_back(&self, cells: usize, bytes: usize) {
        self.allocation_count
            .cells
            .fetch_sub(cells as i64, Ordering::Relaxed);
        self.allocation_count
            .bytes
            .fetch_sub(bytes as i64, Ordering::Relaxed);
    }

    /// In a stop: begins a new count.
    pub(crate) fn reset_allocation_count(&self) {
        self.allocation_count.cells.store(0, Ordering::Relaxed);
        self.allocation_count.bytes.store(0, Ordering::Relaxed);
    }

    /// Bytes that mutators got in runs and as large objects since [`Space::swap`], as far as
    /// they are reported.
    pub fn allocated_since(&self) -> u64 {
        self.allocation_count.bytes.load(Ordering::Relaxed).max(0) as u64
    }

    /// Cells that mutators got in runs and as large objects since [`Space::swap`], less
    /// those given back, as far as they are reported.
    pub fn cells_since(&self) -> i64 {
        self.allocation_count.cells.load(Ordering::Relaxed)
    }
}

mod seam {
    use crate::fault::Fault;

    pub(super) fn reports() -> bool {
        !Fault::UnreportedCells.planted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::SpaceConfig;

    fn space() -> Space {
        let config = SpaceConfig {
            reserve: 16 << 20,
            ..SpaceConfig::default()
        };
        Space::new(config).unwrap()
    }

    /// The allocation count is exact in a small heap, and misses at most a 1024th of the room in a
    /// large one.
    #[test]
    fn a_small_heap_knows_all_and_a_large_one_misses_a_thousandth() {
        let space = space();
        let (one, two) = (Unreported::default(), Unreported::default());
        space.count_allocated(&one, 512, 8192);
        assert_eq!((space.cells_since(), space.allocated_since()), (512, 8192));
        const ROOM: u64 = 100 << 20;
        space.foresee(ROOM, 2);
        let (mut handed, mut reports) = (8192, 0);
        for _ in 0..1000 {
            for unreported in [&one, &two] {
                let before = space.allocated_since();
                space.count_allocated(unreported, 512, 8192);
                handed += 8192;
                reports += u64::from(space.allocated_since() != before);
                let missed = handed - space.allocated_since();
                assert!(missed <= ROOM / 1024, "{missed} of {handed}");
            }
        }
        assert!((250..400).contains(&reports), "{reports} reports of 2,000");
        for unreported in [&one, &two, &one] {
            space.report(unreported);
        }
        assert_eq!(space.allocated_since(), handed);
        assert_eq!(space.cells_since() as u64, handed / 16);
        space.foresee(8 << 20, 2);
        space.count_allocated(&one, 512, 8192);
        assert_eq!(space.allocated_since(), handed + 8192);
    }
}
