//! The process's code map: which ranges of addresses hold managed code, and where inside or outside of it a thread must not be stopped.
//!
//! The signal handler asks it about one PC (`CodeMap::classify`), the walker about each return address. Both are a binary search through a sorted table of
//! disjoint segments that never changes: whoever registers code builds another table and publishes it by one store.
//!
//! # Why an old table can be freed at once
//!
//! A table is replaced only under the registry lock, and a stop holds that lock from before its request is published until after its resume. The handler
//! classifies only when it has read that a stop is under way *and* that its own thread has not yet answered it. That stop cannot end before this thread
//! answers, so the lock is held, and the table stays, for as long as the handler reads it. A handler that runs late, after its stop, reads that there is nothing
//! to answer and never gets here. Go keeps old tables for ever, others count readers; here the stop itself is the grace period.
//!
//! # How code is removed
//!
//! Dropping a [`CodeGuard`] only sets a mark. The next stop of the code's world looks for a word on any of its stacks that points into the range
//! (`CodeMap::reap`, which neither allocates nor frees); what no word names is unlinked after the resume (`CodeMap::sweep`), and its owner is dropped after
//! the registry lock is released, since an owner's drop may do anything.

use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::ops::Range;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use crate::stackmap::StackMaps;

/// A range of code and what it is, as `World::register_code` takes it.
pub struct CodeSpec {
    /// The addresses that the code fills.
    pub range: Range<usize>,
    /// What the code is.
    pub what: CodeWhat,
    /// Whatever keeps the code mapped. It is dropped once the guard is gone and no stack returns into the range, on a thread that is not a mutator.
    pub owner: Option<Box<dyn Any + Send>>,
}

impl fmt::Debug for CodeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodeSpec")
            .field("range", &Hex(&self.range))
            .field("what", &self.what)
            .field("owner", &self.owner.is_some())
            .finish()
    }
}

/// What a range of code is.
#[derive(Debug)]
pub enum CodeWhat {
    /// Managed code: its outer frames are scanned by its stack maps.
    Managed {
        /// How its frames are laid out.
        frames: FrameRule,
        /// Its stack maps.
        maps: StackMaps,
        /// Handed to [`RootSink::exact`](crate::walk::RootSink::exact) with each slot; it means nothing here.
        encoding: u32,
    },
    /// A thread is never stopped at an instruction of this range; the stop is tried again a little later. It must be short and must not wait.
    ///
    /// Nor is it stopped in a signal handler that has interrupted this range. Only a walk of the stack finds that out, so while an unsafe range is registered, a
    /// thread that has any signal blocked takes as long to stop as its stack is deep (some 60 ns a frame). [`Restart`](Self::Restart) ranges cost no such time.
    Unsafe,
    /// A thread that is interrupted inside this range, at any instruction but its first, is moved back to the first. The range must be safe to begin again from
    /// everywhere in it: it keeps its inputs, and only its last instruction has an effect.
    Restart,
}

impl CodeWhat {
    fn kind(&self) -> Kind {
        match self {
            CodeWhat::Managed { .. } => Kind::Managed,
            CodeWhat::Unsafe => Kind::Unsafe,
            CodeWhat::Restart => Kind::Restart,
        }
    }
}

/// How the frames of managed code are laid out, which the code's compiler decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameRule {
    /// Cranelift's: a function begins with `push rbp; mov rbp, rsp`, ends with `pop rbp; ret`, and keeps RBP in between.
    Rbp,
    /// LLVM's: unwind tables, exact at every instruction (the attribute `uwtable`), in the `.eh_frame` of the loaded module or given with
    /// [`StackMaps::with_eh_frame`]. Where they are missing the stack is scanned conservatively from there on.
    Cfi,
}

/// The three kinds of code range, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// See [`CodeWhat::Managed`].
    Managed,
    /// See [`CodeWhat::Unsafe`].
    Unsafe,
    /// See [`CodeWhat::Restart`].
    Restart,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Managed => "managed code",
            Kind::Unsafe => "an unsafe range",
            Kind::Restart => "a restart range",
        })
    }
}

/// Why a range of code was not registered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodeError {
    /// The range holds no address.
    Empty {
        /// The range as it was given.
        range: Range<usize>,
    },
    /// The range shares addresses with one that is registered already.
    Overlap {
        /// The refused range.
        range: Range<usize>,
        /// What it was to be.
        kind: Kind,
        /// The range that is there.
        other: Range<usize>,
        /// What that one is.
        other_kind: Kind,
        /// Whether that one's guard was dropped, so that it goes with one of the next stops.
        leaving: bool,
    },
    /// A stack map describes code outside of the range.
    Outside {
        /// The range.
        range: Range<usize>,
        /// Where the stack map says that its function or return address lies.
        address: usize,
    },
    /// The calling thread has stopped a world, and has to resume it first.
    HoldsAStop,
}

impl fmt::Display for CodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CodeError::Empty { range } => write!(
                f,
                "the code range {} is empty; it must end above its start",
                Hex(range)
            ),
            CodeError::Overlap {
                range,
                kind,
                other,
                other_kind,
                leaving,
            } => {
                write!(
                    f,
                    "{kind} at {} overlaps {other_kind} registered at {}; ",
                    Hex(range),
                    Hex(other)
                )?;
                f.write_str(match (leaving, kind, other_kind) {
                    (true, ..) => "that code's guard was dropped, but it stays until a stop finds no stack that returns into it: keep the memory until its owner is dropped",
                    (_, Kind::Managed, Kind::Managed) => "each address belongs to one registration: register an arena once, or each function by itself",
                    (_, Kind::Managed, _) | (_, _, Kind::Managed) => "an unsafe or a restart range lies either wholly inside managed code or wholly outside",
                    _ => "unsafe and restart ranges do not share addresses",
                })
            }
            CodeError::Outside { range, address } => write!(
                f,
                "a stack map describes code at {address:#x}, outside of the code range {}; addresses are those of the code where it runs, after relocation",
                Hex(range)
            ),
            CodeError::HoldsAStop => f.write_str(crate::world::HOLDS_A_STOP),
        }
    }
}

impl std::error::Error for CodeError {}

/// A range of addresses as people write it.
pub(crate) struct Hex<'a>(pub(crate) &'a Range<usize>);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.0.start, self.0.end)
    }
}

impl fmt::Debug for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the handler must know of a PC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Native,
    Managed,
    Unsafe,
    Restart { start: usize },
}

/// Keeps a range of code registered. Dropping it begins the removal; see [`CodeSpec::owner`].
///
/// From the drop on no thread may *begin* to run the code: those inside may finish, and return through it.
#[derive(Debug)]
#[must_use = "dropping the guard removes the code at the next stop"]
pub struct CodeGuard {
    leaving: Arc<AtomicBool>,
    range: Range<usize>,
}

impl CodeGuard {
    /// The range that it guards.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }
}

impl Drop for CodeGuard {
    fn drop(&mut self) {
        // Release pairs with the Acquire in `reap` and `sweep`: whatever the owner of the guard did with the code comes before its removal.
        self.leaving.store(true, Ordering::Release);
        LEAVING.fetch_add(1, Ordering::Release);
    }
}

/// How many guards were dropped whose code is still there. Only a hint that `reap` has something to do.
static LEAVING: AtomicUsize = AtomicUsize::new(0);

/// How many unsafe ranges are registered, Urge's own trampoline aside: a stop behind a handler in that one is harmless, since all that it holds is on the stack.
static UNSAFE_RANGES: AtomicUsize = AtomicUsize::new(0);

/// One registration.
pub(crate) struct Region {
    pub(crate) range: Range<usize>,
    what: CodeWhat,
    world: u64,
    leaving: Arc<AtomicBool>,
    /// Set by `reap` while some word points into the range.
    named: AtomicBool,
    /// Nothing returns into it any more: the next `sweep` unlinks it.
    reaped: AtomicBool,
    /// Its world is gone, and with it everybody who could run it: the next `sweep` unlinks it once its guard is dropped.
    orphan: AtomicBool,
    owner: Option<Box<dyn Any + Send>>,
}

/// What the walker must know of a managed region.
pub(crate) struct Managed<'a> {
    pub(crate) frames: FrameRule,
    pub(crate) maps: &'a StackMaps,
    pub(crate) encoding: u32,
}

/// Code that was unlinked. Drop it after the registry lock is released: the owner's drop may do anything, also register code.
pub(crate) struct Removed(
    #[expect(dead_code, reason = "held for its drop")] Option<Box<dyn Any + Send>>,
);

#[derive(Clone, Copy)]
struct Segment {
    start: usize,
    end: usize,
    place: Place,
    /// The managed region that this lies in, or null.
    managed: *const Region,
}

/// The map. There is one in the process, [`CODE`]; tests make their own.
pub(crate) struct CodeMap {
    /// Sorted disjoint segments, or null for none.
    table: AtomicPtr<Box<[Segment]>>,
    /// Touched under the registry lock only. Boxed, since the table's segments point to regions.
    #[allow(
        clippy::vec_box,
        reason = "a region stays where it is when the list grows"
    )]
    regions: UnsafeCell<Vec<Box<Region>>>,
}

// SAFETY: `regions` is touched only by functions whose contract is to hold the registry lock, and what `table` points to is immutable while it can be read (see
// the head of this file).
unsafe impl Sync for CodeMap {}

/// The process's code map.
pub(crate) static CODE: CodeMap = CodeMap::new();

impl CodeMap {
    pub(crate) const fn new() -> Self {
        Self {
            table: AtomicPtr::new(ptr::null_mut()),
            regions: UnsafeCell::new(Vec::new()),
        }
    }

    /// What may be done to a thread that is interrupted at `pc`. Async-signal-safe: reads memory, nothing else.
    ///
    /// # Safety
    /// Only while a stop is under way that the calling thread has not answered, or under the registry lock.
    pub(crate) unsafe fn classify(&self, pc: usize) -> Place {
        // SAFETY: the caller's contract is `segment`'s.
        unsafe { self.segment(pc) }.map_or(Place::Native, |s| s.place)
    }

    /// The managed code at `pc`, also if `pc` lies in an unsafe or restart range inside of it.
    ///
    /// # Safety
    /// Under the registry lock, which whoever stopped the world holds; the result is good for as long.
    pub(crate) unsafe fn managed(&self, pc: usize) -> Option<Managed<'_>> {
        // SAFETY: the caller's contract is `segment`'s.
        let region = unsafe { self.segment(pc)?.managed.as_ref()? };
        match &region.what {
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

    /// Is there any unsafe range besides Urge's own?
    pub(crate) fn any_unsafe(&self) -> bool {
        UNSAFE_RANGES.load(Ordering::Relaxed) != 0
    }

    /// # Safety
    /// As for [`CodeMap::classify`].
    unsafe fn segment(&self, pc: usize) -> Option<Segment> {
        // Acquire pairs with the Release in `publish`: the table is whole before it can be found.
        let table = self.table.load(Ordering::Acquire);
        // SAFETY: null, or a table that was published and is not freed while the caller's contract holds.
        let table = unsafe { table.as_ref()? };
        let after = table.partition_point(|s| s.start <= pc);
        let segment = table[..after].last()?;
        (pc < segment.end).then_some(*segment)
    }

    /// Adds a range of code for the world of that number.
    ///
    /// # Safety
    /// Under the registry lock.
    pub(crate) unsafe fn register(
        &self,
        world: u64,
        spec: CodeSpec,
    ) -> Result<CodeGuard, CodeError> {
        let CodeSpec { range, what, owner } = spec;
        if range.is_empty() {
            return Err(CodeError::Empty { range });
        }
        // SAFETY: the registry lock is held, so nobody else touches the list.
        let regions = unsafe { &mut *self.regions.get() };
        let kind = what.kind();
        for other in regions.iter() {
            if range.end <= other.range.start || other.range.end <= range.start {
                continue;
            }
            let within = |inner: &Range<usize>, outer: &Range<usize>| {
                outer.start <= inner.start && inner.end <= outer.end
            };
            let nested = match (kind, other.what.kind()) {
                (Kind::Managed, Kind::Unsafe | Kind::Restart) => within(&other.range, &range),
                (Kind::Unsafe | Kind::Restart, Kind::Managed) => within(&range, &other.range),
                _ => false,
            };
            if !nested {
                return Err(CodeError::Overlap {
                    range,
                    kind,
                    other: other.range.clone(),
                    other_kind: other.what.kind(),
                    leaving: other.leaving.load(Ordering::Relaxed),
                });
            }
        }
        if let CodeWhat::Managed { maps, .. } = &what
            && let Some(address) = maps.outside(&range)
        {
            return Err(CodeError::Outside { range, address });
        }
        let leaving = Arc::new(AtomicBool::new(false));
        if kind == Kind::Unsafe && world != 0 {
            // Relaxed: read by threads that answer a later stop, which takes the registry lock first.
            UNSAFE_RANGES.fetch_add(1, Ordering::Relaxed);
        }
        regions.push(Box::new(Region {
            range: range.clone(),
            what,
            world,
            leaving: leaving.clone(),
            named: AtomicBool::new(false),
            reaped: AtomicBool::new(false),
            orphan: AtomicBool::new(false),
            owner,
        }));
        self.publish(regions);
        Ok(CodeGuard { leaving, range })
    }

    /// Builds the table of these regions, publishes it and frees the one before.
    fn publish(&self, regions: &[Box<Region>]) {
        let new = Box::into_raw(Box::new(flatten(regions)));
        // AcqRel: Release pairs with the Acquire in `segment`, Acquire with the swap that published what is freed here.
        let old = self.table.swap(new, Ordering::AcqRel);
        if !old.is_null() {
            // SAFETY: it came from `Box::into_raw` here, and nobody reads it: see the head of this file.
            drop(unsafe { Box::from_raw(old) });
        }
    }

    /// Finds out which code of that world whose guard is gone nobody returns into. Called in the stopped world: allocates and frees nothing.
    ///
    /// `stacks` are the stacks of all mutators of the world, from SP (less the red zone) to the base; `words` their PCs and registers.
    ///
    /// # Safety
    /// Under the registry lock, with the world stopped; the ranges are readable memory.
    pub(crate) unsafe fn reap(
        &self,
        world: u64,
        stacks: impl Iterator<Item = Range<usize>>,
        words: impl Iterator<Item = usize>,
    ) {
        // Acquire pairs with the Release in `CodeGuard::drop`. A guard that is dropped just now is seen at the next stop.
        if LEAVING.load(Ordering::Acquire) == 0 {
            return;
        }
        // SAFETY: the registry lock is held.
        let regions = unsafe { &*self.regions.get() };
        let going = || {
            regions.iter().filter(|r| {
                r.world == world
                    && !r.reaped.load(Ordering::Relaxed)
                    && r.leaving.load(Ordering::Acquire)
            })
        };
        // A guard may be dropped while this runs (by a thread outside the world), and its region must not count as searched for: remember which were. `named`
        // does: it is true for all others.
        let mut low = usize::MAX;
        let mut high = 0;
        for region in regions {
            region.named.store(true, Ordering::Relaxed);
        }
        for region in going() {
            region.named.store(false, Ordering::Relaxed);
            low = low.min(region.range.start);
            high = high.max(region.range.end);
        }
        if high == 0 {
            return;
        }
        let look = |word: usize| {
            // A return address may lie at the very end of a range, after a call that never returns.
            if word < low || word > high {
                return;
            }
            for region in regions {
                if region.range.start <= word && word <= region.range.end {
                    region.named.store(true, Ordering::Relaxed);
                }
            }
        };
        words.for_each(look);
        for stack in stacks {
            let first = stack.start.next_multiple_of(8);
            for address in (first..stack.end & !7).step_by(8) {
                // SAFETY: readable by the contract, and aligned. Volatile: it is another thread's memory.
                look(unsafe { ptr::read_volatile(address as *const usize) });
            }
        }
        for region in going() {
            if !region.named.load(Ordering::Relaxed) {
                region.reaped.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Unlinks what `reap` found unused. Its owners are dropped with the result.
    ///
    /// # Safety
    /// Under the registry lock, with no stop under way.
    pub(crate) unsafe fn sweep(&self) -> Vec<Removed> {
        if LEAVING.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        // SAFETY: the registry lock is held, and nobody walks.
        let regions = unsafe { &mut *self.regions.get() };
        let gone: Vec<Box<Region>> = regions
            .extract_if(.., |r| {
                // Acquire pairs with the Release in `CodeGuard::drop`.
                r.reaped.load(Ordering::Relaxed)
                    || r.orphan.load(Ordering::Relaxed) && r.leaving.load(Ordering::Acquire)
            })
            .collect();
        if gone.is_empty() {
            return Vec::new();
        }
        LEAVING.fetch_sub(gone.len(), Ordering::Relaxed);
        let are_unsafe = gone
            .iter()
            .filter(|r| r.what.kind() == Kind::Unsafe && r.world != 0)
            .count();
        UNSAFE_RANGES.fetch_sub(are_unsafe, Ordering::Relaxed);
        self.publish(regions);
        gone.into_iter().map(|r| Removed(r.owner)).collect()
    }

    /// Says that a world has no mutators and will have none: code of its needs no stop any more to be removed, now or when its guard is dropped.
    ///
    /// # Safety
    /// Under the registry lock.
    pub(crate) unsafe fn world_gone(&self, world: u64) {
        // SAFETY: the registry lock is held.
        for region in unsafe { &*self.regions.get() } {
            if region.world == world {
                region.orphan.store(true, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for CodeMap {
    fn drop(&mut self) {
        let table = *self.table.get_mut();
        if !table.is_null() {
            // SAFETY: it came from `Box::into_raw` in `publish`, and `&mut self` says that nobody reads it.
            drop(unsafe { Box::from_raw(table) });
        }
    }
}

/// Cuts the regions into disjoint segments, sorted. Unsafe and restart ranges win over the managed code around them; the first instruction of a restart range
/// is no part of it, since a thread that stands there has nothing to take back.
fn flatten(regions: &[Box<Region>]) -> Box<[Segment]> {
    let mut inner: Vec<(&Region, Segment)> = regions
        .iter()
        .filter_map(|r| {
            let Range { start, end } = r.range;
            let segment = |start, place| Segment {
                start,
                end,
                place,
                managed: ptr::null(),
            };
            match r.what {
                CodeWhat::Managed { .. } => None,
                CodeWhat::Unsafe => Some((&**r, segment(start, Place::Unsafe))),
                CodeWhat::Restart => Some((&**r, segment(start + 1, Place::Restart { start }))),
            }
        })
        .filter(|(_, s)| s.start < s.end)
        .collect();
    inner.sort_unstable_by_key(|(_, s)| s.start);
    let mut segments = Vec::with_capacity(regions.len() + 2 * inner.len());
    for region in regions {
        let CodeWhat::Managed { .. } = region.what else {
            continue;
        };
        let managed: *const Region = &raw const **region;
        let mut cursor = region.range.start;
        let mut code = |start, end| {
            if start < end {
                segments.push(Segment {
                    start,
                    end,
                    place: Place::Managed,
                    managed,
                });
            }
        };
        let first = inner.partition_point(|(_, s)| s.start < region.range.start);
        for (_, segment) in &mut inner[first..] {
            if segment.start >= region.range.end {
                break;
            }
            segment.managed = managed;
            code(cursor, segment.start);
            cursor = segment.end;
        }
        code(cursor, region.range.end);
    }
    segments.extend(inner.into_iter().map(|(_, s)| s));
    segments.sort_unstable_by_key(|s| s.start);
    segments.into_boxed_slice()
}

#[cfg(test)]
mod tests;
