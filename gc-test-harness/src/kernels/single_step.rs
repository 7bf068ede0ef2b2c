//! Single-stepping by the trap flag, in the process itself.
//!
//! The processor raises a trap after each instruction that begins with the trap flag set, and the
//! kernel turns the trap into SIGTRAP. The handler clears the flag, or leaves it set for the next
//! instruction, in the flags to which it returns. The kernel clears the flag for the handler.
//!
//! # Whose traps
//!
//! A trap is ours if the kernel says that it is a trace trap, and the running thread has a hook, or
//! had one: a call that was injected while it stepped restores the flag when it returns.
//! Any other SIGTRAP (a breakpoint, `kill`, the flag that other code has set) goes to the
//! handler that was there before, or has the effect that it would have had. A debugger sees all
//! traps before the process does, and takes ours for its own: this is why the talk calls stepping a
//! false start.
//!
//! # Rules for the handler
//!
//! The hook is found by a thread-local word that needs neither initialization nor a destructor. The
//! handler runs on the thread's own stack, below the red zone, because a hook may stop the thread
//! there. The handler itself takes no lock and allocates nothing.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Once, OnceLock};

use super::interruption::Interruption;

/// The trap flag among the processor's flags.
const TRAP_FLAG: i64 = 0x100;
/// The kernel's code for a trace trap, which libc does not have for this target.
const TRAP_TRACE: c_int = 2;

/// What a thread does after each of its instructions.
pub trait OnTrap {
    /// Returns whether the thread steps on. Runs in the handler of SIGTRAP.
    fn trapped(&mut self, at: &Interruption) -> bool;
}

thread_local! {
    static HOOK: Cell<Option<NonNull<dyn OnTrap>>> = const { Cell::new(None) };
    /// Whether the thread was stepped by a signal handler.
    static STEPPED: Cell<bool> = const { Cell::new(false) };
}

/// The action that was installed before ours.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs the handler of SIGTRAP, once in the process.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: reads the present action, and then installs a handler of this type. The handler
        // finds `BEFORE` set.
        unsafe {
            let mut before: libc::sigaction = std::mem::zeroed();
            let failed = libc::sigaction(libc::SIGTRAP, std::ptr::null(), &raw mut before);
            assert_eq!(failed, 0, "SIGTRAP has an action");
            BEFORE.get_or_init(|| before);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_trap as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            let failed = libc::sigaction(libc::SIGTRAP, &raw const action, std::ptr::null_mut());
            assert_eq!(failed, 0, "SIGTRAP takes a handler");
        }
    });
}

/// Whether the running thread is being stepped.
pub fn is_stepping() -> bool {
    HOOK.get().is_some()
}

/// Steps the code to which the running signal handler returns: `hook` runs after each of its
/// instructions, until it returns false. Async-signal-safe.
///
/// # Safety
/// `ucontext` is the third argument of a running handler. `hook` outlives the stepping, no other
/// code uses it meanwhile, and the running thread is not being stepped. [`install`] was called.
pub unsafe fn step_from(ucontext: *mut c_void, hook: NonNull<dyn OnTrap>) {
    HOOK.set(Some(hook));
    STEPPED.set(true);
    // SAFETY: the contract.
    unsafe { *flags(ucontext) |= TRAP_FLAG };
}

/// The flags in a signal frame.
///
/// # Safety
/// `ucontext` is the third argument of a running handler.
unsafe fn flags(ucontext: *mut c_void) -> *mut i64 {
    let ucontext = ucontext.cast::<libc::ucontext_t>();
    // SAFETY: the contract. The kernel writes `gregs`.
    unsafe { &raw mut (*ucontext).uc_mcontext.gregs[libc::REG_EFL as usize] }
}

extern "C" fn on_trap(signal: c_int, info: *mut libc::siginfo_t, ucontext: *mut c_void) {
    // SAFETY: the kernel's argument.
    let is_trace = unsafe { (*info).si_code } == TRAP_TRACE;
    let hook = HOOK.get().filter(|_| is_trace);
    let Some(mut hook) = hook else {
        if is_trace && STEPPED.get() {
            // A frame that was saved while the thread stepped has been restored after the last
            // step.
            // SAFETY: the running handler's argument.
            unsafe { *flags(ucontext) &= !TRAP_FLAG };
            return;
        }
        return pass_on(signal, info, ucontext);
    };
    // SAFETY: `step_from` has the contract that the hook lives, and that no other code uses it.
    let steps_on = unsafe { hook.as_mut().trapped(&Interruption::of_signal(ucontext)) };
    if !steps_on {
        HOOK.set(None);
        // SAFETY: the running handler's argument.
        unsafe { *flags(ucontext) &= !TRAP_FLAG };
    }
}

/// Lets a SIGTRAP that is not ours have the effect that it would have without our handler.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, ucontext: *mut c_void) {
    let handler = BEFORE.get().map_or(libc::SIG_DFL, |b| b.sa_sigaction);
    let takes_info = BEFORE
        .get()
        .is_some_and(|before| before.sa_flags & libc::SA_SIGINFO != 0);
    // SAFETY: the kernel's argument.
    let from_a_process = unsafe { (*info).si_code } <= 0;
    match handler {
        libc::SIG_IGN if from_a_process => {}
        // The processor's traps cannot be ignored.
        libc::SIG_IGN | libc::SIG_DFL => {
            // SAFETY: system calls. SIGTRAP is blocked until this handler returns, and then ends
            // the process.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
            }
        }
        // SAFETY: the type that the host's flags say, with the kernel's arguments.
        handler if takes_info => unsafe {
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                std::mem::transmute(handler);
            handler(signal, info, ucontext);
        },
        // SAFETY: as above.
        handler => unsafe {
            let handler: extern "C" fn(c_int) = std::mem::transmute(handler);
            handler(signal);
        },
    }
}

/// Runs `call` with `each` called before every instruction of it that lies in one of the ranges,
/// in the handler of SIGTRAP, until `each` returns false.
pub fn step_through(
    code: &[Range<usize>],
    each: &mut dyn FnMut(&Interruption) -> bool,
    call: impl FnOnce(),
) {
    struct Each<'a> {
        code: &'a [Range<usize>],
        each: &'a mut dyn FnMut(&Interruption) -> bool,
    }
    impl OnTrap for Each<'_> {
        fn trapped(&mut self, at: &Interruption) -> bool {
            let is_outside = !self.code.iter().any(|range| at.is_in(range));
            is_outside || (self.each)(at)
        }
    }
    /// Clears the flag and takes the hook away, also if `call` panics.
    struct Stop;
    impl Drop for Stop {
        fn drop(&mut self) {
            // SAFETY: clears one flag.
            unsafe {
                std::arch::asm!("pushfq", "and qword ptr [rsp], ~0x100", "popfq");
            }
            HOOK.set(None);
        }
    }
    install();
    assert!(!is_stepping(), "the thread is being stepped");
    let mut hook = Each { code, each };
    let hook: NonNull<dyn OnTrap + '_> = NonNull::from(&mut hook);
    // SAFETY: the lifetime alone changes. `Stop` takes the hook away before it ends.
    let hook: NonNull<dyn OnTrap + 'static> = unsafe { std::mem::transmute(hook) };
    HOOK.set(Some(hook));
    let _stop = Stop;
    // SAFETY: sets one flag. The traps that follow have a handler and a hook.
    unsafe {
        std::arch::asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq");
    }
    call();
}
