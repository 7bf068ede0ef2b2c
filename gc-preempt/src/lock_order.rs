//! Finds two locks that are taken in both orders, in test builds: the process ends at the first
//! lock that could be waited for in a circle, whether or not one is.
//!
//! A *class* is the place in the source where a lock is made. A thread that takes a lock of one
//! class while it holds one of another adds an edge between the two. A circle of edges means that
//! some threads may wait for each other for ever, so the edge that closes a circle is a fault.
//! Locks of one class may be held together: their holders order them by address or by number. Linux
//! (lockdep) and FreeBSD (WITNESS) check their kernels so.
//!
//! Without the cargo feature `faults` all of it is empty.

#[cfg(feature = "faults")]
pub(crate) use checked::Class;
#[cfg(feature = "faults")]
#[doc(hidden)]
pub use checked::forget_held as forget_held_locks;

/// Nothing, without the feature.
#[cfg(not(feature = "faults"))]
#[doc(hidden)]
#[inline(always)]
pub fn forget_held_locks() {}

/// Nothing, without the feature.
#[cfg(not(feature = "faults"))]
pub(crate) struct Class;

#[cfg(not(feature = "faults"))]
impl Class {
    #[inline(always)]
    pub(crate) const fn new() -> Class {
        Class
    }

    #[inline(always)]
    pub(crate) fn check(&self) {}

    #[inline(always)]
    pub(crate) fn taken(&self) {}

    #[inline(always)]
    pub(crate) fn left(&self) {}
}

#[cfg(feature = "faults")]
mod checked {
    use core::cell::Cell;
    use core::fmt::Write;
    use core::panic::Location;
    use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

    use crate::text::Text;

    /// Classes that are told apart. Locks beyond them are not checked.
    const CLASSES: usize = 64;

    static PLACES: [AtomicPtr<Location<'static>>; CLASSES] =
        [const { AtomicPtr::new(core::ptr::null_mut()) }; CLASSES];

    /// For each class, a bit for each class that was taken while it was held.
    static TAKEN_UNDER: [AtomicU64; CLASSES] = [const { AtomicU64::new(0) }; CLASSES];

    thread_local! {
        /// How many locks of each class this thread holds. Constant and without a destructor, so
        /// that its use allocates nothing.
        static HELD: [Cell<u32>; CLASSES] = const { [const { Cell::new(0) }; CLASSES] };
    }

    /// A lock's class: where it was made.
    pub(crate) struct Class(&'static Location<'static>);

    impl Class {
        #[track_caller]
        pub(crate) const fn new() -> Class {
            Class(Location::caller())
        }

        /// The class's number; none where there are too many.
        fn number(&self) -> Option<usize> {
            let own = core::ptr::from_ref(self.0).cast_mut();
            PLACES.iter().position(|place| {
                // Relaxed, here and below: a place is a constant of the program.
                let mut there = place.load(Ordering::Relaxed);
                if there.is_null() {
                    let set =
                        place.compare_exchange(there, own, Ordering::Relaxed, Ordering::Relaxed);
                    there = set.map_or_else(|other| other, |_| own);
                }
                // SAFETY: not null, so a place that some class has stored. Equal places may have
                // several addresses, so they are compared by value.
                there == own || unsafe { *there == *self.0 }
            })
        }

        /// Before this thread waits for the lock: does the order in which it takes locks allow it?
        pub(crate) fn check(&self) {
            let Some(own) = self.number() else { return };
            let _ = HELD.try_with(|held| {
                for (other, _) in held
                    .iter()
                    .enumerate()
                    .filter(|(_, count)| count.get() != 0)
                {
                    // Relaxed: each edge is checked by the thread that adds it; of two threads that
                    // add the two edges of a circle at once, one comes later to its word.
                    let edge = 1 << own;
                    if other == own
                        || TAKEN_UNDER[other].fetch_or(edge, Ordering::SeqCst) & edge != 0
                    {
                        continue;
                    }
                    if leads_to(own, other) {
                        fail(own, other);
                    }
                }
            });
        }

        /// The lock is this thread's.
        pub(crate) fn taken(&self) {
            self.add(|held| held + 1);
        }

        /// The lock is about to be free.
        pub(crate) fn left(&self) {
            // 0 stays 0, after `forget_held`.
            self.add(|held| held.saturating_sub(1));
        }

        fn add(&self, count: impl Fn(u32) -> u32) {
            if let Some(own) = self.number() {
                let _ = HELD.try_with(|held| held[own].set(count(held[own].get())));
            }
        }
    }

    /// The locks that this thread holds no longer count: those that it takes next belong to another
    /// heap, and no other thread holds locks of two heaps.
    pub fn forget_held() {
        let _ = HELD.try_with(|held| held.iter().for_each(|count| count.set(0)));
    }

    /// Was a lock of the class `to` ever taken under one of `from`, or under others that were?
    fn leads_to(from: usize, to: usize) -> bool {
        let (mut seen, mut next) = (0_u64, 1_u64 << from);
        while next != 0 {
            let class = next.trailing_zeros() as usize;
            seen |= 1 << class;
            // SeqCst pairs with the `fetch_or` above: of two threads, one sees the other's edge.
            next = (next | TAKEN_UNDER[class].load(Ordering::SeqCst)) & !seen;
            if seen & 1 << to != 0 {
                return true;
            }
        }
        false
    }

    fn fail(own: usize, held: usize) -> ! {
        // SAFETY: both classes have numbers, so their places are stored.
        let place = |class: usize| unsafe { &*PLACES[class].load(Ordering::Relaxed) };
        let mut text = Text::new();
        let _ = writeln!(
            text,
            "urge: the lock of {} is taken under the one of {}, which elsewhere is taken under it: \
             two threads may wait for each other for ever",
            place(own),
            place(held)
        );
        text.print();
        std::process::abort();
    }
}

#[cfg(all(test, feature = "faults"))]
mod tests {
    use crate::Mutex;

    /// Runs this test binary's test `name` again, with `URGE_TEST_CHILD` set; its exit and its
    /// messages.
    fn again(name: &str) -> std::process::Output {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env("URGE_TEST_CHILD", "1")
            .output()
            .unwrap()
    }

    #[test]
    fn a_circle_of_three_locks_ends_the_process_although_no_thread_waits() {
        if std::env::var_os("URGE_TEST_CHILD").is_none() {
            let name = "lock_order::tests::a_circle_of_three_locks_ends_the_process_although_no_thread_waits";
            let output = again(name);
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success(), "{text}");
            assert!(text.contains("src/lock_order.rs"), "{text}");
            assert!(text.contains("may wait for each other"), "{text}");
            assert!(!text.contains("was not found"), "{text}");
            return;
        }
        let a = Mutex::new(1);
        let b = Mutex::new(2);
        let c = Mutex::new(3);
        drop((a.lock(), b.lock()));
        drop((b.lock(), c.lock()));
        drop((a.lock(), c.lock()));
        // The order of letting go is free.
        let (first, second) = (a.lock(), b.lock());
        drop(first);
        drop(second);
        drop((c.lock(), a.lock()));
        eprintln!("the circle was not found");
    }

    #[test]
    fn locks_of_one_class_and_locks_that_are_only_tried_make_no_circle() {
        let [a, b] = [1, 2].map(Mutex::new);
        let c = Mutex::new(3);
        drop((a.lock(), b.lock()));
        drop((b.lock(), a.lock()));
        drop((a.lock(), c.lock()));
        drop((c.lock(), a.try_lock()));
    }
}
