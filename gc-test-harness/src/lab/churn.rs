//! A cache with replacement: values of 16 bytes to 4 KiB, each under an entry, all entries held by
//! one table.
//!
//! The table is filled; then each turn replaces the value of a random slot by a new one of another
//! size, and looks one other up. A value is a leaf cell with its key in its first word and a
//! pattern behind it, an entry a cell of three words: the value, the key, the size. Every value
//! that is looked at is compared with its entry, and what all of them add up to is printed: the
//! peers in `benches/programs/` draw the same numbers and must print the same line.

use std::fmt;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use gc_core::raw::{Encoding, Kind, RawRoot, Site};
use gc_core::{AllocError, Heap, HeapStats, Mutator};
use serde_json::{Value, json};

use super::pauses::Pauses;
use super::progress::Progress;
use super::random::Random;
use crate::report::{Quantiles, Samples, grouped, peak_rss_bytes, processor_time};

/// The largest cache that can be asked for, in MiB of values.
pub const LARGEST: u32 = 64 << 10;

/// Bytes of the average value.
const MEAN: usize = 765;
/// Bytes of the largest.
const MOST: usize = 4096;
/// Sites are made for each multiple of this.
const STEP: usize = 16;

/// Why there is no result.
#[derive(Debug)]
pub enum ChurnError {
    /// The heap could not be built, or the thread not attached.
    Heap(String),
    /// The cache does not fit.
    Full(AllocError),
    /// A value is not what was put into the cache.
    Wrong {
        /// The entry's key.
        key: u64,
        /// What its value holds instead.
        found: u64,
    },
}

impl fmt::Display for ChurnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChurnError::Heap(why) => write!(f, "no heap for the cache: {why}"),
            ChurnError::Full(why) => write!(f, "the cache does not fit: {why}"),
            ChurnError::Wrong { key, found } => write!(
                f,
                "wrong answer: the value under key {key} is not what was put into the cache (it begins with {found})"
            ),
        }
    }
}

impl std::error::Error for ChurnError {}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// MiB of values that are live.
    pub mib: u32,
    /// How often each is replaced, on the average.
    pub rounds: u32,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was asked for.
    pub options: Options,
    /// Slots of the cache.
    pub entries: u64,
    /// Values replaced.
    pub replacements: u64,
    /// Of all values looked at: keys, sizes and last bytes.
    pub sum: u64,
    /// From before the heap was built until the last look.
    pub took: Duration,
    /// Of that: the replacements.
    pub replacing: Duration,
    /// The processor time of all threads meanwhile.
    pub processor: Duration,
    /// Every collection's times.
    pub pauses: Samples,
    /// Collections.
    pub collections: u64,
    /// The heap's figures at the end.
    pub stats: HeapStats,
    /// The process's peak.
    pub peak_rss_bytes: u64,
}

/// An entry's cell.
#[repr(C)]
struct Entry {
    value: *mut u8,
    key: u64,
    bytes: usize,
}

struct Cache<'m> {
    mutator: &'m Mutator,
    table: NonNull<*mut Entry>,
    entries: usize,
    entry: Site,
    /// By size in steps, rounded up.
    values: Vec<Site>,
    pattern: Box<[u8; MOST]>,
    random: Random,
    // Keeps the table.
    _root: RawRoot,
}

impl<'m> Cache<'m> {
    fn new(heap: &Heap, mutator: &'m Mutator, mib: u32) -> Result<Cache<'m>, ChurnError> {
        let error = |e: &dyn fmt::Display| ChurnError::Heap(e.to_string());
        let kind = |kind| heap.kind(kind).map_err(|e| error(&e));
        let site = |kind, bytes| heap.site(kind, bytes).map_err(|e| error(&e));
        let holder = kind(Kind::array("table", 0, Encoding::RAW))?;
        let entry = kind(Kind::words_at("entry", &[0], Encoding::RAW))?;
        // Written as a whole at once, so not cleared; nor do the peers in C clear it.
        let value = kind(Kind::leaf_uninit("value"))?;
        let entries = ((mib as usize) << 20) / MEAN;
        // SAFETY: an array of words needs no least size; the cell is on this stack until the handle
        // keeps it.
        let table = unsafe { mutator.alloc_raw(holder, entries * size_of::<usize>()) };
        let table = table.map_err(ChurnError::Full)?;
        // SAFETY: allocated just now.
        let root = unsafe { mutator.root_raw(table) };
        let root = root.map_err(|full| error(&full))?;
        let sites = (0..=MOST / STEP).map(|step| site(value, step.max(1) * STEP));
        Ok(Cache {
            mutator,
            table: table.cast(),
            entries,
            entry: site(entry, size_of::<Entry>())?,
            values: sites.collect::<Result<_, _>>()?,
            pattern: Box::new(std::array::from_fn(|i| (i * 31 + 7) as u8)),
            random: Random::default(),
            _root: root,
        })
    }

    /// 16 to 4096 bytes: each of the eight doublings equally often.
    fn draw_bytes(&mut self) -> usize {
        let base = 16 << self.random.below(8);
        base + self.random.below(base + 1)
    }

    /// A new value under a new entry. This thread's registers and stack keep both.
    #[inline]
    fn entry(&mut self, key: u64) -> Result<NonNull<Entry>, ChurnError> {
        let bytes = self.draw_bytes();
        let site = self.values[bytes.div_ceil(STEP)];
        // SAFETY: sites of this heap, of leaf cells of at least so many bytes (16 or more) and of
        // three words; first stores into new cells.
        unsafe {
            let value = self.mutator.alloc_at(site).map_err(ChurnError::Full)?;
            let value = value.as_ptr();
            std::ptr::copy_nonoverlapping(self.pattern.as_ptr(), value, bytes);
            value.cast::<u64>().write(key);
            let entry = self.mutator.alloc_at(self.entry);
            let entry = entry.map_err(ChurnError::Full)?.cast::<Entry>();
            entry.write(Entry { value, key, bytes });
            Ok(entry)
        }
    }

    #[inline]
    fn put(&mut self, slot: usize, key: u64) -> Result<(), ChurnError> {
        let entry = self.entry(key)?.as_ptr() as usize;
        debug_assert!(slot < self.entries);
        // SAFETY: a word of the table, which the handle keeps.
        unsafe {
            self.mutator
                .write(self.table.add(slot).as_ptr().cast(), entry);
        }
        Ok(())
    }

    /// What a slot's value adds to the sum.
    #[inline]
    fn look(&self, slot: usize) -> Result<u64, ChurnError> {
        debug_assert!(slot < self.entries);
        // SAFETY: the table leads to entries, these to values of so many bytes, and all of them
        // live.
        let (entry, found, last) = unsafe {
            let entry = &*self.table.add(slot).read();
            let last = entry.value.add(entry.bytes - 1).read();
            (entry, entry.value.cast::<u64>().read(), last)
        };
        if found != entry.key || last != self.pattern[entry.bytes - 1] {
            return Err(ChurnError::Wrong {
                key: entry.key,
                found,
            });
        }
        Ok(entry.key + entry.bytes as u64 + u64::from(last))
    }
}

/// Turns between two looks at the clock.
const STRIDE: u64 = 1 << 16;

/// Fills the cache and replaces its values.
///
/// # Errors
/// [`ChurnError`]; of wrong values, the first.
pub fn run(options: &Options) -> Result<Outcome, ChurnError> {
    let error = |e: &dyn fmt::Display| ChurnError::Heap(e.to_string());
    let (begun, processor) = (Instant::now(), processor_time());
    let heap = Heap::builder().build().map_err(|e| error(&e))?;
    let pauses = Pauses::of(&heap);
    let mutator = heap.attach().map_err(|e| error(&e))?;
    let mut cache = Cache::new(&heap, &mutator, options.mib)?;
    let entries = cache.entries;
    for slot in 0..entries {
        cache.put(slot, slot as u64)?;
    }
    let filled = Instant::now();
    let mut progress = Progress::new("replaced");
    let mut sum = 0u64;
    let replacements = u64::from(options.rounds) * entries as u64;
    for turn in 0..replacements {
        if turn % STRIDE == 0 {
            progress.show(turn, replacements);
        }
        let slot = cache.random.below(entries);
        sum = sum.wrapping_add(cache.look(slot)?);
        cache.put(slot, entries as u64 + turn)?;
        let other = cache.random.below(entries);
        sum = sum.wrapping_add(cache.look(other)?);
    }
    let (took, replacing) = (begun.elapsed(), filled.elapsed());
    let processor = processor_time().saturating_sub(processor);
    drop(progress);
    let stats = heap.stats();
    drop(cache);
    drop(mutator);
    let (pauses, collections) = pauses.finish();
    Ok(Outcome {
        options: *options,
        entries: entries as u64,
        replacements,
        sum,
        took,
        replacing,
        processor,
        pauses,
        collections,
        stats,
        peak_rss_bytes: peak_rss_bytes(),
    })
}

impl Outcome {
    /// The line that every peer prints.
    pub fn line(&self) -> String {
        let Outcome {
            entries,
            replacements,
            sum,
            ..
        } = self;
        format!("{entries} entries, {replacements} replacements, sum {sum}")
    }

    /// Values replaced a second, the filling not counted.
    pub fn replacements_per_s(&self) -> f64 {
        self.replacements as f64 / self.replacing.as_secs_f64().max(1e-9)
    }

    /// The object that `--json` prints.
    pub fn json(&self) -> Value {
        json!({
            "mib": self.options.mib,
            "rounds": self.options.rounds,
            "entries": self.entries,
            "replacements": self.replacements,
            "sum": self.sum,
            "seconds": self.took.as_secs_f64(),
            "replacing_seconds": self.replacing.as_secs_f64(),
            "processor_seconds": self.processor.as_secs_f64(),
            "replacements_per_s": self.replacements_per_s(),
            "collections": self.collections,
            "stop_us": Quantiles::of(&self.pauses.stop).json(),
            "pause_us": Quantiles::of(&self.pauses.pause).json(),
            "pause_seconds": self.stats.pause_total.as_secs_f64(),
            "cells_freed": self.stats.cells_freed,
            "high_water_bytes": self.stats.high_water_bytes,
            "metadata_bytes": self.stats.metadata_bytes,
            "queue_peak_bytes": self.stats.queue_peak_bytes,
            "peak_rss_bytes": self.peak_rss_bytes,
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.line())?;
        writeln!(f)?;
        writeln!(
            f,
            "{} MiB of values: {:.3} s, {:.3} s of processors, {:.2} million replacements a second, {} MiB resident at most",
            self.options.mib,
            self.took.as_secs_f64(),
            self.processor.as_secs_f64(),
            self.replacements_per_s() / 1e6,
            self.peak_rss_bytes >> 20,
        )?;
        writeln!(
            f,
            "{} collections, {:.3} s stopped in all, {} cells freed",
            self.collections,
            self.stats.pause_total.as_secs_f64(),
            grouped(self.stats.cells_freed),
        )?;
        write!(f, "{}", self.pauses)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_gives_back_what_was_put_in_and_adds_up_to_what_the_peers_print() {
        let options = Options { mib: 1, rounds: 3 };
        let outcome = run(&options).expect("it fits");
        // As every program of benches/programs/ prints for `1 3`.
        assert_eq!(
            outcome.line(),
            "1370 entries, 4110 replacements, sum 25856621"
        );
    }
}
