//! A heap, as its mutators and its collector share it: its memory, its roots, its logs, and the
//! flags that a collection sets.

use core::any::TypeId;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use gc_preempt::World;

use crate::dying::Dying;
use crate::encoding::Encodings;
use crate::error::{AllocError, SiteError};
use crate::fault::{Fault, planted, protected};
use crate::finalize::Finalizers;
use crate::heap::Site;
use crate::heap::Space;
use crate::kind::{Kind, KindError, KindId};
use crate::mark::{MarkQueue, Marker};
use crate::memory::tables::Slab;
use crate::mutator::types::{NO_SITE, Sharing, TypeInfo, Types, has_site};
use crate::roots::{self, Roots};
use crate::satb_log::SharedLog;
use crate::stacks::Stacks;
use crate::verify::Verify;
use crate::weak::WeakWork;

/// A heap, as its mutators and its collector share it.
pub(crate) struct Shared {
    pub(crate) space: Space,
    /// How edges are encoded here.
    pub(crate) encodings: Encodings,
    pub(crate) world: World,
    pub(crate) queue: MarkQueue,
    /// Weak cells and ephemerons that markers meet.
    pub(crate) weak: WeakWork,
    pub(crate) log: SharedLog,
    pub(crate) roots: Roots,
    /// Whether stacks and registers are roots.
    pub(crate) stacks: Stacks,
    pub(crate) finalizers: Finalizers,
    /// Values that need `Drop`: whose cells they lie in, and which of them have died.
    pub(crate) drops: Finalizers,
    /// Values whose `Drop` runs.
    pub(crate) dying: Dying,
    /// The Rust types that have cells here.
    pub(crate) types: Types,
    /// The records of all mutators. Changed inside `no_preempt`.
    pub(crate) contexts: gc_preempt::Mutex<Slab<Attached>>,
    /// The second marking, if it was asked for.
    pub(crate) verify: Option<Verify>,
    /// Whether mutators' stores are logged, and whether what is dead has been decided: see `weak/`.
    /// Changes in stops only. Each mutator has a copy in its record, so that a unit's test is one
    /// compare.
    pub(crate) marking: AtomicU32,
    /// The number of the last scan of the roots, from 1 on. Changes in stops.
    pub(crate) scan: AtomicU64,
    /// Marks must not change: while mutators run, it is being decided by them what is cleared and
    /// queued.
    pub(crate) clearing: AtomicBool,
}

/// A mutator's record and its thread. `mutator/record.rs` has its methods.
pub(crate) struct Attached {
    /// `pthread_self` of its thread.
    pub(crate) owner: usize,
    /// The record, a `Context`.
    pub(super) record: *const (),
}

// SAFETY: the record is read under the lock of the heap's records, or in the child of a fork by the
// thread that is left; what is read of it is atomic, or its owner is stopped.
unsafe impl Send for Attached {}

impl Shared {
    /// Removes or changes a root: see [`Roots`]. Inside `no_preempt`, or by a thread that is no
    /// mutator.
    pub(crate) fn change_root(&self, slot: usize, to: Option<usize>) {
        self.roots.change(slot, to, |word| {
            if !planted(Fault::RootsUnlogged) && !self.log.append(&[word]) {
                // As in `Context::flush_log`. The snapshot of the roots is not read to its end, so
                // marking is not over.
                let mut marker = Marker::new(&self.space, &self.queue, &self.weak);
                roots::logged(&self.space, &self.encodings, &mut marker, word);
                self.log.overflow(marker.marked());
            }
        });
    }

    /// See [`clearing`](Self::clearing).
    pub(crate) fn is_clearing(&self) -> bool {
        // Relaxed: a thread that sees it late waits a moment longer, or marks a moment later.
        self.clearing.load(Ordering::Relaxed)
    }

    /// Adds a kind of cells.
    pub(crate) fn add_kind(&self, kind: Kind) -> Result<KindId, KindError> {
        for encoding in kind.encodings() {
            self.encodings.number(*encoding).ok_or(KindError::TooMany)?;
        }
        self.space.add_kind(kind)
    }

    /// The site of cells of `bytes` bytes of `kind`.
    pub(crate) fn site_of(&self, kind: KindId, bytes: usize) -> Result<Site, SiteError> {
        protected(|| self.space.site(kind, bytes))
    }

    /// The type's entry, made if there is none. `kind` describes its cells; `bytes` is their size
    /// (0: of all sorts, and no site).
    ///
    /// Two threads that meet a type, or a layout, for the first time at once may both describe it;
    /// the first one's kind is the type's.
    pub(crate) fn type_info(
        &self,
        id: TypeId,
        bytes: usize,
        sharing: Sharing,
        kind: impl FnOnce() -> Kind,
    ) -> Result<TypeInfo, AllocError> {
        if let Some(info) = protected(|| self.types.find(id, None)) {
            return Ok(info);
        }
        let kind = self.type_kind(sharing, kind())?;
        let site = if bytes != 0 && has_site(bytes) {
            self.site_of(kind, bytes).map_err(AllocError::Site)?
        } else {
            NO_SITE
        };
        protected(|| self.types.find(id, Some(TypeInfo { kind, site })))
            .ok_or(AllocError::Kind(KindError::TooMany))
    }

    /// The kind of cells that `kind` describes: that of another type of this layout, if it may be
    /// shared, or a new one.
    fn type_kind(&self, sharing: Sharing, kind: Kind) -> Result<KindId, AllocError> {
        let layout = match sharing {
            Sharing::Shared if self.verify.is_none() && !planted(Fault::KindAType) => kind.layout(),
            _ => None,
        };
        let Some(layout) = layout.map(<[u64]>::to_vec) else {
            return self.add_kind(kind).map_err(AllocError::Kind);
        };
        let find = |new| protected(|| self.types.find_shared(&self.space.kinds, &layout, new));
        if let Some(known) = find(None) {
            return Ok(known);
        }
        let new = self.add_kind(kind).map_err(AllocError::Kind)?;
        find(Some(new)).ok_or(AllocError::Kind(KindError::TooMany))
    }
}
