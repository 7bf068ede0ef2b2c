//! The handler of SIGURG: its installation and its decisions.
//!
//! Signals coalesce, so a signal of ours may also be one of the host's: each is passed on to the
//! host's handlers, see `handler_chain.rs`.
//!
//! Code that runs in the handler does not allocate, takes no lock, accesses no thread-local storage
//! except libc's `errno`, and does not panic. While the thread parks, all signals except the
//! synchronous faults are blocked, by the handler's mask.

use crate::acknowledgements;
use crate::arch::{self, InjectedFrame, SignalFrame};
use crate::clock::now;
use crate::context::{Origin, Registers, Snapshot};
use crate::handler_chain;
use crate::panics;
use crate::quiet::KeepErrno;
use crate::registry::{self, Record};
use crate::signal::SIGNAL;
use crate::signal_mask::SignalMask;
use crate::state::Phase;
use crate::stop_number::resumed;
use crate::stop_point::{
    How, Obstacle, StopPoint, acknowledge_and_park, acknowledge_walk_and_park, frame_snapshot,
    may_preempt, may_stop, poll, wants_preemption,
};
use core::sync::atomic::{AtomicU64, Ordering};

/// Signals that no stop has asked for.
static STRAYS: AtomicU64 = AtomicU64::new(0);

/// The address of [`on_signal`].
fn handler() -> usize {
    on_signal as *const () as usize
}

/// Installs the handler. Under the registry lock.
///
/// # Errors
/// The system refuses it.
pub(crate) fn install() -> std::io::Result<()> {
    handler_chain::install(SIGNAL, handler())
}

/// Puts our handler on top of one that the host has installed over it. Under the registry lock, by
/// a stopper before it signals. It costs each stop one system call.
pub(crate) fn reinstall() {
    handler_chain::reinstall(SIGNAL, handler());
}

/// Is our handler the installed one? For the watchdog.
pub(crate) fn still_installed() -> bool {
    handler_chain::is_on_top(SIGNAL, handler())
}

/// Signals so far that no stop has asked for.
pub(crate) fn strays() -> u64 {
    STRAYS.load(Ordering::Relaxed)
}

/// The handler. [`decide`] decides.
extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, ucontext: *mut libc::c_void) {
    let from = now();
    let kept = KeepErrno::new();
    panics::abort_if_panicking();
    // SAFETY: `ucontext` is this handler's third argument.
    let frame = unsafe { SignalFrame::new(ucontext) };
    match registry::current() {
        Some(record) => decide_on_our_stack(record, frame, from),
        None => {
            STRAYS.fetch_add(1, Ordering::Relaxed);
            seam::stray();
        }
    }
    handler_chain::pass_on(frame, signal, info, ucontext);
    drop(kept);
}

/// Runs [`decide`] on the thread's alternate stack of Urge's. The kernel may have put the handler
/// on the host's alternate stack, which may be small, or on the thread's own stack, which may be
/// full.
fn decide_on_our_stack(record: &'static Record, frame: SignalFrame, from: u64) {
    struct Call(&'static Record, SignalFrame, u64);
    extern "C" fn call(data: *mut ()) {
        // SAFETY: what is passed below, alive until this returns.
        let &Call(record, frame, from) = unsafe { &*data.cast::<Call>() };
        decide(record, frame, from);
    }
    let mut here = Call(record, frame, from);
    match record.alternate() {
        Some(stack) if !seam::is_on(stack, &raw const here as usize) => {
            stack.run(call, (&raw mut here).cast());
        }
        _ => call((&raw mut here).cast()),
    }
}

/// Handles the signal on an attached thread.
fn decide(record: &'static Record, frame: SignalFrame, from: u64) {
    // SeqCst pairs with the requester's: a request that sees a signal in flight is seen below.
    record.in_flight.store(0, Ordering::SeqCst);
    let word = record.state.load();
    let number = word.number();
    if !word.asked() {
        seam::stray();
    }
    let wanted = record.by_signal.load(Ordering::Relaxed);
    if word.phase() != Phase::Running || !word.asked() || resumed() >= number || !wanted {
        // The thread is stopped or blocked already, or no stop asks for it: a stray, or a signal
        // that came after the thread had stopped by itself.
        if word.phase() == Phase::Running && wants_preemption(record) {
            preempt(record, frame);
        } else {
            STRAYS.fetch_add(1, Ordering::Relaxed);
        }
        return;
    }
    // SAFETY: on the record's thread; the stop that asks is under way, and this thread has not
    // answered it.
    match unsafe { may_stop(record, &StopPoint::Signal(frame, number)) } {
        // The end of no_preempt polls: the stopper need not signal again.
        Err(obstacle @ Obstacle::NoPreempt) => {
            record.note_obstacle(number, obstacle);
            record.state.defer(number);
        }
        // The thread does not notice when it has passed the other obstacles: the stopper signals
        // again.
        Err(obstacle) => {
            record.note_obstacle(number, obstacle);
            acknowledgements::retry();
        }
        Ok(How::Inject) => {
            // From here to the trampoline's acknowledgement the thread counts as inside no_preempt.
            // PENDING keeps the stopper from signalling again.
            record.depth.store(1, Ordering::Relaxed);
            record.state.defer(number);
            record.injected.store(number, Ordering::Relaxed);
            // SAFETY: managed code keeps the System V convention; the room was checked.
            unsafe { frame.inject() };
        }
        Ok(How::ParkAndWalk) => {
            let snapshot = frame_snapshot(frame);
            // SAFETY: own thread; the handler's mask blocks all signals except faults; the signal
            // frame stays as it is until we return.
            unsafe { acknowledge_walk_and_park(record, number, snapshot) };
            record.note_stall(number, from);
        }
        Ok(How::Park) => {
            let snapshot = frame_snapshot(frame);
            // SAFETY: as above.
            unsafe { acknowledge_and_park(record, number, snapshot) };
            record.note_stall(number, from);
        }
    }
}

/// Injects a call that preempts the thread, if it may be preempted where it is. Otherwise the
/// request stays marked. No stop asks for the thread.
fn preempt(record: &Record, frame: SignalFrame) {
    if may_preempt(record, frame) {
        // As for a stop: from here to the trampoline the thread counts as inside no_preempt. A stop
        // that asks meanwhile is deferred, and the trampoline polls.
        record.depth.store(1, Ordering::Relaxed);
        record.injected.store(0, Ordering::Relaxed);
        // SAFETY: managed code keeps the System V convention; the room was checked.
        unsafe { frame.inject() };
    }
}

arch::define_trampoline!(injected_stop);

/// Called by the trampoline: acknowledges and parks, if a stop has injected the call, and runs the
/// hooks. `frame` and `image` (an
/// XSAVE area) are on this stack, below the interrupted frame.
extern "C" fn injected_stop(frame: *const InjectedFrame, image: usize) {
    let from = now();
    let kept = KeepErrno::new(); // the interrupted code may be about to read it
    if let Some(record) = registry::current() {
        // SAFETY: the trampoline passes the frame it has just filled.
        let saved = unsafe { &*frame };
        let registers = Registers {
            gpr: saved.gpr,
            pc: saved.pc,
            flags: saved.flags,
        };
        let interrupted = saved.pc;
        let vectors = image..core::ptr::from_ref(saved) as usize;
        let number = record.injected.load(Ordering::Relaxed);
        if number != 0 {
            let _mask = SignalMask::all_but_faults();
            let snapshot = Snapshot {
                registers,
                vectors,
                origin: Origin::Injected,
            };
            // SAFETY: own thread, signals blocked, the frame stays until the trampoline returns.
            unsafe { acknowledge_and_park(record, number, snapshot) };
            record.note_stall(number, from);
        }
        // SAFETY: the image lies on this stack, in the trampoline's frame.
        unsafe { seam::before_restoring(image) };
        // From here on the thread may be stopped again. A walk then finds the interrupted registers
        // in the trampoline's frame.
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
        record.depth.store(0, Ordering::Relaxed);
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
        poll(record);
        if number != 0 {
            // SAFETY: own thread; the interrupted code is managed, where the owner allows the hook.
            unsafe { record.stop_hook.run() };
        }
        run_preempt_hook(interrupted);
    }
    // A hook may have gone on on another thread: its errno is set, by value.
    drop(kept);
}

/// Runs the preempt hook, if the thread is to be preempted. `pc` is the interrupted instruction.
fn run_preempt_hook(pc: usize) {
    // Looked up here: the stop hook may have gone on on another thread.
    if let Some(record) = registry::current()
        && wants_preemption(record)
    {
        record.preempt_wanted.store(false, Ordering::SeqCst);
        // Relaxed: this thread's own.
        record.preempted_at.store(pc, Ordering::Relaxed);
        // SAFETY: as for the stop hook.
        unsafe { record.preempt_hook.run() };
    }
}

/// What tests may break here.
mod seam {
    use crate::altstack::AlternateStack;
    use crate::faults::Fault;
    use crate::stop_number::{resumed, wait_for_resume};

    /// A signal has come that no stop wants.
    pub(super) fn stray() {
        if Fault::StrayStops.planted() {
            wait_for_resume(resumed() + 1);
        }
    }

    pub(super) fn is_on(stack: &AlternateStack, address: usize) -> bool {
        stack.holds(address) || Fault::StaysOnStack.planted()
    }

    /// # Safety
    /// `image` is the XSAVE image of the trampoline's frame, which XRSTOR reads next.
    pub(super) unsafe fn before_restoring(image: usize) {
        if Fault::NoVectorSave.planted() {
            // As if the upper vector state had not been saved: its image holds zeros.
            // SAFETY: the caller's contract.
            unsafe { core::ptr::write_bytes((image + 576) as *mut u8, 0, 256) };
        }
    }
}
