//! The safe tier's centre: scopes, and the handles that live in them.
//!
//! # Why nothing dangles
//! * A [`Local`] names its cell directly, and its scope's part of the handle table roots the cell
//!   until the scope ends. The table is scanned, so a local may be kept anywhere: in a `Vec`, in a
//!   struct, in a closure.
//! * The scope's lifetime is a fresh one, which the closure must accept whatever it is. Nothing
//!   that names it gets out of the closure: no local, and no reference made from one.
//! * Each scope has handles of its own, so an outer scope may be used while an inner one is open; a
//!   panic ends a scope like a return.
//! * Scopes and locals stay on their thread. Inside `blocking` the collector does not wait for this
//!   thread, so the scope's methods panic there, by whatever way they were reached.
//! * Two heaps: [`Field`](crate::Field) and [`Root`](crate::Root) check by address that what they
//!   are given lies in the scope's heap.
//!
//! Rejected: a local that names its slot of the table (one more load at every use; needed only by a
//! collector that moves cells); locals that only the stack holds, found by the conservative scan
//! (dangling in the first `Vec`).

use core::any::{TypeId, type_name};
use core::fmt;
use core::marker::PhantomData;
use core::mem::needs_drop;
use core::ops::Deref;
use core::ptr::NonNull;

use crate::alloc;
use crate::api::mutator::{Mutator, in_blocking};
use crate::api::trace::{Trace, kind_of};
use crate::dying::{Dying, Place};
use crate::error::{AllocError, TableFull};
use crate::fault::{Fault, planted};
use crate::finalize::Registration;
use crate::mutator::handles::Chain;
use crate::mutator::types::{self, Sharing, TypeInfo};

/// An open scope: allocates, and roots what it hands out until it ends. See [`Mutator::scope`].
pub struct Scope<'s> {
    mutator: &'s Mutator,
    thread: &'s gc_preempt::Mutator,
    base: usize,
    len: usize,
    dying: &'s Dying,
    handles: Chain<'s>,
    /// Invariant: a scope's lifetime is neither lengthened nor shortened.
    _exactly: PhantomData<fn(&'s ()) -> &'s ()>,
}

impl Mutator {
    /// Opens a scope, runs `f` in it, ends it. Handles made in the scope cannot leave it; what is
    /// to live on is stored in a [`Field`](crate::Field) of something that does, or in a
    /// [`Root`](crate::Root).
    ///
    /// A loop that allocates opens a scope in its body, since a scope's handles all last until its
    /// end. A scope is for the thread's own stack: a stop waits for a thread that is on another one
    /// (a coroutine's) until it is back.
    ///
    /// ```
    /// # use gc_core::{Field, Heap, Trace};
    /// #[derive(Trace, Default)]
    /// struct Node { next: Field<Node>, value: u64 }
    ///
    /// let heap = Heap::builder().build()?;
    /// let mutator = heap.attach()?;
    /// let list = mutator.scope(|s| {
    ///     let first = s.alloc(Node { value: 1, ..Node::default() })?;
    ///     let second = s.alloc(Node { value: 2, ..Node::default() })?;
    ///     first.next.set(s, &second);
    ///     Ok(heap.root(&first))
    /// })?;
    /// mutator.collect();
    /// let sum = mutator.scope(|s| Ok(list.value + list.next.get(s).map_or(0, |n| n.value)))?;
    /// assert_eq!(sum, 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The errors of `f`. For closures that fail otherwise or not at all there is
    /// [`with_scope`](Self::with_scope).
    ///
    /// # Panics
    /// Inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn scope<R>(
        &self,
        f: impl for<'s> FnOnce(&Scope<'s>) -> Result<R, AllocError>,
    ) -> Result<R, AllocError> {
        self.with_scope(f)
    }

    /// [`scope`](Self::scope), for closures of any result.
    ///
    /// # Panics
    /// Inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn with_scope<R>(&self, f: impl for<'s> FnOnce(&Scope<'s>) -> R) -> R {
        f(&Scope::open(self))
    }

    /// Drops, in place, the values of cells that have died since: those whose type needs `Drop`.
    /// Gives their number. Their fields are null by then, what they led to may have been freed, and
    /// nothing leads to them any more, weak words included. `Drop` never runs anywhere else: a
    /// program whose cells hold strings, files or boxes calls this now and then, where that suits
    /// it. What is still alive when the heap goes is not dropped.
    ///
    /// A `Drop` may call this, too. At 65,536 levels of that, or where the system has no memory for
    /// another, the innermost call returns, and the outer ones drop the rest.
    ///
    /// # Panics
    /// Where a value's `Drop` does; the rest waits for the next call.
    #[track_caller]
    pub fn drop_dead_values(&self) -> u64 {
        if self.thread().is_blocking() {
            in_blocking();
        }
        let mut n = 0;
        // A value that is dropped is held by nothing but this.
        let _holding = self.record().holding();
        let shared = self.heap().shared();
        // The place comes first: a value that is out of the queue must be dropped.
        while let Some(place) = shared.dying.place()
            && let Some(entry) = self.record().take_dead(&shared.drops)
        {
            let cell = entry.cell as *mut u8;
            // SAFETY: the token is what `Mutator::register_drop` entered: `drop_cell` of the cell's
            // own type. The entry came out once, and no other code can reach the cell.
            unsafe {
                let drop_cell =
                    core::mem::transmute::<usize, unsafe fn(Place<'_>, *mut u8)>(entry.token);
                drop_cell(place, cell);
            }
            crate::stacks::keep_alive_address(cell);
            n += 1;
        }
        n
    }

    /// How a type's cells are made in this heap.
    fn type_info<T: Trace, const FAST: bool>(&self) -> Result<TypeInfo, AllocError> {
        let id = key::<T, FAST>();
        match self.types().get(id) {
            Some(info) => Ok(info),
            None => {
                let shared = self.heap().shared();
                if FAST {
                    shared.stacks.use_fast_tier().map_err(AllocError::Site)?;
                }
                let bytes = size_of::<T>().max(1);
                let of = TypeId::of::<T>();
                let sharing = match needs_drop::<T>() {
                    true => Sharing::Own,
                    false => Sharing::Shared,
                };
                let info = shared.type_info(of, bytes, sharing, kind_of::<T>)?;
                self.types().put(id, info);
                Ok(info)
            }
        }
    }

    /// A cell that holds `value`, rooted by nothing yet. For the safe tier, the thread's window is
    /// open; the `FAST` tier's first call for a type has stacks scanned from then on.
    ///
    /// The order is that of rule 4 of the fast path: the cell is taken, and counts as allocated,
    /// before the first word of the value is written; until then it is zero, and while it is
    /// written its edges stay null, since a field is born null. So a marker that reads the cell
    /// half written finds no edges.
    #[inline(always)]
    #[track_caller]
    pub(crate) fn cell_with<T: Trace, const FAST: bool>(
        &self,
        value: T,
    ) -> Result<NonNull<T>, AllocError> {
        const {
            assert!(
                align_of::<T>() <= 16,
                "cells are aligned to 16 bytes: a type that asks for more cannot lie in one"
            );
            assert!(
                T::TRACE.is_none() || !needs_drop::<T>(),
                "a type with a trace function must not need Drop: its cell may be traced after the value was dropped"
            );
        }
        // A field that is not null has been moved out of a dying cell, by its value's `Drop`: what
        // it leads to may be dead. Where fields are made on the spot, as nearly always, this folds
        // to nothing.
        T::edges(&mut |offset| {
            // SAFETY: edges are words of the value.
            if unsafe { (&raw const value).byte_add(offset).cast::<usize>().read() } != 0 {
                not_null(type_name::<T>());
            }
        });
        let cell = match self.cell_at_once::<T, FAST>() {
            Some(cell) => cell,
            None => self.cell_slowly::<T, FAST>()?,
        };
        let cell = cell.cast::<T>();
        if needs_drop::<T>() && planted(Fault::RegisteredUnwritten) {
            self.register_drop(cell)?;
            std::thread::sleep(core::time::Duration::from_micros(300));
        }
        // SAFETY: a cell of at least this size, aligned to 16, that no other code knows.
        unsafe { cell.write(value) };
        // Afterwards, for the child of a fork drops all that is registered, and the thread that was
        // to write it is not there.
        if needs_drop::<T>()
            && !planted(Fault::RegisteredUnwritten)
            && let Err(error) = self.register_drop(cell)
        {
            let _holding = self.record().holding();
            // The value is not dropped where the table of values that are being dropped is full,
            // too.
            if let Some(place) = self.heap().shared().dying.place() {
                // SAFETY: just written, and no other code knows it. Its edges are null, and stay
                // so: a thread that reads what is left of it finds none.
                unsafe { drop_cell::<T>(place, cell.as_ptr().cast()) };
            }
            self.record().close_window();
            return Err(error);
        }
        Ok(cell)
    }

    /// The whole of the fast path: the type's site from the cache, and the bump.
    #[inline(always)]
    fn cell_at_once<T: Trace, const FAST: bool>(&self) -> Option<NonNull<u8>> {
        if !types::has_site(size_of::<T>()) {
            return None;
        }
        let info = self.types().get(key::<T, FAST>())?;
        if !FAST {
            self.record().open_window();
        }
        // SAFETY: the runs are this thread's, of the heap that made the site. Until it is rooted,
        // the cell is in registers or on this thread's stack.
        NonNull::new(unsafe { alloc::bump(self.own_runs(), info.site) })
    }

    #[cold]
    #[inline(never)]
    fn cell_slowly<T: Trace, const FAST: bool>(&self) -> Result<NonNull<u8>, AllocError> {
        self.record().close_window();
        let info = self.type_info::<T, FAST>()?;
        // SAFETY: site and kind were made for this type, and the rest as in `cell_at_once`.
        unsafe {
            if types::has_site(size_of::<T>()) {
                self.alloc_at_in_window(info.site)
            } else {
                self.alloc_in_window(info.kind, size_of::<T>())
            }
        }
    }

    /// Has the value dropped once its cell is dead.
    #[cold]
    #[inline(never)]
    fn register_drop<T: Trace>(&self, cell: NonNull<T>) -> Result<(), AllocError> {
        let entry = Registration {
            cell: cell.as_ptr() as usize,
            token: drop_cell::<T> as unsafe fn(Place<'_>, *mut u8) as usize,
        };
        if self.heap().shared().drops.register(entry) {
            Ok(())
        } else {
            Err(AllocError::TableFull(TableFull {
                table: "values that need Drop",
                cure: "call drop_dead_values() more often",
            }))
        }
    }
}

/// What a mutator's cache knows a type by: for each tier another, so that the first use of the fast
/// one is met where it is not fast.
#[inline(always)]
fn key<T: Trace, const FAST: bool>() -> TypeId {
    struct Fast<T>(PhantomData<T>);
    if FAST {
        TypeId::of::<Fast<T>>()
    } else {
        TypeId::of::<T>()
    }
}

/// Drops a dead value. The collector has made its fields null when it found it dead
/// ([`Marker::strip`](crate::mark::Marker)), so that its `Drop` finds no edges: what they led to
/// may be gone.
///
/// # Safety
/// `cell` holds a `T` that no other code can reach.
unsafe fn drop_cell<T: Trace>(place: Place<'_>, cell: *mut u8) {
    let drop = || {
        // SAFETY: as the caller says. A value that is found again, by a stale word of some stack,
        // has no edges any more.
        unsafe { cell.cast::<T>().drop_in_place() };
    };
    let first = cell as usize;
    place.during(first..first + size_of::<T>(), drop);
}

impl<'s> Scope<'s> {
    #[inline]
    #[track_caller]
    fn open(mutator: &'s Mutator) -> Self {
        let thread = mutator.thread();
        // Before there is a scope: one that has been looked at is moved to where it stays, which
        // takes a third as long as all else here.
        if thread.is_blocking() {
            in_blocking();
        }
        let shared = mutator.heap().shared();
        let range = shared.space.reserved();
        Self {
            mutator,
            thread,
            base: range.start,
            len: range.len(),
            dying: &shared.dying,
            handles: Chain::new(mutator.handles(), thread),
            _exactly: PhantomData,
        }
    }

    /// Moves a value into a cell of its own.
    ///
    /// # Errors
    /// [`AllocError`]: the heap is full, and a collection did not help. The value is dropped.
    ///
    /// # Panics
    /// Inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn alloc<T: Trace>(&self, value: T) -> Result<Local<'s, T>, AllocError> {
        self.check_running();
        let cell = self.mutator.cell_with::<T, false>(value)?;
        // SAFETY: a live cell of this heap that holds a `T`.
        unsafe { self.try_hold_cell(cell) }
    }

    /// Roots a handle of another scope (an inner one, as a rule) in this one as well.
    #[inline]
    pub fn hold<T>(&self, local: &Local<'_, T>) -> Local<'s, T> {
        self.check_address(local.cell.as_ptr() as usize, "handle");
        // SAFETY: a local's cell is alive, and in this heap, as has been checked.
        unsafe { self.hold_cell(local.cell) }
    }

    /// [`hold`](Self::hold), with an error where that panics.
    ///
    /// ```
    /// # use gc_core::{Field, Heap, Trace};
    /// # #[derive(Trace, Default)]
    /// # struct Node { next: Field<Node> }
    /// let heap = Heap::builder().build()?;
    /// let mutator = heap.attach()?;
    /// mutator.scope(|outer| {
    ///     let kept = mutator.scope(|inner| outer.try_hold(&inner.alloc(Node::default())?))?;
    ///     assert!(kept.next.is_null());
    ///     Ok(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`AllocError::System`]: the system has no memory left for handles.
    ///
    /// # Panics
    /// Inside `blocking`, and if the cell does not lie in this scope's heap.
    #[inline]
    pub fn try_hold<T>(&self, local: &Local<'_, T>) -> Result<Local<'s, T>, AllocError> {
        self.check_running();
        self.check_address(local.cell.as_ptr() as usize, "handle");
        // SAFETY: a local's cell is alive, and in this heap, as has been checked.
        unsafe { self.try_hold_cell(local.cell) }
    }

    /// The mutator that opened the scope.
    pub fn mutator(&self) -> &'s Mutator {
        self.mutator
    }

    /// Whether a live `local` lies in this scope's heap.
    pub fn owns<T>(&self, local: &Local<'_, T>) -> bool {
        self.contains(local.cell.as_ptr() as usize)
    }

    /// Roots a cell.
    ///
    /// # Safety
    /// A live cell of this heap, which holds a `T`.
    ///
    /// # Panics
    /// If the system has no memory left for handles, and inside `blocking`.
    #[inline]
    #[track_caller]
    pub(crate) unsafe fn hold_cell<T>(&self, cell: NonNull<T>) -> Local<'s, T> {
        self.check_running();
        // SAFETY: forwarded.
        unsafe { self.keep(cell) }
    }

    /// [`hold_cell`](Self::hold_cell), where the caller has seen that the thread runs.
    ///
    /// # Safety
    /// As [`hold_cell`](Self::hold_cell), and the thread is not inside `blocking`.
    ///
    /// # Panics
    /// If the system has no memory left for handles.
    #[inline]
    #[track_caller]
    pub(crate) unsafe fn keep<T>(&self, cell: NonNull<T>) -> Local<'s, T> {
        // SAFETY: forwarded.
        match unsafe { self.try_hold_cell(cell) } {
            Ok(local) => local,
            Err(error) => table_full(&error),
        }
    }

    /// # Safety
    /// As [`hold_cell`](Self::hold_cell), and the thread is not inside `blocking`.
    #[inline]
    pub(crate) unsafe fn try_hold_cell<T>(
        &self,
        cell: NonNull<T>,
    ) -> Result<Local<'s, T>, AllocError> {
        if planted(Fault::NoWindow) {
            std::thread::sleep(core::time::Duration::from_micros(100));
        }
        let pushed = self.handles.push(cell.as_ptr() as usize);
        self.mutator.record().close_window();
        pushed?;
        Ok(Local {
            cell,
            _scope: PhantomData,
        })
    }

    /// Makes what `load` finds a handle, by `hold`; until then the thread's window is open.
    #[inline(always)]
    pub(crate) fn hold_loaded<T>(
        &self,
        load: impl FnOnce() -> Option<NonNull<T>>,
        hold: impl FnOnce(NonNull<T>) -> Local<'s, T>,
    ) -> Option<Local<'s, T>> {
        self.mutator.record().open_window();
        let loaded = load();
        if loaded.is_none() {
            self.mutator.record().close_window();
        }
        loaded.map(hold)
    }

    /// Is the thread where it may touch the heap?
    #[inline]
    #[track_caller]
    pub(crate) fn check_running(&self) {
        if self.thread.is_blocking() {
            in_blocking();
        }
    }

    #[inline]
    pub(crate) fn contains(&self, address: usize) -> bool {
        address.wrapping_sub(self.base) < self.len
    }

    /// May an edge be stored at `address`? Not while the `Drop` of the value around it runs.
    #[inline]
    #[track_caller]
    pub(crate) fn check_living(&self, address: usize) {
        if self.dying.has(address) && !planted(Fault::StoresWhileDying) {
            dying();
        }
    }

    /// Does what is at `address` lie in this scope's heap?
    #[inline]
    #[track_caller]
    pub(crate) fn check_address(&self, address: usize, what: &str) {
        if !self.contains(address) {
            elsewhere(what, address);
        }
    }
}

impl Drop for Scope<'_> {
    #[inline]
    fn drop(&mut self) {
        self.handles.end(|word| self.mutator.record().log(word));
    }
}

#[cold]
#[inline(never)]
#[track_caller]
fn elsewhere(what: &str, address: usize) -> ! {
    panic!(
        "the {what} at {address:#x} does not lie in the scope's heap: it belongs to another heap, or to a value that has not been moved into a cell yet"
    )
}

#[cold]
#[inline(never)]
#[track_caller]
fn dying() -> ! {
    panic!(
        "an edge was to be stored into a value whose Drop runs: its cell is dead, so nothing would keep what the edge leads to"
    )
}

#[cold]
#[inline(never)]
#[track_caller]
fn not_null(name: &str) -> ! {
    panic!(
        "a {name} was to be moved into a cell with a field that is not null: set fields when the value lies in the heap"
    )
}

#[cold]
#[inline(never)]
#[track_caller]
fn table_full(error: &AllocError) -> ! {
    panic!("{error}")
}

impl fmt::Debug for Scope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Scope").field(self.mutator).finish()
    }
}

/// A handle on a cell, valid while its scope is open. As small and as quick as a reference; may be
/// copied, and kept in any memory.
#[repr(transparent)]
pub struct Local<'s, T> {
    cell: NonNull<T>,
    /// Names its scope. (The pointer keeps it on its thread.)
    _scope: PhantomData<&'s ()>,
}

impl<'s, T> Local<'s, T> {
    /// The value, for as long as the scope is open.
    #[inline]
    #[allow(
        clippy::should_implement_trait,
        reason = "AsRef would tie the reference to the handle, not to the scope"
    )]
    pub fn as_ref(self) -> &'s T {
        // SAFETY: the cell holds a `T` (the handle's maker said so), which is rooted while 's
        // lasts and never changes but by interior mutability.
        unsafe { self.cell.as_ref() }
    }

    /// Whether two handles name the same cell.
    #[inline]
    pub fn same(self, other: Local<'_, T>) -> bool {
        self.cell == other.cell
    }

    /// The cell.
    #[inline]
    pub(crate) fn cell(self) -> NonNull<T> {
        self.cell
    }
}

impl<T> Clone for Local<'_, T> {
    #[inline]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Local<'_, T> {}

impl<T> Deref for Local<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        self.as_ref()
    }
}

impl<T: fmt::Debug> fmt::Debug for Local<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: fmt::Display> fmt::Display for Local<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
