//! Chunked arrays: they take memory in chunks of 256 KiB as they are filled, and give it back.
//!
//! A [`Mapped`] table reserves addresses for all elements that it could ever hold. That is too much
//! for a list that may become as long as the heap has cells but is short as a rule: values that
//! need `Drop`, finalizers, weak words that are dying. A chunked array has a directory, whose
//! addresses are a word for each chunk, and maps a chunk when its first element is written. Mapping
//! takes no lock of this process and calls no malloc, so a marker may do it in a stop. If the
//! system refuses a chunk, the list is full, and each list says what it does then.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::memory::MapError;
use crate::memory::os::Map;
use crate::memory::tables::{Mapped, Zeroed};

/// Bytes of a chunk. A system page of it becomes memory when it is first touched.
const CHUNK: usize = 256 << 10;

/// A zeroed array of `T`, of which only some chunks exist.
pub(crate) struct Chunked<T: Zeroed> {
    /// The addresses of the chunks; 0: the chunk does not exist.
    chunks: Mapped<AtomicUsize>,
    capacity: usize,
    /// Chunks from this number on were never mapped.
    high: AtomicUsize,
    of: PhantomData<T>,
}

/// A chunk that was taken out of its array. Dropping it gives its memory back.
pub(crate) struct Chunk(usize);

impl<T: Zeroed> Chunked<T> {
    /// Elements of a chunk.
    pub(crate) const CHUNK: usize = CHUNK / size_of::<T>();

    /// An empty array that may grow to `capacity` elements.
    pub(crate) fn new(capacity: usize) -> Result<Self, MapError> {
        const { assert!(CHUNK.is_multiple_of(size_of::<T>())) };
        let capacity = capacity.max(1);
        let chunks = capacity.div_ceil(Self::CHUNK);
        Ok(Self {
            chunks: Mapped::growing(chunks)?,
            capacity,
            high: AtomicUsize::new(0),
            of: PhantomData,
        })
    }

    /// The most elements that it may have.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// An element, if its chunk exists.
    #[inline]
    pub(crate) fn get(&self, at: usize) -> Option<&T> {
        // Acquire pairs with the Release in `map`: several threads change the directory.
        let chunk = self.chunks.get(at / Self::CHUNK)?.load(Ordering::Acquire);
        // SAFETY: a chunk has this many elements and was zeroed when it was mapped, which `Zeroed`
        // makes values. A caller that unmaps it has said that no other thread uses it.
        (chunk != 0 && at < self.capacity)
            .then(|| unsafe { &*(chunk as *const T).add(at % Self::CHUNK) })
    }

    /// An element, whose chunk is mapped if it does not exist. `None`: the element is beyond the
    /// capacity, or the system has no memory.
    #[inline]
    pub(crate) fn make(&self, at: usize) -> Option<&T> {
        self.get(at).or_else(|| {
            self.map(at);
            self.get(at)
        })
    }

    /// Maps an element's chunk if it does not exist. `false`: the element is beyond the capacity,
    /// or the system has no memory. Where chunks are taken out meanwhile, the chunk may be gone
    /// again.
    pub(crate) fn ensure(&self, at: usize) -> bool {
        self.get(at).is_some() || self.map(at)
    }

    /// `false`: as for [`Chunked::ensure`].
    #[cold]
    #[inline(never)]
    fn map(&self, at: usize) -> bool {
        if at >= self.capacity {
            return false;
        }
        let number = at / Self::CHUNK;
        let is_ready =
            number < self.chunks.writable() || self.chunks.make_writable(number + 1).is_ok();
        let Some(map) = is_ready.then(|| Map::new(CHUNK).ok()).flatten() else {
            return false;
        };
        // Release pairs with the Acquire in `get`. If another thread was quicker, this chunk is
        // unmapped again.
        let entered = self.chunks[number].compare_exchange(
            0,
            map.base() as usize,
            Ordering::Release,
            Ordering::Relaxed,
        );
        if entered.is_ok() {
            core::mem::forget(map);
            // Relaxed, here and below: a bound for the search. A thread that reads an old value
            // leaves the chunk for the next time.
            self.high.fetch_max(number + 1, Ordering::Relaxed);
        }
        true
    }

    /// Takes the chunk of element `at` out of the array. Its memory goes back when the result is
    /// dropped.
    ///
    /// # Safety
    /// No other thread uses an element of that chunk, and none keeps a reference to one.
    pub(crate) unsafe fn take_chunk(&self, at: usize) -> Option<Chunk> {
        let place = self.chunks.get(at / Self::CHUNK)?;
        // A directory word that never had a chunk may not be writable.
        if place.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let chunk = place.swap(0, Ordering::Relaxed);
        (chunk != 0).then_some(Chunk(chunk))
    }

    /// Takes the last chunk out of the array, if it lies wholly behind the first `kept` elements
    /// and is not the first chunk.
    ///
    /// # Safety
    /// As [`Chunked::take_chunk`], for all elements from `kept` on.
    pub(crate) unsafe fn take_last_beyond(&self, kept: usize) -> Option<Chunk> {
        let first = kept.div_ceil(Self::CHUNK).max(1);
        loop {
            let high = self.high.load(Ordering::Relaxed);
            let last = high.checked_sub(1)?;
            if last < first {
                return None;
            }
            let lowered =
                self.high
                    .compare_exchange(high, last, Ordering::Relaxed, Ordering::Relaxed);
            if lowered.is_err() {
                continue;
            }
            // SAFETY: forwarded.
            if let Some(chunk) = unsafe { self.take_chunk(last * Self::CHUNK) } {
                return Some(chunk);
            }
        }
    }

    /// Makes the first `used` elements zero, and gives the chunks behind them back. The memory of
    /// chunks that were used as a whole goes back as well.
    ///
    /// # Safety
    /// No other thread uses the array meanwhile.
    pub(crate) unsafe fn clear(&self, used: usize) {
        let used = used.min(self.capacity);
        for first in (0..used).step_by(Self::CHUNK) {
            let bytes = (used - first).min(Self::CHUNK) * size_of::<T>();
            let Some(place) = self.chunks.get(first / Self::CHUNK) else {
                continue;
            };
            let chunk = place.load(Ordering::Relaxed);
            // SAFETY: whole system pages of a chunk, whose contents the caller says are not used.
            let is_zero = chunk == 0
                || bytes == CHUNK
                    && unsafe { libc::madvise(chunk as *mut _, CHUNK, libc::MADV_DONTNEED) } == 0;
            if !is_zero {
                // SAFETY: as above, within the chunk.
                unsafe { (chunk as *mut u8).write_bytes(0, bytes) };
            }
        }
        // SAFETY: forwarded.
        while let Some(chunk) = unsafe { self.take_last_beyond(used) } {
            drop(chunk);
        }
    }

    /// The number of chunks that exist.
    #[cfg(test)]
    pub(crate) fn chunks(&self) -> usize {
        let chunks = self.chunks.iter();
        chunks.filter(|c| c.load(Ordering::Relaxed) != 0).count()
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: a mapping of this size, which the caller of `take_chunk` says that no thread
        // uses.
        unsafe { libc::munmap(self.0 as *mut _, CHUNK) };
    }
}

impl<T: Zeroed> Drop for Chunked<T> {
    fn drop(&mut self) {
        // SAFETY: the array is dropped, so no thread uses it.
        while let Some(chunk) = unsafe { self.take_last_beyond(0) } {
            drop(chunk);
        }
        // SAFETY: as above.
        drop(unsafe { self.take_chunk(0) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Words = Chunked<AtomicUsize>;

    /// An element exists once it was made, and is zero at first.
    #[test]
    fn elements_exist_once_they_are_made_and_are_zero_at_first() {
        let words = Words::new(3 * Words::CHUNK + 1).unwrap();
        assert!(words.get(0).is_none());
        for at in [0, 1, Words::CHUNK, 3 * Words::CHUNK] {
            let word = words.make(at).unwrap();
            assert_eq!(word.swap(at + 7, Ordering::Relaxed), 0);
            assert_eq!(words.get(at).unwrap().load(Ordering::Relaxed), at + 7);
        }
        assert!(
            words.make(3 * Words::CHUNK + 1).is_none() && words.get(2 * Words::CHUNK).is_none()
        );
        assert_eq!(words.chunks(), 3);
    }

    /// A cleared list is zero, and keeps the chunks that it used.
    #[test]
    fn a_cleared_list_is_zero_and_keeps_no_more_than_it_used() {
        let words = Words::new(8 * Words::CHUNK).unwrap();
        for used in [8 * Words::CHUNK, 2 * Words::CHUNK + 9, 5, 0] {
            for at in 0..used {
                words.make(at).unwrap().store(1, Ordering::Relaxed);
            }
            // SAFETY: only this test has the list.
            unsafe { words.clear(used) };
            assert_eq!(words.chunks(), used.div_ceil(Words::CHUNK).max(1));
            let mut left = (0..words.capacity()).filter_map(|at| words.get(at));
            assert!(left.all(|word| word.load(Ordering::Relaxed) == 0));
        }
    }

    /// Threads that make one chunk at once share it.
    #[test]
    fn threads_that_make_one_chunk_at_once_share_it() {
        for _ in 0..50 {
            let words = Words::new(Words::CHUNK).unwrap();
            std::thread::scope(|s| {
                for thread in 0..4 {
                    let words = &words;
                    s.spawn(move || words.make(thread).unwrap().store(9, Ordering::Relaxed));
                }
            });
            assert!((0..4).all(|at| words.get(at).unwrap().load(Ordering::Relaxed) == 9));
            assert_eq!(words.chunks(), 1);
        }
    }
}
