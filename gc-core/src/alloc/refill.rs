//! Refills a run that is used up.
//!
//! A refill takes free cells of the mutator's span, clears them, marks them if a collection marks,
//! sets their allocated bits and installs the run, in this order. A span without free cells goes to
//! the site's list of full spans, and the mutator takes the next one. Each call is one bounded
//! piece of work.

use std::sync::atomic::Ordering;

use super::local::{LocalAllocator, OwnedSpan};
use super::review::REFILL_PIECE;
use super::run::{RUN_BYTES, Refill, Run};
use crate::error::AllocError;
use crate::heap::{Class, GRANULE, PAGE, Site, Space, take_first_run};
use crate::memory::prefetch::prefetch;

/// The size of a cell from which clearing it takes longer than its first cache miss.
const SMALL_CELL: u32 = 128;
/// Granules of a cache line, and that many bits.
const LINE_GRANULES: usize = 64 / GRANULE;
const LINE_BITS: u64 = (1 << LINE_GRANULES) - 1;
/// Spans that one piece of a refill searches. To search a full span of the smallest cells takes 64
/// words.
const SPANS_PER_PIECE: usize = 16;
impl LocalAllocator {
    /// Fills the mutator's run of `site`, if it is used up. One bounded piece of work: under
    /// `no_preempt`, by the owner of this allocator.
    ///
    /// # Errors
    /// [`AllocError::HeapLimit`] or [`AllocError::Exhausted`]: a collection may help. All that the
    /// last one freed has been swept by then.
    pub fn refill(&self, space: &Space, site: Site) -> Result<Refill, AllocError> {
        if self.next_run(space, site) {
            return Ok(Refill::Ready);
        }
        let index = site.index();
        // SAFETY: as in `next_run`.
        unsafe { (*self.owned.at(index)).refilled = space.swap_now() };
        if self.is_review_due(space) {
            self.review_piece(space, REFILL_PIECE);
        }
        // SAFETY: as in `next_run`.
        let (run, owned) = unsafe { (&mut *self.runs.at(index), &mut *self.owned.at(index)) };
        let mut most = (RUN_BYTES / site.size()).max(1);
        if let Some(every) = space.collect_every {
            match self.left_until_due(space, every) {
                0 => return Ok(Refill::Due),
                left => most = most.min(usize::try_from(left).unwrap_or(usize::MAX)),
            }
        }
        let entry = space.sites.at(index);
        let class = entry.class();
        for _ in 0..SPANS_PER_PIECE {
            if owned.span == 0 {
                match space.next_span(entry, &self.span_reserve) {
                    Ok((span, is_new)) => {
                        self.enter(index, owned);
                        *owned = OwnedSpan {
                            span: span as u32 + 1,
                            position: 0,
                            prefetched: 0,
                            word: 0,
                            holes: 0,
                            ..*owned
                        };
                        if is_new && let Some(cold) = space.cold(span, class.pages as usize) {
                            return Ok(Refill::Cold(cold));
                        }
                        prefetch_holes(space, owned, class);
                    }
                    Err(no) => return space.after_sweep(no, site.size()).map(|()| Refill::Again),
                }
            }
            let found = fill(space, run, owned, class, most);
            if found != 0 {
                prefetch_holes(space, owned, class);
                if space.collect_every.is_some() {
                    self.taken.fetch_add(found as u64, Ordering::Relaxed);
                }
                return Ok(Refill::Ready);
            }
            let span = core::mem::take(&mut owned.span) as usize - 1;
            space.lists(entry).full.push(space.records(), span);
        }
        Ok(Refill::Again)
    }

    /// Makes the next hole that the mutator owns its run of `site`, if the run is used up. `false`:
    /// there is no such hole. Under `no_preempt`, by the owner of this allocator.
    #[inline]
    pub fn next_run(&self, space: &Space, site: Site) -> bool {
        let index = site.index();
        // SAFETY: the caller owns this allocator, and under `no_preempt` the collector does not
        // read it.
        let (run, owned) = unsafe { (&mut *self.runs.at(index), &mut *self.owned.at(index)) };
        run.cursor + site.size() <= run.limit || next_hole(space, run, owned, site.size())
    }

    /// `collect_every`: how many cells the mutator may still allocate. Gives back all its tails
    /// first, so that the cells it took are the cells it allocated. At 0 the count starts anew, and
    /// the caller collects.
    pub(crate) fn left_until_due(&self, space: &Space, every: u64) -> u64 {
        let tails: u64 = self.sites().map(|site| self.retire_tail(space, site)).sum();
        let allocated = self.taken.load(Ordering::Relaxed) - tails;
        let left = every.saturating_sub(allocated);
        self.taken
            .store(if left == 0 { 0 } else { allocated }, Ordering::Relaxed);
        left
    }

    /// `collect_every`: counts a large object.
    pub(crate) fn count_large(&self) {
        self.taken.fetch_add(1, Ordering::Relaxed);
    }
}

#[inline]
fn next_hole(space: &Space, run: &mut Run, owned: &mut OwnedSpan, size: usize) -> bool {
    if owned.holes == 0 {
        return false;
    }
    let bits = take_first_run(&mut owned.holes, size / GRANULE);
    let cells = bits.count_ones() as usize;
    let granule = owned.word as usize * 64 + bits.trailing_zeros() as usize;
    let start = space.base() + (owned.span as usize - 1) * PAGE + granule * GRANULE;
    *run = Run {
        cursor: start,
        limit: start + cells * size,
    };
    true
}

/// Fills an empty run from the mutator's span, with `most` cells at most. Returns how many cells
/// the mutator got; 0: the span has no more.
fn fill(
    space: &Space,
    run: &mut Run,
    owned: &mut OwnedSpan,
    class: &'static Class,
    most: usize,
) -> usize {
    let span = owned.span as usize - 1;
    let allocated = space.allocated_bits().span(span, class);
    let position = owned.position as usize;
    let first = if class.stride() < 64 {
        let Some((word, mut bits, is_open)) = allocated.next_word_with_clear(position) else {
            return 0;
        };
        if !is_open {
            let after = allocated.cell_after(word);
            owned.position = after as u32;
            while bits.count_ones() as usize > most {
                let last = 63 - bits.leading_zeros();
                bits &= !(1 << last);
                owned.position = ((word * 64 + last as usize) / class.stride()) as u32;
            }
            return install_holes(space, run, owned, class, word, bits);
        }
        Some(allocated.cell_at(word * 64 + bits.trailing_zeros() as usize))
    } else {
        allocated.next_clear(position)
    };
    let Some(from) = first else {
        return 0;
    };
    let to = allocated.next_set(from, (from + most).min(class.cells as usize));
    install(space, run, span, class, from, to);
    owned.position = to as u32;
    to - from
}

/// Prefetches the memory of the next holes. Where live and dead cells are mixed, the first line of
/// each hole is a cache miss that the refill would wait for: it clears the cells by stores, and the
/// locked instruction that marks them black waits for all stores before it.
fn prefetch_holes(space: &Space, owned: &mut OwnedSpan, class: &'static Class) {
    if class.size > SMALL_CELL {
        return;
    }
    let span = owned.span as usize - 1;
    let allocated = space.allocated_bits().span(span, class);
    let (position, cells) = (owned.position as usize, class.cells as usize);
    let mut at = owned.prefetched.max(owned.position) as usize;
    // The loop ends when everything that the next piece takes is prefetched: the holes of one word,
    // or one long hole.
    while at < cells && at <= allocated.cell_after(position * class.stride() / 64) {
        let Some((word, clear, _)) = allocated.next_word_with_clear(at) else {
            at = cells;
            break;
        };
        let start = space.base() + span * PAGE + word * 64 * GRANULE;
        for line in 0..64 / LINE_GRANULES {
            if clear >> (line * LINE_GRANULES) & LINE_BITS != 0 {
                prefetch(start + line * LINE_GRANULES * GRANULE);
            }
        }
        at = allocated.cell_after(word);
    }
    owned.prefetched = at.min(cells) as u32;
}

/// Gives the mutator the free cells whose bits in the bitmap word `word` of its span are `bits`.
/// The first hole becomes its run. Returns how many cells. The order is that of [`install`], for
/// the same reasons.
fn install_holes(
    space: &Space,
    run: &mut Run,
    owned: &mut OwnedSpan,
    class: &'static Class,
    word: usize,
    bits: u64,
) -> usize {
    let span = owned.span as usize - 1;
    let size = class.size as usize;
    let cells = bits.count_ones() as usize;
    space.count_allocated(cells, cells * size);
    space.note_bits(span + word * 64 * GRANULE / PAGE);
    let start = space.base() + span * PAGE + word * 64 * GRANULE;
    // SAFETY: this mutator owns the span.
    if unsafe { !(*space.records().at(span)).flags.as_is() } && seam::clears() {
        let mut left = bits;
        while left != 0 {
            let hole = take_first_run(&mut left, class.stride());
            let at = start + hole.trailing_zeros() as usize * GRANULE;
            // SAFETY: the cells are free: their bits are clear, so no other thread has them.
            unsafe { std::ptr::write_bytes(at as *mut u8, 0, hole.count_ones() as usize * size) };
        }
    }
    if space.is_marking() && seam::marks() {
        space
            .marked_bits()
            .span(span, class)
            .set_in_word(word, bits);
        space.note_allocated_black_in_word(span, word, bits);
    }
    if seam::sets_allocated_bits() {
        let allocated = space.allocated_bits().span(span, class);
        allocated.set_in_word_alone(word, bits);
    }
    (owned.word, owned.holes) = (word as u32, bits);
    next_hole(space, run, owned, size);
    cells
}

/// Makes the cells `[from, to)` of a span a mutator's run: clears them, marks them if a collection
/// marks, and sets their allocated bits.
fn install(
    space: &Space,
    run: &mut Run,
    span: usize,
    class: &'static Class,
    from: usize,
    to: usize,
) {
    let size = class.size as usize;
    let (start, bytes) = (space.base() + span * PAGE + from * size, (to - from) * size);
    // A locked instruction waits for all stores before it, so the locked ones come before the
    // clearing.
    space.count_allocated(to - from, bytes);
    space.note_bits(span);
    space.note_bits(span + class.pages as usize - 1);
    // SAFETY: this mutator owns the span, and the cells are free: their bits are clear, so no other
    // thread has them.
    unsafe {
        if !(*space.records().at(span)).flags.as_is() && seam::clears() {
            std::ptr::write_bytes(start as *mut u8, 0, bytes);
        }
    }
    // The marks are set after the clearing, since a marker whose queue overflowed follows all
    // marked cells of a page. They are set before the allocated bits: a stale word that names one
    // of the cells then finds it black as soon as it finds it at all, and no marker follows the
    // cell while the mutator writes it.
    if space.is_marking() && seam::marks() {
        space.marked_bits().span(span, class).set_cells(from, to);
        space.note_allocated_black(span, class, from, to);
    }
    if seam::sets_allocated_bits() {
        space
            .allocated_bits()
            .span(span, class)
            .set_cells_alone(from, to);
    }
    *run = Run {
        cursor: start,
        limit: start + bytes,
    };
}

mod seam {
    use crate::fault::Fault;

    pub(super) fn clears() -> bool {
        !Fault::NoClear.planted()
    }

    pub(super) fn marks() -> bool {
        !Fault::WhiteRuns.planted()
    }

    pub(super) fn sets_allocated_bits() -> bool {
        !Fault::NoRunBits.planted()
    }
}
