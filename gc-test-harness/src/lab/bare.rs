//! The limit program of binary trees: a bare bump-and-bitmap heap of 16-byte cells with two edges
//! each, for one thread.
//!
//! It does what any heap of this kind must do and nothing else. Free cells are found by their bits,
//! cleared a run at a time and bumped through, the cursor in memory as that of every bump that may
//! be interrupted. When as much has been handed out as was live (at least 4 MiB in all, as Urge's
//! pacer has it), the thread itself marks, from its registers and its stack word by word, with a
//! stack of cells and a second bitmap; then the bitmaps swap, and sweeping is to find the next run.
//! There are no other sizes, kinds, spans, threads, signals, barriers or limits, and memory once
//! touched is kept. Pages are huge where they can be.
//!
//! The order of marking matters more than prefetching here: a node is allocated right after its
//! second subtree, so going that way first runs through memory downwards. It takes half the time of
//! the other order; a ring of prefetched cells on top of it gained nothing.

use std::arch::asm;
use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};
use std::time::Duration;

use super::report::thread_time;
use super::trees::{Cells, Node};

/// Bytes a cell and a bit.
const CELL: usize = size_of::<Node>();
/// Words of bits that a run takes at most: 8 KiB of cells, as in Urge.
const RUN: usize = 8;
/// What a heap may hold before it is collected for the first time.
const MINIMUM: usize = 4 << 20;
/// Bytes of address space for cells.
const RESERVE: usize = 16 << 30;
/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// What the collections took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Collections {
    /// How many there were.
    pub count: u64,
    /// Their processor time.
    pub time: Duration,
    /// The cells that they marked.
    pub marked: u64,
}

/// See the module's head.
pub(super) struct Bare {
    cursor: Cell<usize>,
    limit: Cell<usize>,
    rest: RefCell<Rest>,
}

struct Rest {
    memory: Mapping,
    allocated: Mapping,
    marked: Mapping,
    /// The next word of bits to look at.
    at: usize,
    /// One past the last word that was ever used.
    top: usize,
    /// Cells that may be handed out before the next collection.
    room: usize,
    /// Cells to be followed.
    stack: Vec<usize>,
    /// The end of the thread's stack, as far as it is scanned.
    bottom: usize,
    collections: Collections,
}

impl Bare {
    /// An empty heap for this thread. Of its stack, all is scanned that lies below `bottom`.
    ///
    /// # Errors
    /// The system's, if it has no address space for it.
    pub(super) fn new(bottom: *const usize) -> std::io::Result<Bare> {
        let bits = RESERVE / CELL / 8;
        let rest = Rest {
            memory: Mapping::new(RESERVE)?,
            allocated: Mapping::new(bits)?,
            marked: Mapping::new(bits)?,
            at: 0,
            top: 0,
            room: MINIMUM / CELL,
            stack: Vec::new(),
            bottom: bottom as usize,
            collections: Collections::default(),
        };
        Ok(Bare {
            cursor: Cell::new(0),
            limit: Cell::new(0),
            rest: RefCell::new(rest),
        })
    }

    pub(super) fn collections(&self) -> Collections {
        self.rest.borrow().collections
    }

    #[cold]
    #[inline(never)]
    fn refill(&self) -> Option<NonNull<Node>> {
        let mut rest = self.rest.borrow_mut();
        if rest.room == 0 {
            rest.collect();
        }
        let (start, end) = rest.run()?;
        self.cursor.set(start + CELL);
        self.limit.set(end);
        NonNull::new(start as *mut Node)
    }
}

impl Cells for Bare {
    #[inline(always)]
    fn node(&self) -> Option<NonNull<Node>> {
        let cell = self.cursor.get();
        let next = cell + CELL;
        if next > self.limit.get() {
            return self.refill();
        }
        self.cursor.set(next);
        compiler_fence(Ordering::SeqCst);
        // SAFETY: an empty run has no room, so the cursor is a cell.
        Some(unsafe { NonNull::new_unchecked(cell as *mut Node) })
    }
}

impl Rest {
    /// The next free cells, zeroed: the gap in a word, or up to [`RUN`] words that are wholly free.
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
            while end < words && end - word < RUN && self.bits(end) == 0 {
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
        // SAFETY: free cells of the mapping.
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
        // SAFETY: as above.
        unsafe { *(self.allocated.base() as *mut u64).add(word) = bits };
    }

    #[inline(never)]
    fn collect(&mut self) {
        let begun = thread_time();
        let mut registers = [0usize; 6];
        // What a caller may keep in registers over a call.
        // SAFETY: six stores into an array of six.
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
            // SAFETY: the array and everything between it and the caller's frame are this thread's
            // stack.
            let value = unsafe { word.read_volatile() };
            live += self.mark(value);
            word = word.wrapping_add(1);
        }
        std::mem::swap(&mut self.allocated, &mut self.marked);
        self.at = 0;
        self.room = live.max((MINIMUM / CELL).saturating_sub(live));
        self.collections.count += 1;
        self.collections.time += thread_time().saturating_sub(begun);
        self.collections.marked += live as u64;
    }

    /// Marks what a word leads to, if it names an allocated cell; how many cells that is.
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
            // SAFETY: a marked cell, whose words are null or cells.
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
        // SAFETY: cells of the mapping have their bits in the bitmap.
        let word = unsafe { &mut *(self.marked.base() as *mut u64).add(cell / 64) };
        let bit = 1 << (cell % 64);
        if *word & bit == 0 {
            *word |= bit;
            *marked += 1;
            self.stack.push(cell);
        }
    }
}

/// Zeroed address space whose pages are huge where they can be.
struct Mapping {
    start: *mut libc::c_void,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize) -> std::io::Result<Mapping> {
        let bytes = bytes + HUGE;
        // SAFETY: a new anonymous mapping; the advice changes nothing but speed.
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
        // SAFETY: mapped by `new`, and the heap's cells are nobody's any more.
        unsafe { libc::munmap(self.start, self.bytes) };
    }
}
