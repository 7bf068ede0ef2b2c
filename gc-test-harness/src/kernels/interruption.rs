//! A thread that was interrupted in compiled code, and the scan of its innermost frame by a table
//! of places.
//!
//! The walk of `gc-preempt` reports an innermost frame word by word: the registers, the vector
//! registers, the red zone and the frame. [`Beyond`] takes these words out, with the words of the
//! signal handler in which the thread stands, and leaves what the outer frames hold.
//! [`Interruption::scan`] then reports the places that the table names, and conservatively the
//! places in which the frame keeps what its caller's registers held.
//!
//! A stopped world runs all this, so nothing here allocates.

use std::ffi::c_void;
use std::ops::Range;

use gc_preempt::{Origin, RootSink, Snapshot, StoppedMutator, WalkStats};

use super::codegen::Code;
use super::exact::ExactFrame;
use super::places::{Place, Places};

/// DWARF numbers of the frame pointer and the stack pointer.
const RBP: usize = 6;
const RSP: usize = 7;

/// Bytes below the stack pointer that belong to the interrupted frame.
const RED_ZONE: usize = 128;

/// A signal frame's registers, in DWARF's order.
const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RDX,
    libc::REG_RCX,
    libc::REG_RBX,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_RBP,
    libc::REG_RSP,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Where and with which registers a thread was interrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interruption {
    /// The instruction that runs next.
    pub pc: usize,
    /// The stack pointer.
    pub sp: usize,
    /// The frame pointer.
    fp: usize,
    /// The addresses of the words that hold the registers, in DWARF's order.
    words: [usize; 16],
    /// The image of the vector registers.
    pub vectors: Range<usize>,
}

impl Interruption {
    /// The interruption of a thread that a stop's signal has stopped.
    pub fn of_snapshot(snapshot: &Snapshot) -> Interruption {
        let first = snapshot.registers.gpr.as_ptr() as usize;
        Interruption {
            pc: snapshot.registers.pc,
            sp: snapshot.registers.sp(),
            fp: snapshot.registers.fp(),
            words: std::array::from_fn(|number| first + 8 * number),
            vectors: snapshot.vectors.clone(),
        }
    }

    /// The interruption by the signal whose handler runs. Async-signal-safe.
    ///
    /// # Safety
    /// `ucontext` is the third argument of a running handler. The value is used only until the
    /// handler returns.
    pub unsafe fn of_signal(ucontext: *const c_void) -> Interruption {
        let ucontext = ucontext.cast::<libc::ucontext_t>();
        // SAFETY: the contract. The kernel writes `gregs`.
        let gregs = unsafe { &raw const (*ucontext).uc_mcontext.gregs };
        let words = GREGS.map(|greg| gregs as usize + 8 * greg as usize);
        // SAFETY: as above.
        let word = |address: usize| unsafe { (address as *const usize).read() };
        Interruption {
            pc: word(gregs as usize + 8 * libc::REG_RIP as usize),
            sp: word(words[RSP]),
            fp: word(words[RBP]),
            words,
            // SAFETY: as above.
            vectors: unsafe { vectors(ucontext) },
        }
    }

    /// The words that a conservative scan of the interrupted frame reads: registers, vector
    /// registers, red zone and frame.
    ///
    /// # Safety
    /// The thread stands, and `cfa` is the end of its innermost frame.
    pub unsafe fn conservative_words(&self, cfa: usize) -> impl Iterator<Item = usize> {
        let registers = self.words.into_iter();
        let vectors = self.vectors.clone().step_by(8);
        let all = registers.chain(vectors).chain(self.frame(cfa).step_by(8));
        // SAFETY: the registers' words, and the thread's own stack.
        all.map(|address| unsafe { (address as *const usize).read() })
    }

    /// The words at these places.
    ///
    /// # Safety
    /// The thread stands, and `cfa` is the end of its innermost frame.
    pub unsafe fn words_at(&self, places: Places, cfa: usize) -> impl Iterator<Item = usize> {
        let addresses = places.iter().map(move |place| self.address(place, cfa));
        // SAFETY: a register's word, or a word of the frame.
        addresses.map(|address| unsafe { (address as *const usize).read() })
    }

    /// An interruption in which native code of Urge holds the registers at known addresses.
    ///
    /// # Safety
    /// The words at the addresses are readable, and hold the registers in DWARF's order; that of
    /// the stack pointer itself is not read.
    pub unsafe fn of_words(pc: usize, sp: usize, words: [usize; 16]) -> Interruption {
        Interruption {
            pc,
            sp,
            // SAFETY: the contract.
            fp: unsafe { (words[RBP] as *const usize).read() },
            words,
            vectors: 0..0,
        }
    }

    /// Whether the next instruction lies in the function at `entry` of so many bytes.
    pub fn is_in(&self, code: &Range<usize>) -> bool {
        code.contains(&self.pc)
    }

    /// The end of the interrupted frame, in a function of Cranelift that begins at `entry`: by the
    /// rule of `gc-preempt`'s walk for code laid out by RBP.
    ///
    /// # Safety
    /// The next instruction is mapped.
    pub unsafe fn cfa(&self, entry: usize) -> usize {
        const RET: [u8; 2] = [0xc3, 0xc2];
        // SAFETY: the contract.
        let here = unsafe { (self.pc as *const u8).read() };
        if self.pc == entry || RET.contains(&here) {
            self.sp + 8
        } else if self.pc == entry + 1 {
            self.sp + 16
        } else {
            self.fp + 16
        }
    }

    /// The words of the interrupted frame that a conservative scan reads: the red zone and the
    /// frame, up to its end.
    pub fn frame(&self, cfa: usize) -> Range<usize> {
        (self.sp - RED_ZONE) & !7..cfa
    }

    /// The address of a place's word.
    fn address(&self, place: Place, cfa: usize) -> usize {
        match place {
            Place::Register(number) => self.words[number as usize],
            Place::BelowCfa(bytes) => cfa - bytes as usize,
        }
    }

    /// Walks a stopped thread that was interrupted so, in the function at `entry`: the innermost
    /// frame by the places, and the outer frames as `gc-preempt` does.
    pub fn walk(
        &self,
        frame: &ExactFrame,
        entry: usize,
        places: Places,
        mutator: &StoppedMutator<'_>,
        encoding: u32,
        sink: &mut dyn RootSink,
    ) -> WalkStats {
        // SAFETY: the thread is to run the instruction when it goes on.
        let cfa = unsafe { self.cfa(entry) };
        self.scan(frame, entry, cfa, places, encoding, sink);
        mutator.walk(&mut Beyond {
            sink,
            cfa,
            stack: mutator.stack(),
        })
    }

    /// Reports the words at `places` as references, and conservatively what the frame keeps for its
    /// caller.
    pub fn scan(
        &self,
        frame: &ExactFrame,
        entry: usize,
        cfa: usize,
        places: Places,
        encoding: u32,
        sink: &mut dyn RootSink,
    ) {
        for place in places.iter() {
            sink.exact(self.address(place, cfa), encoding);
        }
        for place in frame.of_caller((self.pc - entry) as u32).iter() {
            let word = self.address(place, cfa);
            sink.conservative(word..word + 8);
        }
    }
}

/// The image of the vector registers that the kernel wrote for a signal.
///
/// # Safety
/// The third argument of a running handler.
unsafe fn vectors(ucontext: *const libc::ucontext_t) -> Range<usize> {
    /// Bytes of an image without extensions, and the place of the words that describe one.
    const LEGACY: usize = 512;
    const DESCRIPTION: usize = 464;
    /// Marks a description.
    const MAGIC: u32 = 0x4650_5853;
    // SAFETY: the contract. `fpregs` is null or names an image of the kernel, whose description is
    // a magic number, the size with what follows, two words of features, and the size.
    unsafe {
        let image = (*ucontext).uc_mcontext.fpregs as usize;
        if image == 0 {
            return 0..0;
        }
        let described = (image + DESCRIPTION) as *const u32;
        let size = if described.read() == MAGIC {
            described.add(4).read() as usize
        } else {
            LEGACY
        };
        image..image + size
    }
}

/// Walks a stopped thread: its innermost frame by the table of all instructions, if a stop has
/// interrupted one of these functions, and otherwise as `gc-preempt` does.
pub fn walk_by_maps(
    code: &[Code],
    mutator: &StoppedMutator<'_>,
    encoding: u32,
    sink: &mut dyn RootSink,
) -> WalkStats {
    match interrupted(code, mutator) {
        Some((at, entry, frame)) => {
            let places = frame.instructions.at((at.pc - entry) as u32);
            at.walk(frame, entry, places, mutator, encoding, sink)
        }
        None => mutator.walk(sink),
    }
}

/// Where a stop has interrupted a thread in one of these functions, with the function's first
/// instruction and its facts.
pub fn interrupted<'c>(
    code: &'c [Code],
    mutator: &StoppedMutator<'_>,
) -> Option<(Interruption, usize, &'c ExactFrame)> {
    let snapshot = mutator.snapshot();
    let at = Interruption::of_snapshot(snapshot);
    let function = code.iter().find(|code| at.is_in(&code.range()))?;
    let frame = function.exact.as_deref()?;
    (snapshot.origin != Origin::Call).then(|| (at, function.range().start, frame))
}

/// Passes on what a walk reports of the frames beyond an interrupted one.
pub struct Beyond<'a> {
    /// The receiver.
    pub sink: &'a mut dyn RootSink,
    /// The end of the interrupted frame.
    pub cfa: usize,
    /// The thread's own stack.
    pub stack: Range<usize>,
}

impl RootSink for Beyond<'_> {
    fn conservative(&mut self, words: Range<usize>) {
        // Words outside of the stack are the registers and the vector registers that the stop
        // saved. Words below the interrupted frame are those of handlers.
        let beyond = words.start.max(self.cfa)..words.end;
        if self.stack.contains(&words.start) && !beyond.is_empty() {
            self.sink.conservative(beyond);
        }
    }

    fn exact(&mut self, slot: usize, encoding: u32) {
        self.sink.exact(slot, encoding);
    }

    fn derived(&mut self, base: usize, derived: usize, encoding: u32) {
        self.sink.derived(base, derived, encoding);
    }
}
