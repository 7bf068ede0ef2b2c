//! Single-stepping a thread by its own trap flag, and a mutator's record as the documented offsets
//! show it.

use gc_core::Mutator;
use gc_core::jit::Context;
use gc_core::jit::{CONTEXT_LOG_CURSOR, CONTEXT_MARKING};
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};

/// Sets or clears the trap flag.
macro_rules! trap_flag {
    ($instruction:literal) => {
        // SAFETY: changes nothing but the flag, below the red zone.
        unsafe {
            std::arch::asm!(
                "lea rsp, [rsp - 128]",
                "pushfq",
                $instruction,
                "popfq",
                "lea rsp, [rsp + 128]"
            )
        }
    };
}

/// A unit is shorter than this.
const UNIT: usize = 64;
/// Where the unit begins.
static START: AtomicUsize = AtomicUsize::new(0);
/// A bit for each offset in the unit at which an instruction began.
static SEEN: AtomicU64 = AtomicU64::new(0);
/// The instruction at which something is to happen; 0 once it has.
pub static TARGET: AtomicUsize = AtomicUsize::new(0);

/// In a handler of [`on_step`]: notes the instruction, and says whether it is the target, once.
///
/// # Safety
/// `context` must be the kernel's of this signal.
pub unsafe fn meets_target(context: *mut libc::ucontext_t) -> bool {
    // SAFETY: the caller's promise.
    let pc = unsafe { (*context).uc_mcontext.gregs[libc::REG_RIP as usize] } as usize;
    let start = START.load(Relaxed);
    if (start..start + UNIT).contains(&pc) {
        SEEN.fetch_or(1 << (pc - start), Relaxed);
    }
    let met = TARGET.load(Relaxed) == pc;
    if met {
        TARGET.store(0, Relaxed);
    }
    met
}

/// Steps through `unit`, which runs the unit at `start`: what it gives, and the offsets of the
/// unit's instructions that it has met.
pub fn instructions<R>(start: usize, unit: impl FnOnce() -> R) -> (R, Vec<usize>) {
    START.store(start, Relaxed);
    SEEN.store(0, Relaxed);
    let result = stepping(unit);
    let met = |offset: &usize| SEEN.load(Relaxed) & 1 << offset != 0;
    (result, (0..UNIT).filter(met).collect())
}

/// Steps through `unit` once for each of these instructions of the unit at `start`, each time with
/// that one as the target, which must be met.
pub fn at_each(start: usize, offsets: &[usize], mut unit: impl FnMut() -> Outcome) {
    for offset in offsets {
        TARGET.store(start + offset, Relaxed);
        stepping(&mut unit).unwrap();
        let met = TARGET.load(Relaxed) == 0;
        assert!(met, "the instruction at {offset} was not met again");
    }
}

/// In a handler whose mask has SIGURG: waits until a stop's signal is pending.
pub fn until_a_stop_is_pending() {
    // SAFETY: asks for this thread's pending signals.
    unsafe {
        let mut pending: libc::sigset_t = std::mem::zeroed();
        while libc::sigismember(&raw const pending, libc::SIGURG) != 1 {
            libc::sched_yield();
            libc::sigpending(&raw mut pending);
        }
    }
}

/// Runs `f` with a trap after each instruction.
pub fn stepping<R>(f: impl FnOnce() -> R) -> R {
    trap_flag!("or qword ptr [rsp], 0x100");
    let result = f();
    trap_flag!("and qword ptr [rsp], ~0x100");
    result
}

/// What runs after an instruction.
pub type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::ucontext_t);

/// Installs what runs after each instruction, with these signals blocked meanwhile: one that it
/// raises is delivered as it returns, at that instruction.
pub fn on_step(handler: Handler, blocked: &[libc::c_int]) {
    // SAFETY: the handlers here call nothing that is not async-signal-safe, and run on the thread's
    // own stack.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        for signal in blocked {
            libc::sigaddset(&raw mut action.sa_mask, *signal);
        }
        assert_eq!(
            libc::sigaction(libc::SIGTRAP, &raw const action, std::ptr::null_mut()),
            0
        );
    }
}

/// A mutator's record, as the documented offsets show it.
#[derive(Clone, Copy)]
pub struct Record {
    context: *const Context,
    log: usize,
}

// SAFETY: the words are atomics.
unsafe impl Send for Record {}
// SAFETY: as above.
unsafe impl Sync for Record {}

impl Record {
    pub fn of(m: &Mutator) -> Self {
        let mut record = Self {
            context: m.context(),
            log: 0,
        };
        record.log = record.cursor().load(Relaxed);
        record
    }

    pub fn marking(&self) -> &AtomicU32 {
        // SAFETY: the documented offset of a live record.
        unsafe { &*self.context.byte_add(CONTEXT_MARKING).cast() }
    }

    pub fn cursor(&self) -> &AtomicUsize {
        // SAFETY: as above.
        unsafe { &*self.context.byte_add(CONTEXT_LOG_CURSOR).cast() }
    }

    pub fn logged(&self, word: usize) -> bool {
        // SAFETY: the log up to its cursor, whose owner stands still or is this thread.
        (self.log..self.cursor().load(Relaxed))
            .step_by(8)
            .any(|at| unsafe { (at as *const usize).read_volatile() } == word)
    }

    pub fn reset(&self, marking: u32) {
        self.cursor().store(self.log, Relaxed);
        self.marking().store(marking, Relaxed);
    }
}

/// Whether a cycle marks.
pub fn is_marking(m: &Mutator) -> bool {
    // Acquire: what a collection did before it cleared the flag.
    Record::of(m).marking().load(Acquire) != 0
}

/// Sets a flag when dropped, on a panic too: who waits for it ends.
pub struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// What a stepped unit gives instead of panicking: a panic's backtrace, single-stepped, would take
/// minutes.
pub type Outcome = Result<(), &'static str>;

/// An [`Outcome`]: all is well if `holds`.
pub fn that(holds: bool, otherwise: &'static str) -> Outcome {
    if holds { Ok(()) } else { Err(otherwise) }
}
