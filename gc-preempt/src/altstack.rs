//! Alternate signal stacks: the memory that the stop's handler runs on, and its owner.
//!
//! # Ownership
//! The kernel keeps one setting a thread, for all handlers with SA_ONSTACK, and `sigaltstack`
//! returns it. So the host, and other runtimes in the process (Go's), see Urge's stack, may use it,
//! and may set it again later. Hence these rules:
//!
//! 1. A stack that Urge has set on a thread belongs to that thread until the thread has ended,
//!    attached or not. No other thread gets it before. A host may set its own stack across a detach
//!    and then restore "the old one": that memory is still the thread's.
//! 2. The first attachment sets Urge's stack, at least as large as the one that the thread had. A
//!    thread that had none gets one of the size of its own stack (1 MiB at most, and less where
//!    addresses are short), since its handlers have had that much room until now.
//! 3. The last detachment restores the host's stack, if Urge's is still set. If the host had none,
//!    Urge's stays set until the thread ends: Go's runtime remembers the stack that it has seen,
//!    and aborts when that is disabled.
//! 4. A stack that the host sets while the thread is attached stays set. SIGURG then comes on that
//!    stack, or on the thread's own if the host has disabled the alternate stack. The handler needs
//!    little more of it than the kernel's signal frame, and runs the rest on Urge's stack
//!    ([`AlternateStack::run`]).
//!
//! # Injected calls
//! A call is injected only if the kernel has put the signal frame on Urge's stack
//! ([`AlternateStack::holds`]). Elsewhere the signal frame may lie right below the interrupted SP,
//! where the frame of the call would overwrite it.

use crate::arch;
use crate::thread_key::ThreadKey;
use core::cell::{Cell, UnsafeCell};
use core::mem::MaybeUninit;
use std::io;

/// Bytes for the handler, and for a host's handlers that interrupt it, besides the kernel's signal
/// frame.
const HANDLER_STACK: usize = 64 * 1024;
/// A thread that had no alternate stack gets no larger one. With twice as much, a thousand threads
/// would take 2 GiB of addresses, for handlers with larger frames than any program has.
const MOST: usize = 1 << 20;
const PAGE: usize = 4096;

/// An alternate stack of Urge's. It is mapped for as long as the process lives.
pub(crate) struct AlternateStack {
    base: usize,
    size: usize,
    /// The host's setting before. The thread that owns this stack writes and reads it.
    before: UnsafeCell<libc::stack_t>,
    /// The stack that the same thread had before this one, which the host may have seen; or the
    /// next stack in the pool.
    next: Cell<Option<&'static AlternateStack>>,
    /// How often the owner's key destructor has run.
    rounds: Cell<u32>,
    /// Thread pointer of the thread that owns it; 0: it is in the pool. A thread that ends by the
    /// bare system call leaves its key's value in its control block, which a later thread may get.
    /// By then the stack has another owner, or none.
    owner: Cell<usize>,
}

// SAFETY: the cells are touched by the thread that owns the stack, or, while no thread does, with
// the registry lock held.
unsafe impl Sync for AlternateStack {}

/// Stacks whose threads have ended. Under the registry lock.
pub(crate) struct Pool(Option<&'static AlternateStack>);

// SAFETY: touched only with the registry lock held.
unsafe impl Send for Pool {}

impl Pool {
    pub(crate) const fn new() -> Self {
        Self(None)
    }

    fn take(&mut self, least: usize) -> Option<&'static AlternateStack> {
        let mut before: Option<&'static AlternateStack> = None;
        let mut at = self.0;
        while let Some(stack) = at {
            let next = stack.next.get();
            if stack.size >= least {
                match before {
                    Some(before) => before.next.set(next),
                    None => self.0 = next,
                }
                stack.next.set(None);
                return Some(stack);
            }
            (before, at) = (at, next);
        }
        None
    }

    /// Takes back a stack and the stacks that its thread had before. The thread has ended.
    pub(crate) fn give(&mut self, stack: &'static AlternateStack) {
        let mut at = Some(stack);
        while let Some(stack) = at {
            at = stack.next.replace(self.0);
            stack.rounds.set(0);
            stack.owner.set(0);
            self.0 = Some(stack);
        }
    }
}

/// The running thread's setting.
pub(crate) fn setting() -> libc::stack_t {
    let mut now = MaybeUninit::<libc::stack_t>::uninit();
    // SAFETY: asks only; the call fills it.
    unsafe {
        libc::sigaltstack(core::ptr::null(), now.as_mut_ptr());
        now.assume_init()
    }
}

fn is_set(stack: &libc::stack_t) -> bool {
    stack.ss_flags & libc::SS_DISABLE == 0
}

/// Sets an alternate stack of Urge's on the running thread, whose own stack has `own_stack` bytes.
/// `key` ties the stack to the thread: its destructor calls [`AlternateStack::end_round`].
pub(crate) fn install(
    pool: &mut Pool,
    key: &ThreadKey,
    own_stack: usize,
) -> io::Result<&'static AlternateStack> {
    // SAFETY: null, or a stack that a thread with this control block has owned: stacks are never
    // unmapped.
    let owned = unsafe { key.get()?.cast::<AlternateStack>().as_ref() };
    let owned = owned.filter(|stack| stack.is_own());
    let host = setting();
    if let Some(owned) = owned
        && is_set(&host)
        && owned.base == host.ss_sp as usize
    {
        return Ok(owned); // it has stayed since the last attachment
    }
    let least = least_size();
    let (least, wanted) = if is_set(&host) {
        (least.max(host.ss_size), host.ss_size)
    } else {
        (least, own_stack.min(seam::most()))
    };
    let stack = match owned {
        Some(stack) if stack.size >= least => stack,
        _ => {
            let stack = take_or_map(pool, least, wanted.max(least))?;
            stack.next.set(owned);
            stack.owner.set(arch::thread_pointer());
            if let Err(error) = key.set((&raw const *stack).cast()) {
                stack.next.set(None);
                pool.give(stack);
                return Err(error);
            }
            stack
        }
    };
    let ours = libc::stack_t {
        ss_sp: stack.base as *mut _,
        ss_flags: 0,
        ss_size: stack.size,
    };
    // SAFETY: `ours` is mapped for as long as the process lives.
    if unsafe { libc::sigaltstack(seam::to_set(&ours), core::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The host may have set an older stack of ours again: then the setting before that one counts.
    if !stack.owns(host.ss_sp as usize) {
        // SAFETY: the thread's own.
        unsafe { *stack.before.get() = host };
    } else if let Some(older) = owned
        && !core::ptr::eq(older, stack)
    {
        // SAFETY: both are the thread's own.
        unsafe { *stack.before.get() = *older.before.get() };
    }
    Ok(stack)
}

fn take_or_map(
    pool: &mut Pool,
    least: usize,
    mut wanted: usize,
) -> io::Result<&'static AlternateStack> {
    if let Some(stack) = pool.take(wanted) {
        return Ok(stack);
    }
    loop {
        match map(wanted) {
            Ok(stack) => return Ok(stack),
            Err(e) if wanted == least => return pool.take(least).ok_or(e),
            Err(_) => wanted = (wanted / 2).max(least),
        }
    }
}

/// Bytes that a signal frame and the handler need.
fn least_size() -> usize {
    // SAFETY: asks the auxiliary vector only. It knows the size of this processor's signal frame;
    // old kernels do not say.
    let frame = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize;
    (frame.max(libc::MINSIGSTKSZ) + HANDLER_STACK).next_multiple_of(PAGE)
}

fn map(size: usize) -> io::Result<&'static AlternateStack> {
    let size = size.next_multiple_of(PAGE);
    // SAFETY: a new mapping at an address of the kernel's choice; its lowest page becomes a guard.
    let base = unsafe {
        let base = libc::mmap(
            core::ptr::null_mut(),
            size + PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE,
            -1,
            0,
        );
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        if libc::mprotect(base, PAGE, libc::PROT_NONE) != 0 {
            let error = io::Error::last_os_error();
            libc::munmap(base, size + PAGE);
            return Err(error);
        }
        base as usize
    };
    Ok(Box::leak(Box::new(AlternateStack {
        base: base + PAGE,
        size,
        // SAFETY: an all-zero stack_t is a valid value.
        before: UnsafeCell::new(unsafe { core::mem::zeroed() }),
        next: Cell::new(None),
        rounds: Cell::new(0),
        owner: Cell::new(0),
    })))
}

impl AlternateStack {
    /// Does it hold that address?
    pub(crate) fn holds(&self, address: usize) -> bool {
        (self.base..self.base + self.size).contains(&address)
    }

    /// Does the running thread own it?
    fn is_own(&self) -> bool {
        self.owner.get() == arch::thread_pointer()
    }

    /// Does that address begin a stack that its thread owns?
    fn owns(&self, base: usize) -> bool {
        let mut at = Some(self);
        while let Some(stack) = at {
            if stack.base == base {
                return true;
            }
            at = stack.next.get();
        }
        false
    }

    /// Runs `f(data)` on this stack, on the thread that owns it, in its handler.
    ///
    /// The kernel has put the handler elsewhere, so nothing of this stack is in use: had a host's
    /// handler run on this stack, the kernel would have put ours below it.
    pub(crate) fn run(&self, f: extern "C" fn(*mut ()), data: *mut ()) {
        // SAFETY: as above; the mapping ends at a page's end.
        unsafe { arch::call_on(self.base + self.size, f, data) }
    }

    /// Restores the host's stack at the thread's last detachment: rule 3 at the head of this file.
    pub(crate) fn put_back(&self) {
        // SAFETY: the thread's own.
        let before = unsafe { &*self.before.get() };
        if is_set(before) || seam::disables() {
            self.replace(before);
        }
    }

    /// One round of key destructors on a thread that ends. True: the caller gives the stack and the
    /// stacks before it back to the pool. Under the registry lock. `is_attached`: the thread is.
    ///
    /// True only in the last round (glibc makes four): in earlier rounds other destructors may
    /// still need the stack, that of Go's runtime among them.
    pub(crate) fn end_round(&self, key: &ThreadKey, is_attached: bool) -> bool {
        const ROUNDS: u32 = 4;
        if !self.is_own() {
            // Left by a thread that had this control block before, and ended by the bare system
            // call.
            return false;
        }
        let rounds = self.rounds.get() + 1;
        self.rounds.set(rounds);
        // A destructor whose value is set again runs again.
        if rounds < ROUNDS && key.set(core::ptr::from_ref(self).cast()).is_ok() {
            return false;
        }
        // SAFETY: the thread's own.
        let before = unsafe { &*self.before.get() };
        let before = if is_set(before) {
            *before
        } else {
            libc::stack_t {
                ss_sp: core::ptr::null_mut(),
                ss_flags: libc::SS_DISABLE,
                ss_size: 0,
            }
        };
        !is_attached && self.replace(&before)
    }

    /// Sets `before` if one of this thread's stacks is set. False: it stays set.
    fn replace(&self, before: &libc::stack_t) -> bool {
        let now = setting();
        if !is_set(&now) || !self.owns(now.ss_sp as usize) {
            return true;
        }
        // SAFETY: the setting that the thread had, whose memory the host keeps; or none.
        unsafe { libc::sigaltstack(before, core::ptr::null_mut()) == 0 }
    }
}

/// What tests may break here.
mod seam {
    use super::MOST;
    use crate::faults::Fault;

    pub(super) fn most() -> usize {
        if Fault::SmallAlternate.planted() {
            0
        } else {
            MOST
        }
    }

    pub(super) fn to_set(ours: &libc::stack_t) -> *const libc::stack_t {
        if Fault::NoAlternateStack.planted() {
            core::ptr::null()
        } else {
            ours
        }
    }

    /// Disables Urge's stack where the host had none.
    pub(super) fn disables() -> bool {
        Fault::DisablesAlternate.planted()
    }
}
