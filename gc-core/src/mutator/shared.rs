//! The part of a heap that its mutators and its collector share: its memory, its roots, its logs,
//! and the flags that a collection sets.

use core::any::TypeId;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use gc_preempt::World;

use crate::dying::Dying;
use crate::encoding::Encodings;
use crate::error::{AllocError, SiteError};
use crate::fault::protected;
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

/// The part of a heap that its mutators and its collector share.
pub(crate) struct Shared {
    pub(crate) space: Space,
    /// The encodings of the heap's edges.
    pub(crate) encodings: Encodings,
    pub(crate) world: World,
    pub(crate) queue: MarkQueue,
    /// Weak cells and ephemerons that markers find.
    pub(crate) weak: WeakWork,
    pub(crate) log: SharedLog,
    pub(crate) roots: Roots,
    /// Whether stacks and registers are roots.
    pub(crate) stacks: Stacks,
    pub(crate) finalizers: Finalizers,
    /// The registrations of values that need `Drop`, and the queue of those that died.
    pub(crate) drops: Finalizers,
    /// Values whose `Drop` runs at the moment.
    pub(crate) dying: Dying,
    /// The Rust types that have cells in this heap.
    pub(crate) types: Types,
    /// The records of all mutators. Used inside `no_preempt`, or by the collector outside of stops.
    pub(crate) contexts: gc_preempt::Mutex<Slab<Attached>>,
    /// The verifier, if the heap has one.
    pub(crate) verify: Option<Verify>,
    /// The collector's mode: whether stores are logged, and whether the dead cells are decided (see
    /// `weak/`). Changes in stops only. Each mutator has a copy in its record, so that the barrier
    /// tests it by one compare.
    pub(crate) marking: AtomicU32,
    /// The number of the last scan of the roots, from 1 on. Changes in stops.
    pub(crate) scan: AtomicU64,
    /// Suspended stacks that their resumers have scanned since it was last taken.
    pub(crate) stacks_resumed: AtomicU32,
    /// Set while mutators run and the collector decides by the marks which words it clears and
    /// which cells it queues: marks must not change.
    pub(crate) clearing: AtomicBool,
}

/// A mutator's record and its thread. `mutator/record.rs` has its methods.
pub(crate) struct Attached {
    /// `pthread_self` of its thread.
    pub(crate) owner: usize,
    /// The record, a `Context`.
    pub(super) record: *const (),
}

// SAFETY: a record is read under the lock of the heap's records, or in the child of a fork by the
// only thread. The fields that are read are atomic, or the record's owner is stopped.
unsafe impl Send for Attached {}

impl Shared {
    /// Removes or changes a root: see [`Roots`]. Inside `no_preempt`, or by a thread that is no
    /// mutator.
    pub(crate) fn change_root(&self, slot: usize, to: Option<usize>) {
        self.roots.change(slot, to, |word| {
            if seam::logs_roots() && !self.log.append(&[word]) {
                // As in `Context::flush_log`. Not all roots of the snapshot have been scanned, so
                // marking is not over.
                let mut marker = Marker::new(&self.space, &self.queue, &self.weak);
                roots::logged(&self.space, &self.encodings, &mut marker, word);
                self.log.overflow(marker.marked());
            }
        });
    }

    /// See [`clearing`](Self::clearing).
    pub(crate) fn is_clearing(&self) -> bool {
        // Relaxed: a thread that reads an old value waits a moment longer, or marks a moment later.
        self.clearing.load(Ordering::Relaxed)
    }

    /// Adds a kind of cells.
    pub(crate) fn add_kind(&self, kind: Kind) -> Result<KindId, KindError> {
        for encoding in kind.encodings() {
            self.encodings
                .number(*encoding)
                .ok_or(KindError::TooManyEncodings)?;
        }
        self.space.add_kind(kind)
    }

    /// The site of cells of `bytes` bytes of `kind`.
    pub(crate) fn site_of(&self, kind: KindId, bytes: usize) -> Result<Site, SiteError> {
        protected(|| self.space.site(kind, bytes))
    }

    /// The type's entry, which is made if there is none. `kind` describes the type's cells; `bytes`
    /// is their size (0: they have several sizes, and no site).
    ///
    /// Two threads that look up a new type, or a new layout, at the same time may both describe it.
    /// The type gets the kind that is entered first.
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

    /// The kind of cells that `kind` describes. If the kind may be shared, this is the kind of the
    /// other types of this layout.
    fn type_kind(&self, sharing: Sharing, kind: Kind) -> Result<KindId, AllocError> {
        let layout = match sharing {
            Sharing::Shared if self.verify.is_none() && seam::shares_kinds() => kind.layout(),
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

mod seam {
    use crate::fault::Fault;

    pub(super) fn logs_roots() -> bool {
        !Fault::RootsUnlogged.planted()
    }

    pub(super) fn shares_kinds() -> bool {
        !Fault::KindAType.planted()
    }
}
