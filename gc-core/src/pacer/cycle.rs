//! One cycle's numbers, as the collector passes them to the pacer.

/// One cycle's numbers. Bytes in use are the bytes of cells, and of the memory outside of the heap
/// that cells keep, as reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cycle {
    /// Bytes in use when its snapshot was taken.
    pub begin: u64,
    /// Bytes of cells that it marked.
    pub live: u64,
    /// Bytes that mutators were given while it marked.
    pub allocated_black: u64,
    /// Bytes of stacks, root ranges and handles that were scanned.
    pub roots: u64,
    /// Bytes of memory outside of the heap, in use at its end.
    pub external: u64,
    /// Bytes that the heap takes beside its cells.
    pub overhead: u64,
    /// Cells marked by the collector's threads and by mutators, and marked cells that a young cycle
    /// followed.
    pub marked: u64,
    /// Cells among these that mutators marked.
    pub assisted: u64,
    /// The time for which it marked while mutators ran, in nanoseconds; 0: it marked in one stop.
    pub beside: u64,
    /// The number of mutators that wanted to run meanwhile.
    pub running: u32,
    /// The time that all mutators together spent in assists, in nanoseconds.
    pub assist: u64,
    /// Processor time of the collector's threads, and the time that stops took from mutators, in
    /// nanoseconds.
    pub cost: u64,
    /// The time from the end of the cycle before to its end, in nanoseconds.
    pub interval: u64,
    /// Whether a request began it, not the trigger.
    pub forced: bool,
    /// Whether it is a young cycle. Then `live` has the old cells, and `marked` has not.
    pub young: bool,
    /// Bytes of spans of cells with edges that are immutable, so a young cycle does not follow
    /// them.
    pub immutable: u64,
}

impl Cycle {
    /// Bytes in use at its end, without those allocated black.
    pub(super) fn old(&self) -> u64 {
        self.live.saturating_add(self.external)
    }

    /// Bytes in use at its end.
    pub(super) fn now(&self) -> u64 {
        self.old().saturating_add(self.allocated_black)
    }
}
