//! The stacks of a world: registering them, and reporting the words of the suspended ones.
//!
//! # Two ways to report suspended stacks
//! * In each stop, [`Stopped::suspended`] lists them all. Such a stop grows with their number.
//! * The owner of the world begins a stack epoch in its stop ([`Stopped::begin_stack_epoch`]), and
//!   reports each stack that was suspended then *later*: a pass beside the program does it
//!   ([`World::for_each_suspended`]), or the thread that resumes the stack first does, by the hook
//!   ([`World::set_stack_hooks`]). Until then the frames of the stack do not run, so its words are
//!   those of the stop. The stacks in the chain of a thread are reported by the thread's walk, and
//!   count as reported.
//!
//! The head of `stack_record.rs` says why a walk beside the program and a resume do not meet.

use core::ops::Range;
use core::sync::atomic::Ordering;

use super::stopped::Stopped;
use crate::blocking::lock;
use crate::errors::StackError;
use crate::members::{StackHooks, World, worlds};
use crate::stack::Stack;
use crate::stack_record::{StackRecord, StackState};
use crate::suspended_stack::SuspendedStack;
use crate::unwind;

/// The least bytes of a stack.
const LEAST: usize = 4096;

impl World {
    /// Registers memory as a stack of this world. While a mutator runs on it
    /// ([`Stack::resume`], [`Stack::resume_with`]), the thread is stopped and walked as on its own
    /// stack. While it is suspended, its words are roots of this world.
    ///
    /// `owner` is dropped when the registration ends: by [`Stack::release`], by the drop of the
    /// result, or by the end of the world.
    ///
    /// ```
    /// use gc_preempt::{Config, Resumed, StackMemory, World, suspend};
    ///
    /// let world = World::new(Config::default())?;
    /// let _mutator = world.attach(core::ptr::null_mut())?;
    /// let memory = StackMemory::new(64 << 10)?;
    /// // SAFETY: only the stack uses the memory, which lives as long as its registration.
    /// let stack = unsafe { world.register_stack(memory.range(), memory) }?;
    /// // SAFETY: the function keeps nothing over its suspension.
    /// unsafe { stack.start(|| suspend().unwrap()) }?;
    /// assert_eq!(stack.resume()?, Resumed::Suspended);
    /// assert_eq!(stack.resume()?, Resumed::Finished);
    /// stack.release().map_err(|(error, _)| error)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`StackError::Memory`], [`StackError::Overlaps`], [`StackError::HoldsAStop`].
    ///
    /// # Safety
    /// The memory is readable and writable until the owner is dropped, without guard pages in it.
    /// Nothing else uses it meanwhile.
    pub unsafe fn register_stack(
        &self,
        memory: Range<usize>,
        owner: impl Send + 'static,
    ) -> Result<Stack, StackError> {
        let is_sound = memory.start != 0
            && memory.start.is_multiple_of(16)
            && memory.end.is_multiple_of(16)
            && memory.end.checked_sub(memory.start) >= Some(LEAST);
        if !is_sound {
            return Err(StackError::Memory);
        }
        let record = StackRecord::new(memory.clone(), self.inner.id, Box::new(owner));
        let record: &'static StackRecord = Box::leak(Box::new(record));
        let result = (|| {
            let mut lock = lock()?;
            let all: Vec<_> = worlds(&mut lock).clone();
            let overlaps = all
                .iter()
                .filter_map(std::sync::Weak::upgrade)
                .any(|inner| {
                    let own = |m: &crate::members::Member| m.record.stack();
                    let mut own = inner.members(&mut lock).all().map(own);
                    own.any(|own| own.start < memory.end && memory.start < own.end)
                });
            if overlaps || !lock.add_stack(&memory) {
                return Err(StackError::Overlaps);
            }
            record.reported(self.inner.epoch());
            self.inner.members(&mut lock).add_stack(record);
            Ok(())
        })();
        match result {
            Ok(()) => Ok(Stack::new(record, self.clone())),
            Err(error) => {
                // SAFETY: from `Box::leak` above, and registered nowhere.
                drop(unsafe { Box::from_raw(core::ptr::from_ref(record).cast_mut()) });
                Err(error)
            }
        }
    }

    /// Sets the hook that reports a suspended stack before it is resumed, see
    /// [`Stopped::begin_stack_epoch`].
    ///
    /// # Safety
    /// The hook may be called with its data, on any mutator of this world, until another is set or
    /// the world ends. No other part of the program calls this.
    pub unsafe fn set_stack_hooks(&self, hooks: Option<StackHooks>) {
        let lock = lock();
        // SAFETY: the registry lock is held, by `lock` or by the stop of this thread, which does
        // not look at hooks.
        unsafe { (*self.inner.members.get()).stack_hooks = hooks };
        drop(lock);
    }

    /// Calls `f` with each stack that was suspended when the stack epoch began, and that no walk
    /// has reported since, among `most` stacks at places below `from`. Returns the place at which
    /// to continue, or `None` if no stack is left. The first call passes `usize::MAX`.
    ///
    /// The registry lock is held meanwhile, so attaches, stops and resumes of such stacks wait. `f`
    /// reports the stack's words, and keeps the rules of a stop's walk. The stack counts as
    /// reported afterwards.
    ///
    /// A pass goes from the highest place down, so it reaches every stack that is registered from
    /// its beginning to its end. When a registration ends, its place goes to a stack from a higher
    /// place, which the pass has reached. On a thread that holds a stop this returns `None`: use
    /// [`Stopped::suspended`] there.
    pub fn for_each_suspended(
        &self,
        from: usize,
        most: usize,
        mut f: impl FnMut(&SuspendedStack<'_>),
    ) -> Option<usize> {
        let mut lock = lock().ok()?;
        let epoch = self.inner.epoch();
        let stacks = &self.inner.members(&mut lock).stacks;
        let mut at = from.min(stacks.len());
        for _ in 0..most {
            at = at.checked_sub(1)?;
            let stack = stacks[at];
            if stack.is_due(epoch) {
                seam::before_a_report(stack, epoch);
                // SAFETY: the registry lock is held, and the stack is due: its frames stand still.
                f(&unsafe { stack.suspended(unwind::NEVER) });
                stack.reported(epoch);
            }
        }
        (at > 0).then_some(at)
    }
}

impl Stopped<'_> {
    /// The number of registered stacks of the world, suspended or not.
    pub fn stacks(&self) -> usize {
        // SAFETY: this value holds the registry lock, and nothing changes the list while `self` is
        // borrowed.
        unsafe { (*self.world.inner.members.get()).stacks.len() }
    }

    /// All suspended stacks of the world.
    pub fn suspended(&self) -> impl Iterator<Item = SuspendedStack<'_>> {
        // SAFETY: this value holds the registry lock, and nothing changes the list while `self` is
        // borrowed.
        let stacks = unsafe { &(*self.world.inner.members.get()).stacks };
        let number = self.number;
        stacks
            .iter()
            .filter(|stack| stack.state() == StackState::Suspended)
            // SAFETY: this value, which is borrowed, is the stop.
            .map(move |stack| unsafe { stack.suspended(number) })
    }

    /// Begins a stack epoch. From now on a stack that is suspended is reported by
    /// [`World::for_each_suspended`] or by the hook of [`World::set_stack_hooks`] before its frames
    /// run again: its words are those of this stop until then. The stacks on which mutators run
    /// count as reported: the caller walks the mutators in this stop.
    ///
    /// A stack that is registered or started in the epoch counts as reported.
    ///
    /// Takes time for each mutator, and none for suspended stacks.
    pub fn begin_stack_epoch(&self) {
        let inner = &self.world.inner;
        let epoch = inner.epoch() + 1;
        // Relaxed: the world is stopped, and the resume publishes it.
        inner.epoch.store(epoch, Ordering::Relaxed);
        // SAFETY: as in `suspended`.
        let all = unsafe { (*inner.members.get()).all() };
        for member in all {
            let mut at = member.record.current();
            while let Some(stack) = at {
                if stack.world == inner.id {
                    stack.reported(epoch);
                }
                // SAFETY: the thread is stopped, so its chain does not change.
                at = unsafe { stack.outer() };
            }
        }
    }
}

/// What tests may break here.
mod seam {
    use crate::faults::Fault;
    use crate::stack_record::StackRecord;

    pub(super) fn before_a_report(stack: &StackRecord, epoch: u64) {
        if Fault::ReportedEarly.planted() {
            stack.reported(epoch);
        }
    }
}
