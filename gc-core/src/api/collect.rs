//! Collections that a program asks for, and those that an allocation makes due.

use std::sync::atomic::Ordering;

use crate::api::heap::Heap;
use crate::collector::Requests;
use crate::fault::{Fault, planted, protected};

impl Heap {
    /// Runs a full collection and waits for it; gives its number. Requests of several threads share
    /// one collection where one serves all.
    ///
    /// From a mutator it waits in `blocking`: what only registers and stack hold is scanned as
    /// ever.
    ///
    /// # Panics
    /// Inside `no_preempt`, in a root callback, and on a thread that holds a stop
    /// ([`Heap::with_stopped`]), where waiting would be for ever. See [`Heap::request_collection`].
    #[track_caller]
    pub fn collect(&self) -> u64 {
        self.collect_now(true)
    }

    /// Runs a collection as one that is due is run, and waits for it; gives its number. It is a
    /// young one, if the last one left marks for it: see
    /// [`HeapBuilder::young_collections`](crate::HeapBuilder::young_collections). For an embedder
    /// that knows when little is alive of what was allocated lately, as between two frames or
    /// requests.
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().build()?;
    /// heap.collect_young();
    /// assert!(!heap.stats().last.young, "nothing is known of the cells of a new heap");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// As [`collect`](Self::collect).
    #[track_caller]
    pub fn collect_young(&self) -> u64 {
        self.collect_now(false)
    }

    /// Collects all cells, or perhaps young ones only, and waits for it.
    #[track_caller]
    pub(crate) fn collect_now(&self, whole: bool) -> u64 {
        self.on_collectors_thread(|requests| {
            let number = requests.ask(whole);
            requests.wait(number);
            number
        })
    }

    /// Has the collector's thread do what `ask_and_wait` asks for, and waits in `blocking`.
    #[track_caller]
    pub(super) fn on_collectors_thread(&self, ask_and_wait: impl FnOnce(&Requests) -> u64) -> u64 {
        let _kept = gc_preempt::KeepErrno::new();
        assert!(
            !self.on_collector(),
            "collect() inside a root callback or a code owner's drop: ask with request_collection() instead"
        );
        assert!(
            !gc_preempt::holds_a_stop(),
            "collect() on a thread that has stopped a world: the collection would wait for its resume"
        );
        assert!(
            !gc_preempt::in_no_preempt_here(),
            "collect() inside no_preempt: it would wait for a stop, and the stop for the end of the section; ask with request_collection() instead"
        );
        let ask_and_wait = || {
            self.revive();
            ask_and_wait(&self.state().requests)
        };
        if planted(Fault::WaitRunning) {
            ask_and_wait()
        } else {
            gc_preempt::blocking_here(ask_and_wait)
        }
    }

    /// Asks for a full collection and does not wait for it; gives its number.
    pub fn request_collection(&self) -> u64 {
        self.request(true)
    }

    /// Asks for a collection: of all cells, or one that may be young.
    fn request(&self, whole: bool) -> u64 {
        let _kept = gc_preempt::KeepErrno::new();
        let requests = &self.state().requests;
        let alive = requests.alive.load(Ordering::SeqCst);
        if !alive && !gc_preempt::in_no_preempt_here() {
            gc_preempt::blocking_here(|| self.revive());
        }
        protected(|| requests.ask(whole))
    }

    /// Asks for a collection if `used` bytes in use make one due and no thread has asked yet; says
    /// whether it has.
    ///
    /// In the child of a fork the collector's thread has to be made anew, which cannot be done
    /// inside `no_preempt`. A thread in such a section does not ask: a request without a collector
    /// would keep all others from asking: the next allocation outside does.
    #[inline]
    pub(crate) fn ask_if_due(&self, used: u64) -> bool {
        let state = self.state();
        if !state.pace.is_due(used) {
            return false;
        }
        let heard = state.requests.alive.load(Ordering::SeqCst)
            || !gc_preempt::in_no_preempt_here()
            || planted(Fault::AsksTheDead);
        let asks = heard && state.pace.ask();
        if asks {
            self.request(false);
        }
        asks
    }

    fn on_collector(&self) -> bool {
        // SAFETY: no arguments, no memory. Relaxed: see `collector/run.rs`.
        self.state().collector.load(Ordering::Relaxed) == unsafe { libc::pthread_self() } as usize
    }

    /// Collects, gives all free memory back to the system at once, and waits for both; the bytes
    /// that went back. For a program that knows that it will need less for a while. Without it
    /// memory goes back slowly, beside the program, and what was in use lately is kept for some
    /// seconds.
    ///
    /// What [`pre_touch`](crate::HeapBuilder::pre_touch) has backed stays, and free memory in
    /// pieces of less than 16 KiB.
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().build()?;
    /// let bytes = heap.trim();
    /// assert_eq!(bytes, 0, "nothing has been used");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// As [`collect`](Self::collect).
    #[track_caller]
    pub fn trim(&self) -> u64 {
        self.on_collectors_thread(|requests| {
            let number = requests.ask_to_trim();
            requests.wait_for_trim(number)
        })
    }

    /// The bytes that the heap keeps to where it can:
    /// [`memory_limit`](crate::HeapBuilder::memory_limit), or that of the container.
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().memory_limit(64 << 20).build()?;
    /// assert_eq!(heap.memory_limit(), Some(64 << 20));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn memory_limit(&self) -> Option<u64> {
        let limit = self.state().pace.memory_limit();
        (limit != u64::MAX).then_some(limit)
    }

    /// Reports memory outside of the heap that cells keep (`delta` may be negative when it is
    /// freed): it counts towards the next collection as if it were in the heap.
    pub fn report_external(&self, delta: i64) {
        let state = self.state();
        state.pace.report(delta);
        if delta > 0 {
            self.ask_if_due(state.pace.used(state.space.allocated_since()));
        }
    }
}
