//! Attaching and detaching threads, at their wish, at their end, and at a fork.

use crate::mutator::Mutator;
use crate::registry::{self, Alternate, Before, Record, RegistryGuard};
use crate::world::{AttachError, ForkHooks, Member, World, worlds};
use crate::{faults, signal};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};
use std::io;

/// What the handler and whatever a host stacks on top of it may use of the alternate stack, besides the kernel's signal frame.
const HANDLER_STACK: usize = 64 * 1024;

pub(crate) fn attach(
    world: &World,
    data: *mut (),
    at_exit: Option<unsafe fn(*mut ())>,
) -> Result<Mutator, AttachError> {
    // Before the lock: both may call malloc, and the first may read /proc.
    let stack = stack_of_this_thread()
        .map_err(|e| AttachError::System("where does this thread's stack lie", e))?;
    EXIT.try_with(|_| ()).ok();

    let mut lock = registry::lock();
    let record = match registry::current() {
        Some(record) => {
            if world
                .inner
                .members(&mut lock)
                .list
                .iter()
                .any(|m| core::ptr::eq(m.record, record))
            {
                return Err(AttachError::AlreadyAttached);
            }
            record
        }
        None => {
            let record = lock.insert().ok_or(AttachError::TooManyThreads)?;
            record.stack_low.store(stack.start, Ordering::Relaxed);
            record.stack_high.store(stack.end, Ordering::Relaxed);
            // SAFETY: a system call without arguments.
            record
                .tid
                .store(unsafe { libc::gettid() }, Ordering::Relaxed);
            if let Err(e) = set_up_signals(record) {
                lock.remove(record);
                return Err(AttachError::System("an alternate signal stack", e));
            }
            record
        }
    };
    record.worlds.fetch_add(1, Ordering::Relaxed);
    record
        .inject
        .fetch_or(u32::from(world.inner.config.inject), Ordering::Relaxed);
    world.inner.members(&mut lock).list.push(Member {
        record,
        data,
        at_exit,
        dead: false,
    });
    drop(lock);
    Ok(Mutator::new(record, world.clone()))
}

pub(crate) fn detach(world: &World, record: &'static Record) {
    let mut lock = registry::lock();
    let members = &mut world.inner.members(&mut lock).list;
    let before = members.len();
    members.retain(|m| !core::ptr::eq(m.record, record));
    if members.len() == before {
        return; // in a forked child, or at thread exit: somebody else has done it
    }
    if record.worlds.fetch_sub(1, Ordering::Relaxed) == 1 {
        tear_down_signals(record);
        lock.remove(record);
    }
}

/// Where the running thread's stack lies: the part that it may grow into included.
fn stack_of_this_thread() -> io::Result<Range<usize>> {
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut low, mut size) = (core::ptr::null_mut(), 0);
    // SAFETY: the calls fill what they are given; the attributes are destroyed once, after their last use.
    let error = unsafe {
        let mut error = libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr());
        if error == 0 {
            error = libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut low, &raw mut size);
            libc::pthread_attr_destroy(attributes.as_mut_ptr());
        }
        error
    };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    Ok(low as usize..low as usize + size)
}

/// An alternate stack of our own for the thread, whatever size the one before has (Rust's and a host's may be too small for the vector
/// state), and SIGURG unblocked, whatever mask the thread inherited.
fn set_up_signals(record: &Record) -> io::Result<()> {
    // SAFETY: under the registry lock, on the record's own thread.
    let alternate = unsafe { &mut *record.alternate.get() };
    if alternate.size == 0 {
        *alternate = map_alternate_stack()?;
    }
    let ours = libc::stack_t {
        ss_sp: alternate.base as *mut _,
        ss_flags: 0,
        ss_size: alternate.size,
    };
    let mut stack = MaybeUninit::<libc::stack_t>::uninit();
    let new = if faults::planted("no-alternate-stack") {
        core::ptr::null()
    } else {
        &raw const ours
    };
    // SAFETY: `ours` is mapped for as long as the process lives; the call fills `stack`.
    if unsafe { libc::sigaltstack(new, stack.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let urg = only_the_signal();
    let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are valid, the call fills `mask`, the first call filled `stack`.
    unsafe {
        let how = if faults::planted("no-unblock") {
            libc::SIG_SETMASK
        } else {
            libc::SIG_UNBLOCK
        };
        libc::pthread_sigmask(
            how,
            if how == libc::SIG_UNBLOCK {
                &raw const urg
            } else {
                core::ptr::null()
            },
            mask.as_mut_ptr(),
        );
        *record.before.get() = Before {
            stack: stack.assume_init(),
            urg_was_blocked: libc::sigismember(mask.as_ptr(), signal::SIGNAL) == 1,
        };
    }
    Ok(())
}

fn tear_down_signals(record: &Record) {
    // SAFETY: under the registry lock, on the record's own thread.
    let before = unsafe { &*record.before.get() };
    let urg = only_the_signal();
    // SAFETY: the sets are valid; the stack is the one that the thread had, which its owner keeps while it is the thread's.
    unsafe {
        if before.urg_was_blocked {
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const urg, core::ptr::null_mut());
        }
        let mut now = MaybeUninit::<libc::stack_t>::uninit();
        if libc::sigaltstack(core::ptr::null(), now.as_mut_ptr()) == 0
            && now.assume_init_ref().ss_sp as usize == (*record.alternate.get()).base
        {
            libc::sigaltstack(&raw const before.stack, core::ptr::null_mut());
        }
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

fn map_alternate_stack() -> io::Result<Alternate> {
    const PAGE: usize = 4096;
    // SAFETY: asks the auxiliary vector only. It knows the size of this processor's signal frame; old kernels do not say.
    let frame = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize;
    let size = (frame.max(libc::MINSIGSTKSZ) + HANDLER_STACK).next_multiple_of(PAGE);
    // SAFETY: a new mapping at an address of the kernel's choice; its lowest page becomes a guard.
    unsafe {
        let base = libc::mmap(
            core::ptr::null_mut(),
            size + PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK,
            -1,
            0,
        );
        if base == libc::MAP_FAILED || libc::mprotect(base, PAGE, libc::PROT_NONE) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Alternate {
            base: base as usize + PAGE,
            size,
        })
    }
}

// ---- the end of a thread ---------------------------------------------------------------------------------------------------------

/// Detaches a thread whose `Mutator` was leaked, from its thread-local destructors.
struct AtExit;

thread_local! {
    static EXIT: AtExit = const { AtExit };
}

impl Drop for AtExit {
    fn drop(&mut self) {
        if faults::planted("no-exit-detach") {
            return;
        }
        // Asked for anew each time: after the last detach the record may be another thread's already, and its memberships with it.
        while let Some(record) = registry::current()
            && let Some((world, at_exit, data)) = any_membership(record)
        {
            if let Some(f) = at_exit {
                // SAFETY: `attach_with`'s caller promised that this may be called here, and the Mutator was not dropped.
                unsafe { f(data) };
            }
            detach(&world, record);
        }
    }
}

type Membership = (World, Option<unsafe fn(*mut ())>, *mut ());

fn any_membership(record: &'static Record) -> Option<Membership> {
    let mut lock = registry::lock();
    let all: Vec<_> = worlds(&mut lock)
        .iter()
        .filter_map(std::sync::Weak::upgrade)
        .collect();
    let found = all.iter().find_map(|inner| {
        let m = inner
            .members(&mut lock)
            .list
            .iter()
            .find(|m| core::ptr::eq(m.record, record))?;
        Some((
            World {
                inner: inner.clone(),
            },
            m.at_exit,
            m.data,
        ))
    });
    drop(lock);
    found
}

// ---- fork ------------------------------------------------------------------------------------------------------------------------

/// The registry lock, held by the forking thread over the fork.
struct OverFork(UnsafeCell<Option<Forking>>);
type Forking = (
    RegistryGuard,
    Vec<std::sync::Arc<crate::world::Inner>>,
    Vec<ForkHooks>,
);
// SAFETY: written by the forking thread only, which holds the registry lock, between prepare and parent or child.
unsafe impl Sync for OverFork {}
static OVER_FORK: OverFork = OverFork(UnsafeCell::new(None));

/// Makes fork safe: it waits for a stop under way, and the child starts with the forking thread as the only one (H8).
pub(crate) fn install_fork_handlers() -> io::Result<()> {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    // Under the registry lock.
    if INSTALLED.load(Ordering::Relaxed) {
        return Ok(());
    }
    // SAFETY: the handlers live as long as the process.
    let error = unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    INSTALLED.store(true, Ordering::Relaxed);
    Ok(())
}

/// The hooks of all worlds. Worlds that end while they run stay alive in the first half of the result.
fn fork_hooks(
    lock: &mut RegistryGuard,
) -> (Vec<std::sync::Arc<crate::world::Inner>>, Vec<ForkHooks>) {
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
    let mut lock = registry::lock();
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
    }
    if faults::planted("no-fork-handler") {
        std::mem::forget(lock);
        return;
    }
    lock.keep_only(me);
    for inner in &all {
        let list = &mut inner.members(&mut lock).list;
        list.retain(|m| me.is_some_and(|r| core::ptr::eq(r, m.record)));
    }
    drop(lock);
    for hook in &hooks {
        // SAFETY: as `prepare`.
        unsafe { (hook.child)(hook.data) };
    }
}
