//! How a heap is configured and built.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize};
use std::time::Duration;

use gc_preempt::CodeError;
use gc_preempt::World;

use crate::api::heap::Heap;
use crate::barrier;
use crate::cgroup;
use crate::collector::{self, OldMarks, OverFork, Pace, Requests, State};
use crate::config::{Config, ConfigError, Young};
use crate::dying::Dying;
use crate::encoding::Encoding;
use crate::error::SpaceError;
use crate::fault::{Fault, planted};
use crate::memory::MapError;
use crate::mutator::reserve::Memory;
use crate::mutator::shared::Shared;
use crate::pacer::{Policy, Vain};
use crate::stacks::Stacks;
use crate::stats::Ledger;

/// Configures a [`Heap`]. Made by [`Heap::builder`].
///
/// The environment overrides what is set here, so that a finished program can be looked into:
/// `URGE_ASYNC`, `URGE_INJECT`, `URGE_STW`, `URGE_CONTINUOUS`, `URGE_STRESS_PHASES`, `URGE_TRACE`,
/// `URGE_POISON` and `URGE_VERIFY` (each `0` or `1`), `URGE_YOUNG`, `URGE_MARKERS`,
/// `URGE_GC_PERCENT`, `URGE_HEAP_LIMIT`, `URGE_MEMORY_LIMIT`, `URGE_IDLE`, `URGE_RESERVE`,
/// `URGE_PRE_TOUCH`, `URGE_GC_EVERY`. It is read once, in [`build`](HeapBuilder::build).
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct HeapBuilder {
    pub(super) config: Config,
    conservative: Vec<Encoding>,
    past_the_end: bool,
}

/// Collections that a heap makes though it does not need them, so that tests meet them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stress {
    /// A full collection after so many allocations of a mutator, or with [`Young::Always`] perhaps
    /// a young one; 1 collects at every allocation. In the environment `URGE_GC_EVERY`.
    pub collect_every: Option<u64>,
    /// Collections keep each of their phases open for some hundred microseconds, however small the
    /// heap is, so that mutators meet them. In the environment `URGE_STRESS_PHASES`.
    pub phases: bool,
    /// Collections with such phases follow each other without being asked for. In the environment
    /// `URGE_CONTINUOUS`.
    pub continuous: bool,
}

impl Stress {
    /// Phases that are kept open.
    pub const PHASES: Stress = Stress {
        collect_every: None,
        phases: true,
        continuous: false,
    };

    /// Collections without end.
    pub const CONTINUOUS: Stress = Stress {
        collect_every: None,
        phases: true,
        continuous: true,
    };

    /// A collection after so many allocations of a mutator.
    pub const fn every(allocations: u64) -> Stress {
        Stress {
            collect_every: Some(allocations),
            phases: false,
            continuous: false,
        }
    }
}

impl HeapBuilder {
    /// How much the heap may grow over what was alive after a collection until the next ends, in
    /// percent. 100 by default; `u32::MAX` collects only when asked or at the limit.
    ///
    /// As with Go's `GOGC`, what is allocated while a collection marks is kept by it, and up to 64
    /// MiB of that count as alive where the collector would otherwise mark without a rest. So a
    /// program that allocates as fast as it can be marked has a heap of three to four times what is
    /// alive.
    pub fn gc_percent(mut self, percent: u32) -> Self {
        self.config.gc_percent = percent;
        self
    }

    /// The most bytes the heap's cells may take. An allocation that would exceed it collects, and
    /// if that does not help, fails with an [`AllocError`](crate::AllocError). None by default; at
    /// least 4 MiB.
    ///
    /// What a mutator has ready to allocate from counts: a span, 64 KiB as a rule, for each kind
    /// and size that it used lately. A thread that waits in [`blocking`](crate::Mutator::blocking)
    /// or allocates gives back what it no longer uses. One that only computes keeps what it had
    /// when it allocated last: an empty `blocking` now and then gives that back.
    pub fn hard_limit(mut self, bytes: u64) -> Self {
        self.config.hard_limit = Some(bytes);
        self
    }

    /// Bytes that the heap should keep to: its cells, what fragmentation adds to them, and memory
    /// reported as external. Near it, collections come earlier than `gc_percent` asks for. It is
    /// soft: where the program cannot do with less, or collecting would cost as much time as the
    /// program has itself, the heap grows over it. None by default; at least 4 MiB. The idea and
    /// its safeguard are Go's (design 48409).
    ///
    /// Where what is alive leaves no room below it, collections cannot help, and they become no
    /// more frequent than where the heap may grow by a tenth of what is alive.
    /// [`over_memory_limit`](crate::CollectionStats::over_memory_limit) says so, and `over-limit`
    /// in the line of `URGE_TRACE=1`. A program that would rather get an error has a
    /// [`hard_limit`](Self::hard_limit).
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.config.memory_limit = Some(bytes);
        self
    }

    /// Whether each collection prints a line of its figures on stderr: when it began and was to
    /// begin, what it found, how long it took. The same figures are [`Heap::stats`]`().last`. Off
    /// by default.
    pub fn trace(mut self, on: bool) -> Self {
        self.config.trace = on;
        self
    }

    /// Whether each collection marks a second time, alone and in the stop, and aborts with the path
    /// to an object that it was about to free though it can be reached: for finding a store past
    /// the barrier, or a tracer that leaves an edge out. Costs a stop as long as a whole marking,
    /// and as much address space again as the heap reserves. Off by default.
    pub fn verify(mut self, on: bool) -> Self {
        self.config.verify = on;
        self
    }

    /// Whether each collection fills the cells that it frees with [`POISON`](crate::POISON), in the
    /// stop that frees them: whatever is read by way of an edge or a root that the collector did
    /// not see is recognised at once, instead of when the cell's next owner has written it.
    /// Together with [`Stress::every(1)`](Stress::every) a lost root shows at the
    /// next read. A stop takes as long as the heap is large. Off by default.
    ///
    /// ```
    /// use gc_core::{Gc, Heap, POISON};
    /// let heap = Heap::builder().poison(true).build()?;
    /// let lost: Vec<Gc<u64>> = std::thread::scope(|s| {
    ///     let make = || {
    ///         let mutator = heap.attach().unwrap();
    ///         // SAFETY: none: it dangles in a `Vec`, and the example shows how that is found.
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

    /// The addresses to reserve for cells, in bytes; at least 16 MiB. 256 GiB by default; less
    /// where the process has hundreds of heaps already, or where the system would have no addresses
    /// for anything else afterwards. Costs no memory, nor what the system counts as promised
    /// (`RLIMIT_DATA`, strict overcommit), before cells are in it. All tables of the heap are sized
    /// by it: they take about as many addresses again in a heap of 64 MiB, and a thirtieth in one
    /// of 256 GiB.
    ///
    /// Where the process may have fewer addresses (`RLIMIT_AS`, `ulimit -v`), the first heap's
    /// default is five sixteenths of them, and the nth heap's that by n cubed, at least 16 MiB.
    /// Where the system refuses, the reserve is halved until all fits, but not below 16 MiB;
    /// [`Heap::reserved`] says what it is.
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

    /// Bytes that the system is to back when the heap is built, with the tables that belong to
    /// them, and that it does not get back: no mutator waits for it below that. 0 by default, which
    /// backs memory as the heap grows. The JVM's name for it is `AlwaysPreTouch`.
    ///
    /// A mutator that is stopped while the kernel clears a page for it is stopped when the kernel
    /// is done: 0.1 ms for one of 2 MiB, and milliseconds where a virtual machine has to ask its
    /// host for the memory. A program that counts these gives the heap's peak here. It takes a
    /// kernel of at least 5.14, and does nothing in an older one, or where memory is short.
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().pre_touch(8 << 20).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn pre_touch(mut self, bytes: u64) -> Self {
        self.config.pre_touch = bytes;
        self
    }

    /// The encodings tried on each word of a frame without a stack map, beside [`Encoding::RAW`],
    /// which is always tried: the heap's own code and the safe tier keep plain addresses in
    /// registers and on stacks. A runtime that keeps tagged or boxed words there must name them
    /// here; at most eight encodings in all.
    pub fn conservative(mut self, encodings: &[Encoding]) -> Self {
        self.conservative = encodings.to_vec();
        if !encodings.contains(&Encoding::RAW) && !planted(Fault::RawIfAsked) {
            self.conservative.insert(0, Encoding::RAW);
        }
        self
    }

    /// Whether a conservative word that points just past the bytes of a cell keeps it. Off by
    /// default. Compilers make such pointers in loops over an array, and may keep no other one
    /// meanwhile.
    ///
    /// Each cell of such a heap has a byte more than was asked for, so that its end lies inside it
    /// and is the address of no other cell. A request that fills a size class takes the next one:
    /// 32 bytes take 48, 40 take 48 as ever. Were the end of one cell the beginning of another,
    /// each true reference to the second would keep the first, and all that it leads to. The end is
    /// that of the bytes asked for: code that writes to the end of the size class
    /// ([`Site::size`](crate::raw::Site::size)) asks for as many.
    ///
    /// A runtime that knows which of its cells such loops run over leaves this off, and asks for a
    /// byte more for those.
    pub fn past_the_end(mut self, keeps: bool) -> Self {
        self.past_the_end = keeps;
        self
    }

    /// Whether mutators stay stopped from the first root to the last dead cell of a collection. Off
    /// by default: they run while cells are marked, and stop twice a collection for some
    /// microseconds, whatever the heap's size. `true` (or `URGE_STW=1`) tells faults of the barrier
    /// from others.
    pub fn stop_the_world(mut self, on: bool) -> Self {
        self.config.stop_the_world = on;
        self
    }

    /// How many threads mark beside the mutators, the collector's own among them; at least 1. By
    /// default as many as keep to a quarter of the processors, and besides those that no mutator
    /// wants. A heap in which there is little to mark makes do with one in any case.
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

    /// Whether handles, [`Root`](crate::Root)s, root ranges and root callbacks are all the roots,
    /// and stacks and registers are none.
    ///
    /// By default that is so until the fast tier is used for the first time
    /// ([`Mutator::alloc_gc`](crate::Mutator::alloc_gc),
    /// [`Mutator::alloc_raw`](crate::Mutator::alloc_raw), [`Heap::site`], a `Gc` made of a handle, machine
    /// code, ...): a heap that is used by scopes alone names all it holds, and no stale word of a
    /// stack keeps anything. From then on stacks are scanned conservatively. `true`: they never
    /// are; to allocate by the fast tier is an error
    /// ([`SiteError::FastTier`](crate::raw::SiteError::FastTier)), and a `Gc` of this heap lives
    /// only while something else keeps it. `false`: they are from the start.
    ///
    /// ```
    /// # use gc_core::{Field, Heap, Trace};
    /// # #[derive(Trace, Default)]
    /// # struct Node { next: Field<Node> }
    /// let heap = Heap::builder().exact(true).build()?;
    /// let mutator = heap.attach()?;
    /// let stale = mutator.scope(|s| Ok(s.alloc(Node::default())?.next.address() as usize))?;
    /// mutator.collect();
    /// assert_eq!(heap.stats().last.cells_live, 0); // though this stack still has its address
    /// assert_ne!(stale, 0);
    /// // SAFETY: it is refused.
    /// assert!(unsafe { mutator.alloc_gc(Node::default()) }.is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn exact(mut self, on: bool) -> Self {
        self.config.exact = Some(on);
        self
    }

    /// Whether a collection that is due may be a *young* one: it takes what earlier ones found
    /// alive for alive, without looking, and frees only what is dead of what was allocated since
    /// the last. [`Young::WherePays`] by default: where most of the heap's cells with edges are of
    /// [immutable](crate::raw::Kind::immutable) kinds, and as long as most of what is allocated
    /// dies young.
    ///
    /// [`collect`](Heap::collect) and [`request_collection`](Heap::request_collection) always look
    /// at all cells. In the environment `URGE_YOUNG` is `0`, `1` or, for stress, `always`. A heap
    /// that [stops the world](Self::stop_the_world) has no young collections.
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

    /// How the heap is put under stress: more collections than it needs, for tests. Not at all by
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

    /// How long after the last collection a heap is collected that asks for none, so that what has
    /// died meanwhile is freed and goes back to the system. Two minutes by default, as in Go; zero:
    /// never. In the environment `URGE_IDLE`, in seconds.
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

    /// Takes the container's limit for the [`memory_limit`](Self::memory_limit): the smallest
    /// `memory.max` of the process's cgroups (`memory.limit_in_bytes` in the first version), read
    /// once, in [`build`](Self::build). Where they have none, the heap has none either. A
    /// `memory_limit` that is set besides counts if it is smaller: set one, if much of the
    /// container's memory is for something else than the heap. In the environment
    /// `URGE_MEMORY_LIMIT=cgroup`.
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().memory_limit_from_cgroup().build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn memory_limit_from_cgroup(mut self) -> Self {
        self.config.cgroup = true;
        self
    }

    /// Builds the heap: maps its memory and starts its collector's thread.
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
            idle_after: Some(config.idle).filter(|after| !after.is_zero()),
            vain: gc_preempt::Mutex::new(Vain::default()),
            markers: config.markers,
            phase: AtomicU8::new(0),
        });
        let thread = collector::spawn(&state).map_err(BuildError::Thread)?;
        collector::enrol(&state);
        Ok(Heap::new(shared, state, thread))
    }
}

impl Heap {
    /// A builder with the defaults.
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
    /// A value that is wrong, of the builder or the environment.
    Config(ConfigError),
    /// The system refused address space.
    Map(MapError),
    /// The heap's memory cannot be laid out as asked.
    Space(SpaceError),
    /// Threads cannot be stopped here.
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
