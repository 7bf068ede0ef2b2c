//! Attaching and detaching of threads, and what happens at the end of an attached thread.

use crate::altstack::{self, AlternateStack};
use crate::blocking::lock;
use crate::code::CODE;
use crate::errors::AttachError;
use crate::members::{self, Inner, Member, MutatorHooks, worlds};
use crate::quiet::NoCancel;
use crate::registry::{self, Record, RegistryGuard};
use crate::signal::SIGNAL;
use crate::stack_record::StackState;
use crate::state::Phase;
use crate::stop_point::NoPreempt;
use crate::stopper::holds_a_stop;
use crate::thread_key::ThreadKey;
use crate::{own_stack, walk};
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering;
use std::io;
use std::sync::{Arc, Weak};

/// Attaches the running thread to a world, as `World::attach_with` says.
pub(crate) fn attach(
    inner: &Arc<Inner>,
    data: *mut (),
    hooks: Option<MutatorHooks>,
) -> Result<&'static Record, AttachError> {
    if holds_a_stop() {
        return Err(AttachError::HoldsAStop);
    }
    let _no_cancel = NoCancel::new();
    // Before the lock, since both may call malloc, and the first may read /proc.
    let stack = own_stack::find()
        .map_err(|e| AttachError::System("where does this thread's stack lie", e))?;
    AT_EXIT
        .set(core::ptr::without_provenance(1))
        .map_err(|e| AttachError::System("a destructor for the thread's end", e))?;

    let mut evicted = Vec::new(); // dropped after the lock: the end of a world takes the lock
    let mut lock = lock()?;
    let found = registry::current().and_then(|record| {
        // SAFETY: a system call without arguments.
        if record.tid.load(Ordering::Relaxed) == unsafe { libc::gettid() } {
            return Some(record);
        }
        // A thread that ended without detaching had this thread's control block.
        evicted = evict(record, &mut lock);
        None
    });
    let record = match found {
        Some(record) => {
            if record.current().is_some() {
                return Err(AttachError::OnAStack);
            }
            if inner
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
    unsafe { walk::warm_unwind_cache(&CODE, record.frames()) };
    record
        .inject
        .fetch_or(u32::from(inner.config.inject), Ordering::Relaxed);
    let member = Member::new(record, data, hooks);
    inner.members(&mut lock).add(member);
    drop(lock);
    drop(evicted);
    Ok(record)
}

/// Detaches the running thread. Runs `first` before, while the registry lock is held: no other
/// thread holds a stop then.
///
/// # Panics
/// On a registered stack: the thread stays attached. If the thread panics already, it stays
/// attached without another panic.
pub(crate) fn detach(inner: &Arc<Inner>, record: &'static Record, first: impl FnOnce()) {
    if record.current().is_some() && !left_for_good(record) {
        if std::thread::panicking() {
            return;
        }
        panic!(
            "a Mutator was dropped on a coroutine's stack, on which its thread has still to be \
             stopped: the thread stays attached"
        );
    }
    record.resumes_in.store(0, Ordering::Relaxed);
    let Ok(mut lock) = lock() else {
        if record.is_aside_in(inner) {
            members::come_back(record);
        }
        first();
        // SAFETY: this thread holds a stop.
        return unsafe { inner.leave_after_stop(record) };
    };
    if record.is_aside_in(inner) {
        inner.members(&mut lock).take_back(record);
    }
    first();
    let members = &mut inner.members(&mut lock).list;
    let before = members.len();
    members.retain(|m| !core::ptr::eq(m.record, record));
    if members.len() == before {
        return; // detached already: in a forked child, or by `at_exit`
    }
    record.stop_hook.unset_of(inner.id);
    record.preempt_hook.unset_of(inner.id);
    record.worlds.fetch_sub(1, Ordering::Relaxed);
    release(record, &mut lock);
}

/// Has the running thread, which is known to run on a registered stack, left that stack and all
/// from which it was resumed for good? `pthread_exit` does so, and a long jump may. The thread is
/// back on its own stack, and the stacks are lost.
fn left_for_good(record: &'static Record) -> bool {
    let here = 0u8;
    let is_back = record.own_stack.holds(&raw const here as usize);
    if !is_back {
        return false;
    }
    let mut at = record.current();
    let section = NoPreempt::on(record);
    record
        .current
        .store(core::ptr::null_mut(), Ordering::Relaxed);
    while let Some(stack) = at {
        // SAFETY: the running thread's own chain.
        at = unsafe { stack.outer() };
        stack.give_back(StackState::Lost);
    }
    drop(section);
    true
}

/// Gives the running thread's record back if the thread is attached to no world any more. Inside of
/// `no_preempt` or `blocking`, whose end accesses the record, the end does it (see `here.rs`).
pub(crate) fn release(record: &'static Record, lock: &mut RegistryGuard) {
    let idle =
        record.depth.load(Ordering::Relaxed) == 0 && record.state.load().phase() == Phase::Running;
    if idle && record.worlds.load(Ordering::Relaxed) == 0 {
        tear_down_signals(record);
        // SAFETY: this is the record's thread, which has held it since it attached.
        unsafe { record.lifeline.let_go() };
        seam::remove(record, lock);
    }
}

/// Takes the record of a thread that has ended out of every world and out of the table. The caller
/// drops the result after the lock.
fn evict(record: &'static Record, lock: &mut RegistryGuard) -> Vec<Arc<Inner>> {
    let all: Vec<_> = worlds(lock).iter().filter_map(Weak::upgrade).collect();
    for inner in &all {
        inner.members(lock).lose_stacks_of(record);
        for gone in inner.members(lock).take_all(record) {
            // SAFETY: the thread is gone, and the registry lock is held.
            unsafe { gone.tell_gone() };
        }
    }
    lock.remove_dead(record);
    all
}

/// Gives the running thread an alternate stack of Urge's, and unblocks SIGURG, which its inherited
/// mask may block.
fn set_up_signals(record: &Record, lock: &mut RegistryGuard, own_stack: usize) -> io::Result<()> {
    let alternate = altstack::install(lock.alternates(), &ALTERNATE, own_stack)?;
    // Relaxed: its own thread's handler reads it.
    record
        .alternate
        .store(core::ptr::from_ref(alternate).cast_mut(), Ordering::Relaxed);
    let urg = only_the_signal();
    let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the sets are valid, the call fills `mask`.
    let was_blocked = unsafe {
        libc::pthread_sigmask(libc::SIG_UNBLOCK, seam::to_unblock(&urg), mask.as_mut_ptr());
        libc::sigismember(mask.as_ptr(), SIGNAL) == 1
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
        libc::sigaddset(set.as_mut_ptr(), SIGNAL);
        set.assume_init()
    }
}

// ---- the end of a thread ------------------------------------------------------------------------

/// Has [`at_exit`] run when a thread ends. As a key's destructor, it runs after those of Rust's
/// thread-locals: a `Mutator` that is kept in one is dropped in the ordinary way before, and other
/// destructors may still use it.
static AT_EXIT: ThreadKey = ThreadKey::new(at_exit);

/// Ties an alternate stack to its thread.
static ALTERNATE: ThreadKey = ThreadKey::new(alternate_stack_round);

/// Gives a thread's alternate stacks back once all other destructors have run.
unsafe extern "C" fn alternate_stack_round(stack: *mut libc::c_void) {
    // SAFETY: `altstack::install` has set it; stacks are never unmapped.
    let stack: &'static AlternateStack = unsafe { &*stack.cast::<AlternateStack>() };
    let Ok(mut lock) = lock() else {
        return; // in a stop that the thread never resumed
    };
    if stack.end_round(&ALTERNATE, registry::current().is_some()) {
        lock.alternates().give(stack);
    }
}

/// Detaches a thread whose `Mutator` was leaked.
unsafe extern "C" fn at_exit(_: *mut libc::c_void) {
    if seam::stays_attached() {
        return;
    }
    // Looked up again in each iteration: after the last detach the record may belong to another
    // thread.
    while let Some(record) = registry::current()
        && let Some((inner, at_exit, data)) = any_membership(record)
    {
        if let Some(f) = at_exit {
            // SAFETY: `attach_with`'s caller promised that this may be called here, and the Mutator
            // was not dropped.
            unsafe { f(data) };
        }
        detach(&inner, record, || ());
    }
}

type Membership = (Arc<Inner>, Option<unsafe fn(*mut ())>, *mut ());

fn any_membership(record: &'static Record) -> Option<Membership> {
    // A thread that ends with its stop leaked stays attached: no thread can stop or attach any
    // more.
    let mut lock = lock().ok()?;
    let all: Vec<_> = worlds(&mut lock).iter().filter_map(Weak::upgrade).collect();
    let found = all.iter().find_map(|inner| {
        let m = inner
            .members(&mut lock)
            .all()
            .find(|m| core::ptr::eq(m.record, record))?;
        Some((inner.clone(), m.hooks.map(|hooks| hooks.at_exit), m.data))
    });
    drop(lock);
    found
}

/// What tests may break here.
mod seam {
    use crate::faults::Fault;
    use crate::registry::{Record, RegistryGuard};

    pub(super) fn remove(record: &'static Record, lock: &mut RegistryGuard) {
        let alternate = record.alternate();
        lock.remove(record);
        if Fault::AlternateGivenBack.planted()
            && let Some(alternate) = alternate
        {
            lock.alternates().give(alternate);
        }
    }

    /// Null: the call only asks.
    pub(super) fn to_unblock(urg: &libc::sigset_t) -> *const libc::sigset_t {
        if Fault::NoUnblock.planted() {
            core::ptr::null()
        } else {
            urg
        }
    }

    pub(super) fn stays_attached() -> bool {
        Fault::NoExitDetach.planted()
    }
}
