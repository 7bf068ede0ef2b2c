//! A garbage-collected heap for people who write languages: it does not move objects, stops threads
//! at *any* instruction, and costs the code that runs in between nothing.
//!
//! Loops need no polls. Compiled code needs a stack map for its calls only, not for every
//! instruction. A thread that spins in an empty loop, sits in libc or stands in the middle of an
//! allocation is stopped within microseconds, scanned, and resumed where it stood. What stops it is
//! [`gc_preempt`]; this crate is the heap, the collector, and what you see of them.
//!
//! ```
//! use gc_core::{Field, Gc, Heap, Local, Root, Trace};
//! use std::io::Read;
//! # use gc_core::jit::{CodeSpec, FrameRule, StackMaps};
//! # use gc_core::raw::Encoding;
//!
//! #[derive(Trace, Default)]
//! struct Node {
//!     next: Field<Node>, // an edge: born null, changed by one atomic store through the write barrier
//!     value: u64,
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (mut socket, mut buf) = (std::io::Cursor::new(b"input".to_vec()), [0; 8]);
//! # let machine_code = memmap2::MmapMut::map_anon(4096)?;
//! # let range = machine_code.as_ptr() as usize..machine_code.as_ptr() as usize + 4096;
//! # let stack_maps = StackMaps::from_cranelift(&[])?;
//! let heap = Heap::builder().gc_percent(100).hard_limit(1 << 30).build()?;
//! let mutator = heap.attach()?;                        // !Send; detaches on drop
//!
//! // The safe tier: handles live in a scanned table, and what would dangle does not compile.
//! let root: Root<Node> = mutator.scope(|s| {
//!     let node: Local<'_, Node> = s.alloc(Node::default())?;
//!     let other = s.alloc(Node { value: 2, ..Node::default() })?;
//!     node.next.set(s, &other);
//!     Ok(heap.root(&node))                             // for malloc'd structures, other threads
//! })?;
//!
//! // The fast tier: a bare pointer, for registers, the stack, `Field` and `Root` only.
//! let raw: Gc<Node> = unsafe { mutator.alloc_gc(Node { value: 3, ..Node::default() })? };
//! assert_eq!(raw.value, 3);
//!
//! mutator.blocking(|| socket.read(&mut buf))?;         // the collector neither waits for this thread nor signals it
//! mutator.no_preempt(|| ());                           // not stopped in here; keep it short
//!
//! // A JIT says where the references of its frames are.
//! let code = CodeSpec::new(range, FrameRule::Rbp).stack_maps(stack_maps, Encoding::RAW);
//! let code = unsafe { heap.register_code(code)? };
//!
//! heap.collect();
//! mutator.with_scope(|s| assert_eq!(root.next.get(s).unwrap().value, 2));
//! # drop(code);
//! # Ok(())
//! # }
//! ```
//!
//! # Which tier
//!
//! | | safe | fast | raw |
//! |---|---|---|---|
//! | for | a runtime's own structures, an AST interpreter | its hot paths | tagged words, a JIT |
//! | a reference is | [`Local`] in a [`Scope`], [`Root`] anywhere | [`Gc`] | a word |
//! | a cell is described by | `#[derive(Trace)]` | the same | a [`Kind`] |
//! | an allocation is | a bump, and a slot of the handle table | a bump | a bump |
//! | it is made by | [`Scope::alloc`] | [`Mutator::alloc_gc`] | [`Mutator::alloc_at`], or [`jit`] |
//! | a store is | [`Field::set`] | [`Field::set_gc`] | [`Mutator::write`], or [`jit`] |
//! | a root is made by | [`Heap::root`] | [`Heap::root_gc`] | [`Heap::root_raw`] |
//! | an edge is | [`Field`], [`Array`] of them | the same | a word in any [`Encoding`] |
//! | what can go wrong | a panic | a dangling pointer | the same |
//!
//! The fast tier's names end in `_gc`; the raw tier's speak of cells and words. All three share one
//! heap, and a cell of one may lead to a cell of another.
//!
//! [`Kind`]: crate::raw::Kind
//! [`Encoding`]: crate::raw::Encoding
//!
//! **Safe** means: whatever safe code does, nothing dangles. A [`Local`] is rooted until its scope
//! ends, so it may lie in a `Vec`; the scope's lifetime keeps it from leaving. Fields check by
//! address that they and what they are given lie in the scope's heap. What a type holds must be
//! [`Send`] and [`Sync`], since cells are shared between threads and change by interior mutability
//! only.
//!
//! **Fast** means: a [`Gc`] is one word, and nothing keeps its cell but what the collector scans
//! anyway: registers, stacks, fields, roots. In a `Vec` it dangles. [`keep_alive`] says how long a
//! cell is needed where the compiler or foreign code has only something computed from it.
//!
//! # Kinds: what the collector knows of a cell
//!
//! A cell has no header. Its block knows its size and its [`Kind`](crate::raw::Kind): a leaf, edges
//! at fixed words, an array of edges from some word on, edges that a function reports, words of
//! which any may be a pointer, weak words, or ephemerons. So an object of two pointers takes 16
//! bytes. The derive makes a leaf or fixed words out of a struct; [`Array`], [`Bytes`], [`Weak`],
//! [`WeakArray`], [`Ephemeron`] and the tables of [`WeakMap`] are shapes of their own.
//!
//! Two things hold for every cell. **It is zero until written**, and a zero word is no edge: a
//! thread may be stopped between an allocation and the stores that follow, so what the collector
//! finds half made must be harmless (only in leaves nothing can be found, and
//! [`Kind::leaf_uninit`](crate::raw::Kind::leaf_uninit) is not cleared). A kind whose function
//! depends on content (a tag, a length) has that written first. And **an edge is one aligned word
//! at a fixed place**: markers read it while others write it. Hence no edges in enums, options or
//! vectors; a table that grows is a field to an array, replaced by one store.
//!
//! # Roots: where it looks
//!
//! | what | how it is scanned |
//! |---|---|
//! | registers, vectors, the innermost frame of each thread | word by word |
//! | frames of registered code at a call | by its stack map, exactly |
//! | frames of native code (Rust, C) | word by word |
//! | handles of open scopes, [`Root`], [`RawRoot`] | exactly |
//! | a declared [`RootRange`]: an interpreter's own stack | exactly, up to its limit |
//! | a [`RootCallback`] | as it reports |
//!
//! Word by word means: any word that names a cell, or the inside of one, keeps that cell. It costs
//! precision, never soundness: a stale word may keep a cell too long. A range's limit is valid at
//! every instruction. A callback reads only what mutators change inside
//! [`no_preempt`](Mutator::no_preempt). The collector looks nowhere else: not in malloc's memory,
//! not in statics, not in thread-locals.
//!
//! [`RawRoot`]: crate::raw::RawRoot
//! [`RootRange`]: crate::raw::RootRange
//! [`RootCallback`]: crate::raw::RootCallback
//!
//! # Barriers: what a store costs
//!
//! An edge of a published cell is changed through the write barrier ([`Field::set`],
//! [`Mutator::write`], or the unit that [`jit`] names for machine code): while marking goes on
//! beside the program, it keeps the old value, so that the snapshot from which marking began stays
//! whole. Stores into a new cell, into stacks, handles and root ranges need none. libc's `memcpy`
//! and `qsort` must never touch edges. A weak word is loaded by a unit of its own
//! ([`Weak::upgrade`], [`Mutator::load_weak`]), which makes what it loads strong; weak tables that
//! grow are copied by [`Mutator::copy_weak`], which does not, and an ephemeron's pair is changed by
//! [`Mutator::write_pair`].
//!
//! # Threads
//!
//! A thread that touches the heap attaches ([`Heap::attach`]) and has a [`Mutator`], which stays on
//! it. Threads that do not attach may hold and read [`Root`]s. [`Mutator::blocking`] is for
//! everything that may take long outside of the heap; there the heap is out of bounds, and the safe
//! tier panics. [`Mutator::no_preempt`] keeps the thread from being stopped: a whole stop waits for
//! it, so it is short, allocates nothing with malloc, and takes no lock that a thread holds outside
//! of such a section. A mutator runs on its thread's own stack: while it is on another one (a
//! coroutine's, a signal handler's alternate stack), a stop waits until it is back, and `blocking`
//! panics. The collector is a thread of its own. A thread may attach to several heaps. A child of a
//! fork has the forking thread's heaps whole.
//!
//! # Signals
//!
//! Threads are stopped by SIGURG. A handler that the host had installed before is called for each
//! of them. System calls are restarted, but some (`poll`, `epoll_wait`, `nanosleep`, timed socket
//! calls; the list is at [`World`](gc_preempt::World)) end in EINTR all the same, and a `write` or
//! `read` of many bytes may end with a part of them: make them inside `blocking`, where no signal
//! comes. errno is kept. A host that blocks SIGURG, or replaces the handler without calling it, is
//! named on stderr by a watchdog. `URGE_ASYNC=0` does without signals: threads then stop when they
//! allocate or block, and when `no_preempt` ends.
//!
//! # Values that need `Drop`, finalizers, weak references
//!
//! `Drop` never runs in the sweep, nor on the collector's thread. A value that needs it (a string,
//! a file, a box) waits for [`Mutator::drop_dead_values`] once its cell is dead; weak references to
//! it are null by then, and so are its own fields, and what these led to may have been freed. The
//! raw tier's finalizers ([`Mutator::register_finalizer`]) hand out the dead cell itself, with all
//! that it leads to; weak references to it are null, too, unless their kind is
//! [`Kind::long`](crate::raw::Kind::long).
//!
//! # Queues and stale words
//! A word that a compiler has left on a stack or in a register may name a node that a queue has
//! long let go, and so keep it (raw tier, and native code). Where each node leads to the next, it
//! keeps *all that came after*: the queue's whole history, for as long as the word is there. So a
//! queue takes the edge out of a node as it takes the node ([`Field::take`], [`Field::take_gc`]):
//! then a stale word keeps one node.
//!
//! # Limits
//!
//! [`HeapBuilder::hard_limit`] bounds the cells' memory; beyond it an allocation collects, and then
//! is an [`AllocError`], never an abort. A heap reserves 256 GiB of addresses (of the 128 TiB that
//! a process has; [`HeapBuilder::reserve`] makes it less) and takes memory as it is used. Types are
//! aligned to at most 16 bytes. Linux on x86-64 only.
//!
//! A collection stops the world twice, for some microseconds each: to scan roots, and to make an
//! end of marking. Marking and sweeping go on beside the program ([`HeapBuilder::stop_the_world`]
//! turns that off).
//!
//! # Pace
//!
//! The heap may grow by [`HeapBuilder::gc_percent`] of what is alive; by then a collection should
//! have ended. It begins as much earlier as the last ones took, and has a quarter of the processors
//! for itself, or those that no mutator wants. A thread that allocates faster than can be marked
//! helps to mark: with up to a quarter of its time while the heap is below its goal, with more
//! beyond it. Where the heap has grown half as much again as it should, allocation waits, a
//! millisecond for each 8 KiB. [`HeapBuilder::memory_limit`] brings collections forward instead of
//! failing, until they would take as much time as the program. `URGE_TRACE=1` prints what came of
//! it, a line a collection; [`Heap::stats`] has the same, and histograms of all stops.
//!
//! # Young collections
//!
//! A cell of a kind that is [`immutable`](crate::raw::Kind::immutable) leads to older cells only,
//! and for ever to the same. So once a collection has found it alive, the next ones need not look
//! at it: they take it for alive, and free what was allocated since and is dead. That is a *young*
//! collection. It is done of itself where most of the heap's cells with edges are of such kinds and
//! most of what is allocated dies young, and when what has died and is old takes half of the room
//! to grow, a whole collection follows ([`HeapBuilder::young_collections`],
//! [`Heap::collect_young`]). Nothing moves, and stores cost what they cost: all old cells of other
//! kinds are looked at each time.
//!
//! # To read on
//!
//! `gc-core/examples/`: a small interpreter, a JIT's code, a host with a handler of its own, a
//! worker pool, a foreign call. Then the modules: [`raw`] has what a virtual machine with cells of
//! its own needs, and [`jit`] what machine code finds and calls. In the source, `heap/` holds
//! memory and answers "which cell does this address name?", `alloc/` is a mutator's side of it, and
//! `collector/` is the collector. In the repository, `docs/architecture.md` says how they work
//! together, and `docs/glossary.md` has the terms, each with its source.

#![deny(missing_docs, rustdoc::broken_intra_doc_links)]

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!(
    "gc-core runs on Linux on x86-64 only: it keeps addresses in 47 bits and stops threads with SIGURG"
);

extern crate self as gc_core; // what the derives name

mod alloc;
mod api;
mod barrier;
mod cgroup;
mod collector;
mod config;
mod dying;
mod encoding;
mod error;
mod fault;
mod finalize;
mod follow;
mod heap;
pub mod jit;
mod kind;
mod limits;
mod mark;
mod marked;
mod memory;
mod mutator;
mod pacer;
pub mod raw;
mod roots;
mod satb_log;
mod stacks;
mod stats;
mod thread;
mod tracer;
mod verify;
mod weak;

pub use api::array::{Array, Bytes};
pub use api::attach::AttachError;
pub use api::builder::{BuildError, HeapBuilder, Stress};
pub use api::ephemeron::{Ephemeron, WeakMap};
pub use api::field::Field;
pub use api::gc::{Gc, keep_alive};
pub use api::heap::Heap;
pub use api::local::{Local, Scope};
pub use api::mutator::Mutator;
pub use api::trace::{Leaf, Trace};
pub use api::typed_root::Root;
pub use api::weak::{Weak, WeakArray};
pub use config::{ConfigError, DEFAULT_RESERVE, MINIMUM_LIMIT, MINIMUM_RESERVE, Young};
pub use error::{AllocError, SpaceError, TableFull};
pub use gc_derive::{Leaf, Trace};
pub use heap::POISON;
pub use memory::MapError;
pub use stats::{CollectionStats, HeapStats, StopTimes, Times};

/// The heap's own parts, for this workspace's harness and benches. They trust the addresses that
/// they are given, and change without notice.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals {
    pub use crate::alloc::{LocalAllocator, Refill, bump};
    pub use crate::heap::{
        ColdPages, GRANULE, LargeReservation, LargeStep, MAX_RESERVE, MIN_RESERVE, PAGE, Space,
        SpaceConfig,
    };
    pub use crate::mark::{MarkQueue, Marker};
    pub use crate::marked::Marked;
    pub use crate::weak::WeakWork;
}

#[cfg(all(test, feature = "faults"))]
#[global_allocator]
static STRICT: gc_preempt::StrictAllocator = gc_preempt::StrictAllocator;

/// The README's example, as a test.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
