//! Ephemerons and maps with weak keys: a value that lives as long as its key does, and no reason
//! longer.
//!
//! ```text
//! Ephemeron<K, V>   [ 1 | key | value ]
//! Pairs<K, V>       [ n | key | value | key | value | ... ]      a map's table; open addressing, linear probing
//! WeakMap<K, V>     a struct: a field to its pairs
//! ```
//! What a weak word cannot do: `map[key] = value` with a value that leads back to its key. Were the
//! value held strongly, the key would never die. An ephemeron's value counts only once its key has
//! been reached in another way.
//!
//! Cells do not move, so a cell's address is its hash for life.

use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::api::array::Shape;
use crate::api::field::Field;
use crate::api::local::{Local, Scope};
use crate::api::trace::{Trace, made_by_the_heap};
use crate::encoding::Encoding;
use crate::error::AllocError;
use crate::heap::GRANULE;
use crate::kind::Kind;

const WORD: usize = size_of::<usize>();

/// The key of a pair that was removed, or whose key died: not null, so that a search goes on behind
/// it.
const GONE: usize = 1;

struct OfPairs;
impl Shape for OfPairs {
    fn kind() -> Kind {
        Kind::ephemeron("pairs", 1, Encoding::RAW, GONE)
    }
}

/// A key and a value that lives while the key and the ephemeron do: a cell of its own, which a
/// [`Field`] or a [`Root`](crate::Root) holds like any other. It does not keep its key.
///
/// ```
/// # use gc_core::{Bytes, Heap};
/// let heap = Heap::builder().build()?;
/// let mutator = heap.attach()?;
/// mutator.scope(|s| {
///     let key = s.alloc_bytes(b"key")?;
///     let note = s.alloc_ephemeron(&key, &s.alloc_bytes(b"a note on it")?)?;
///     mutator.collect();
///     assert!(note.key(s).unwrap().same(key));
///     assert_eq!(note.value(s).unwrap().as_str(), Some("a note on it"));
///     Ok(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(C)]
pub struct Ephemeron<K, V> {
    pairs: Pairs<K, V>,
}

impl<K: Trace, V: Trace> Ephemeron<K, V> {
    /// The key, as a handle of `scope`, or `None` once it has died.
    ///
    /// # Panics
    /// If this does not lie in the scope's heap, and inside `blocking`.
    #[track_caller]
    pub fn key<'s>(&self, scope: &Scope<'s>) -> Option<Local<'s, K>> {
        self.pairs.key(0, scope)
    }

    /// The value, as a handle of `scope`, or `None` once the key has died.
    ///
    /// # Panics
    /// As [`key`](Self::key).
    #[track_caller]
    pub fn value<'s>(&self, scope: &Scope<'s>) -> Option<Local<'s, V>> {
        self.pairs.value(0, scope)
    }

    /// Replaces the value, unless the key has died or been removed.
    ///
    /// # Panics
    /// As [`key`](Self::key), and if the value does not lie in the scope's heap.
    #[track_caller]
    pub fn set_value(&self, scope: &Scope<'_>, value: &Local<'_, V>) {
        if let Some(key) = self.key(scope) {
            self.pairs.set_value(0, scope, &key, value);
        }
    }

    /// Removes key and value. A [`set_value`](Self::set_value) of another thread comes wholly
    /// before, and is removed too, or does nothing.
    ///
    /// # Panics
    /// As [`key`](Self::key).
    #[track_caller]
    pub fn clear(&self, scope: &Scope<'_>) {
        self.pairs.remove(0, scope);
    }
}

impl<K, V> fmt::Debug for Ephemeron<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ephemeron")
    }
}

/// A table of pairs. Only maps see it.
#[repr(C)]
pub struct Pairs<K, V> {
    len: usize,
    /// Invariant: its words are changed by `&self`.
    _pairs: PhantomData<*mut (K, V)>,
}

// SAFETY: its words are atomic; what they lead to may be shared between threads.
unsafe impl<K: Send + Sync, V: Send + Sync> Send for Pairs<K, V> {}
// SAFETY: as above.
unsafe impl<K: Send + Sync, V: Send + Sync> Sync for Pairs<K, V> {}

/// What a search for a key came to.
enum Place {
    /// The key's pair.
    Found(usize),
    /// A pair that may be used for it.
    Free(usize),
    /// There is none.
    Full,
}

impl<K, V> Pairs<K, V> {
    #[inline]
    fn pairs(&self) -> &[[AtomicUsize; 2]] {
        let first = (&raw const *self).expose_provenance() + WORD;
        // SAFETY: `Pairs` exist in the heap only, in a cell with room for `len` pairs after the
        // length, whose address is exposed.
        unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(first), self.len) }
    }

    /// Makes what a word leads to a handle.
    ///
    /// # Safety
    /// The word holds nothing but null, `GONE` or cells with a `T`.
    #[inline]
    #[track_caller]
    unsafe fn load<'s, T>(word: &AtomicUsize, scope: &Scope<'s>) -> Option<Local<'s, T>> {
        scope.check_address(word.as_ptr() as usize, "pair");
        scope.check_running();
        // SAFETY: a word of a live ephemeron cell of this heap. The unit makes what it loads
        // strong, so it is of no importance whether this thread holds the key.
        let load = || {
            // SAFETY: as said above.
            let target = unsafe { scope.mutator().load_weak_word(word.as_ptr()) };
            NonNull::new(core::ptr::with_exposed_provenance_mut(target))
                .filter(|target: &NonNull<T>| target.as_ptr() as usize != GONE)
        };
        // SAFETY: not null and not cleared, so alive; the rest is the caller's promise.
        scope.hold_loaded(load, |target| unsafe { scope.hold_cell(target) })
    }

    #[inline]
    #[track_caller]
    fn key<'s>(&self, at: usize, scope: &Scope<'s>) -> Option<Local<'s, K>> {
        // SAFETY: keys are stored by `enter` only.
        unsafe { Self::load(&self.pairs()[at][0], scope) }
    }

    #[inline]
    #[track_caller]
    fn value<'s>(&self, at: usize, scope: &Scope<'s>) -> Option<Local<'s, V>> {
        // SAFETY: values are stored by `enter` and `set_value` only.
        unsafe { Self::load(&self.pairs()[at][1], scope) }
    }

    /// The first word of a pair that may be changed.
    #[track_caller]
    fn pair(&self, at: usize, scope: &Scope<'_>) -> *mut usize {
        let pair = self.pairs()[at].as_ptr().cast::<AtomicUsize>() as *mut usize;
        scope.check_address(pair as usize, "pair");
        scope.check_running();
        pair
    }

    #[track_caller]
    fn enter(&self, at: usize, scope: &Scope<'_>, key: &Local<'_, K>, value: &Local<'_, V>) {
        let (key, value) = (address(key, scope), address(value, scope));
        // SAFETY: a pair of a live cell of this heap; the caller holds key and value by handles.
        unsafe { scope.mutator().write_pair(self.pair(at, scope), key, value) };
    }

    /// Copies a pair, whose key and value need not be held, to a place of a new table.
    #[track_caller]
    fn copy(&self, at: usize, scope: &Scope<'_>, from: &Self, from_at: usize) {
        let to = self.pairs()[at][0].as_ptr();
        let from = from.pairs()[from_at][0].as_ptr();
        scope.check_running();
        // SAFETY: pairs of live cells of this heap and of one kind; the one that is copied to is
        // null.
        unsafe { scope.mutator().copy_weak(to, from, 2) };
    }

    #[track_caller]
    fn remove(&self, at: usize, scope: &Scope<'_>) {
        // SAFETY: a pair of a live cell of this heap.
        unsafe { scope.mutator().remove_pair(self.pair(at, scope), GONE) };
    }

    /// For a key that the caller holds, if it is still there.
    #[track_caller]
    fn set_value(&self, at: usize, scope: &Scope<'_>, key: &Local<'_, K>, value: &Local<'_, V>) {
        let (key, value) = (address(key, scope), address(value, scope));
        // SAFETY: as in `enter`.
        unsafe {
            scope
                .mutator()
                .replace_value(self.pair(at, scope), key, value)
        };
    }

    /// Where a key is, or could be. The caller holds it.
    fn find(&self, key: usize) -> Place {
        let pairs = self.pairs();
        let mask = pairs.len() - 1;
        let mut free = None;
        let mut at = hash(key);
        for _ in 0..pairs.len() {
            at &= mask;
            // Relaxed: compared, not followed.
            match pairs[at][0].load(Ordering::Relaxed) {
                0 => return Place::Free(free.unwrap_or(at)),
                GONE => free = free.or(Some(at)),
                found if found == key => return Place::Found(at),
                _ => {}
            }
            at += 1;
        }
        free.map_or(Place::Full, Place::Free)
    }
}

/// Neighbouring cells get neighbouring places; multiplied, so that those of one size class do not
/// share them.
#[inline]
fn hash(address: usize) -> usize {
    ((address / GRANULE) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> 20
}

#[inline]
#[track_caller]
fn address<T>(local: &Local<'_, T>, scope: &Scope<'_>) -> usize {
    let address = local.cell().as_ptr().expose_provenance();
    scope.check_address(address, "key or value");
    address
}

/// A map from cells, by identity, to cells. A pair is gone once its key has died; the map keeps no
/// key, and a value only while its key lives, even if the value leads back to its key.
///
/// It is a struct, to be allocated by [`Scope::alloc`], or a member of another one that derives
/// [`Trace`](derive@crate::Trace).
///
/// ```
/// # use gc_core::{Bytes, Heap, WeakMap};
/// let heap = Heap::builder().build()?;
/// let mutator = heap.attach()?;
/// mutator.scope(|s| {
///     let names = s.alloc(WeakMap::<Bytes, Bytes>::new())?;
///     let key = s.alloc_bytes(b"key")?;
///     names.insert(s, &key, &s.alloc_bytes(b"value")?)?;
///     mutator.collect();
///     assert_eq!(names.get(s, &key).unwrap().as_str(), Some("value"));
///     assert!(names.remove(s, &key) && names.get(s, &key).is_none());
///     Ok(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Like Java's `WeakHashMap` it is for one thread at a time. Threads that share one bring a lock of
/// their own; if they do not, what one of them enters may be lost, or be found under the other's
/// key, but nothing dangles.
pub struct WeakMap<K, V> {
    pairs: Field<Pairs<K, V>>,
    /// Pairs that are not null: also those that are gone.
    used: AtomicUsize,
}

// SAFETY: the field is at its place; the other member is no edge.
unsafe impl<K: Trace, V: Trace> Trace for WeakMap<K, V> {
    fn edges(edge: &mut impl FnMut(usize)) {
        edge(core::mem::offset_of!(Self, pairs));
    }
}

/// Pairs of a map's first table.
const FIRST: usize = 8;

impl<K: Trace, V: Trace> WeakMap<K, V> {
    /// An empty map, to be moved into a cell.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            pairs: Field::null(),
            used: AtomicUsize::new(0),
        }
    }

    /// The value of `key`.
    ///
    /// # Panics
    /// If the map or the key does not lie in the scope's heap, and inside `blocking`.
    #[track_caller]
    pub fn get<'s>(&self, scope: &Scope<'s>, key: &Local<'_, K>) -> Option<Local<'s, V>> {
        let pairs = self.pairs.get(scope)?;
        match pairs.find(address(key, scope)) {
            Place::Found(at) => pairs.value(at, scope),
            Place::Free(_) | Place::Full => None,
        }
    }

    /// Whether the map has a value for `key`.
    ///
    /// # Panics
    /// As [`get`](Self::get).
    #[track_caller]
    pub fn contains(&self, scope: &Scope<'_>, key: &Local<'_, K>) -> bool {
        self.get(scope, key).is_some()
    }

    /// Enters a value for `key`, in place of the one that was there. True: there was none.
    ///
    /// # Errors
    /// [`AllocError`], where the table had to grow; the map is as before.
    ///
    /// # Panics
    /// As [`get`](Self::get), and if the value does not lie in the scope's heap.
    #[track_caller]
    pub fn insert(
        &self,
        scope: &Scope<'_>,
        key: &Local<'_, K>,
        value: &Local<'_, V>,
    ) -> Result<bool, AllocError> {
        let address = address(key, scope);
        let mut pairs = match self.pairs.get(scope) {
            Some(pairs) => pairs,
            None => self.rebuilt(scope)?,
        };
        loop {
            match pairs.find(address) {
                Place::Found(at) => {
                    pairs.set_value(at, scope, key, value);
                    return Ok(false);
                }
                Place::Free(at) => {
                    // Relaxed: a count for one thread at a time.
                    let used = self.used.load(Ordering::Relaxed);
                    let new = pairs.pairs()[at][0].load(Ordering::Relaxed) == 0;
                    if new && (used + 1) * 4 > pairs.len * 3 {
                        pairs = self.rebuilt(scope)?;
                        continue;
                    }
                    self.used.store(used + usize::from(new), Ordering::Relaxed);
                    pairs.enter(at, scope, key, value);
                    return Ok(true);
                }
                Place::Full => pairs = self.rebuilt(scope)?,
            }
        }
    }

    /// Removes the value of `key`. True: there was one.
    ///
    /// # Panics
    /// As [`get`](Self::get).
    #[track_caller]
    pub fn remove(&self, scope: &Scope<'_>, key: &Local<'_, K>) -> bool {
        let Some(pairs) = self.pairs.get(scope) else {
            return false;
        };
        match pairs.find(address(key, scope)) {
            Place::Found(at) => {
                pairs.remove(at, scope);
                true
            }
            Place::Free(_) | Place::Full => false,
        }
    }

    /// Removes all.
    ///
    /// # Panics
    /// If the map does not lie in the scope's heap, and inside `blocking`.
    #[track_caller]
    pub fn clear(&self, scope: &Scope<'_>) {
        self.pairs.clear(scope);
        self.used.store(0, Ordering::Relaxed);
    }

    /// Calls `f` with each key that is alive, and its value, in no order, until it has seen all.
    ///
    /// # Panics
    /// As [`clear`](Self::clear).
    #[track_caller]
    pub fn for_each<'s>(&self, scope: &Scope<'s>, mut f: impl FnMut(Local<'s, K>, Local<'s, V>)) {
        let Some(pairs) = self.pairs.get(scope) else {
            return;
        };
        for at in 0..pairs.len {
            if let Some(key) = pairs.key(at, scope)
                && let Some(value) = pairs.value(at, scope)
            {
                f(key, value);
            }
        }
    }

    /// How many pairs there are whose keys are not known to be dead. Goes over the whole table.
    ///
    /// # Panics
    /// As [`clear`](Self::clear).
    #[track_caller]
    pub fn len(&self, scope: &Scope<'_>) -> usize {
        self.pairs.get(scope).map_or(0, |pairs| pairs.alive())
    }

    /// Whether [`len`](Self::len) is 0.
    ///
    /// # Panics
    /// As [`clear`](Self::clear).
    #[track_caller]
    pub fn is_empty(&self, scope: &Scope<'_>) -> bool {
        self.len(scope) == 0
    }

    /// Moves all pairs into a table of the size that those alive need.
    #[cold]
    #[track_caller]
    fn rebuilt<'s>(&self, scope: &Scope<'s>) -> Result<Local<'s, Pairs<K, V>>, AllocError> {
        let old = self.pairs.get(scope);
        let alive = old.map_or(0, |old| old.alive());
        let new = scope.alloc_pairs::<K, V>(((alive + 1) * 2).next_power_of_two().max(FIRST))?;
        let mut used = 0;
        if let Some(old) = old {
            for at in 0..old.len {
                // Relaxed: it is hashed, not followed. If it is cleared meanwhile, what is copied
                // is a pair that is gone.
                let key = old.pairs()[at][0].load(Ordering::Relaxed);
                if !matches!(key, 0 | GONE)
                    && let Place::Free(to) = new.find(key)
                {
                    new.copy(to, scope, &old, at);
                    used += 1;
                }
            }
        }
        self.pairs.set(scope, &new);
        self.used.store(used, Ordering::Relaxed);
        Ok(new)
    }
}

impl<K, V> Pairs<K, V> {
    fn alive(&self) -> usize {
        let keys = self.pairs().iter();
        // Relaxed: counted, not followed.
        keys.filter(|[key, _]| !matches!(key.load(Ordering::Relaxed), 0 | GONE))
            .count()
    }
}

impl<K: Trace, V: Trace> Default for WeakMap<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K, V> fmt::Debug for WeakMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakMap")
    }
}

impl<'s> Scope<'s> {
    /// An ephemeron: `value` lives while `key` and the ephemeron do.
    ///
    /// # Errors
    /// [`AllocError`].
    ///
    /// # Panics
    /// If key or value do not lie in this scope's heap, and inside `blocking`.
    #[track_caller]
    pub fn alloc_ephemeron<K: Trace, V: Trace>(
        &self,
        key: &Local<'_, K>,
        value: &Local<'_, V>,
    ) -> Result<Local<'s, Ephemeron<K, V>>, AllocError> {
        let pairs = self.alloc_pairs::<K, V>(1)?;
        pairs.enter(0, self, key, value);
        // SAFETY: a live cell of this heap, which an ephemeron is laid out as.
        unsafe { self.try_hold_cell(pairs.cell().cast()) }
    }

    /// `len` pairs of nulls.
    #[track_caller]
    fn alloc_pairs<K, V>(&self, len: usize) -> Result<Local<'s, Pairs<K, V>>, AllocError> {
        self.check_running();
        let cell = self.mutator().cell_of_shape::<OfPairs>(len, 2 * WORD)?;
        // SAFETY: a new cell with room for the length and the pairs, which are null; nobody else
        // knows it.
        unsafe {
            cell.write(len);
            self.try_hold_cell(cell.cast())
        }
    }
}

made_by_the_heap!([K: Trace, V: Trace] Ephemeron<K, V>, [K: Trace, V: Trace] Pairs<K, V>);
