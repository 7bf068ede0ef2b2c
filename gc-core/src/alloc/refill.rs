//! Refills a run that is used up.

use std::sync::atomic::Ordering;

use super::local::{LocalAllocator, Own};
use super::review::REFILL_PIECE;
use super::run::{RUN_BYTES, Refill, Run};
use crate::error::AllocError;
use crate::fault::planted;
use crate::heap::{Class, GRANULE, PAGE, Site, Space, Unreported, take_first_run};
use crate::memory::prefetch::prefetch;

/// Bytes of a cell beyond which clearing it takes longer than its first miss.
const SMALL_CELL: u32 = 128;
/// Granules of a cache line, and bits of so many.
const LINE_GRANULES: usize = 64 / GRANULE;
const LINE_BITS: u64 = (1 << LINE_GRANULES) - 1;
/// Spans that one piece of a refill looks at. A full one of the smallest cells costs 64 words to
/// look through.
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
        unsafe { (*self.own.at(index)).refilled = space.swap_now() };
        if self.is_review_due(space) {
            self.review_piece(space, REFILL_PIECE);
        }
        // SAFETY: as in `next_run`.
        let (run, own) = unsafe { (&mut *self.runs.at(index), &mut *self.own.at(index)) };
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
            if own.span == 0 {
                match space.next_span(entry, &self.span_reserve) {
                    Ok((span, is_new)) => {
                        self.enter(index, own);
                        *own = Own {
                            span: span as u32 + 1,
                            position: 0,
                            ahead: 0,
                            word: 0,
                            gaps: 0,
                            ..*own
                        };
                        if is_new && let Some(cold) = space.cold(span, class.pages as usize) {
                            return Ok(Refill::Cold(cold));
                        }
                        look_ahead(space, own, class);
                    }
                    Err(no) => return space.after_sweep(no, site.size()).map(|()| Refill::Again),
                }
            }
            let found = fill(space, run, own, &self.unreported, class, most);
            if found != 0 {
                look_ahead(space, own, class);
                if space.collect_every.is_some() {
                    self.handed.fetch_add(found as u64, Ordering::Relaxed);
                }
                return Ok(Refill::Ready);
            }
            let span = core::mem::take(&mut own.span) as usize - 1;
            space.lists(entry).full.push(space.records(), span);
        }
        Ok(Refill::Again)
    }

    /// Makes the next of the gaps that are taken the mutator's run of `site`, if that is used up;
    /// `false`: there is none. Under `no_preempt`, by the owner of this allocator.
    #[inline]
    pub fn next_run(&self, space: &Space, site: Site) -> bool {
        let index = site.index();
        // SAFETY: the caller owns this allocator, and under `no_preempt` the collector does not
        // read them now.
        let (run, own) = unsafe { (&mut *self.runs.at(index), &mut *self.own.at(index)) };
        run.cursor + site.size() <= run.limit || next_gap(space, run, own, site.size())
    }

    /// `collect_every`: how many cells the mutator may still allocate. Gives back all its tails, so
    /// that what was handed out is what was allocated; at 0 the count starts anew, and the caller
    /// collects.
    pub(crate) fn left_until_due(&self, space: &Space, every: u64) -> u64 {
        let tails: u64 = self.sites().map(|site| self.retire_tail(space, site)).sum();
        let allocated = self.handed.load(Ordering::Relaxed) - tails;
        let left = every.saturating_sub(allocated);
        self.handed
            .store(if left == 0 { 0 } else { allocated }, Ordering::Relaxed);
        left
    }

    /// `collect_every`: counts a large object.
    pub(crate) fn count_large(&self) {
        self.handed.fetch_add(1, Ordering::Relaxed);
    }
}

#[inline]
fn next_gap(space: &Space, run: &mut Run, own: &mut Own, size: usize) -> bool {
    if own.gaps == 0 {
        return false;
    }
    let bits = take_first_run(&mut own.gaps, size / GRANULE);
    let cells = bits.count_ones() as usize;
    let granule = own.word as usize * 64 + bits.trailing_zeros() as usize;
    let start = space.base() + (own.span as usize - 1) * PAGE + granule * GRANULE;
    *run = Run {
        cursor: start,
        limit: start + cells * size,
    };
    true
}

/// Fills an empty run from the mutator's span, with `most` cells at most; how many became the
/// mutator's. 0: the span has no more.
fn fill(
    space: &Space,
    run: &mut Run,
    own: &mut Own,
    unreported: &Unreported,
    class: &'static Class,
    most: usize,
) -> usize {
    let span = own.span as usize - 1;
    let allocated = space.allocated_bits().span(span, class);
    let position = own.position as usize;
    let first = if class.stride() < 64 {
        let Some((word, mut bits, is_open)) = allocated.next_word_with_clear(position) else {
            return 0;
        };
        if !is_open {
            let after = allocated.cell_after(word);
            own.position = after as u32;
            while bits.count_ones() as usize > most {
                let last = 63 - bits.leading_zeros();
                bits &= !(1 << last);
                own.position = ((word * 64 + last as usize) / class.stride()) as u32;
            }
            return install_gaps(space, run, own, unreported, class, word, bits);
        }
        Some(allocated.cell_at(word * 64 + bits.trailing_zeros() as usize))
    } else {
        allocated.next_clear(position)
    };
    let Some(from) = first else {
        return 0;
    };
    let to = allocated.next_set(from, (from + most).min(class.cells as usize));
    install(space, run, unreported, span, class, from, to);
    own.position = to as u32;
    to - from
}

/// Asks for the memory of more gaps. Where live and dead cells are mixed, each gap's first line
/// is a miss, which the refill would wait for: clearing the cells is a store, and to mark them
/// black is a locked instruction, which waits for all stores before it.
fn look_ahead(space: &Space, own: &mut Own, class: &'static Class) {
    if class.size > SMALL_CELL {
        return;
    }
    let span = own.span as usize - 1;
    let allocated = space.allocated_bits().span(span, class);
    let (position, cells) = (own.position as usize, class.cells as usize);
    let mut at = own.ahead.max(own.position) as usize;
    // Whatever the next piece takes has been asked for: it takes a word's gaps, or one that is
    // long.
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
    own.ahead = at.min(cells) as u32;
}

/// Makes the free cells whose bits in the bitmap word `word` of the mutator's span are `bits`
/// the mutator's, the first of them its run; how many. In the same order as
/// `install`, for the same reasons.
fn install_gaps(
    space: &Space,
    run: &mut Run,
    own: &mut Own,
    unreported: &Unreported,
    class: &'static Class,
    word: usize,
    bits: u64,
) -> usize {
    let span = own.span as usize - 1;
    let size = class.size as usize;
    let cells = bits.count_ones() as usize;
    space.count_allocated(unreported, cells, cells * size);
    space.note_bits(span + word * 64 * GRANULE / PAGE);
    let start = space.base() + span * PAGE + word * 64 * GRANULE;
    // SAFETY: the span is this mutator's.
    if unsafe { !(*space.records().at(span)).flags.as_is() } && !planted("no-clear") {
        let mut left = bits;
        while left != 0 {
            let gap = take_first_run(&mut left, class.stride());
            let at = start + gap.trailing_zeros() as usize * GRANULE;
            // SAFETY: the cells are free: their bits are clear, so no one else has them.
            unsafe { std::ptr::write_bytes(at as *mut u8, 0, gap.count_ones() as usize * size) };
        }
    }
    if space.is_marking() && !planted("white-runs") {
        space
            .marked_bits()
            .span(span, class)
            .set_in_word(word, bits);
        space.note_allocated_black_in_word(span, word, bits);
    }
    if !planted("no-run-bits") {
        let allocated = space.allocated_bits().span(span, class);
        allocated.set_in_word_alone(word, bits);
    }
    (own.word, own.gaps) = (word as u32, bits);
    next_gap(space, run, own, size);
    cells
}

/// Makes the cells `[from, to)` of a span a mutator's run: zero, allocated (and marked, while
/// marking), installed.
fn install(
    space: &Space,
    run: &mut Run,
    unreported: &Unreported,
    span: usize,
    class: &'static Class,
    from: usize,
    to: usize,
) {
    let size = class.size as usize;
    let (start, bytes) = (space.base() + span * PAGE + from * size, (to - from) * size);
    // Locked instructions wait for all stores before them, so they go before the clearing.
    space.count_allocated(unreported, to - from, bytes);
    space.note_bits(span);
    space.note_bits(span + class.pages as usize - 1);
    // SAFETY: the span is this mutator's and the cells are free: their bits are clear, so no
    // one else has them.
    unsafe {
        if !(*space.records().at(span)).flags.as_is() && !planted("no-clear") {
            std::ptr::write_bytes(start as *mut u8, 0, bytes);
        }
    }
    // After the clearing: a marker whose queue overflowed follows all marked cells of a page.
    // Before the allocated bits: a stale word that names one of the cells finds it black as
    // soon as it finds it at all, and no marker follows it while it is written.
    if space.is_marking() && !planted("white-runs") {
        space.marked_bits().span(span, class).set_cells(from, to);
        space.note_allocated_black(span, class, from, to);
    }
    if !planted("no-run-bits") {
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
