//! The heap as an embedder holds it, and how it is built.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gc_preempt::code::{CodeError, CodeGuard, CodeSpec, CodeWhat, FrameRule};
use gc_preempt::stackmap::StackMaps;
use gc_preempt::{Stopped, World};

use crate::api::mutator::{AttachError, Mutator};
use crate::api::root::{RawRoot, RootCallback};
use crate::api::space::Memory;
use crate::barrier;
use crate::cgroup;
use crate::collector::{self, OldMarks, Pace, Requests, Shared, context_of};
use crate::collector::{OverFork, fork};
use crate::config::{Config, ConfigError, Young};
use crate::dying::Dying;
use crate::encoding::Encoding;
use crate::error::{SiteError, SpaceError};
use crate::fault::{planted, protected};
use crate::heap::{Cell, Site};
use crate::kind::{Kind, KindError, KindId};
use crate::memory::MapError;
use crate::pacer::{Policy, Vain};
use crate::roots::{RootVisitor, encoding_number};
use crate::stacks::Stacks;
use crate::stats::{HeapStats, Ledger};
use crate::thread::Thread;

/// Configures a [`Heap`]. Made by [`Heap::builder`].
///
/// The environment overrides what is set here, so that a finished program can be looked into:
/// `URGE_ASYNC`, `URGE_INJECT`, `URGE_STW`, `URGE_CONTINUOUS`, `URGE_LINGERING`, `URGE_TRACE`,
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
    /// Together with [`collect_every`](Self::collect_every)`(Some(1))` a lost root shows at the
    /// next read. A stop takes as long as the heap is large. Off by default.
    ///
    /// ```
    /// use gc_core::{Gc, Heap, POISON};
    /// let heap = Heap::builder().poison(true).build()?;
    /// let lost: Vec<Gc<u64>> = std::thread::scope(|s| {
    ///     let make = || {
    ///         let mutator = heap.attach().unwrap();
    ///         // SAFETY: it is not safe: in a Vec it dangles, and this example shows how that is found.
    ///         (0..100).map(|_| unsafe { mutator.alloc_raw(7u64) }.unwrap()).map(Send).collect::<Vec<_>>()
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
    /// host for the memory. Whoever counts these gives the heap's peak here. It takes a kernel of
    /// at least 5.14, and does nothing in an older one, or where memory is short.
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
        if !encodings.contains(&Encoding::RAW) && !planted("raw-if-asked") {
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
    /// that of the bytes asked for: code that writes to the end of the size class ([`Site::size`])
    /// asks for as many.
    ///
    /// A runtime that knows which of its cells such loops run over leaves this off, and asks for a
    /// byte more for those.
    pub fn past_the_end(mut self, keeps: bool) -> Self {
        self.past_the_end = keeps;
        self
    }

    /// Stress: a full collection after so many allocations of a mutator, or with [`Young::Always`]
    /// perhaps a young one. For tests; 1 collects at every allocation.
    pub fn collect_every(mut self, allocations: Option<u64>) -> Self {
        self.config.collect_every = allocations;
        self
    }

    /// Whether mutators run while cells are marked, so that they stop twice a collection for some
    /// microseconds, whatever the heap's size. On by default; `false` (or `URGE_STW=1`) stops them
    /// from the first root to the last dead cell, which tells faults of the barrier from others.
    pub fn concurrent(mut self, on: bool) -> Self {
        self.config.stop_the_world = !on;
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
    /// ([`Mutator::alloc_raw`], [`Mutator::alloc`], [`Heap::site`], a `Gc` made of a handle,
    /// machine code, ...): a heap that is used by scopes alone names all it holds, and no stale
    /// word of a stack keeps anything. From then on stacks are scanned conservatively. `true`: they
    /// never are; to allocate by the fast tier is an error
    /// ([`SiteError::FastTier`](crate::SiteError::FastTier)), and a `Gc` of this heap lives only
    /// while something else keeps it. `false`: they are from the start.
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
    /// assert!(unsafe { mutator.alloc_raw(Node::default()) }.is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn exact(mut self, on: bool) -> Self {
        self.config.exact = Some(on);
        self
    }

    /// Whether a collection that is due may be a *young* one: it takes what earlier ones found
    /// alive for alive, without looking, and frees only what is dead of what was allocated since
    /// the last. [`Young::WherePays`] by default: where most of the heap's cells with edges are of
    /// [immutable](crate::Kind::immutable) kinds, and as long as most of what is allocated dies
    /// young.
    ///
    /// [`collect`](Heap::collect) and [`request_collection`](Heap::request_collection) always look
    /// at all cells. In the environment `URGE_YOUNG` is `0`, `1` or, for stress, `always`. A heap
    /// that is not [`concurrent`](Self::concurrent) has no young collections.
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

    /// Stress: collections keep each of their phases open for some hundred microseconds, however
    /// small the heap is, so that mutators meet them. For tests.
    pub fn lingering(mut self, on: bool) -> Self {
        self.config.lingering = on;
        self
    }

    /// Stress: [lingering](Self::lingering) collections follow each other without being asked for.
    /// For tests.
    pub fn continuous(mut self, on: bool) -> Self {
        self.config.continuous = on;
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
        register_units(&world).map_err(BuildError::Code)?;
        // Cells of the collector's own tables are logged as they are, whatever the kinds'
        // encodings.
        encoding_number(Encoding::RAW).expect("a process has less than 1024 encodings");
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
            log: memory.log,
            roots: memory.roots,
            stacks: Stacks::new(config.exact),
            finalizers: memory.finalizers,
            drops: memory.drops,
            dying: Dying::new()?,
            types: memory.types,
            requests: Requests::new(config.continuous, config.lingering),
            contexts: gc_preempt::Mutex::new(memory.contexts),
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
            verify: memory.verify,
            poison: config.poison,
            marking: AtomicU32::new(0),
            scan: AtomicU64::new(0),
            clearing: AtomicBool::new(false),
            concurrent: !config.stop_the_world,
            young: config.young,
            idle_after: Some(config.idle).filter(|after| !after.is_zero()),
            vain: gc_preempt::Mutex::new(Vain::default()),
            markers: config.markers,
            phase: AtomicU8::new(0),
        });
        let thread = spawn_collector(&shared).map_err(BuildError::Thread)?;
        fork::enrol(&shared);
        Ok(Heap {
            handle: Arc::new(Handle {
                shared,
                thread: Mutex::new(Some(thread)),
            }),
        })
    }
}

/// Registers the barrier's units, once a process.
fn register_units(world: &World) -> Result<(), CodeError> {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if *done || planted("no-restart") {
        return Ok(());
    }
    for range in barrier::units() {
        let spec = CodeSpec {
            range,
            what: CodeWhat::Restart,
            owner: None,
        };
        // SAFETY: the units are text of this program, and made to be begun again from every
        // instruction: see `barrier.rs`.
        let guard = unsafe { world.register_code(spec) }?;
        // The units are part of this crate's text: they are never unregistered.
        core::mem::forget(guard);
    }
    *done = true;
    Ok(())
}

/// Starts the collector's thread, with every signal blocked but SIGURG: no handler of the host's
/// may run there, least of all during a stop. SIGURG is how a parked thread finds out that a root
/// callback's panic waits for a lock.
pub(crate) fn spawn_collector(shared: &Arc<Shared>) -> std::io::Result<Thread> {
    let shared = shared.clone();
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are written by the calls before they are read.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::sigdelset(all.as_mut_ptr(), libc::SIGURG);
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    shared.requests.alive.store(true, Ordering::SeqCst);
    let body = {
        let shared = shared.clone();
        move || {
            let bomb = AbortOnPanic;
            collector::run(&shared);
            core::mem::forget(bomb);
        }
    };
    // SAFETY: the thread owns what it uses.
    let thread = unsafe { Thread::start("urge-collector", body) };
    // SAFETY: the call above has filled `before`.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), core::ptr::null_mut()) };
    if thread.is_err() {
        shared.requests.alive.store(false, Ordering::SeqCst);
    }
    thread
}

/// A collector that panicked has left the heap half collected, and every waiter waiting.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        eprintln!("urge: the collector's thread panicked; the heap is in no defined state");
        std::process::abort();
    }
}

/// A garbage-collected heap. Clones are handles on the same heap; the last one to go ends its
/// collector's thread and unmaps it.
///
/// [`Mutator`]s, [`RawRoot`]s and the other guards keep the heap alive. The last handle may go
/// anywhere: where its thread may not wait for the collector's, as inside
/// [`no_preempt`](Mutator::no_preempt), that ends by itself a little later.
///
/// ```
/// # use gc_core::Heap;
/// let (one, other) = (Heap::builder().build()?, Heap::builder().build()?);
/// let mutator = one.attach()?;
/// mutator.no_preempt(|| drop(other));
/// mutator.collect();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Heap {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    thread: Mutex<Option<Thread>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        protected(|| self.shared.requests.shut_down());
        let thread = self
            .thread
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // The last handle may be an owner's that the collector itself has just dropped: it ends by
        // itself then. Another heap may want this thread to stop meanwhile, so the wait is a
        // blocking one. And a collector that waits for the stop of this thread, or for the end of
        // its `no_preempt`, ends after it.
        let Some(thread) = thread else { return };
        if !thread.is_current()
            && !gc_preempt::holds_a_stop()
            && !gc_preempt::in_no_preempt_here()
            && protected(|| self.shared.requests.can_be_joined())
        {
            gc_preempt::blocking_here(|| thread.join());
        } else {
            thread.detach();
        }
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

    pub(crate) fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    pub(crate) fn shared_arc(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// Describes cells to the heap.
    ///
    /// # Errors
    /// [`KindError`]: there are as many kinds as there can be, or the encoding cannot match any
    /// word.
    pub fn kind(&self, kind: Kind) -> Result<KindId, KindError> {
        let shared = self.shared();
        for encoding in kind.encodings() {
            encoding_number(*encoding).ok_or(KindError::TooMany)?;
        }
        shared.space.add_kind(kind)
    }

    /// The site that allocates cells of `bytes` bytes of `kind` inline.
    ///
    /// # Errors
    /// [`SiteError`]: the kind is unknown, or cells of this size cannot have a site: above
    /// [`MAX_SMALL`](crate::MAX_SMALL) bytes, or of as many with
    /// [`past_the_end`](HeapBuilder::past_the_end).
    pub fn site(&self, kind: KindId, bytes: usize) -> Result<Site, SiteError> {
        self.shared().stacks.use_fast_tier()?;
        self.site_of(kind, bytes)
    }

    /// [`site`](Self::site), for the safe tier.
    pub(crate) fn site_of(&self, kind: KindId, bytes: usize) -> Result<Site, SiteError> {
        protected(|| self.shared().space.site(kind, bytes))
    }

    /// Attaches the running thread, which may then allocate until the result is dropped. It does so
    /// on its own stack: a stop waits for a thread that is on another one (a coroutine's) until it
    /// is back.
    ///
    /// # Errors
    /// [`AttachError`]: the thread is attached to this heap already, or the system refused what it
    /// needs.
    pub fn attach(&self) -> Result<Mutator, AttachError> {
        Mutator::attach(self)
    }

    /// Runs a full collection and waits for it; gives its number. Requests of several threads share
    /// one collection where one serves all.
    ///
    /// From a mutator it waits in `blocking`: what only registers and stack hold is scanned as
    /// ever.
    ///
    /// # Panics
    /// Inside `no_preempt`, in a root callback, and on a thread that holds a stop
    /// ([`Heap::with_stopped`]), where waiting would be for ever. See [`Heap::request_collection`].
    #[track_caller]
    pub fn collect(&self) -> u64 {
        self.collect_now(true)
    }

    /// Runs a collection as one that is due is run, and waits for it; gives its number. It is a
    /// young one, if the last one left marks for it: see [`HeapBuilder::young_collections`]. For an
    /// embedder that knows when little is alive of what was allocated lately, as between two frames
    /// or requests.
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().build()?;
    /// heap.collect_young();
    /// assert!(!heap.stats().last.young, "nothing is known of the cells of a new heap");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// As [`collect`](Self::collect).
    #[track_caller]
    pub fn collect_young(&self) -> u64 {
        self.collect_now(false)
    }

    /// Collects all cells, or perhaps young ones only, and waits for it.
    #[track_caller]
    pub(crate) fn collect_now(&self, whole: bool) -> u64 {
        self.on_collectors_thread(|requests| {
            let number = requests.ask(whole);
            requests.wait(number);
            number
        })
    }

    /// Has the collector's thread do what `ask_and_wait` asks for, and waits in `blocking`.
    #[track_caller]
    pub(super) fn on_collectors_thread(&self, ask_and_wait: impl FnOnce(&Requests) -> u64) -> u64 {
        let _kept = gc_preempt::KeepErrno::new();
        assert!(
            !self.on_collector(),
            "collect() inside a root callback or a code owner's drop: ask with request_collection() instead"
        );
        assert!(
            !gc_preempt::holds_a_stop(),
            "collect() on a thread that has stopped a world: the collection would wait for its resume"
        );
        assert!(
            !gc_preempt::in_no_preempt_here(),
            "collect() inside no_preempt: it would wait for a stop, and the stop for the end of the section; ask with request_collection() instead"
        );
        let ask_and_wait = || {
            self.revive();
            ask_and_wait(&self.shared().requests)
        };
        if planted("wait-running") {
            ask_and_wait()
        } else {
            gc_preempt::blocking_here(ask_and_wait)
        }
    }

    /// Asks for a full collection and does not wait for it; gives its number.
    pub fn request_collection(&self) -> u64 {
        self.request(true)
    }

    /// Asks for a collection: of all cells, or one that may be young.
    fn request(&self, whole: bool) -> u64 {
        let _kept = gc_preempt::KeepErrno::new();
        let requests = &self.shared().requests;
        let alive = requests.alive.load(Ordering::SeqCst);
        if !alive && !gc_preempt::in_no_preempt_here() {
            gc_preempt::blocking_here(|| self.revive());
        }
        protected(|| requests.ask(whole))
    }

    /// Asks for a collection if `used` bytes in use make one due and nobody has asked yet; says
    /// whether it has.
    ///
    /// In the child of a fork the collector's thread has to be made anew, which cannot be done
    /// inside `no_preempt`. Whoever is there does not ask, for a request that nobody hears would
    /// keep all others from asking: the next allocation outside does.
    #[inline]
    pub(crate) fn ask_if_due(&self, used: u64) -> bool {
        let shared = self.shared();
        if !shared.pace.is_due(used) {
            return false;
        }
        let heard = shared.requests.alive.load(Ordering::SeqCst)
            || !gc_preempt::in_no_preempt_here()
            || planted("asks-the-dead");
        let asks = heard && shared.pace.ask();
        if asks {
            self.request(false);
        }
        asks
    }

    fn on_collector(&self) -> bool {
        // SAFETY: no arguments, no memory. Relaxed: see `collector::run`.
        self.shared().collector.load(Ordering::Relaxed) == unsafe { libc::pthread_self() } as usize
    }

    /// In the child of a fork the collector's thread does not exist: starts another.
    /// Inside `blocking`: it locks and calls malloc.
    fn revive(&self) {
        if self.shared().requests.alive.load(Ordering::SeqCst) {
            return;
        }
        let mut thread = self
            .handle
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.shared().requests.alive.load(Ordering::SeqCst) {
            return;
        }
        match spawn_collector(self.shared_arc()) {
            // The parent's thread cannot be joined here.
            Ok(new) => *thread = Some(new),
            Err(error) => panic!("no thread for the collector in the child of a fork: {error}"),
        }
    }

    /// The heap's figures.
    pub fn stats(&self) -> HeapStats {
        let shared = self.shared();
        let mut stats = protected(|| shared.ledger.read());
        stats.sweeping = !shared.space.ready_to_mark();
        stats.allocated_since = shared.space.allocated_since();
        stats.allocated_total += stats.allocated_since;
        stats.used_bytes = protected(|| shared.space.used_bytes());
        (stats.high_water_bytes, stats.metadata_bytes) =
            protected(|| shared.space.metadata_bytes());
        stats.queue_peak_bytes = shared.queue.peak_bytes();
        stats.external_bytes = shared.pace.external();
        stats.trigger_bytes = shared.pace.trigger();
        stats.goal_bytes = shared.pace.goal();
        stats.finalizers_waiting = shared.finalizers.waiting();
        stats
    }

    /// The heap's mutators as `gc-preempt` sees them. A thread attached through it is stopped and
    /// scanned, but is no mutator of the heap.
    pub fn world(&self) -> &World {
        &self.shared().world
    }

    /// Stops the heap's mutators, calls `f`, resumes them. For harnesses and inspectors; `f` must
    /// keep to what [`World::stop`](gc_preempt::World::stop) says of a stopped world, and not touch
    /// this heap's roots or finalizers. Mutators that have been in `blocking` for long are not
    /// among [`Stopped::mutators`](gc_preempt::Stopped::mutators), but
    /// [`Stopped::aside`](gc_preempt::Stopped::aside).
    ///
    /// # Errors
    /// If the caller is itself a mutator of this heap.
    pub fn with_stopped<R>(
        &self,
        f: impl FnOnce(&Stopped<'_>) -> R,
    ) -> Result<R, gc_preempt::StopError> {
        let stopped = self.shared().world.stop()?;
        let result = f(&stopped);
        drop(stopped);
        Ok(result)
    }

    /// The heap's addresses. Whatever lies outside names no cell of it.
    pub fn reserved(&self) -> Range<usize> {
        self.shared().space.reserved()
    }

    /// Stops the heap's mutators and calls `f` with every allocated cell in order of addresses,
    /// those included that a mutator has ready for its next allocations
    /// ([`for_each_unallocated`](Self::for_each_unallocated)). For oracles and inspectors; `f` is
    /// bound as in [`with_stopped`](Self::with_stopped).
    ///
    /// # Errors
    /// If the caller is itself a mutator of this heap.
    pub fn for_each_cell(&self, mut f: impl FnMut(Cell)) -> Result<(), gc_preempt::StopError> {
        self.with_stopped(|_| self.shared().space.for_each_cell(&mut f))
    }

    /// Stops the heap's mutators and calls `f` with the address of every cell that one of them has
    /// ready: [`for_each_cell`](Self::for_each_cell) finds it, but no program has it yet. It is
    /// zero. `f` is bound as in [`with_stopped`](Self::with_stopped).
    ///
    /// ```
    /// use gc_core::{Heap, Kind};
    ///
    /// let heap = Heap::builder().build()?;
    /// let leaf = heap.kind(Kind::leaf("leaf"))?;
    /// let mutator = heap.attach()?;
    /// // SAFETY: the cell is used before the next collection only.
    /// let cell = unsafe { mutator.alloc(leaf, 16)? }.as_ptr() as usize;
    /// let look = || {
    ///     let (mut all, mut ready) = (0, 0);
    ///     heap.for_each_cell(|_| all += 1).unwrap();
    ///     heap.for_each_unallocated(|other| {
    ///         assert_ne!(other, cell);
    ///         ready += 1;
    ///     })
    ///     .unwrap();
    ///     assert_eq!(all, ready + 1);
    /// };
    /// mutator.blocking(|| std::thread::scope(|s| drop(s.spawn(look).join())));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If the caller is itself a mutator of this heap.
    pub fn for_each_unallocated(
        &self,
        mut f: impl FnMut(usize),
    ) -> Result<(), gc_preempt::StopError> {
        let space = &self.shared().space;
        self.with_stopped(|stopped| {
            for mutator in stopped.mutators() {
                if let Some(context) = context_of(&mutator) {
                    // SAFETY: the runs are those of a stopped mutator of this heap.
                    unsafe { context.local.for_each_unallocated(space, &mut f) };
                }
            }
        })
    }

    /// Registers managed code with its stack maps: frames of it that are stopped at a call are
    /// scanned exactly, slot words being edges of `encoding`. Dropping the guard ends that once no
    /// stack returns into `range` any more; `owner` is dropped then.
    ///
    /// # Errors
    /// [`CodeError`]: the range is empty or overlaps other code.
    ///
    /// # Safety
    /// As for [`World::register_code`]: the code stays mapped until `owner` is dropped (for ever
    /// without one), keeps the System V convention and the frame rule, and at each call every
    /// reference that lives across it stands in a slot that `maps` names.
    pub unsafe fn register_code(
        &self,
        range: Range<usize>,
        frames: FrameRule,
        maps: StackMaps,
        encoding: Encoding,
        owner: Option<Box<dyn Any + Send>>,
    ) -> Result<CodeGuard, CodeError> {
        self.shared().stacks.are_used();
        let encoding = encoding_number(encoding).expect("a process has less than 1024 encodings");
        let spec = CodeSpec {
            range,
            what: CodeWhat::Managed {
                frames,
                maps,
                encoding,
            },
            owner,
        };
        // SAFETY: the caller's contract.
        unsafe { self.shared().world.register_code(spec) }
    }

    /// A handle that keeps `cell` alive from anywhere. `None`: there are as many handles as there
    /// can be.
    ///
    /// # Safety
    /// `cell` is a live cell of this heap.
    pub unsafe fn raw_root(&self, cell: NonNull<u8>) -> Option<RawRoot> {
        self.shared().stacks.are_used();
        RawRoot::new(self, cell.as_ptr() as usize)
    }

    /// Has `callback` report roots at every collection, until the guard is dropped.
    ///
    /// # Safety
    /// The callback runs on the collector's thread while every mutator is stopped, perhaps in the
    /// middle of anything. It must not allocate with malloc, take a lock that a mutator may hold
    /// outside `no_preempt`, print or panic, and may only read what mutators change inside
    /// `no_preempt`.
    ///
    /// # Panics
    /// If the heap has 65536 callbacks already.
    #[track_caller]
    pub unsafe fn add_root_callback(
        &self,
        callback: impl FnMut(&mut RootVisitor<'_>) + Send + 'static,
    ) -> RootCallback {
        self.shared().stacks.are_used();
        let callback = Box::new(callback);
        let added = protected(|| self.shared().roots.lock().add_callback(callback));
        let Ok(at) = added else {
            panic!("a heap has at most 65536 root callbacks");
        };
        RootCallback {
            heap: self.clone(),
            at,
        }
    }

    /// Reports memory outside of the heap that cells keep (`delta` may be negative when it is
    /// freed): it counts towards the next collection as if it were in the heap.
    pub fn report_external(&self, delta: i64) {
        let shared = self.shared();
        shared.pace.report(delta);
        if delta > 0 {
            self.ask_if_due(shared.pace.used(shared.space.allocated_since()));
        }
    }

    /// How many finalizable cells died and wait for [`Mutator::next_finalizer`].
    pub fn finalizers_waiting(&self) -> u64 {
        self.shared().finalizers.waiting()
    }
}

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heap")
            .field("stats", &self.stats())
            .finish()
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

impl std::error::Error for BuildError {}

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
