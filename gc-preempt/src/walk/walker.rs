//! The walk from frame to frame.

use std::ops::Range;
use std::ptr;

use super::call_sites::{CallSite, RecentCallSites};
use super::frame::{Frame, Next, Stack, Step};
use super::signal_frames::WORDS;
use super::sink::{RootSink, WalkStats};
use crate::arch::{self, RED_ZONE};
use crate::code::{CodeMap, FrameRule, Managed, PcClass};
use crate::context::{RBP, Registers};
use crate::own_stack::StackBounds;
use crate::stackmap::{BaseRegister, FrameWord, Site};
use crate::unwind::{self, Back, Rule, Session};

/// Bytes of a stack that are prefetched before the walk begins.
pub(super) const AHEAD: usize = 8 << 10;

/// What handlers of the host have interrupted, as far as a walk has looked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BehindHandlers {
    /// No handler returns into a restart range any more, nor into an unsafe range.
    Moved,
    /// A handler has interrupted an unsafe range: the thread must not be stopped now.
    Unsafe,
    /// The walk has ended before the stack's end, and has found no unsafe range.
    TooDeep,
}

/// One walk of a stack.
pub(super) struct Walker<'a> {
    code: &'a CodeMap,
    recent: RecentCallSites<'a>,
    session: Session,
    stack: Stack,
    sink: &'a mut dyn RootSink,
    pub(super) stats: WalkStats,
    /// The stack of the thread. `None` for a walk of the caller's own frames.
    pub(super) bounds: Option<StackBounds<'a>>,
    /// Frames of the thread may lie below the innermost frame, which is then on another stack
    /// inside of the thread's.
    below: bool,
    /// Frames that may still be walked.
    pub(super) left: u32,
    pub(super) behind: BehindHandlers,
    #[cfg(test)]
    pub(super) trace: Vec<usize>,
}

impl<'a> Walker<'a> {
    /// A walk that has not begun.
    pub(super) fn new(
        code: &'a CodeMap,
        number: u64,
        stack: Range<usize>,
        sink: &'a mut dyn RootSink,
    ) -> Self {
        Self {
            code,
            recent: RecentCallSites::new(),
            session: Session::new(number),
            stack: Stack(stack.start.next_multiple_of(8)..stack.end & !7),
            sink,
            stats: WalkStats::default(),
            bounds: None,
            below: false,
            left: u32::MAX,
            behind: BehindHandlers::Moved,
            #[cfg(test)]
            trace: Vec::new(),
        }
    }

    /// Reports the registers of an interruption.
    pub(super) fn saved(&mut self, registers: &Registers, vectors: &Range<usize>) {
        let gpr = registers.gpr.as_ptr_range();
        self.report(seam::registers(gpr.start as usize..gpr.end as usize));
        // SAFETY: the snapshot's image, or that of an interruption that it lists: readable, by
        // `walk`'s contract.
        unsafe { arch::state_in_use(vectors, |words| self.report(words)) };
    }

    fn report(&mut self, words: Range<usize>) {
        if !words.is_empty() {
            self.sink.conservative(words);
        }
    }

    /// Walks from the innermost frame outwards.
    pub(super) fn run(&mut self, mut frame: Frame) {
        if !self.stack.0.contains(&frame.sp()) {
            // That stack is not known, and any word of the thread's own stack may be alive.
            self.stats.to_base = true;
            self.stats.conservative += 1;
            let all = self.stack.0.clone();
            self.search(&all);
            return self.report(all);
        }
        let first = frame.low().max(self.stack.0.start);
        loop {
            if self.left == 0 {
                self.too_deep();
                return;
            }
            self.left -= 1;
            seam::delay();
            #[cfg(test)]
            self.trace.push(frame.pc);
            let low = frame.low().max(self.stack.0.start);
            let limit = self.stack.0.end;
            frame = match self.frame(&frame, low, limit) {
                Some(Next::Frame(next)) => next,
                Some(Next::End { cfa }) => {
                    if self.bounds.as_ref().is_none_or(|f| f.is_outermost(cfa)) {
                        return;
                    }
                    self.below = true;
                    return self.lost(first, cfa);
                }
                None => return self.lost(first, low),
            };
        }
    }

    /// Reports every word from `low` on. If frames may lie below the innermost one, also every word
    /// below `first`.
    fn lost(&mut self, first: usize, low: usize) {
        self.stats.conservative += 1;
        self.stats.to_base = true;
        let all = self.stack.0.clone();
        let below = if self.below { all.start..first } else { 0..0 };
        for words in [low..all.end, below] {
            self.search(&words);
            self.report(words);
        }
    }

    /// Reports the frame of an injected call whose hook runs. The interrupted frame is next.
    fn injected(&mut self, low: usize, limit: usize) -> Option<Next> {
        let (saved, registers) = arch::injected_frame(low, |at| self.stack.word(at))?;
        let cfa = (registers.sp() - RED_ZONE) & !7;
        if cfa > limit {
            return None;
        }
        self.stats.injected += 1;
        self.stats.conservative += 1;
        // SAFETY: the image lies on the stack, below the registers that were just read.
        unsafe { arch::state_in_use(&(low..saved), |words| self.report(words)) };
        self.report(saved..cfa);
        seam::behind_an_injection(Frame::interrupted(&registers), limit)
    }

    /// Reports one frame and steps to its caller. `None`, with nothing reported: the frame's end is
    /// not known.
    pub(super) fn frame(&mut self, frame: &Frame, low: usize, limit: usize) -> Option<Next> {
        if !frame.interrupted
            && let Some(known) = self.recent.get(frame.pc)
        {
            return self.exact_by_call_site(frame, &known, low, limit);
        }
        if !frame.interrupted && frame.pc == arch::trampoline_back() {
            return self.injected(low, limit);
        }
        // SAFETY: the registry lock is held by `walk`'s contract.
        let managed = unsafe { self.code.managed(frame.inside()) };
        let Some(managed) = managed else {
            if !frame.interrupted && unwind::ends_a_context(frame.pc) {
                // The frame is its return address alone, which was read with the frame before.
                return Some(Next::End { cfa: frame.sp() });
            }
            let step = match self.session.rule(frame.inside(), None)? {
                Rule {
                    back: Back::Signal, ..
                } => {
                    self.below |= self.stack.interrupted_below(frame);
                    let (step, saved_pc) = self.stack.signal_frame(frame, limit)?;
                    self.behind_a_handler(step, saved_pc)
                }
                rule => self.stack.by_rule(frame, rule, limit)?,
            };
            return Some(self.word_by_word(low, step));
        };
        if !frame.interrupted
            && let Some(known) = CallSite::new(frame.pc, &managed)
        {
            self.recent.keep(known);
            return self.exact_by_call_site(frame, &known, low, limit);
        }
        let step = match managed.frames {
            FrameRule::Rbp if frame.interrupted => self.stack.by_place(frame, &managed, limit)?,
            FrameRule::Rbp => {
                // Only functions of the maps are known to keep RBP. Other code in the range may be
                // a stub.
                managed.maps.function(frame.inside())?;
                self.stack.by_rbp(frame, limit)?
            }
            FrameRule::Cfi => {
                let rule = self
                    .session
                    .rule(frame.inside(), managed.maps.unwind_table())?;
                if rule.back == Back::Signal {
                    return None;
                }
                self.stack.by_rule(frame, rule, limit)?
            }
        };
        if seam::has_no_map(frame) {
            return Some(self.word_by_word(low, step));
        }
        let Some(site) = managed.maps.site(frame.pc) else {
            self.stats.unknown_sites += 1;
            return Some(seam::of_unknown_site(self, low, step));
        };
        if !seam::is_known(&site) {
            return Some(self.word_by_word(low, step));
        }
        let body = match managed.frames {
            // A call site that `CallSite::new` has refused.
            FrameRule::Rbp => return Some(self.word_by_word(low, step)),
            FrameRule::Cfi => {
                // `saves` is a multiple of eight in every frame that compilers make.
                let saves = step.saves as usize;
                match step.cfa.checked_sub(saves).filter(|top| *top >= low) {
                    Some(top) => low..top & !7,
                    None => return Some(self.word_by_word(low, step)),
                }
            }
        };
        Some(self.exact(frame, &managed, &site, body, step))
    }

    /// Reports a frame at a call site whose layout is known, and steps to its caller.
    fn exact_by_call_site(
        &mut self,
        frame: &Frame,
        call: &CallSite<'_>,
        low: usize,
        limit: usize,
    ) -> Option<Next> {
        let step = self.stack.by_rbp(frame, limit)?;
        // The map counts from FP - span, which is where the callee's frame ended. Otherwise one of
        // the two is wrong.
        let fp = step.cfa - 16;
        if fp.checked_sub(call.span) != Some(low) {
            return None;
        }
        self.stats.precise += 1;
        for slot in call.site.slots {
            let at = |place| low.wrapping_add_signed(call.offset(place) as isize);
            let edge = at(slot.edge);
            match slot.derived {
                Some(derived) => self.sink.derived(edge, at(derived), call.encoding),
                None => self.sink.exact(edge, call.encoding),
            }
        }
        self.report(seam::arguments(low..low + call.outgoing));
        self.report(seam::saved_registers(fp - call.clobber..step.cfa - 8));
        Some(step.next)
    }

    /// Reports all of a frame word by word.
    fn word_by_word(&mut self, low: usize, step: Step) -> Next {
        self.stats.conservative += 1;
        self.report(low..step.cfa);
        step.next
    }

    /// Reports the slots of a managed frame, and its arguments and saved registers word by word.
    /// `body` ends where the saved registers begin.
    fn exact(
        &mut self,
        frame: &Frame,
        managed: &Managed<'_>,
        site: &Site<'_>,
        body: Range<usize>,
        step: Step,
    ) -> Next {
        let inside = |place: FrameWord| {
            let base = match place.from {
                BaseRegister::Sp => body.start,
                BaseRegister::Rbp => frame.get(RBP)?,
            };
            let address = base.checked_add_signed(place.offset as isize)?;
            (body.contains(&address) && address.is_multiple_of(8)).then_some(address)
        };
        let arguments = site
            .layout
            .outgoing
            .map(|bytes| body.start + bytes as usize);
        let sound = site
            .slots
            .iter()
            .flat_map(|s| [Some(s.edge), s.derived])
            .flatten()
            .all(|place| inside(place).is_some());
        let Some(arguments) = arguments.filter(|end| sound && *end <= step.cfa) else {
            return self.word_by_word(body.start, step);
        };
        self.stats.precise += 1;
        for slot in site.slots {
            let Some(edge) = inside(slot.edge) else {
                continue;
            };
            match slot.derived.and_then(inside) {
                Some(derived) => self.sink.derived(edge, derived, managed.encoding),
                None => self.sink.exact(edge, managed.encoding),
            }
        }
        self.report(seam::arguments(body.start..arguments));
        self.report(seam::saved_registers(body.end..step.cfa - 8));
        step.next
    }

    /// A step into the frame that a handler has interrupted. The PC to which the handler returns
    /// lies at `saved`.
    fn behind_a_handler(&mut self, mut step: Step, saved: usize) -> Step {
        if let Next::Frame(frame) = &mut step.next {
            match self.place(frame.pc) {
                PcClass::Restart { start } => {
                    self.put_back(saved, start);
                    frame.pc = start;
                }
                PcClass::Unsafe => self.behind = BehindHandlers::Unsafe,
                PcClass::Managed | PcClass::Native => {}
            }
        }
        step
    }

    /// The walk ends before the stack's end.
    fn too_deep(&mut self) {
        if self.behind == BehindHandlers::Moved {
            self.behind = BehindHandlers::TooDeep;
        }
    }

    /// Looks for signal frames among words whose frames are not known, in as many words as the
    /// frames that may still be walked have at most.
    fn search(&mut self, words: &Range<usize>) {
        let first = words.start.next_multiple_of(8);
        let most = (self.left as usize).saturating_mul(8 * WORDS);
        let end = first.saturating_add(most).min(words.end & !7);
        if end < words.end & !7 {
            self.too_deep();
        }
        for selectors in (first..end).step_by(8) {
            if let Some(saved) = self.stack.saved_pc(selectors)
                && let Some(pc) = self.stack.word(saved)
                && let PcClass::Restart { start } = self.place(pc)
            {
                self.put_back(saved, start);
            }
        }
    }

    fn place(&self, pc: usize) -> PcClass {
        // SAFETY: the registry lock is held, by `walk`'s contract.
        unsafe { self.code.classify(pc) }
    }

    fn put_back(&self, saved: usize, start: usize) {
        if seam::moves_handlers() {
            // SAFETY: a word of the stopped thread's stack, tested by the reads that came before:
            // the PC of a signal frame, which only the return from that signal will read.
            unsafe { ptr::write_volatile(saved as *mut usize, start) };
        }
    }
}

/// What tests may break here.
mod seam {
    use std::ops::Range;

    use super::{Frame, Next, Site, Step, Walker};
    use crate::clock;
    use crate::faults::{Delay, Fault};

    fn unless(fault: Fault, words: Range<usize>) -> Range<usize> {
        if fault.planted() { 0..0 } else { words }
    }

    pub(super) fn registers(words: Range<usize>) -> Range<usize> {
        unless(Fault::NoRegisters, words)
    }

    pub(super) fn arguments(words: Range<usize>) -> Range<usize> {
        unless(Fault::NoArguments, words)
    }

    pub(super) fn saved_registers(words: Range<usize>) -> Range<usize> {
        unless(Fault::NoSavedRegisters, words)
    }

    /// The frame that an injected call has interrupted is next, and then its callers.
    pub(super) fn behind_an_injection(interrupted: Frame, limit: usize) -> Option<Next> {
        if Fault::WordsBehindInjection.planted() {
            return None;
        }
        if Fault::EndsBehindInjection.planted() {
            return Some(Next::End { cfa: limit });
        }
        Some(Next::Frame(interrupted))
    }

    /// No map speaks of a frame that was interrupted.
    pub(super) fn has_no_map(frame: &Frame) -> bool {
        frame.interrupted && !Fault::MapBehindInterruption.planted()
    }

    pub(super) fn is_known(site: &Site<'_>) -> bool {
        site.known || Fault::TrustMissingMaps.planted()
    }

    pub(super) fn of_unknown_site(walker: &mut Walker<'_>, low: usize, step: Step) -> Next {
        if Fault::TrustMissingMaps.planted() {
            return step.next;
        }
        walker.word_by_word(low, step)
    }

    pub(super) fn moves_handlers() -> bool {
        !Fault::NoOuterRestart.planted()
    }

    pub(super) fn delay() {
        if Delay::SlowFrames.planted() {
            let begun = clock::now();
            while clock::now() - begun < 100_000 {}
        }
    }
}
