//! The settings of a heap that may change while it is in use: its limits, its growth, and when it
//! is collected.
//!
//! Any thread may call these functions at any time, also while a collection is under way. A limit
//! that decides (the hard limit) changes under the lock under which pages are taken. The pacer's
//! plan is made again under the pacer's lock. Both locks are taken inside `no_preempt`, so no
//! thread is stopped while it holds one. All other values are hints that the next refill reads.

use std::time::Duration;

use crate::api::heap::Heap;
use crate::config::{ConfigError, HARD_LIMIT, MEMORY_LIMIT, check_limit};
use crate::fault::protected;
use crate::pacer::Policy;

/// While this exists, the heap makes no collection due: see [`Heap::pause_collections`]. It keeps
/// the heap alive, and any thread may drop it.
#[must_use = "collections go on when the guard is dropped"]
pub struct PausedCollections {
    heap: Heap,
}

impl Drop for PausedCollections {
    fn drop(&mut self) {
        let state = self.heap.state();
        state.pace.go_on();
        self.heap.settings_changed();
    }
}

impl std::fmt::Debug for PausedCollections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PausedCollections")
    }
}

impl Heap {
    /// Changes the [hard limit](crate::HeapBuilder::hard_limit), in bytes; `None` removes it.
    ///
    /// The limit may be lower than the bytes in use. Nothing that is alive is lost then: an
    /// allocation that needs more memory collects, and fails with an
    /// [`AllocError`](crate::AllocError) until enough cells have died. Free cells of the memory in
    /// use are still given out.
    ///
    /// A program whose heap is full raises its limit, cleans up, and lowers it again:
    ///
    /// ```
    /// use gc_core::{AllocError, Heap};
    ///
    /// let heap = Heap::builder().hard_limit(16 << 20).build()?;
    /// let mutator = heap.attach()?;
    /// let data = vec![0; 1 << 20];
    /// let keep = || mutator.scope(|s| Ok(heap.root(&s.alloc_bytes(&data)?)));
    /// let mut all = Vec::new();
    /// let error = loop {
    ///     match keep() {
    ///         Ok(root) => all.push(root),
    ///         Err(error) => break error,
    ///     }
    /// };
    /// assert!(matches!(error, AllocError::HeapLimit { .. }));
    ///
    /// heap.set_hard_limit(Some(24 << 20))?; // room for the clean-up
    /// all.push(keep()?);
    /// all.truncate(4);
    /// heap.set_hard_limit(Some(16 << 20))?;
    /// keep()?; // the dead cells make room
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The limit is below [`MINIMUM_LIMIT`](crate::MINIMUM_LIMIT). Nothing has changed then.
    pub fn set_hard_limit(&self, bytes: Option<u64>) -> Result<(), ConfigError> {
        check_limit(HARD_LIMIT, bytes)?;
        let state = self.state();
        protected(|| {
            state.space.set_hard_limit(bytes);
            // Under another limit a collection for room may help again.
            state.vain.lock().found_room();
        });
        self.change_policy(|policy| policy.hard_limit = bytes);
        Ok(())
    }

    /// The [hard limit](crate::HeapBuilder::hard_limit) in bytes; `None` without one.
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().hard_limit(64 << 20).build()?;
    /// heap.set_hard_limit(Some(32 << 20))?;
    /// assert_eq!(heap.hard_limit(), Some(32 << 20));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn hard_limit(&self) -> Option<u64> {
        self.state().space.hard_limit()
    }

    /// Changes the [memory limit](crate::HeapBuilder::memory_limit), in bytes; `None` removes it. A
    /// collection that the new limit makes due is requested at once.
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().build()?;
    /// heap.set_memory_limit(Some(64 << 20))?;
    /// assert_eq!(heap.memory_limit(), Some(64 << 20));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The limit is below [`MINIMUM_LIMIT`](crate::MINIMUM_LIMIT). Nothing has changed then.
    pub fn set_memory_limit(&self, bytes: Option<u64>) -> Result<(), ConfigError> {
        check_limit(MEMORY_LIMIT, bytes)?;
        self.change_policy(|policy| policy.memory_limit = bytes);
        Ok(())
    }

    /// Changes how much the heap may grow from collection to collection, in percent:
    /// [`gc_percent`](crate::HeapBuilder::gc_percent), where `u32::MAX` collects only on request or
    /// at a limit. A collection that is due by the new value is requested at once.
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().build()?;
    /// heap.set_gc_percent(50);
    /// assert_eq!(heap.gc_percent(), 50);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_gc_percent(&self, percent: u32) {
        self.change_policy(|policy| policy.gc_percent = percent);
    }

    /// How much the heap may grow from collection to collection, in percent.
    pub fn gc_percent(&self) -> u32 {
        protected(|| self.state().pace.policy().gc_percent)
    }

    /// Changes the time after which an idle heap is collected:
    /// [`idle_collection`](crate::HeapBuilder::idle_collection). Zero turns it off.
    ///
    /// ```
    /// use std::time::Duration;
    /// let heap = gc_core::Heap::builder().build()?;
    /// heap.set_idle_collection(Duration::ZERO); // never
    /// heap.set_idle_collection(Duration::from_secs(10));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_idle_collection(&self, after: Duration) {
        self.state().idle_after.set(after);
        // The collector's thread sleeps by the old value.
        protected(|| self.state().requests.nudge());
    }

    /// Pauses the collections that this heap makes due by itself, until the guard is dropped: those
    /// that growth, the memory limit or idleness ask for. For a critical piece of work that no stop
    /// is to interrupt, and that allocates little.
    ///
    /// * A collection that is under way goes on, and a request made before is served. Call
    ///   [`collect`](Self::collect) first to be sure that none is.
    /// * [`collect`](Self::collect), [`request_collection`](Self::request_collection) and
    ///   [`trim`](Self::trim) collect all the same, on any thread.
    /// * An allocation that finds no room under the hard limit, or in the system's memory, collects
    ///   before it fails: a pause never makes a program fail that works without it.
    /// * Guards nest: collections go on when the last one is dropped. One that is due then is
    ///   requested at once. Other heaps do not notice.
    /// * [`Stress`](crate::Stress) ignores the guard.
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().build()?;
    /// {
    ///     let _quiet = heap.pause_collections();
    ///     // no collection begins here unless the program asks for one
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn pause_collections(&self) -> PausedCollections {
        self.state().pace.pause();
        PausedCollections { heap: self.clone() }
    }

    /// Changes the pacer's settings, and requests a collection if that makes one due.
    fn change_policy(&self, change: impl FnOnce(&mut Policy)) {
        protected(|| self.state().pace.change_policy(change));
        self.settings_changed();
    }

    /// Requests a collection if one is due, and lets the collector's thread look at the settings.
    fn settings_changed(&self) {
        let state = self.state();
        self.ask_if_due(state.pace.used(state.space.allocated_since()));
        protected(|| state.requests.nudge());
    }
}
