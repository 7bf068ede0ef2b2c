//! Fork: the registry lock and that of the stack pools are held over it, and the child begins with
//! the forking thread alone.
//!
//! `fork` waits for a stop under way. The hooks of all worlds ([`ForkHooks`]) run with the lock
//! held in the parent, and without it in the child.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};
use std::io;
use std::sync::{Arc, Weak};

use crate::blocking::lock;
use crate::code::CODE;
use crate::faults;
use crate::members::{ForkHooks, Inner, worlds};
use crate::park::MutexGuard;
use crate::registry::{self, RegistryGuard};
use crate::stack_memory::lock_pools;
use crate::text;

/// The registry lock, held by the forking thread over the fork.
struct OverFork(UnsafeCell<Option<Forking>>);
type Forking = (
    RegistryGuard,
    Vec<Arc<Inner>>,
    Vec<ForkHooks>,
    Option<MutexGuard<'static, ()>>,
);
// SAFETY: written by the forking thread only, which holds the registry lock, between prepare and
// parent or child.
unsafe impl Sync for OverFork {}
static OVER_FORK: OverFork = OverFork(UnsafeCell::new(None));

/// Installs the fork handlers, once a process (H8).
///
/// Prepare handlers run in the reverse order of their registration. A handler of the host may wait
/// for a lock whose holder allocates, and that allocation may need a lock of ours, or a collection.
/// So our handlers must be the last to take locks, hence the first that are registered (H42): when
/// the program, or the library that Urge is part of, is loaded ([`AT_LOAD`]). Handlers that were
/// registered before (by the host of a plugin, say) run with our locks held: they must not wait for
/// a thread that allocates or that leaves `blocking`.
pub(crate) fn install_handlers() -> io::Result<()> {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    // Keeps the linker from dropping the static.
    core::hint::black_box(&AT_LOAD);
    // Relaxed: set before threads exist, or under the registry lock.
    if INSTALLED.load(Ordering::Relaxed) {
        return Ok(());
    }
    // SAFETY: the handlers live as long as their module: glibc removes the handlers of a module
    // that is unloaded.
    let error = unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    INSTALLED.store(true, Ordering::Relaxed);
    Ok(())
}

/// Runs when the module is loaded, before constructors without a priority. (101 is the first
/// priority that compilers leave to programs.)
#[used]
#[unsafe(link_section = ".init_array.00101")]
static AT_LOAD: extern "C" fn() = at_load;

extern "C" fn at_load() {
    faults::read_environment();
    if seam::installs_at_load() {
        // If it fails, `World::new` reports it.
        let _ = install_handlers();
    }
}

/// The hooks of all worlds. The first half of the result keeps the worlds alive while the hooks
/// run.
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
    unsafe { *OVER_FORK.0.get() = Some((lock, all, hooks, lock_pools())) };
}

extern "C" fn parent() {
    // SAFETY: as `prepare`.
    let Some((lock, all, hooks, pools)) = (unsafe { (*OVER_FORK.0.get()).take() }) else {
        return;
    };
    drop(pools);
    for hook in hooks.iter().rev() {
        // SAFETY: as `prepare`.
        unsafe { (hook.parent)(hook.data) };
    }
    drop(lock);
    drop(all); // may end a world, which takes the lock
}

extern "C" fn child() {
    // SAFETY: the child has one thread, and it holds the lock.
    let Some((mut lock, all, hooks, pools)) = (unsafe { (*OVER_FORK.0.get()).take() }) else {
        return;
    };
    drop(pools);
    CODE.forget_readers();
    let me = registry::current();
    if let Some(record) = me {
        // SAFETY: a system call without arguments.
        record
            .tid
            .store(unsafe { libc::gettid() }, Ordering::Relaxed);
        record.in_flight.store(0, Ordering::Relaxed); // pending signals are not inherited
        record.preempt_wanted.store(false, Ordering::Relaxed); // who wanted it is in the parent
        // SAFETY: the parent's thread is tied to another copy of the mutex. The kernel's list of
        // robust mutexes is empty for this thread, and so is glibc's.
        unsafe { record.lifeline.hold() };
    }
    if seam::keeps_the_lock() {
        std::mem::forget(lock);
        return;
    }
    lock.keep_only(me);
    let mine = me.map_or(usize::MAX, |record| core::ptr::from_ref(record) as usize);
    for inner in &all {
        let members = inner.members(&mut lock);
        members.keep_only(me);
        members.lose_stacks(|runner| runner != mine);
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
