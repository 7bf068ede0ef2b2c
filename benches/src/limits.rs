//! The limit programs: the least that an allocator and a marker of this kind must do, and nothing
//! else.

use std::sync::atomic::{Ordering, compiler_fence};
use std::time::{Duration, Instant};

/// Bytes that are cleared and bumped through at a time, as in the heap.
const RUN: usize = 8 << 10;

/// A bare bump-and-bitmap heap: one size of cell, one bit for each, runs of free cells found by
/// their bits and cleared; when there are none left, everything counts as dead.
///
/// The cursor is in memory, as that of every bump that may be interrupted; and a run is the bit
/// words of it, set at once.
pub struct Bump {
    run: Box<Run>,
    memory: Vec<u64>,
    allocated: Vec<u64>,
    /// The next word of `allocated` to look at.
    at: usize,
    bytes: usize,
}

struct Run {
    cursor: usize,
    limit: usize,
}

impl Bump {
    /// Cells of so many bytes (a power of two, 16 to 128) in so many bytes of memory (a multiple of
    /// 64 KiB).
    pub fn new(bytes: usize, memory: usize) -> Bump {
        assert!(
            bytes.is_power_of_two()
                && (16..=128).contains(&bytes)
                && memory.is_multiple_of(64 << 10)
        );
        Bump {
            run: Box::new(Run {
                cursor: 0,
                limit: 0,
            }),
            memory: vec![0; memory / 8],
            allocated: vec![0; memory / bytes / 64],
            at: 0,
            bytes,
        }
    }

    /// A zeroed cell.
    #[inline(always)]
    pub fn alloc<const BYTES: usize>(&mut self) -> usize {
        let cell = self.run.cursor;
        let next = cell + BYTES;
        if next > self.run.limit {
            return self.refill();
        }
        self.run.cursor = next;
        compiler_fence(Ordering::SeqCst);
        cell
    }

    #[cold]
    #[inline(never)]
    fn refill(&mut self) -> usize {
        let words = RUN / self.bytes / 64;
        let from = loop {
            match self.allocated[self.at..].iter().position(|bits| *bits == 0) {
                Some(more) => break self.at + more,
                None => {
                    self.allocated.fill(0);
                    self.at = 0;
                }
            }
        };
        let to = self.allocated.len().min(from + words);
        let to = self.allocated[from..to]
            .iter()
            .position(|bits| *bits != 0)
            .map_or(to, |more| from + more);
        self.allocated[from..to].fill(u64::MAX);
        self.at = to;
        let start = self.memory.as_mut_ptr() as usize + from * 64 * self.bytes;
        let length = (to - from) * 64 * self.bytes;
        // SAFETY: the words' cells lie in the vector.
        unsafe { std::ptr::write_bytes(start as *mut u8, 0, length) };
        *self.run = Run {
            cursor: start + self.bytes,
            limit: start + length,
        };
        start
    }
}

/// A bare prefetching mark loop over cells of 32 bytes whose first two words are references or
/// null: no kinds, no side tables but a bit for each 32 bytes, the graph's shape known to the loop.
/// Gives its time; everything must be reachable.
pub fn bare_mark(cells: &[usize], roots: &[usize]) -> Duration {
    const AHEAD: usize = 16;
    let base = cells.iter().copied().min().unwrap_or(0);
    let top = cells.iter().copied().max().unwrap_or(0);
    let mut bits = vec![0u64; (top - base) / 32 / 64 + 1];
    let mut stack: Vec<usize> = Vec::with_capacity(cells.len());
    let mut ring = [0usize; AHEAD];
    let (mut head, mut tail, mut seen) = (0usize, 0usize, 0usize);
    let push = |address: usize, bits: &mut [u64], stack: &mut Vec<usize>| {
        if address != 0 {
            let bit = (address - base) / 32;
            let word = &mut bits[bit / 64];
            if *word & (1 << (bit % 64)) == 0 {
                *word |= 1 << (bit % 64);
                stack.push(address);
            }
        }
    };
    let start = Instant::now();
    for &root in roots {
        push(root, &mut bits, &mut stack);
    }
    loop {
        while head - tail < AHEAD
            && let Some(cell) = stack.pop()
        {
            // SAFETY: a prefetch.
            unsafe {
                std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
                    cell as *const i8,
                )
            };
            ring[head % AHEAD] = cell;
            head += 1;
        }
        if head == tail {
            break;
        }
        let cell = ring[tail % AHEAD];
        tail += 1;
        seen += 1;
        for word in 0..2 {
            // SAFETY: a live cell of four words.
            let target = unsafe { *(cell as *const usize).add(word) };
            push(target, &mut bits, &mut stack);
        }
    }
    let time = start.elapsed();
    assert_eq!(seen, cells.len(), "the graph is reachable");
    time
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bare_bump_hands_out_zeroed_cells_each_once_a_round() {
        let mut heap = Bump::new(16, 64 << 10);
        for _ in 0..3 {
            let mut cells: Vec<usize> = (0..4096).map(|_| heap.alloc::<16>()).collect();
            for &cell in &cells {
                // SAFETY: a cell of 16 bytes.
                let words = unsafe { &mut *(cell as *mut [u64; 2]) };
                assert_eq!(std::mem::replace(words, [1; 2]), [0; 2]);
            }
            cells.sort_unstable();
            assert!(cells.windows(2).all(|pair| pair[1] - pair[0] >= 16));
        }
    }

    #[test]
    fn the_bare_mark_loop_reaches_all() {
        let mut cells = vec![[0usize; 4]; 100];
        let base = cells.as_ptr() as usize;
        let addresses: Vec<usize> = (0..100).map(|n| base + 32 * n).collect();
        for n in 1..100 {
            cells[n][0] = addresses[n - 1];
            cells[n][1] = addresses[n / 2];
        }
        bare_mark(&addresses, &addresses[99..]);
    }
}
