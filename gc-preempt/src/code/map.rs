//! The map itself: classification and registration.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use super::guard::{CodeGuard, Dropped, Key, Mark};
use super::readers::{Readers, Reading};
use super::spec::{Checked, CodeError, CodeKind, CodeSpec, CodeWhat, FrameRule};
use crate::faults::count_step;
use crate::stackmap::StackMaps;

/// What the code map says of a PC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PcClass {
    Native,
    Managed,
    Unsafe,
    Restart { start: usize },
}

/// One registration.
pub(super) struct Region {
    pub(super) range: Range<usize>,
    pub(super) what: CodeWhat,
    pub(super) mark: Arc<Mark>,
    /// The last search in which a word pointed into the range.
    pub(super) named: Cell<u64>,
    #[expect(dead_code, reason = "held for its drop")]
    owner: Option<Box<dyn Any + Send>>,
}

impl Region {
    pub(super) fn counts_as_unsafe(&self) -> bool {
        self.what.kind() == CodeKind::Unsafe && self.mark.world != 0
    }
}

/// What the code map says of managed code.
pub(crate) struct Managed<'a> {
    pub(crate) frames: FrameRule,
    pub(crate) maps: &'a StackMaps,
    pub(crate) encoding: u32,
}

/// A region's first address. With the feature `faults` its comparisons are counted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Start(pub(super) usize);

impl Ord for Start {
    #[inline]
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        count_step();
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for Start {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Disjoint regions by their first address.
pub(super) type Regions = BTreeMap<Start, Region>;

/// The region that begins last of those that begin below `end`.
fn last_below(regions: &Regions, end: usize) -> Option<&Region> {
    if seam::searches_every_region() {
        let below = regions.iter().filter(|(start, _)| **start < Start(end));
        return below.last().map(|(_, region)| region);
    }
    regions
        .range(..Start(end))
        .next_back()
        .map(|(_, region)| region)
}

/// The region that an address lies in.
fn at(regions: &Regions, pc: usize) -> Option<&Region> {
    let (_, region) = regions.range(..=Start(pc)).next_back()?;
    (pc < region.range.end).then_some(region)
}

/// The code of one world.
#[derive(Default)]
pub(super) struct Owned {
    /// Its regions.
    pub(super) count: usize,
    /// The world is gone, and no thread runs its code: it is removed without a stop.
    pub(super) gone: AtomicBool,
    /// Its regions whose guards are dropped.
    pub(super) leaving: Vec<Arc<Mark>>,
    /// From the first address of these regions to the last.
    pub(super) hull: Range<usize>,
}

/// All registered code.
pub(super) struct Registered {
    pub(super) managed: Regions,
    /// Unsafe and restart ranges. Each lies wholly inside of one managed region, or wholly outside
    /// of all.
    pub(super) inner: Regions,
    pub(super) worlds: BTreeMap<u64, Owned>,
    /// Regions of worlds that are gone and whose guards are dropped.
    pub(super) orphans: Vec<Arc<Mark>>,
    /// The number of searches so far (`CodeMap::reap`).
    pub(super) searches: Cell<u64>,
    /// The world of the last search, until the regions that it found unused are unlinked.
    pub(super) searched: Cell<Option<u64>>,
    /// `sweep` has to look for worlds that are gone.
    pub(super) more_gone: AtomicBool,
}

impl Registered {
    pub(super) fn regions(&mut self, key: Key) -> &mut Regions {
        if key.managed {
            &mut self.managed
        } else {
            &mut self.inner
        }
    }

    /// A region that a new one of that kind must not overlap so.
    fn in_the_way(&self, range: &Range<usize>, kind: CodeKind) -> Option<&Region> {
        let overlaps = |other: &&Region| other.range.end > range.start;
        let within = |inner: &Range<usize>, outer: &Range<usize>| {
            outer.start <= inner.start && inner.end <= outer.end
        };
        let (same, other) = match kind {
            CodeKind::Managed => (&self.managed, &self.inner),
            CodeKind::Unsafe | CodeKind::Restart => (&self.inner, &self.managed),
        };
        // Regions of a map are disjoint: if any overlaps, the last that begins below the end does.
        let twin = last_below(same, range.end).filter(overlaps);
        twin.or_else(|| match kind {
            // Regions that overlap lie inside, except perhaps the first and the last.
            CodeKind::Managed => [range.start, range.end]
                .into_iter()
                .filter_map(|end| last_below(other, end).filter(overlaps))
                .find(|inner| !within(&inner.range, range)),
            CodeKind::Unsafe | CodeKind::Restart => {
                let outer = last_below(other, range.end).filter(overlaps);
                outer.filter(|outer| !within(range, &outer.range))
            }
        })
    }
}

/// The map. The process has one, [`CODE`]; tests make others.
pub(crate) struct CodeMap {
    /// Changed under the registry lock only.
    pub(super) registered: UnsafeCell<Registered>,
    pub(super) dropped: Dropped,
    /// The number of unsafe ranges without Urge's own trampoline. A handler of the host that has
    /// interrupted the trampoline may be stopped, since all references are on the stack.
    pub(super) unsafe_ranges: AtomicUsize,
    pub(super) readers: Readers,
}

// SAFETY: `registered` is touched only by functions whose contract keeps it from changing meanwhile
// (see the head of this file). The cells in it are touched by `register`, `reap` and `sweep` alone,
// whose contract is to hold the registry lock.
unsafe impl Sync for CodeMap {}

/// The process's code map.
pub(crate) static CODE: CodeMap = CodeMap::new();

impl CodeMap {
    pub(crate) const fn new() -> Self {
        let registered = Registered {
            managed: BTreeMap::new(),
            inner: BTreeMap::new(),
            worlds: BTreeMap::new(),
            orphans: Vec::new(),
            searches: Cell::new(0),
            searched: Cell::new(None),
            more_gone: AtomicBool::new(false),
        };
        Self {
            registered: UnsafeCell::new(registered),
            dropped: Dropped(AtomicPtr::new(ptr::null_mut())),
            unsafe_ranges: AtomicUsize::new(0),
            readers: Readers::new(),
        }
    }

    /// A map for one test or one input of a fuzzer. It is leaked, since guards keep a reference to
    /// their map.
    #[cfg(any(test, feature = "faults"))]
    pub(crate) fn leaked() -> &'static Self {
        Box::leak(Box::new(Self::new()))
    }

    /// Keeps the map as it is for a thread that no stop asks for. `None`: it changes just now.
    /// Async-signal-safe.
    pub(crate) fn read(&self) -> Option<Reading<'_>> {
        self.readers.read()
    }

    /// In the child of a fork: forgets the readers among the parent's threads.
    pub(crate) fn forget_readers(&self) {
        self.readers.forget();
    }

    /// The kind of code at `pc`. Async-signal-safe: only reads memory.
    ///
    /// # Safety
    /// Under the registry lock; or while a stop asks for the calling thread, which has not
    /// acknowledged; or while a [`Reading`] lives.
    pub(crate) unsafe fn classify(&self, pc: usize) -> PcClass {
        // SAFETY: nothing changes while the caller's contract holds.
        let registered = unsafe { &*self.registered.get() };
        // An unsafe or restart range takes precedence over the managed code around it. A thread at
        // the first instruction of a restart range need not be moved.
        if let Some(inner) = at(&registered.inner, pc) {
            let start = inner.range.start;
            match inner.what {
                CodeWhat::Restart if pc > start => return PcClass::Restart { start },
                CodeWhat::Restart | CodeWhat::Managed { .. } => {}
                CodeWhat::Unsafe => return PcClass::Unsafe,
            }
        }
        at(&registered.managed, pc).map_or(PcClass::Native, |_| PcClass::Managed)
    }

    /// The managed code at `pc`, also if `pc` lies in an unsafe or restart range inside of it.
    ///
    /// # Safety
    /// Under the registry lock, which a stopper holds, or while a [`Reading`] lives. The result is
    /// valid as long.
    pub(crate) unsafe fn managed(&self, pc: usize) -> Option<Managed<'_>> {
        // SAFETY: nothing changes while the caller's contract holds.
        let registered = unsafe { &*self.registered.get() };
        match &at(&registered.managed, pc)?.what {
            CodeWhat::Managed {
                frames,
                maps,
                encoding,
            } => Some(Managed {
                frames: *frames,
                maps,
                encoding: *encoding,
            }),
            _ => None,
        }
    }

    /// Is an unsafe range registered other than Urge's own?
    pub(crate) fn any_unsafe(&self) -> bool {
        self.unsafe_ranges.load(Ordering::Relaxed) != 0
    }

    /// Adds a range of code for the world of that number.
    ///
    /// # Safety
    /// Under the registry lock, with no stop under way.
    pub(crate) unsafe fn register(
        &'static self,
        world: u64,
        Checked(CodeSpec { range, what, owner }): Checked,
    ) -> Result<CodeGuard, CodeError> {
        let _changing = self.readers.change();
        // SAFETY: the registry lock is held, so no other thread accesses it.
        let registered = unsafe { &mut *self.registered.get() };
        let kind = what.kind();
        if let Some(other) = registered.in_the_way(&range, kind) {
            return Err(CodeError::Overlap {
                range,
                kind,
                other: other.range.clone(),
                other_kind: other.what.kind(),
                leaving: other.mark.leaving.load(Ordering::Relaxed),
            });
        }
        let key = Key {
            managed: kind == CodeKind::Managed,
            start: range.start,
        };
        let mark = Arc::new(Mark {
            leaving: AtomicBool::new(false),
            next: AtomicPtr::new(ptr::null_mut()),
            world,
            key,
        });
        let region = Region {
            range: range.clone(),
            what,
            mark: mark.clone(),
            named: Cell::new(0),
            owner,
        };
        if region.counts_as_unsafe() {
            // Relaxed: read by threads that answer a later stop, which takes the registry lock
            // first.
            self.unsafe_ranges.fetch_add(1, Ordering::Relaxed);
        }
        registered.regions(key).insert(Start(range.start), region);
        registered.worlds.entry(world).or_default().count += 1;
        Ok(CodeGuard {
            mark: Some(mark),
            dropped: &self.dropped,
            range,
        })
    }
}

/// What tests may break here.
mod seam {
    use crate::faults::Fault;

    pub(super) fn searches_every_region() -> bool {
        Fault::LinearCode.planted()
    }
}
