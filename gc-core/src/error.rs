//! The errors of allocation: why there is no cell, no (kind, size class) pair, or no heap.

use std::fmt;

use crate::kind::{KindError, KindId};
use crate::limits::{
    MAX_ENCODINGS, MAX_RESERVE, MAX_SITES, MAX_SMALL, MIN_HARD_LIMIT, MIN_RESERVE,
};
use crate::memory::MapError;

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
    /// The system refused memory.
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
    /// The heap has as many sites as its reserve allows.
    TooMany,
    /// The heap does not scan stacks, which the fast tier keeps its cells on: see
    /// [`HeapBuilder::exact`](crate::HeapBuilder::exact).
    FastTier,
    /// The system refused memory for the table of sites.
    System(MapError),
}

impl fmt::Display for SiteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SiteError::UnknownKind(kind) => {
                write!(f, "kind {} was not added to this heap", kind.index())
            }
            SiteError::TooSmall { bytes, least } => {
                write!(
                    f,
                    "{bytes} bytes are too small for the kind, whose last edge ends at byte {least}"
                )
            }
            SiteError::Large { bytes } => {
                write!(
                    f,
                    "{bytes} bytes are a large object (above {MAX_SMALL} with what past_the_end adds); it has no site"
                )
            }
            SiteError::FastTier => f.write_str(
                "this heap was built with exact(true): it does not scan stacks, so cells are allocated in scopes only",
            ),
            SiteError::TooMany => write!(
                f,
                "the heap has as many sites as its reserve allows (at most {}); use fewer kinds, or raise the reserve",
                MAX_SITES
            ),
            SiteError::System(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for SiteError {}

/// Why a heap could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpaceError {
    /// The system refused the address space.
    Map(MapError),
    /// The hard limit is below [`MINIMUM_LIMIT`](crate::MINIMUM_LIMIT).
    LimitTooSmall(u64),
    /// The reserve is below [`MINIMUM_RESERVE`](crate::MINIMUM_RESERVE), or above what the heap's
    /// tables can number (4 TiB).
    Reserve(u64),
    /// More conservative encodings than eight.
    TooManyEncodings(usize),
}

impl fmt::Display for SpaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SpaceError::Map(e) => write!(f, "no address space for a heap: {e}"),
            SpaceError::LimitTooSmall(limit) => {
                write!(
                    f,
                    "a hard limit of {limit} bytes is too small for any span; at least {MIN_HARD_LIMIT} are needed"
                )
            }
            SpaceError::Reserve(bytes) => write!(
                f,
                "a reserve of {bytes} bytes is out of range; between {MIN_RESERVE} and {MAX_RESERVE} are possible"
            ),
            SpaceError::TooManyEncodings(n) => {
                write!(
                    f,
                    "{n} encodings of conservative words; at most {MAX_ENCODINGS} are possible"
                )
            }
        }
    }
}

impl std::error::Error for SpaceError {}

impl From<MapError> for SpaceError {
    fn from(e: MapError) -> SpaceError {
        SpaceError::Map(e)
    }
}
