//! The process's code map: which ranges of addresses hold managed code, and where inside or outside
//! of it a thread must not be stopped.
//!
//! The signal handler asks it about one PC (`CodeMap::classify`), the walker about each return
//! address. Both are a search in one or two ordered maps, of managed code and of the unsafe and
//! restart ranges, each of disjoint ranges by their first address. To register code is an
//! insertion, to remove it the reverse: both take time logarithmic in what is registered.
//!
//! # Why the maps may change in place
//!
//! They change only under the registry lock, and a stop holds that lock from before its request is
//! published until after its resume. The handler classifies only when it has read that a stop is
//! under way *and* that its own thread has not yet answered it. That stop cannot end before this
//! thread answers, so the lock is held, and the maps stay as they are, for as long as the handler
//! reads them. A handler that runs late, after its stop, reads that there is nothing to answer and
//! never gets here. What the last holder of the lock has written is seen: the stop took the lock
//! after it, and its request is read by Acquire.
//!
//! # How code is removed
//!
//! Dropping a [`CodeGuard`] puts a mark on a list, without a lock, since guards are dropped
//! anywhere. The next stop of the code's world first takes over what is on the list
//! (`CodeMap::take_dropped`, before the stop, since it allocates). In the stop it looks for words
//! on its stacks that point into such a range (`CodeMap::reap`, which neither allocates nor frees).
//! What no word names is unlinked after the resume (`CodeMap::sweep`), and its owner is dropped
//! after the registry lock is released, since an owner's drop may do anything. Code without a
//! dropped guard costs none of these anything.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use crate::faults::{count_step, planted};
use crate::stackmap::StackMaps;

/// A range of code and what it is, as `World::register_code` takes it.
///
/// Registering takes time in proportion to the range's own stack maps and logarithmic in what else
/// is registered. So a JIT compiler can fill an arena: it registers each function by itself when
/// that is compiled, with a clone of the arena's `Arc` as its owner. The arena goes with the last
/// of its functions.
pub struct CodeSpec {
    /// The addresses that the code fills.
    pub range: Range<usize>,
    /// What the code is.
    pub what: CodeWhat,
    /// Whatever keeps the code mapped. It is dropped once the guard is gone and no stack returns
    /// into the range, on a thread that is not a mutator.
    pub owner: Option<Box<dyn Any + Send>>,
}

/// A [`CodeSpec`] that does not contradict itself.
pub(crate) struct Checked(CodeSpec);

impl CodeSpec {
    /// Checks what can be told without the registry lock: it takes time in proportion to the stack
    /// maps.
    pub(crate) fn checked(self) -> Result<Checked, CodeError> {
        let range = &self.range;
        if range.is_empty() {
            let range = range.clone();
            return Err(CodeError::Empty { range });
        }
        if let CodeWhat::Managed { maps, .. } = &self.what
            && let Some(address) = maps.outside(range)
        {
            let range = range.clone();
            return Err(CodeError::Outside { range, address });
        }
        Ok(Checked(self))
    }
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
        /// Handed to [`RootSink::exact`](crate::walk::RootSink::exact) with each slot; it means
        /// nothing here.
        encoding: u32,
    },
    /// A thread is never stopped at an instruction of this range; the stop is tried again a little
    /// later. It must be short and must not wait.
    ///
    /// Nor is it stopped in a signal handler that has interrupted this range. Only a walk of the
    /// stack finds that out, so while an unsafe range is registered, a thread that has any signal
    /// blocked takes as long to stop as its stack is deep (some 60 ns a frame).
    /// [`Restart`](Self::Restart) ranges cost no such time.
    Unsafe,
    /// A thread that is interrupted inside this range, at any instruction but its first, is moved
    /// back to the first. The range must be safe to begin again from everywhere in it: it keeps its
    /// inputs, and only its last instruction has an effect.
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
    /// Cranelift's: a function begins with `push rbp; mov rbp, rsp`, ends with `pop rbp; ret`, and
    /// keeps RBP in between.
    Rbp,
    /// LLVM's: unwind tables, exact at every instruction (the attribute `uwtable`), in the
    /// `.eh_frame` of the loaded module or given with [`StackMaps::with_eh_frame`]. Where they are
    /// missing the stack is scanned conservatively from there on.
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
/// From the drop on no thread may *begin* to run the code: those inside may finish, and return
/// through it.
#[must_use = "dropping the guard removes the code at the next stop"]
pub struct CodeGuard {
    /// There until the guard is dropped.
    mark: Option<Arc<Mark>>,
    dropped: &'static Dropped,
    range: Range<usize>,
}

impl CodeGuard {
    /// The range that it guards.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }
}

impl fmt::Debug for CodeGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CodeGuard({})", Hex(&self.range))
    }
}

impl Drop for CodeGuard {
    fn drop(&mut self) {
        if let Some(mark) = self.mark.take() {
            // Relaxed: only an error's text asks.
            mark.leaving.store(true, Ordering::Relaxed);
            self.dropped.push(mark);
        }
    }
}

/// What a guard and the region that it guards have in common.
#[derive(Debug)]
struct Mark {
    /// The guard was dropped.
    leaving: AtomicBool,
    /// The next mark on the list of dropped guards.
    next: AtomicPtr<Mark>,
    world: u64,
    key: Key,
}

/// Where a region is found: in the map of managed code or in the other, by its first address.
#[derive(Clone, Copy, Debug)]
struct Key {
    managed: bool,
    start: usize,
}

/// The marks of guards that were dropped since the list was last taken: a stack without a lock. It
/// is only ever taken as a whole, so a mark is never pushed again while another thread still holds
/// its address.
struct Dropped(AtomicPtr<Mark>);

impl Dropped {
    fn push(&self, mark: Arc<Mark>) {
        let mark = Arc::into_raw(mark).cast_mut();
        let mut head = self.0.load(Ordering::Relaxed);
        loop {
            // SAFETY: this thread alone has the mark, until the exchange succeeds.
            unsafe { (*mark).next.store(head, Ordering::Relaxed) };
            // Release pairs with the Acquire in `take`: whatever the owner of the guard did with
            // the code comes before its removal.
            let pushed =
                self.0
                    .compare_exchange_weak(head, mark, Ordering::Release, Ordering::Relaxed);
            match pushed {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Empties the list.
    fn take(&self) -> impl Iterator<Item = Arc<Mark>> + use<> {
        // Acquire pairs with the Release in `push`.
        let mut next = self.0.swap(ptr::null_mut(), Ordering::Acquire);
        std::iter::from_fn(move || {
            // SAFETY: a mark that `push` has made a pointer of, once, and that nobody else has
            // taken: each is on the list that the swap took.
            let mark = (!next.is_null()).then(|| unsafe { Arc::from_raw(next) })?;
            next = mark.next.load(Ordering::Relaxed);
            Some(mark)
        })
    }
}

/// One registration.
pub(crate) struct Region {
    range: Range<usize>,
    what: CodeWhat,
    mark: Arc<Mark>,
    /// The last search in which some word pointed into the range.
    named: Cell<u64>,
    #[expect(dead_code, reason = "held for its drop")]
    owner: Option<Box<dyn Any + Send>>,
}

impl Region {
    fn counts_as_unsafe(&self) -> bool {
        self.what.kind() == Kind::Unsafe && self.mark.world != 0
    }
}

/// What the walker must know of a managed region.
pub(crate) struct Managed<'a> {
    pub(crate) frames: FrameRule,
    pub(crate) maps: &'a StackMaps,
    pub(crate) encoding: u32,
}

/// Code that was unlinked. Drop it after the registry lock is released: the owner's drop may do
/// anything, also register code.
pub(crate) struct Removed(Region);

/// A region's first address. Tests count how often two are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Start(usize);

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
type Regions = BTreeMap<Start, Region>;

/// The region that begins last of those that begin below `end`.
fn last_below(regions: &Regions, end: usize) -> Option<&Region> {
    if planted("linear-code") {
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

/// A world's part in the map.
#[derive(Default)]
struct Owned {
    /// Its regions.
    count: usize,
    /// The world is gone, and with it everybody who could run its code: what it leaves needs no
    /// stop to be removed.
    gone: AtomicBool,
    /// Its regions whose guards are dropped.
    leaving: Vec<Arc<Mark>>,
    /// From the first address of those to the last.
    hull: Range<usize>,
}

/// What is registered.
struct Registered {
    managed: Regions,
    /// Unsafe and restart ranges. Each lies wholly inside of one managed region or wholly outside
    /// of all.
    inner: Regions,
    worlds: BTreeMap<u64, Owned>,
    /// Regions of worlds that are gone and whose guards are dropped.
    orphans: Vec<Arc<Mark>>,
    /// Searches for words that name leaving code so far.
    searches: Cell<u64>,
    /// The world of the last search, until the regions that it found unused are unlinked.
    searched: Cell<Option<u64>>,
    /// A world is gone whose leaving regions are not among the orphans yet.
    more_gone: AtomicBool,
}

impl Registered {
    fn regions(&mut self, key: Key) -> &mut Regions {
        if key.managed {
            &mut self.managed
        } else {
            &mut self.inner
        }
    }

    /// A region that may not be there beside a new one of that kind.
    fn in_the_way(&self, range: &Range<usize>, kind: Kind) -> Option<&Region> {
        let overlaps = |other: &&Region| other.range.end > range.start;
        let within = |inner: &Range<usize>, outer: &Range<usize>| {
            outer.start <= inner.start && inner.end <= outer.end
        };
        let (same, other) = match kind {
            Kind::Managed => (&self.managed, &self.inner),
            Kind::Unsafe | Kind::Restart => (&self.inner, &self.managed),
        };
        // Regions of a map are disjoint: if any overlaps, the last that begins below the end does.
        let twin = last_below(same, range.end).filter(overlaps);
        twin.or_else(|| match kind {
            // Those that overlap lie inside, but for the first and the last perhaps.
            Kind::Managed => [range.start, range.end]
                .into_iter()
                .filter_map(|end| last_below(other, end).filter(overlaps))
                .find(|inner| !within(&inner.range, range)),
            Kind::Unsafe | Kind::Restart => {
                let outer = last_below(other, range.end).filter(overlaps);
                outer.filter(|outer| !within(range, &outer.range))
            }
        })
    }

    fn unlink(&mut self, mark: &Mark) -> Option<Removed> {
        let region = self.regions(mark.key).remove(&Start(mark.key.start))?;
        if let Some(owned) = self.worlds.get_mut(&mark.world) {
            owned.count -= 1;
            if owned.count == 0 {
                self.worlds.remove(&mark.world);
            }
        }
        Some(Removed(region))
    }
}

/// The map. There is one in the process, [`CODE`]; tests make their own.
pub(crate) struct CodeMap {
    /// Changed under the registry lock only.
    registered: UnsafeCell<Registered>,
    dropped: Dropped,
    /// How many unsafe ranges are registered, Urge's own trampoline aside: a stop behind a handler
    /// in that one is harmless, since all that it holds is on the stack.
    unsafe_ranges: AtomicUsize,
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
        }
    }

    /// A map for one test or one input of a fuzzer: guards keep the address of their map.
    #[cfg(any(test, feature = "faults"))]
    pub(crate) fn leaked() -> &'static Self {
        Box::leak(Box::new(Self::new()))
    }

    /// What may be done to a thread that is interrupted at `pc`. Async-signal-safe: reads memory,
    /// nothing else.
    ///
    /// # Safety
    /// Only while a stop is under way that the calling thread has not answered, or under the
    /// registry lock.
    pub(crate) unsafe fn classify(&self, pc: usize) -> Place {
        // SAFETY: nothing changes while the caller's contract holds.
        let registered = unsafe { &*self.registered.get() };
        // Unsafe and restart ranges win over the managed code around them. The first instruction of
        // a restart range is no part of it, since a thread that stands there has nothing to take
        // back.
        if let Some(inner) = at(&registered.inner, pc) {
            let start = inner.range.start;
            match inner.what {
                CodeWhat::Restart if pc > start => return Place::Restart { start },
                CodeWhat::Restart | CodeWhat::Managed { .. } => {}
                CodeWhat::Unsafe => return Place::Unsafe,
            }
        }
        at(&registered.managed, pc).map_or(Place::Native, |_| Place::Managed)
    }

    /// The managed code at `pc`, also if `pc` lies in an unsafe or restart range inside of it.
    ///
    /// # Safety
    /// Under the registry lock, which whoever stopped the world holds; the result is good for as
    /// long.
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

    /// Is there any unsafe range besides Urge's own?
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
        // SAFETY: the registry lock is held, so nobody else touches it.
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
            managed: kind == Kind::Managed,
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

    /// Takes over what was dropped, so that the stop that comes looks whether it is in use.
    ///
    /// # Safety
    /// Under the registry lock, with no stop under way.
    pub(crate) unsafe fn take_dropped(&self) {
        // SAFETY: the registry lock is held, and nobody reads.
        let registered = unsafe { &mut *self.registered.get() };
        for mark in self.dropped.take() {
            let Key { managed, start } = mark.key;
            let regions = if managed {
                &registered.managed
            } else {
                &registered.inner
            };
            let (Some(region), Some(owned)) = (
                regions.get(&Start(start)),
                registered.worlds.get_mut(&mark.world),
            ) else {
                continue;
            };
            if *owned.gone.get_mut() {
                registered.orphans.push(mark);
                continue;
            }
            let hull = &mut owned.hull;
            *hull = match owned.leaving.is_empty() {
                true => region.range.clone(),
                false => start.min(hull.start)..region.range.end.max(hull.end),
            };
            owned.leaving.push(mark);
        }
    }

    /// Finds out which code of that world whose guard is gone nobody returns into. Called in the
    /// stopped world: allocates and frees nothing.
    ///
    /// `stacks` are the stacks of all mutators of the world, from SP (less the red zone) to the
    /// base; `words` their PCs and registers.
    ///
    /// # Safety
    /// Under the registry lock, with the world stopped; the ranges are readable memory.
    pub(crate) unsafe fn reap(
        &self,
        world: u64,
        stacks: impl Iterator<Item = Range<usize>>,
        words: impl Iterator<Item = usize>,
    ) {
        // SAFETY: the registry lock is held, so nothing changes but the cells that this function
        // alone touches now.
        let registered = unsafe { &*self.registered.get() };
        let Some(owned) = registered
            .worlds
            .get(&world)
            .filter(|o| !o.leaving.is_empty())
        else {
            return;
        };
        let search = registered.searches.get() + 1;
        registered.searches.set(search);
        registered.searched.set(Some(world));
        let hull = &owned.hull;
        let look = |word: usize| {
            // A return address may lie at the very end of a range, after a call that never returns.
            if word < hull.start || word > hull.end {
                return;
            }
            for regions in [&registered.managed, &registered.inner] {
                if planted("linear-search") {
                    let begun = regions.iter().filter(|(start, _)| **start <= Start(word));
                    begun
                        .filter(|(_, region)| word <= region.range.end)
                        .for_each(|(_, region)| region.named.set(search));
                    continue;
                }
                for (_, region) in regions.range(..=Start(word)).rev().take(2) {
                    if word <= region.range.end {
                        region.named.set(search);
                    }
                }
            }
        };
        words.for_each(look);
        for stack in stacks {
            let first = stack.start.next_multiple_of(8);
            for address in (first..stack.end & !7).step_by(8) {
                // SAFETY: readable by the contract, and aligned. Volatile: it is another thread's
                // memory.
                look(unsafe { ptr::read_volatile(address as *const usize) });
            }
        }
    }

    /// Unlinks what the last search found unused, and what a world that is gone has left. Its
    /// owners are dropped with the result.
    ///
    /// # Safety
    /// Under the registry lock, with no stop under way.
    pub(crate) unsafe fn sweep(&self) -> Vec<Removed> {
        // SAFETY: the registry lock is held, and nobody reads.
        let mut registered = unsafe { &mut *self.registered.get() };
        let mut unused = Vec::new();
        if let Some(world) = registered.searched.take()
            && let Some(owned) = registered.worlds.get_mut(&world)
        {
            let search = registered.searches.get();
            let named = |key: Key| {
                let regions = if key.managed {
                    &registered.managed
                } else {
                    &registered.inner
                };
                let region = regions.get(&Start(key.start));
                region.is_some_and(|region| region.named.get() == search)
            };
            unused.extend(owned.leaving.extract_if(.., |mark| !named(mark.key)));
        }
        if std::mem::take(registered.more_gone.get_mut()) {
            // What has been dropped since the last stop goes with the rest. (What is not a gone
            // world's waits for the next one.)
            // SAFETY: the registry lock is held, and `registered` is not used meanwhile.
            unsafe { self.take_dropped() };
            // SAFETY: as above.
            registered = unsafe { &mut *self.registered.get() };
            for owned in registered.worlds.values_mut() {
                if *owned.gone.get_mut() {
                    registered.orphans.append(&mut owned.leaving);
                }
            }
        }
        unused.append(&mut registered.orphans);
        let unlinked: Vec<Removed> = unused
            .into_iter()
            .filter_map(|mark| registered.unlink(&mark))
            .collect();
        let are_unsafe = unlinked.iter().filter(|r| r.0.counts_as_unsafe());
        self.unsafe_ranges
            .fetch_sub(are_unsafe.count(), Ordering::Relaxed);
        unlinked
    }

    /// Says that a world has no mutators and will have none: code of its needs no stop any more to
    /// be removed, now or when its guard is dropped. Another world may be stopped meanwhile:
    /// allocates and frees nothing.
    ///
    /// # Safety
    /// Under the registry lock.
    pub(crate) unsafe fn world_gone(&self, world: u64) {
        // SAFETY: the registry lock is held, so nothing changes but what is atomic.
        let registered = unsafe { &*self.registered.get() };
        if let Some(owned) = registered.worlds.get(&world) {
            // Relaxed, both: read under the registry lock.
            owned.gone.store(true, Ordering::Relaxed);
            registered.more_gone.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
