//! Scopes inside of scopes, and slots: handles that can be set again.
//!
//! # Why a slot is sound
//! A slot is a word of its scope's handles. A handle that [`Slot::get`] returns borrows the slot,
//! and every change needs the slot alone (`&mut`). So no handle names what a change takes out.
//!
//! The collector reads handles beside their owner, and takes them for what they were at stop 1. So
//! a change logs the old cell while handles are to be read, as the write barrier does for an edge.
//! The test, the log and the store are under `no_preempt`. Otherwise a stop 1 between the test and
//! the store would have the old cell in its snapshot and in no log.
//!
//! The new cell needs no log. It had a handle when stop 1 came, or was loaded since from an edge of
//! the snapshot, or was allocated black.

use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering, compiler_fence};

use crate::api::field::Field;
use crate::api::local::{Local, Scope};
use crate::api::mutator::Mutator;
use crate::error::AllocError;

impl Mutator {
    /// Runs `f` in a scope, as [`scope`](Self::scope) does, for closures with an error of the
    /// caller's. The compiler finds the error by the caller's own result.
    ///
    /// ```
    /// # use gc_core::{AllocError, Heap, Mutator};
    /// #[derive(Debug)]
    /// enum Trouble { Heap(AllocError), Number(std::num::ParseIntError) }
    /// # impl From<AllocError> for Trouble { fn from(e: AllocError) -> Self { Self::Heap(e) } }
    /// # impl From<std::num::ParseIntError> for Trouble {
    /// #     fn from(e: std::num::ParseIntError) -> Self { Self::Number(e) }
    /// # }
    /// fn parse(mutator: &Mutator, text: &str) -> Result<u64, Trouble> {
    ///     mutator.try_scope(|s| {
    ///         let number = s.alloc(text.parse::<u64>()?)?;
    ///         Ok(*number)
    ///     })
    /// }
    /// let heap = Heap::builder().build().unwrap();
    /// let mutator = heap.attach().unwrap();
    /// assert_eq!(parse(&mutator, "12").unwrap(), 12);
    /// assert!(matches!(parse(&mutator, "x"), Err(Trouble::Number(_))));
    /// ```
    ///
    /// # Errors
    /// Only the errors of `f`.
    ///
    /// # Panics
    /// Inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn try_scope<R, E>(
        &self,
        f: impl for<'s> FnOnce(&Scope<'s>) -> Result<R, E>,
    ) -> Result<R, E> {
        self.with_scope(f)
    }
}

impl<'s> Scope<'s> {
    /// Opens a scope inside this one: [`Mutator::scope`].
    ///
    /// # Errors
    /// Only the errors of `f`.
    ///
    /// # Panics
    /// Inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn scope<R>(
        &self,
        f: impl for<'i> FnOnce(&Scope<'i>) -> Result<R, AllocError>,
    ) -> Result<R, AllocError> {
        self.mutator().with_scope(f)
    }

    /// Opens a scope inside this one, for closures of any result: [`Mutator::with_scope`].
    ///
    /// # Panics
    /// Inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn with_scope<R>(&self, f: impl for<'i> FnOnce(&Scope<'i>) -> R) -> R {
        self.mutator().with_scope(f)
    }

    /// Opens a scope inside this one, and makes a handle of this scope from the handle that `f`
    /// returns. All other handles of the inner scope end with it. [`hold`](Self::hold) does the
    /// same for a handle in the middle of an inner scope.
    ///
    /// ```
    /// # use gc_core::{Field, Heap, Trace};
    /// #[derive(Trace, Default)]
    /// struct Node { next: Field<Node>, value: u64 }
    ///
    /// let heap = Heap::builder().build()?;
    /// heap.attach()?.scope(|s| {
    ///     let head = s.escape(|inner| {
    ///         let tail = inner.alloc(Node { value: 2, ..Node::default() })?;
    ///         let head = inner.alloc(Node { value: 1, ..Node::default() })?;
    ///         head.next.set(inner, &tail);
    ///         Ok(head) // one handle of `s`
    ///     })?;
    ///     assert_eq!(head.next.get(s).unwrap().value, 2);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The errors of `f`, and [`AllocError::System`]: the system has no memory for another handle.
    ///
    /// # Panics
    /// Inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn escape<T>(
        &self,
        f: impl for<'i> FnOnce(&Scope<'i>) -> Result<Local<'i, T>, AllocError>,
    ) -> Result<Local<'s, T>, AllocError> {
        self.with_scope(|inner| self.try_hold(&f(inner)?))
    }

    /// Makes an empty slot: a handle of this scope that can be set again. So a loop that walks a
    /// structure does not grow its scope.
    ///
    /// ```
    /// # use gc_core::{Field, Heap, Trace};
    /// #[derive(Trace, Default)]
    /// struct Node { next: Field<Node>, value: u64 }
    ///
    /// let heap = Heap::builder().build()?;
    /// heap.attach()?.scope(|s| {
    ///     let mut list = s.slot::<Node>();
    ///     for value in 0..1000 {
    ///         s.scope(|inner| {
    ///             let node = inner.alloc(Node { value, ..Node::default() })?;
    ///             if let Some(tail) = list.get() {
    ///                 node.next.set(inner, &tail);
    ///             }
    ///             list.set(&node);
    ///             Ok(())
    ///         })?;
    ///     }
    ///     let mut sum = 0;
    ///     while let Some(node) = list.get() {
    ///         sum += node.value;
    ///         list.follow(|node| &node.next); // no handle is made
    ///     }
    ///     assert_eq!(sum, 499_500);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// If the system has no memory for another handle, and inside `blocking`.
    #[must_use]
    #[track_caller]
    pub fn slot<T>(&self) -> Slot<'s, T> {
        self.check_running();
        Slot {
            mutator: self.mutator(),
            word: self.empty_handle(),
            _target: PhantomData,
        }
    }
}

/// A handle that can be set again. It keeps its cell alive until it is set again, or its scope
/// ends. [`Scope::slot`] makes one.
///
/// What [`get`](Self::get) returns does not outlive a change of the slot:
/// ```compile_fail,E0502
/// # let heap = gc_core::Heap::builder().build().unwrap();
/// # let mutator = heap.attach().unwrap();
/// mutator.with_scope(|s| {
///     let mut slot = s.slot::<u64>();
///     slot.set(&s.alloc(1).unwrap());
///     let number = slot.get().unwrap();
///     slot.clear();
///     assert_eq!(*number, 1);
/// });
/// ```
pub struct Slot<'s, T> {
    mutator: &'s Mutator,
    /// A word of the scope's handles, in which the scope's end leaves no handle.
    word: NonNull<AtomicUsize>,
    /// Invariant in `T`, since a slot is read and set.
    _target: PhantomData<*mut T>,
}

impl<T> Slot<'_, T> {
    #[inline]
    fn word(&self) -> &AtomicUsize {
        // SAFETY: a word of the handles of a scope that is open while 's lasts.
        unsafe { self.word.as_ref() }
    }

    /// The cell, as a handle that lasts until the slot is changed; `None` if the slot is empty.
    /// [`Scope::hold`] makes one that lasts longer.
    #[inline]
    pub fn get(&self) -> Option<Local<'_, T>> {
        // Relaxed: this thread alone stores.
        let cell = self.word().load(Ordering::Relaxed);
        let cell = NonNull::new(core::ptr::with_exposed_provenance_mut(cell))?;
        // SAFETY: `set` and `follow` store cells that hold a `T`. The slot keeps the cell alive
        // until it changes, which the borrow excludes.
        Some(unsafe { Local::from_cell(cell) })
    }

    /// Makes the slot hold the cell of `local`, and no longer what it held.
    ///
    /// # Panics
    /// If the cell does not lie in the slot's heap, and inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn set(&mut self, local: &Local<'_, T>) {
        let cell = local.cell().as_ptr().expose_provenance();
        self.check(cell, "handle");
        self.change(cell);
    }

    /// Makes the slot empty.
    ///
    /// # Panics
    /// Inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn clear(&mut self) {
        self.check_running();
        self.change(0);
    }

    /// Makes the slot hold the target of a field of its cell, and returns whether it holds one now.
    /// An empty slot stays empty. The step makes no handle.
    ///
    /// # Panics
    /// If the field does not lie in the slot's heap, and inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn follow(&mut self, field: impl for<'a> FnOnce(&'a T) -> &'a Field<T>) -> bool {
        let Some(node) = self.get() else {
            return false;
        };
        let field = field(node.as_ref());
        self.check(field.address() as usize, "field");
        let record = self.mutator.record();
        // Another thread may make the field null: until the slot has the target, only this thread's
        // registers name it.
        record.open_window();
        let target = field.target();
        self.change(target);
        record.close_window();
        target != 0
    }

    /// See the file's head.
    #[inline]
    fn change(&self, cell: usize) {
        self.mutator.thread().no_preempt(|| {
            if self.mutator.handles().is_unread() && seam::logs() {
                let old = self.word().load(Ordering::Relaxed);
                if old != 0 {
                    self.mutator.record().log(old);
                }
            }
            // Relaxed: a stop of this thread orders it, or the collector reads either cell.
            self.word().store(cell, Ordering::Relaxed);
        });
        // From here on the slot roots the cell, as a stop of this thread sees it.
        compiler_fence(Ordering::SeqCst);
    }

    #[inline]
    #[track_caller]
    fn check(&self, address: usize, what: &str) {
        assert!(
            self.mutator.heap().shared().space.contains(address),
            "the {what} at {address:#x} does not lie in the slot's heap"
        );
        self.check_running();
    }

    #[inline]
    #[track_caller]
    fn check_running(&self) {
        if self.mutator.thread().is_blocking() {
            crate::api::mutator::in_blocking();
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Slot<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Slot").field(&self.get()).finish()
    }
}

mod seam {
    use crate::fault::Fault;

    /// Logs what a slot held.
    #[inline(always)]
    pub(super) fn logs() -> bool {
        !Fault::SlotsUnlogged.planted()
    }
}
