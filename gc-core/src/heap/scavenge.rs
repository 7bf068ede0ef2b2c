//! Gives free memory back to the system, in the background: first the whole 2 MiB pages that the
//! system maps as one, then what is free between cells in others, as far as it is `LEAST_PART`
//! long. Such a page is split first
//! ([`Map::split_huge_page`](crate::memory::os::Map::split_huge_page)), or nothing would be free
//! for other programs. And the system is told to map small pages there, until all of it is free or
//! the heap is full again: its thread that makes huge pages of small ones (`khugepaged`) would back
//! all of it. What the tables say of free memory is zero, and goes back with it, page by page.
//!
//! Memory that is given back and asked for again costs the system's clearing of it, ten times what
//! giving it back saved. A heap's need swings from collection to collection, so nobody knows which
//! free memory will be asked for again. Hence what was in use lately is kept, and the rest goes
//! back slowly ([`ScavengePace`]): whatever is taken back at once costs a small share of the time
//! at most, and a heap that has become small for good is small within seconds.
//!
//! Others do it so: Go's scavenger keeps a tenth more than the heap's goal, takes a hundredth of
//! the time, and gives back the densest free pages last; jemalloc gives back all that was free for
//! ten seconds (`dirty_decay_ms`), mimalloc what was free for some milliseconds (`purge_delay`),
//! bdwgc blocks that were free for several collections.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::page_runs::CHUNK_PAGES;
use super::size_classes::PAGE;

/// Chunks that are kept from becoming huge pages again at most, in all heaps of the process, 8 GiB
/// of them: each may split its heap's mapping in three, and a process may have 65,530 mappings.
const MOST_SMALL: usize = 4096;

/// How many there are. A bound: Relaxed.
static SMALL_CHUNKS: AtomicUsize = AtomicUsize::new(0);

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

/// The pace at which memory goes back. Times count from any one moment on.
#[derive(Debug)]
pub(crate) struct ScavengePace {
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
    /// While there is something to give back, [`ScavengePace::allowance`] is asked again after this
    /// time.
    pub(crate) fn patience(&self) -> Duration {
        self.pace * 2
    }

    /// So many bytes are to go back in all.
    pub(crate) fn set_surplus(&mut self, bytes: u64) {
        let chunks = bytes / (CHUNK_PAGES * PAGE) as u64;
        let each = TIME_FOR_ALL / u32::try_from(chunks.max(1)).unwrap_or(u32::MAX);
        self.pace = each.clamp(Duration::from_micros(1), TIME_PER_CHUNK);
    }

    /// Bytes that may go back now.
    pub(crate) fn allowance(&mut self, now: Duration) -> u64 {
        self.paid = self.paid.max(now.saturating_sub(self.pace * BURST));
        let chunks = now.saturating_sub(self.paid).as_nanos() / self.pace.as_nanos();
        chunks as u64 * (CHUNK_PAGES * PAGE) as u64
    }

    /// So many bytes of the allowance went back.
    pub(crate) fn spend(&mut self, bytes: u64) {
        self.paid += self
            .pace
            .mul_f64(bytes as f64 / (CHUNK_PAGES * PAGE) as f64);
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

    #[test]
    fn what_is_much_goes_back_faster_and_all_of_it_within_seconds() {
        const CHUNK: u64 = (CHUNK_PAGES * PAGE) as u64;
        for surplus in [CHUNK, 512 << 20, 1 << 30, 64 << 30] {
            let mut trickle = ScavengePace::default();
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
        let mut trickle = ScavengePace::default();
        trickle.set_surplus(512 << 20);
        assert!(
            trickle.pace >= TIME_PER_CHUNK * 9 / 10,
            "{:?}",
            trickle.pace
        );
    }

    #[test]
    fn a_program_keeps_what_it_is_going_to_allocate_and_an_idle_one_does_not() {
        let mut trickle = ScavengePace::default();
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
        const CHUNK: u64 = (CHUNK_PAGES * PAGE) as u64;
        let mut trickle = ScavengePace::default();
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
        let mut trickle = ScavengePace::default();
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
