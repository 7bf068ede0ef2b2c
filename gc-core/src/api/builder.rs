//! The builder of a heap: its settings, and the errors of building.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize};
use std::time::Duration;

use gc_preempt::CodeError;
use gc_preempt::World;

use crate::api::heap::Heap;
use crate::barrier;
use crate::cgroup;
use crate::collector::{self, IdleAfter, OldMarks, OverFork, Pace, Requests, State};
use crate::config::{Config, ConfigError, HugePages, Young};
use crate::dying::Dying;
use crate::encoding::Encoding;
use crate::error::SpaceError;
use crate::memory::MapError;
use crate::mutator::reserve::Memory;
use crate::mutator::shared::Shared;
use crate::pacer::{Policy, Vain};
use crate::stacks::Stacks;
use crate::stats::Ledger;

/// Configures and builds a [`Heap`]. [`Heap::builder`] makes one with the defaults.
///
/// The environment overrides these settings, so that a finished program can be examined:
/// `URGE_ASYNC`, `URGE_INJECT`, `URGE_STW`, `URGE_CONTINUOUS`, `URGE_STRESS_PHASES`, `URGE_TRACE`,
/// `URGE_POISON` and `URGE_VERIFY` (each `0` or `1`), `URGE_YOUNG`, `URGE_MARKERS`,
/// `URGE_GC_PERCENT`, `URGE_HEAP_LIMIT`, `URGE_MEMORY_LIMIT`, `URGE_IDLE`, `URGE_RESERVE`,
/// `URGE_PRE_TOUCH`, `URGE_HUGE_PAGES`, `URGE_GC_EVERY`. [`build`](HeapBuilder::build) reads it
/// once. Sizes are in bytes, or with `K`, `M` or `G` behind the number.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct HeapBuilder {
    pub(super) config: Config,
    conservative: Vec<Encoding>,
    past_the_end: bool,
}

/// Collections that a heap makes without need, so that tests run into them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stress {
    /// Allocations of one mutator from one full collection to the next; 1 collects at every
    /// allocation. With [`Young::Always`] such a collection may be young. `None` does not collect
    /// by number. In the environment `URGE_GC_EVERY`.
    pub collect_every: Option<u64>,
    /// Whether each collection keeps each of its phases open for some hundred microseconds, in a
    /// small heap, too, so that mutators run into them. In the environment `URGE_STRESS_PHASES`.
    pub phases: bool,
    /// Whether collections with such phases follow each other without a request. In the environment
    /// `URGE_CONTINUOUS`.
    pub continuous: bool,
}

impl Stress {
    /// Phases that stay open.
    pub const PHASES: Stress = Stress {
        collect_every: None,
        phases: true,
        continuous: false,
    };

    /// Collections one after another, with phases that stay open.
    pub const CONTINUOUS: Stress = Stress {
        collect_every: None,
        phases: true,
        continuous: true,
    };

    /// A full collection after each `allocations` allocations of a mutator; must be at least 1.
    pub const fn every(allocations: u64) -> Stress {
        Stress {
            collect_every: Some(allocations),
            phases: false,
            continuous: false,
        }
    }
}

impl HeapBuilder {
    /// Sets how much the heap may grow from the end of one collection to the end of the next, in
    /// percent of the bytes that were alive. 100 by default. `u32::MAX` collects only on request or
    /// at a limit. In the environment `URGE_GC_PERCENT`, where `off` stands for `u32::MAX`.
    ///
    /// As with Go's `GOGC`, a collection keeps all cells that were allocated while it marked. Where
    /// the collector would otherwise mark without a pause, up to 64 MiB of such cells count as
    /// alive. So the heap of a program that allocates as fast as the collector marks is three to
    /// four times as large as its live cells.
    pub fn gc_percent(mut self, percent: u32) -> Self {
        self.config.gc_percent = percent;
        self
    }

    /// Sets the most bytes that the heap's cells may take; at least 4 MiB
    /// ([`MINIMUM_LIMIT`](crate::MINIMUM_LIMIT)). No limit by default. An allocation that would
    /// exceed it collects; if that frees too little, the allocation fails with an
    /// [`AllocError`](crate::AllocError). In the environment `URGE_HEAP_LIMIT`.
    ///
    /// The runs of mutators count: a span, 64 KiB as a rule, for each kind and size that a mutator
    /// used lately. A thread that allocates or waits in [`blocking`](crate::Mutator::blocking)
    /// gives back the runs that it no longer uses. A thread that only computes keeps its runs; an
    /// empty `blocking` now and then gives them back.
    pub fn hard_limit(mut self, bytes: u64) -> Self {
        self.config.hard_limit = Some(bytes);
        self
    }

    /// Sets the bytes that the heap should not exceed: its cells, their fragmentation, and memory
    /// reported by [`report_external`](Heap::report_external). At least 4 MiB; no limit by default.
    /// In the environment `URGE_MEMORY_LIMIT`. Near the limit, collections come earlier than
    /// `gc_percent` asks for. The limit is soft: the heap exceeds it if the live cells need more,
    /// or if collections would take as much time as the program. The limit and this safeguard are
    /// Go's (design 48409).
    ///
    /// If the live cells leave no room below the limit, collections become no more frequent than if
    /// the heap might grow by a tenth of them.
    /// [`over_memory_limit`](crate::CollectionStats::over_memory_limit) is then set, and the line
    /// of `URGE_TRACE=1` has `over-limit`. For an error instead, set a
    /// [`hard_limit`](Self::hard_limit).
    /// [`hard_limit`](Self::hard_limit).
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.config.memory_limit = Some(bytes);
        self
    }

    /// Sets whether each collection prints one line of figures on stderr: its trigger and where it
    /// began, what it found, how long it took. Off by default. [`Heap::stats`]`().last` has the
    /// same figures. In the environment `URGE_TRACE`.
    pub fn trace(mut self, on: bool) -> Self {
        self.config.trace = on;
        self
    }

    /// Sets whether each collection marks a second time in the stop, by a marker of its own, and
    /// aborts if it was about to free a cell that is reachable. The message has the path to the
    /// cell. It finds stores without the barrier, and trace functions that leave out an edge. The
    /// stop lasts as long as a whole marking, and the heap takes twice the address space. Off by
    /// default. In the environment `URGE_VERIFY`.
    pub fn verify(mut self, on: bool) -> Self {
        self.config.verify = on;
        self
    }

    /// Sets whether each collection fills the cells that it frees with [`POISON`](crate::POISON),
    /// in the stop that frees them. A read through an edge or a root that the collector did not
    /// find then shows at once, not only after the cell is allocated again. With
    /// [`Stress::every(1)`](Stress::every) a lost root shows at the next read. The time of a stop
    /// grows with the size of the heap. Off by default. In the environment `URGE_POISON`.
    ///
    /// ```
    /// use gc_core::{Gc, Heap, POISON};
    /// let heap = Heap::builder().poison(true).build()?;
    /// let lost: Vec<Gc<u64>> = std::thread::scope(|s| {
    ///     let make = || {
    ///         let mutator = heap.attach().unwrap();
    ///         // SAFETY: breaks the rule of `Gc` on purpose: in a `Vec` it dangles.
    ///         let make = |_| Send(unsafe { mutator.alloc_gc(7u64) }.unwrap());
    ///         (0..100).map(make).collect::<Vec<_>>()
    ///     };
    ///     struct Send(Gc<u64>);
    ///     // SAFETY: for this example.
    ///     unsafe impl core::marker::Send for Send {}
    ///     s.spawn(make).join().unwrap().into_iter().map(|gc| gc.0).collect()
    /// });
    /// heap.collect();
    /// assert!(lost.iter().all(|gc| **gc == POISON as u64));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn poison(mut self, on: bool) -> Self {
        self.config.poison = on;
        self
    }

    /// Sets the addresses to reserve for cells, in bytes; at least 16 MiB
    /// ([`MINIMUM_RESERVE`](crate::MINIMUM_RESERVE)). In the environment `URGE_RESERVE`. The
    /// default is 256 GiB ([`DEFAULT_RESERVE`](crate::DEFAULT_RESERVE)), or less in a process that
    /// has hundreds of heaps. A reserve takes no memory, and the system does not count it as
    /// promised memory (`RLIMIT_DATA`, strict overcommit) until cells lie in it. The sizes of all
    /// tables follow from it: they reserve about as many addresses again in a heap of 64 MiB, and a
    /// thirtieth of them in a heap of 256 GiB.
    ///
    /// If `RLIMIT_AS` (`ulimit -v`) limits the addresses of the process, the first heap's default
    /// is five sixteenths of the limit, and the nth heap's default is that divided by n cubed, at
    /// least 16 MiB. If the system refuses, the reserve is halved until it fits, but not below 16
    /// MiB. [`Heap::reserved`] gives the result.
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().reserve(64 << 20).build()?;
    /// assert_eq!(heap.reserved().len(), 64 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reserve(mut self, bytes: u64) -> Self {
        self.config.reserve = Some(bytes);
        self
    }

    /// Sets the bytes of the heap that the system backs when the heap is built, with the parts of
    /// the tables that belong to them. The heap does not give them back, so no mutator waits for
    /// the kernel there. 0 by default: memory is backed as the heap grows. In the environment
    /// `URGE_PRE_TOUCH`. The JVM calls this `AlwaysPreTouch`.
    ///
    /// While the kernel clears a page for a mutator, the mutator cannot be stopped: 0.1 ms for a
    /// page of 2 MiB, and milliseconds where a virtual machine has to ask its host for memory. A
    /// program for which that is too long gives the heap's peak here. It needs Linux 5.14 or later,
    /// and does nothing on an older kernel or where memory is short.
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().pre_touch(8 << 20).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn pre_touch(mut self, bytes: u64) -> Self {
        self.config.pre_touch = bytes;
        self
    }

    /// Sets the encodings that are tried on each word of a frame without a stack map.
    /// [`Encoding::RAW`] is always tried as well, because the heap's own code and the safe tier
    /// keep plain addresses in registers and on stacks. A runtime that keeps tagged or boxed words
    /// there must name their encodings here. At most eight encodings in all, or
    /// [`build`](Self::build) fails.
    pub fn conservative(mut self, encodings: &[Encoding]) -> Self {
        self.conservative = encodings.to_vec();
        if !encodings.contains(&Encoding::RAW) && seam::always_tries_raw() {
            self.conservative.insert(0, Encoding::RAW);
        }
        self
    }

    /// Sets whether a conservative word that points one past the end of a cell keeps the cell. Off
    /// by default. Compilers make such pointers in loops over an array, and may keep no other
    /// pointer to it meanwhile.
    ///
    /// Each cell of such a heap has one byte more than requested, so that its end lies inside it
    /// and is the address of no other cell. A request that fills a size class takes the next class:
    /// 32 bytes take 48; 40 bytes take 48 in any case. If the end of one cell were the beginning of
    /// another, each reference to the second would keep the first, with all that it leads to. The
    /// end is that of the requested bytes. Code that writes up to the end of the size class
    /// ([`Site::size`](crate::raw::Site::size)) must request that many bytes.
    ///
    /// If a runtime can say which of its cells such loops run over, it leaves this off and requests
    /// one byte more for those cells.
    pub fn past_the_end(mut self, keeps: bool) -> Self {
        self.past_the_end = keeps;
        self
    }

    /// Sets whether mutators stay stopped for a whole collection, from the first root to the last
    /// dead cell. Off by default: mutators run while cells are marked, and stop twice in a
    /// collection, as a rule, for some microseconds, whatever the size of the heap. A program that
    /// fails by default and works with `true` has a fault in its barriers. In the environment
    /// `URGE_STW`.
    pub fn stop_the_world(mut self, on: bool) -> Self {
        self.config.stop_the_world = on;
        self
    }

    /// Sets how many threads mark concurrently with the mutators, the collector's own thread
    /// included; from 1 to 64. By default as many as a quarter of the processors allows, and those
    /// that no mutator wants. A heap with little to mark is marked by one thread in any case. In
    /// the environment `URGE_MARKERS`.
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().markers(2).build()?;
    /// heap.collect();
    /// assert_eq!(heap.stats().last.markers, 1, "there was nothing for two");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn markers(mut self, threads: u32) -> Self {
        self.config.markers = Some(threads);
        self
    }

    /// Sets whether stacks and registers are left out of the roots, so that the roots are handles,
    /// [`Root`](crate::Root)s, root ranges and root callbacks only.
    ///
    /// * By default they are left out until the program first uses the fast tier: by
    ///   [`Mutator::alloc_gc`](crate::Mutator::alloc_gc),
    ///   [`Mutator::alloc_raw`](crate::Mutator::alloc_raw), [`Heap::site`], a `Gc` made of a
    ///   handle, machine code, and so on. A program that uses only scopes has a handle for each
    ///   cell that it uses, so no stale word of a stack keeps a cell. From that first use on,
    ///   stacks are scanned conservatively.
    /// * `true`: they are never scanned. An allocation by the fast tier is an error
    ///   ([`SiteError::FastTier`](crate::raw::SiteError::FastTier)), and the cell of a `Gc` lives
    ///   only while another root leads to it.
    /// * `false`: they are scanned from the start.
    ///
    /// ```
    /// # use gc_core::{Field, Heap, Trace};
    /// # #[derive(Trace, Default)]
    /// # struct Node { next: Field<Node> }
    /// let heap = Heap::builder().exact(true).build()?;
    /// let mutator = heap.attach()?;
    /// let stale = mutator.scope(|s| Ok(s.alloc(Node::default())?.next.address() as usize))?;
    /// mutator.collect();
    /// assert_eq!(heap.stats().last.cells_live, 0); // although this stack still has its address
    /// assert_ne!(stale, 0);
    /// // SAFETY: the heap refuses the allocation.
    /// assert!(unsafe { mutator.alloc_gc(Node::default()) }.is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn exact(mut self, on: bool) -> Self {
        self.config.exact = Some(on);
        self
    }

    /// Sets whether a collection that is due may be a *young* one. A young collection takes the
    /// cells that earlier collections found alive for alive, without tracing them, and frees only
    /// dead cells that were allocated since the last collection. The default is
    /// [`Young::WherePays`].
    ///
    /// [`collect`](Heap::collect) and [`request_collection`](Heap::request_collection) always trace
    /// all cells. A heap that [stops the world](Self::stop_the_world) has no young collections. In
    /// the environment `URGE_YOUNG`: `0`, `1`, or `always` for stress.
    ///
    /// ```
    /// use gc_core::{Heap, Young};
    /// let heap = Heap::builder().young_collections(Young::Never).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn young_collections(mut self, when: Young) -> Self {
        self.config.young = when;
        self
    }

    /// Puts the heap under stress, for tests: it collects more often than it needs to. No stress by
    /// default.
    ///
    /// ```
    /// use gc_core::{Heap, Stress};
    /// let heap = Heap::builder().stress(Stress::every(1)).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stress(mut self, stress: Stress) -> Self {
        self.config.collect_every = stress.collect_every;
        self.config.stress_phases = stress.phases;
        self.config.continuous = stress.continuous;
        self
    }

    /// Sets the time after the last collection at which a heap is collected that has made no other
    /// one due. The collection frees the cells that died meanwhile, and their memory goes back to
    /// the system. Two minutes by default, as in Go; zero turns it off. In the environment
    /// `URGE_IDLE`, in seconds.
    ///
    /// ```
    /// use std::time::Duration;
    /// let heap = gc_core::Heap::builder()
    ///     .idle_collection(Duration::from_secs(5))
    ///     .build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn idle_collection(mut self, after: Duration) -> Self {
        self.config.idle = after;
        self
    }

    /// Sets whether the system may back the heap's cells, and the bits that describe them, by huge
    /// pages of 2 MiB. [`HugePages::Automatic`] by default. In the environment `URGE_HUGE_PAGES`:
    /// `0`, `1` or `auto`.
    ///
    /// Huge pages make marking and the program's own reads faster, and one page fault serves 2 MiB.
    /// But that fault clears 2 MiB at once, and on a virtual machine the host may have to find as
    /// much memory first, so a program of a few seconds may lose more by them than it gains.
    ///
    /// ```
    /// use gc_core::{Heap, HugePages};
    /// let heap = Heap::builder().huge_pages(HugePages::Never).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn huge_pages(mut self, when: HugePages) -> Self {
        self.config.huge_pages = when;
        self
    }

    /// Uses the container's limit as [`memory_limit`](Self::memory_limit): the smallest
    /// `memory.max` of the process's cgroups (`memory.limit_in_bytes` in version 1).
    /// [`build`](Self::build) reads it once. If no cgroup has a limit, it sets none. If a
    /// `memory_limit` is set as well, the smaller one counts: set one if much of the container's
    /// memory is for other things than the heap. In the environment `URGE_MEMORY_LIMIT=cgroup`.
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().memory_limit_from_cgroup().build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn memory_limit_from_cgroup(mut self) -> Self {
        self.config.cgroup = true;
        self
    }

    /// Whether signals stop the heap's mutators; true by default. With `false` they stop only at
    /// polls: in allocation, in [`blocking`](crate::Mutator::blocking) and in
    /// [`poll`](gc_preempt::Mutator::poll), as with
    /// [`Config::signals`](gc_preempt::Config::signals). For compilers that insert polls of their
    /// own: a collection waits for each loop without one. In the environment `URGE_ASYNC`.
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().signals(false).build()?;
    /// let mutator = heap.attach()?;
    /// mutator.thread().poll(); // a stop takes effect here
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn signals(mut self, on: bool) -> Self {
        self.config.signals = on;
        self
    }

    /// Builds the heap: reserves its address range and starts its collector's thread. The first
    /// heap of a process also installs the handler of SIGURG.
    ///
    /// # Errors
    /// [`BuildError`] says what was wrong and what would be right.
    pub fn build(self) -> Result<Heap, BuildError> {
        if gc_preempt::holds_a_stop() {
            return Err(BuildError::Stops(gc_preempt::SetupError::HoldsAStop));
        }
        let mut config = self.config.with_environment()?;
        if config.cgroup {
            let limits = [config.memory_limit, cgroup::memory_limit()];
            config.memory_limit = limits.into_iter().flatten().min();
        }
        let world = World::new(gc_preempt::Config {
            signals: config.signals,
            inject: config.inject,
        })
        .map_err(BuildError::Stops)?;
        barrier::register_units(&world).map_err(BuildError::Code)?;
        let memory = Memory::fitting(&config, &self.conservative, self.past_the_end)?;
        let ledger = Ledger::new(config.trace);
        let policy = Policy {
            gc_percent: config.gc_percent,
            memory_limit: config.memory_limit,
            hard_limit: config.hard_limit,
            young: config.young,
        };
        let shared = Arc::new(Shared {
            space: memory.space,
            world,
            queue: memory.queue,
            weak: memory.weak,
            encodings: memory.encodings,
            log: memory.log,
            roots: memory.roots,
            stacks: Stacks::new(config.exact),
            finalizers: memory.finalizers,
            drops: memory.drops,
            dying: Dying::new()?,
            types: memory.types,
            contexts: gc_preempt::Mutex::new(memory.contexts),
            verify: memory.verify,
            marking: AtomicU32::new(0),
            scan: AtomicU64::new(0),
            stacks_resumed: AtomicU32::new(0),
            clearing: AtomicBool::new(false),
        });
        let state = Arc::new(State {
            shared: shared.clone(),
            requests: Requests::new(config.continuous, config.stress_phases),
            over_fork: OverFork::default(),
            collector: AtomicUsize::new(0),
            cells: AtomicU64::new(0),
            old: OldMarks::default(),
            pace: Pace::new(
                policy,
                !config.stop_the_world,
                config.continuous,
                ledger.cores(),
            ),
            ledger,
            poison: config.poison,
            concurrent: !config.stop_the_world,
            young: config.young,
            idle_after: IdleAfter::new(config.idle),
            vain: gc_preempt::Mutex::new(Vain::default()),
            markers: config.markers,
            phase: AtomicU8::new(0),
        });
        let thread = collector::spawn(&state).map_err(BuildError::Thread)?;
        collector::enrol(&state);
        // SAFETY: `State`'s drop removes the hooks before `shared` is freed.
        unsafe {
            shared
                .world
                .set_stack_hooks(Some(collector::hooks(&shared)))
        };
        Ok(Heap::new(shared, state, thread))
    }
}

impl Heap {
    /// A builder with the default settings.
    pub fn builder() -> HeapBuilder {
        HeapBuilder {
            config: Config::default(),
            conservative: vec![Encoding::RAW],
            past_the_end: false,
        }
    }
}

/// Why a heap could not be built.
#[derive(Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// A setting of the builder or of the environment is invalid.
    Config(ConfigError),
    /// The system refused address space or memory.
    Map(MapError),
    /// The heap's address range cannot be laid out as requested.
    Space(SpaceError),
    /// Threads cannot be stopped in this process.
    Stops(gc_preempt::SetupError),
    /// The barrier's code could not be registered.
    Code(CodeError),
    /// The collector's thread could not be started.
    Thread(std::io::Error),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(e) => e.fmt(f),
            Self::Map(e) => e.fmt(f),
            Self::Space(e) => e.fmt(f),
            Self::Stops(e) => write!(f, "threads cannot be stopped here: {e}"),
            Self::Code(e) => write!(f, "the barrier's code could not be registered: {e}"),
            Self::Thread(e) => write!(f, "the collector's thread could not be started: {e}"),
        }
    }
}

impl std::error::Error for BuildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Config(error) => Some(error),
            Self::Map(error) => Some(error),
            Self::Space(error) => Some(error),
            Self::Stops(error) => Some(error),
            Self::Code(error) => Some(error),
            Self::Thread(error) => Some(error),
        }
    }
}

impl From<ConfigError> for BuildError {
    fn from(e: ConfigError) -> Self {
        Self::Config(e)
    }
}

impl From<MapError> for BuildError {
    fn from(e: MapError) -> Self {
        Self::Map(e)
    }
}

impl From<SpaceError> for BuildError {
    fn from(e: SpaceError) -> Self {
        match e {
            SpaceError::Map(e) => Self::Map(e),
            e => Self::Space(e),
        }
    }
}

mod seam {
    use crate::fault::Fault;

    pub(super) fn always_tries_raw() -> bool {
        !Fault::RawIfAsked.planted()
    }
}
