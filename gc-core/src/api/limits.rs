//! What a heap does about memory that it does not need, and where its limit comes from.

use std::time::Duration;

use crate::api::heap::{Heap, HeapBuilder};

impl HeapBuilder {
    /// How long after the last collection a heap is collected that asks for none, so that what has
    /// died meanwhile is freed and goes back to the system. Two minutes by default, as in Go; zero:
    /// never. In the environment `URGE_IDLE`, in seconds.
    ///
    /// ```
    /// use std::time::Duration;
    /// let heap = gc_core::Heap::builder()
    ///     .idle_collection(Duration::from_secs(5))
    ///     .build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn idle_collection(mut self, after: Duration) -> Self {
        self.config.idle = after;
        self
    }

    /// Takes the container's limit for the [`memory_limit`](Self::memory_limit): the smallest
    /// `memory.max` of the process's cgroups (`memory.limit_in_bytes` in the first version), read
    /// once, in [`build`](Self::build). Where they have none, the heap has none either. A
    /// `memory_limit` that is set besides counts if it is smaller: set one, if much of the
    /// container's memory is for something else than the heap. In the environment
    /// `URGE_MEMORY_LIMIT=cgroup`.
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().memory_limit_from_cgroup().build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn memory_limit_from_cgroup(mut self) -> Self {
        self.config.cgroup = true;
        self
    }
}

impl Heap {
    /// Collects, gives all free memory back to the system at once, and waits for both; the bytes
    /// that went back. For a program that knows that it will need less for a while. Without it
    /// memory goes back slowly, beside the program, and what was in use lately is kept for some
    /// seconds.
    ///
    /// What [`pre_touch`](HeapBuilder::pre_touch) has backed stays, and free memory in pieces of
    /// less than 16 KiB.
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

    /// The bytes that the heap keeps to where it can: [`memory_limit`](HeapBuilder::memory_limit),
    /// or that of the container.
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().memory_limit(64 << 20).build()?;
    /// assert_eq!(heap.memory_limit(), Some(64 << 20));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn memory_limit(&self) -> Option<u64> {
        let limit = self.shared().pace.memory_limit();
        (limit != u64::MAX).then_some(limit)
    }
}
