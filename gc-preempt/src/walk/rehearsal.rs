//! What a walk reports of one frame: a walk of a stack that is made up.
//!
//! The frame's words are zero, except for SP and RBP, which lie so far apart that the end of the
//! frame shows which of the two the walk has counted from. The walk is the one of a stop
//! ([`Walker::frame`]), so what it reports here is what it reports there.

use std::ops::Range;

use super::frame::{Frame, Next};
use super::sink::RootSink;
use super::walker::Walker;
use crate::code::{CodeMap, FrameRule};
use crate::context::Registers;
use crate::unwind::NEVER;

/// Bytes of the made-up stack below SP: more than a red zone.
const BELOW: usize = 4096;
/// Bytes from SP to RBP where no stack map gives the distance, and above RBP.
const FAR: usize = 1 << 20;

/// Where a frame ends: at its CFA, the address above its return address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameEnd {
    /// So many bytes above SP.
    Sp(isize),
    /// So many bytes above RBP.
    Fp(isize),
    /// The walk does not know the end. It reports all words up to the stack's base.
    StackBase,
}

/// What a walk reports of one frame. Places are in bytes from SP.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FrameReport {
    /// The frame's end.
    pub end: FrameEnd,
    /// Whether a stack map says where the frame's references are. Otherwise the whole frame is
    /// reported word by word.
    pub by_map: bool,
    /// Bytes from SP to the frame's end, if the end or a stack map gives them.
    pub length: Option<isize>,
    /// Words each of which may be a reference. In an interrupted frame whose end depends on RBP,
    /// they reach to the CFA, and their end here has no meaning. If the frame's end is the stack's
    /// base, the last range ends at `isize::MAX`.
    pub words: Vec<Range<isize>>,
    /// Words that are references.
    pub exact: Vec<isize>,
    /// Words that are references, each with a word that was computed from it.
    pub derived: Vec<(isize, isize)>,
}

/// Notes the words of one frame.
struct Notes {
    sp: usize,
    words: Vec<Range<isize>>,
    exact: Vec<isize>,
    derived: Vec<(isize, isize)>,
}

impl Notes {
    fn offset(&self, address: usize) -> isize {
        address.wrapping_sub(self.sp).cast_signed()
    }
}

impl RootSink for Notes {
    fn conservative(&mut self, words: Range<usize>) {
        let words = self.offset(words.start)..self.offset(words.end);
        self.words.push(words);
    }

    fn exact(&mut self, slot: usize, _: u32) {
        let slot = self.offset(slot);
        self.exact.push(slot);
    }

    fn derived(&mut self, base: usize, derived: usize, _: u32) {
        let pair = (self.offset(base), self.offset(derived));
        self.derived.push(pair);
    }
}

/// What a walk reports of a frame whose PC is `pc`: an interrupted frame, or one that has made a
/// call which returns to `pc`.
///
/// # Safety
/// The registry lock is held, and no stop is under way.
pub(crate) unsafe fn rehearse(code: &CodeMap, pc: usize, interrupted: bool) -> FrameReport {
    let inside = if interrupted { pc } else { pc.wrapping_sub(1) };
    // SAFETY: the registry lock is held.
    let managed = unsafe { code.managed(inside) };
    // The distance from SP to RBP that a map expects.
    let span = managed
        .filter(|managed| !interrupted && managed.frames == FrameRule::Rbp)
        .and_then(|managed| managed.maps.site(pc)?.layout.span)
        .map(|span| span as usize);
    let distance = span.unwrap_or(FAR);
    let stack = vec![0u64; (BELOW + distance + FAR) / 8];
    let stack = stack.as_ptr_range();
    let (low, end) = (stack.start as usize, stack.end as usize);
    let sp = low + BELOW;
    let fp = sp + distance;
    let registers = Registers::at_call(sp, fp, pc);
    let frame = match interrupted {
        true => Frame::interrupted(&registers),
        false => Frame::called(&registers),
    };
    let mut notes = Notes {
        sp,
        words: Vec::new(),
        exact: Vec::new(),
        derived: Vec::new(),
    };
    let mut walker = Walker::new(code, NEVER, low..end, &mut notes);
    let next = walker.frame(&frame, frame.low(), end);
    let cfa = next.map(|next| match next {
        Next::Frame(caller) => caller.sp(),
        Next::End { cfa } => cfa,
    });
    let by_map = walker.stats.precise > 0;
    let from = |base: usize, cfa: usize| cfa.wrapping_sub(base).cast_signed();
    let is_by_fp = |cfa: usize| cfa > fp && (span.is_some() || cfa - fp < FAR / 2);
    let (end, length) = match cfa {
        None => {
            let first = notes.offset(frame.low());
            notes.words.push(first..isize::MAX);
            (FrameEnd::StackBase, None)
        }
        Some(cfa) if is_by_fp(cfa) => (FrameEnd::Fp(from(fp, cfa)), span.map(|_| from(sp, cfa))),
        Some(cfa) => (FrameEnd::Sp(from(sp, cfa)), Some(from(sp, cfa))),
    };
    let Notes {
        words,
        exact,
        derived,
        ..
    } = notes;
    FrameReport {
        end,
        by_map,
        length,
        words,
        exact,
        derived,
    }
}
