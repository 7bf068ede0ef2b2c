//! Tails: the cells that a mutator owns and has not allocated. A stop marks them, and the mutator
//! gives them back when it retires a run.

use super::local::LocalAllocator;
use super::run::Run;
use crate::heap::{Class, GRANULE, PAGE, Space};
use crate::marked::Marked;

/// The cells of a site that a mutator owns and its program has not allocated: the cells `[from,
/// to)` of a span, which are the rest of its run, and the `holes` in the bitmap word `word` of the
/// span.
struct Tail {
    span: usize,
    class: &'static Class,
    from: usize,
    to: usize,
    word: usize,
    holes: u64,
}
impl Tail {
    fn cells(&self) -> usize {
        self.to - self.from + self.holes.count_ones() as usize
    }

    /// The first of the cells.
    fn first(&self) -> usize {
        if self.from < self.to {
            return self.from;
        }
        (self.word * 64 + self.holes.trailing_zeros() as usize) / self.class.stride()
    }
}
impl LocalAllocator {
    /// Empties the run of one site, and returns the number of cells that were left in it and in the
    /// holes that the mutator owns. They are free again, except while marking: then they stay
    /// black, and the next cycle finds them dead.
    pub(super) fn retire_tail(&self, space: &Space, site: usize) -> u64 {
        let Some(tail) = self.tail(space, site) else {
            return 0;
        };
        // SAFETY: the caller owns this allocator, under `no_preempt`.
        let (run, owned) = unsafe { (&mut *self.runs.at(site), &mut *self.owned.at(site)) };
        if !space.is_marking() {
            let allocated = space.allocated_bits().span(tail.span, tail.class);
            allocated.clear_cells_alone(tail.from, tail.to);
            allocated.clear_in_word_alone(owned.word as usize, owned.holes);
            space.take_back(tail.cells(), tail.cells() * tail.class.size as usize);
            owned.position = tail.first() as u32;
        }
        owned.holes = 0;
        *run = Run {
            cursor: 0,
            limit: 0,
        };
        tail.cells() as u64
    }

    /// The tail of one site. By the owner of this allocator under `no_preempt`, or while it is
    /// stopped.
    fn tail(&self, space: &Space, site: usize) -> Option<Tail> {
        // SAFETY: the arrays have MAX_SITES elements, and no thread writes these now (see above).
        let (run, owned) = unsafe { (*self.runs.at(site), *self.owned.at(site)) };
        if run.cursor >= run.limit && owned.holes == 0 {
            return None;
        }
        let class = space.sites.at(site).class();
        let span = owned.span as usize - 1;
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
            word: owned.word as usize,
            holes: owned.holes,
        })
    }

    /// Stop 1, world stopped: marks the tail of each run and the holes taken with it (rule 2 of the
    /// fast path). Returns the cells and bytes that it marked, since no marker counts them.
    ///
    /// # Safety
    /// This allocator belongs to a stopped mutator of this heap.
    pub unsafe fn blacken_tails(&self, space: &Space) -> Marked {
        let mut tails = Marked::default();
        for site in self.sites() {
            let Some(tail) = self.tail(space, site) else {
                continue;
            };
            let marked = space.marked_bits().span(tail.span, tail.class);
            marked.set_cells(tail.from, tail.to);
            if tail.holes != 0 && seam::marks_holes() {
                marked.set_in_word(tail.word, tail.holes);
            }
            if seam::notes_tails() {
                space.note_allocated_black(tail.span, tail.class, tail.from, tail.to);
                space.note_allocated_black_in_word(tail.span, tail.word, tail.holes);
            }
            tails.cells += tail.cells() as u64;
            tails.bytes += (tail.cells() * tail.class.size as usize) as u64;
        }
        tails
    }

    /// World stopped: calls `f` with the address of each cell that a mutator owns and its program
    /// has not allocated.
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
            let mut holes = tail.holes;
            while holes != 0 {
                f(start + (tail.word * 64 + holes.trailing_zeros() as usize) * GRANULE);
                holes &= holes - 1;
            }
        }
    }

    /// Keeps the marks of the spans that a mutator owns, in the stop in which the bitmaps swapped.
    /// See `heap/space/sticky.rs`.
    ///
    /// # Safety
    /// This allocator belongs to a stopped mutator of this heap.
    pub(crate) unsafe fn keep_owned(&self, space: &Space) {
        for site in self.sites() {
            if let Some(span) = (self.owned_span(site) as usize).checked_sub(1)
                && seam::keeps_marks()
            {
                space.keep_span(span, space.sites.at(site).class());
            }
        }
    }
}

mod seam {
    use crate::fault::Fault;

    pub(super) fn marks_holes() -> bool {
        !Fault::WhiteHoles.planted()
    }

    /// Notes the tails as allocated black.
    pub(super) fn notes_tails() -> bool {
        !Fault::OldTails.planted()
    }

    pub(super) fn keeps_marks() -> bool {
        !Fault::OwnedUnkept.planted()
    }
}
