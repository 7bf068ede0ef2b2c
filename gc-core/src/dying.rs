//! Values whose `Drop` runs: no edge may be stored into them.
//!
//! A value that needs `Drop` is dropped in its cell, after nothing leads to it any more. `Drop` has
//! `&mut self`, so it can move a member out of the value, and another in, without a barrier. The
//! invariant: **a field that safe code has by `&mut` is null**. New fields are null,
//! [`Field`](crate::Field) refuses a store outside of the heap, a value's fields are null before
//! its `Drop` begins, and while that runs a store of an edge into the value is refused, on any
//! thread. Otherwise `Drop` could move an edge out of a dead cell into a variable, which the
//! collector does not scan. Another dead cell could read the edge again after its target has been
//! freed.
//!
//! `Drop` may pass `&self` to other threads, and may call `drop_dead_values` itself. So the table
//! belongs to the heap, and has an entry for each value that is being dropped.

use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

use gc_preempt::Mutex;

use crate::fault::protected;
use crate::memory::MapError;
use crate::memory::tables::Slab;

/// The most values that are being dropped at once: the threads' stacks have room for no more levels
/// of `Drop` in `Drop`.
const AT_ONCE: usize = 1 << 16;

/// A value whose `Drop` runs.
struct Value {
    addresses: Range<usize>,
    /// `pthread_self` of the thread that drops it.
    owner: usize,
}

/// A heap's values whose `Drop` runs.
pub(crate) struct Dying {
    /// The number of values. It is nearly always 0, and then a store does not search the table.
    count: AtomicUsize,
    /// Changed and read inside `no_preempt`.
    values: Mutex<Slab<Value>>,
}

impl Dying {
    pub(crate) fn new() -> Result<Self, MapError> {
        Ok(Self {
            count: AtomicUsize::new(0),
            values: Mutex::new(Slab::new(AT_ONCE)?),
        })
    }

    /// A place for a value that is to be dropped. `None` while [`AT_ONCE`] values are being
    /// dropped, or if the system has no memory for the table.
    pub(crate) fn place(&self) -> Option<Place<'_>> {
        // SAFETY: the call has no arguments and writes no memory.
        let owner = unsafe { libc::pthread_self() } as usize;
        let addresses = 0..0;
        let value = Value { addresses, owner };
        let at = protected(|| self.values.lock().add(value)).ok()?;
        // Relaxed, here and everywhere: a thread that can reach the value got it from the thread
        // that counts it.
        self.count.fetch_add(1, Ordering::Relaxed);
        Some(Place { dying: self, at })
    }

    /// Whether the `Drop` of any value runs.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Whether the `Drop` of the value around `address` runs.
    #[inline]
    pub(crate) fn has(&self, address: usize) -> bool {
        self.count.load(Ordering::Relaxed) != 0 && self.find(address)
    }

    #[cold]
    #[inline(never)]
    fn find(&self, address: usize) -> bool {
        protected(|| {
            let mut values = self.values.lock();
            let mut from = 0;
            while let Some((at, value)) = values.next(from) {
                if value.addresses.contains(&address) {
                    return true;
                }
                from = at + 1;
            }
            false
        })
    }

    /// Takes the lock, for a fork.
    pub(crate) fn lock_for_fork(&self) -> impl Sized + '_ {
        self.values.lock()
    }

    /// In the child of a fork: removes the values that other threads were dropping, since no thread
    /// drops them any more. Their cells are free, and will hold other values.
    pub(crate) fn forked(&self, me: usize) {
        let mut values = self.values.lock();
        let mut count = 0;
        let mut from = 0;
        while let Some((at, value)) = values.next(from) {
            from = at + 1;
            if value.owner == me {
                count += 1;
            } else {
                values.take(at);
            }
        }
        self.count.store(count, Ordering::Relaxed);
    }
}

/// A place in the table, for one value.
pub(crate) struct Place<'a> {
    dying: &'a Dying,
    at: usize,
}

impl Place<'_> {
    /// Runs `drop`, which drops the value at these addresses.
    pub(crate) fn during(self, addresses: Range<usize>, drop: impl FnOnce()) {
        protected(|| {
            if let Some(value) = self.dying.values.lock().get(self.at) {
                value.addresses = addresses;
            }
        });
        // The place becomes free at the end, even if `drop` panics.
        drop();
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        protected(|| self.dying.values.lock().take(self.at));
        self.dying.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn a_value_is_dying_while_its_drop_runs_and_no_longer() {
        let dying = Dying::new().unwrap();
        let has = |at| dying.has(at);
        dying.place().unwrap().during(16..48, || {
            assert!([15, 16, 47, 48].map(has) == [false, true, true, false]);
            dying
                .place()
                .unwrap()
                .during(96..112, || assert!(has(32) && has(100)));
            let panics = || {
                dying
                    .place()
                    .unwrap()
                    .during(64..80, || panic!("a Drop that panics"))
            };
            assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
            assert!(has(32) && !has(100) && !has(64));
        });
        assert!(!has(32));
    }

    #[test]
    fn a_child_forgets_what_gone_threads_were_dropping() {
        let dying = Dying::new().unwrap();
        // SAFETY: no arguments, no memory.
        let me = unsafe { libc::pthread_self() } as usize;
        dying.place().unwrap().during(16..48, || {
            dying.forked(me);
            assert!(dying.has(32));
            dying.forked(me + 1);
            assert!(!dying.has(32));
            // The guard subtracts one at its end.
            dying.count.store(1, Ordering::Relaxed);
        });
        assert_eq!(dying.count.load(Ordering::Relaxed), 0);
    }
}
