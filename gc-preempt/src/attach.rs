//! Attaching and detaching threads, at their wish, at their end, and at a fork.

use crate::code::CODE;
use crate::mutator::Mutator;
use crate::quiet::NoCancel;
use crate::registry::{self, Record, RegistryGuard};
use crate::state::Phase;
use crate::world::{AttachError, ForkHooks, Inner, Member, MutatorHooks, World, aside, worlds};
use crate::{altstack, faults, own_stack, signal, walk, watchdog};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::io;

pub(crate) fn attach(
    world: &World,
    data: *mut (),
    hooks: Option<MutatorHooks>,
) -> Result<Mutator, AttachError> {
    if crate::world::holds_a_stop() {
        return Err(AttachError::HoldsAStop);
    }
    let _no_cancel = NoCancel::new();
    // Before the lock: both may call malloc, and the first may read /proc.
    let stack = own_stack::find()
        .map_err(|e| AttachError::System("where does this thread's stack lie", e))?;
    arm_exit().map_err(|e| AttachError::System("a destructor for the thread's end", e))?;

    let mut evicted = Vec::new(); // dropped after the lock: a world's end takes it
    let mut lock = registry::lock()?;
    let found = registry::current().and_then(|record| {
        // SAFETY: a system call without arguments.
        if record.tid.load(Ordering::Relaxed) == unsafe { libc::gettid() } {
            return Some(record);
        }
        // A thread that died unseen had this thread's control block.
        evicted = evict(record, &mut lock);
        None
    });
    let record = match found {
        Some(record) => {
            if world
                .inner
                .members(&mut lock)
                .all()
                .any(|m| core::ptr::eq(m.record, record))
            {
                return Err(AttachError::AlreadyAttached);
            }
            record
        }
        None => {
            let record = lock.insert().ok_or(AttachError::TooManyThreads)?;
            record.own_stack.set(&stack);
            // SAFETY: a system call without arguments.
            record
                .tid
                .store(unsafe { libc::gettid() }, Ordering::Relaxed);
            if let Err(e) = set_up_signals(record, &mut lock, stack.room()) {
                lock.remove(record);
                return Err(AttachError::System("an alternate signal stack", e));
            }
            // SAFETY: the record was in the pool, or is new: no living thread has it.
            unsafe { record.lifeline.hold() };
            record
        }
    };
    record.worlds.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the registry lock is held, and the stack is the running thread's.
    unsafe { walk::learn(&CODE, record.frames()) };
    record
        .inject
        .fetch_or(u32::from(world.inner.config.inject), Ordering::Relaxed);
    let member = Member::new(record, data, hooks);
    world.inner.members(&mut lock).add(member);
    drop(lock);
    drop(evicted);
    Ok(Mutator::new(record, world.clone()))
}

/// Detaches the running thread. `first` is run before, while no world is stopped but by this thread
/// itself, nor can be.
pub(crate) fn detach(world: &World, record: &'static Record, first: impl FnOnce()) {
    let Ok(mut lock) = registry::lock() else {
        if record.is_aside_in(&world.inner) {
            aside::come_back(record);
        }
        first();
        // SAFETY: this thread holds a stop.
        return unsafe { world.inner.leave_after_stop(record) };
    };
    if record.is_aside_in(&world.inner) {
        world.inner.members(&mut lock).take_back(record);
    }
    first();
    let members = &mut world.inner.members(&mut lock).list;
    let before = members.len();
    members.retain(|m| !core::ptr::eq(m.record, record));
    if members.len() == before {
        return; // in a forked child, or at thread exit: somebody else has done it
    }
    if record.hook_world.load(Ordering::Relaxed) == world.inner.id {
        record.hook.store(core::ptr::null_mut(), Ordering::Relaxed);
    }
    record.worlds.fetch_sub(1, Ordering::Relaxed);
    release(record, &mut lock);
}

/// Gives a record back that is attached nowhere any more, unless its thread is inside a section
/// that will still touch it: then the end of the section does (see [`Leaving`]).
fn release(record: &'static Record, lock: &mut RegistryGuard) {
    let idle =
        record.depth.load(Ordering::Relaxed) == 0 && record.state.load().phase() == Phase::Running;
    if idle && record.worlds.load(Ordering::Relaxed) == 0 {
        tear_down_signals(record);
        let alternate = record.alternate();
        // SAFETY: this is the record's thread, which has held it since it attached.
        unsafe { record.lifeline.let_go() };
        lock.remove(record);
        if faults::planted("alternate-given-back")
            && let Some(alternate) = alternate
        {
            lock.alternates().give(alternate);
        }
    }
}

/// Ends a `no_preempt_here` or `blocking_here` in which the thread's last mutator may have been
/// dropped.
pub(crate) struct Leaving(pub(crate) &'static Record);

impl Drop for Leaving {
    fn drop(&mut self) {
        // Relaxed: only its own thread detaches it.
        if self.0.worlds.load(Ordering::Relaxed) == 0
            && self.0.thread_pointer.load(Ordering::Relaxed) == crate::arch::thread_pointer()
            && let Ok(mut lock) = registry::lock()
        {
            release(self.0, &mut lock);
        }
    }
}

/// Takes a dead thread's record out of every world and out of the table. The result is to be
/// dropped after the lock.
fn evict(record: &'static Record, lock: &mut RegistryGuard) -> Vec<std::sync::Arc<Inner>> {
    let all: Vec<_> = worlds(lock)
        .iter()
        .filter_map(std::sync::Weak::upgrade)
        .collect();
    for inner in &all {
        for gone in inner.members(lock).take_all(record) {
            // SAFETY: the thread is gone, and the registry lock is held.
            unsafe { gone.tell_gone() };
        }
    }
    lock.remove_dead(record);
    all
}

/// An alternate stack of Urge's own for the thread, and SIGURG unblocked, whatever mask the thread
/// inherited.
fn set_up_signals(record: &Record, lock: &mut RegistryGuard, own_stack: usize) -> io::Result<()> {
    let alternate = altstack::install(lock, own_stack)?;
    // Relaxed: its own thread's handler reads it.
    record
        .alternate
        .store(core::ptr::from_ref(alternate).cast_mut(), Ordering::Relaxed);
    let urg = only_the_signal();
    let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
    let (how, set) = if faults::planted("no-unblock") {
        (libc::SIG_SETMASK, core::ptr::null())
    } else {
        (libc::SIG_UNBLOCK, &raw const urg)
    };
    // SAFETY: the sets are valid, the call fills `mask`.
    let was_blocked = unsafe {
        libc::pthread_sigmask(how, set, mask.as_mut_ptr());
        libc::sigismember(mask.as_ptr(), signal::SIGNAL) == 1
    };
    record.urg_was_blocked.store(was_blocked, Ordering::Relaxed);
    Ok(())
}

fn tear_down_signals(record: &Record) {
    if record.urg_was_blocked.load(Ordering::Relaxed) {
        let urg = only_the_signal();
        // SAFETY: the set is valid.
        unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const urg, core::ptr::null_mut());
        }
    }
    if let Some(alternate) = record.alternate() {
        alternate.put_back();
    }
}

fn only_the_signal() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal::SIGNAL);
        set.assume_init()
    }
}

// ---- the end of a thread ------------------------------------------------------------------------

/// Sees to it that [`at_exit`] runs when this thread ends.
///
/// By a destructor of a pthread key, not of a Rust thread-local: glibc runs the former after all of
/// the latter, so a `Mutator` that is kept in a thread-local is dropped in the ordinary way before,
/// and other destructors may still use it.
fn arm_exit() -> io::Result<()> {
    // 0: not made yet; otherwise the key plus one.
    static KEY: AtomicU32 = AtomicU32::new(0);
    let mut known = KEY.load(Ordering::Acquire);
    if known == 0 {
        let mut key = 0;
        // SAFETY: the call fills the key; the destructor lives as long as the process.
        let error = unsafe { libc::pthread_key_create(&raw mut key, Some(at_exit)) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        known = key + 1;
        // Two threads may race here: the loser's key goes unused.
        if let Err(other) = KEY.compare_exchange(0, known, Ordering::AcqRel, Ordering::Acquire) {
            known = other;
        }
    }
    // SAFETY: the key was made; any non-null value makes the destructor run.
    match unsafe { libc::pthread_setspecific(known - 1, core::ptr::without_provenance(1)) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Detaches a thread whose `Mutator` was leaked.
unsafe extern "C" fn at_exit(_: *mut libc::c_void) {
    if faults::planted("no-exit-detach") {
        return;
    }
    // Asked for anew each time: after the last detach the record may be another thread's already,
    // and its memberships with it.
    while let Some(record) = registry::current()
        && let Some((world, at_exit, data)) = any_membership(record)
    {
        if let Some(f) = at_exit {
            // SAFETY: `attach_with`'s caller promised that this may be called here, and the Mutator
            // was not dropped.
            unsafe { f(data) };
        }
        detach(&world, record, || ());
    }
}

type Membership = (World, Option<unsafe fn(*mut ())>, *mut ());

fn any_membership(record: &'static Record) -> Option<Membership> {
    // A thread that ends with its stop leaked stays: nobody can stop or attach any more.
    let mut lock = registry::lock().ok()?;
    let all: Vec<_> = worlds(&mut lock)
        .iter()
        .filter_map(std::sync::Weak::upgrade)
        .collect();
    let found = all.iter().find_map(|inner| {
        let m = inner
            .members(&mut lock)
            .all()
            .find(|m| core::ptr::eq(m.record, record))?;
        Some((
            World {
                inner: inner.clone(),
            },
            m.hooks.map(|hooks| hooks.at_exit),
            m.data,
        ))
    });
    drop(lock);
    found
}

// ---- fork ---------------------------------------------------------------------------------------

/// The registry lock, held by the forking thread over the fork.
struct OverFork(UnsafeCell<Option<Forking>>);
type Forking = (RegistryGuard, Vec<std::sync::Arc<Inner>>, Vec<ForkHooks>);
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
pub(crate) fn install_fork_handlers() -> io::Result<()> {
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
    if !faults::planted("fork-handlers-late") {
        // Where it fails, the first world says so.
        let _ = install_fork_handlers();
    }
}

/// The hooks of all worlds. Worlds that end while they run stay alive in the first half of the
/// result.
fn fork_hooks(lock: &mut RegistryGuard) -> (Vec<std::sync::Arc<Inner>>, Vec<ForkHooks>) {
    let all: Vec<_> = worlds(lock)
        .iter()
        .filter_map(std::sync::Weak::upgrade)
        .collect();
    let hooks = all
        .iter()
        .filter_map(|inner| inner.members(lock).fork_hooks)
        .collect();
    (all, hooks)
}

extern "C" fn prepare() {
    let Ok(mut lock) = registry::lock() else {
        watchdog::die("fork by the thread that has stopped the world");
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
    if faults::planted("no-fork-handler") {
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
