//! Gives free memory back to the system, in the background: first the whole 2 MiB units that the system maps as one, then what is free between cells in
//! others, as far as it is [`LEAST_PART`](super::spans::LEAST_PART) long. The system splits such a page for that, and is told to map small ones there until all of it is free: its
//! thread that makes huge pages of small ones (`khugepaged`) would back all of it again.
//!
//! Memory that is given back and asked for again costs the system's clearing of it, ten times what giving it back saved.
//! A heap's need swings from collection to collection, so nobody knows which free memory will be asked for again. Hence
//! what was in use lately is kept, and the rest goes back slowly ([`Trickle`]): whatever is taken back at once costs a
//! small share of the time at most, and a heap that has become small for good is small within seconds. Go's scavenger has
//! the same idea; its measures are the heap's goal and its own time.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::spans::LEAST_PART;
use super::{CHUNK_UNITS, Space, UNIT};

/// Chunks that are kept from becoming huge pages again at most, 8 GiB of them: each may split the heap's mapping in three.
const MOST_SMALL: usize = 4096;

/// Free stretches that one piece looks at.
const LOOKS: usize = 256;

/// Chunks that one piece gives back: 64 MiB, some milliseconds of the kernel's time.
const CHUNKS_PER_PIECE: usize = 32;

/// How long a heap must wait for each chunk that it gives back. Clearing 2 MiB anew takes 0.1 to 0.3 ms, so all of them
/// taken back at once cost two hundredths of the time; and 128 MiB go back in a second.
const TIME_PER_CHUNK: Duration = Duration::from_millis(16);

/// Chunks that may go back at once after a long wait.
const BURST: u32 = 4;

/// The pace at which memory goes back. Times count from any one moment on.
#[derive(Debug, Default)]
pub(crate) struct Trickle {
    /// Until when all that might go back has gone.
    paid: Duration,
    /// Bytes that were in use at most, as far as that is remembered.
    peak: u64,
    /// When it was brought up to date.
    updated: Duration,
}

/// In this time half of the difference to an older peak is forgotten.
const MEMORY: Duration = Duration::from_secs(1);

impl Trickle {
    /// While there is something to give back, [`Trickle::allowance`] is asked again after this time.
    pub(crate) const PATIENCE: Duration = TIME_PER_CHUNK.saturating_mul(2);

    /// Bytes that may go back now.
    pub(crate) fn allowance(&mut self, now: Duration) -> u64 {
        self.paid = self.paid.max(now.saturating_sub(TIME_PER_CHUNK * BURST));
        let chunks = now.saturating_sub(self.paid).as_nanos() / TIME_PER_CHUNK.as_nanos();
        chunks as u64 * (CHUNK_UNITS * UNIT) as u64
    }

    /// So many bytes of the allowance went back.
    pub(crate) fn spend(&mut self, bytes: u64) {
        self.paid += TIME_PER_CHUNK.mul_f64(bytes as f64 / (CHUNK_UNITS * UNIT) as f64);
    }

    /// The bytes that the heap will need, as far as its past tells: at most `peak` were in use since the last call.
    pub(crate) fn need(&mut self, peak: u64, now: Duration) -> u64 {
        let since = now.saturating_sub(self.updated).as_secs_f64() / MEMORY.as_secs_f64();
        let kept = self.peak.saturating_sub(peak) as f64 * (-since).exp2();
        self.updated = now;
        self.peak = peak + kept as u64;
        self.peak
    }
}

impl Space {
    /// Outside any stop, by one thread at a time and never by a mutator: returns free memory to the system until less than 2 MiB more than
    /// `keep` free bytes are still backed, and where that is 0, all in pieces of 64 KiB and more. One bounded piece of at most `most` bytes; the bytes returned, 0 when nothing is left to do (or the spare bitmap is not
    /// cleared yet).
    ///
    /// Memory that comes back from here is known to be zero, and so is the heap's bookkeeping of it.
    pub fn release_piece(&self, keep: u64, most: u64) -> u64 {
        if self.clear_chunk.load(Ordering::Relaxed) < self.clear_end.load(Ordering::Relaxed) {
            return 0;
        }
        // A child of a fork must find the stretch in the lists.
        let _rearranging = self.rearranging.lock();
        let (first, units, surplus) = {
            let mut spans = self.spans.lock();
            let surplus = spans.free_dirty().saturating_sub(keep as usize / UNIT);
            let surplus = surplus.min(most as usize / UNIT);
            let (records, dirty) = (self.records(), &self.range.dirty);
            let mut found = None;
            if surplus >= CHUNK_UNITS {
                found = spans.take_for_release(records, dirty, LOOKS);
            }
            // A little more than is to stay is not worth a page that the system has to split.
            let is_worth_it = surplus >= CHUNK_UNITS || (keep == 0 && surplus >= LEAST_PART);
            if found.is_none() && is_worth_it {
                found = spans.take_part_for_release(records, dirty, LOOKS);
            }
            let Some((first, units)) = found else {
                return 0;
            };
            (first, units, surplus)
        };
        let most = (surplus / CHUNK_UNITS).min(CHUNKS_PER_PIECE);
        // The stretch is out of all lists now; the lock is free while the kernel works.
        let mut released = 0;
        let mut parts = 0;
        let mut chunk = first.next_multiple_of(CHUNK_UNITS);
        while chunk + CHUNK_UNITS <= first + units && released < most {
            if self.range.dirty.count(chunk, CHUNK_UNITS) != 0
                && self.release_chunk(chunk, first, units)
            {
                released += 1;
            }
            chunk += CHUNK_UNITS;
        }
        if released == 0 {
            parts = self.release_part(first, units, surplus);
        }
        self.spans
            .lock()
            .put_back(self.records(), &self.range.dirty, first, units);
        ((released * CHUNK_UNITS + parts) * UNIT) as u64
    }

    /// Gives units of a free stretch back that has no whole dirty chunk: what lies beside cells in the same 2 MiB. At most so many, from the first dirty
    /// one on; how many of them were dirty.
    ///
    /// The bits of such units are clear in both bitmaps and stay, and so do their records: they share pages with their neighbours'.
    fn release_part(&self, first: usize, units: usize, most: usize) -> usize {
        let dirty = &self.range.dirty;
        let end = first + units;
        let Some(first) = (first..end).find(|unit| dirty.count(*unit, 1) != 0) else {
            return 0;
        };
        let units = most.min(end - first);
        let count = dirty.count(first, units);
        for unit in [first, first + units - 1] {
            let small = self.small_chunks.load(Ordering::Relaxed);
            if small < MOST_SMALL && self.range.set_small_pages(unit / CHUNK_UNITS, true) {
                self.small_chunks.store(small + 1, Ordering::Relaxed);
            }
        }
        let offset = self.range.base - self.range.memory.base() as usize + first * UNIT;
        // SAFETY: only this thread has the stretch, and no cell is in it.
        if !unsafe { self.range.memory.discard(offset, units * UNIT) } {
            return 0;
        }
        dirty.clear(first, units);
        count
    }

    /// The bytes in use now, and the most that were in use since this was called last. By one thread at a time.
    pub(crate) fn used_lately(&self) -> (u64, u64) {
        let mut spans = self.spans.lock();
        (
            (spans.used() * UNIT) as u64,
            (spans.take_peak() * UNIT) as u64,
        )
    }

    fn release_chunk(&self, chunk: usize, first: usize, units: usize) -> bool {
        let offset = self.range.base - self.range.memory.base() as usize + chunk * UNIT;
        // SAFETY: the chunk lies in a stretch that only this thread has, and no cell is in it.
        if !unsafe { self.range.memory.discard(offset, CHUNK_UNITS * UNIT) } {
            return false;
        }
        self.range.dirty.clear(chunk, CHUNK_UNITS);
        if self.range.set_small_pages(chunk / CHUNK_UNITS, false) {
            self.small_chunks.fetch_sub(1, Ordering::Relaxed);
        }
        self.range.set_backed(chunk / CHUNK_UNITS, false);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_back_at_its_pace_and_never_in_a_flood() {
        const CHUNK: u64 = (CHUNK_UNITS * UNIT) as u64;
        let mut trickle = Trickle::default();
        let mut now = Duration::from_secs(100);
        assert_eq!(trickle.allowance(now), BURST as u64 * CHUNK);
        let mut gone = 0;
        for _ in 0..1000 {
            let most = trickle.allowance(now);
            assert!(most <= BURST as u64 * CHUNK);
            trickle.spend(most);
            gone += most;
            now += Duration::from_millis(5);
        }
        let fair = 5000 / TIME_PER_CHUNK.as_millis() as u64;
        assert!((fair..=fair + BURST as u64).contains(&(gone / CHUNK)));
        // What was not given back, because there was nothing, is not owed later.
        now += Duration::from_secs(3600);
        assert_eq!(trickle.allowance(now), BURST as u64 * CHUNK);
    }

    #[test]
    fn what_was_in_use_lately_is_kept_and_forgotten_within_seconds() {
        let mut trickle = Trickle::default();
        let mut now = Duration::from_secs(1);
        // It swings, as from collection to collection.
        assert_eq!(trickle.need(300, now), 300);
        for _ in 0..1000 {
            now += Duration::from_millis(10);
            trickle.need(100, now);
            now += Duration::from_millis(10);
            assert_eq!(trickle.need(300, now), 300);
        }
        // It is idle, and looked at often or once.
        for _ in 0..100 {
            now += Duration::from_millis(100);
            trickle.need(50, now);
        }
        assert!(trickle.need(50, now) <= 51);
        trickle.need(1 << 30, now);
        assert!(trickle.need(50, now + Duration::from_secs(40)) <= 51);
    }
}
