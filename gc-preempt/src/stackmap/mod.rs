//! The stack-map table: for a return address into managed code, where the frame's references lie.
//!
//! Each compiler's format has a reader of its own ([`cranelift`], [`llvm`]), and all make the same
//! table. It is built outside of any stop and read in the stopped world by a binary search; reading
//! allocates nothing and cannot fail.
//!
//! What is *not* in the table is not "no references". A return address without an entry may be a
//! call that the compiler made on its own, so the walker scans such a frame conservatively, and so
//! it does where an entry says that the compiler does not know ([`cranelift::Site::known`]).

use std::fmt;
use std::ops::Range;

#[cfg(test)]
mod compiled;
use crate::unwind::{MAX_CIE, Table};

pub mod cranelift;
pub mod llvm;
#[cfg(test)]
mod tests;

/// The stack maps of one range of managed code.
#[derive(Debug, Default)]
pub struct StackMaps {
    /// Functions whose extent is known, sorted, disjoint.
    functions: Vec<Range<usize>>,
    /// Addresses of functions of unknown extent. Only looked at when the code is registered.
    entries: Vec<usize>,
    /// Return addresses, sorted, distinct: the keys of `sites`.
    returns: Vec<usize>,
    sites: Vec<SiteRecord>,
    slots: Vec<Slot>,
    /// Unwind tables of code that no module of the loader's holds.
    unwind: Option<Table>,
}

/// The register that a slot's place counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum From {
    /// The frame's SP during the call.
    Sp,
    /// The frame's RBP.
    Rbp,
}

/// A word of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) from: From,
    pub(crate) offset: i32,
}

/// A reference in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot {
    /// Where the reference lies.
    pub(crate) edge: Place,
    /// Where a word lies that was computed from it, if the compiler says so.
    pub(crate) derived: Option<Place>,
}

#[derive(Clone, Copy, Debug)]
struct SiteRecord {
    known: bool,
    layout: Layout,
    first: u32,
    count: u32,
}

/// What a frame looks like during one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes from SP up to FP in frames laid out by RBP. In others only the unwind tables know how
    /// far it is to the return address; this is LLVM's word for it, without pushed arguments, or
    /// `None` with dynamic allocas.
    pub(crate) span: Option<u32>,
    /// Bytes below FP that may hold registers of the frame's caller. The unwind tables say it for
    /// frames that go by CFI, and this is zero.
    pub(crate) clobber: u32,
    /// Bytes from SP upwards that may hold arguments of the call. `None`: perhaps all of the frame.
    pub(crate) outgoing: Option<u32>,
}

/// The entry of one return address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site<'a> {
    /// Whether `slots` is all there is.
    pub(crate) known: bool,
    pub(crate) layout: Layout,
    pub(crate) slots: &'a [Slot],
}

impl StackMaps {
    /// The table of functions that Cranelift compiled; see [`cranelift`].
    ///
    /// # Errors
    /// If the facts contradict each other: the error says which and where.
    pub fn from_cranelift(functions: &[cranelift::Function]) -> Result<Self, StackMapError> {
        cranelift::build(functions)
    }

    /// The table in a `.llvm_stackmaps` section as it stands in memory after relocation; see
    /// [`llvm`].
    ///
    /// Reading it takes time and memory in proportion to its length.
    ///
    /// # Errors
    /// If the section is malformed in any way: the error says in what and where.
    pub fn from_llvm(section: &[u8]) -> Result<Self, StackMapError> {
        llvm::parse(section)
    }

    /// Adds the unwind tables of code that a compiler made in memory: an `.eh_frame` section as it
    /// stands at `address`, after relocation. It is copied. It takes the place of one that was
    /// given before.
    ///
    /// Reading it takes time and memory in proportion to its length. It ends at an entry of length
    /// zero, as for the system's unwinder.
    ///
    /// Code that goes by [`FrameRule::Cfi`](crate::FrameRule::Cfi) and was loaded by the dynamic
    /// loader needs none, its module's are found.
    ///
    /// # Errors
    /// If the section is malformed or two of its entries overlap: the error says where.
    pub fn with_eh_frame(mut self, section: &[u8], address: usize) -> Result<Self, StackMapError> {
        self.unwind = Some(Table::parse(section, address)?);
        Ok(self)
    }

    pub(crate) fn unwind_table(&self) -> Option<&Table> {
        self.unwind.as_ref()
    }

    /// How many return addresses the table knows.
    pub fn len(&self) -> usize {
        self.returns.len()
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.returns.is_empty()
    }

    /// The entry for a return address.
    pub(crate) fn site(&self, return_address: usize) -> Option<Site<'_>> {
        let at = self.returns.binary_search(&return_address).ok()?;
        let site = self.sites.get(at)?;
        let first = site.first as usize;
        Some(Site {
            known: site.known,
            layout: site.layout,
            slots: self.slots.get(first..first + site.count as usize)?,
        })
    }

    /// The start of the function that `pc` lies in, where functions' extents are known.
    pub(crate) fn function(&self, pc: usize) -> Option<usize> {
        let after = self.functions.partition_point(|f| f.start <= pc);
        let function = self.functions.get(after.checked_sub(1)?)?;
        (pc < function.end).then_some(function.start)
    }

    /// An address that the table speaks of and that is not in `range`, if there is one.
    pub(crate) fn outside(&self, range: &Range<usize>) -> Option<usize> {
        let functions = self.functions.iter().find_map(|f| {
            if !range.contains(&f.start) {
                Some(f.start)
            } else {
                (f.end > range.end).then_some(f.end - 1)
            }
        });
        let entry = || self.entries.iter().copied().find(|at| !range.contains(at));
        // A call that never returns may be the last instruction: its return address is the range's
        // end.
        let site = || {
            self.returns
                .iter()
                .copied()
                .find(|&at| at <= range.start || at > range.end)
        };
        functions.or_else(entry).or_else(site)
    }
}

#[cfg(feature = "faults")]
impl StackMaps {
    /// Checks what a reader has made of an input of so many bytes: it has taken memory in
    /// proportion, and every slot lies in its frame.
    ///
    /// # Panics
    /// If not.
    pub(crate) fn check(&self, bytes: usize) {
        // The smallest record takes 24 bytes, and a pair of locations likewise, which names a
        // register's eight words at most.
        assert!(self.sites.len() <= bytes / 24 && self.slots.len() <= bytes / 24 * 8);
        assert!(self.functions.len() + self.entries.len() <= bytes / 24);
        assert!(self.returns.is_sorted_by(|a, b| a < b));
        for return_address in &self.returns {
            let site = self.site(*return_address).expect("it is in the table");
            // Arguments may be pushed below the frame.
            let limit = site.layout.span.unwrap_or(1 << 30) as i32 + (1 << 16);
            for slot in site.slots {
                for place in [Some(slot.edge), slot.derived].into_iter().flatten() {
                    let frame = match place.from {
                        From::Sp => 0..limit,
                        From::Rbp => -limit..0,
                    };
                    assert!(frame.contains(&place.offset) && place.offset % 8 == 0);
                }
            }
        }
    }
}

/// Collects sites in any order, then sorts them.
#[derive(Default)]
struct Sites {
    /// (return address, where the input says so, record)
    sites: Vec<(usize, usize, SiteRecord)>,
    slots: Vec<Slot>,
}

impl Sites {
    fn push(
        &mut self,
        return_address: usize,
        at: usize,
        known: bool,
        layout: Layout,
        slots: impl IntoIterator<Item = Slot>,
    ) -> Result<(), StackMapError> {
        let first = self.slots.len();
        self.slots.extend(slots);
        self.slots[first..].sort_unstable();
        let mut last = first;
        for next in first..self.slots.len() {
            if next == first || self.slots[next] != self.slots[last - 1] {
                self.slots[last] = self.slots[next];
                last += 1;
            }
        }
        self.slots.truncate(last);
        let fits = |n: usize| u32::try_from(n).map_err(|_| Fault::TooBig.at(at));
        let record = SiteRecord {
            known,
            layout,
            first: fits(first)?,
            count: fits(last - first)?,
        };
        self.sites.push((return_address, at, record));
        Ok(())
    }

    fn finish(
        mut self,
        functions: Vec<Range<usize>>,
        entries: Vec<usize>,
    ) -> Result<StackMaps, StackMapError> {
        self.sites
            .sort_unstable_by_key(|&(address, at, _)| (address, at));
        if let Some(pair) = self.sites.windows(2).find(|w| w[0].0 == w[1].0) {
            return Err(Fault::Twice {
                return_address: pair[1].0,
            }
            .at(pair[1].1));
        }
        Ok(StackMaps {
            functions,
            entries,
            returns: self.sites.iter().map(|s| s.0).collect(),
            sites: self.sites.into_iter().map(|s| s.2).collect(),
            slots: self.slots,
            unwind: None,
        })
    }
}

/// What is wrong with a stack map, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackMapError {
    /// What is wrong.
    pub fault: Fault,
    /// Where: for LLVM, bytes from the start of the section; for Cranelift, the address of the
    /// function or the return address.
    pub at: usize,
}

impl fmt::Display for StackMapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed stack map at {:#x}: {}", self.at, self.fault)
    }
}

impl std::error::Error for StackMapError {}

/// What can be wrong with a stack map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The input ends in the middle of something.
    Truncated {
        /// How many bytes were to be read.
        wanted: usize,
        /// How many there are.
        left: usize,
    },
    /// The header's version.
    Version(u8),
    /// A function's address is zero: nobody relocated the section.
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

impl Fault {
    pub(crate) fn at(self, at: usize) -> StackMapError {
        StackMapError { fault: self, at }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Fault::Truncated { wanted, left } => {
                write!(f, "{wanted} bytes were expected, {left} are left")
            }
            Fault::Version(version) => {
                write!(f, "version {version}; only version 3 is understood (LLVM 4 or later)")
            }
            Fault::NotRelocated => f.write_str(
                "a function's address is zero; give the section of a loaded module, not of an object file",
            ),
            Fault::Counts { functions, header } => write!(
                f,
                "the functions have {functions} records, the header says {header}"
            ),
            Fault::LocationKind(kind) => {
                write!(f, "location kind {kind}; there are kinds 1 to 5")
            }
            Fault::Constant { index, pool } => {
                write!(f, "constant {index} of a pool of {pool}")
            }
            Fault::Deopt(count) => {
                write!(f, "{count} deopt values are announced, the record has fewer locations")
            }
            Fault::Unpaired(count) => write!(
                f,
                "{count} locations after the deopt values; references come in pairs, a base and what is derived from it"
            ),
            Fault::PairSizes { base, derived } => write!(
                f,
                "a base of {base} bytes with a derived pointer of {derived}; they must be equal"
            ),
            Fault::SlotSize(size) => {
                write!(f, "a reference of {size} bytes; it must be eight or a multiple of it")
            }
            Fault::Slot { offset, frame } => write!(
                f,
                "a slot at offset {offset}; it must be a multiple of eight inside the frame's {frame} bytes"
            ),
            Fault::FrameSize(size) => {
                write!(f, "a frame of {size} bytes; it must be a multiple of eight below 2^30")
            }
            Fault::FramePart { part, frame } => {
                write!(f, "a part of {part} bytes in a frame of {frame}")
            }
            Fault::ReturnOffset { offset, size } => {
                write!(f, "a call that returns to offset {offset} of a function of {size} bytes")
            }
            Fault::FunctionSize(size) => write!(f, "a function of {size} bytes at this address"),
            Fault::FunctionOverlap { other } => {
                write!(f, "the function overlaps the one at {other:#x}")
            }
            Fault::Twice { return_address } => {
                write!(f, "a second entry for the return address {return_address:#x}")
            }
            Fault::Address => f.write_str("an address beyond the end of the address space"),
            Fault::Unwind => f.write_str(
                "an entry of the unwind tables cannot be read or overlaps another; give the .eh_frame section with the address at which it was relocated",
            ),
            Fault::UnwindCie { bytes } => write!(
                f,
                "a CIE of {bytes} bytes in the unwind tables; more than {MAX_CIE} are not read, since they are run for each function"
            ),
            Fault::TooBig => f.write_str("more than 2^32 slots"),
        }
    }
}
