//! Keeps our SIGURG handler on top of the host's handlers, and passes signals on to them.
//!
//! Handlers that other code installed form a chain, oldest first. Our handler passes each signal on
//! to the newest of them. A handler that a host installs *over* ours gets all signals instead: Go's
//! runtime, loaded after Urge, installs one and passes SIGURG on to no other. So each stop asks the
//! kernel which handler is installed, puts ours back on top, and adds the other one to the chain.
//!
//! ```text
//! kernel -> ours -> Go's                       Go's does not pass on
//! kernel -> ours -> host's newer -> ours -> host's older
//! ```
//!
//! A newer handler of the host may call the handler that it found installed, which is ours. So ours
//! may run more than once for one signal: the first time it passes the signal on to the newest
//! handler of the chain, the second time to the handler before, and so on; when none is left it
//! returns. The count lies in the signal frame, in the word `uc_link`, which the kernel sets to
//! zero and does not read. Thread-local storage cannot hold it: the handler may run on any thread.

use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::io;

use crate::arch::SignalFrame;

/// A handler that other code installed.
struct Handler {
    address: AtomicUsize,
    flags: AtomicI32,
}

/// Handlers that the chain has room for. Another one replaces the newest.
const MOST: usize = 8;

static CHAIN: [Handler; MOST] = [const {
    Handler {
        address: AtomicUsize::new(0),
        flags: AtomicI32::new(0),
    }
}; MOST];

/// Handlers in the chain. Changed under the registry lock.
static LENGTH: AtomicUsize = AtomicUsize::new(0);

/// Puts `ours` on top if it is not there, and adds the handler that it replaces to the chain. Under
/// the registry lock. One system call if ours is on top already.
///
/// # Errors
/// The system refuses the handler.
pub(crate) fn install(signal: i32, ours: usize) -> io::Result<()> {
    // The bound is for a host that installs another handler all the time.
    for _ in 0..MOST {
        let installed = installed(signal)?;
        if installed.sa_sigaction == ours {
            return Ok(());
        }
        // Added before ours is on top: a signal in between runs the host's handler only.
        add(&installed);
        // SAFETY: zero is a valid sigaction; its fields are set below.
        let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
        action.sa_sigaction = ours;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
        seam::set_mask(&mut action);
        // SAFETY: the handler has the SA_SIGINFO signature and is async-signal-safe.
        if unsafe { libc::sigaction(signal, &raw const action, core::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Puts `ours` back on top if the host has installed another handler over it. Under the registry
/// lock.
pub(crate) fn reinstall(signal: i32, ours: usize) {
    if seam::reinstalls() {
        // The system has accepted this handler before; the watchdog says if it does not now.
        let _ = install(signal, ours);
    }
}

/// Is `ours` the installed handler?
pub(crate) fn is_on_top(signal: i32, ours: usize) -> bool {
    installed(signal).map_or(true, |installed| installed.sa_sigaction == ours)
}

fn installed(signal: i32) -> io::Result<libc::sigaction> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: asks only; the value is read only if the call filled it.
    unsafe {
        if libc::sigaction(signal, core::ptr::null(), action.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(action.assume_init())
    }
}

/// Makes a handler the newest of the chain, unless it is the newest already. "Ignore" and "default"
/// are no handlers.
fn add(new: &libc::sigaction) {
    if new.sa_sigaction == libc::SIG_DFL || new.sa_sigaction == libc::SIG_IGN {
        return;
    }
    // Relaxed: the registry lock orders the writers.
    let length = LENGTH.load(Ordering::Relaxed);
    let is_newest = |at: usize| CHAIN[at].address.load(Ordering::Relaxed) == new.sa_sigaction;
    if length > 0 && is_newest(length - 1) {
        return;
    }
    let at = length.min(MOST - 1);
    CHAIN[at].flags.store(new.sa_flags, Ordering::Relaxed);
    // Release pairs with the Acquire in `pass_on`, which reads the flags after it.
    CHAIN[at].address.store(new.sa_sigaction, Ordering::Release);
    // Release pairs with the Acquire in `pass_on`: a thread that sees the length sees the handler.
    LENGTH.store(at + 1, Ordering::Release);
}

/// Runs the next handler of the chain, as the kernel would have.
pub(crate) fn pass_on(
    frame: SignalFrame,
    signal: i32,
    info: *mut libc::siginfo_t,
    ucontext: *mut libc::c_void,
) {
    let run = frame.handlers_run();
    // Acquire, here and below: pairs with the Releases in `add`.
    let length = LENGTH.load(Ordering::Acquire);
    if run >= seam::handlers(length) {
        return; // ignored: that is SIGURG's default
    }
    let handler = &CHAIN[length - 1 - run];
    let address = handler.address.load(Ordering::Acquire);
    frame.set_handlers_run(seam::next(run));
    if handler.flags.load(Ordering::Relaxed) & libc::SA_SIGINFO != 0 {
        // SAFETY: the host installed this address as a three-argument handler.
        let f: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
            unsafe { core::mem::transmute(address) };
        f(signal, info, ucontext);
    } else {
        // SAFETY: the host installed this address as a one-argument handler.
        let f: extern "C" fn(i32) = unsafe { core::mem::transmute(address) };
        f(signal);
    }
    frame.set_handlers_run(run);
}

/// What tests may break here.
mod seam {
    use crate::faults::Fault;
    use crate::signal_mask::full_mask;

    /// The signals that are blocked while the handler runs.
    pub(super) fn set_mask(action: &mut libc::sigaction) {
        if !Fault::ParkedOpen.planted() {
            action.sa_mask = full_mask();
        }
    }

    pub(super) fn reinstalls() -> bool {
        !Fault::NoReinstall.planted()
    }

    /// How many handlers of the chain a signal is passed on to.
    pub(super) fn handlers(length: usize) -> usize {
        if Fault::NoPassOn.planted() { 0 } else { length }
    }

    /// How many handlers have run for this signal once one more has.
    pub(super) fn next(run: usize) -> usize {
        run + usize::from(!Fault::ChainLoops.planted())
    }
}
