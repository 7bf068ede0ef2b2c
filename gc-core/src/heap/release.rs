//! Gives free memory back to the system, in the background and in the whole 2 MiB units that the system maps as one.

use std::sync::atomic::Ordering;

use super::{CHUNK_UNITS, Space, UNIT};

/// Free stretches that one piece looks at.
const LOOKS: usize = 256;

/// Chunks that one piece gives back: 64 MiB, some milliseconds of the kernel's time.
const CHUNKS_PER_PIECE: usize = 32;

impl Space {
    /// Outside any stop, by one thread at a time and never by a mutator: returns whole free 2 MiB units to the system
    /// until at most `keep` free bytes are still backed. One bounded piece; the bytes returned, 0 when nothing is left to
    /// do (or the spare bitmap is not cleared yet).
    ///
    /// Memory that comes back from here is known to be zero, and so is the heap's bookkeeping of it.
    pub fn release_piece(&self, keep: u64) -> u64 {
        if self.clear_chunk.load(Ordering::Relaxed) < self.clear_end.load(Ordering::Relaxed) {
            return 0;
        }
        let (first, units, most) = {
            let mut spans = self.spans.lock();
            let surplus = spans.free_dirty().saturating_sub(keep as usize / UNIT) / CHUNK_UNITS;
            if surplus == 0 {
                return 0;
            }
            let Some((first, units)) =
                spans.take_for_release(self.records(), &self.range.dirty, LOOKS)
            else {
                return 0;
            };
            (first, units, surplus.min(CHUNKS_PER_PIECE))
        };
        // The stretch is out of all lists now; the lock is free while the kernel works.
        let mut released = 0;
        let mut chunk = first.next_multiple_of(CHUNK_UNITS);
        while chunk + CHUNK_UNITS <= first + units && released < most {
            if self.range.dirty.count(chunk, CHUNK_UNITS) != 0
                && self.release_chunk(chunk, first, units)
            {
                released += 1;
            }
            chunk += CHUNK_UNITS;
        }
        self.spans
            .lock()
            .put_back(self.records(), &self.range.dirty, first, units);
        (released * CHUNK_UNITS * UNIT) as u64
    }

    fn release_chunk(&self, chunk: usize, first: usize, units: usize) -> bool {
        let offset = self.range.base - self.range.memory.base() as usize + chunk * UNIT;
        // SAFETY: the chunk lies in a stretch that only this thread has, and no cell is in it.
        if !unsafe { self.range.memory.discard(offset, CHUNK_UNITS * UNIT) } {
            return false;
        }
        self.range.dirty.clear(chunk, CHUNK_UNITS);
        for bits in &self.range.bits {
            // SAFETY: nothing is allocated here, so one bitmap is clear; the spare one has been cleared.
            unsafe { bits.discard_units(chunk, CHUNK_UNITS) };
        }
        self.chunk_bits(chunk / CHUNK_UNITS)
            .store(0, Ordering::Relaxed);
        if chunk > first && chunk + CHUNK_UNITS < first + units {
            // SAFETY: strictly inside the stretch.
            unsafe { self.records().discard(chunk, CHUNK_UNITS) };
        }
        true
    }
}
