//! `gclab churn`: a cache with replacement. Its values have 16 bytes to 4 KiB, each value has an
//! entry, and one table holds all entries.
//!
//! The program fills the table. Then each turn replaces the value of a random slot by a new one of
//! another size, and reads the value of another slot. A value is a leaf cell with its key in the
//! first word and a pattern behind it. An entry is a cell of three words: value, key, size. The
//! program compares each value that it reads with its entry, and prints the sum of all of them. The
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

/// The largest cache that the options allow, in MiB of values.
pub const LARGEST: u32 = 64 << 10;

/// Bytes of the average value.
const MEAN: usize = 765;
/// Bytes of the largest value.
const MOST: usize = 4096;
/// The step of value sizes, in bytes: each multiple has a site.
const STEP: usize = 16;

/// The reason why there is no result.
#[derive(Debug)]
pub enum ChurnError {
    /// The heap could not be built, or the thread could not be attached.
    Heap(String),
    /// The cache does not fit.
    Full(AllocError),
    /// A value is not what was put into the cache.
    Wrong {
        /// The key in the value's entry.
        key: u64,
        /// The key that the value holds instead.
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

/// A measurement's options.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// MiB of live values.
    pub mib: u32,
    /// Times that each value is replaced, on average.
    pub rounds: u32,
}

/// The figures of a measurement.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The options of the measurement.
    pub options: Options,
    /// Slots of the cache.
    pub entries: u64,
    /// Values replaced.
    pub replacements: u64,
    /// The sum of all values that were read: keys, sizes and last bytes.
    pub sum: u64,
    /// The time from before the heap was built until the last read.
    pub took: Duration,
    /// The time of the replacements.
    pub replacing: Duration,
    /// The processor time of all threads in `took`.
    pub processor: Duration,
    /// The times of all collections.
    pub pauses: Samples,
    /// The number of collections.
    pub collections: u64,
    /// The heap's figures at the end.
    pub stats: HeapStats,
    /// The process's peak resident memory.
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
    /// The sites of values, by size in steps, rounded up.
    values: Vec<Site>,
    pattern: Box<[u8; MOST]>,
    random: Random,
    // The root that keeps the table.
    _root: RawRoot,
}

impl<'m> Cache<'m> {
    fn new(heap: &Heap, mutator: &'m Mutator, mib: u32) -> Result<Cache<'m>, ChurnError> {
        let error = |e: &dyn fmt::Display| ChurnError::Heap(e.to_string());
        let kind = |kind| heap.kind(kind).map_err(|e| error(&e));
        let site = |kind, bytes| heap.site(kind, bytes).map_err(|e| error(&e));
        let holder = kind(Kind::array("table", 0, Encoding::RAW))?;
        let entry = kind(Kind::words_at("entry", &[0], Encoding::RAW))?;
        // Each value is written as a whole right after its allocation, so its cell need not be
        // cleared. The peers in C do not clear it, either.
        let value = kind(Kind::leaf_uninit("value"))?;
        let entries = ((mib as usize) << 20) / MEAN;
        // SAFETY: an array of words needs no least size. The cell is on this stack until the handle
        // keeps it.
        let table = unsafe { mutator.alloc_raw(holder, entries * size_of::<usize>()) };
        let table = table.map_err(ChurnError::Full)?;
        // SAFETY: the cell is new, and this stack still holds it.
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

    /// Draws a size of 16 to 4,096 bytes; each of the eight doublings is equally likely.
    fn draw_bytes(&mut self) -> usize {
        let base = 16 << self.random.below(8);
        base + self.random.below(base + 1)
    }

    /// Allocates a new value and its entry. Only this thread's registers and stack keep them.
    #[inline]
    fn entry(&mut self, key: u64) -> Result<NonNull<Entry>, ChurnError> {
        let bytes = self.draw_bytes();
        let site = self.values[bytes.div_ceil(STEP)];
        // SAFETY: the sites are of this heap, for leaf cells of at least `bytes` bytes (16 or more)
        // and for cells of three words. The stores are the first to new cells.
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

    /// Reads a slot's value and gives its part of the sum.
    #[inline]
    fn look(&self, slot: usize) -> Result<u64, ChurnError> {
        debug_assert!(slot < self.entries);
        // SAFETY: the table leads to entries and these to values of `bytes` bytes, and all of them
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

/// Turns between two reads of the clock.
const STRIDE: u64 = 1 << 16;

/// Fills the cache and replaces its values.
///
/// # Errors
/// [`ChurnError`]. Of several wrong values, the first.
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
    /// The line that each peer prints, too.
    pub fn line(&self) -> String {
        let Outcome {
            entries,
            replacements,
            sum,
            ..
        } = self;
        format!("{entries} entries, {replacements} replacements, sum {sum}")
    }

    /// Values replaced in a second, without the filling.
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
        // Each program of benches/programs/ prints this line for `1 3`.
        assert_eq!(
            outcome.line(),
            "1370 entries, 4110 replacements, sum 25856621"
        );
    }
}
