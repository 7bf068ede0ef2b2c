//! Single-stepping a thread by its own trap flag, and a mutator's record as the documented offsets
//! show it.

use gc_core::mutator::record::{CONTEXT_LOG_CURSOR, CONTEXT_MARKING};
use gc_core::{Context, Mutator};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};

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
