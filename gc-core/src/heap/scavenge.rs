//! Gives free memory back to the system, in the background: first the whole 2 MiB units that the
//! system maps as one, then what is free between cells in others, as far as it is [`LEAST_PART`]
//! long. Such a page is split first ([`Map::split_huge_page`](crate::memory::os::Map::split_huge_page)),
//! or nothing would be free for other programs. And the system is told to map small pages there,
//! until all of it is free or the heap is full again: its thread that makes huge pages of small
//! ones (`khugepaged`) would back all of it. What the tables say of free memory is zero, and goes
//! back with it, page by page.
//!
//! Memory that is given back and asked for again costs the system's clearing of it, ten times what
//! giving it back saved. A heap's need swings from collection to collection, so nobody knows which
//! free memory will be asked for again. Hence what was in use lately is kept, and the rest goes
//! back slowly ([`Trickle`]): whatever is taken back at once costs a small share of the time at
//! most, and a heap that has become small for good is small within seconds.
//!
//! Others do it so: Go's scavenger keeps a tenth more than the heap's goal, takes a hundredth of
//! the time, and gives back the densest free pages last; jemalloc gives back all that was free for
//! ten seconds (`dirty_decay_ms`), mimalloc what was free for some milliseconds (`purge_delay`),
//! bdwgc blocks that were free for several collections.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::page_runs::LEAST_PART;
use super::{BITS_PAGE_UNITS, CHUNK_UNITS, Space, UNIT};
use crate::fault::planted;

/// Chunks that are kept from becoming huge pages again at most, in all heaps of the process, 8 GiB
/// of them: each may split its heap's mapping in three, and a process may have 65,530 mappings.
const MOST_SMALL: usize = 4096;

/// How many there are. A bound: Relaxed.
static SMALL_CHUNKS: AtomicUsize = AtomicUsize::new(0);

/// Free stretches that one piece looks at.
const LOOKS: usize = 256;

/// Chunks that one piece gives back: 64 MiB, some milliseconds of the kernel's time.
const CHUNKS_PER_PIECE: usize = 32;

/// How long a heap must wait for each chunk that it gives back. Clearing 2 MiB anew takes 0.1 to
/// 0.3 ms, so all of them taken back at once cost two hundredths of the time; and 128 MiB go back
/// in a second.
const TIME_PER_CHUNK: Duration = Duration::from_millis(16);

/// Where there is more than half a gigabyte to give back, it goes faster: at the rate at which all
/// of it is gone in this time.
const TIME_FOR_ALL: Duration = Duration::from_secs(4);

/// Chunks that may go back at once after a long wait.
const BURST: u32 = 4;

/// A heap's part of [`SMALL_CHUNKS`].
#[derive(Default)]
pub(super) struct SmallChunks(AtomicUsize);

impl SmallChunks {
    /// Counts one more, if there may be one more.
    fn add(&self) -> bool {
        let may = SMALL_CHUNKS.fetch_add(1, Ordering::Relaxed) < MOST_SMALL;
        if may {
            self.0.fetch_add(1, Ordering::Relaxed);
        } else {
            SMALL_CHUNKS.fetch_sub(1, Ordering::Relaxed);
        }
        may
    }

    fn remove(&self, count: usize) {
        self.0.fetch_sub(count, Ordering::Relaxed);
        SMALL_CHUNKS.fetch_sub(count, Ordering::Relaxed);
    }
}

impl Drop for SmallChunks {
    fn drop(&mut self) {
        self.remove(self.0.load(Ordering::Relaxed));
    }
}

/// The pace at which memory goes back. Times count from any one moment on.
#[derive(Debug)]
pub(crate) struct Trickle {
    /// How long to wait for each chunk.
    pace: Duration,
    /// Until when all that might go back has gone.
    paid: Duration,
    /// Bytes that were in use at most, as far as that is remembered.
    peak: u64,
    /// When it was brought up to date.
    updated: Duration,
    /// Bytes allocated in a second, lately.
    rate: f64,
    /// When that was looked at.
    looked: Duration,
}

/// In this time half of the difference to an older peak is forgotten, and of the difference to an
/// older rate.
const MEMORY: Duration = Duration::from_millis(500);

/// What is going to be allocated in this time stays.
const AHEAD: Duration = Duration::from_secs(4);

impl Default for Trickle {
    fn default() -> Trickle {
        Trickle {
            pace: TIME_PER_CHUNK,
            paid: Duration::ZERO,
            peak: 0,
            updated: Duration::ZERO,
            rate: 0.0,
            looked: Duration::ZERO,
        }
    }
}

impl Trickle {
    /// While there is something to give back, [`Trickle::allowance`] is asked again after this
    /// time.
    pub(crate) fn patience(&self) -> Duration {
        self.pace * 2
    }

    /// So many bytes are to go back in all.
    pub(crate) fn set_surplus(&mut self, bytes: u64) {
        let chunks = bytes / (CHUNK_UNITS * UNIT) as u64;
        let each = TIME_FOR_ALL / u32::try_from(chunks.max(1)).unwrap_or(u32::MAX);
        self.pace = each.clamp(Duration::from_micros(1), TIME_PER_CHUNK);
    }

    /// Bytes that may go back now.
    pub(crate) fn allowance(&mut self, now: Duration) -> u64 {
        self.paid = self.paid.max(now.saturating_sub(self.pace * BURST));
        let chunks = now.saturating_sub(self.paid).as_nanos() / self.pace.as_nanos();
        chunks as u64 * (CHUNK_UNITS * UNIT) as u64
    }

    /// So many bytes of the allowance went back.
    pub(crate) fn spend(&mut self, bytes: u64) {
        self.paid += self
            .pace
            .mul_f64(bytes as f64 / (CHUNK_UNITS * UNIT) as f64);
    }

    /// The bytes by which a heap grows in four seconds, if it allocates as it did lately:
    /// `allocated` bytes since the last call.
    pub(crate) fn growth(&mut self, allocated: u64, now: Duration) -> u64 {
        let since = now.saturating_sub(self.looked).as_secs_f64();
        if since > 0.0 {
            let old = (-since / MEMORY.as_secs_f64()).exp2();
            self.rate = self.rate * old + allocated as f64 / since * (1.0 - old);
            self.looked = now;
        }
        (self.rate * AHEAD.as_secs_f64()) as u64
    }

    /// The bytes that the heap will need, as far as its past tells: at most `peak` were in use
    /// since the last call. Less than a chunk of an older peak is forgotten.
    pub(crate) fn need(&mut self, peak: u64, now: Duration) -> u64 {
        let since = now.saturating_sub(self.updated).as_secs_f64() / MEMORY.as_secs_f64();
        let kept = (self.peak.saturating_sub(peak) as f64 * (-since).exp2()) as u64;
        self.updated = now;
        self.peak = peak
            + if kept < (CHUNK_UNITS * UNIT) as u64 {
                0
            } else {
                kept
            };
        self.peak
    }
}

impl Space {
    /// Outside any stop, by one thread at a time and never by a mutator: returns free memory to the
    /// system until less than 2 MiB more than `keep` free bytes are still backed; and of 2 MiB that
    /// are in use in part, until less than `grain` bytes more are. One bounded piece of at most
    /// `most` bytes; the bytes returned, 0 when nothing is left to do (or the spare bitmap is not
    /// cleared yet).
    ///
    /// Memory that comes back from here is known to be zero, and so is the heap's bookkeeping of
    /// it.
    pub fn release_piece(&self, keep: u64, grain: u64, most: u64) -> u64 {
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
            if found.is_none() && surplus >= (grain as usize / UNIT).max(LEAST_PART) {
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
            if self.range.dirty.count(chunk, CHUNK_UNITS) != 0 && self.release_chunk(chunk) {
                released += 1;
            }
            chunk += CHUNK_UNITS;
        }
        let mut end = chunk;
        if released == 0 {
            parts = self.release_part(first, units, surplus);
            end = first + units;
        }
        self.release_tables(first, units, end);
        self.has_released.store(true, Ordering::Relaxed);
        self.spans
            .lock()
            .put_back(self.records(), &self.range.dirty, first, units);
        ((released * CHUNK_UNITS + parts) * UNIT) as u64
    }

    /// Gives units of a free stretch back that has no whole dirty chunk: what lies beside cells in
    /// the same 2 MiB. At most so many, from the first dirty one on; how many of them were dirty.
    fn release_part(&self, first: usize, units: usize, most: usize) -> usize {
        let dirty = &self.range.dirty;
        let Some(from) = dirty.first(first, units) else {
            return 0;
        };
        let end = (first + units).min(from + most);
        let count = dirty.count(from, end - from);
        // What lies before it in the same chunk is zero, and the system backs it all the same if it
        // does so by a huge page.
        let from = first.max(from / CHUNK_UNITS * CHUNK_UNITS);
        for unit in [from, end - 1] {
            self.use_small_pages(unit);
        }
        // SAFETY: only this thread has the stretch, and no cell is in it.
        if !unsafe { self.range.memory.discard(from * UNIT, (end - from) * UNIT) } {
            return 0;
        }
        dirty.clear(from, end - from);
        count
    }

    /// Has the system back the chunk of this unit by small pages.
    fn use_small_pages(&self, unit: usize) {
        let chunk = unit / CHUNK_UNITS;
        if self.range.has_small_pages(chunk) {
            return;
        }
        if self.small_chunks.add() && !self.range.set_small_pages(chunk, true) {
            self.small_chunks.remove(1);
        }
        self.range.memory.split_huge_page(unit * UNIT);
    }

    /// Of a free stretch that only this thread has, gives back what tables say of the units below
    /// `end`, whole pages. It is zero, but for records, which say nothing in the middle of a
    /// stretch.
    fn release_tables(&self, first: usize, units: usize, end: usize) {
        if planted("tables-kept") {
            return;
        }
        let pages = first.div_ceil(BITS_PAGE_UNITS)..end / BITS_PAGE_UNITS;
        let noted = |page| self.noted_bits(page).swap(0, Ordering::Relaxed) != 0;
        if pages.filter(|page| noted(*page)).count() != 0 {
            for bits in &self.range.bits {
                // SAFETY: nothing is allocated here, so one bitmap is clear; and the spare one has
                // been cleared.
                unsafe { bits.discard_units(first, end - first) };
            }
        }
        let records = first + 1..end.min(first + units - 1);
        // SAFETY: strictly inside the stretch.
        unsafe { self.records().discard(records.start, records.len()) };
        // SAFETY: the words of free units are zero.
        unsafe { self.range.units.discard(first, end - first) };
    }

    /// Outside any stop, by the thread that gives memory back: has huge pages wherever they were
    /// given up for parts that went back, if the heap is about as full as it ever was.
    pub(crate) fn use_huge_pages_again(&self) {
        if !self.has_released.load(Ordering::Relaxed) {
            return;
        }
        let (used, top) = {
            let spans = self.spans.lock();
            (spans.used(), spans.top())
        };
        if used < top - top / 8 {
            return;
        }
        self.has_released.store(false, Ordering::Relaxed);
        for chunk in 0..top.div_ceil(CHUNK_UNITS) {
            if self.range.set_small_pages(chunk, false) {
                self.small_chunks.remove(1);
            }
        }
        for bits in &self.range.bits {
            bits.use_huge_pages_again();
        }
    }

    /// The bytes in use now, and the most that were in use since this was called last. By one
    /// thread at a time.
    pub(crate) fn used_lately(&self) -> (u64, u64) {
        let mut spans = self.spans.lock();
        (
            (spans.used() * UNIT) as u64,
            (spans.take_peak() * UNIT) as u64,
        )
    }

    /// Bytes of free memory that could go back.
    pub(crate) fn free_backed(&self) -> u64 {
        (self.spans.lock().free_dirty() * UNIT) as u64
    }

    fn release_chunk(&self, chunk: usize) -> bool {
        // SAFETY: the chunk lies in a stretch that only this thread has, and no cell is in it.
        if !unsafe { self.range.memory.discard(chunk * UNIT, CHUNK_UNITS * UNIT) } {
            return false;
        }
        self.range.dirty.clear(chunk, CHUNK_UNITS);
        if self.range.set_small_pages(chunk / CHUNK_UNITS, false) {
            self.small_chunks.remove(1);
        }
        self.range.set_backed(chunk / CHUNK_UNITS, false);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_much_goes_back_faster_and_all_of_it_within_seconds() {
        const CHUNK: u64 = (CHUNK_UNITS * UNIT) as u64;
        for surplus in [CHUNK, 512 << 20, 1 << 30, 64 << 30] {
            let mut trickle = Trickle::default();
            let (mut left, mut now) = (surplus, Duration::from_secs(100));
            while left >= CHUNK {
                trickle.set_surplus(left);
                let most = trickle.allowance(now).min(left);
                trickle.spend(most);
                left -= most;
                now += trickle.patience();
            }
            // What is left goes more slowly, down to where the pace is the ordinary one.
            let took = (now - Duration::from_secs(100)).as_secs();
            assert!(
                took <= 5 + 4 * (surplus >> 29).max(1).ilog2() as u64,
                "{surplus}: {took}"
            );
        }
        let mut trickle = Trickle::default();
        trickle.set_surplus(512 << 20);
        assert!(
            trickle.pace >= TIME_PER_CHUNK * 9 / 10,
            "{:?}",
            trickle.pace
        );
    }

    #[test]
    fn a_program_keeps_what_it_is_going_to_allocate_and_an_idle_one_does_not() {
        let mut trickle = Trickle::default();
        let mut now = Duration::from_secs(1);
        trickle.growth(0, now);
        for _ in 0..100 {
            now += Duration::from_millis(100);
            trickle.growth(10 << 20, now);
        }
        let ahead = AHEAD.as_secs() * (100 << 20);
        assert!(trickle.growth(0, now).abs_diff(ahead) < ahead / 50);
        now += Duration::from_secs(10);
        assert!(trickle.growth(0, now) < 1 << 20);
    }

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
