//! What can be wrong with stack maps and unwind tables that code is registered with.

use std::fmt;

/// Bytes of a CIE (what entries of an unwind table share) at most. Compilers make 20 to 40.
pub(crate) const MAX_CIE: usize = 512;

/// A stack map or an unwind table is malformed: how, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackMapError {
    /// How.
    pub kind: StackMapErrorKind,
    /// Where: for LLVM, bytes from the start of the section; for Cranelift, the address of the
    /// function or the return address.
    pub at: usize,
}

impl fmt::Display for StackMapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed stack map at {:#x}: {}", self.at, self.kind)
    }
}

impl std::error::Error for StackMapError {}

/// How a stack map or an unwind table is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StackMapErrorKind {
    /// The input ends in the middle of something.
    Truncated {
        /// How many bytes were to be read.
        wanted: usize,
        /// How many there are.
        left: usize,
    },
    /// The header's version.
    Version(u8),
    /// A function's address is zero: the section was not relocated.
    NotRelocated,
    /// The functions' record counts do not add up to the header's.
    Counts {
        /// The sum over the functions.
        functions: u64,
        /// What the header says.
        header: u32,
    },
    /// A location is of a kind that the format does not have.
    LocationKind(u8),
    /// A location names a constant that is not in the pool.
    Constant {
        /// The index.
        index: i32,
        /// The pool's size.
        pool: u32,
    },
    /// A record ends before its deopt values, of which it says that it has so many.
    Deopt(u64),
    /// A record has an odd number of locations after its deopt values.
    Unpaired(usize),
    /// The two halves of a pair differ in size.
    PairSizes {
        /// Bytes of the base.
        base: u16,
        /// Bytes of the derived pointer.
        derived: u16,
    },
    /// A reference is not a whole number of eight-byte words.
    SlotSize(u16),
    /// A slot does not lie in its frame, or is not on an eight-byte boundary.
    Slot {
        /// Its place, in bytes from SP (or from RBP, if negative).
        offset: i64,
        /// Bytes in which it would have to lie.
        frame: u32,
    },
    /// A frame's size is not a multiple of eight, or is beyond 1 GiB.
    FrameSize(u64),
    /// A part of a frame is bigger than the frame.
    FramePart {
        /// Bytes of the saved registers or the outgoing arguments.
        part: u32,
        /// Bytes of the frame.
        frame: u32,
    },
    /// A call does not return into its function.
    ReturnOffset {
        /// Its return address, in bytes from the function's address.
        offset: u32,
        /// Bytes of the function.
        size: u32,
    },
    /// A function holds no code, or reaches past the end of the address space.
    FunctionSize(u32),
    /// A function overlaps another.
    FunctionOverlap {
        /// The other's address.
        other: usize,
    },
    /// Two entries for one return address.
    Twice {
        /// That address.
        return_address: usize,
    },
    /// An address beyond the end of the address space.
    Address,
    /// An entry of the unwind tables cannot be read, or overlaps another.
    Unwind,
    /// The part that entries of the unwind tables share (a CIE) is longer than 512 bytes.
    UnwindCie {
        /// Its length.
        bytes: usize,
    },
    /// More than four thousand million slots.
    TooBig,
}

impl StackMapErrorKind {
    pub(crate) fn at(self, at: usize) -> StackMapError {
        StackMapError { kind: self, at }
    }
}

impl fmt::Display for StackMapErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            StackMapErrorKind::Truncated { wanted, left } => {
                write!(f, "{wanted} bytes were expected, {left} are left")
            }
            StackMapErrorKind::Version(version) => {
                write!(f, "version {version}; only version 3 is understood (LLVM 4 or later)")
            }
            StackMapErrorKind::NotRelocated => f.write_str(
                "a function's address is zero; give the section of a loaded module, not of an object file",
            ),
            StackMapErrorKind::Counts { functions, header } => write!(
                f,
                "the functions have {functions} records, the header says {header}"
            ),
            StackMapErrorKind::LocationKind(kind) => {
                write!(f, "location kind {kind}; there are kinds 1 to 5")
            }
            StackMapErrorKind::Constant { index, pool } => {
                write!(f, "constant {index} of a pool of {pool}")
            }
            StackMapErrorKind::Deopt(count) => {
                write!(f, "{count} deopt values are announced, the record has fewer locations")
            }
            StackMapErrorKind::Unpaired(count) => write!(
                f,
                "{count} locations after the deopt values; references come in pairs, a base and what is derived from it"
            ),
            StackMapErrorKind::PairSizes { base, derived } => write!(
                f,
                "a base of {base} bytes with a derived pointer of {derived}; they must be equal"
            ),
            StackMapErrorKind::SlotSize(size) => {
                write!(f, "a reference of {size} bytes; it must be eight or a multiple of it")
            }
            StackMapErrorKind::Slot { offset, frame } => write!(
                f,
                "a slot at offset {offset}; it must be a multiple of eight inside the frame's {frame} bytes"
            ),
            StackMapErrorKind::FrameSize(size) => {
                write!(f, "a frame of {size} bytes; it must be a multiple of eight below 2^30")
            }
            StackMapErrorKind::FramePart { part, frame } => {
                write!(f, "a part of {part} bytes in a frame of {frame}")
            }
            StackMapErrorKind::ReturnOffset { offset, size } => {
                write!(f, "a call that returns to offset {offset} of a function of {size} bytes")
            }
            StackMapErrorKind::FunctionSize(size) => write!(f, "a function of {size} bytes at this address"),
            StackMapErrorKind::FunctionOverlap { other } => {
                write!(f, "the function overlaps the one at {other:#x}")
            }
            StackMapErrorKind::Twice { return_address } => {
                write!(f, "a second entry for the return address {return_address:#x}")
            }
            StackMapErrorKind::Address => f.write_str("an address beyond the end of the address space"),
            StackMapErrorKind::Unwind => f.write_str(
                "an entry of the unwind tables cannot be read or overlaps another; give the .eh_frame section with the address at which it was relocated",
            ),
            StackMapErrorKind::UnwindCie { bytes } => write!(
                f,
                "a CIE of {bytes} bytes in the unwind tables; more than {MAX_CIE} are not read, since they are run for each function"
            ),
            StackMapErrorKind::TooBig => f.write_str("more than 2^32 slots"),
        }
    }
}
