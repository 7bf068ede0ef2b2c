//! What a walk has found out about the call sites that it meets again and again.
//!
//! A recursion, or a stack of a few interpreter loops, shows the same return addresses over and
//! over. Two binary searches and the checks of a site's slots cost 35 to 55 ns a frame; all they
//! say depends on the return address alone where frames are laid out by RBP, so it is kept in a few
//! entries that live as long as the walk does: 17 ns (best of 21 blocks, 10,000 frames). (Frames
//! that go by unwind tables have their own memory, see `unwind`.)

use crate::code::{FrameRule, Managed};
use crate::stackmap::{BaseRegister, FrameWord, Site};

/// Direct-mapped: a recursion through a handful of functions fits. Each walk begins with clearing
/// it.
const ENTRIES: usize = 8;

/// A call site whose frames are laid out by RBP, known to its map, with all its slots inside of the
/// frame.
#[derive(Clone, Copy)]
pub(super) struct CallSite<'a> {
    pc: usize,
    pub(super) encoding: u32,
    pub(super) site: Site<'a>,
    /// Bytes from SP to FP.
    pub(super) span: usize,
    /// Bytes below FP that may hold registers of the caller's.
    pub(super) clobber: usize,
    /// Bytes from SP upwards that may hold arguments.
    pub(super) outgoing: usize,
}

impl<'a> CallSite<'a> {
    /// `None`: the frame has to be looked at with more care.
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

    /// Where a slot is, counted from SP.
    pub(super) fn offset(&self, place: FrameWord) -> i64 {
        match place.from {
            BaseRegister::Sp => place.offset.into(),
            BaseRegister::Rbp => self.span as i64 + i64::from(place.offset),
        }
    }
}

/// The last call sites met.
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
