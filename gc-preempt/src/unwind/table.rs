//! Unwind tables that are registered with generated code.
//!
//! The input is untrusted: an entry that cannot be read is an error that says what and where. Time
//! and memory are linear in the section's length: each entry is read once, and a CIE has at most
//! [`MAX_CIE`](crate::table_error::MAX_CIE) bytes, since its instructions are run for each of its
//! FDEs.

use std::ops::Range;

use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindContext, UnwindSection};

use super::cfi::{Storage, rule_of};
use super::rule::Row;
use crate::table_error::{StackMapError, StackMapErrorKind};

/// A copy of an `.eh_frame` section and an index of its entries.
pub(crate) struct Table {
    section: Box<[u8]>,
    /// The address of the section when it was copied, to which its addresses are relative.
    address: usize,
    /// Each function's extent, and the offset of its entry; sorted, disjoint.
    pub(super) entries: Vec<(Range<usize>, usize)>,
}

impl Table {
    /// Reads a section that stands at `address`, up to its end or an entry of length zero.
    ///
    /// # Errors
    /// An entry cannot be read, or overlaps another: the error gives its offset.
    pub(crate) fn parse(section: &[u8], address: usize) -> Result<Self, StackMapError> {
        let frames = EhFrame::new(section, LittleEndian);
        let bases = BaseAddresses::default().set_eh_frame(address as u64);
        // In the order of their offsets.
        let mut cies = Vec::new();
        let mut entries = Vec::new();
        let mut context = UnwindContext::<usize, Storage>::new_in();
        let mut reached = 0;
        let mut input = frames.entries(&bases);
        while let Some(entry) = input
            .next()
            .map_err(|_| StackMapErrorKind::Unwind.at(reached))?
        {
            let entry = match entry {
                CieOrFde::Cie(cie) => {
                    reached = cie.offset();
                    let bytes = cie.entry_len();
                    if bytes > seam::max_cie() {
                        return Err(StackMapErrorKind::UnwindCie { bytes }.at(reached));
                    }
                    cies.push((reached, cie));
                    continue;
                }
                CieOrFde::Fde(entry) => entry,
            };
            // An FDE names its CIE by the distance back to it, which must lead to a CIE read
            // before.
            let entry = entry.parse(|_, _, at| {
                let found = cies.binary_search_by_key(&at.0, |(offset, _)| *offset);
                let found = found.ok().and_then(|i| cies.get(i));
                let (_, cie) = found.ok_or(gimli::Error::NotCieId(at.0 as u64))?;
                Ok(cie.clone())
            });
            let entry = entry.map_err(|_| StackMapErrorKind::Unwind.at(reached))?;
            reached = entry.offset();
            let bad = StackMapErrorKind::Unwind.at(reached);
            let start = entry.initial_address() as usize;
            let end = start.checked_add(entry.len() as usize).ok_or(bad)?;
            let mut rows = entry.rows(&frames, &bases, &mut context).map_err(|_| bad)?;
            while rows.next_row().map_err(|_| bad)?.is_some() {}
            if start < end {
                entries.push((start..end, reached));
            }
        }
        entries.sort_unstable_by_key(|(range, _)| range.start);
        match entries.windows(2).find(|w| w[0].0.end > w[1].0.start) {
            Some(pair) => Err(StackMapErrorKind::Unwind.at(pair[1].1)),
            None => Ok(Self {
                section: section.into(),
                address,
                entries,
            }),
        }
    }

    /// The functions that it speaks of.
    #[cfg(feature = "faults")]
    pub(crate) fn functions(&self) -> impl Iterator<Item = &Range<usize>> {
        self.entries.iter().map(|(function, _)| function)
    }

    pub(crate) fn look_up(&self, pc: usize) -> Option<Row> {
        let after = self.entries.partition_point(|(range, _)| range.start <= pc);
        let (range, offset) = self.entries.get(after.checked_sub(1)?)?;
        let section = EhFrame::new(&self.section, LittleEndian);
        range
            .contains(&pc)
            .then(|| rule_of(&section, self.address, *offset, pc))?
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "unwind tables of {} functions", self.entries.len())
    }
}

/// What tests may break here.
mod seam {
    use crate::faults::Fault;
    use crate::table_error::MAX_CIE;

    pub(super) fn max_cie() -> usize {
        if Fault::UnboundedCie.planted() {
            usize::MAX
        } else {
            MAX_CIE
        }
    }
}
