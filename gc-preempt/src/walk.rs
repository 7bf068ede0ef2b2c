//! Walks a stopped thread's frames from the innermost outwards and says of each where its
//! references may be.
//!
//! The walk is *sound by default*: a frame is passed over only as far as something vouches for what
//! it holds (a stack map) and for where it ends (a frame rule, an unwind table). Where knowledge
//! ends, every word from there to the stack's base is reported as possibly a reference.
//!
//! # Two kinds of frame
//!
//! A frame that was **interrupted** stands at any instruction. No map speaks of it: its registers,
//! its red zone and all its words up to its CFA are reported word by word. That is the innermost
//! frame, and every frame behind an interruption further out (a hook that runs in an injected call,
//! a signal handler of somebody else's), also if its PC happens to equal a return address. The
//! frame of an injected call is known by the one return address into the trampoline, and holds all
//! registers of what it interrupted. No list of such calls is kept: a long jump out of a hook would
//! leave entries in it whose stack is used anew.
//!
//! A frame that **called** stands at a return address. If that lies in managed code with an entry
//! in the stack maps, its slots are exact. Two of its areas are reported word by word all the same:
//! the arguments of the call, which the callee may not have read yet, and the registers that it
//! saved for its caller, which may be the only copy of a reference of a native caller's. A managed
//! return address without entry may be a call that the compiler made up, with references in
//! registers: word by word, and counted.
//!
//! # Where a frame ends
//!
//! Code laid out by RBP (Cranelift's): a frame that called ends two words above RBP. For one that
//! was interrupted its unwind table, if it had one, would be wrong in the epilogue, so the place of
//! the PC decides: before `push rbp` and at `ret`, SP is at the return address; after the push it
//! is one word further; elsewhere RBP is the frame's own. (Single-stepped through whole functions
//! without an error.) Everything else ends where the unwind table says, see `unwind.rs`.
//!
//! A frame that a handler of somebody else's has interrupted may stand in a restart range, which it
//! must leave by its first instruction: see `walk/handlers.rs`. That is the only thing that a walk
//! changes.
//!
//! All this runs in the stopped world: no malloc, no lock, no panic. Each word is read only after
//! its address was compared with the stack's bounds, and SP grows from frame to frame, so the walk
//! ends.

use std::ops::Range;
use std::ptr;

use crate::arch::{self, RED_ZONE};
use crate::clock;
use crate::code::{CodeMap, FrameRule, Managed};
use crate::context::{Origin, RBP, RSP, Registers, Snapshot};
use crate::faults;
use crate::stackmap::{From, Place, Site};
use crate::unwind::{self, Back, PRESERVED, Rule, Saved, Session, Value};
use memo::{Known, Memo};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Takes what a walk finds.
///
/// It is called in the stopped world: an implementation must not allocate from malloc, take a lock
/// that a mutator may hold, or panic.
pub trait RootSink {
    /// Any word of this range of addresses may be a reference, or none. Both ends are multiples of
    /// eight.
    fn conservative(&mut self, words: Range<usize>);

    /// The word at address `slot` is an edge of the given encoding (the number that the code was
    /// registered with).
    fn exact(&mut self, slot: usize, encoding: u32);

    /// The word at address `derived` was computed from the reference at address `base`, which is
    /// the edge. A collector that moves nothing can ignore the former.
    fn derived(&mut self, base: usize, derived: usize, encoding: u32);
}

/// For a walk that is made for its own sake.
struct Nothing;

impl RootSink for Nothing {
    fn conservative(&mut self, _: Range<usize>) {}
    fn exact(&mut self, _: usize, _: u32) {}
    fn derived(&mut self, _: usize, _: usize, _: u32) {}
}

/// What a walk saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalkStats {
    /// Frames whose references came from a stack map.
    pub precise: u32,
    /// Frames that were scanned word by word.
    pub conservative: u32,
    /// Of those, managed frames at a return address that no stack map names.
    pub unknown_sites: u32,
    /// Injected calls whose hooks had not returned. Behind each the walk began anew, at the
    /// instruction that was interrupted.
    pub injected: u32,
    /// Whether the walk lost its way and scanned the rest of the stack word by word up to its base.
    pub to_base: bool,
}

impl std::ops::AddAssign for WalkStats {
    fn add_assign(&mut self, other: Self) {
        self.precise += other.precise;
        self.conservative += other.conservative;
        self.unknown_sites += other.unknown_sites;
        self.injected += other.injected;
        self.to_base |= other.to_base;
    }
}

/// A thread's own stack, all of it.
pub(crate) struct Frames<'a> {
    pub(crate) stack: Range<usize>,
    /// Where the outermost frame ends, the highest end that a walk has come to. 0: none has.
    pub(crate) outermost: &'a AtomicUsize,
}

/// Frames that end within so many bytes of the outermost one's end are the system's that start a
/// thread, and one of them may be the outermost at times.
const NEAR: usize = 128;

impl Frames<'_> {
    /// Is a frame that ends there, and has no caller, the outermost of this stack? Otherwise it is
    /// the outermost of a stack that lies inside of this one: a coroutine's, in a local array.
    fn is_outermost(&self, cfa: usize) -> bool {
        // Relaxed: written by walks in stops, and by the thread when it attaches.
        let known = self.outermost.fetch_max(cfa, Ordering::Relaxed);
        cfa + NEAR >= known || faults::planted("ends-anywhere")
    }
}

/// Walks the stack of a thread that stands as `snapshot` says, in the stop of that number.
///
/// If SP does not lie on the stack, all of it is reported. So it is where SP lies on another stack
/// inside of this one.
///
/// # Safety
/// The thread is stopped and stays so; the registry lock is held; the stack is readable memory; and
/// the code of every managed frame on the stack is mapped.
pub(crate) unsafe fn walk(
    code: &CodeMap,
    number: u64,
    snapshot: &Snapshot,
    frames: Frames<'_>,
    sink: &mut dyn RootSink,
) -> WalkStats {
    // SAFETY: the caller's contract.
    unsafe { walk_with(code, number, snapshot, frames, sink, u32::MAX).0 }
}

/// Bytes of a stack that are asked for before the walk begins.
const AHEAD: usize = 8 << 10;

/// [`walk`] of so many frames at most, and what it has found behind handlers of the host's.
///
/// # Safety
/// As for [`walk`].
unsafe fn walk_with(
    code: &CodeMap,
    number: u64,
    snapshot: &Snapshot,
    frames: Frames<'_>,
    sink: &mut dyn RootSink,
    most: u32,
) -> (WalkStats, Behind) {
    let sp = snapshot.registers.sp().saturating_sub(RED_ZONE);
    let stack = frames.stack.clone();
    arch::prefetch(sp.max(stack.start)..stack.end.min(sp.saturating_add(AHEAD)));
    arch::prefetch(snapshot.vectors.clone());
    let mut walker = Walker::new(code, number, stack, sink);
    walker.left = most;
    walker.frames = Some(frames);
    walker.saved(&snapshot.registers, &snapshot.vectors);
    let frame = match snapshot.origin {
        Origin::Signal | Origin::Injected => Frame::interrupted(&snapshot.registers),
        Origin::Call => Frame::called(&snapshot.registers),
    };
    walker.run(frame);
    (walker.stats, walker.behind)
}

/// A stack, the part of memory that the walk reads words of.
struct Stack(Range<usize>);

impl Stack {
    /// The word at that address, if the address is a word's on the stack.
    fn word(&self, address: usize) -> Option<usize> {
        (address.is_multiple_of(8) && self.0.contains(&address)).then(|| {
            // SAFETY: on the stack, which `walk`'s contract calls readable, and aligned. (The
            // bounds are multiples of eight, so the whole word lies inside.) Volatile: it is
            // another thread's memory.
            unsafe { ptr::read_volatile(address as *const usize) }
        })
    }
}

/// Where the walk stands.
#[derive(Clone, Copy)]
struct Frame {
    pc: usize,
    registers: [usize; 16],
    /// Bit n: `registers[n]` is known. RSP always is.
    known: u16,
    /// The frame stands at any instruction, with a red zone; otherwise at a return address.
    interrupted: bool,
}

impl Frame {
    fn interrupted(registers: &Registers) -> Self {
        Self {
            pc: registers.pc,
            registers: registers.gpr,
            known: u16::MAX,
            interrupted: true,
        }
    }

    fn called(registers: &Registers) -> Self {
        Self {
            pc: registers.pc,
            registers: registers.gpr,
            known: 1 << RSP | 1 << RBP,
            interrupted: false,
        }
    }

    fn caller(pc: usize, sp: usize, rbp: Option<usize>) -> Self {
        let mut frame = Self {
            pc,
            registers: [0; 16],
            known: 0,
            interrupted: false,
        };
        frame.set(RSP, Some(sp));
        frame.set(RBP, rbp);
        frame
    }

    fn set(&mut self, register: usize, value: Option<usize>) {
        if let Some(value) = value {
            self.registers[register] = value;
            self.known |= 1 << register;
        }
    }

    fn get(&self, register: usize) -> Option<usize> {
        (self.known & 1 << register != 0).then_some(self.registers[register])
    }

    fn sp(&self) -> usize {
        self.registers[RSP]
    }

    /// The PC by which tables are searched: inside the call instruction, which may be the last of
    /// its function.
    fn inside(&self) -> usize {
        if self.interrupted {
            self.pc
        } else {
            self.pc.wrapping_sub(1)
        }
    }

    /// Where the frame's own words begin.
    fn low(&self) -> usize {
        let scanned = self.interrupted && !faults::planted("no-red-zone");
        let red_zone = if scanned { RED_ZONE } else { 0 };
        self.sp().saturating_sub(red_zone) & !7
    }
}

/// What comes after a frame. All of it was compared with the stack's bounds.
struct Step {
    /// Where this frame ends.
    cfa: usize,
    next: Next,
    /// Bytes below the CFA that may hold registers of the caller.
    saves: u32,
}

enum Next {
    Frame(Frame),
    /// There is none: the outermost frame, which ends there.
    End {
        cfa: usize,
    },
}

/// How each kind of frame ends. Each step is `None` where the frame's end cannot be told, or is not
/// where it can be.
impl Stack {
    /// The end of an interrupted frame that is laid out by RBP.
    fn by_place(&self, frame: &Frame, managed: &Managed<'_>, limit: usize) -> Option<Step> {
        /// `push rbp; mov rbp, rsp`
        const PROLOGUE: [u8; 4] = [0x55, 0x48, 0x89, 0xe5];
        const RET: [u8; 2] = [0xc3, 0xc2];
        let function = managed.maps.function(frame.pc)?;
        // SAFETY: both lie in a registered function, which is mapped by `walk`'s contract. A
        // function of fewer than four bytes does not begin with the prologue, and a page does not
        // end inside of these four bytes unless the function does, since it is not registered to
        // begin there otherwise.
        let (start, here) = unsafe {
            let start: [u8; 4] = ptr::read_unaligned(function as *const [u8; 4]);
            (start, ptr::read(frame.pc as *const u8))
        };
        if start != PROLOGUE {
            return None;
        }
        let sp = frame.sp();
        let rbp_only = faults::planted("end-by-rbp-only");
        let (cfa, rbp) = if (frame.pc == function || RET.contains(&here)) && !rbp_only {
            (sp.checked_add(8)?, frame.get(RBP))
        } else if frame.pc == function + 1 && !rbp_only {
            (sp.checked_add(16)?, self.word(sp))
        } else {
            let rbp = frame.get(RBP)?;
            (rbp.checked_add(16)?, self.word(rbp))
        };
        self.step(frame, cfa, limit, |pc| Frame::caller(pc, cfa, rbp))
    }

    /// The end of a frame laid out by RBP that stands at a call.
    fn by_rbp(&self, frame: &Frame, limit: usize) -> Option<Step> {
        let rbp = frame.get(RBP)?;
        let cfa = rbp.checked_add(16)?;
        let above = self.word(rbp);
        self.step(frame, cfa, limit, |pc| Frame::caller(pc, cfa, above))
    }

    /// The end of a frame by its unwind rule.
    fn by_rule(&self, frame: &Frame, rule: &Rule, limit: usize) -> Option<Step> {
        let cfa = self.value(frame, rule.cfa)?;
        if rule.back == Back::Outermost {
            return (cfa > frame.sp() && cfa <= limit && cfa.is_multiple_of(8)).then_some(Step {
                cfa,
                next: Next::End { cfa },
                saves: rule.saves,
            });
        }
        let mut step = self.step(frame, cfa, limit, |pc| {
            let mut caller = Frame::caller(pc, cfa, None);
            for (register, saved) in PRESERVED.into_iter().zip(rule.saved) {
                let value = match saved {
                    Saved::Same => frame.get(register),
                    Saved::Lost => None,
                    Saved::Cfa(offset) => cfa
                        .checked_add_signed(offset as isize)
                        .and_then(|a| self.word(a)),
                    Saved::At(at) => self.value(frame, at).and_then(|a| self.word(a)),
                };
                caller.set(register, value);
            }
            caller
        })?;
        step.saves = rule.saves;
        Some(step)
    }

    /// A step over a frame that returns through the word below its CFA.
    fn step(
        &self,
        frame: &Frame,
        cfa: usize,
        limit: usize,
        caller: impl FnOnce(usize) -> Frame,
    ) -> Option<Step> {
        if cfa <= frame.sp() || cfa > limit {
            return None;
        }
        let pc = self.word(cfa - 8)?;
        Some(Step {
            cfa,
            next: Next::Frame(caller(pc)),
            saves: 16,
        })
    }

    fn value(&self, frame: &Frame, value: Value) -> Option<usize> {
        let Value {
            register,
            offset,
            loaded,
        } = value;
        let sum = frame
            .get(register.into())?
            .checked_add_signed(offset as isize)?;
        match loaded {
            None => Some(sum),
            Some(add) => self.word(sum)?.checked_add_signed(add as isize),
        }
    }
}

struct Walker<'a> {
    code: &'a CodeMap,
    memo: Memo<'a>,
    session: Session,
    stack: Stack,
    sink: &'a mut dyn RootSink,
    stats: WalkStats,
    /// The thread's, if it is one's.
    frames: Option<Frames<'a>>,
    /// Frames of the thread lie below the innermost one as well: that is on a stack inside of the
    /// thread's.
    below: bool,
    /// Frames that may still be walked.
    left: u32,
    behind: Behind,
    #[cfg(test)]
    trace: Vec<usize>,
}

impl<'a> Walker<'a> {
    /// Before the first frame of that stack.
    fn new(
        code: &'a CodeMap,
        number: u64,
        stack: Range<usize>,
        sink: &'a mut dyn RootSink,
    ) -> Self {
        Self {
            code,
            memo: Memo::new(),
            session: Session::new(number),
            stack: Stack(stack.start.next_multiple_of(8)..stack.end & !7),
            sink,
            stats: WalkStats::default(),
            frames: None,
            below: false,
            left: u32::MAX,
            behind: Behind::Settled,
            #[cfg(test)]
            trace: Vec::new(),
        }
    }

    /// Reports the registers of an interruption.
    fn saved(&mut self, registers: &Registers, vectors: &Range<usize>) {
        if !faults::planted("no-registers") {
            let gpr = registers.gpr.as_ptr_range();
            self.sink.conservative(gpr.start as usize..gpr.end as usize);
        }
        // SAFETY: the snapshot's image, or that of an interruption that it lists: readable, by
        // `walk`'s contract.
        unsafe { arch::state_in_use(vectors, |words| self.report(words)) };
    }

    fn report(&mut self, words: Range<usize>) {
        if !words.is_empty() {
            self.sink.conservative(words);
        }
    }

    fn run(&mut self, mut frame: Frame) {
        if !self.stack.0.contains(&frame.sp()) {
            // Nobody knows what that stack is; all of the thread's own may be alive.
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
            if faults::planted("slow-frames") {
                let begun = clock::now();
                while clock::now() - begun < 100_000 {}
            }
            #[cfg(test)]
            self.trace.push(frame.pc);
            let low = frame.low().max(self.stack.0.start);
            let limit = self.stack.0.end;
            frame = match self.frame(&frame, low, limit) {
                Some(Next::Frame(next)) => next,
                Some(Next::End { cfa }) => {
                    if self.frames.as_ref().is_none_or(|f| f.is_outermost(cfa)) {
                        return;
                    }
                    self.below = true;
                    return self.lost(first, cfa);
                }
                None => return self.lost(first, low),
            };
        }
    }

    /// Reports what is left from `low` on, and, where frames lie below the innermost one, what lies
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

    /// The frame of an injected call whose hook runs. What it interrupted comes next.
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
        Some(Next::Frame(Frame::interrupted(&registers)))
    }

    /// Reports one frame and steps to its caller; `None`, with nothing reported, where that cannot
    /// be done.
    fn frame(&mut self, frame: &Frame, low: usize, limit: usize) -> Option<Next> {
        if !frame.interrupted
            && let Some(known) = self.memo.get(frame.pc)
        {
            return self.again(frame, &known, low, limit);
        }
        if !frame.interrupted && frame.pc == arch::trampoline_back() {
            return self.injected(low, limit);
        }
        // SAFETY: the registry lock is held by `walk`'s contract.
        let managed = unsafe { self.code.managed(frame.inside()) };
        let Some(managed) = managed else {
            if !frame.interrupted && unwind::ends_a_context(frame.pc) {
                // The return address is all that the frame has: this word was read with the frame
                // before.
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
            && let Some(known) = Known::new(frame.pc, &managed)
        {
            self.memo.keep(known);
            return self.again(frame, &known, low, limit);
        }
        let step = match managed.frames {
            FrameRule::Rbp if frame.interrupted => self.stack.by_place(frame, &managed, limit)?,
            FrameRule::Rbp => {
                // Only what the maps call a function is known to keep RBP; what else lies in the
                // range may be a stub.
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
        if frame.interrupted && !faults::planted("map-behind-interruption") {
            return Some(self.word_by_word(low, step));
        }
        let Some(site) = managed.maps.site(frame.pc) else {
            self.stats.unknown_sites += 1;
            if faults::planted("trust-missing-maps") {
                return Some(step.next);
            }
            return Some(self.word_by_word(low, step));
        };
        if !site.known && !faults::planted("trust-missing-maps") {
            return Some(self.word_by_word(low, step));
        }
        let body = match managed.frames {
            // Not one of which all is known, so not one whose map is believed.
            FrameRule::Rbp => return Some(self.word_by_word(low, step)),
            FrameRule::Cfi => {
                // Everything that lies in an aligned frame is a word of its own, so a size that is
                // no multiple of eight does not occur.
                let saves = step.saves as usize;
                match step.cfa.checked_sub(saves).filter(|top| *top >= low) {
                    Some(top) => low..top & !7,
                    None => return Some(self.word_by_word(low, step)),
                }
            }
        };
        Some(self.exact(frame, &managed, &site, body, step))
    }

    /// A frame at a call site of which all is known.
    fn again(
        &mut self,
        frame: &Frame,
        known: &Known<'_>,
        low: usize,
        limit: usize,
    ) -> Option<Next> {
        let step = self.stack.by_rbp(frame, limit)?;
        // The map counts from FP - span. Should that not be where the callee's frame ended, then
        // one of the two is wrong.
        let fp = step.cfa - 16;
        if fp.checked_sub(known.span) != Some(low) {
            return None;
        }
        self.stats.precise += 1;
        for slot in known.site.slots {
            let at = |place| low.wrapping_add_signed(known.offset(place) as isize);
            let edge = at(slot.edge);
            match slot.derived {
                Some(derived) => self.sink.derived(edge, at(derived), known.encoding),
                None => self.sink.exact(edge, known.encoding),
            }
        }
        if !faults::planted("no-arguments") {
            self.report(low..low + known.outgoing);
        }
        if !faults::planted("no-saved-registers") {
            self.report(fp - known.clobber..step.cfa - 8);
        }
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
        let inside = |place: Place| {
            let base = match place.from {
                From::Sp => body.start,
                From::Rbp => frame.get(RBP)?,
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
        if !faults::planted("no-arguments") {
            self.report(body.start..arguments);
        }
        if !faults::planted("no-saved-registers") {
            self.report(body.end..step.cfa - 8);
        }
        step.next
    }
}

mod handlers;
mod memo;
mod rehearsal;
pub(crate) use handlers::{Behind, settle};
pub(crate) use rehearsal::{learn, rehearse};

#[cfg(test)]
mod tests;
