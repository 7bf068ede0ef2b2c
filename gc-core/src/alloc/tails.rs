//! What a mutator has of its runs that its program has not allocated.

use super::local::LocalAllocator;
use super::run::Run;
use crate::fault::planted;
use crate::heap::{Class, GRANULE, PAGE, Space};
use crate::marked::Marked;

/// The cells of a site that are a mutator's and that its program has not allocated: those
/// `[from, to)` of a span are the rest of its run, and in the span's bitmap word `word` it has
/// `gaps`.
struct Tail {
    span: usize,
    class: &'static Class,
    from: usize,
    to: usize,
    word: usize,
    gaps: u64,
}
impl Tail {
    fn cells(&self) -> usize {
        self.to - self.from + self.gaps.count_ones() as usize
    }

    /// The first of the cells.
    fn first(&self) -> usize {
        if self.from < self.to {
            return self.from;
        }
        (self.word * 64 + self.gaps.trailing_zeros() as usize) / self.class.stride()
    }
}
impl LocalAllocator {
    /// Empties the run of one site; the number of cells that were left in it and in gaps that were
    /// taken with it. They are free again, except while marking: then they stay black and are found
    /// free by the next cycle.
    pub(super) fn retire_tail(&self, space: &Space, site: usize) -> u64 {
        let Some(tail) = self.tail(space, site) else {
            return 0;
        };
        // SAFETY: the caller owns this allocator, under `no_preempt`.
        let (run, own) = unsafe { (&mut *self.runs.at(site), &mut *self.own.at(site)) };
        if !space.is_marking() {
            let allocated = space.allocated_bits().span(tail.span, tail.class);
            allocated.clear_cells_alone(tail.from, tail.to);
            allocated.clear_in_word_alone(own.word as usize, own.gaps);
            space.take_back(tail.cells(), tail.cells() * tail.class.size as usize);
            own.position = tail.first() as u32;
        }
        own.gaps = 0;
        *run = Run {
            cursor: 0,
            limit: 0,
        };
        tail.cells() as u64
    }

    /// What a mutator has of a site that no program has yet. By the owner of this allocator under
    /// `no_preempt`, or while it is stopped.
    fn tail(&self, space: &Space, site: usize) -> Option<Tail> {
        // SAFETY: the arrays have MAX_SITES entries, and nobody writes these now (see above).
        let (run, own) = unsafe { (*self.runs.at(site), *self.own.at(site)) };
        if run.cursor >= run.limit && own.gaps == 0 {
            return None;
        }
        let class = space.sites.at(site).class();
        let span = own.span as usize - 1;
        let start = space.base() + span * PAGE;
        let (from, to) = if run.cursor < run.limit {
            let last = class.index_of(run.limit - 1 - start);
            (class.index_of(run.cursor - start), last + 1)
        } else {
            (0, 0)
        };
        Some(Tail {
            span,
            class,
            from,
            to,
            word: own.word as usize,
            gaps: own.gaps,
        })
    }

    /// Stop 1, world stopped: marks the unallocated tail of every run in a mutator's array, and the
    /// gaps taken with it (rule 2 of the fast path). Returns what they hold: no marker counts it.
    ///
    /// # Safety
    /// this allocator is the array of a stopped mutator of this heap.
    pub unsafe fn blacken_tails(&self, space: &Space) -> Marked {
        let mut tails = Marked::default();
        for site in self.sites() {
            let Some(tail) = self.tail(space, site) else {
                continue;
            };
            let marked = space.marked_bits().span(tail.span, tail.class);
            marked.set_cells(tail.from, tail.to);
            if tail.gaps != 0 && !planted("white-gaps") {
                marked.set_in_word(tail.word, tail.gaps);
            }
            if !planted("old-tails") {
                space.note_allocated_black(tail.span, tail.class, tail.from, tail.to);
                space.note_allocated_black_in_word(tail.span, tail.word, tail.gaps);
            }
            tails.cells += tail.cells() as u64;
            tails.bytes += (tail.cells() * tail.class.size as usize) as u64;
        }
        tails
    }

    /// World stopped: calls `f` with the address of each cell that a mutator has and its program
    /// has not.
    ///
    /// # Safety
    /// As for [`blacken_tails`](Self::blacken_tails).
    pub unsafe fn for_each_unallocated(&self, space: &Space, f: &mut dyn FnMut(usize)) {
        for site in self.sites() {
            let Some(tail) = self.tail(space, site) else {
                continue;
            };
            let start = space.base() + tail.span * PAGE;
            for cell in tail.from..tail.to {
                f(start + cell * tail.class.size as usize);
            }
            let mut gaps = tail.gaps;
            while gaps != 0 {
                f(start + (tail.word * 64 + gaps.trailing_zeros() as usize) * GRANULE);
                gaps &= gaps - 1;
            }
        }
    }

    /// The same for what a mutator owns, in the stop in which the bitmaps have swapped.
    ///
    /// # Safety
    /// this allocator is the array of a stopped mutator of this heap.
    pub(crate) unsafe fn keep_owned(&self, space: &Space) {
        for site in self.sites() {
            if let Some(span) = (self.own_span(site) as usize).checked_sub(1)
                && !planted("owned-unkept")
            {
                space.keep_span(span, space.sites.at(site).class());
            }
        }
    }
}
