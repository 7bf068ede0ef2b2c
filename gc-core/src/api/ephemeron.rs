//! Ephemerons, and maps with weak keys: a value lives as long as its key.
//!
//! ```text
//! Ephemeron<K, V>   [ 1 | key | value ]
//! Pairs<K, V>       [ n | key | value | key | value | ... ]      a map's table
//! WeakMap<K, V>     a struct: a field to its pairs
//! ```
//! A map whose words are weak or strong cannot hold a value that leads back to its key: a strong
//! value would keep the key alive for ever, and a weak value would die at once. An ephemeron's
//! value is followed only after its key has been reached in another way (Hayes 1997).
//!
//! A map's table is an open-addressing hash table with linear probing. Its hash is the address of a
//! cell, which never changes, since cells do not move.

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

/// The key of a pair that was removed, or whose key died. It is not null, so that a search
/// continues behind it.
const GONE: usize = 1;

struct OfPairs;
impl Shape for OfPairs {
    fn kind() -> Kind {
        Kind::ephemeron("pairs", 1, Encoding::RAW, GONE)
    }
}

/// A key and a value. The value lives while the key and the ephemeron live. The ephemeron does not
/// keep its key alive. It is a cell, which a [`Field`] or a [`Root`](crate::Root) holds like any
/// other. [`Scope::alloc_ephemeron`] makes one.
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
    /// The key, as a handle of `scope`; `None` after it has died or was removed.
    ///
    /// # Panics
    /// If this cell does not lie in the scope's heap, if the system has no memory for another
    /// handle, and inside `blocking`.
    #[track_caller]
    pub fn key<'s>(&self, scope: &Scope<'s>) -> Option<Local<'s, K>> {
        self.pairs.key(0, scope)
    }

    /// The value, as a handle of `scope`; `None` after the key has died or was removed.
    ///
    /// # Panics
    /// As [`key`](Self::key).
    #[track_caller]
    pub fn value<'s>(&self, scope: &Scope<'s>) -> Option<Local<'s, V>> {
        self.pairs.value(0, scope)
    }

    /// Replaces the value. Does nothing if the key has died or was removed.
    ///
    /// # Panics
    /// As [`key`](Self::key), and if the value does not lie in the scope's heap.
    #[track_caller]
    pub fn set_value(&self, scope: &Scope<'_>, value: &Local<'_, V>) {
        if let Some(key) = self.key(scope) {
            self.pairs.set_value(0, scope, &key, value);
        }
    }

    /// Removes key and value. If another thread calls [`set_value`](Self::set_value) at the same
    /// time, its value is removed as well, or is not stored.
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

/// A table of pairs, which is part of a map or an ephemeron.
#[repr(C)]
pub struct Pairs<K, V> {
    len: usize,
    /// Invariant in `K` and `V`, since `&self` changes the words.
    _pairs: PhantomData<*mut (K, V)>,
}

// SAFETY: the words are atomic, and threads may share the targets.
unsafe impl<K: Send + Sync, V: Send + Sync> Send for Pairs<K, V> {}
// SAFETY: as above.
unsafe impl<K: Send + Sync, V: Send + Sync> Sync for Pairs<K, V> {}

/// The result of a search for a key.
enum Place {
    /// The key is in this pair.
    Found(usize),
    /// The key is not there, and this pair is free for it.
    Free(usize),
    /// The key is not there, and no pair is free.
    Full,
}

impl<K, V> Pairs<K, V> {
    #[inline]
    fn pairs(&self) -> &[[AtomicUsize; 2]] {
        let first = (&raw const *self).expose_provenance() + WORD;
        // SAFETY: `Pairs` exist in the heap only, in a cell with room for `len` pairs after the
        // length. The cell's address is exposed.
        unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(first), self.len) }
    }

    /// Makes a handle of a word's target.
    ///
    /// # Safety
    /// The word holds null, `GONE`, or a cell with a `T`.
    #[inline]
    #[track_caller]
    unsafe fn load<'s, T>(word: &AtomicUsize, scope: &Scope<'s>) -> Option<Local<'s, T>> {
        scope.check_address(word.as_ptr() as usize, "pair");
        scope.check_running();
        // SAFETY: a word of a live ephemeron cell of this heap. The weak load makes its target
        // strong, so this thread need not hold the key.
        let load = || {
            // SAFETY: as above.
            let target = unsafe { scope.mutator().load_weak_word(word.as_ptr()) };
            NonNull::new(core::ptr::with_exposed_provenance_mut(target))
                .filter(|target: &NonNull<T>| target.as_ptr() as usize != GONE)
        };
        // SAFETY: the word is neither null nor `GONE`, so its target is alive; the caller promises
        // that it is a `T`.
        scope.hold_loaded(load, |target| unsafe { scope.hold_cell(target) })
    }

    #[inline]
    #[track_caller]
    fn key<'s>(&self, at: usize, scope: &Scope<'s>) -> Option<Local<'s, K>> {
        // SAFETY: only `enter` stores keys.
        unsafe { Self::load(&self.pairs()[at][0], scope) }
    }

    #[inline]
    #[track_caller]
    fn value<'s>(&self, at: usize, scope: &Scope<'s>) -> Option<Local<'s, V>> {
        // SAFETY: only `enter` and `set_value` store values.
        unsafe { Self::load(&self.pairs()[at][1], scope) }
    }

    /// The address of a pair's first word, checked for a change.
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
        // SAFETY: a pair of a live cell of this heap; handles of the caller hold the key and the
        // value.
        unsafe { scope.mutator().write_pair(self.pair(at, scope), key, value) };
    }

    /// Copies a pair to a null pair of a new table. No handle need hold its key and value.
    #[track_caller]
    fn copy(&self, at: usize, scope: &Scope<'_>, from: &Self, from_at: usize) {
        let to = self.pairs()[at][0].as_ptr();
        let from = from.pairs()[from_at][0].as_ptr();
        scope.check_running();
        // SAFETY: both pairs lie in live cells of this heap and of one kind, and the pair at `to`
        // is null.
        unsafe { scope.mutator().copy_weak(to, from, 2) };
    }

    #[track_caller]
    fn remove(&self, at: usize, scope: &Scope<'_>) {
        // SAFETY: a pair of a live cell of this heap.
        unsafe { scope.mutator().remove_pair(self.pair(at, scope), GONE) };
    }

    /// Replaces the value of a key that the caller holds, if the pair still has that key.
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

    /// Finds the pair of a key that the caller holds, or a pair for it.
    fn find(&self, key: usize) -> Place {
        let pairs = self.pairs();
        let mask = pairs.len() - 1;
        let mut free = None;
        let mut at = hash(key);
        for _ in 0..pairs.len() {
            at &= mask;
            // Relaxed: the key is compared, not followed.
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

/// A multiplicative hash of the cell's granule: the cells of one size class lie a fixed distance
/// apart, and would share few places without the multiplication.
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

/// A map from cells to cells; keys are compared by identity. The map keeps no key alive, and a
/// value only while its key lives, even if the value leads back to the key. When a key dies, its
/// pair is removed.
///
/// The map is a struct: allocate it by [`Scope::alloc`], or make it a member of a struct that
/// derives [`Trace`](derive@crate::Trace).
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
/// One thread at a time may use the map, as with Java's `WeakHashMap`. Threads that share it need a
/// lock. Without a lock an entry may be lost, or be found under another key, but nothing dangles.
pub struct WeakMap<K, V> {
    pairs: Field<Pairs<K, V>>,
    /// Pairs whose key is not null: those of live keys, and those that are `GONE`.
    used: AtomicUsize,
}

// SAFETY: the field is at the offset that is given, and the other member is no edge.
unsafe impl<K: Trace, V: Trace> Trace for WeakMap<K, V> {
    fn edges(edge: &mut impl FnMut(usize)) {
        edge(core::mem::offset_of!(Self, pairs));
    }
}

/// Number of pairs of a map's first table.
const FIRST: usize = 8;

impl<K: Trace, V: Trace> WeakMap<K, V> {
    /// An empty map, for [`Scope::alloc`] or a struct.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            pairs: Field::null(),
            used: AtomicUsize::new(0),
        }
    }

    /// The value of `key`, as a handle of `scope`.
    ///
    /// # Panics
    /// If the map or the key does not lie in the scope's heap, if the system has no memory for
    /// another handle, and inside `blocking`.
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

    /// Sets the value of `key`. Returns whether the map had no value for `key`.
    ///
    /// # Errors
    /// [`AllocError`]: the table had to grow, and the heap has no room. The map is unchanged.
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
                    // Relaxed: one thread at a time changes the count.
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

    /// Removes the pair of `key`. Returns whether the map had one.
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

    /// Removes all pairs.
    ///
    /// # Panics
    /// If the map does not lie in the scope's heap, and inside `blocking`.
    #[track_caller]
    pub fn clear(&self, scope: &Scope<'_>) {
        self.pairs.clear(scope);
        self.used.store(0, Ordering::Relaxed);
    }

    /// Calls `f` with each live key and its value, in any order.
    ///
    /// # Panics
    /// As [`get`](Self::get).
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

    /// The number of pairs, without those of keys that a collection found dead. It reads the whole
    /// table.
    ///
    /// # Panics
    /// As [`get`](Self::get).
    #[track_caller]
    pub fn len(&self, scope: &Scope<'_>) -> usize {
        self.pairs.get(scope).map_or(0, |pairs| pairs.alive())
    }

    /// Whether [`len`](Self::len) is 0.
    ///
    /// # Panics
    /// As [`get`](Self::get).
    #[track_caller]
    pub fn is_empty(&self, scope: &Scope<'_>) -> bool {
        self.len(scope) == 0
    }

    /// Copies all pairs to a new table, whose size fits the number of live keys.
    #[cold]
    #[track_caller]
    fn rebuilt<'s>(&self, scope: &Scope<'s>) -> Result<Local<'s, Pairs<K, V>>, AllocError> {
        let old = self.pairs.get(scope);
        let alive = old.map_or(0, |old| old.alive());
        let new = scope.alloc_pairs::<K, V>(((alive + 1) * 2).next_power_of_two().max(FIRST))?;
        let mut used = 0;
        if let Some(old) = old {
            for at in 0..old.len {
                // Relaxed: the key is hashed, not followed. If the collector clears the pair
                // meanwhile, the copy is a removed pair.
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
        // Relaxed: the keys are counted, not followed.
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
    /// Makes an ephemeron: `value` lives while `key` and the ephemeron live.
    ///
    /// # Errors
    /// [`AllocError`]: as for [`alloc`](Self::alloc).
    ///
    /// # Panics
    /// If the key or the value does not lie in this scope's heap, and inside `blocking`.
    #[track_caller]
    pub fn alloc_ephemeron<K: Trace, V: Trace>(
        &self,
        key: &Local<'_, K>,
        value: &Local<'_, V>,
    ) -> Result<Local<'s, Ephemeron<K, V>>, AllocError> {
        let pairs = self.alloc_pairs::<K, V>(1)?;
        pairs.enter(0, self, key, value);
        // SAFETY: a live cell of this heap, with the layout of an ephemeron.
        unsafe { self.try_hold_cell(pairs.cell().cast()) }
    }

    /// Makes a table of `len` null pairs.
    #[track_caller]
    fn alloc_pairs<K, V>(&self, len: usize) -> Result<Local<'s, Pairs<K, V>>, AllocError> {
        self.check_running();
        let cell = self.mutator().cell_of_shape::<OfPairs>(len, 2 * WORD)?;
        // SAFETY: a new cell with room for the length and the pairs, which are null. No other code
        // has the cell.
        unsafe {
            cell.write(len);
            self.try_hold_cell(cell.cast())
        }
    }
}

made_by_the_heap!([K: Trace, V: Trace] Ephemeron<K, V>, [K: Trace, V: Trace] Pairs<K, V>);
