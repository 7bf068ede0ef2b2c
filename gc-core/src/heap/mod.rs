//! The heap's memory: one reserved address range, cut into spans of equal cells, with side tables that turn any
//! address into its cell by arithmetic.

pub(crate) mod lock;
pub(crate) mod map;

use std::ptr::NonNull;

use crate::alloc::{AllocError, Refill, Run, Runs, Site};
use crate::encoding::Encoding;
use crate::kind::{Kind, KindError, KindId, Kinds};

pub use map::MapError;

/// How a heap's memory is laid out and limited.
#[derive(Debug, Clone)]
pub struct SpaceConfig {
    /// Address space to reserve, in bytes. Halved until the system agrees.
    pub reserve: u64,
    /// Spans and large objects in use never exceed this many bytes.
    pub hard_limit: Option<u64>,
    /// What is tried on a conservative word. An empty list means [`Encoding::RAW`] alone.
    pub conservative: Vec<Encoding>,
    /// Does a word just past a cell's end keep that cell alive?
    pub past_the_end: bool,
    /// Stress: a mutator is told to collect after this many allocations.
    pub collect_every: Option<u64>,
}

impl Default for SpaceConfig {
    fn default() -> SpaceConfig {
        SpaceConfig {
            reserve: 256 << 30,
            hard_limit: None,
            conservative: vec![Encoding::RAW],
            past_the_end: false,
            collect_every: None,
        }
    }
}

/// A cell that an address names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// Its first byte.
    pub base: usize,
    /// Its size in bytes (the size class's, or page-rounded).
    pub size: usize,
    /// What it holds.
    pub kind: KindId,
}

/// Why there is no site for a (kind, size).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SiteError {
    /// The kind is not of this heap.
    UnknownKind(KindId),
    /// The kind's slots lie beyond a cell of this size.
    TooSmall {
        /// The size asked for.
        bytes: usize,
        /// The least that the kind needs.
        least: usize,
    },
    /// Larger than [`MAX_SMALL`]: allocate it as a large object.
    Large {
        /// The size asked for.
        bytes: usize,
    },
    /// The heap has as many sites as it can have.
    TooMany,
}

/// The largest cell that lives in a span with others; above it, an object has pages of its own.
pub const MAX_SMALL: usize = 32 << 10;

/// A large object that is not yet visible to anybody: reserve, clear outside `no_preempt`, publish.
#[derive(Debug)]
pub struct LargeReservation {
    pub(crate) base: usize,
    pub(crate) bytes: usize,
    pub(crate) kind: KindId,
}

/// One heap's memory.
pub struct Space {
    pub(crate) kinds: Kinds,
}

impl Space {
    /// Reserves the address range and its side tables.
    pub fn new(_config: SpaceConfig) -> Result<Space, MapError> {
        Ok(Space {
            kinds: Kinds::new()?,
        })
    }

    /// Adds a kind. Mallocs: under `no_preempt` or from an unattached thread.
    pub fn add_kind(&self, kind: Kind) -> Result<KindId, KindError> {
        self.kinds.add(kind)
    }

    /// The site of `bytes`-sized cells of `kind`; made at first use. Under `no_preempt` or from an unattached thread.
    pub fn site(&self, _kind: KindId, bytes: usize) -> Result<Site, SiteError> {
        Err(SiteError::Large { bytes })
    }

    /// Fills the mutator's run of `site`. Under `no_preempt`, by the owner of `runs`; one bounded piece of work.
    ///
    /// # Errors
    /// [`AllocError::HeapLimit`] or [`AllocError::Exhausted`]: a collection may help.
    pub fn refill(&self, _runs: &Runs, site: Site) -> Result<Refill, AllocError> {
        Err(AllocError::Exhausted { bytes: site.size() })
    }

    /// Gives all runs of a mutator back (detach). Under `no_preempt`, by the owner of `runs`.
    pub fn retire(&self, _runs: &Runs) {}

    /// First step of a large allocation, under `no_preempt`.
    pub fn reserve_large(
        &self,
        _kind: KindId,
        bytes: usize,
    ) -> Result<LargeReservation, AllocError> {
        Err(AllocError::TooLarge { bytes })
    }

    /// Second step, outside `no_preempt`: clears one bounded piece. True: done.
    pub fn clear_large(&self, _large: &mut LargeReservation) -> bool {
        true
    }

    /// Third step, under `no_preempt`: the cell becomes visible. Its address must be in the caller's hands (a register
    /// or the stack) when `no_preempt` ends.
    pub fn publish_large(&self, large: LargeReservation) -> NonNull<u8> {
        NonNull::new(large.base as *mut u8).unwrap_or(NonNull::dangling())
    }

    /// Gives back a reservation that will not be published. Under `no_preempt`.
    pub fn cancel_large(&self, _large: LargeReservation) {}

    /// The cell that `address` lies in, if it is allocated (or in a run's tail). Any word may be asked.
    #[inline]
    pub fn resolve(&self, _address: usize) -> Option<Cell> {
        None
    }

    /// Is the cell with this first byte marked?
    #[inline]
    pub fn is_marked(&self, _base: usize) -> bool {
        false
    }

    /// Stop 1, world stopped: from now on refills mark what they hand out. The spare bitmap must be clear
    /// ([`Space::clear_spare_piece`] and [`Space::sweep_piece`] have said so).
    pub fn begin_marking(&self) {}

    /// Stop 1, world stopped: marks the unallocated tail of every run in a mutator's array.
    ///
    /// # Safety
    /// `runs` is the array of a stopped mutator of this heap.
    pub unsafe fn blacken_tails(&self, _runs: *const Run) {}

    /// Stop 2, world stopped: the marked cells are now the allocated ones, everything else is free. O(sites).
    pub fn end_marking(&self) {}

    /// After stop 2, outside any stop: sweeps a bounded piece. True: more to do.
    pub fn sweep_piece(&self) -> bool {
        false
    }

    /// After stop 2, outside any stop: clears a bounded piece of the spare bitmap. True: more to do.
    pub fn clear_spare_piece(&self) -> bool {
        false
    }

    /// Outside any stop, by one thread at a time: returns whole free 2 MiB units to the system until at most `keep`
    /// free bytes are still backed. One bounded piece; the bytes returned, 0 when there is nothing to do.
    pub fn release_piece(&self, _keep: u64) -> u64 {
        0
    }

    /// Bytes handed out in runs and large objects since [`Space::end_marking`].
    pub fn allocated_since(&self) -> u64 {
        0
    }

    /// Bytes of spans and large objects in use: what the hard limit counts.
    pub fn used_bytes(&self) -> u64 {
        0
    }

    /// World stopped: calls `f` for every allocated cell (run tails too), in address order.
    pub fn for_each_cell(&self, _f: &mut dyn FnMut(Cell)) {}

    /// World stopped: calls `f` for every allocated cell of one kind, and whether it is marked.
    pub fn for_each_cell_of(&self, _kind: KindId, _f: &mut dyn FnMut(Cell, bool)) {}
}
