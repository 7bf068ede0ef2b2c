//! Collections that a program requests, and those that an allocation makes due.

use std::sync::atomic::Ordering;

use crate::api::heap::Heap;
use crate::collector::Requests;
use crate::fault::protected;

impl Heap {
    /// Runs a full collection, waits for it, and returns its number. One collection may serve
    /// requests of several threads. Any thread may call this; a mutator waits in `blocking`, and
    /// its registers and stack are scanned as in any collection.
    ///
    /// # Panics
    /// Inside `no_preempt`, in a root callback or the drop of a code owner, and on a thread that
    /// holds a stop ([`Heap::with_stopped`]): the wait would not end. Use
    /// [`Heap::request_collection`] there. In the child of a fork, if the system refuses the
    /// collector's thread.
    #[track_caller]
    pub fn collect(&self) -> u64 {
        self.collect_now(true)
    }

    /// Runs a collection such as allocation makes due, waits for it, and returns its number. It is
    /// young if the last collection left its mark bits set (see
    /// [`HeapBuilder::young_collections`](crate::HeapBuilder::young_collections)). For an embedder
    /// at a moment when few of the new cells are alive, as between two frames or two requests.
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().build()?;
    /// heap.collect_young();
    /// assert!(!heap.stats().last.young, "a new heap has no old cells");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// As [`collect`](Self::collect).
    #[track_caller]
    pub fn collect_young(&self) -> u64 {
        self.collect_now(false)
    }

    /// Runs a collection and waits for it. With `whole` it traces all cells; otherwise it may be
    /// young.
    #[track_caller]
    pub(crate) fn collect_now(&self, whole: bool) -> u64 {
        self.on_collectors_thread(|requests| {
            let number = requests.ask(whole);
            requests.wait(number);
            number
        })
    }

    /// Runs `ask_and_wait`, which gives the collector's thread an order and waits for it, in
    /// `blocking`.
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
        if seam::waits_in_blocking() {
            gc_preempt::blocking_here(ask_and_wait)
        } else {
            ask_and_wait()
        }
    }

    /// Requests a full collection without waiting for it, and returns its number. Mutators may call
    /// this inside `no_preempt`, and root callbacks may, too.
    pub fn request_collection(&self) -> u64 {
        self.request(true)
    }

    /// Requests a collection: of all cells, or one that may be young.
    fn request(&self, whole: bool) -> u64 {
        let _kept = gc_preempt::KeepErrno::new();
        let requests = &self.state().requests;
        let alive = requests.alive.load(Ordering::SeqCst);
        if !alive && !gc_preempt::in_no_preempt_here() {
            gc_preempt::blocking_here(|| self.revive());
        }
        protected(|| requests.ask(whole))
    }

    /// Requests a collection if `used` bytes in use make one due and no thread has requested it
    /// yet. Returns whether it did.
    ///
    /// In the child of a fork the collector's thread must be started first, which cannot be done
    /// inside `no_preempt`. A thread in such a section requests nothing, because its request would
    /// keep other threads from starting the collector. The next allocation outside of `no_preempt`
    /// requests it.
    #[inline]
    pub(crate) fn ask_if_due(&self, used: u64) -> bool {
        let state = self.state();
        if !state.pace.is_due(used) {
            return false;
        }
        let heard = state.requests.alive.load(Ordering::SeqCst)
            || !gc_preempt::in_no_preempt_here()
            || !seam::spares_the_dead();
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

    /// Runs a full collection, gives all free memory back to the system, waits for both, and
    /// returns the bytes given back. For a program that will need less memory for a while. Without
    /// a call, the scavenger gives memory back slowly, and keeps recently used memory for some
    /// seconds.
    ///
    /// Memory that [`pre_touch`](crate::HeapBuilder::pre_touch) has backed is kept, and so are free
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

    /// The bytes that the heap should not exceed:
    /// [`memory_limit`](crate::HeapBuilder::memory_limit), or the container's limit. `None` without
    /// a limit.
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

    /// Adds `delta` bytes to the memory outside of the heap that cells keep; `delta` is negative
    /// when such memory is freed. The pacer counts these bytes as if they were in the heap. Any
    /// thread may call this.
    pub fn report_external(&self, delta: i64) {
        let state = self.state();
        state.pace.report(delta);
        if delta > 0 {
            self.ask_if_due(state.pace.used(state.space.allocated_since()));
        }
    }
}

mod seam {
    use crate::fault::Fault;

    pub(super) fn waits_in_blocking() -> bool {
        !Fault::WaitRunning.planted()
    }

    /// Requests nothing of a collector that is gone.
    #[inline(always)]
    pub(super) fn spares_the_dead() -> bool {
        !Fault::AsksTheDead.planted()
    }
}
