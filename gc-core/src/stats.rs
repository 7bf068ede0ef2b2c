//! What a heap has done so far, in numbers.

use core::time::Duration;

use gc_preempt::Mutex;

/// A heap's figures, as [`Heap::stats`](crate::Heap::stats) gives them. Those of one collection belong together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeapStats {
    /// Collections that have come to their end.
    pub collections: u64,
    /// Bytes of spans and large objects in use, now: what the hard limit counts.
    pub used_bytes: u64,
    /// Bytes handed out to mutators (in runs and large objects) since the last collection.
    pub allocated_since: u64,
    /// Bytes handed out since the heap was built.
    pub allocated_total: u64,
    /// Memory outside of the heap that cells keep, as reported, in bytes.
    pub external_bytes: u64,
    /// The bytes (live, external and newly allocated) at which the next collection begins.
    pub trigger_bytes: u64,
    /// Finalizable cells that died and wait to be drained.
    pub finalizers_waiting: u64,
    /// Cells freed by all collections.
    pub cells_freed: u64,
    /// Time stopped by all collections.
    pub pause_total: Duration,
    /// The last collection.
    pub last: CollectionStats,
}

/// One collection's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CollectionStats {
    /// The collection's number; the first has 1.
    pub number: u64,
    /// From the stop's request until the last mutator stood.
    pub time_to_stop: Duration,
    /// From the stop's request until the resume was published.
    pub pause: Duration,
    /// Of the pause: looking at stacks, ranges, handles and callbacks.
    pub scan: Duration,
    /// Of the pause: marking.
    pub mark: Duration,
    /// Mutators that stood.
    pub mutators: u32,
    /// Of these, stopped by a signal.
    pub signalled: u32,
    /// Of these, held in `blocking`.
    pub held: u32,
    /// Times a mutator was met where it must not be stopped.
    pub deferrals: u32,
    /// Frames whose references a stack map named.
    pub frames_precise: u32,
    /// Frames that were scanned word by word.
    pub frames_conservative: u32,
    /// Of those, managed frames at a return address that no stack map names.
    pub unknown_sites: u32,
    /// Words that may have been anything and were looked up.
    pub conservative_words: u64,
    /// Words that a stack map, a range, a handle or a callback named.
    pub exact_words: u64,
    /// Cells that a conservative word reached first.
    pub conservative_marked: u64,
    /// Cells that an exact root reached first.
    pub exact_marked: u64,
    /// Cells alive after it (the unallocated rest of mutators' runs not counted).
    pub cells_live: u64,
    /// Their bytes.
    pub bytes_live: u64,
    /// Cells freed.
    pub cells_freed: u64,
    /// Weak words cleared.
    pub weak_cleared: u64,
    /// Finalizable cells that died.
    pub finalizable: u64,
}

/// The figures of a heap, kept under a lock that mutators hold inside `no_preempt` only and the collector takes outside of any stop.
pub(crate) struct Ledger(Mutex<HeapStats>);

impl Ledger {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(HeapStats::default()))
    }

    /// Inside `no_preempt`, or by a thread that is no mutator.
    pub(crate) fn read(&self) -> HeapStats {
        *self.0.lock()
    }

    /// Takes the lock, for the child of a fork.
    pub(crate) fn lock_for_fork(&self) -> impl Sized + '_ {
        self.0.lock()
    }

    /// Enters a collection.
    pub(crate) fn enter(&self, last: CollectionStats, allocated: u64) {
        let mut all = self.0.lock();
        all.collections += 1;
        all.cells_freed += last.cells_freed;
        all.pause_total += last.pause;
        all.allocated_total += allocated;
        all.last = last;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collections_add_up() {
        let ledger = Ledger::new();
        for number in 1..=3 {
            let last = CollectionStats {
                number,
                cells_freed: 10,
                pause: Duration::from_micros(5),
                ..CollectionStats::default()
            };
            ledger.enter(last, 100);
        }
        let all = ledger.read();
        assert_eq!(
            (
                all.collections,
                all.cells_freed,
                all.last.number,
                all.allocated_total
            ),
            (3, 30, 3, 300)
        );
        assert_eq!(all.pause_total, Duration::from_micros(15));
    }
}
