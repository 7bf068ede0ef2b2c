//! A mutator's side of the heap: runs of free cells, the bump through them, and what happens when
//! one is used up.

mod listed;

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::AllocError;
use crate::fault::planted;
use crate::heap::{
    Claim, Class, Entry, Flags, GRANULE, NoSpan, Space, UNIT, Unit, Unreported, take_first_run,
};
use crate::limits::MAX_SITES;
use crate::mark::Marked;
use crate::memory::os::{MapError, Table};
use crate::memory::prefetch::prefetch;
pub(crate) use listed::REVIEW_PIECE;
use listed::{Listed, REFILL_PIECE};

/// A stretch of free cells that one mutator owns, zeroed unless their kind is
/// [`leaf_uninit`](crate::Kind::leaf_uninit). Machine code bumps `cursor` inline.
///
/// `cursor..limit` are whole cells of one site. A run that was never filled is zero and has room
/// for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Run {
    /// The next cell to hand out.
    pub cursor: usize,
    /// One past the last cell.
    pub limit: usize,
}

/// A (kind, size class) pair: what an allocation site in machine code needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Site {
    pub(crate) index: u32,
    pub(crate) size: u32,
}

impl Site {
    /// The index of this site's [`Run`] in a mutator's array.
    pub const fn index(self) -> usize {
        self.index as usize
    }

    /// The size of its cells in bytes: how far the cursor moves.
    pub const fn size(self) -> usize {
        self.size as usize
    }
}

/// What a refill found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refill {
    /// The site's run has room for at least one cell.
    Ready,
    /// `collect_every`: collect, then refill again.
    Due,
    /// The bounded piece ended without a find: leave `no_preempt`, come again.
    Again,
    /// The next run will lie in memory that the system has not backed yet: leave `no_preempt`, have
    /// it backed where no stop waits for it ([`Space::back_taken`]; or do not: then it is when it
    /// is first touched, and a stop waits until the kernel has cleared it), come again.
    Cold(ColdUnits),
}

/// Units of the heap that a mutator has taken and whose first touch would be a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColdUnits {
    pub(crate) first: usize,
    pub(crate) units: usize,
}

/// Where a mutator takes its next run of a site from: its span, how far it has been looked at, and
/// gaps that are its own already.
///
/// Where live and dead cells are mixed, a gap is a cell or two, and to make each of them a run of
/// its own costs more than to allocate from it: a locked instruction or three, and a look at the
/// pace. So all gaps of a bitmap word, a KiB of the heap, are taken together: cleared, counted, and
/// their bits set at once. They are runs in all but that the next ones wait here.
///
/// In `gclab mark 64 --concurrent`, where every gap is such a one, refilling took 8 of 57 samples
/// of the mutator's thread with it and 12 without, and the worst windows of 10 ms had 0.22 of their
/// usual progress instead of 0.14 (medians of five pairs; 0.15 to 0.22, 0.11 to 0.27).
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Own {
    /// First unit of the span + 1; 0: none.
    span: u32,
    /// The first cell that was not looked at yet.
    position: u32,
    /// The first one whose memory was not asked for yet.
    ahead: u32,
    /// The bitmap word, counted in the span, whose gaps these are:
    word: u32,
    /// the bits of cells that are the mutator's, allocated and zero, beyond its run.
    gaps: u64,
    /// The mutator's list names this site: the next such site + 1, or [`Own::LAST`]. 0: it does
    /// not.
    next: u32,
    /// The last swap's number at the last refill, its low half.
    refilled: u32,
}

impl Own {
    const LAST: u32 = u32::MAX;
}

/// One mutator's runs, one a site, in mapped memory that the stopped collector reads.
///
/// They must be given back with [`Space::retire`]. Where they are dropped without that, no list has
/// their spans, and the heap never uses these again.
pub struct Runs {
    runs: Table<Run>,
    own: Table<Own>,
    /// The sites that the mutator has spans of. A stop looks at these, however many sites the heap
    /// has.
    listed: Listed,
    /// Cells handed out since the last collection that was due, for `collect_every`.
    handed: AtomicU64,
    /// Cells that were handed out and not reported.
    pub(crate) unreported: Unreported,
    /// Where its next spans lie.
    pub(crate) claim: Claim,
}

impl Runs {
    /// Maps the array; pages are touched as sites are used.
    pub fn new() -> Result<Runs, MapError> {
        Ok(Runs {
            runs: Table::new(MAX_SITES)?,
            own: Table::new(MAX_SITES)?,
            listed: Listed::default(),
            handed: AtomicU64::new(0),
            unreported: Unreported::default(),
            claim: Claim::default(),
        })
    }

    /// The first unit, plus one, of the span that the mutator takes `site`'s runs from; 0: none. By
    /// the owner.
    pub(crate) fn own_span(&self, site: usize) -> u32 {
        // SAFETY: the caller owns the array, which is mapped zeroed, and zero is a value of its
        // elements.
        unsafe { (*self.own.at(site)).span }
    }

    /// The array that machine code indexes with [`Site::index`].
    pub fn as_mut_ptr(&self) -> *mut Run {
        self.runs.at(0)
    }
}

/// A run's length at most, in bytes. It is cleared under `no_preempt`, half a microsecond or so,
/// and should still be in the first-level cache when its cells are written; the shorter it is, the
/// more often a mutator comes to refill.
pub(crate) const RUN_BYTES: usize = 8 << 10;

/// Bytes of a cell beyond which clearing it takes longer than its first miss.
const SMALL_CELL: u32 = 128;

/// Granules of a cache line, and bits of so many.
const LINE_GRANULES: usize = 64 / GRANULE;
const LINE_BITS: u64 = (1 << LINE_GRANULES) - 1;

/// Spans that one piece of a refill looks at. A full one of the smallest cells costs 64 words to
/// look through.
const SPANS_PER_PIECE: usize = 16;

impl Space {
    /// Fills the mutator's run of `site`, if it is used up. One bounded piece of work: under
    /// `no_preempt`, by the owner of `runs`.
    ///
    /// # Errors
    /// [`AllocError::HeapLimit`] or [`AllocError::Exhausted`]: a collection may help. All that the
    /// last one freed has been swept by then.
    pub fn refill(&self, runs: &Runs, site: Site) -> Result<Refill, AllocError> {
        if self.next_run(runs, site) {
            return Ok(Refill::Ready);
        }
        let index = site.index();
        // SAFETY: as in `next_run`.
        unsafe { (*runs.own.at(index)).refilled = self.swap_now() };
        if self.is_review_due(runs) {
            self.review_piece(runs, REFILL_PIECE);
        }
        // SAFETY: as in `next_run`.
        let (run, own) = unsafe { (&mut *runs.runs.at(index), &mut *runs.own.at(index)) };
        let mut most = (RUN_BYTES / site.size()).max(1);
        if let Some(every) = self.collect_every {
            match self.left_until_due(runs, every) {
                0 => return Ok(Refill::Due),
                left => most = most.min(usize::try_from(left).unwrap_or(usize::MAX)),
            }
        }
        let entry = self.sites.at(index);
        let class = entry.class();
        for _ in 0..SPANS_PER_PIECE {
            if own.span == 0 {
                match self.next_span(entry, &runs.claim) {
                    Ok((span, is_new)) => {
                        runs.enter(index, own);
                        *own = Own {
                            span: span as u32 + 1,
                            position: 0,
                            ahead: 0,
                            word: 0,
                            gaps: 0,
                            ..*own
                        };
                        if is_new && let Some(cold) = self.cold(span, class.units as usize) {
                            return Ok(Refill::Cold(cold));
                        }
                        self.look_ahead(own, class);
                    }
                    Err(no) => return self.after_sweep(no, site.size()).map(|()| Refill::Again),
                }
            }
            let found = self.fill(run, own, &runs.unreported, class, most);
            if found != 0 {
                self.look_ahead(own, class);
                if self.collect_every.is_some() {
                    runs.handed.fetch_add(found as u64, Ordering::Relaxed);
                }
                return Ok(Refill::Ready);
            }
            let span = core::mem::take(&mut own.span) as usize - 1;
            self.lists(entry).full.push(self.records(), span);
        }
        Ok(Refill::Again)
    }

    /// Makes the next of the gaps that are taken the mutator's run of `site`, if that is used up;
    /// `false`: there is none. Under `no_preempt`, by the owner of `runs`.
    #[inline]
    pub fn next_run(&self, runs: &Runs, site: Site) -> bool {
        let index = site.index();
        // SAFETY: the caller owns `runs`, and under `no_preempt` the collector does not read them
        // now.
        let (run, own) = unsafe { (&mut *runs.runs.at(index), &mut *runs.own.at(index)) };
        run.cursor + site.size() <= run.limit || self.next_gap(run, own, site.size())
    }

    #[inline]
    fn next_gap(&self, run: &mut Run, own: &mut Own, size: usize) -> bool {
        if own.gaps == 0 {
            return false;
        }
        let bits = take_first_run(&mut own.gaps, size / GRANULE);
        let cells = bits.count_ones() as usize;
        let granule = own.word as usize * 64 + bits.trailing_zeros() as usize;
        let start = self.base() + (own.span as usize - 1) * UNIT + granule * GRANULE;
        *run = Run {
            cursor: start,
            limit: start + cells * size,
        };
        true
    }

    /// Fills an empty run from the mutator's span, with `most` cells at most; how many became the
    /// mutator's. 0: the span has no more.
    fn fill(
        &self,
        run: &mut Run,
        own: &mut Own,
        unreported: &Unreported,
        class: &'static Class,
        most: usize,
    ) -> usize {
        let span = own.span as usize - 1;
        let allocated = self.allocated_bits().span(span, class);
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
                return self.install_gaps(run, own, unreported, class, word, bits);
            }
            Some(allocated.cell_at(word * 64 + bits.trailing_zeros() as usize))
        } else {
            allocated.next_clear(position)
        };
        let Some(from) = first else {
            return 0;
        };
        let to = allocated.next_set(from, (from + most).min(class.cells as usize));
        self.install(run, unreported, span, class, from, to);
        own.position = to as u32;
        to - from
    }

    /// Asks for the memory of more gaps. Where live and dead cells are mixed, each gap's first line
    /// is a miss, which the refill would wait for: clearing the cells is a store, and to mark them
    /// black is a locked instruction, which waits for all stores before it.
    fn look_ahead(&self, own: &mut Own, class: &'static Class) {
        if class.size > SMALL_CELL {
            return;
        }
        let span = own.span as usize - 1;
        let allocated = self.allocated_bits().span(span, class);
        let (position, cells) = (own.position as usize, class.cells as usize);
        let mut at = own.ahead.max(own.position) as usize;
        // Whatever the next piece takes has been asked for: it takes a word's gaps, or one that is
        // long.
        while at < cells && at <= allocated.cell_after(position * class.stride() / 64) {
            let Some((word, clear, _)) = allocated.next_word_with_clear(at) else {
                at = cells;
                break;
            };
            let start = self.base() + span * UNIT + word * 64 * GRANULE;
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
    /// [`install`](Self::install), for the same reasons.
    fn install_gaps(
        &self,
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
        self.hand_out(unreported, cells, cells * size);
        self.note_bits(span + word * 64 * GRANULE / UNIT);
        let start = self.base() + span * UNIT + word * 64 * GRANULE;
        // SAFETY: the span is this mutator's.
        if unsafe { !(*self.records().at(span)).flags.as_is() } && !planted("no-clear") {
            let mut left = bits;
            while left != 0 {
                let gap = take_first_run(&mut left, class.stride());
                let at = start + gap.trailing_zeros() as usize * GRANULE;
                // SAFETY: the cells are free: their bits are clear, so no one else has them.
                unsafe {
                    std::ptr::write_bytes(at as *mut u8, 0, gap.count_ones() as usize * size)
                };
            }
        }
        if self.is_marking() && !planted("white-runs") {
            self.marked_bits().span(span, class).set_in_word(word, bits);
            self.note_births_in_word(span, word, bits);
        }
        if !planted("no-run-bits") {
            let allocated = self.allocated_bits().span(span, class);
            allocated.set_in_word_alone(word, bits);
        }
        (own.word, own.gaps) = (word as u32, bits);
        self.next_gap(run, own, size);
        cells
    }

    /// Makes the cells `[from, to)` of a span a mutator's run: zero, allocated (and marked, while
    /// marking), installed.
    fn install(
        &self,
        run: &mut Run,
        unreported: &Unreported,
        span: usize,
        class: &'static Class,
        from: usize,
        to: usize,
    ) {
        let size = class.size as usize;
        let (start, bytes) = (self.base() + span * UNIT + from * size, (to - from) * size);
        // Locked instructions wait for all stores before them, so they go before the clearing.
        self.hand_out(unreported, to - from, bytes);
        self.note_bits(span);
        self.note_bits(span + class.units as usize - 1);
        // SAFETY: the span is this mutator's and the cells are free: their bits are clear, so no
        // one else has them.
        unsafe {
            if !(*self.records().at(span)).flags.as_is() && !planted("no-clear") {
                std::ptr::write_bytes(start as *mut u8, 0, bytes);
            }
        }
        // After the clearing: a marker whose queue overflowed follows all marked cells of a unit.
        // Before the allocated bits: a stale word that names one of the cells finds it black as
        // soon as it finds it at all, and no marker follows it while it is written.
        if self.is_marking() && !planted("white-runs") {
            self.marked_bits().span(span, class).set_cells(from, to);
            self.note_births(span, class, from, to);
        }
        if !planted("no-run-bits") {
            self.allocated_bits()
                .span(span, class)
                .set_cells_alone(from, to);
        }
        *run = Run {
            cursor: start,
            limit: start + bytes,
        };
    }

    /// A span to take runs from: one with gaps, one that nobody has looked at since the collection,
    /// or a new one; whether it is that.
    fn next_span(&self, entry: &Entry, claim: &Claim) -> Result<(usize, bool), NoSpan> {
        let clears = !self.kinds.get(entry.kind).uninit;
        {
            let mut lists = self.lists(entry);
            let listed = lists.partial.pop(self.records()).or_else(|| {
                let span = lists.unswept.pop(self.records())?;
                if !planted("unswept-unkept") {
                    self.keep_span(span, entry.class());
                }
                // Ordering: Release. Who sees the count at zero finds what was kept.
                self.unswept.fetch_sub(1, Ordering::Release);
                Some(span)
            });
            if let Some(span) = listed {
                // SAFETY: popped from its list, the span is ours.
                unsafe { (*self.records().at(span)).flags.set_as_is(!clears) };
                return Ok((span, false));
            }
        }
        let class = entry.class();
        let (span, zeroed) = self.take_span(claim, class.units as usize)?;
        // SAFETY: the units were just taken, so their records are ours.
        unsafe { (*self.records().at(span)).flags = Flags::new(zeroed || !clears) };
        self.lists(entry).chain(self.records(), span);
        // Last, so that nobody resolves an address by a record that is not written yet (H24).
        for distance in 0..class.units as usize {
            self.units().set(
                span + distance,
                Unit::Small {
                    class: entry.class as usize,
                    distance,
                    kind: entry.kind,
                },
            );
        }
        Ok((span, true))
    }

    /// There is no room: an error, unless sweeping may still find some; then a piece of that is
    /// done.
    pub(crate) fn after_sweep(&self, no: NoSpan, bytes: usize) -> Result<(), AllocError> {
        if !self.is_swept() {
            self.sweep_piece();
            return Ok(());
        }
        Err(match no {
            NoSpan::Limit => AllocError::HeapLimit {
                limit: self.hard_limit().unwrap_or(u64::MAX),
                bytes,
            },
            NoSpan::Exhausted => AllocError::Exhausted { bytes },
            NoSpan::System(e) => AllocError::System(e),
        })
    }

    /// `collect_every`: how many cells the mutator may still allocate. Gives back all its tails, so
    /// that what was handed out is what was allocated; at 0 the count starts anew, and the caller
    /// collects.
    pub(crate) fn left_until_due(&self, runs: &Runs, every: u64) -> u64 {
        let tails: u64 = runs.sites().map(|site| self.retire_tail(runs, site)).sum();
        let allocated = runs.handed.load(Ordering::Relaxed) - tails;
        let left = every.saturating_sub(allocated);
        runs.handed
            .store(if left == 0 { 0 } else { allocated }, Ordering::Relaxed);
        left
    }

    /// `collect_every`: counts a large object.
    pub(crate) fn count_large(&self, runs: &Runs) {
        runs.handed.fetch_add(1, Ordering::Relaxed);
    }

    /// Empties the run of one site; the number of cells that were left in it and in gaps that were
    /// taken with it. They are free again, except while marking: then they stay black and are found
    /// free by the next cycle.
    fn retire_tail(&self, runs: &Runs, site: usize) -> u64 {
        let Some(tail) = self.tail(runs, site) else {
            return 0;
        };
        // SAFETY: the caller owns `runs`, under `no_preempt`.
        let (run, own) = unsafe { (&mut *runs.runs.at(site), &mut *runs.own.at(site)) };
        if !self.is_marking() {
            let allocated = self.allocated_bits().span(tail.span, tail.class);
            allocated.clear_cells_alone(tail.from, tail.to);
            allocated.clear_in_word_alone(own.word as usize, own.gaps);
            self.take_back(tail.cells(), tail.cells() * tail.class.size as usize);
            own.position = tail.first() as u32;
        }
        own.gaps = 0;
        *run = Run {
            cursor: 0,
            limit: 0,
        };
        tail.cells() as u64
    }

    /// What a mutator has of a site that no program has yet. By the owner of `runs` under
    /// `no_preempt`, or while it is stopped.
    fn tail(&self, runs: &Runs, site: usize) -> Option<Tail> {
        // SAFETY: the arrays have MAX_SITES entries, and nobody writes these now (see above).
        let (run, own) = unsafe { (*runs.runs.at(site), *runs.own.at(site)) };
        if run.cursor >= run.limit && own.gaps == 0 {
            return None;
        }
        let class = self.sites.at(site).class();
        let span = own.span as usize - 1;
        let start = self.base() + span * UNIT;
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
    /// `runs` is the array of a stopped mutator of this heap.
    pub unsafe fn blacken_tails(&self, runs: &Runs) -> Marked {
        let mut tails = Marked::default();
        for site in runs.sites() {
            let Some(tail) = self.tail(runs, site) else {
                continue;
            };
            let marked = self.marked_bits().span(tail.span, tail.class);
            marked.set_cells(tail.from, tail.to);
            if tail.gaps != 0 && !planted("white-gaps") {
                marked.set_in_word(tail.word, tail.gaps);
            }
            if !planted("old-tails") {
                self.note_births(tail.span, tail.class, tail.from, tail.to);
                self.note_births_in_word(tail.span, tail.word, tail.gaps);
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
    pub unsafe fn for_each_unallocated(&self, runs: &Runs, f: &mut dyn FnMut(usize)) {
        for site in runs.sites() {
            let Some(tail) = self.tail(runs, site) else {
                continue;
            };
            let start = self.base() + tail.span * UNIT;
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
}

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

/// The fast path: the next cell of `site`'s run, zeroed, or null if the run is used up.
///
/// # Safety
/// `runs` is the calling mutator's array, of the heap that made `site`.
#[inline(always)]
pub unsafe fn bump(runs: *mut Run, site: Site) -> *mut u8 {
    // SAFETY: the caller owns the array, and a site's index is below MAX_SITES.
    unsafe {
        let mut address = runs.add(site.index as usize).expose_provenance();
        // Emits nothing. It makes the compiler take the run's address once and use it for load,
        // compare and store alike: processors that forward a store to the next load of the same
        // address expression without a delay then do so from cell to cell, which halves the time of
        // a cell (1.3 ns instead of 2.5 where it was measured).
        std::arch::asm!("/* {0} */", inout(reg) address, options(pure, nomem, nostack, preserves_flags));
        let run = std::ptr::with_exposed_provenance_mut::<Run>(address);
        let cell = (*run).cursor;
        let next = cell + site.size as usize;
        if next > (*run).limit {
            return std::ptr::null_mut();
        }
        // An empty run is zero and has room for nothing, so this is no null: callers need not test
        // again.
        std::hint::assert_unchecked(cell != 0);
        (*run).cursor = next;
        // Rule 4 of the fast path: the advanced cursor is in memory before the first word of the
        // cell is written. A Release store would not do: two allocations in a row may merge their
        // cursor stores behind the first cell's initialisation, and a stop in between would see the
        // first cell as free.
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
        cell as *mut u8
    }
}
