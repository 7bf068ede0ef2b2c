//! The table itself: slots by return address.

use std::ops::Range;

use crate::table_error::{StackMapError, StackMapErrorKind};
use crate::unwind::Table;

/// The stack maps of one range of managed code.
#[derive(Debug, Default)]
pub struct StackMaps {
    /// Functions whose extent is known, sorted, disjoint.
    functions: Vec<Range<usize>>,
    /// Addresses of functions of unknown extent. Only looked at when the code is registered.
    entries: Vec<usize>,
    /// Return addresses, sorted, distinct: the keys of `sites`.
    returns: Vec<usize>,
    pub(super) sites: Vec<SiteRecord>,
    slots: Vec<Slot>,
    /// Unwind tables of code that no module of the loader's holds.
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
    /// Where a word lies that was computed from it, if the compiler says so.
    pub(crate) derived: Option<FrameWord>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct SiteRecord {
    pub(super) known: bool,
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
