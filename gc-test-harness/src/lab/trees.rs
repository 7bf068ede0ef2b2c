//! `gclab trees`: the benchmarks game's binary trees on the raw tier. Perfect trees of 16-byte
//! nodes are built, counted and dropped.
//!
//! The program is that of
//! <https://benchmarksgame-team.pages.debian.net/benchmarksgame/description/binarytrees.html>: a
//! tree one level deeper than the argument, a long-lived tree, and short-lived trees of each depth
//! between, so many that all depths have about the same number of nodes. Only this thread's stack
//! and registers keep a tree. With several mutators each runs the whole program on the same heap.
//! The same program runs on the limit program's heap ([`run_bare`]).
//!
//! The two lowest levels of a tree are built and counted without calls. A C compiler makes this
//! change by itself, so the peers run the same code.

use std::cell::Cell;
use std::fmt;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use gc_core::raw::{Encoding, Kind, Site};
use gc_core::{AllocError, Heap, Mutator};
use serde_json::{Value, json};

use super::baselines::heap::{Cells, LimitHeap, Node};
use super::pauses::Pauses;
use crate::report::{Quantiles, Samples, grouped, peak_rss_bytes, processor_time, thread_time};

/// The least depth of the short-lived trees. The least depth of the long-lived tree is two more.
const LEAST: u32 = 4;

/// Bytes of a node.
const NODE: usize = size_of::<Node>();

/// The largest depth that the options allow: 2 GiB of nodes.
pub const DEEPEST: u32 = 26;

/// The reason why there is no result.
#[derive(Debug)]
pub enum TreesError {
    /// The heap could not be built, or a thread could not be attached.
    Heap(String),
    /// The heap is full.
    Full(AllocError),
    /// Trees do not have the nodes that they were built with.
    Wrong {
        /// The trees and the number of nodes that were counted.
        found: Checked,
        /// The right number of nodes.
        expected: u64,
    },
}

impl fmt::Display for TreesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TreesError::Heap(why) => write!(f, "no heap for the trees: {why}"),
            TreesError::Full(why) => write!(f, "the trees do not fit: {why}"),
            TreesError::Wrong { found, expected } => {
                write!(f, "wrong answer: \"{found}\" instead of {expected} nodes")
            }
        }
    }
}

impl std::error::Error for TreesError {}

/// The trees that a line of output counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The first tree, which is counted and dropped.
    Stretch,
    /// Short-lived trees, and their number.
    Short(u64),
    /// The tree that lives as long as the program.
    LongLived,
}

/// The count of some trees' nodes: a line of the game's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The trees that were counted.
    pub which: Which,
    /// The depth of the trees.
    pub depth: u32,
    /// The nodes of all the trees together.
    pub check: u64,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Checked { depth, check, .. } = self;
        match self.which {
            Which::Stretch => write!(f, "stretch tree of depth {depth}\t check: {check}"),
            Which::Short(trees) => write!(f, "{trees}\t trees of depth {depth}\t check: {check}"),
            Which::LongLived => write!(f, "long lived tree of depth {depth}\t check: {check}"),
        }
    }
}

impl Checked {
    /// The number of nodes that these trees have.
    fn expected(&self) -> u64 {
        let trees = match self.which {
            Which::Short(trees) => trees,
            Which::Stretch | Which::LongLived => 1,
        };
        trees * ((2 << self.depth) - 1)
    }

    fn verify(self) -> Result<Checked, TreesError> {
        let expected = self.expected();
        if self.check == expected {
            Ok(self)
        } else {
            Err(TreesError::Wrong {
                found: self,
                expected,
            })
        }
    }
}

/// The figures of a run of the whole program.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The depth that the options asked for.
    pub depth: u32,
    /// Threads that ran the program; 0 for the limit program.
    pub mutators: usize,
    /// The lines of one thread's program. Those of the other threads are the same.
    pub checks: Vec<Checked>,
    /// The time from before the heap was built until the last tree was counted.
    pub took: Duration,
    /// The processor time of all threads in `took`.
    pub processor: Duration,
    /// The processor time of the mutators in `took`.
    pub mutator_processor: Duration,
    /// The times of all collections; empty for the limit program.
    pub pauses: Samples,
    /// The number of collections.
    pub collections: u64,
    /// The number of young collections among them.
    pub young_collections: u64,
    /// The sum of the collections' pauses.
    pub pause_total: Duration,
    /// The peak of the heap's bytes in use, its metadata bytes, and the peak of its mark queue's
    /// bytes. All 0 for the limit program.
    pub memory: [u64; 3],
    /// Cells that the collections freed; 0 for the limit program, which does not count them.
    pub cells_freed: u64,
    /// The process's peak resident memory.
    pub peak_rss_bytes: u64,
}

/// The program's right output, computed without trees.
pub fn answers(depth: u32) -> Vec<Checked> {
    let deepest = depth.max(LEAST + 2);
    let mut lines = vec![(Which::Stretch, deepest + 1)];
    let short = (LEAST..=deepest).step_by(2);
    lines.extend(short.map(|depth| (Which::Short(1 << (deepest - depth + LEAST)), depth)));
    lines.push((Which::LongLived, deepest));
    let checked = lines.into_iter().map(|(which, depth)| {
        let mut line = Checked {
            which,
            depth,
            check: 0,
        };
        line.check = line.expected();
        line
    });
    checked.collect()
}

/// Runs the program on `mutators` mutators of one heap.
///
/// # Errors
/// [`TreesError`]. Of several wrong answers, the first.
pub fn run(depth: u32, mutators: usize) -> Result<Outcome, TreesError> {
    let heap_error = |e: &dyn fmt::Display| TreesError::Heap(e.to_string());
    let (begun, processor) = (Instant::now(), processor_time());
    let heap = Heap::builder().build().map_err(|e| heap_error(&e))?;
    // Nodes are built from the leaves up and never change.
    let node = Kind::words_at("node", &[0, 1], Encoding::RAW).immutable();
    let node = heap.kind(node).map_err(|e| heap_error(&e))?;
    let site = heap
        .site(node, 2 * size_of::<usize>())
        .map_err(|e| heap_error(&e))?;
    let pauses = Pauses::of(&heap);
    type Ran = Result<(Vec<Checked>, Duration), TreesError>;
    let results: Vec<Ran> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..mutators)
            .map(|_| {
                scope.spawn(|| {
                    let mutator = heap.attach().map_err(|e| heap_error(&e))?;
                    let nodes = Nodes {
                        mutator: &mutator,
                        site,
                        full: Cell::new(None),
                    };
                    let checks = program(&nodes, depth).map_err(|why| nodes.why(why))?;
                    Ok((checks, thread_time()))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    let took = begun.elapsed();
    let processor = processor_time().saturating_sub(processor);
    let (mut checks, mut mutator_processor) = (Vec::new(), Duration::ZERO);
    for result in results {
        let time;
        (checks, time) = result?;
        mutator_processor += time;
    }
    let stats = heap.stats();
    let (pauses, collections) = pauses.finish();
    let (pause_total, cells_freed) = (stats.pause_total, stats.cells_freed);
    let memory = [
        stats.high_water_bytes,
        stats.metadata_bytes,
        stats.queue_peak_bytes,
    ];
    Ok(Outcome {
        depth,
        mutators,
        checks,
        took,
        processor,
        mutator_processor,
        pauses,
        collections,
        young_collections: stats.young_collections,
        pause_total,
        memory,
        cells_freed,
        peak_rss_bytes: peak_rss_bytes(),
    })
}

/// Runs the program on the limit program's heap and the calling thread.
///
/// # Errors
/// [`TreesError`], if there is no address space or an answer is wrong.
pub fn run_bare(depth: u32) -> Result<Outcome, TreesError> {
    let (begun, processor) = (Instant::now(), processor_time());
    let bottom = 0;
    let heap =
        LimitHeap::<NODE>::new(&raw const bottom).map_err(|e| TreesError::Heap(e.to_string()))?;
    let full = || TreesError::Heap("its address space is full".into());
    let checks = program(&heap, depth).map_err(|why| why.unwrap_or_else(full))?;
    let took = begun.elapsed();
    let processor = processor_time().saturating_sub(processor);
    let collections = heap.collections();
    Ok(Outcome {
        depth,
        mutators: 0,
        checks,
        took,
        processor,
        mutator_processor: processor.saturating_sub(collections.time),
        pauses: Samples::new(),
        collections: collections.count,
        young_collections: 0,
        pause_total: collections.time,
        memory: [0; 3],
        cells_freed: 0,
        peak_rss_bytes: peak_rss_bytes(),
    })
}

/// Runs the program. The error is `None` if there is no room for a node; `cells` then has the
/// reason.
#[inline(never)]
fn program<C: Cells>(cells: &C, depth: u32) -> Result<Vec<Checked>, Option<TreesError>> {
    let deepest = depth.max(LEAST + 2);
    let one = |which, depth, tree| {
        Checked {
            which,
            depth,
            check: count(tree),
        }
        .verify()
    };
    let stretch = tree(cells, deepest + 1).ok_or(None)?;
    let mut checks = vec![one(Which::Stretch, deepest + 1, stretch)?];
    let long_lived = tree(cells, deepest).ok_or(None)?;
    for depth in (LEAST..=deepest).step_by(2) {
        let trees = 1 << (deepest - depth + LEAST);
        let mut check = 0;
        for _ in 0..trees {
            check += count(tree(cells, depth).ok_or(None)?);
        }
        let which = Which::Short(trees);
        checks.push(
            Checked {
                which,
                depth,
                check,
            }
            .verify()?,
        );
    }
    checks.push(one(Which::LongLived, deepest, long_lived)?);
    Ok(checks)
}

/// The nodes of a mutator.
struct Nodes<'m> {
    mutator: &'m Mutator,
    site: Site,
    /// The reason why there was no room.
    full: Cell<Option<AllocError>>,
}

impl Cells for Nodes<'_> {
    #[inline(always)]
    fn node(&self) -> Option<NonNull<Node>> {
        // SAFETY: the site is of this heap, and its cells hold two words. The result stays in
        // registers and on the stack.
        match unsafe { self.mutator.alloc_at(self.site) } {
            Ok(node) => Some(node.cast()),
            Err(why) => {
                self.full.set(Some(why));
                None
            }
        }
    }
}

impl Nodes<'_> {
    /// The program's error, or the error of the allocation that failed.
    fn why(&self, error: Option<TreesError>) -> TreesError {
        error.unwrap_or_else(|| match self.full.take() {
            Some(why) => TreesError::Full(why),
            None => unreachable!("the program failed without a reason"),
        })
    }
}

/// Builds a perfect tree. Only the caller's registers and stack keep it.
#[inline(never)]
fn tree<C: Cells>(cells: &C, depth: u32) -> Option<NonNull<Node>> {
    match depth {
        0 => cells.node(),
        1 => {
            let left = cells.node()?;
            join(cells, left, cells.node()?)
        }
        _ => {
            let left = tree(cells, depth - 1)?;
            join(cells, left, tree(cells, depth - 1)?)
        }
    }
}

/// Allocates a node over two others.
#[inline(always)]
fn join<C: Cells>(cells: &C, left: NonNull<Node>, right: NonNull<Node>) -> Option<NonNull<Node>> {
    let node = cells.node()?;
    // SAFETY: these are a new cell's first stores, which need no barrier.
    unsafe { node.write([left.as_ptr() as usize, right.as_ptr() as usize]) };
    Some(node)
}

/// The subtrees of a node.
#[inline(always)]
fn below(tree: NonNull<Node>) -> Option<(NonNull<Node>, NonNull<Node>)> {
    // SAFETY: the cell is live, because the caller holds the tree, and no thread writes to it.
    let [left, right] = unsafe { tree.read() };
    NonNull::new(left as *mut Node).zip(NonNull::new(right as *mut Node))
}

/// The number of nodes in a tree.
#[inline(never)]
fn count(tree: NonNull<Node>) -> u64 {
    let inner = |tree| match below(tree) {
        Some((left, right)) => 1 + count(left) + count(right),
        None => 1,
    };
    match below(tree) {
        Some((left, right)) => 1 + inner(left) + inner(right),
        None => 1,
    }
}

impl Outcome {
    /// Nodes that all mutators allocated.
    pub fn objects(&self) -> u64 {
        self.checks.iter().map(|line| line.check).sum::<u64>() * self.mutators.max(1) as u64
    }

    /// Nodes that all mutators together allocated in a second.
    pub fn objects_per_s(&self) -> f64 {
        self.objects() as f64 / self.took.as_secs_f64().max(1e-9)
    }

    /// The object that `--json` prints.
    pub fn json(&self) -> Value {
        let lines: Vec<String> = self.checks.iter().map(Checked::to_string).collect();
        json!({
            "depth": self.depth,
            "mutators": self.mutators,
            "checks": lines,
            "seconds": self.took.as_secs_f64(),
            "processor_seconds": self.processor.as_secs_f64(),
            "mutator_processor_seconds": self.mutator_processor.as_secs_f64(),
            "objects": self.objects(),
            "objects_per_s": self.objects_per_s(),
            "collections": self.collections,
            "young_collections": self.young_collections,
            "stop_us": Quantiles::of(&self.pauses.stop).json(),
            "pause_us": Quantiles::of(&self.pauses.pause).json(),
            "pause_seconds": self.pause_total.as_secs_f64(),
            "cells_freed": self.cells_freed,
            "high_water_bytes": self.memory[0],
            "metadata_bytes": self.memory[1],
            "queue_peak_bytes": self.memory[2],
            "peak_rss_bytes": self.peak_rss_bytes,
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.checks {
            writeln!(f, "{line}")?;
        }
        let who = match self.mutators {
            0 => "limit program".into(),
            1 => "1 mutator".into(),
            more => format!("{more} mutators, each"),
        };
        writeln!(f)?;
        writeln!(
            f,
            "{who}: {:.3} s, {:.3} s of processors ({:.3} s outside the collector), {} nodes, {:.1} million a second, {} MiB resident at most",
            self.took.as_secs_f64(),
            self.processor.as_secs_f64(),
            self.mutator_processor.as_secs_f64(),
            grouped(self.objects()),
            self.objects_per_s() / 1e6,
            self.peak_rss_bytes >> 20,
        )?;
        writeln!(
            f,
            "{} collections, {} of them young, stopped for {:.3} s in all",
            self.collections,
            self.young_collections,
            self.pause_total.as_secs_f64()
        )?;
        if self.mutators == 0 {
            return Ok(());
        }
        let [reached, beside, queue] = self.memory;
        writeln!(
            f,
            "{} MiB of heap reached, {:.2} % of that in tables beside the cells, {} KiB of mark queue at most",
            reached >> 20,
            beside as f64 * 100.0 / reached.max(1) as f64,
            queue >> 10,
        )?;
        write!(f, "{}", self.pauses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mutators_print_what_the_game_prints() {
        let outcome = run(6, 2).expect("it fits");
        let lines: Vec<String> = outcome.checks.iter().map(Checked::to_string).collect();
        let expected = [
            "stretch tree of depth 7\t check: 255",
            "64\t trees of depth 4\t check: 1984",
            "16\t trees of depth 6\t check: 2032",
            "long lived tree of depth 6\t check: 127",
        ];
        assert_eq!(lines, expected);
        assert_eq!(outcome.checks, answers(6));
        assert_eq!(outcome.objects(), 2 * (255 + 1984 + 2032 + 127));
    }

    #[test]
    fn the_limit_program_collects_and_prints_the_same() {
        let outcome = run_bare(14).expect("it fits");
        assert_eq!(outcome.checks, answers(14));
        assert!(
            outcome.collections > 10,
            "{} collections",
            outcome.collections
        );
    }

    #[test]
    fn a_tree_that_lost_nodes_is_a_wrong_answer() {
        let lost = Checked {
            which: Which::Short(2),
            depth: 4,
            check: 61,
        };
        let error = lost.verify().expect_err("62 nodes are right");
        assert!(error.to_string().contains("instead of 62"), "{error}");
    }
}
