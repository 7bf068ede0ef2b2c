//! Preemption of compiled code, whose loops have no polls: by SIGURG at a point ([`Points`]), to
//! which single steps lead.
//!
//! 1. The monitor marks the thread by its `Preempter`. SIGURG injects a call of [`hook`] at
//!    whatever instruction the thread has come to. At a point the green thread is suspended there,
//!    with all its registers on its stack. Anywhere else the hook marks the thread again.
//! 2. The monitor sends [`signal`]. Its handler lets a marked thread that runs compiled code make
//!    single steps up to the next point, through native code as well, and sends SIGURG there.
//! 3. SIGURG injects the call at the point.
//!
//! A step that never comes to a point ends after [`STEPS`] instructions. The monitor asks again as
//! long as the green thread runs.
//!
//! [`Points`]: super::super::points::Points

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::sync::Once;

use gc_preempt::{PreemptHook, Preempter};

use super::super::isolate::Vm;
use super::threads::poll;
use crate::kernels::interruption::Interruption;
use crate::kernels::single_step::{self, OnTrap};
use crate::lox::fault::Fault;

/// The most instructions that are stepped for one signal.
const STEPS: u32 = 4000;

/// The signal that asks for single steps.
pub(super) fn signal() -> c_int {
    libc::SIGRTMIN() + 4
}

/// What the running thread's handlers need, while its isolate runs green threads.
struct Stepper {
    vm: *mut Vm,
    preempter: Preempter,
    left: u32,
}

thread_local! {
    static STEPPER: Cell<*mut Stepper> = const { Cell::new(std::ptr::null_mut()) };
}

/// The time for which the running thread's compiled code is preempted. Stays on its thread.
pub(super) struct Preemption {
    stepper: *mut Stepper,
}

impl Preemption {
    /// Begins it, for the isolate of the running thread.
    ///
    /// # Safety
    /// The isolate outlives the value, and this thread runs it.
    pub(super) unsafe fn begin(vm: *mut Vm) -> Preemption {
        install();
        // SAFETY: the contract.
        let thread = unsafe { (*vm).mutator.thread() };
        let stepper = Box::into_raw(Box::new(Stepper {
            vm,
            preempter: thread.preempter(),
            left: 0,
        }));
        STEPPER.set(stepper);
        let hook = PreemptHook {
            f: hook,
            data: stepper.cast(),
        };
        // SAFETY: the hook runs where compiled code could call a function, and uses the stepper,
        // which lives until the hook is unset.
        unsafe { thread.set_preempt_hook(Some(hook)) };
        Preemption { stepper }
    }

    /// The handle by which the monitor marks the thread.
    pub(super) fn preempter(&self) -> Preempter {
        // SAFETY: the stepper lives as long as this value, and handlers do not change this field.
        unsafe { (*self.stepper).preempter.clone() }
    }
}

impl Drop for Preemption {
    fn drop(&mut self) {
        // SAFETY: `begin` has set the hook on this thread. After that neither it nor a handler uses
        // the stepper.
        unsafe {
            (*(*self.stepper).vm)
                .mutator
                .thread()
                .set_preempt_hook(None);
            STEPPER.set(std::ptr::null_mut());
            gc_preempt::take_preempt_request_here();
            drop(Box::from_raw(self.stepper));
        }
    }
}

/// Whether the green thread may be suspended at an instruction: see `Points::at`.
///
/// # Safety
/// The isolate lives.
unsafe fn at(vm: *const Vm, pc: usize) -> Option<bool> {
    // SAFETY: the contract; the table may be read at any time.
    unsafe { (*vm).points.at(pc) }
}

/// Runs as if the interrupted instruction of compiled code had called it.
unsafe extern "C" fn hook(data: *mut ()) {
    let stepper: *mut Stepper = data.cast();
    // SAFETY: `Preemption` has set the hook for this thread's isolate.
    unsafe {
        let pc = gc_preempt::preempted_at_here();
        let is_point = pc.and_then(|pc| at((*stepper).vm, pc)) == Some(true);
        if is_point || Fault::SuspendedAnywhere.planted() {
            poll((*stepper).vm);
        } else {
            (*stepper).preempter.preempt();
        }
    }
}

impl OnTrap for Stepper {
    fn trapped(&mut self, now: &Interruption) -> bool {
        self.left -= 1;
        if self.left == 0 || !gc_preempt::preempt_wanted_here() {
            return false;
        }
        // SAFETY: `Preemption` keeps the stepper and its isolate.
        if unsafe { at(self.vm, now.pc) } == Some(true) {
            preempt_here();
            return false;
        }
        true
    }
}

/// Sends SIGURG to the running thread, in a handler. The signal is blocked until the handler
/// returns, which restores the mask: so it interrupts the instruction to which the handler returns.
fn preempt_here() {
    // SAFETY: system calls; the set is initialised.
    unsafe {
        let mut urgent: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut urgent);
        libc::sigaddset(&raw mut urgent, libc::SIGURG);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const urgent, std::ptr::null_mut());
        libc::syscall(
            libc::SYS_tgkill,
            libc::getpid(),
            libc::gettid(),
            libc::SIGURG,
        );
    }
}

extern "C" fn on_signal(_: c_int, _: *mut libc::siginfo_t, ucontext: *mut c_void) {
    let stepper = STEPPER.get();
    if stepper.is_null() || single_step::is_stepping() || !gc_preempt::preempt_wanted_here() {
        return;
    }
    // SAFETY: the kernel's argument; the stepper lives while the thread's word names it, and is not
    // in use: the thread does not step.
    unsafe {
        match at((*stepper).vm, Interruption::of_signal(ucontext).pc) {
            Some(true) => preempt_here(),
            Some(false) => {
                (*stepper).left = STEPS;
                single_step::step_from(ucontext, NonNull::new_unchecked(stepper));
            }
            None => {}
        }
    }
}

/// Installs the handlers, once in the process.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        single_step::install();
        // SAFETY: installs a handler of this type. It runs on the thread's own stack.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            let failed = libc::sigaction(signal(), &raw const action, std::ptr::null_mut());
            assert_eq!(failed, 0, "a real-time signal takes a handler");
        }
    });
}
