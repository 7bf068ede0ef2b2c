//! Inputs for the kernels, and the right answers, which Rust computes.

use std::fmt;
use std::ptr::NonNull;

use gc_core::raw::{Encoding, Kind, RawRoot, Site};
use gc_core::{Heap, Mutator};

use super::control::Input;
use super::table::Kernel;
use super::{bytes, numbers, references};
use crate::kernels::alloc::{NODE_BYTES, node_kind};
use crate::kernels::loops::{base64_encode, base64_table};

/// The reason why there is no input.
#[derive(Debug)]
pub struct WorkError(String);

impl fmt::Display for WorkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WorkError {}

impl WorkError {
    fn of(error: impl fmt::Display) -> WorkError {
        WorkError(error.to_string())
    }
}

/// The kinds of cells that kernels use, registered once with a heap.
#[derive(Clone, Copy, Debug)]
pub struct Cells {
    /// Nodes of two words: a reference and a value.
    pub node: Site,
    /// Tables of references.
    table: gc_core::raw::KindId,
}

impl Cells {
    /// Registers the kinds.
    ///
    /// # Errors
    /// The heap's refusal.
    pub fn new(heap: &Heap) -> Result<Cells, WorkError> {
        let node = heap.kind(node_kind()).map_err(WorkError::of)?;
        let table = Kind::array("table", 0, Encoding::RAW);
        Ok(Cells {
            node: heap.site(node, NODE_BYTES).map_err(WorkError::of)?,
            table: heap.kind(table).map_err(WorkError::of)?,
        })
    }
}

/// A kernel's input, and its memory.
#[derive(Debug)]
pub struct Work {
    /// The arguments.
    pub input: Box<Input>,
    /// The right answer.
    pub expected: u64,
    /// The addresses of the list's nodes, in the order of the walk; empty for other kernels.
    pub nodes: Vec<usize>,
    /// The address of the table; 0 for other kernels.
    pub table: usize,
    bytes: Vec<Vec<u8>>,
    words: Vec<Box<[u64]>>,
    floats: Vec<Box<[f64]>>,
    root: Option<RawRoot>,
}

/// The entries of the table of stores.
pub const TABLE: u64 = 256;

impl Work {
    /// An input whose pass takes some milliseconds, or that time over `part`. References are to
    /// cells of the mutator's heap, which the work keeps alive.
    ///
    /// # Errors
    /// The heap is full.
    pub fn new(
        kernel: Kernel,
        mutator: &Mutator,
        cells: Cells,
        part: u64,
    ) -> Result<Work, WorkError> {
        let mut work = Work {
            input: Box::default(),
            expected: 0,
            nodes: Vec::new(),
            table: 0,
            bytes: Vec::new(),
            words: Vec::new(),
            floats: Vec::new(),
            root: None,
        };
        let of = |all: u64| (all / part).max(4);
        match kernel {
            Kernel::Sum => work.sum(of(8 << 20)),
            Kernel::Array => work.array(of(256)),
            Kernel::Base64 => work.base64(of(256 << 10)),
            Kernel::Sieve => work.sieve(of(768 << 10)),
            Kernel::Matrix => work.matrix((of(128 * 128 * 128) as f64).cbrt() as usize),
            Kernel::Hash => work.hash(of(32 << 10)),
            Kernel::Search => work.search(of(1 << 20) as usize),
            Kernel::List => work.list(mutator, cells, of(200 << 10))?,
            Kernel::Mandelbrot => work.mandelbrot(of(64)),
            Kernel::Stores => work.stores(mutator, cells, of(4 << 10))?,
            Kernel::Spinlock => {} // the scene gives the words
        }
        Ok(work)
    }

    /// Whether a run gave this right answer. Clears output, so that the next run has to write it.
    pub fn is_right(&mut self, kernel: Kernel, answer: u64) -> bool {
        let mut right = answer == self.expected;
        if let (Kernel::Base64, [plain, _, output]) = (kernel, &mut self.bytes[..]) {
            right &= plain == output;
            output.fill(0);
        }
        right
    }

    fn sum(&mut self, count: u64) {
        self.input.words[0] = count;
        self.expected = numbers::sum_oracle(count);
    }

    fn array(&mut self, times: u64) {
        let array: Box<[u64]> = (0..16 << 10).map(|i: u64| (i * i) ^ 0x55).collect();
        self.input.words[..3].copy_from_slice(&[array.as_ptr() as u64, array.len() as u64, times]);
        self.expected = numbers::array_oracle(&array, times);
        self.words.push(array);
    }

    fn base64(&mut self, groups: u64) {
        let plain: Vec<u8> = (0..3 * groups).map(|i| ((i * i) >> 3) as u8).collect();
        let text = base64_encode(&plain);
        let output = vec![0; plain.len()];
        let table: Box<[u64]> = base64_table()
            .as_chunks::<8>()
            .0
            .iter()
            .map(|&eight| u64::from_le_bytes(eight))
            .collect();
        self.expected = plain.len() as u64;
        self.bytes = vec![plain, text, output];
        let [text, output] = [1, 2].map(|at: usize| self.bytes[at].as_mut_ptr() as u64);
        let words = [text, groups, output, table.as_ptr() as u64];
        self.input.words[..4].copy_from_slice(&words);
        self.words.push(table);
    }

    fn sieve(&mut self, length: u64) {
        self.bytes.push(vec![0; length as usize]);
        let words = [self.bytes[0].as_mut_ptr() as u64, length];
        self.input.words[..2].copy_from_slice(&words);
        self.expected = numbers::sieve_oracle(length as usize);
    }

    fn matrix(&mut self, n: usize) {
        let element = |i: usize| f64::from((i * 7 % 31) as u32) / 8.0 - 1.5;
        let a: Box<[f64]> = (0..n * n).map(element).collect();
        let b: Box<[f64]> = (0..n * n).map(|i| element(i + 5) * 0.75).collect();
        let c = vec![0.0; n * n].into_boxed_slice();
        self.expected = numbers::matrix_oracle(&a, &b, n);
        self.floats = vec![a, b, c];
        let matrices = [0, 1, 2].map(|at: usize| self.floats[at].as_mut_ptr() as u64);
        self.input.words[..3].copy_from_slice(&matrices);
        self.input.words[3] = n as u64;
    }

    fn hash(&mut self, count: u64) {
        const LENGTH: u64 = 48;
        let keys: Vec<u8> = (0..count * LENGTH)
            .map(|i| ((i * 131) >> 2) as u8)
            .collect();
        self.expected = bytes::hash_oracle(&keys, LENGTH as usize);
        let words = [keys.as_ptr() as u64, count, LENGTH];
        self.input.words[..3].copy_from_slice(&words);
        self.bytes.push(keys);
    }

    fn search(&mut self, length: usize) {
        let needle = b"preemption".to_vec();
        // Every 16th letter begins a place that shares three letters with the needle, and every
        // 256th place is one.
        let letter = |i: usize| match (i % 256, i % 16) {
            (at @ 0..10, _) => needle[at],
            (_, at @ 0..3) => needle[at],
            (_, at) => b'a' + at as u8,
        };
        let text: Vec<u8> = (0..length.max(32)).map(letter).collect();
        self.expected = bytes::search_oracle(&text, &needle);
        let places = (text.len() - needle.len() + 1) as u64;
        let words = [
            text.as_ptr() as u64,
            places,
            needle.as_ptr() as u64,
            needle.len() as u64,
        ];
        self.input.words[..4].copy_from_slice(&words);
        self.bytes = vec![text, needle];
    }

    fn mandelbrot(&mut self, size: u64) {
        const LIMIT: u64 = 300;
        self.input.words[..2].copy_from_slice(&[size, LIMIT]);
        self.expected = numbers::mandelbrot_oracle(size, LIMIT);
    }

    /// Makes the slot that names the kernel's cell, and its root.
    fn keep(&mut self, mutator: &Mutator, cell: usize) -> Result<(), WorkError> {
        let cell = NonNull::new(cell as *mut u8).ok_or_else(|| WorkError::of(FULL))?;
        // SAFETY: the caller passes a live cell of this heap, which is on its stack.
        let root = unsafe { mutator.heap().root_raw(cell) };
        self.root = Some(root.map_err(WorkError::of)?);
        let slot: Box<[u64]> = [cell.as_ptr() as u64].into();
        self.input.words[0] = slot.as_ptr() as u64;
        self.words.push(slot);
        Ok(())
    }

    fn list(&mut self, mutator: &Mutator, cells: Cells, length: u64) -> Result<(), WorkError> {
        let value = |at: u64| at * 3 + 1;
        let mut first = 0;
        for at in (0..length).rev() {
            first = node(mutator, cells, first, value(at))?;
            self.nodes.push(first);
        }
        self.nodes.reverse();
        self.expected = (0..length).map(value).sum();
        self.keep(mutator, first)
    }

    fn stores(&mut self, mutator: &Mutator, cells: Cells, rounds: u64) -> Result<(), WorkError> {
        let before = rounds - 1;
        let first = node(mutator, cells, 0, before)?;
        // SAFETY: the table is a new cell on this stack, until `keep` roots it.
        let table = unsafe { mutator.alloc_raw(cells.table, 8 * TABLE as usize) };
        let table = table.map_err(WorkError::of)?.cast::<usize>();
        for at in 0..TABLE as usize {
            // SAFETY: a word of the table; the node is a live cell on this stack.
            unsafe { mutator.write(table.as_ptr().add(at), first) };
        }
        self.table = table.as_ptr() as usize;
        self.keep(mutator, self.table)?;
        self.input.words[1..3].copy_from_slice(&[TABLE, rounds]);
        self.expected = references::stores_oracle(TABLE, rounds, before);
        Ok(())
    }
}

const FULL: &str = "the heap is full";

/// Allocates a node. Its caller keeps the reference on the stack.
fn node(mutator: &Mutator, cells: Cells, next: usize, value: u64) -> Result<usize, WorkError> {
    // SAFETY: the cell is returned, and `next` is on the caller's stack.
    let cell = unsafe { mutator.alloc_at(cells.node) };
    let cell = cell.map_err(WorkError::of)?.cast::<usize>().as_ptr();
    // SAFETY: a new cell of two words, which no other thread has.
    unsafe {
        cell.write(next);
        cell.add(1).write(value as usize);
    }
    Ok(cell as usize)
}
