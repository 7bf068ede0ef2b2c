//! Reads of the code map by a handler that no stop protects.
//!
//! The map changes under the registry lock only, and a stop holds that lock. So a thread that has
//! been asked to stop may read the map. A thread that is to be preempted without a stop may not:
//! the map could change meanwhile. Such a thread counts itself in [`Readers`] first, and the
//! thread that changes the map waits until the count is zero.
//!
//! Invariant: a reader that does not see `changing` has counted itself before the writer looks at
//! the count, so the writer waits for it. A reader that sees `changing` reads nothing. Neither side
//! waits for a lock, and a reader never waits.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Who reads the map without a stop, and whether it changes.
pub(super) struct Readers {
    reading: AtomicU32,
    changing: AtomicBool,
}

impl Readers {
    pub(super) const fn new() -> Self {
        Self {
            reading: AtomicU32::new(0),
            changing: AtomicBool::new(false),
        }
    }

    /// Begins a read. `None`: the map changes just now. Async-signal-safe.
    pub(super) fn read(&self) -> Option<Reading<'_>> {
        // SeqCst, here and in `change`: one of the two sides sees the other's store.
        self.reading.fetch_add(1, Ordering::SeqCst);
        let reading = Reading(self);
        (!self.changing.load(Ordering::SeqCst)).then_some(reading)
    }

    /// Begins a change, when no thread reads. Under the registry lock.
    pub(super) fn change(&self) -> Changing<'_> {
        self.changing.store(true, Ordering::SeqCst);
        // SeqCst: see `read`. It also pairs with the Release of `Reading`'s drop.
        while self.reading.load(Ordering::SeqCst) != 0 {
            // A reader is in a handler that neither waits nor blocks.
            // SAFETY: no arguments, no memory.
            unsafe { libc::sched_yield() };
        }
        Changing(self)
    }

    /// In the child of a fork, which has no other thread.
    pub(super) fn forget(&self) {
        self.reading.store(0, Ordering::Relaxed);
    }
}

/// The map does not change while this lives.
pub(crate) struct Reading<'a>(&'a Readers);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        // Release pairs with the load in `change`: the reads come before the change.
        self.0.reading.fetch_sub(1, Ordering::Release);
    }
}

/// No thread reads the map without a stop while this lives.
pub(super) struct Changing<'a>(&'a Readers);

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        // SeqCst: pairs with the load in `read`, which then sees the changed map.
        self.0.changing.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_gives_up_while_the_map_changes_and_a_change_waits_for_readers() {
        let readers = Readers::new();
        let changing = readers.change();
        assert!(readers.read().is_none());
        drop(changing);
        let reading = readers.read().expect("nothing changes");
        std::thread::scope(|s| {
            let writer = s.spawn(|| drop(readers.change()));
            while !readers.changing.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            assert!(!writer.is_finished());
            drop(reading);
        });
        assert!(readers.read().is_some());
    }
}
