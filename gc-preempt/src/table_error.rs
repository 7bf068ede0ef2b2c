//! Errors of the stack maps and unwind tables that code is registered with.

use std::fmt;

/// The most bytes of a CIE, the part that entries of an unwind table share. Compilers make 20 to
/// 40.
pub(crate) const MAX_CIE: usize = 512;

/// A stack map or an unwind table is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackMapError {
    /// The kind of the error.
    pub kind: StackMapErrorKind,
    /// The place of the error: for LLVM, bytes from the start of the section; for Cranelift, the
    /// address of the function or the return address.
    pub at: usize,
}

impl fmt::Display for StackMapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed stack map at {:#x}: {}", self.at, self.kind)
    }
}

impl std::error::Error for StackMapError {}

/// The kinds of errors in stack maps and unwind tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StackMapErrorKind {
    /// The input ends inside an entry.
    Truncated {
        /// The bytes that were needed.
        wanted: usize,
        /// The bytes that were left.
        left: usize,
    },
    /// The version in the header is not supported.
    Version(u8),
    /// A function's address is zero: the section was not relocated.
    NotRelocated,
    /// The record counts of all functions do not add up to the header's count.
    Counts {
        /// The sum of the functions' counts.
        functions: u64,
        /// The header's count.
        header: u32,
    },
    /// The format has no location of this kind.
    LocationKind(u8),
    /// A location names a constant outside of the pool.
    Constant {
        /// The index of the constant.
        index: i32,
        /// The number of constants in the pool.
        pool: u32,
    },
    /// A record ends before its deopt values; this is the number of values that it announces.
    Deopt(u64),
    /// A record has an odd number of locations after its deopt values.
    Unpaired(usize),
    /// The base and the derived pointer of a pair differ in size.
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
        /// The slot's offset in bytes: from SP, or from RBP if it is negative.
        offset: i64,
        /// The bytes in which the slot would have to lie.
        frame: u32,
    },
    /// A frame's size is not a multiple of eight, or is beyond 1 GiB.
    FrameSize(u64),
    /// A part of a frame is larger than the frame.
    FramePart {
        /// Bytes of the saved registers or the outgoing arguments.
        part: u32,
        /// Bytes of the frame.
        frame: u32,
    },
    /// A call does not return into its function.
    ReturnOffset {
        /// The return address, in bytes from the function's address.
        offset: u32,
        /// Bytes of the function.
        size: u32,
    },
    /// A function has no code, or reaches past the end of the address space.
    FunctionSize(u32),
    /// A function overlaps another.
    FunctionOverlap {
        /// The address of the other function.
        other: usize,
    },
    /// Two entries have the same return address.
    Twice {
        /// The return address.
        return_address: usize,
    },
    /// An address lies beyond the end of the address space.
    Address,
    /// An entry of the unwind tables cannot be read, or overlaps another.
    Unwind,
    /// A CIE, the part that entries of an unwind table share, is longer than 512 bytes.
    UnwindCie {
        /// The bytes of the CIE.
        bytes: usize,
    },
    /// There are more slots than 32 bits can number.
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
