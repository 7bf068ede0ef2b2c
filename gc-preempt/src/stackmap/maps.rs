//! The table: slots by return address.

use std::ops::Range;

use crate::table_error::{StackMapError, StackMapErrorKind};
use crate::unwind::Table;

/// The stack maps of one range of managed code.
#[derive(Debug, Default)]
pub struct StackMaps {
    /// Functions whose extent is known, sorted, disjoint.
    functions: Vec<Range<usize>>,
    /// Addresses of functions of unknown extent. Only registration reads them.
    entries: Vec<usize>,
    /// Return addresses, sorted, distinct: the keys of `sites`.
    returns: Vec<usize>,
    pub(super) sites: Vec<SiteRecord>,
    slots: Vec<Slot>,
    /// Unwind tables of code that is in no module of the loader.
    unwind: Option<Table>,
}

/// The register that a slot's place counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum BaseRegister {
    /// The frame's SP during the call.
    Sp,
    /// The frame's RBP.
    Rbp,
}

/// A word of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FrameWord {
    pub(crate) from: BaseRegister,
    pub(crate) offset: i32,
}

/// A reference in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot {
    /// Where the reference lies.
    pub(crate) edge: FrameWord,
    /// Where a word lies that was computed from the reference, if the compiler says so.
    pub(crate) derived: Option<FrameWord>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct SiteRecord {
    pub(super) known: bool,
    layout: Layout,
    first: u32,
    count: u32,
}

/// The layout of a frame during one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes from SP up to FP in frames laid out by RBP. In frames of LLVM it is the function's
    /// stack size without pushed arguments, or `None` with dynamic allocas; only the unwind tables
    /// give the distance to the return address.
    pub(crate) span: Option<u32>,
    /// Bytes below FP that may hold registers of the frame's caller. Zero for frames with unwind
    /// tables, which give it.
    pub(crate) clobber: u32,
    /// Bytes from SP upwards that may hold arguments of the call. `None`: the whole frame may.
    pub(crate) outgoing: Option<u32>,
}

/// The entry of one return address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site<'a> {
    /// Whether `slots` holds all references.
    pub(crate) known: bool,
    pub(crate) layout: Layout,
    pub(crate) slots: &'a [Slot],
}

impl StackMaps {
    /// Adds the unwind tables of code that a compiler made in memory: a copy of an `.eh_frame`
    /// section that lies at `address`, after relocation. It replaces tables that were added before.
    ///
    /// Reading takes time and memory linear in the section's length. The section ends at an entry
    /// of length zero, as for the system's unwinder.
    ///
    /// Code with [`FrameRule::Cfi`](crate::FrameRule::Cfi) in a loaded module needs none: the
    /// module's tables are used.
    ///
    /// # Errors
    /// The section is malformed, or two of its entries overlap: the error says where.
    pub fn with_eh_frame(mut self, section: &[u8], address: usize) -> Result<Self, StackMapError> {
        self.unwind = Some(Table::parse(section, address)?);
        Ok(self)
    }

    pub(crate) fn unwind_table(&self) -> Option<&Table> {
        self.unwind.as_ref()
    }

    /// The number of return addresses in the table.
    pub fn len(&self) -> usize {
        self.returns.len()
    }

    /// Whether the table holds no return address.
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

    /// An address in the table that is not in `range`, if there is one.
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
                        BaseRegister::Sp => 0..limit,
                        BaseRegister::Rbp => -limit..0,
                    };
                    assert!(frame.contains(&place.offset) && place.offset % 8 == 0);
                }
            }
        }
    }
}

/// Collects sites in any order, then sorts them.
#[derive(Default)]
pub(super) struct Sites {
    /// (return address, where the input says so, record)
    sites: Vec<(usize, usize, SiteRecord)>,
    slots: Vec<Slot>,
}

impl Sites {
    pub(super) fn push(
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
        let fits = |n: usize| u32::try_from(n).map_err(|_| StackMapErrorKind::TooBig.at(at));
        let record = SiteRecord {
            known,
            layout,
            first: fits(first)?,
            count: fits(last - first)?,
        };
        self.sites.push((return_address, at, record));
        Ok(())
    }

    pub(super) fn finish(
        mut self,
        functions: Vec<Range<usize>>,
        entries: Vec<usize>,
    ) -> Result<StackMaps, StackMapError> {
        self.sites
            .sort_unstable_by_key(|&(address, at, _)| (address, at));
        if let Some(pair) = self.sites.windows(2).find(|w| w[0].0 == w[1].0) {
            return Err(StackMapErrorKind::Twice {
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
