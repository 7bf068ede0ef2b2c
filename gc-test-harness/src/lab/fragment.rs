//! `gclab fragment`: fragmentation. The program fills the heap with cells of one size, drops nine
//! in ten at random, and fills it with cells of another size.
//!
//! Cells do not move, so the space between the surviving cells fits the first size only. The figure
//! is the peak of memory, beside mimalloc's for the same sequence (`benches/programs/`). Each cell
//! holds its number in its first and its last word, and the program prints the sum over the
//! surviving cells.

use std::fmt;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use gc_core::raw::{Encoding, Kind, KindId, RawRoot, Site};
use gc_core::{AllocError, Heap, HeapStats, Mutator};
use serde_json::{Value, json};

use super::random::Random;
use crate::report::{grouped, peak_rss_bytes};

/// The largest amount of cells that the options allow, in MiB.
pub const LARGEST: u32 = 64 << 10;

/// The reason why there is no result.
#[derive(Debug)]
pub enum FragmentError {
    /// The heap could not be built, or the thread could not be attached.
    Heap(String),
    /// The cells do not fit.
    Full(AllocError),
    /// The words of a surviving cell are not its number.
    Wrong {
        /// The cell's number.
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

/// A measurement's options.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// MiB of cells of the first size.
    pub mib: u32,
    /// The first size, in bytes.
    pub from: u32,
    /// The second size, in bytes.
    pub to: u32,
}

/// The figures of a measurement.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The options of the measurement.
    pub options: Options,
    /// The number of cells of the first size.
    pub before: u64,
    /// The number of those that were dropped.
    pub dropped: u64,
    /// The number of cells of the second size.
    pub after: u64,
    /// The sum of the first and last words of all surviving cells.
    pub sum: u64,
    /// The time of the measurement.
    pub took: Duration,
    /// The heap's figures at the end.
    pub stats: HeapStats,
    /// The process's peak resident memory.
    pub peak_rss_bytes: u64,
}

/// Cells of one size, and the table that holds them.
struct Cells<'m> {
    mutator: &'m Mutator,
    table: NonNull<usize>,
    count: usize,
    words: usize,
    _root: RawRoot,
}

impl<'m> Cells<'m> {
    /// Allocates `count` cells. The first and the last word of each hold its number.
    fn fill(
        mutator: &'m Mutator,
        holder: KindId,
        site: Site,
        count: usize,
        bytes: usize,
    ) -> Result<Cells<'m>, FragmentError> {
        // SAFETY: an array of words needs no least size. The cell is on this stack until the handle
        // keeps it.
        let table = unsafe { mutator.alloc_raw(holder, count * size_of::<usize>()) };
        let table = table.map_err(FragmentError::Full)?;
        // SAFETY: the cell is new, and this stack still holds it.
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
            // SAFETY: the stores are the first to a leaf cell of that many words. The table has
            // `count` words, and the handle keeps it.
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

    /// The sum of the surviving cells' words.
    fn sum(&self) -> Result<u64, FragmentError> {
        let mut sum = 0;
        for number in 0..self.count {
            // SAFETY: the table's words are null or name live cells of that many words.
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
/// [`FragmentError`]. Of several wrong cells, the first.
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
    /// The line that each peer prints, too.
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
        // benches/programs/mimalloc_fragment.c prints this line for `1 64 96`.
        assert_eq!(
            outcome.line(),
            "16384 objects of 64 bytes, 14776 freed, 9850 of 96 bytes, sum 123845040"
        );
    }
}
