//! Fragmentation: fill with cells of one size, drop nine in ten at random, fill with cells of
//! another.
//!
//! Cells do not move, so the room between the survivors fits the old size only. The figure is the
//! peak of memory, beside mimalloc's for the same sequence (`benches/programs/`). Each cell holds
//! its number in its first and its last word, and what all survivors add up to is printed.

use std::fmt;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use gc_core::raw::{Encoding, Kind, KindId, RawRoot, Site};
use gc_core::{AllocError, Heap, HeapStats, Mutator};
use serde_json::{Value, json};

use super::random::Random;
use crate::report::{grouped, peak_rss_bytes};

/// The most that can be asked for, in MiB.
pub const LARGEST: u32 = 64 << 10;

/// Why there is no result.
#[derive(Debug)]
pub enum FragmentError {
    /// The heap could not be built, or the thread not attached.
    Heap(String),
    /// The cells do not fit.
    Full(AllocError),
    /// A survivor's words were not its number.
    Wrong {
        /// Its number.
        number: usize,
    },
}

impl fmt::Display for FragmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FragmentError::Heap(why) => write!(f, "no heap: {why}"),
            FragmentError::Full(why) => write!(f, "the cells do not fit: {why}"),
            FragmentError::Wrong { number } => {
                write!(f, "wrong answer: cell {number} is not what was written")
            }
        }
    }
}

impl std::error::Error for FragmentError {}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// MiB of cells of the first size.
    pub mib: u32,
    /// The first size in bytes.
    pub from: u32,
    /// The second.
    pub to: u32,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was asked for.
    pub options: Options,
    /// Cells of the first size.
    pub before: u64,
    /// Of these, dropped.
    pub dropped: u64,
    /// Cells of the second size.
    pub after: u64,
    /// Of all survivors, first and last words.
    pub sum: u64,
    /// How long it took.
    pub took: Duration,
    /// The heap's figures at the end.
    pub stats: HeapStats,
    /// The process's peak.
    pub peak_rss_bytes: u64,
}

/// Cells of one size, held by a table of their own.
struct Cells<'m> {
    mutator: &'m Mutator,
    table: NonNull<usize>,
    count: usize,
    words: usize,
    _root: RawRoot,
}

impl<'m> Cells<'m> {
    /// So many new cells; the first and the last word of each hold its number.
    fn fill(
        mutator: &'m Mutator,
        holder: KindId,
        site: Site,
        count: usize,
        bytes: usize,
    ) -> Result<Cells<'m>, FragmentError> {
        // SAFETY: an array of words needs no least size; the cell is on this stack until the handle
        // keeps it.
        let table = unsafe { mutator.alloc_raw(holder, count * size_of::<usize>()) };
        let table = table.map_err(FragmentError::Full)?;
        // SAFETY: allocated just now.
        let root = unsafe { mutator.root_raw(table) }
            .map_err(|error| FragmentError::Heap(error.to_string()))?;
        let cells = Cells {
            mutator,
            table: table.cast(),
            count,
            words: bytes / size_of::<usize>(),
            _root: root,
        };
        for n in 0..count {
            // SAFETY: a leaf cell of so many words, stored into first; the table has `count` words
            // and is kept.
            unsafe {
                let cell = mutator.alloc_at(site).map_err(FragmentError::Full)?;
                let words = cell.cast::<usize>();
                words.write(n);
                words.add(cells.words - 1).write(n);
                mutator.write(cells.table.add(n).as_ptr(), cell.as_ptr() as usize);
            }
        }
        Ok(cells)
    }

    fn drop_one(&self, n: usize) {
        debug_assert!(n < self.count);
        // SAFETY: a word of the table.
        unsafe { self.mutator.write(self.table.add(n).as_ptr(), 0) };
    }

    /// The sum of the survivors' words.
    fn sum(&self) -> Result<u64, FragmentError> {
        let mut sum = 0;
        for number in 0..self.count {
            // SAFETY: the table's words are null or live cells of so many words.
            let words = unsafe {
                let cell = self.table.add(number).read() as *const usize;
                if cell.is_null() {
                    continue;
                }
                [cell.read(), cell.add(self.words - 1).read()]
            };
            if words != [number; 2] {
                return Err(FragmentError::Wrong { number });
            }
            sum += 2 * number as u64;
        }
        Ok(sum)
    }
}

/// Runs the sequence.
///
/// # Errors
/// [`FragmentError`]; of wrong cells, the first.
pub fn run(options: &Options) -> Result<Outcome, FragmentError> {
    let error = |e: &dyn fmt::Display| FragmentError::Heap(e.to_string());
    let begun = Instant::now();
    let heap = Heap::builder().build().map_err(|e| error(&e))?;
    let holder = heap.kind(Kind::array("table", 0, Encoding::RAW));
    let holder = holder.map_err(|e| error(&e))?;
    let leaf = heap.kind(Kind::leaf("cell")).map_err(|e| error(&e))?;
    let site = |bytes| heap.site(leaf, bytes).map_err(|e| error(&e));
    let mutator = heap.attach().map_err(|e| error(&e))?;
    let (from, to) = (options.from as usize, options.to as usize);
    let before = ((options.mib as usize) << 20) / from;
    let first = Cells::fill(&mutator, holder, site(from)?, before, from)?;
    let mut random = Random::default();
    let mut dropped = 0;
    for n in 0..before {
        if random.below(10) != 0 {
            first.drop_one(n);
            dropped += 1;
        }
    }
    let after = dropped * from / to;
    let second = Cells::fill(&mutator, holder, site(to)?, after, to)?;
    let sum = first.sum()? + second.sum()?;
    Ok(Outcome {
        options: *options,
        before: before as u64,
        dropped: dropped as u64,
        after: after as u64,
        sum,
        took: begun.elapsed(),
        stats: heap.stats(),
        peak_rss_bytes: peak_rss_bytes(),
    })
}

impl Outcome {
    /// The line that every peer prints.
    pub fn line(&self) -> String {
        let Outcome {
            options,
            before,
            dropped,
            after,
            sum,
            ..
        } = self;
        format!(
            "{before} objects of {} bytes, {dropped} freed, {after} of {} bytes, sum {sum}",
            options.from, options.to
        )
    }

    /// The object that `--json` prints.
    pub fn json(&self) -> Value {
        json!({
            "mib": self.options.mib,
            "from_bytes": self.options.from,
            "to_bytes": self.options.to,
            "objects_before": self.before,
            "objects_dropped": self.dropped,
            "objects_after": self.after,
            "sum": self.sum,
            "seconds": self.took.as_secs_f64(),
            "collections": self.stats.collections,
            "used_bytes": self.stats.used_bytes,
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
            "{:.3} s, {} collections; {} bytes of spans at the end, {} MiB resident at most",
            self.took.as_secs_f64(),
            self.stats.collections,
            grouped(self.stats.used_bytes),
            self.peak_rss_bytes >> 20,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survivors_keep_their_words_and_add_up_to_what_mimalloc_prints() {
        let options = Options {
            mib: 1,
            from: 64,
            to: 96,
        };
        let outcome = run(&options).expect("it fits");
        // As benches/programs/mimalloc_fragment.c prints for `1 64 96`.
        assert_eq!(
            outcome.line(),
            "16384 objects of 64 bytes, 14776 freed, 9850 of 96 bytes, sum 123845040"
        );
    }
}
