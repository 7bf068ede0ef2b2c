//! The handle of a registered stack: starting, resuming, and the end of the registration.

use core::ops::Range;
use core::sync::atomic::Ordering;

use crate::blocking::lock;
use crate::errors::StackError;
use crate::members::{Inner, World};
use crate::stack_record::{StackRecord, StackState};
use crate::switch::{self, Resumed};

/// A stack that is not a thread's own: memory that [`World::register_stack`] has registered.
///
/// A mutator resumes it, and runs on it until the code there suspends itself or ends. Any mutator
/// of the world may resume it next.
///
/// # Two ways to switch
/// * [`start`](Self::start), [`resume`](Self::resume) and [`suspend`](crate::suspend) are a whole
///   coroutine.
/// * A switch of the host's (corosensei's, hand-made assembly) is wrapped on both sides:
///   [`resume_with`](Self::resume_with) around the switch to the stack,
///   [`suspend_with`](crate::suspend_with) around each switch back from a function that goes on
///   later.
///
/// # Dropping
/// The drop ends the registration. The drop of a suspended or running stack panics, unless the
/// thread panics already, and the stack stays registered for ever: its frames may still run. See
/// [`release`](Self::release) and [`abandon`](Self::abandon).
pub struct Stack {
    record: &'static StackRecord,
    world: World,
}

impl core::fmt::Debug for Stack {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Stack")
            .field("memory", &self.record.memory)
            .field("state", &self.state())
            .finish()
    }
}

impl Stack {
    pub(crate) fn new(record: &'static StackRecord, world: World) -> Self {
        Self { record, world }
    }

    /// The world that the stack is registered in.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The registered addresses.
    pub fn memory(&self) -> Range<usize> {
        self.record.memory.clone()
    }

    /// What the stack does now. Another thread may change it at any time.
    pub fn state(&self) -> StackState {
        self.record.state()
    }

    /// A word for the host, null at first.
    pub fn data(&self) -> *mut () {
        self.record.data.load(Ordering::Relaxed)
    }

    /// Sets the word that [`data`](Self::data), [`data_here`](crate::data_here) and
    /// [`SuspendedStack::data`](crate::SuspendedStack::data) return.
    pub fn set_data(&self, data: *mut ()) {
        self.record.data.store(data, Ordering::Relaxed);
    }

    /// Makes the first frame of a function on this stack, which [`resume`](Self::resume) then runs.
    /// The function is moved onto the stack: what it has captured is reported to collectors like
    /// any word of the stack.
    ///
    /// A panic of `f` is raised again in the resumer.
    ///
    /// # Errors
    /// The stack is suspended, runs, or is lost; or `f` takes more than half of it.
    ///
    /// # Safety
    /// * `f` may run on several threads, one after the other. What it keeps over a suspension must
    ///   not belong to a thread: no [`Mutator`](crate::Mutator), no guard of a lock, no borrow of a
    ///   thread-local; unless one thread alone resumes the stack.
    /// * The thread does not end on the stack (`pthread_exit`), and `f` does not suspend itself in
    ///   a `Drop` that an unwinding runs: a panic is its thread's.
    pub unsafe fn start<F: FnOnce() + Send + 'static>(&self, f: F) -> Result<(), StackError> {
        // SAFETY: the caller's contract.
        unsafe { switch::start(self.record, &self.world.inner, f) }
    }

    /// Runs the function on this stack until it suspends itself or ends.
    ///
    /// # Errors
    /// [`StackError`]: the stack is not suspended, or the thread may not leave its stack here.
    ///
    /// # Panics
    /// With the panic that has ended the function.
    #[inline]
    pub fn resume(&self) -> Result<Resumed, StackError> {
        switch::resume(self.record, &self.world.inner)
    }

    /// Runs `switch`, which switches to this stack by means of the host's and returns when the code
    /// there has switched back. The stack may be idle or finished, and then `switch` begins a new
    /// function on it, or suspended by [`suspend_with`](crate::suspend_with).
    ///
    /// If the last switch back was no [`suspend_with`](crate::suspend_with), the stack counts as
    /// finished.
    ///
    /// ```
    /// use corosensei::stack::{DefaultStack, Stack as _};
    /// use corosensei::{Coroutine, CoroutineResult};
    /// use gc_preempt::{Config, World, suspend_with};
    ///
    /// let world = World::new(Config::default())?;
    /// let _mutator = world.attach(core::ptr::null_mut())?;
    /// let memory = DefaultStack::new(64 << 10)?;
    /// // The limit is that of the guard page.
    /// let range = memory.limit().get() + 4096..memory.base().get();
    /// // SAFETY: only the coroutine uses the memory, which it keeps until the registration ends.
    /// let stack = unsafe { world.register_stack(range, ()) }?;
    /// let mut coroutine = Coroutine::with_stack(memory, |yielder, first: u32| {
    ///     // SAFETY: corosensei switches to the resumer.
    ///     unsafe { suspend_with(|| yielder.suspend(first + 1)) }.unwrap() + 1
    /// });
    /// // SAFETY: the code on the stack leaves by `suspend_with`, or ends.
    /// let yielded = unsafe { stack.resume_with(|| coroutine.resume(1)) }?;
    /// assert!(matches!(yielded, CoroutineResult::Yield(2)));
    /// // SAFETY: as above.
    /// let ended = unsafe { stack.resume_with(|| coroutine.resume(7)) }?;
    /// assert!(matches!(ended, CoroutineResult::Return(8)));
    /// stack.release().map_err(|(error, _)| error)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As for [`resume`](Self::resume): `switch` has not run.
    ///
    /// # Safety
    /// * `switch` switches to this stack and to no other, and SP does not leave it until it is
    ///   switched back, except to stacks that are resumed in this way.
    /// * It captures no reference into a heap by value: its own frames are not reported.
    /// * It is short on this side of the switch: stops wait for the switch.
    /// * The code on the stack keeps the rules of [`start`](Self::start).
    pub unsafe fn resume_with<R>(&self, switch: impl FnOnce() -> R) -> Result<R, StackError> {
        // SAFETY: the caller's contract.
        unsafe { switch::resume_with(self.record, &self.world.inner, switch) }
    }

    /// Ends the registration, and drops the owner of the memory.
    ///
    /// # Errors
    /// The stack is suspended or runs, or the thread holds a stop: the stack is returned.
    pub fn release(self) -> Result<(), (StackError, Self)> {
        self.end(false)
    }

    /// [`release`](Self::release) of a stack that may be suspended. What its frames own is not
    /// dropped.
    ///
    /// # Errors
    /// The stack runs, or the thread holds a stop: the stack is returned.
    ///
    /// # Safety
    /// The frames on the stack never run again, and nothing refers to them.
    pub unsafe fn abandon(self) -> Result<(), (StackError, Self)> {
        self.end(true)
    }

    fn end(self, suspended_too: bool) -> Result<(), (StackError, Self)> {
        let this = core::mem::ManuallyDrop::new(self);
        match end(this.record, &this.world.inner, suspended_too) {
            Ok(()) => {
                // SAFETY: dropped once: the value around it is never dropped.
                drop(unsafe { core::ptr::read(&raw const this.world) });
                Ok(())
            }
            Err(error) => Err((error, core::mem::ManuallyDrop::into_inner(this))),
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if let Err(error) = end(self.record, &self.world.inner, seam::drops_suspended())
            && error != StackError::HoldsAStop
            && !std::thread::panicking()
        {
            panic!(
                "a Stack was dropped, but {error}: it stays registered. Let it finish, or `abandon` it"
            );
        }
    }
}

/// Ends a registration, and frees the record.
fn end(record: &'static StackRecord, inner: &Inner, suspended_too: bool) -> Result<(), StackError> {
    let mut lock = lock()?;
    match record.state() {
        state if state.is_free() => {}
        StackState::Suspended if suspended_too => {}
        StackState::Suspended => return Err(StackError::Suspended),
        _ => return Err(StackError::Running),
    }
    inner.members(&mut lock).remove_stack(record);
    lock.remove_stack(&record.memory);
    drop(lock);
    // SAFETY: registered nowhere any more, and the handle is gone.
    unsafe { free(record) };
    Ok(())
}

/// # Safety
/// The record is in no list, no thread runs on the stack, and its handle is gone.
unsafe fn free(record: &'static StackRecord) {
    // SAFETY: from `Box::leak` in `register_stack`, and by the contract no other reference to it is
    // left.
    drop(unsafe { Box::from_raw(core::ptr::from_ref(record).cast_mut()) });
}

/// The end of a world: frees the stacks whose handles were dropped in a stop. A stack that was
/// dropped while it was suspended or ran stays for ever, since its frames may be in use.
pub(crate) fn end_all(inner: &mut Inner) {
    let stacks = core::mem::take(&mut inner.members.get_mut().stacks);
    for record in stacks {
        if record.state().is_free()
            && let Ok(mut lock) = lock()
        {
            lock.remove_stack(&record.memory);
            drop(lock);
            // SAFETY: the world is gone, and with it every handle.
            unsafe { free(record) };
        }
    }
}

/// What tests may break here.
mod seam {
    use crate::faults::Fault;

    pub(super) fn drops_suspended() -> bool {
        Fault::DropsSuspended.planted()
    }
}
