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
    pub born: u64,
    /// Bytes of stacks, root ranges and handles that were scanned.
    pub roots: u64,
    /// Bytes of memory outside of the heap, in use at its end.
    pub external: u64,
    /// Bytes that the heap takes beside its cells.
    pub overhead: u64,
    /// Cells marked by the collector's threads and by mutators, and marked cells that a young cycle
    /// followed.
    pub marked: u64,
    /// Of these, by mutators.
    pub assisted: u64,
    /// How long it marked while mutators ran, in nanoseconds; 0: all in one stop.
    pub beside: u64,
    /// Mutators that wanted to run meanwhile.
    pub running: u32,
    /// Time that mutators spent in assists, in nanoseconds, all of them together.
    pub assist: u64,
    /// Processor time of the collector's threads, and the time that stops took from mutators, in
    /// nanoseconds.
    pub cost: u64,
    /// From the end of the cycle before to the end of this one, in nanoseconds.
    pub interval: u64,
    /// A request began it, not the trigger.
    pub forced: bool,
    /// It is a young cycle, which took old cells for alive: `live` has them, `marked` has not.
    pub young: bool,
    /// Bytes of spans of cells with edges that a young cycle need not look at.
    pub immutable: u64,
}

impl Cycle {
    /// Bytes in use at its end, without what was born.
    pub(super) fn old(&self) -> u64 {
        self.live.saturating_add(self.external)
    }

    /// Bytes in use at its end.
    pub(super) fn now(&self) -> u64 {
        self.old().saturating_add(self.born)
    }
}
