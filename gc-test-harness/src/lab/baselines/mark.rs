//! The limit program of marking: a bare loop with prefetching over a graph of 32-byte cells whose
//! first two words are edges.
//!
//! It does the work that any marker of this kind must do and nothing else. For each edge it
//! prefetches the mark word, and the edge waits in a ring. Then it tests the bit and sets it with
//! an atomic `or`. For a newly marked cell it reads the size class from a table of 16 KiB blocks
//! and prefetches the cell's first line, and the cell waits in a second ring. Then it reads the
//! cell's two words. The stack is allocated in advance for all cells, mark bits and stack lie in
//! huge pages, the loop has the shape of cells built in, and there is no kind, large object, queue
//! limit or encoding.
//!
//! The loop takes the table that holds all cells in parts of 8,192 and follows each part to its
//! end, so that a cell that is in the second-level cache when it is marked is still there when it
//! is followed. Several threads take parts in turn and share only the mark bits. The table holds
//! all cells, so no thread needs to steal work.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Bytes of a cell.
pub const CELL: usize = 32;
/// Cells of a part of the table: all of them are marked before their edges are followed.
const PART: usize = 8192;
/// Length of each ring: edges or cells that wait for their cache lines.
const AHEAD: usize = 16;
/// Bytes for each mark bit.
const GRANULE: usize = 16;
/// Bytes for each word of the block table.
const UNIT: usize = 16 << 10;
/// The entry of every block in the block table: class 1.
const CLASS: u32 = 1;
/// The sizes of the classes, in bytes. The compiler must not see that all cells have one size.
const SIZES: [u32; 4] = [16, 32, 48, 64];
/// The mark of an empty place in a ring.
const EMPTY: usize = usize::MAX;

/// The figures of one marking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marking {
    /// The time of the marking.
    pub time: Duration,
    /// The number of cells marked.
    pub cells: u64,
    /// The bytes of these cells.
    pub bytes: u64,
}

/// The loop's tables for one graph.
pub struct LimitMarker {
    base: usize,
    marks: Huge<AtomicU64>,
    units: Huge<u32>,
    /// The threads' stacks.
    stacks: Vec<Huge<usize>>,
}

impl LimitMarker {
    /// Tables for a graph of these cells and for up to `threads` threads.
    pub fn of(cells: &[usize], threads: usize) -> LimitMarker {
        let least = cells.iter().copied().min().unwrap_or(0);
        let most = cells.iter().copied().max().unwrap_or(0);
        LimitMarker::new(least..most + CELL, cells.len(), threads)
    }

    /// Tables for a graph of at most `cells` cells in these addresses and for up to `threads`
    /// threads.
    fn new(addresses: Range<usize>, cells: usize, threads: usize) -> LimitMarker {
        let base = addresses.start / UNIT * UNIT;
        let len = addresses.end - base;
        // SAFETY: all types are plain numbers, for which zeroes are valid.
        let (marks, mut units, stacks) = unsafe {
            (
                Huge::zeroed(len.div_ceil(64 * GRANULE)),
                Huge::<u32>::zeroed(len.div_ceil(UNIT)),
                (0..threads).map(|_| Huge::zeroed(cells)).collect(),
            )
        };
        units.fill(CLASS);
        LimitMarker {
            base,
            marks,
            units,
            stacks,
        }
    }

    /// Marks all cells that `table` leads to, with `threads` threads.
    ///
    /// # Safety
    /// Each word of the table and the first two words of each cell must be 0 or the address of a
    /// cell of the graph that this marker was made for. No thread may write them during the call.
    pub unsafe fn mark(&mut self, table: &[usize], threads: usize) -> Marking {
        for word in self.marks.iter_mut() {
            *word.get_mut() = 0;
        }
        let (base, marks, units) = (self.base, &*self.marks, &*self.units);
        let mut runs: Vec<Run<'_>> = self
            .stacks
            .iter_mut()
            .take(threads)
            .map(|stack| Run {
                base,
                marks,
                units,
                stack,
                top: 0,
                edges: Ring::new(),
                cells: Ring::new(),
                marked: 0,
                bytes: 0,
            })
            .collect();
        let parts = Parts {
            table,
            next: AtomicUsize::new(0),
        };
        let start = Instant::now();
        std::thread::scope(|scope| {
            let mut runs = runs.iter_mut();
            let own = runs.next();
            for run in runs {
                // SAFETY: the caller says that the words name cells of the graph.
                scope.spawn(|| unsafe { run.all(&parts) });
            }
            if let Some(run) = own {
                // SAFETY: the caller says that the words name cells of the graph.
                unsafe { run.all(&parts) };
            }
        });
        Marking {
            time: start.elapsed(),
            cells: runs.iter().map(|run| run.marked).sum(),
            bytes: runs.iter().map(|run| run.bytes).sum(),
        }
    }
}

/// The table, and the number of its words that the threads have taken.
struct Parts<'t> {
    table: &'t [usize],
    next: AtomicUsize,
}

impl<'t> Parts<'t> {
    fn take(&self) -> Option<&'t [usize]> {
        // Relaxed: the counter alone gives each part to one thread.
        let from = self.next.fetch_add(PART, Ordering::Relaxed);
        let to = self.table.len().min(from + PART);
        self.table.get(from..to).filter(|part| !part.is_empty())
    }
}

struct Run<'l> {
    base: usize,
    marks: &'l [AtomicU64],
    units: &'l [u32],
    stack: &'l mut [usize],
    top: usize,
    edges: Ring,
    cells: Ring,
    marked: u64,
    bytes: u64,
}

impl Run<'_> {
    /// Marks parts of the table until none is left.
    ///
    /// # Safety
    /// As for [`LimitMarker::mark`].
    unsafe fn all(&mut self, parts: &Parts<'_>) {
        while let Some(part) = parts.take() {
            for &cell in part {
                self.found(cell);
            }
            // SAFETY: the caller says that the words name cells of the graph.
            unsafe { self.drain() };
        }
    }

    #[inline(always)]
    fn found(&mut self, cell: usize) {
        if cell == 0 {
            return;
        }
        let offset = cell - self.base;
        prefetch(
            self.marks
                .as_ptr()
                .wrapping_add(offset / (64 * GRANULE))
                .addr(),
        );
        let oldest = self.edges.exchange(offset);
        if oldest != EMPTY {
            self.mark(oldest);
        }
    }

    #[inline(always)]
    fn mark(&mut self, offset: usize) {
        let word = &self.marks[offset / (64 * GRANULE)];
        let bit = 1 << (offset / GRANULE % 64);
        // Relaxed: a set bit says only that a thread follows the cell, and no thread writes the
        // cells' words.
        if word.load(Ordering::Relaxed) & bit != 0
            || word.fetch_or(bit, Ordering::Relaxed) & bit != 0
        {
            return;
        }
        let class = self.units[offset / UNIT];
        self.bytes += u64::from(SIZES[class as usize % SIZES.len()]);
        self.marked += 1;
        self.stack[self.top] = offset;
        self.top += 1;
    }

    /// # Safety
    /// As for [`LimitMarker::mark`].
    #[inline(always)]
    unsafe fn drain(&mut self) {
        loop {
            let ready = if self.top > 0 {
                self.top -= 1;
                let offset = self.stack[self.top];
                prefetch(self.base + offset);
                self.cells.exchange(offset)
            } else {
                match self.cells.pop() {
                    EMPTY => match self.edges.pop() {
                        EMPTY => return,
                        edge => {
                            self.mark(edge);
                            EMPTY
                        }
                    },
                    cell => cell,
                }
            };
            if ready != EMPTY {
                // SAFETY: the caller says that this is a cell of the graph, and it has four words.
                let edges = unsafe { *((self.base + ready) as *const [usize; 2]) };
                for cell in edges {
                    self.found(cell);
                }
            }
        }
    }
}

/// A FIFO of fixed length. A new value replaces the oldest one.
struct Ring {
    places: [usize; AHEAD],
    next: usize,
}

impl Ring {
    fn new() -> Ring {
        Ring {
            places: [EMPTY; AHEAD],
            next: 0,
        }
    }

    #[inline(always)]
    fn exchange(&mut self, value: usize) -> usize {
        let oldest = std::mem::replace(&mut self.places[self.next % AHEAD], value);
        self.next = self.next.wrapping_add(1);
        oldest
    }

    fn pop(&mut self) -> usize {
        for _ in 0..AHEAD {
            match self.exchange(EMPTY) {
                EMPTY => {}
                value => return value,
            }
        }
        EMPTY
    }
}

#[inline(always)]
fn prefetch(address: usize) {
    // SAFETY: a prefetch has no effect that the program can observe.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address as *const i8) };
}

/// Memory in huge pages where possible.
struct Huge<T> {
    memory: *mut T,
    len: usize,
    layout: Layout,
}

impl<T> Huge<T> {
    /// # Safety
    /// Zeroed memory must be a valid `T`, and `T` must not need dropping.
    unsafe fn zeroed(len: usize) -> Huge<T> {
        const PAGE: usize = 2 << 20;
        let bytes = (len * size_of::<T>()).max(1).next_multiple_of(PAGE);
        let layout = Layout::from_size_align(bytes, PAGE).unwrap_or_else(|_| {
            unreachable!("a graph's tables are smaller than the address space")
        });
        // SAFETY: the layout is not empty, and the advice changes only speed. All bytes are
        // written, and the caller says that zeroes are a valid `T`.
        unsafe {
            let memory = alloc(layout);
            if memory.is_null() {
                handle_alloc_error(layout);
            }
            libc::madvise(memory.cast(), bytes, libc::MADV_HUGEPAGE);
            memory.write_bytes(0, bytes);
            Huge {
                memory: memory.cast(),
                len,
                layout,
            }
        }
    }
}

impl<T> Deref for Huge<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `zeroed` made that many values.
        unsafe { std::slice::from_raw_parts(self.memory, self.len) }
    }
}

impl<T> DerefMut for Huge<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: `zeroed` made that many values, and `self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.memory, self.len) }
    }
}

impl<T> Drop for Huge<T> {
    fn drop(&mut self) {
        // SAFETY: the memory was allocated with this layout, and the values need no dropping.
        unsafe { dealloc(self.memory.cast(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_table_leads_to_is_marked_once_and_nothing_else() {
        // SAFETY: numbers, for which zeroes are valid.
        let mut cells = unsafe { Huge::<usize>::zeroed(4 * 100) };
        let at = |n: usize, cells: &Huge<usize>| cells[4 * n..].as_ptr() as usize;
        // Cells 0 to 59 are a list from the last to the first, and each has an edge to the cell in
        // the middle. No edge leads to the cells from 60 on.
        for n in 1..60 {
            let edges = [at(n - 1, &cells), at(n / 2, &cells)];
            cells[4 * n..4 * n + 2].copy_from_slice(&edges);
        }
        let all = at(0, &cells)..at(99, &cells) + 32;
        let mut limit = LimitMarker::new(all, 100, 2);
        for threads in [1, 2, 1] {
            // SAFETY: the edges are those written above.
            let marking = unsafe { limit.mark(&[at(59, &cells), 0, at(3, &cells)], threads) };
            assert_eq!((marking.cells, marking.bytes), (60, 60 * 32));
        }
    }
}
