//! Single-stepping of a thread by its own trap flag, and access to a mutator's record by the
//! documented offsets.

use gc_core::Mutator;
use gc_core::jit::Context;
use gc_core::jit::{CONTEXT_LOG_CURSOR, CONTEXT_MARKING};
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};

/// Changes the trap flag by one instruction on the saved flags.
macro_rules! trap_flag {
    ($instruction:literal) => {
        // SAFETY: changes the trap flag only, and pushes below the red zone.
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

/// An upper bound of a unit's length, in bytes. A unit is a sequence of instructions that a stop
/// restarts, or the allocation's fast path.
const UNIT: usize = 64;
/// The address of the unit that is stepped through.
static START: AtomicUsize = AtomicUsize::new(0);
/// The offsets in the unit at which an instruction begins, one bit each.
static SEEN: AtomicU64 = AtomicU64::new(0);
/// The address of the instruction at which the handler acts; 0 once the handler has acted.
pub static TARGET: AtomicUsize = AtomicUsize::new(0);

/// In a handler of [`on_step`]: notes the instruction. Returns true at the target, once.
///
/// # Safety
/// `context` is the one that the kernel passed with this signal.
pub unsafe fn meets_target(context: *mut libc::ucontext_t) -> bool {
    // SAFETY: by this function's contract.
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

/// Steps through `unit`, which runs the code at `start`. Returns its result and the offsets at
/// which an instruction of the unit began.
pub fn instructions<R>(start: usize, unit: impl FnOnce() -> R) -> (R, Vec<usize>) {
    START.store(start, Relaxed);
    SEEN.store(0, Relaxed);
    let result = stepping(unit);
    let met = |offset: &usize| SEEN.load(Relaxed) & 1 << offset != 0;
    (result, (0..UNIT).filter(met).collect())
}

/// Steps through `unit` once for each offset, with the instruction at `start + offset` as the
/// target. Panics if a run does not reach its target.
pub fn at_each(start: usize, offsets: &[usize], mut unit: impl FnMut() -> Outcome) {
    for offset in offsets {
        TARGET.store(start + offset, Relaxed);
        stepping(&mut unit).unwrap();
        let met = TARGET.load(Relaxed) == 0;
        assert!(met, "the instruction at {offset} was not met again");
    }
}

/// Waits until a stop's signal is pending. For a handler whose mask has SIGURG.
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

/// Runs `f` with a trap after each instruction of this thread.
pub fn stepping<R>(f: impl FnOnce() -> R) -> R {
    trap_flag!("or qword ptr [rsp], 0x100");
    let result = f();
    trap_flag!("and qword ptr [rsp], ~0x100");
    result
}

/// The function that runs after an instruction.
pub type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::ucontext_t);

/// Installs `handler` to run after each instruction, with the signals of `blocked` blocked. A
/// blocked signal that the handler raises is delivered when the handler returns, at that
/// instruction.
pub fn on_step(handler: Handler, blocked: &[libc::c_int]) {
    // SAFETY: the handlers of these tests call async-signal-safe functions only, and run on the
    // thread's own stack.
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

/// A mutator's record, seen through the documented offsets.
#[derive(Clone, Copy)]
pub struct Record {
    context: *const Context,
    log: usize,
}

// SAFETY: the fields lead to atomic words.
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
        // SAFETY: the documented offset in a live record.
        unsafe { &*self.context.byte_add(CONTEXT_MARKING).cast() }
    }

    pub fn cursor(&self) -> &AtomicUsize {
        // SAFETY: as above.
        unsafe { &*self.context.byte_add(CONTEXT_LOG_CURSOR).cast() }
    }

    pub fn logged(&self, word: usize) -> bool {
        // SAFETY: the words of the log up to its cursor. The log's owner is stopped, or is this
        // thread.
        (self.log..self.cursor().load(Relaxed))
            .step_by(8)
            .any(|at| unsafe { (at as *const usize).read_volatile() } == word)
    }

    pub fn reset(&self, marking: u32) {
        self.cursor().store(self.log, Relaxed);
        self.marking().store(marking, Relaxed);
    }
}

/// True while a cycle marks, by the mutator's own flag.
pub fn is_marking(m: &Mutator) -> bool {
    // Acquire: pairs with the store that clears the flag; the reader then sees the results of that
    // collection.
    Record::of(m).marking().load(Acquire) != 0
}

/// Sets a flag when it is dropped, also on a panic, so that a thread which waits for the flag ends.
pub struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// The result of a stepped unit. A unit does not panic: the backtrace of a panic takes minutes
/// under single-stepping.
pub type Outcome = Result<(), &'static str>;

/// `Ok` if `holds`, else an error with the text `otherwise`.
pub fn that(holds: bool, otherwise: &'static str) -> Outcome {
    if holds { Ok(()) } else { Err(otherwise) }
}
