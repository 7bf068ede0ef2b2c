//! A mutator's side of the heap: runs of free cells, the bump through them, and what happens when one is used up.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fault::planted;
use crate::heap::SiteError;
use crate::heap::map::{MapError, Table};
use crate::heap::{Class, Entry, NoSpan, Space, UNIT, Unit};
use crate::kind::KindError;
use crate::mark::{Marked, prefetch};

/// A stretch of free, zeroed cells that one mutator owns. Machine code bumps `cursor` inline.
///
/// `cursor..limit` are whole cells of one site. A run that was never filled is zero and has room for nothing.
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

/// The most sites a heap can have.
pub const MAX_SITES: usize = 1 << 16;

/// What a refill found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refill {
    /// The site's run has room for at least one cell.
    Ready,
    /// `collect_every`: collect, then refill again.
    Due,
    /// The bounded piece ended without a find: leave `no_preempt`, come again.
    Again,
}

/// Why there is no cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllocError {
    /// The heap's hard limit does not allow it.
    HeapLimit {
        /// The limit in bytes.
        limit: u64,
        /// What was asked for.
        bytes: usize,
    },
    /// The heap's reserved address range has no free stretch of this length.
    Exhausted {
        /// What was asked for.
        bytes: usize,
    },
    /// The system refused memory for the heap's own tables.
    System(MapError),
    /// Cells of this kind and size cannot be.
    Site(SiteError),
    /// The type cannot have a kind of its own.
    Kind(KindError),
    /// One of the heap's tables is full.
    TableFull {
        /// What the table holds.
        table: &'static str,
        /// What would help.
        cure: &'static str,
    },
    /// No heap of this reserve could ever hold it.
    TooLarge {
        /// What was asked for.
        bytes: usize,
    },
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AllocError::HeapLimit { limit, bytes } => {
                write!(
                    f,
                    "no room for {bytes} bytes under the heap limit of {limit} bytes; raise hard_limit or keep less alive"
                )
            }
            AllocError::Exhausted { bytes } => {
                write!(
                    f,
                    "the heap's address range has no free stretch for {bytes} bytes; build it with a larger reserve"
                )
            }
            AllocError::System(e) => write!(f, "{e}"),
            AllocError::Site(e) => write!(f, "{e}"),
            AllocError::Kind(e) => write!(f, "{e}"),
            AllocError::TableFull { table, cure } => {
                write!(f, "no room in the table of {table}: {cure}")
            }
            AllocError::TooLarge { bytes } => {
                write!(
                    f,
                    "{bytes} bytes are more than the heap's whole address range; build it with a larger reserve"
                )
            }
        }
    }
}

impl std::error::Error for AllocError {}

impl From<MapError> for AllocError {
    fn from(e: MapError) -> AllocError {
        AllocError::System(e)
    }
}

/// Where a mutator takes its next run of a site from: its span and how far it has been looked at.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Own {
    /// First unit of the span + 1; 0: none.
    span: u32,
    /// The first cell that was not looked at yet.
    position: u32,
    /// The first one whose memory was not asked for yet.
    ahead: u32,
}

/// One mutator's runs, one a site, in mapped memory that the stopped collector reads.
///
/// They must be given back with [`Space::retire`]; dropping them without that leaves their spans with nobody.
pub struct Runs {
    runs: Table<Run>,
    own: Table<Own>,
    /// Cells handed out since the last collection that was due, for `collect_every`.
    handed: AtomicU64,
}

impl Runs {
    /// Maps the array; pages are touched as sites are used.
    pub fn new() -> Result<Runs, MapError> {
        Ok(Runs {
            runs: Table::new(MAX_SITES)?,
            own: Table::new(MAX_SITES)?,
            handed: AtomicU64::new(0),
        })
    }

    /// The first unit, plus one, of the span that the mutator takes `site`'s runs from; 0: none. By the owner.
    pub(crate) fn own_span(&self, site: usize) -> u32 {
        // SAFETY: the caller owns the array, which is mapped zeroed, and zero is a value of its elements.
        unsafe { (*self.own.at(site)).span }
    }

    /// The array that machine code indexes with [`Site::index`].
    pub fn as_mut_ptr(&self) -> *mut Run {
        self.runs.at(0)
    }
}

/// A run's length at most, in bytes. It is cleared under `no_preempt`, half a microsecond or so, and should still be in
/// the first-level cache when its cells are written; the shorter it is, the more often a mutator comes to refill.
pub(crate) const RUN_BYTES: usize = 8 << 10;

/// Gaps of a span whose memory has been asked for before they are filled. In `gclab mark 64 --concurrent` the worst 10 ms window in a hundred left
/// the program 0.12 to 0.19 of its time without, and 0.24 to 0.32 with it (three pairs); where values are large, as in `gclab churn`, it is neither here
/// nor there.
const GAPS_AHEAD: usize = 4;

/// Bytes of a cell beyond which clearing it takes longer than its first miss.
const SMALL_CELL: u32 = 128;

/// Cells of a gap that is not looked at further.
const LONG_GAP: usize = 16;

/// Spans that one piece of a refill looks at. A full one of the smallest cells costs 64 words to look through.
const SPANS_PER_PIECE: usize = 16;

impl Space {
    /// Fills the mutator's run of `site`, if it is used up. One bounded piece of work: under `no_preempt`, by the owner
    /// of `runs`.
    ///
    /// # Errors
    /// [`AllocError::HeapLimit`] or [`AllocError::Exhausted`]: a collection may help. All that the last one freed has
    /// been swept by then.
    pub fn refill(&self, runs: &Runs, site: Site) -> Result<Refill, AllocError> {
        let index = site.index();
        // SAFETY: the caller owns `runs`, and under `no_preempt` the collector does not read them now.
        let (run, own) = unsafe { (&mut *runs.runs.at(index), &mut *runs.own.at(index)) };
        if run.cursor + site.size() <= run.limit {
            return Ok(Refill::Ready);
        }
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
                match self.next_span(entry) {
                    Ok(span) => {
                        *own = Own {
                            span: span as u32 + 1,
                            position: 0,
                            ahead: 0,
                        };
                        for _ in 0..GAPS_AHEAD {
                            self.look_ahead(own, class);
                        }
                    }
                    Err(no) => return self.after_sweep(no, site.size()).map(|()| Refill::Again),
                }
            }
            let span = own.span as usize - 1;
            let allocated = self.allocated_bits().span(span, class);
            if let Some(from) = allocated.next_clear(own.position as usize) {
                let to = allocated.next_set(from, (from + most).min(class.cells as usize));
                self.install(run, span, class, from, to);
                own.position = to as u32;
                self.look_ahead(own, class);
                if self.collect_every.is_some() {
                    runs.handed.fetch_add((to - from) as u64, Ordering::Relaxed);
                }
                return Ok(Refill::Ready);
            }
            own.span = 0;
            entry.lists.lock().full.push(self.records(), span);
        }
        Ok(Refill::Again)
    }

    /// Asks for the memory of one more gap. Where live and dead cells are mixed, each gap's first line is a miss, which the refill would wait
    /// for: clearing the cells is a store, and to mark them black is a locked instruction, which waits for all stores before it.
    fn look_ahead(&self, own: &mut Own, class: &'static Class) {
        if class.size > SMALL_CELL {
            return;
        }
        let span = own.span as usize - 1;
        let allocated = self.allocated_bits().span(span, class);
        let at = own.ahead.max(own.position) as usize;
        let cells = class.cells as usize;
        let Some(from) = allocated.next_clear(at) else {
            own.ahead = cells as u32;
            return;
        };
        prefetch(self.base() + span * UNIT + from * class.size as usize);
        // Of a long gap the first lines are enough, the processor sees where it goes from there; and the next gap is far.
        own.ahead = allocated.next_set(from, (from + LONG_GAP).min(cells)) as u32;
    }

    /// Makes the cells `[from, to)` of a span a mutator's run: zero, allocated (and marked, while marking), installed.
    fn install(&self, run: &mut Run, span: usize, class: &'static Class, from: usize, to: usize) {
        let size = class.size as usize;
        let (start, bytes) = (self.base() + span * UNIT + from * size, (to - from) * size);
        // Locked instructions wait for all stores before them, so they go before the clearing.
        self.handed.add(to - from, bytes);
        self.note_bits(span);
        self.note_bits(span + class.units as usize - 1);
        // SAFETY: the span is this mutator's and the cells are free: their bits are clear, so no one else has them.
        unsafe {
            if !(*self.records().at(span)).zeroed && !planted("no-clear") {
                std::ptr::write_bytes(start as *mut u8, 0, bytes);
            }
        }
        // After the clearing: a marker whose queue overflowed follows all marked cells of a unit. Before the allocated bits: a stale
        // word that names one of the cells finds it black as soon as it finds it at all, and nobody follows it while it is written.
        if self.is_marking() && !planted("white-runs") {
            self.marked_bits().span(span, class).set_cells(from, to);
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

    /// A span to take runs from: one with gaps, one that nobody has looked at since the collection, or a new one.
    fn next_span(&self, entry: &Entry) -> Result<usize, NoSpan> {
        {
            let mut lists = entry.lists.lock();
            let listed = lists.partial.pop(self.records()).or_else(|| {
                let span = lists.unswept.pop(self.records())?;
                self.unswept.fetch_sub(1, Ordering::Relaxed);
                Some(span)
            });
            if let Some(span) = listed {
                // SAFETY: popped from its list, the span is ours.
                unsafe { (*self.records().at(span)).zeroed = false };
                return Ok(span);
            }
        }
        let class = entry.class();
        let (span, zeroed) = self.take_units(class.units as usize)?;
        // SAFETY: the units were just taken, so their records are ours.
        unsafe { (*self.records().at(span)).zeroed = zeroed };
        entry.lists.lock().chain(self.records(), span);
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
        Ok(span)
    }

    /// There is no room: an error, unless sweeping may still find some; then a piece of that is done.
    pub(crate) fn after_sweep(&self, no: NoSpan, bytes: usize) -> Result<(), AllocError> {
        // Ordering: Acquire pairs with the Release of the decrements after a span was given back.
        if self.unswept.load(Ordering::Acquire) != 0 {
            self.sweep_piece();
            return Ok(());
        }
        Err(match no {
            NoSpan::Limit => AllocError::HeapLimit {
                limit: self.hard_limit().unwrap_or(u64::MAX),
                bytes,
            },
            NoSpan::Exhausted => AllocError::Exhausted { bytes },
        })
    }

    /// `collect_every`: how many cells the mutator may still allocate. Gives back all its tails, so that what was handed
    /// out is what was allocated; at 0 the count starts anew, and the caller collects.
    pub(crate) fn left_until_due(&self, runs: &Runs, every: u64) -> u64 {
        let tails: u64 = (0..self.sites.count())
            .map(|site| self.retire_tail(runs, site))
            .sum();
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

    /// Empties the run of one site; the number of cells that were left in it. They are free again, except while marking:
    /// then they stay black and are found free by the next cycle.
    fn retire_tail(&self, runs: &Runs, site: usize) -> u64 {
        // SAFETY: the caller owns `runs`, under `no_preempt`.
        let (run, own) = unsafe { (&mut *runs.runs.at(site), &mut *runs.own.at(site)) };
        if run.cursor >= run.limit {
            return 0;
        }
        let class = self.sites.at(site).class();
        let span = own.span as usize - 1;
        let start = self.base() + span * UNIT;
        let (from, to) = (
            class.index_of(run.cursor - start),
            class.index_of(run.limit - 1 - start) + 1,
        );
        if !self.is_marking() {
            self.allocated_bits()
                .span(span, class)
                .clear_cells_alone(from, to);
            self.handed.take_back(to - from, run.limit - run.cursor);
            own.position = from as u32;
        }
        *run = Run {
            cursor: 0,
            limit: 0,
        };
        (to - from) as u64
    }

    /// Gives all runs and spans of a mutator back (detach). Under `no_preempt`, by the owner of `runs`.
    pub fn retire(&self, runs: &Runs) {
        for site in 0..self.sites.count() {
            self.retire_tail(runs, site);
            // SAFETY: the caller owns `runs`.
            let own = unsafe { &mut *runs.own.at(site) };
            if let Some(span) = (own.span as usize).checked_sub(1) {
                own.span = 0;
                self.sites
                    .at(site)
                    .lists
                    .lock()
                    .partial
                    .push(self.records(), span);
            }
        }
    }

    /// Stop 1, world stopped: marks the unallocated tail of every run in a mutator's array (rule 2 of the fast path).
    /// Returns what they hold: no marker counts it.
    ///
    /// # Safety
    /// `runs` is the array of a stopped mutator of this heap.
    pub unsafe fn blacken_tails(&self, runs: *const Run) -> Marked {
        let mut tails = Marked::default();
        for site in 0..self.sites.count() {
            // SAFETY: the array has MAX_SITES entries and its owner is stopped.
            let run = unsafe { *runs.add(site) };
            if run.cursor >= run.limit {
                continue;
            }
            let Some(offset) = self.offset(run.cursor) else {
                continue;
            };
            let Unit::Small { distance, .. } = self.units().get(offset / UNIT) else {
                continue;
            };
            let (class, span) = (self.sites.at(site).class(), offset / UNIT - distance);
            let start = self.base() + span * UNIT;
            let (from, to) = (
                class.index_of(run.cursor - start),
                class.index_of(run.limit - 1 - start) + 1,
            );
            self.marked_bits().span(span, class).set_cells(from, to);
            tails.cells += (to - from) as u64;
            tails.bytes += (run.limit - run.cursor) as u64;
        }
        tails
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
        // Emits nothing. It makes the compiler take the run's address once and use it for load, compare and store alike: processors
        // that forward a store to the next load of the same address expression without a delay then do so from cell to cell,
        // which halves the time of a cell (1.3 ns instead of 2.5 where it was measured).
        std::arch::asm!("/* {0} */", inout(reg) address, options(pure, nomem, nostack, preserves_flags));
        let run = std::ptr::with_exposed_provenance_mut::<Run>(address);
        let cell = (*run).cursor;
        let next = cell + site.size as usize;
        if next > (*run).limit {
            return std::ptr::null_mut();
        }
        // An empty run is zero and has room for nothing, so this is no null: callers need not test again.
        std::hint::assert_unchecked(cell != 0);
        (*run).cursor = next;
        // Rule 4 of the fast path: the advanced cursor is in memory before the first word of the cell is written. A
        // Release store would not do: two allocations in a row may merge their cursor stores behind the first cell's
        // initialisation, and a stop in between would see the first cell as free.
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
        cell as *mut u8
    }
}
