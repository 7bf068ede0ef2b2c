//! The scavenger's pace: how much free memory goes back to the system, and when.
//!
//! Whole free chunks go back first, then free page runs of at least `LEAST_PART` pages in chunks
//! that are in use. The system splits the huge page of such a chunk first
//! ([`Map::split_huge_page`](crate::memory::os::Map::split_huge_page)); otherwise no memory would
//! be free for other programs. The system also maps system pages alone there, until all of the
//! chunk is free or the heap is full again. Otherwise its thread that makes huge pages
//! (`khugepaged`) would back all of the chunk again. The tables' parts for free memory are zero,
//! and go back with it.
//!
//! To take memory back from the system costs the clearing of it, about ten times what giving it
//! back saved. A heap's need swings from collection to collection, so no one can know which free
//! memory it will need again. So memory that was in use lately stays, and the rest goes back slowly
//! ([`ScavengePace`]). Even if all of it is taken back at once, that costs a small part of the
//! time. A heap that has become small for good has given its memory back within seconds.
//!
//! Go's scavenger keeps a tenth more than the heap's goal, takes a hundredth of the time, and gives
//! back the densest pages last. jemalloc gives back pages that were free for ten seconds
//! (`dirty_decay_ms`), mimalloc pages that were free for some milliseconds (`purge_delay`), and
//! bdwgc blocks that were free for several collections.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::page_runs::CHUNK_PAGES;
use super::size_classes::PAGE;

/// The most chunks in all heaps of the process (8 GiB of them) that are kept from becoming huge
/// pages again. Each may split its heap's mapping in three, and a process may have 65,530 mappings.
const MOST_SMALL: usize = 4096;

/// The number of such chunks. Relaxed: a bound.
static SMALL_CHUNKS: AtomicUsize = AtomicUsize::new(0);

/// The time that a heap waits for each chunk that it gives back. Clearing 2 MiB takes 0.1 to 0.3
/// ms, so all chunks taken back at once cost a fiftieth of the time. 128 MiB go back in a second.
const TIME_PER_CHUNK: Duration = Duration::from_millis(16);

/// A heap with more than half a gigabyte to give back waits less: all of it goes back in this time.
const TIME_FOR_ALL: Duration = Duration::from_secs(4);

/// The most chunks that may go back at once after a long wait.
const BURST: u32 = 4;

/// One heap's part of [`SMALL_CHUNKS`].
#[derive(Default)]
pub(super) struct SmallChunks(AtomicUsize);

impl SmallChunks {
    /// Counts one more chunk. `false`: there may be no more.
    pub(super) fn add(&self) -> bool {
        let may = SMALL_CHUNKS.fetch_add(1, Ordering::Relaxed) < MOST_SMALL;
        if may {
            self.0.fetch_add(1, Ordering::Relaxed);
        } else {
            SMALL_CHUNKS.fetch_sub(1, Ordering::Relaxed);
        }
        may
    }

    pub(super) fn remove(&self, count: usize) {
        self.0.fetch_sub(count, Ordering::Relaxed);
        SMALL_CHUNKS.fetch_sub(count, Ordering::Relaxed);
    }
}

impl Drop for SmallChunks {
    fn drop(&mut self) {
        self.remove(self.0.load(Ordering::Relaxed));
    }
}

/// The pace at which memory goes back. All times count from the same moment.
#[derive(Debug)]
pub(crate) struct ScavengePace {
    /// The time to wait for each chunk.
    pace: Duration,
    /// The time up to which all chunks that might go back have gone.
    paid: Duration,
    /// The most bytes that were in use, less what is forgotten of an older peak.
    peak: u64,
    /// The time of the last change of `peak`.
    updated: Duration,
    /// Bytes allocated in a second, as an average that forgets.
    rate: f64,
    /// The time of the last change of `rate`.
    looked: Duration,
}

/// The time in which half of the difference to an older peak, and to an older rate, is forgotten.
const HALF_LIFE: Duration = Duration::from_millis(500);

/// Memory that will be allocated in this time stays.
const GROWTH_TIME: Duration = Duration::from_secs(4);

impl Default for ScavengePace {
    fn default() -> ScavengePace {
        ScavengePace {
            pace: TIME_PER_CHUNK,
            paid: Duration::ZERO,
            peak: 0,
            updated: Duration::ZERO,
            rate: 0.0,
            looked: Duration::ZERO,
        }
    }
}

impl ScavengePace {
    /// The time after which [`ScavengePace::allowance`] is asked again, while there is something to
    /// give back.
    pub(crate) fn patience(&self) -> Duration {
        self.pace * 2
    }

    /// Sets the pace for `bytes` bytes that are to go back in all.
    pub(crate) fn set_surplus(&mut self, bytes: u64) {
        let chunks = bytes / (CHUNK_PAGES * PAGE) as u64;
        let each = TIME_FOR_ALL / u32::try_from(chunks.max(1)).unwrap_or(u32::MAX);
        self.pace = each.clamp(Duration::from_micros(1), TIME_PER_CHUNK);
    }

    /// The number of bytes that may go back now.
    pub(crate) fn allowance(&mut self, now: Duration) -> u64 {
        self.paid = self.paid.max(now.saturating_sub(self.pace * BURST));
        let chunks = now.saturating_sub(self.paid).as_nanos() / self.pace.as_nanos();
        chunks as u64 * (CHUNK_PAGES * PAGE) as u64
    }

    /// Takes `bytes` bytes that went back off the allowance.
    pub(crate) fn spend(&mut self, bytes: u64) {
        self.paid += self
            .pace
            .mul_f64(bytes as f64 / (CHUNK_PAGES * PAGE) as f64);
    }

    /// The number of bytes by which the heap grows in four seconds, if it allocates as it did
    /// lately. `allocated` bytes were allocated since the last call.
    pub(crate) fn growth(&mut self, allocated: u64, now: Duration) -> u64 {
        let since = now.saturating_sub(self.looked).as_secs_f64();
        if since > 0.0 {
            let old = (-since / HALF_LIFE.as_secs_f64()).exp2();
            self.rate = self.rate * old + allocated as f64 / since * (1.0 - old);
            self.looked = now;
        }
        (self.rate * GROWTH_TIME.as_secs_f64()) as u64
    }

    /// The number of bytes that the heap will need, judged by its past. At most `peak` bytes were
    /// in use since the last call. A rest of less than a chunk of an older peak is forgotten.
    pub(crate) fn need(&mut self, peak: u64, now: Duration) -> u64 {
        let since = now.saturating_sub(self.updated).as_secs_f64() / HALF_LIFE.as_secs_f64();
        let kept = (self.peak.saturating_sub(peak) as f64 * (-since).exp2()) as u64;
        self.updated = now;
        self.peak = peak
            + if kept < (CHUNK_PAGES * PAGE) as u64 {
                0
            } else {
                kept
            };
        self.peak
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A large surplus goes back faster, so that any surplus is gone within seconds.
    #[test]
    fn what_is_much_goes_back_faster_and_all_of_it_within_seconds() {
        const CHUNK: u64 = (CHUNK_PAGES * PAGE) as u64;
        for surplus in [CHUNK, 512 << 20, 1 << 30, 64 << 30] {
            let mut pace = ScavengePace::default();
            let (mut left, mut now) = (surplus, Duration::from_secs(100));
            while left >= CHUNK {
                pace.set_surplus(left);
                let most = pace.allowance(now).min(left);
                pace.spend(most);
                left -= most;
                now += pace.patience();
            }
            // The rest goes back more slowly, down to the ordinary pace.
            let took = (now - Duration::from_secs(100)).as_secs();
            assert!(
                took <= 5 + 4 * (surplus >> 29).max(1).ilog2() as u64,
                "{surplus}: {took}"
            );
        }
        let mut pace = ScavengePace::default();
        pace.set_surplus(512 << 20);
        assert!(pace.pace >= TIME_PER_CHUNK * 9 / 10, "{:?}", pace.pace);
    }

    /// A program keeps as much memory as it allocates in `GROWTH_TIME`; an idle one keeps none for
    /// growth.
    #[test]
    fn a_program_keeps_what_it_is_going_to_allocate_and_an_idle_one_does_not() {
        let mut pace = ScavengePace::default();
        let mut now = Duration::from_secs(1);
        pace.growth(0, now);
        for _ in 0..100 {
            now += Duration::from_millis(100);
            pace.growth(10 << 20, now);
        }
        let ahead = GROWTH_TIME.as_secs() * (100 << 20);
        assert!(pace.growth(0, now).abs_diff(ahead) < ahead / 50);
        now += Duration::from_secs(10);
        assert!(pace.growth(0, now) < 1 << 20);
    }

    /// Memory goes back at its pace, in pieces of `BURST` chunks at most.
    #[test]
    fn memory_goes_back_at_its_pace_and_never_in_a_flood() {
        const CHUNK: u64 = (CHUNK_PAGES * PAGE) as u64;
        let mut pace = ScavengePace::default();
        let mut now = Duration::from_secs(100);
        assert_eq!(pace.allowance(now), BURST as u64 * CHUNK);
        let mut gone = 0;
        for _ in 0..1000 {
            let most = pace.allowance(now);
            assert!(most <= BURST as u64 * CHUNK);
            pace.spend(most);
            gone += most;
            now += Duration::from_millis(5);
        }
        let fair = 5000 / TIME_PER_CHUNK.as_millis() as u64;
        assert!((fair..=fair + BURST as u64).contains(&(gone / CHUNK)));
        // An unused allowance does not add up.
        now += Duration::from_secs(3600);
        assert_eq!(pace.allowance(now), BURST as u64 * CHUNK);
    }

    /// Memory that was in use lately is kept, and the peak is forgotten within seconds.
    #[test]
    fn what_was_in_use_lately_is_kept_and_forgotten_within_seconds() {
        let mut pace = ScavengePace::default();
        let mut now = Duration::from_secs(1);
        // The bytes in use go up and down, as from collection to collection.
        assert_eq!(pace.need(300, now), 300);
        for _ in 0..1000 {
            now += Duration::from_millis(10);
            pace.need(100, now);
            now += Duration::from_millis(10);
            assert_eq!(pace.need(300, now), 300);
        }
        // The heap is idle, and `need` is called often, or once.
        for _ in 0..100 {
            now += Duration::from_millis(100);
            pace.need(50, now);
        }
        assert!(pace.need(50, now) <= 51);
        pace.need(1 << 30, now);
        assert!(pace.need(50, now + Duration::from_secs(40)) <= 51);
    }
}
