//! A mutator's handle table: where the cells of its open scopes are rooted.
//!
//! ```text
//! chunk, 64 words:  [ words in use | link | slot | slot | ... ]        chunk 0 is for ever full and scanned never
//!
//! scope a:  chunk 5 -> chunk 2          each scope has chunks of its own, so that scopes may end in any order
//! scope b:  chunk 3                     and an outer scope may be used while an inner one is open
//! free:     chunk 4 -> chunk 1          words in use: 0
//! ```
//! Rejected: one stack of handles with a mark per scope. A handle that the outer scope makes while an inner one is open would lie above the
//! inner one's mark, and die with it.
//!
//! The table is written by its owner alone and read by the collector while the owner is stopped, at any instruction. It is valid at each:
//! a slot is written before the count says that it is in use, and what a slot holds is looked up like every root, so a stale one keeps
//! something too long at worst.

use core::cell::Cell;
use core::sync::atomic::{AtomicUsize, Ordering, compiler_fence};

use crate::heap::MapError;
use crate::mapped::Mapped;

/// Words of a chunk: 512 bytes hold 62 handles, more than most scopes make, at 3 % for the two words of header.
const CHUNK: usize = 64;
/// Words of a chunk's header.
const HEADER: usize = 2;
/// Words of a table: 256 MiB of address space a mutator, for 32 million handles open at once. What is not touched costs nothing.
const WORDS: usize = 1 << 25;
/// Where the system limits address space, a table may have as few.
const LEAST: usize = 1 << 16;
/// Chunks given back in one piece, between two places at which a stop can come in.
const PIECE: usize = 64;

/// One mutator's handles.
pub(crate) struct Handles {
    words: Mapped<AtomicUsize>,
    /// Chunks that were ever used. For the collector.
    high: AtomicUsize,
    /// The first free chunk; 0: none. For the owner.
    free: Cell<usize>,
}

impl Handles {
    pub(crate) fn new() -> Result<Self, MapError> {
        let words = Mapped::<AtomicUsize>::reserve(WORDS, LEAST)?;
        // Relaxed, here and in this whole file: one thread writes, and its stop orders the collector's reads.
        words[0].store(CHUNK, Ordering::Relaxed);
        Ok(Self {
            words,
            high: AtomicUsize::new(1),
            free: Cell::new(0),
        })
    }

    /// Calls `f` with each handle. For the collector, while the owner is stopped.
    pub(crate) fn for_each(&self, mut f: impl FnMut(usize)) {
        for chunk in 1..self.high.load(Ordering::Relaxed) {
            let words = &self.words[chunk * CHUNK..][..CHUNK];
            let used = words[0].load(Ordering::Relaxed).clamp(HEADER, CHUNK);
            for slot in &words[HEADER..used] {
                f(slot.load(Ordering::Relaxed));
            }
        }
    }

    /// A free chunk, put before `previous` in a scope's chain. `None`: all are in use. Under `no_preempt`.
    fn take(&self, previous: usize) -> Option<usize> {
        let chunk = match self.free.get() {
            0 => {
                let chunk = self.high.load(Ordering::Relaxed);
                if (chunk + 1) * CHUNK > self.words.len() {
                    return None;
                }
                self.high.store(chunk + 1, Ordering::Relaxed);
                chunk
            }
            chunk => {
                self.free
                    .set(self.words[chunk * CHUNK + 1].load(Ordering::Relaxed));
                chunk
            }
        };
        self.words[chunk * CHUNK + 1].store(previous, Ordering::Relaxed);
        self.words[chunk * CHUNK].store(HEADER, Ordering::Relaxed);
        Some(chunk)
    }

    /// Gives one chunk back; the next of its chain. Under `no_preempt`.
    fn give(&self, chunk: usize) -> usize {
        let next = self.words[chunk * CHUNK + 1].load(Ordering::Relaxed);
        self.words[chunk * CHUNK].store(0, Ordering::Relaxed);
        self.words[chunk * CHUNK + 1].store(self.free.get(), Ordering::Relaxed);
        self.free.set(chunk);
        next
    }
}

/// One scope's handles.
pub(crate) struct Chain<'m> {
    handles: &'m Handles,
    thread: &'m gc_preempt::Mutator,
    /// The chunk that is being filled; at first the full one.
    chunk: Cell<*const AtomicUsize>,
}

impl<'m> Chain<'m> {
    pub(crate) fn new(handles: &'m Handles, thread: &'m gc_preempt::Mutator) -> Self {
        Self {
            handles,
            thread,
            chunk: Cell::new(&raw const handles.words[0]),
        }
    }

    /// Roots a cell until the chain is dropped. `false`: the table is full, and nothing has been rooted.
    #[inline]
    pub(crate) fn push(&self, address: usize) -> bool {
        let chunk = self.chunk.get();
        // SAFETY: the first word of a chunk of a table that outlives the chain.
        let used = unsafe { (*chunk).load(Ordering::Relaxed) };
        if used == CHUNK {
            return self.grow(address);
        }
        // SAFETY: a chunk of this chain, whose count is from HEADER to CHUNK; below CHUNK it names a slot of the chunk.
        unsafe {
            (*chunk.add(used)).store(address, Ordering::Relaxed);
            // The slot before the count, as this thread's stops see it. Until the count is stored, the address is in a register.
            compiler_fence(Ordering::SeqCst);
            (*chunk).store(used + 1, Ordering::Relaxed);
        }
        true
    }

    #[cold]
    #[inline(never)]
    fn grow(&self, address: usize) -> bool {
        let taken = self
            .thread
            .no_preempt(|| self.handles.take(self.position()));
        let Some(chunk) = taken else {
            return false;
        };
        self.chunk.set(&raw const self.handles.words[chunk * CHUNK]);
        self.push(address)
    }

    /// The number of the chunk that is being filled; 0: none yet.
    fn position(&self) -> usize {
        let bytes = self.chunk.get() as usize - self.handles.words.as_ptr() as usize;
        bytes / (CHUNK * size_of::<usize>())
    }
}

impl Drop for Chain<'_> {
    #[inline]
    fn drop(&mut self) {
        let mut chunk = self.position();
        while chunk != 0 {
            self.thread.no_preempt(|| {
                for _ in 0..PIECE {
                    if chunk == 0 {
                        break; // most scopes have one chunk
                    }
                    chunk = self.handles.give(chunk);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(handles: &Handles) -> Vec<usize> {
        let mut all = Vec::new();
        handles.for_each(|word| all.push(word));
        all.sort_unstable();
        all
    }

    #[test]
    fn a_scope_s_handles_are_scanned_until_it_ends_in_whatever_order() {
        let world = gc_preempt::World::new(gc_preempt::Config::default()).unwrap();
        let thread = world.attach(core::ptr::null_mut()).unwrap();
        let handles = Handles::new().unwrap();
        let outer = Chain::new(&handles, &thread);
        assert!(outer.push(16));
        let inner = Chain::new(&handles, &thread);
        for i in 0..1000 {
            assert!(inner.push(1000 + i));
        }
        // Made while the inner scope is open, and alive after it.
        assert!(outer.push(32));
        assert_eq!(all(&handles).len(), 1002);
        drop(inner);
        assert_eq!(all(&handles), [16, 32]);
        let high = handles.high.load(Ordering::Relaxed);
        let again = Chain::new(&handles, &thread);
        for i in 0..1000 {
            assert!(again.push(i));
        }
        assert_eq!(
            handles.high.load(Ordering::Relaxed),
            high,
            "chunks are used again"
        );
        drop(outer);
        assert_eq!(all(&handles).len(), 1000);
        drop(again);
        assert!(all(&handles).is_empty());
    }

    #[test]
    fn an_empty_scope_takes_no_chunk() {
        let world = gc_preempt::World::new(gc_preempt::Config::default()).unwrap();
        let thread = world.attach(core::ptr::null_mut()).unwrap();
        let handles = Handles::new().unwrap();
        drop(Chain::new(&handles, &thread));
        assert_eq!(handles.high.load(Ordering::Relaxed), 1);
    }
}
