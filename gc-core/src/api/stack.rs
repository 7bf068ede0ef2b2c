//! Stacks that are not a thread's own, as an embedder uses them: see
//! [`coroutine`](crate::coroutine).

use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::Range;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use gc_preempt::{Resumed, StackMemory, StackState};

use crate::api::heap::Heap;
use crate::api::mutator::Mutator;

/// A stack on which a coroutine of a heap runs. It keeps the heap alive.
///
/// A suspended stack is a root of the heap, and its frames may run again. So the drop of a stack
/// whose function has not ended panics, unless the thread panics already; the stack then stays
/// registered, with its memory, for ever. [`release`](Self::release) returns an error instead, and
/// [`abandon`](Self::abandon) gives the frames up.
pub struct Stack {
    /// Dropped before `heap`.
    inner: gc_preempt::Stack,
    /// The mutator that alone resumes the stack, by its record's number: [`NOBODY`] before the
    /// first start, [`ANYBODY`] after [`Stack::start_anywhere`]. It changes once.
    home: AtomicU64,
    heap: Heap,
}

const NOBODY: u64 = 0;
const ANYBODY: u64 = u64::MAX;

/// An operation on a [`Stack`] has failed, and has changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StackError {
    /// The stack cannot be used so now, or the thread cannot switch here.
    Switch(gc_preempt::StackError),
    /// The stack's first function was started by another mutator, which alone uses the stack.
    OtherMutator,
    /// The stack belongs to another heap.
    OtherHeap,
}

impl fmt::Display for StackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch(error) => error.fmt(f),
            Self::OtherMutator => f.write_str(
                "the stack belongs to the mutator that has started its first function: \
                 `Stack::start_anywhere` starts functions that any mutator may resume",
            ),
            Self::OtherHeap => f.write_str("the stack belongs to another heap than the mutator"),
        }
    }
}

impl std::error::Error for StackError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Switch(error) => Some(error),
            Self::OtherMutator | Self::OtherHeap => None,
        }
    }
}

impl From<gc_preempt::StackError> for StackError {
    fn from(error: gc_preempt::StackError) -> Self {
        Self::Switch(error)
    }
}

impl Heap {
    /// Makes a stack for coroutines of this heap. The memory goes back to its pool when the stack
    /// is dropped. Any thread may call this outside of [`no_preempt`](Mutator::no_preempt).
    ///
    /// # Errors
    /// [`StackError::Switch`]: the calling thread holds a stop.
    pub fn stack(&self, memory: StackMemory) -> Result<Stack, StackError> {
        // SAFETY: the memory belongs to the owner, which is dropped when the registration ends.
        unsafe { self.register_stack(memory.range(), memory) }
    }

    /// Registers memory as a stack for coroutines of this heap. `owner` is dropped when the
    /// registration ends.
    ///
    /// ```
    /// use gc_core::Heap;
    /// use gc_core::coroutine::Resumed;
    ///
    /// let heap = Heap::builder().build()?;
    /// let mutator = heap.attach()?;
    /// let memory = memmap2::MmapMut::map_anon(64 << 10)?;
    /// let start = memory.as_ptr() as usize;
    /// // SAFETY: only the stack uses the mapping, which lives as long as its registration.
    /// let stack = unsafe { heap.register_stack(start..start + memory.len(), memory) }?;
    /// mutator.start(&stack, |_| ())?;
    /// assert_eq!(mutator.resume(&stack)?, Resumed::Finished);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`StackError::Switch`]: the memory is too small or not aligned to 16 bytes, it overlaps
    /// another stack, or the calling thread holds a stop.
    ///
    /// # Safety
    /// * The memory is readable and writable until the owner is dropped. Nothing else uses it.
    /// * An overflow of the stack does not reach other memory: a guard page lies below it, or the
    ///   functions that run on it need less.
    /// * While a stack is suspended, no thread overwrites a reference in its memory, except by
    ///   [`Mutator::write`].
    pub unsafe fn register_stack(
        &self,
        memory: Range<usize>,
        owner: impl Send + 'static,
    ) -> Result<Stack, StackError> {
        // SAFETY: forwarded.
        let inner = unsafe { self.world().register_stack(memory, owner) }?;
        Ok(Stack {
            inner,
            home: AtomicU64::new(NOBODY),
            heap: self.clone(),
        })
    }
}

impl Stack {
    /// The heap whose references the stack may hold.
    pub fn heap(&self) -> &Heap {
        &self.heap
    }

    /// The registered addresses.
    pub fn memory(&self) -> Range<usize> {
        self.inner.memory()
    }

    /// What the stack does now. Another thread may change it at any time.
    pub fn state(&self) -> StackState {
        self.inner.state()
    }

    /// Starts a function on this stack that any mutator of the heap may resume, each time another.
    /// A stack for such functions takes no others. The function is moved onto the stack, where the
    /// collector finds what it has captured.
    ///
    /// ```
    /// # use gc_core::Heap;
    /// use gc_core::coroutine::{Resumed, StackMemory, suspend};
    ///
    /// let heap = Heap::builder().build()?;
    /// let stack = heap.stack(StackMemory::new(64 << 10)?)?;
    /// // SAFETY: the function keeps nothing over its suspension.
    /// unsafe { stack.start_anywhere(|| suspend().unwrap()) }?;
    /// let resume = || heap.attach().unwrap().resume(&stack).unwrap();
    /// assert_eq!(resume(), Resumed::Suspended);
    /// let other = std::thread::scope(|threads| threads.spawn(resume).join().unwrap());
    /// assert_eq!(other, Resumed::Finished);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`StackError`]: the stack is suspended, runs, is lost, or belongs to a mutator; or the
    /// function takes more than half of it.
    ///
    /// # Safety
    /// When the function suspends itself, or a hook suspends it, its frames hold nothing that
    /// belongs to a thread: no [`Mutator`] nor its [`context`](Mutator::context) or
    /// [`runs`](Mutator::runs), no open scope, no [`Local`](crate::Local), no value whose `Drop`
    /// runs in [`drop_dead_values`](Mutator::drop_dead_values), no guard of a lock, no borrow of a
    /// thread-local; unless one thread alone resumes the stack.
    pub unsafe fn start_anywhere(
        &self,
        f: impl FnOnce() + Send + 'static,
    ) -> Result<(), StackError> {
        self.settle(ANYBODY)?;
        // SAFETY: forwarded.
        Ok(unsafe { self.inner.start(f) }?)
    }

    /// Ends the registration, and drops the owner of the memory.
    ///
    /// # Errors
    /// The stack is suspended or runs, or the thread holds a stop. The stack is returned.
    pub fn release(self) -> Result<(), (StackError, Stack)> {
        let Stack { inner, home, heap } = self;
        inner
            .release()
            .map_err(|(error, inner)| (error.into(), Stack { inner, home, heap }))
    }

    /// Does what [`release`](Self::release) does, also with a suspended stack. Values that its
    /// frames own are not dropped. Handles of its open scopes stay roots until their mutator
    /// detaches.
    ///
    /// # Errors
    /// The stack runs, or the thread holds a stop. The stack is returned.
    ///
    /// # Safety
    /// Nothing refers to the frames on the stack.
    pub unsafe fn abandon(self) -> Result<(), (StackError, Stack)> {
        let Stack { inner, home, heap } = self;
        // SAFETY: the handle is gone, so the frames never run again; for the rest forwarded.
        unsafe { inner.abandon() }
            .map_err(|(error, inner)| (error.into(), Stack { inner, home, heap }))
    }

    /// Gives the stack the mutator that resumes it from now on, unless it has another.
    fn settle(&self, home: u64) -> Result<(), StackError> {
        // Relaxed, here and below: the value changes once, and stands for nothing else.
        let set = self
            .home
            .compare_exchange(NOBODY, home, Ordering::Relaxed, Ordering::Relaxed);
        match set {
            Err(other) if other != home => Err(StackError::OtherMutator),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stack")
            .field("memory", &format_args!("{:#x?}", self.memory()))
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Mutator {
    /// Starts a function on a stack that has none, for this mutator to [`resume`](Self::resume).
    /// The stack belongs to this mutator from then on. The function is moved onto the stack, where
    /// the collector finds what it has captured. It gets this mutator.
    ///
    /// # Errors
    /// [`StackError`]: the stack belongs to another heap or mutator, is suspended, runs, or is
    /// lost; or the function takes more than half of it.
    pub fn start(
        &self,
        stack: &Stack,
        f: impl FnOnce(&Mutator) + 'static,
    ) -> Result<(), StackError> {
        self.check_heap(stack)?;
        stack.settle(self.record().number)?;
        let bound = Bound {
            mutator: self.alias(),
            f,
        };
        // SAFETY: this mutator alone resumes the stack, on its thread.
        Ok(unsafe { stack.inner.start(move || bound.run()) }?)
    }

    /// Runs the function on a stack until it [suspends](crate::coroutine::suspend) itself or ends.
    ///
    /// # Errors
    /// [`StackError`]: nothing was started on the stack, it runs elsewhere, or it belongs to
    /// another mutator; or this thread is inside `blocking` or `no_preempt`, or holds a stop.
    ///
    /// # Panics
    /// With the panic that has ended the function.
    pub fn resume(&self, stack: &Stack) -> Result<Resumed, StackError> {
        self.check_heap(stack)?;
        // A stack without home has no function to resume: another mutator may start one at this
        // moment.
        match stack.home.load(Ordering::Relaxed) {
            home if home == self.record().number || home == ANYBODY => Ok(stack.inner.resume()?),
            NOBODY => Err(gc_preempt::StackError::Idle.into()),
            _ => Err(StackError::OtherMutator),
        }
    }

    /// Runs `switch`, which switches to `stack` by means of the host's (another library's switch,
    /// assembly) and returns when the code there has switched back. The code on the stack switches
    /// back inside [`suspend_with`](crate::coroutine::suspend_with), or ends.
    /// [`gc_preempt::Stack::resume_with`] says more.
    ///
    /// # Errors
    /// [`StackError`]: `switch` has not run.
    ///
    /// # Safety
    /// That of [`gc_preempt::Stack::resume_with`] and of [`Stack::start_anywhere`].
    pub unsafe fn resume_with<R>(
        &self,
        stack: &Stack,
        switch: impl FnOnce() -> R,
    ) -> Result<R, StackError> {
        self.check_heap(stack)?;
        // SAFETY: forwarded.
        Ok(unsafe { stack.inner.resume_with(switch) }?)
    }

    fn check_heap(&self, stack: &Stack) -> Result<(), StackError> {
        match ptr::eq(stack.heap.shared(), self.heap().shared()) {
            true => Ok(()),
            false => Err(StackError::OtherHeap),
        }
    }

    /// This mutator again, for a stack that it alone resumes. Each resume borrows the mutator and
    /// the stack's heap, so both live while the alias is used, wherever the mutator was moved to.
    fn alias(&self) -> ManuallyDrop<Mutator> {
        ManuallyDrop::new(Mutator {
            runs: self.runs,
            context: self.context,
            // SAFETY: a copy of a handle that is never dropped.
            heap: ManuallyDrop::new(unsafe { ptr::read(&raw const *self.heap) }),
            failure: Cell::new(None),
            _on_its_thread: PhantomData,
        })
    }
}

/// A function and the mutator that alone runs it.
struct Bound<F> {
    mutator: ManuallyDrop<Mutator>,
    f: F,
}

// SAFETY: it is made, run and dropped on the mutator's thread: `Mutator::resume` refuses others.
// The drop of a stack whose function has not begun drops nothing.
unsafe impl<F> Send for Bound<F> {}

impl<F: FnOnce(&Mutator)> Bound<F> {
    fn run(self) {
        (self.f)(&self.mutator);
    }
}
