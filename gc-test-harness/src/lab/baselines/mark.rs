//! The limit program of marking: a bare prefetching loop over a graph of 32-byte cells whose first
//! two words are edges.
//!
//! It does what any marker of this kind must do and nothing else. An edge's mark word is prefetched
//! and waits in a ring; the bit is tested and then set by an atomic `or`; a newly marked cell's
//! block is looked up in a table of 16 KiB units, as for its size and kind; its first line is
//! prefetched and waits in a second ring; its two words are read. The stack is allocated for all
//! cells before, mark bits and stack lie in huge pages, the shape of cells is known to the loop,
//! and no kind, large object, queue limit or encoding is provided for.
//!
//! The table that holds all cells is taken in parts of 8,192, each followed to its end: what lies
//! in the second-level cache when it is marked still does when it is followed. Several threads take
//! parts in turn and share nothing else but the mark bits: a table of everything needs no stealing.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Bytes of a cell.
pub const CELL: usize = 32;
/// Cells of the table that are marked before what they lead to is followed.
const PART: usize = 8192;
/// Edges, and cells, that wait for their lines.
const AHEAD: usize = 16;
/// Bytes a mark bit.
const GRANULE: usize = 16;
/// Bytes a word of the block table.
const UNIT: usize = 16 << 10;
/// What the block table says of every unit here: class 1.
const CLASS: u32 = 1;
/// The classes' sizes. The loop does not know that all cells are of one.
const SIZES: [u32; 4] = [16, 32, 48, 64];
/// An empty place of a ring.
const EMPTY: usize = usize::MAX;

/// What one marking did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marking {
    /// How long it took.
    pub time: Duration,
    /// Cells marked.
    pub cells: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The loop's tables for one graph.
pub struct LimitMarker {
    base: usize,
    marks: Huge<AtomicU64>,
    units: Huge<u32>,
    /// One a thread.
    stacks: Vec<Huge<usize>>,
}

impl LimitMarker {
    /// For a graph of these cells, and so many threads.
    pub fn of(cells: &[usize], threads: usize) -> LimitMarker {
        let least = cells.iter().copied().min().unwrap_or(0);
        let most = cells.iter().copied().max().unwrap_or(0);
        LimitMarker::new(least..most + CELL, cells.len(), threads)
    }

    /// For a graph of at most `cells` cells at these addresses, and so many threads.
    fn new(addresses: Range<usize>, cells: usize, threads: usize) -> LimitMarker {
        let base = addresses.start / UNIT * UNIT;
        let len = addresses.end - base;
        // SAFETY: plain numbers.
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

    /// Marks all that `table` leads to, by so many of the threads.
    ///
    /// # Safety
    /// Every word of the table and the first two words of every cell are 0 or the address of a cell
    /// of the graph that this was made for, and no thread writes them meanwhile.
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
                // SAFETY: the caller says what words hold.
                scope.spawn(|| unsafe { run.all(&parts) });
            }
            if let Some(run) = own {
                // SAFETY: as above.
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

/// The table, and how much of it the threads have taken.
struct Parts<'t> {
    table: &'t [usize],
    next: AtomicUsize,
}

impl<'t> Parts<'t> {
    fn take(&self) -> Option<&'t [usize]> {
        // Ordering: Relaxed; the counter alone gives each part to one thread.
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
    /// Parts of the table until there are none left.
    ///
    /// # Safety
    /// As for [`LimitMarker::mark`].
    unsafe fn all(&mut self, parts: &Parts<'_>) {
        while let Some(part) = parts.take() {
            for &cell in part {
                self.found(cell);
            }
            // SAFETY: the caller says what words hold.
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
        // Ordering: Relaxed; a set bit says that a thread follows the cell, and no thread writes
        // the cells' words.
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
                // SAFETY: a cell of the graph (the caller says), of four words.
                let edges = unsafe { *((self.base + ready) as *const [usize; 2]) };
                for cell in edges {
                    self.found(cell);
                }
            }
        }
    }
}

/// First in, first out; a value replaces the oldest.
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
    // SAFETY: a prefetch accesses nothing as far as the program can tell.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address as *const i8) };
}

/// Memory in huge pages, where there are any.
struct Huge<T> {
    memory: *mut T,
    len: usize,
    layout: Layout,
}

impl<T> Huge<T> {
    /// # Safety
    /// Zeroed memory is a `T`, and a `T` needs no dropping.
    unsafe fn zeroed(len: usize) -> Huge<T> {
        const PAGE: usize = 2 << 20;
        let bytes = (len * size_of::<T>()).max(1).next_multiple_of(PAGE);
        let layout = Layout::from_size_align(bytes, PAGE).unwrap_or_else(|_| {
            unreachable!("a graph's tables are smaller than the address space")
        });
        // SAFETY: the layout is not empty; the advice changes nothing but speed; all bytes are
        // written, and zeroes are a `T` (the caller says).
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
        // SAFETY: `zeroed` made so many.
        unsafe { std::slice::from_raw_parts(self.memory, self.len) }
    }
}

impl<T> DerefMut for Huge<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: `zeroed` made so many, and they are this value's alone.
        unsafe { std::slice::from_raw_parts_mut(self.memory, self.len) }
    }
}

impl<T> Drop for Huge<T> {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; what is in it needs no dropping.
        unsafe { dealloc(self.memory.cast(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_table_leads_to_is_marked_once_and_nothing_else() {
        // SAFETY: plain numbers.
        let mut cells = unsafe { Huge::<usize>::zeroed(4 * 100) };
        let at = |n: usize, cells: &Huge<usize>| cells[4 * n..].as_ptr() as usize;
        // Cells 0 to 59 are a list from the last to the first, with an edge to the middle each;
        // nothing leads to 60 on.
        for n in 1..60 {
            let edges = [at(n - 1, &cells), at(n / 2, &cells)];
            cells[4 * n..4 * n + 2].copy_from_slice(&edges);
        }
        let all = at(0, &cells)..at(99, &cells) + 32;
        let mut limit = LimitMarker::new(all, 100, 2);
        for threads in [1, 2, 1] {
            // SAFETY: the edges above.
            let marking = unsafe { limit.mark(&[at(59, &cells), 0, at(3, &cells)], threads) };
            assert_eq!((marking.cells, marking.bytes), (60, 60 * 32));
        }
    }
}
