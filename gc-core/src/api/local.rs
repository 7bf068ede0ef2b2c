//! Scopes of the safe tier, and the handles that live in them.
//!
//! # Why nothing dangles
//!
//! * A [`Local`] names its cell directly, and a slot of its scope's part of the handle table keeps
//!   the cell alive until the scope ends. The collector scans the table, so a local may be kept
//!   anywhere: in a `Vec`, in a struct, in a closure.
//! * The closure of a scope must accept any lifetime. So no value that names the scope's lifetime
//!   leaves the closure: no local, and no reference made from one.
//! * Each scope has slots of its own, so an outer scope may be used while an inner one is open. A
//!   panic ends a scope like a return.
//! * Scopes and locals stay on their thread. Inside `blocking` a stop does not wait for the thread,
//!   so each method of a scope panics there.
//! * With two heaps: [`Field`](crate::Field) and [`Root`](crate::Root) check by address that a cell
//!   lies in the scope's heap.
//!
//! Two designs lost. A local that names its slot costs one more load at every use, which only a
//! collector that moves cells needs. A local that only the stack holds, found by the conservative
//! scan, dangles in a `Vec`.

use core::any::{TypeId, type_name};
use core::fmt;
use core::marker::PhantomData;
use core::mem::{ManuallyDrop, MaybeUninit, needs_drop};
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::alloc;
use crate::api::mutator::{Mutator, in_blocking};
use crate::api::trace::{Trace, encoding_of, kind_of};
use crate::dying::{Dying, Place};
use crate::error::{AllocError, TableFull};
use crate::finalize::Registration;
use crate::mutator::handles::Chain;
use crate::mutator::types::{self, Sharing, TypeInfo};

/// An open scope: allocates cells, and keeps them alive until it ends. [`Mutator::scope`] opens
/// one.
pub struct Scope<'s> {
    mutator: &'s Mutator,
    thread: &'s gc_preempt::Mutator,
    base: usize,
    len: usize,
    dying: &'s Dying,
    handles: Chain<'s>,
    /// Invariant: the compiler neither lengthens nor shortens a scope's lifetime.
    _exactly: PhantomData<fn(&'s ()) -> &'s ()>,
}

impl Mutator {
    /// Opens a scope, runs `f` in it, and ends the scope. Handles that are made in the scope cannot
    /// leave it. To keep a cell longer, store it in a [`Field`](crate::Field) of a cell that lives
    /// longer, or in a [`Root`](crate::Root).
    ///
    /// A scope's handles last until its end, so a loop that allocates opens a scope in its body.
    /// Scopes of several [coroutines](crate::coroutine) of a mutator may be open at once, and end
    /// in any order.
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
    /// Only the errors of `f`. [`try_scope`](Self::try_scope) is for closures with an error of the
    /// caller's, [`with_scope`](Self::with_scope) for any result.
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

    /// Runs `f` in a scope, as [`scope`](Self::scope) does, for closures of any result.
    ///
    /// # Panics
    /// Inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn with_scope<R>(&self, f: impl for<'s> FnOnce(&Scope<'s>) -> R) -> R {
        f(&Scope::open(self))
    }

    /// Drops the values of dead cells in place, as far as their types need `Drop`, and returns the
    /// number of values. The fields of such a value are null, and the cells that they led to may
    /// have been freed. No edge and no weak word leads to the value any more. `Drop` runs in no
    /// other place: a program whose cells hold strings, files or boxes calls this from time to
    /// time, outside of [`no_preempt`](Self::no_preempt). Values that are alive when the heap ends
    /// are not dropped.
    ///
    /// A `Drop` may call this function. While 65,536 values of the heap are being dropped, on all
    /// threads together, or where the system has no memory for another, a call returns at once. The
    /// values wait for another call, an outer one for example.
    ///
    /// ```
    /// use gc_core::{Heap, Leaf};
    ///
    /// #[derive(Leaf)]
    /// struct Name(String);
    ///
    /// // In a heap with `exact(true)` no stale word of the stack keeps the value.
    /// let heap = Heap::builder().exact(true).build()?;
    /// let mutator = heap.attach()?;
    /// mutator.scope(|s| {
    ///     let name = s.alloc(Name("short-lived".into()))?;
    ///     assert_eq!(name.0, "short-lived");
    ///     Ok(())
    /// })?;
    /// mutator.collect();
    /// assert_eq!(mutator.drop_dead_values(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// Inside `blocking`. If the `Drop` of a value panics; the next call drops the other values.
    #[track_caller]
    pub fn drop_dead_values(&self) -> u64 {
        if self.thread().is_blocking() {
            in_blocking();
        }
        let mut n = 0;
        // While a value is dropped, only this thread's stack leads to it, so a stop scans the
        // stack.
        let _holding = self.record().holding();
        let shared = self.heap().shared();
        // The place comes first: an entry that has left the queue must be dropped.
        while let Some(place) = shared.dying.place()
            && let Some(entry) = self.record().take_dead(&shared.drops)
        {
            let cell = entry.cell as *mut u8;
            // SAFETY: `Mutator::register_drop` stored `drop_cell` of the cell's own type as the
            // token. The entry left the queue once, and no other code can reach the cell.
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

    /// The type's entry in this heap: the kind and the site of its cells.
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

    /// Moves `value` into a new cell, which no root keeps alive yet. In the safe tier the thread's
    /// window is open on return. In the `FAST` tier the first call for a type makes stacks roots.
    ///
    /// The cell counts as allocated before the first word of the value is written. Until then the
    /// cell is zero, and while it is written its edges stay null, because each field of a new value
    /// is null. So a marker that reads a half-written cell finds no edges.
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
        check_edges(&value);
        let cell = match self.cell_at_once::<T, FAST>() {
            Some(cell) => cell,
            None => self.cell_slowly::<T, FAST>()?,
        };
        let cell = cell.cast::<T>();
        if needs_drop::<T>() && !seam::registers_last() {
            self.register_drop(cell)?;
            seam::unwritten();
        }
        // SAFETY: the cell has at least this size, is aligned to 16 bytes, and no other code has
        // it.
        unsafe { write_value(cell, value) };
        // Register after the write: the child of a fork drops all registered values, and has no
        // thread that would still write this one.
        if needs_drop::<T>()
            && seam::registers_last()
            && let Err(error) = self.register_drop(cell)
        {
            let _holding = self.record().holding();
            // If the table of values that are being dropped is full as well, the value is not
            // dropped.
            if let Some(place) = self.heap().shared().dying.place() {
                // SAFETY: the value has just been written, and no other code has it. Its edges are
                // null and stay null, so a thread that reads the rest of it finds none.
                unsafe { drop_cell::<T>(place, cell.as_ptr().cast()) };
            }
            self.record().close_window();
            return Err(error);
        }
        Ok(cell)
    }

    /// The fast path: the type's site from the cache, and the bump.
    #[inline(always)]
    fn cell_at_once<T: Trace, const FAST: bool>(&self) -> Option<NonNull<u8>> {
        if !types::has_site(size_of::<T>()) {
            return None;
        }
        let info = self.types().get(key::<T, FAST>())?;
        if !FAST {
            self.record().open_window();
        }
        // SAFETY: the runs are this thread's, of the heap that made the site. Until a root leads to
        // the cell, it is in a register or on this thread's stack.
        NonNull::new(unsafe { alloc::bump(self.own_runs(), info.site) })
    }

    #[cold]
    #[inline(never)]
    fn cell_slowly<T: Trace, const FAST: bool>(&self) -> Result<NonNull<u8>, AllocError> {
        self.record().close_window();
        let info = self.type_info::<T, FAST>()?;
        // SAFETY: the site and the kind were made for this type; for the rest see `cell_at_once`.
        unsafe {
            if types::has_site(size_of::<T>()) {
                self.alloc_at_in_window(info.site)
            } else {
                self.alloc_in_window(info.kind, size_of::<T>())
            }
        }
    }

    /// Registers the value, so that [`drop_dead_values`](Self::drop_dead_values) drops it after its
    /// cell has died.
    #[cold]
    #[inline(never)]
    fn register_drop<T: Trace>(&self, cell: NonNull<T>) -> Result<(), AllocError> {
        self.register_drop_by(cell.cast(), drop_cell::<T>)
    }

    /// Registers a cell, whose value `drop` drops. The cell's edges are at places that its content
    /// does not change.
    pub(crate) fn register_drop_by(
        &self,
        cell: NonNull<u8>,
        drop: unsafe fn(Place<'_>, *mut u8),
    ) -> Result<(), AllocError> {
        let entry = Registration {
            cell: cell.as_ptr() as usize,
            token: drop as usize,
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

/// Checks that no edge of a value is set. An edge that is set was moved out of a dying cell by its
/// value's `Drop`: its target may be dead. Where the compiler sees how the fields are made, as it
/// does nearly always, the check folds to nothing.
#[inline(always)]
#[track_caller]
pub(crate) fn check_edges<T: Trace>(value: &T) {
    T::edges(&mut |offset| {
        // SAFETY: edges are words of the value.
        let word = unsafe { (&raw const *value).byte_add(offset).cast::<usize>().read() };
        if encoding_of::<T>().decode(word).is_some() {
            not_null(type_name::<T>());
        }
    });
}

/// Writes a value into zeroed memory of a cell, which a marker may read meanwhile. The value's
/// edges are null ([`check_edges`]). A dynamic field may hold plain data, a part of which could
/// look like an edge, so such a word is written by one store.
///
/// # Safety
/// `to` is memory for a `T` in a cell, which no other code writes.
#[inline(always)]
pub(crate) unsafe fn write_value<T: Trace>(to: NonNull<T>, value: T) {
    let mut has_data = false;
    if T::TAGGED {
        T::edges(&mut |offset| {
            // SAFETY: edges are words of the value.
            let word = unsafe { (&raw const value).byte_add(offset).cast::<usize>().read() };
            has_data |= word != 0;
        });
    }
    if has_data {
        // SAFETY: forwarded.
        unsafe { write_words(to, value) }
    } else {
        // SAFETY: forwarded.
        unsafe { to.write(value) }
    }
}

/// [`write_value`] for a value with data in its dynamic fields.
///
/// # Safety
/// As there.
#[inline(never)]
unsafe fn write_words<T: Trace>(to: NonNull<T>, value: T) {
    let value = ManuallyDrop::new(value);
    let from = &raw const *value;
    let mut blank = MaybeUninit::<T>::uninit();
    // SAFETY: the value is moved, once: its bytes, with zero in place of its edges, and then these.
    // Edges are aligned words of it.
    unsafe {
        blank.as_mut_ptr().copy_from_nonoverlapping(from.cast(), 1);
        T::edges(&mut |offset| blank.as_mut_ptr().byte_add(offset).cast::<usize>().write(0));
        to.as_ptr().copy_from_nonoverlapping(blank.as_ptr(), 1);
        T::edges(&mut |offset| {
            let word = from.byte_add(offset).cast::<usize>().read();
            // Relaxed: the thread publishes the cell by a release.
            let place = &*to.as_ptr().byte_add(offset).cast::<AtomicUsize>();
            place.store(word, Ordering::Relaxed);
        });
    }
}

/// The key of a type in a mutator's cache. The fast tier has keys of its own, so that its first use
/// of a type misses the cache and takes the slow path, which makes stacks roots.
#[inline(always)]
fn key<T: Trace, const FAST: bool>() -> TypeId {
    struct Fast<T>(PhantomData<T>);
    if FAST {
        TypeId::of::<Fast<T>>()
    } else {
        TypeId::of::<T>()
    }
}

/// Drops a dead value. The collector made its fields null when it found the cell dead
/// ([`Marker::strip`](crate::mark::Marker)), since the cells that they led to may have been freed.
///
/// # Safety
/// `cell` holds a `T` that no other code can reach.
unsafe fn drop_cell<T: Trace>(place: Place<'_>, cell: *mut u8) {
    let drop = || {
        // SAFETY: as the caller promises. A stale word of a stack may lead a thread to the value;
        // the value has no edges then.
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
        // Checked before the scope exists: once a method has borrowed the scope, the compiler moves
        // it to its final place, which costs a third of this function.
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

    /// Moves a value into a new cell, and returns a handle of it.
    ///
    /// # Errors
    /// [`AllocError`]: the heap has no room, after a collection as well. The value is dropped,
    /// unless 65,536 values of the heap are being dropped.
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

    /// Makes a handle of this scope from a handle of another scope, an inner one as a rule.
    ///
    /// # Panics
    /// If the cell does not lie in this scope's heap, if the system has no memory for another
    /// handle, and inside `blocking`.
    #[inline]
    #[track_caller]
    pub fn hold<T>(&self, local: &Local<'_, T>) -> Local<'s, T> {
        self.check_address(local.cell.as_ptr() as usize, "handle");
        // SAFETY: a local's cell is alive, and in this heap, as has been checked.
        unsafe { self.hold_cell(local.cell) }
    }

    /// Does what [`hold`](Self::hold) does, with an error where no memory is left.
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
    /// [`AllocError::System`]: the system has no memory for another handle.
    ///
    /// # Panics
    /// Inside `blocking`, and if the cell does not lie in this scope's heap.
    #[inline]
    #[track_caller]
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

    /// Whether the cell of `local` lies in this scope's heap.
    pub fn owns<T>(&self, local: &Local<'_, T>) -> bool {
        self.contains(local.cell.as_ptr() as usize)
    }

    /// Makes a handle of a cell.
    ///
    /// # Safety
    /// `cell` is a live cell of this heap and holds a `T`.
    ///
    /// # Panics
    /// If the system has no memory for another handle, and inside `blocking`.
    #[inline]
    #[track_caller]
    pub(crate) unsafe fn hold_cell<T>(&self, cell: NonNull<T>) -> Local<'s, T> {
        self.check_running();
        // SAFETY: forwarded.
        unsafe { self.keep(cell) }
    }

    /// Does what [`hold_cell`](Self::hold_cell) does, without the check that the thread runs.
    ///
    /// # Safety
    /// As [`hold_cell`](Self::hold_cell), and the thread is not inside `blocking`.
    ///
    /// # Panics
    /// If the system has no memory for another handle.
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
        seam::delay();
        let pushed = self.handles.push(cell.as_ptr() as usize);
        self.mutator.record().close_window();
        pushed?;
        Ok(Local {
            cell,
            _scope: PhantomData,
        })
    }

    /// An empty word of this scope's handles. The thread is not inside `blocking`.
    ///
    /// # Panics
    /// If the system has no memory for another handle.
    #[track_caller]
    pub(crate) fn empty_handle(&self) -> NonNull<core::sync::atomic::AtomicUsize> {
        match self.handles.empty() {
            Ok(word) => word,
            Err(error) => table_full(&error.into()),
        }
    }

    /// Loads a cell and makes a handle of it by `hold`. The thread's window is open in between.
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

    /// Panics inside `blocking`, where the thread must not use the heap.
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

    /// Panics if `address` lies in a value whose `Drop` runs: no edge may be stored there.
    #[inline]
    #[track_caller]
    pub(crate) fn check_living(&self, address: usize) {
        if self.dying.has(address) && seam::refuses_stores() {
            dying();
        }
    }

    /// Panics if `address` does not lie in this scope's heap.
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

/// A handle of a cell, valid while its scope is open. It is one word, and is used like a reference.
/// It may be copied, and kept in any memory.
#[repr(transparent)]
pub struct Local<'s, T> {
    cell: NonNull<T>,
    /// Names the scope. (The pointer above makes the type neither `Send` nor `Sync`.)
    _scope: PhantomData<&'s ()>,
}

impl<'s, T> Local<'s, T> {
    /// A handle of a cell that has a slot of a scope's handles already.
    ///
    /// # Safety
    /// `cell` holds a `T`, and lives while `'s` lasts.
    #[inline(always)]
    pub(crate) unsafe fn from_cell(cell: NonNull<T>) -> Self {
        Self {
            cell,
            _scope: PhantomData,
        }
    }

    /// A reference to the value, for as long as the scope is open.
    #[inline]
    #[allow(
        clippy::should_implement_trait,
        reason = "AsRef would tie the reference to the handle, not to the scope"
    )]
    pub fn as_ref(self) -> &'s T {
        // SAFETY: the cell holds a `T`, as the maker of the handle promised. The handle keeps it
        // alive while 's lasts, and the value changes by interior mutability only.
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

mod seam {
    use core::time::Duration;

    use crate::fault::Fault;

    /// Registers no value that is not written yet.
    #[inline(always)]
    pub(super) fn registers_last() -> bool {
        !Fault::RegisteredUnwritten.planted()
    }

    /// Gives a fork time to come before the value is written.
    pub(super) fn unwritten() {
        std::thread::sleep(Duration::from_micros(300));
    }

    /// Gives a stop time to begin before the cell has a handle.
    #[inline(always)]
    pub(super) fn delay() {
        if Fault::NoWindow.planted() {
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Refuses stores into a value whose `Drop` runs.
    #[inline(always)]
    pub(super) fn refuses_stores() -> bool {
        !Fault::StoresWhileDying.planted()
    }
}
