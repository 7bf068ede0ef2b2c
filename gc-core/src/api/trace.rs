//! Which Rust types may lie in a cell, and where their edges are.
//!
//! Markers read cells while mutators write them, and a mutator may be stopped at any instruction.
//! So an edge must be one word that changes by one store, at a fixed offset: a
//! [`Field`](crate::Field), or a field of an [`Array`](crate::Array). An `Option`, an enum, a `Vec`
//! or a `Mutex` around a field would move or hide it while a marker reads. Two traits describe
//! types:
//!
//! * [`Trace`]: a type that may lie in a cell. Derive it for structs with edges.
//! * [`Leaf`]: a type without edges, at any depth. Derive it for structs and enums without edges. A
//!   leaf may lie in a cell, and in a `Vec`, `Mutex`, `Option` or `HashMap` in a cell.

use core::any::type_name;

use bitvec::prelude::{BitVec, Lsb0};

use crate::encoding::Encoding;
use crate::kind::{Kind, TraceFn};

/// A type whose values may lie in a cell of the heap. Derive it: [`Trace`](derive@crate::Trace).
///
/// ```
/// use gc_core::{Field, Trace};
///
/// #[derive(Trace, Default)]
/// struct Pair {
///     head: Field<Pair>,
///     tail: Field<Pair>,
///     number: i64,
/// }
/// ```
///
/// Each member must be a [`Field`](crate::Field), a [`ValueField`](crate::ValueField), an array of
/// these, a struct that derives `Trace`, or a [`Leaf`].
///
/// # Safety
/// `edges` names every word of the type that holds an edge, and no other word; or `TRACE` reports
/// every edge. `TAGGED` is true if one of these words is a [`ValueField`](crate::ValueField). Safe
/// code cannot move a field of the type out of its place, and can write an edge by
/// [`Field`](crate::Field)'s methods only.
#[diagnostic::on_unimplemented(
    message = "a `{Self}` cannot lie in a cell of the heap",
    label = "neither an edge (`Field<T>`, `[Field<T>; N]`) nor a type that is known to hold none",
    note = "derive it: `#[derive(Trace)]` for a struct with edges, `#[derive(Leaf)]` for a struct or enum without any"
)]
pub unsafe trait Trace: Sized + Send + Sync + 'static {
    /// A function that reports the edges of a cell, for types whose edges depend on their content;
    /// its contract is that of [`Kind::traced`](crate::raw::Kind::traced). A type with such a
    /// function must not need `Drop`.
    const TRACE: Option<TraceFn> = None;

    /// Whether an edge is the word of a dynamic value: then all edges of the type are words of
    /// [`Encoding::DYNAMIC`], in which a plain edge is one, too.
    const TAGGED: bool = false;

    /// Calls `edge` with the byte offset of each edge.
    fn edges(edge: &mut impl FnMut(usize));
}

/// The kind of a type's cells: traced by the type's own function, with edges at fixed offsets, or a
/// leaf.
pub(crate) fn kind_of<T: Trace>() -> Kind {
    if let Some(trace) = T::TRACE {
        // SAFETY: the implementation of the unsafe trait `Trace` promises the contract of its
        // function.
        return unsafe { Kind::traced(type_name::<T>(), trace) };
    }
    let mut slots = BitVec::<u64, Lsb0>::new();
    T::edges(&mut |offset| {
        assert!(
            offset % size_of::<usize>() == 0 && offset < size_of::<T>(),
            "{} has an edge at byte {offset}, which is not a word of it",
            type_name::<T>()
        );
        let word = offset / size_of::<usize>();
        if slots.len() <= word {
            slots.resize(word + 1, false);
        }
        slots.set(word, true);
    });
    if slots.is_empty() {
        Kind::leaf(type_name::<T>())
    } else {
        Kind::words(type_name::<T>(), slots, encoding_of::<T>())
    }
}

/// The encoding of a type's edges.
pub(crate) const fn encoding_of<T: Trace>() -> Encoding {
    if T::TAGGED {
        Encoding::DYNAMIC
    } else {
        Encoding::RAW
    }
}

/// A type that holds no edges, at any depth. Derive it: [`Leaf`](derive@crate::Leaf).
///
/// ```
/// use gc_core::Leaf;
///
/// #[derive(Leaf)]
/// enum Token {
///     Number(f64),
///     Name(String),
/// }
/// ```
///
/// # Safety
/// No [`Field`](crate::Field) lies in a value of the type, or in memory that is moved or changed
/// with the value.
#[diagnostic::on_unimplemented(
    message = "a `{Self}` cannot lie in a cell of the heap like this",
    label = "this type may hold edges",
    note = "an edge is a `Field<T>`, an array `[Field<T>; N]` or a `Field<Array<T>>`, directly in a struct that derives `Trace`",
    note = "inside a Vec, Box, Option, Mutex or enum the collector would not find it; a type without any edges derives `Leaf`"
)]
pub unsafe trait Leaf: Send + Sync + 'static {}

// SAFETY: a leaf has no edges.
unsafe impl<T: Leaf> Trace for T {
    #[inline(always)]
    fn edges(_: &mut impl FnMut(usize)) {}
}

/// Implements `Trace` for types whose values exist only in cells that the heap makes, with kinds of
/// their own.
macro_rules! made_by_the_heap {
    ($($(#[$why:meta])* [$($generics:tt)*] $type:ty),* $(,)?) => {$(
        // SAFETY: safe code has no value of the type, so the type is never a member of another one,
        // and no cell is allocated by this `Trace`.
        unsafe impl<$($generics)*> $crate::api::trace::Trace for $type {
            fn edges(_: &mut impl FnMut(usize)) {}
        }
    )*};
}

pub(crate) use made_by_the_heap;

/// Errors that the compiler finds when it generates code for a type, later than `cargo check`.
///
/// A member's trace function would be lost:
/// ```compile_fail,E0080
/// # use gc_core::{Heap, Trace};
/// struct Own(u64);
/// unsafe impl Trace for Own {
///     const TRACE: Option<gc_core::raw::TraceFn> = Some(|_, _, _| ());
///     fn edges(_: &mut impl FnMut(usize)) {}
/// }
/// #[derive(Trace)]
/// struct Outer(Own);
/// let heap = Heap::builder().build().unwrap();
/// heap.attach().unwrap().with_scope(|s| s.alloc(Outer(Own(1))).is_ok());
/// ```
/// A cell cannot have the alignment of the type:
/// ```compile_fail,E0080
/// # use gc_core::{Heap, Leaf};
/// #[derive(Leaf)]
/// #[repr(align(32))]
/// struct Wide(u64);
/// let heap = Heap::builder().build().unwrap();
/// heap.attach().unwrap().with_scope(|s| s.alloc(Wide(1)).is_ok());
/// ```
/// A value would be traced after it was dropped:
/// ```compile_fail,E0080
/// # use gc_core::{Heap, Trace};
/// struct Own(String);
/// unsafe impl Trace for Own {
///     const TRACE: Option<gc_core::raw::TraceFn> = Some(|_, _, _| ());
///     fn edges(_: &mut impl FnMut(usize)) {}
/// }
/// let heap = Heap::builder().build().unwrap();
/// heap.attach().unwrap().with_scope(|s| s.alloc(Own(String::new())).is_ok());
/// ```
#[cfg(doctest)]
struct FoundLate;

macro_rules! leaves {
    ($($({$($generics:tt)*})? $type:ty),* $(,)?) => {$(
        // SAFETY: a value consists of plain bits, or of leaves.
        unsafe impl$(<$($generics)*>)? Leaf for $type {}
    )*};
}

mod implementations {
    use super::Leaf;
    use core::marker::PhantomData;
    use core::num::*;
    use core::sync::atomic::*;
    use std::borrow::Cow;
    use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet, VecDeque};
    use std::ffi::{CString, OsString};
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex, Once, OnceLock, RwLock};
    use std::time::{Duration, Instant, SystemTime};

    leaves!(
        (), bool, char, str, f32, f64, i8, i16, i32, i64, i128, isize, u8, u16, u32, u64, u128, usize,
        NonZeroI8, NonZeroI16, NonZeroI32, NonZeroI64, NonZeroI128, NonZeroIsize,
        NonZeroU8, NonZeroU16, NonZeroU32, NonZeroU64, NonZeroU128, NonZeroUsize,
        AtomicBool, AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize,
        String, CString, OsString, PathBuf, Duration, Instant, SystemTime, Once, core::cmp::Ordering,
        std::thread::ThreadId, std::fs::File, std::net::TcpStream, std::net::UdpSocket,
        std::hash::RandomState, core::any::TypeId,
        {T: Leaf} [T], {T: Leaf, const N: usize} [T; N], {T: Leaf} Option<T>, {T: Leaf, E: Leaf} Result<T, E>,
        {T: Leaf + ?Sized} Box<T>, {T: Leaf} Vec<T>, {T: Leaf} VecDeque<T>, {T: Leaf} BinaryHeap<T>, {T: Leaf} BTreeSet<T>,
        {K: Leaf, V: Leaf} BTreeMap<K, V>, {T: Leaf, S: Leaf} HashSet<T, S>, {K: Leaf, V: Leaf, S: Leaf} HashMap<K, V, S>,
        {T: Leaf} Mutex<T>, {T: Leaf} RwLock<T>, {T: Leaf} OnceLock<T>, {T: Leaf} core::num::Wrapping<T>,
        {T: Leaf + ToOwned<Owned = O> + ?Sized, O: Leaf} Cow<'static, T>,
        {A: Leaf, B: Leaf} (A, B), {A: Leaf, B: Leaf, C: Leaf} (A, B, C), {A: Leaf, B: Leaf, C: Leaf, D: Leaf} (A, B, C, D),
        {R: 'static} fn() -> R, {A: 'static, R: 'static} fn(A) -> R, {A: 'static, B: 'static, R: 'static} fn(A, B) -> R,
    );

    leaves!(
        // The shared value lies outside of the heap, where a field stays null: it refuses every
        // store.
        {T: Send + Sync + ?Sized + 'static} Arc<T>, {T: Send + Sync + ?Sized + 'static} &'static T,
        // A type without a value.
        {T: Send + Sync + ?Sized + 'static} PhantomData<T>,
    );
}
