//! The call sites that a walk has met last.
//!
//! A recursion, or a stack of a few interpreter loops, contains the same return addresses many
//! times. For frames laid out by RBP, the result of the look-ups and of the checks of a site's
//! slots depends on the return address alone. So it is kept in a few entries for the duration of
//! the walk. (For frames with unwind tables `unwind` keeps rules.)

use crate::code::{FrameRule, Managed};
use crate::stackmap::{BaseRegister, FrameWord, Site};

/// Entries of the direct-mapped table. A recursion through a few functions fits; each walk clears
/// them first, so more would make short walks slower.
const ENTRIES: usize = 8;

/// A call site of a frame laid out by RBP, whose map knows all slots, all of them inside of the
/// frame.
#[derive(Clone, Copy)]
pub(super) struct CallSite<'a> {
    pc: usize,
    pub(super) encoding: u32,
    pub(super) site: Site<'a>,
    /// Bytes from SP to FP.
    pub(super) span: usize,
    /// Bytes below FP that may hold registers of the caller.
    pub(super) clobber: usize,
    /// Bytes from SP upwards that may hold arguments.
    pub(super) outgoing: usize,
}

impl<'a> CallSite<'a> {
    /// `None`: the site does not satisfy these conditions.
    pub(super) fn new(pc: usize, managed: &Managed<'a>) -> Option<Self> {
        let (FrameRule::Rbp, Some(_)) = (managed.frames, managed.maps.function(pc - 1)) else {
            return None;
        };
        let site = managed.maps.site(pc).filter(|site| site.known)?;
        let span = site.layout.span?;
        let known = Self {
            pc,
            encoding: managed.encoding,
            site,
            span: span as usize,
            clobber: site.layout.clobber as usize,
            outgoing: site.layout.outgoing? as usize,
        };
        let body = i64::from(span) - i64::from(site.layout.clobber);
        let inside = |place: FrameWord| {
            let at = known.offset(place);
            (0..body).contains(&at) && at % 8 == 0
        };
        let mut places = site
            .slots
            .iter()
            .flat_map(|s| [Some(s.edge), s.derived])
            .flatten();
        (places.all(inside) && span.is_multiple_of(8) && known.outgoing <= known.span)
            .then_some(known)
    }

    /// The place of a slot, in bytes from SP.
    pub(super) fn offset(&self, place: FrameWord) -> i64 {
        match place.from {
            BaseRegister::Sp => place.offset.into(),
            BaseRegister::Rbp => self.span as i64 + i64::from(place.offset),
        }
    }
}

/// The call sites met last.
pub(super) struct RecentCallSites<'a>([Option<CallSite<'a>>; ENTRIES]);

impl<'a> RecentCallSites<'a> {
    pub(super) fn new() -> Self {
        Self([const { None }; ENTRIES])
    }

    fn place(pc: usize) -> usize {
        // Fibonacci hashing: call sites are close together and far from random in their low bits.
        ((pc as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61) as usize % ENTRIES
    }

    pub(super) fn get(&self, pc: usize) -> Option<CallSite<'a>> {
        self.0[Self::place(pc)].filter(|known| known.pc == pc)
    }

    pub(super) fn keep(&mut self, known: CallSite<'a>) {
        self.0[Self::place(known.pc)] = Some(known);
    }
}
