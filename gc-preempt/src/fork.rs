//! Fork: the registry lock is held over it, and the child begins with the forking thread alone.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};
use std::io;
use std::sync::{Arc, Weak};

use crate::blocking::lock;
use crate::faults;
use crate::members::{ForkHooks, Inner, worlds};
use crate::registry::{self, RegistryGuard};
use crate::text;

/// The registry lock, held by the forking thread over the fork.
struct OverFork(UnsafeCell<Option<Forking>>);
type Forking = (RegistryGuard, Vec<Arc<Inner>>, Vec<ForkHooks>);
// SAFETY: written by the forking thread only, which holds the registry lock, between prepare and
// parent or child.
unsafe impl Sync for OverFork {}
static OVER_FORK: OverFork = OverFork(UnsafeCell::new(None));

/// Makes fork safe: it waits for a stop under way, and the child starts with the forking thread as
/// the only one (H8).
///
/// Prepare handlers run in the reverse order of their registration, and a handler of the host's may
/// wait for a lock whose holder allocates. That allocation may need a lock of ours, or a
/// collection. So ours have to be the last to take locks, hence the first that are registered
/// (H42): when the program, or the library that Urge is part of, is loaded ([`AT_LOAD`]). Handlers
/// that were registered before that (by the host of a plugin, say) run with our locks held: they
/// must not wait for a thread that allocates, nor for one that leaves `blocking`.
pub(crate) fn install_handlers() -> io::Result<()> {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    // So that whatever links this crate links what registers at load.
    core::hint::black_box(&AT_LOAD);
    // Relaxed: set before threads exist, or under the registry lock.
    if INSTALLED.load(Ordering::Relaxed) {
        return Ok(());
    }
    // SAFETY: the handlers live as long as the module that they are in: glibc forgets those of one
    // that is unloaded.
    let error = unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    INSTALLED.store(true, Ordering::Relaxed);
    Ok(())
}

/// Runs when the module is loaded, before constructors without a priority (the compilers give 101
/// to those that a program may order).
#[used]
#[unsafe(link_section = ".init_array.00101")]
static AT_LOAD: extern "C" fn() = at_load;

extern "C" fn at_load() {
    faults::read_environment();
    if seam::installs_at_load() {
        // Where it fails, the first world says so.
        let _ = install_handlers();
    }
}

/// The hooks of all worlds. Worlds that end while they run stay alive in the first half of the
/// result.
fn fork_hooks(lock: &mut RegistryGuard) -> (Vec<Arc<Inner>>, Vec<ForkHooks>) {
    let all: Vec<_> = worlds(lock).iter().filter_map(Weak::upgrade).collect();
    let hooks = all
        .iter()
        .filter_map(|inner| inner.members(lock).fork_hooks)
        .collect();
    (all, hooks)
}

extern "C" fn prepare() {
    let Ok(mut lock) = lock() else {
        text::die("fork by the thread that has stopped the world");
    };
    let (all, hooks) = fork_hooks(&mut lock);
    for hook in &hooks {
        // SAFETY: `on_fork`'s caller promised that this may be called here.
        unsafe { (hook.prepare)(hook.data) };
    }
    // SAFETY: the registry lock makes this thread the only one here.
    unsafe { *OVER_FORK.0.get() = Some((lock, all, hooks)) };
}

extern "C" fn parent() {
    // SAFETY: as `prepare`.
    let Some((lock, all, hooks)) = (unsafe { (*OVER_FORK.0.get()).take() }) else {
        return;
    };
    for hook in hooks.iter().rev() {
        // SAFETY: as `prepare`.
        unsafe { (hook.parent)(hook.data) };
    }
    drop(lock);
    drop(all); // may end a world, which takes the lock
}

extern "C" fn child() {
    // SAFETY: the child has one thread, and it holds the lock.
    let Some((mut lock, all, hooks)) = (unsafe { (*OVER_FORK.0.get()).take() }) else {
        return;
    };
    let me = registry::current();
    if let Some(record) = me {
        // SAFETY: a system call without arguments.
        record
            .tid
            .store(unsafe { libc::gettid() }, Ordering::Relaxed);
        record.in_flight.store(0, Ordering::Relaxed); // pending signals are not inherited
        // SAFETY: the parent's thread is tied to another copy of it. The kernel's list for this
        // thread is empty, and so is glibc's.
        unsafe { record.lifeline.hold() };
    }
    if seam::keeps_the_lock() {
        std::mem::forget(lock);
        return;
    }
    lock.keep_only(me);
    for inner in &all {
        inner.members(&mut lock).keep_only(me);
    }
    drop(lock);
    for hook in &hooks {
        // SAFETY: as `prepare`.
        unsafe { (hook.child)(hook.data) };
    }
}

/// What tests may break here.
mod seam {
    use crate::faults::Fault;

    pub(super) fn installs_at_load() -> bool {
        !Fault::ForkHandlersLate.planted()
    }

    /// In the child.
    pub(super) fn keeps_the_lock() -> bool {
        Fault::NoForkHandler.planted()
    }
}
