//! A mutator's side of the heap: runs of free cells, the bump through them, and what happens when one is used up.

use std::fmt;

use crate::heap::SiteError;
use crate::heap::map::{MapError, Table};

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
            AllocError::Site(e) => write!(f, "{e:?}"),
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
pub(crate) struct Own {
    /// First unit of the span + 1; 0: none.
    pub(crate) span: u32,
    /// Offset in the span of the first byte not yet looked at.
    pub(crate) position: u32,
}

/// One mutator's runs, one a site, in mapped memory that the stopped collector reads.
pub struct Runs {
    runs: Table<Run>,
    pub(crate) own: Table<Own>,
}

impl Runs {
    /// Maps the array; pages are touched as sites are used.
    pub fn new() -> Result<Runs, MapError> {
        Ok(Runs {
            runs: Table::new(MAX_SITES)?,
            own: Table::new(MAX_SITES)?,
        })
    }

    /// The array that machine code indexes with [`Site::index`].
    pub fn as_mut_ptr(&self) -> *mut Run {
        self.runs.at(0)
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
        let run = runs.add(site.index as usize);
        let cell = (*run).cursor;
        let next = cell + site.size as usize;
        if next > (*run).limit {
            return std::ptr::null_mut();
        }
        (*run).cursor = next;
        // Rule 4 of the fast path: the advanced cursor is in memory before the first word of the cell is written. A
        // Release store would not do: two allocations in a row may merge their cursor stores behind the first cell's
        // initialisation, and a stop in between would see the first cell as free.
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
        cell as *mut u8
    }
}
