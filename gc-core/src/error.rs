//! The errors of allocation: no cell, no site, no heap. Each message says what is wrong and what
//! would cure it.

use std::fmt;

use crate::kind::{KindError, KindId};
use crate::limits::{
    MAX_ENCODINGS, MAX_RESERVE, MAX_SITES, MAX_SMALL, MIN_HARD_LIMIT, MIN_RESERVE,
};
use crate::memory::MapError;

/// A table of a heap has as many entries as it can have, or the system has no memory for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TableFull {
    /// The table's entries, as a plural noun: roots, root ranges, finalizers.
    pub table: &'static str,
    /// The cure: what the program can do.
    pub cure: &'static str,
}

impl fmt::Display for TableFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no room in the table of {}: {}", self.table, self.cure)
    }
}

impl std::error::Error for TableFull {}

impl From<TableFull> for AllocError {
    fn from(e: TableFull) -> AllocError {
        AllocError::TableFull(e)
    }
}

/// An allocation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AllocError {
    /// The heap's hard limit leaves no room.
    HeapLimit {
        /// The limit in bytes.
        limit: u64,
        /// The requested bytes.
        bytes: usize,
    },
    /// The heap's address range has no free page run of this length.
    Exhausted {
        /// The requested bytes.
        bytes: usize,
    },
    /// The system refused memory.
    System(MapError),
    /// There is no site, and no large object, of this kind and size.
    Site(SiteError),
    /// The type's kind could not be registered.
    Kind(KindError),
    /// One of the heap's tables is full.
    TableFull(TableFull),
    /// The request is larger than the heap's address range.
    TooLarge {
        /// The requested bytes.
        bytes: usize,
    },
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AllocError::HeapLimit { limit, bytes } => {
                write!(
                    f,
                    "no room for {bytes} bytes under the heap limit of {limit} bytes; raise hard_limit, or keep fewer cells alive"
                )
            }
            AllocError::Exhausted { bytes } => {
                write!(
                    f,
                    "the heap's address range has no free page run for {bytes} bytes; build the heap with a larger reserve"
                )
            }
            AllocError::System(e) => write!(f, "{e}"),
            AllocError::Site(e) => write!(f, "{e}"),
            AllocError::Kind(e) => write!(f, "{e}"),
            AllocError::TableFull(e) => write!(f, "{e}"),
            AllocError::TooLarge { bytes } => {
                write!(
                    f,
                    "{bytes} bytes are more than the heap's whole address range; build it with a larger reserve"
                )
            }
        }
    }
}

impl std::error::Error for AllocError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::System(error) => Some(error),
            Self::Site(error) => Some(error),
            Self::Kind(error) => Some(error),
            Self::TableFull(error) => Some(error),
            _ => None,
        }
    }
}

impl From<MapError> for AllocError {
    fn from(e: MapError) -> AllocError {
        AllocError::System(e)
    }
}

/// There is no site for a kind and a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SiteError {
    /// The kind belongs to another heap.
    UnknownKind(KindId),
    /// The kind has an edge beyond the end of a cell of this size.
    TooSmall {
        /// The requested bytes.
        bytes: usize,
        /// The least bytes of the kind's cells.
        least: usize,
    },
    /// The size is above [`MAX_SMALL`]: the cell is a large object, which has no site.
    Large {
        /// The requested bytes.
        bytes: usize,
    },
    /// The table of sites is full. Its length depends on the reserve.
    TooMany,
    /// The heap does not scan stacks, where the fast tier keeps its cells: see
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
                    "a cell of {bytes} bytes is too small for its kind, whose last edge ends at byte {least}"
                )
            }
            SiteError::Large { bytes } => {
                write!(
                    f,
                    "a cell of {bytes} bytes is a large object, which has no site (past_the_end adds a byte; above {MAX_SMALL} bytes an object is large)"
                )
            }
            SiteError::FastTier => f.write_str(
                "this heap was built with exact(true), so it does not scan stacks; allocate in a scope, or build the heap without exact(true)",
            ),
            SiteError::TooMany => write!(
                f,
                "the heap's table of sites is full (a site is a kind and a cell size; at most {}); use fewer kinds, or raise the reserve",
                MAX_SITES
            ),
            SiteError::System(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for SiteError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::System(error) => Some(error),
            _ => None,
        }
    }
}

/// The heap's address range could not be laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpaceError {
    /// The system refused the address space.
    Map(MapError),
    /// The hard limit is smaller than a span. [`HeapBuilder`](crate::HeapBuilder) refuses any limit
    /// below [`MINIMUM_LIMIT`](crate::MINIMUM_LIMIT) before.
    LimitTooSmall(u64),
    /// The reserve is below [`MINIMUM_RESERVE`](crate::MINIMUM_RESERVE), or above 4 TiB, the most
    /// that a heap's tables can number.
    Reserve(u64),
    /// There are more than eight conservative encodings.
    TooManyEncodings(usize),
}

impl fmt::Display for SpaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SpaceError::Map(e) => write!(f, "no address space for a heap: {e}"),
            SpaceError::LimitTooSmall(limit) => {
                write!(
                    f,
                    "a hard limit of {limit} bytes is too small; it must be at least {MIN_HARD_LIMIT} bytes"
                )
            }
            SpaceError::Reserve(bytes) => write!(
                f,
                "a reserve of {bytes} bytes is out of range; it must be between {MIN_RESERVE} and {MAX_RESERVE} bytes"
            ),
            SpaceError::TooManyEncodings(n) => {
                write!(
                    f,
                    "a heap cannot have {n} conservative encodings; at most {MAX_ENCODINGS} are possible"
                )
            }
        }
    }
}

impl std::error::Error for SpaceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Map(error) => Some(error),
            _ => None,
        }
    }
}

impl From<MapError> for SpaceError {
    fn from(e: MapError) -> SpaceError {
        SpaceError::Map(e)
    }
}
