//! The limit program of allocation: a bare heap with bump allocation and a bitmap, for cells of one
//! size and one thread.
//!
//! It does the work that any heap of this kind must do and nothing else. The heap finds free cells
//! by their bits, clears a run of them and allocates from it by moving a cursor. The cursor is in
//! memory, as for any bump allocation that a signal may interrupt. When as much has been allocated
//! as was live (but at least the minimum, as in Urge's pacer), the thread itself marks with a stack
//! of cells and a second bitmap, from its registers and its stack word by word. Then the bitmaps
//! swap, and sweeping is the search for the next run. The heap has no other sizes, kinds, spans,
//! threads, signals, barriers or limits, and keeps memory that was touched. Its pages are huge
//! where possible.
//!
//! The order of marking matters more here than prefetching. A tree's node is allocated right after
//! its second subtree, so a marker that follows the second subtree first walks through memory
//! downwards.

use std::arch::asm;
use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};
use std::time::Duration;

use crate::report::thread_time;

/// The largest run, in bytes of cells, as in Urge. Larger cells have runs of one word of bits.
const RUN: usize = 8 << 10;
/// Bytes that are allocated before the first collection.
const MINIMUM: usize = 4 << 20;
/// Bytes of address space for cells.
const RESERVE: usize = 16 << 30;
/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// The figures of all collections.
#[derive(Clone, Copy, Debug, Default)]
pub struct Collections {
    /// The number of collections.
    pub count: u64,
    /// The processor time of the collections.
    pub time: Duration,
    /// The cells that the collections marked.
    pub marked: u64,
}

/// A node: the addresses of two other nodes, or two nulls.
pub type Node = [usize; 2];

/// The source of nodes.
pub trait Cells {
    /// Allocates a zeroed cell that lives as long as this thread's stack or registers lead to it.
    /// `None`: there is no room.
    fn node(&self) -> Option<NonNull<Node>>;
}

/// A heap of cells of `CELL` bytes. `CELL` is a multiple of 16, and a cell's first two words are
/// edges.
pub struct LimitHeap<const CELL: usize> {
    cursor: Cell<usize>,
    limit: Cell<usize>,
    rest: RefCell<Rest<CELL>>,
}

struct Rest<const CELL: usize> {
    memory: Mapping,
    allocated: Mapping,
    marked: Mapping,
    /// The word of bits at which the search for free cells continues.
    at: usize,
    /// One past the last word that was ever used.
    top: usize,
    /// Cells that may be allocated before the next collection.
    room: usize,
    /// The least `room` of a heap without live cells.
    minimum: usize,
    /// Marked cells that are to be followed.
    stack: Vec<usize>,
    /// The upper end of the thread's stack that is scanned.
    bottom: usize,
    collections: Collections,
}

impl<const CELL: usize> LimitHeap<CELL> {
    /// An empty heap for the calling thread. The thread's stack below `bottom` is scanned.
    ///
    /// # Errors
    /// The system's error if it has no address space for the heap.
    pub fn new(bottom: *const usize) -> std::io::Result<LimitHeap<CELL>> {
        LimitHeap::build(bottom as usize, MINIMUM)
    }

    /// An empty heap without roots. After each `round` bytes all cells are dead.
    ///
    /// # Errors
    /// As for [`new`](LimitHeap::new).
    pub fn without_roots(round: usize) -> std::io::Result<LimitHeap<CELL>> {
        LimitHeap::build(0, round)
    }

    fn build(bottom: usize, minimum: usize) -> std::io::Result<LimitHeap<CELL>> {
        const { assert!(CELL >= 16 && CELL.is_multiple_of(16)) };
        let bits = (RESERVE / CELL).div_ceil(64) * 8;
        let rest = Rest {
            memory: Mapping::new(RESERVE)?,
            allocated: Mapping::new(bits)?,
            marked: Mapping::new(bits)?,
            at: 0,
            top: 0,
            room: minimum / CELL,
            minimum: minimum / CELL,
            stack: Vec::new(),
            bottom,
            collections: Collections::default(),
        };
        Ok(LimitHeap {
            cursor: Cell::new(0),
            limit: Cell::new(0),
            rest: RefCell::new(rest),
        })
    }

    /// The figures of all collections so far.
    pub fn collections(&self) -> Collections {
        self.rest.borrow().collections
    }

    /// Allocates a zeroed cell. `None`: the address space is full.
    #[inline(always)]
    pub fn alloc(&self) -> Option<NonNull<u8>> {
        let cell = self.cursor.get();
        let next = cell + CELL;
        if next > self.limit.get() {
            return self.refill();
        }
        self.cursor.set(next);
        // The fence keeps the cursor's store before the cell's first store, as Urge needs it: a
        // signal may come between the two.
        compiler_fence(Ordering::SeqCst);
        // SAFETY: an empty run has no room, so the cursor is the address of a cell.
        Some(unsafe { NonNull::new_unchecked(cell as *mut u8) })
    }

    #[cold]
    #[inline(never)]
    fn refill(&self) -> Option<NonNull<u8>> {
        let mut rest = self.rest.borrow_mut();
        if rest.room == 0 {
            rest.collect();
        }
        let (start, end) = rest.run()?;
        self.cursor.set(start + CELL);
        self.limit.set(end);
        NonNull::new(start as *mut u8)
    }
}

impl Cells for LimitHeap<{ size_of::<Node>() }> {
    #[inline(always)]
    fn node(&self) -> Option<NonNull<Node>> {
        self.alloc().map(NonNull::cast)
    }
}

impl<const CELL: usize> Rest<CELL> {
    /// The largest number of words of bits in a run.
    const RUN_WORDS: usize = if 64 * CELL < RUN { RUN / 64 / CELL } else { 1 };

    /// The next free cells, zeroed: the free cells in a word, or up to `RUN_WORDS` words whose
    /// cells are all free.
    fn run(&mut self) -> Option<(usize, usize)> {
        let words = RESERVE / CELL / 64;
        let mut word = self.at;
        while word < words && self.bits(word) == u64::MAX {
            word += 1;
        }
        if word == words {
            return None;
        }
        let bits = self.bits(word);
        let (first, count);
        if bits == 0 {
            let mut end = word;
            while end < words && end - word < Self::RUN_WORDS && self.bits(end) == 0 {
                self.set_bits(end, u64::MAX);
                end += 1;
            }
            (first, count) = (word * 64, (end - word) * 64);
            self.at = end;
        } else {
            let free = bits.trailing_ones() as usize;
            let length = ((bits >> free).trailing_zeros() as usize).min(64 - free);
            self.set_bits(word, bits | (u64::MAX >> (64 - length)) << free);
            (first, count) = (word * 64 + free, length);
            self.at = word;
        }
        self.top = self.top.max((first + count).div_ceil(64));
        self.room = self.room.saturating_sub(count);
        let start = self.memory.base() + first * CELL;
        // SAFETY: the cells are free and lie in the mapping.
        unsafe { (start as *mut u8).write_bytes(0, count * CELL) };
        Some((start, start + count * CELL))
    }

    #[inline(always)]
    fn bits(&self, word: usize) -> u64 {
        // SAFETY: callers pass words of the bitmap.
        unsafe { *(self.allocated.base() as *const u64).add(word) }
    }

    #[inline(always)]
    fn set_bits(&mut self, word: usize, bits: u64) {
        // SAFETY: callers pass words of the bitmap, and `self` is exclusive.
        unsafe { *(self.allocated.base() as *mut u64).add(word) = bits };
    }

    #[inline(never)]
    fn collect(&mut self) {
        let begun = thread_time();
        let mut registers = [0usize; 6];
        // These are the registers that a function preserves for its caller.
        // SAFETY: six stores into an array of six words.
        unsafe {
            asm!(
                "mov [{0}], rbx", "mov [{0} + 8], rbp", "mov [{0} + 16], r12",
                "mov [{0} + 24], r13", "mov [{0} + 32], r14", "mov [{0} + 40], r15",
                in(reg) registers.as_mut_ptr(), options(nostack, preserves_flags)
            );
            (self.marked.base() as *mut u64).write_bytes(0, self.top);
        }
        let mut live = 0;
        let mut word = registers.as_ptr();
        while (word as usize) < self.bottom {
            // SAFETY: the array, and everything from it to the caller's frame, is this thread's
            // stack.
            let value = unsafe { word.read_volatile() };
            live += self.mark(value);
            word = word.wrapping_add(1);
        }
        std::mem::swap(&mut self.allocated, &mut self.marked);
        self.at = 0;
        self.room = live.max(self.minimum.saturating_sub(live));
        self.collections.count += 1;
        self.collections.time += thread_time().saturating_sub(begun);
        self.collections.marked += live as u64;
    }

    /// Marks the cells that a word leads to, if it names an allocated cell. Gives their number.
    fn mark(&mut self, word: usize) -> usize {
        let offset = word.wrapping_sub(self.memory.base());
        if offset >= self.top * 64 * CELL
            || self.bits(offset / CELL / 64) >> (offset / CELL % 64) & 1 == 0
        {
            return 0;
        }
        let mut marked = 0;
        self.found(offset / CELL, &mut marked);
        while let Some(cell) = self.stack.pop() {
            // SAFETY: the cell is marked, so its words are null or name cells.
            let edges = unsafe { *((self.memory.base() + cell * CELL) as *const Node) };
            for edge in edges {
                if edge != 0 {
                    self.found((edge - self.memory.base()) / CELL, &mut marked);
                }
            }
        }
        marked
    }

    #[inline(always)]
    fn found(&mut self, cell: usize, marked: &mut usize) {
        // SAFETY: a cell of the mapping has its bit in the bitmap.
        let word = unsafe { &mut *(self.marked.base() as *mut u64).add(cell / 64) };
        let bit = 1 << (cell % 64);
        if *word & bit == 0 {
            *word |= bit;
            *marked += 1;
            self.stack.push(cell);
        }
    }
}

/// Zeroed address space, with huge pages where possible.
struct Mapping {
    start: *mut libc::c_void,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize) -> std::io::Result<Mapping> {
        let bytes = bytes + HUGE;
        // SAFETY: the mapping is new and anonymous. The advice changes only speed.
        unsafe {
            let start = libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            );
            if start == libc::MAP_FAILED {
                return Err(std::io::Error::last_os_error());
            }
            libc::madvise(start, bytes, libc::MADV_HUGEPAGE);
            Ok(Mapping { start, bytes })
        }
    }

    #[inline(always)]
    fn base(&self) -> usize {
        (self.start as usize).next_multiple_of(HUGE)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` mapped the memory, and no cell of the heap is used any more.
        unsafe { libc::munmap(self.start, self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_is_zero_and_allocated_once_a_round() {
        const ROUND: usize = 64 << 10;
        let heap = LimitHeap::<16>::without_roots(ROUND).expect("address space");
        for _ in 0..3 {
            let alloc = |_| heap.alloc().expect("room").cast::<[u64; 2]>();
            let mut cells: Vec<_> = (0..ROUND / 16).map(alloc).collect();
            for cell in &cells {
                // SAFETY: a cell of 16 bytes that only this test has.
                let words = unsafe { cell.replace([1; 2]) };
                assert_eq!(words, [0; 2]);
            }
            cells.sort_unstable();
            assert!(cells.windows(2).all(|pair| pair[0] < pair[1]));
        }
        assert_eq!(heap.collections().count, 2);
    }
}
