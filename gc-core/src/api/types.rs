//! Which kind and site a Rust type has in a heap: made at the type's first allocation, then found in a few instructions.
//!
//! A heap has one table, under a lock; each mutator has a small cache of it that only its thread touches. A cache line's place and its
//! comparison come from the type's `TypeId`, which is a constant, so a hit is two compares and a load.

use core::any::{TypeId, type_name};
use core::cell::Cell;
use core::hash::{Hash, Hasher};
use std::collections::HashMap;

use bitvec::prelude::{BitVec, Lsb0};

use crate::alloc::{AllocError, Site};
use crate::api::root::protected;
use crate::api::trace::Trace;
use crate::encoding::Encoding;
use crate::heap::{MAX_SMALL, Space};
use crate::kind::{Kind, KindError, KindId};
use gc_preempt::Mutex;

/// A type's kind and, where its cells are small, its site.
#[derive(Clone, Copy)]
pub(crate) struct TypeInfo {
    pub(crate) kind: KindId,
    /// Means nothing for types larger than [`MAX_SMALL`].
    pub(crate) site: Site,
}

const NO_SITE: Site = Site { index: 0, size: 0 };

/// A heap's types.
pub(crate) struct Types(Mutex<HashMap<TypeId, TypeInfo>>);

impl Types {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    /// Takes the lock, for a fork.
    pub(crate) fn lock_for_fork(&self) -> impl Sized + '_ {
        self.0.lock()
    }

    /// The type's entry. `add` makes it a kind if it has none; `bytes` is its size (0: it has sizes of all sorts, and no site).
    pub(crate) fn get(
        &self,
        id: TypeId,
        space: &Space,
        bytes: usize,
        add: &dyn Fn() -> Result<KindId, KindError>,
    ) -> Result<TypeInfo, AllocError> {
        protected(|| {
            let mut types = self.0.lock();
            if let Some(info) = types.get(&id) {
                return Ok(*info);
            }
            let kind = add().map_err(AllocError::Kind)?;
            let site = if bytes == 0 || bytes > MAX_SMALL {
                NO_SITE
            } else {
                space.site(kind, bytes).map_err(AllocError::Site)?
            };
            let info = TypeInfo { kind, site };
            types.insert(id, info);
            Ok(info)
        })
    }
}

/// The kind of a type's cells: by its edges at fixed offsets, a leaf if it has none, or by its own function.
pub(crate) fn kind_of<T: Trace>() -> Kind {
    if let Some(trace) = T::TRACE {
        // SAFETY: an implementer of `Trace` answers for its function.
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
        Kind::words(type_name::<T>(), slots, Encoding::RAW)
    }
}

/// Lines of a cache: an interpreter allocates a few dozen types, and 3 KiB a thread is cheap.
const LINES: usize = 64;

#[derive(Clone, Copy)]
struct Line {
    id: TypeId,
    info: TypeInfo,
}

/// What one mutator remembers of its heap's types.
pub(crate) struct TypeCache([Cell<Line>; LINES]);

impl TypeCache {
    pub(crate) fn new() -> Self {
        /// Is never asked for, so an empty line never answers.
        struct Nothing;
        let empty = Line {
            id: TypeId::of::<Nothing>(),
            info: TypeInfo {
                kind: KindId(0),
                site: NO_SITE,
            },
        };
        Self([(); LINES].map(|()| Cell::new(empty)))
    }

    #[inline(always)]
    pub(crate) fn get(&self, id: TypeId) -> Option<TypeInfo> {
        let line = self.0[line_of(id)].get();
        (line.id == id).then_some(line.info)
    }

    pub(crate) fn put(&self, id: TypeId, info: TypeInfo) {
        self.0[line_of(id)].set(Line { id, info });
    }
}

/// Folds to a constant where `id` is one.
#[inline(always)]
fn line_of(id: TypeId) -> usize {
    /// Keeps the bits that a `TypeId` hands over: they are a hash already.
    struct Bits(u64);
    impl Hasher for Bits {
        #[inline(always)]
        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
            }
        }
        #[inline(always)]
        fn write_u64(&mut self, bits: u64) {
            self.0 = bits;
        }
        #[inline(always)]
        fn finish(&self) -> u64 {
            self.0
        }
    }
    let mut bits = Bits(0);
    id.hash(&mut bits);
    bits.0 as usize % LINES
}
