//! A garbage-collected heap for language runtimes: it does not move objects, it stops threads at
//! *any* instruction, and the code between two stops pays nothing for that.
//!
//! Loops need no polls. Compiled code needs stack maps for its calls only, not for every
//! instruction. A thread is stopped within microseconds wherever it is: in an empty loop, in libc,
//! or in the middle of an allocation. It is scanned there, and continues there. The crate
//! [`gc_preempt`] stops threads; this crate is the heap, the collector and their interface.
//!
//! ```
//! use gc_core::{Field, Gc, Heap, Local, Root, Trace};
//! use std::io::Read;
//! # use gc_core::jit::{CodeSpec, FrameRule, StackMaps};
//! # use gc_core::raw::Encoding;
//!
//! #[derive(Trace, Default)]
//! struct Node {
//!     next: Field<Node>, // an edge: null at first, changed by one atomic store with the barrier
//!     value: u64,
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (mut socket, mut buf) = (std::io::Cursor::new(b"input".to_vec()), [0; 8]);
//! # let machine_code = memmap2::MmapMut::map_anon(4096)?;
//! # let range = machine_code.as_ptr() as usize..machine_code.as_ptr() as usize + 4096;
//! # let stack_maps = StackMaps::from_cranelift(&[])?;
//! let heap = Heap::builder().gc_percent(100).hard_limit(1 << 30).build()?;
//! let mutator = heap.attach()?;                        // !Send; detaches when dropped
//!
//! // The safe tier: handles are roots, and a handle that outlives its scope does not compile.
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
//! mutator.blocking(|| socket.read(&mut buf))?;         // a stop does not wait for this thread
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
//! | it is made by | [`Scope::alloc`] | [`Mutator::alloc_gc`] | [`Mutator::alloc_raw`], [`jit`] |
//! | a store is | [`Field::set`] | [`Field::set_gc`] | [`Mutator::write`], or [`jit`] |
//! | a root is made by | [`Heap::root`] | [`Heap::root_gc`] | [`Heap::root_raw`] |
//! | an edge is | [`Field`], [`Array`] of them | the same | a word in any [`Encoding`] |
//! | what can go wrong | a panic | a dangling pointer | the same |
//!
//! Where the tiers do the same, the fast tier's name ends in `_gc`, and the raw tier's in `_raw`.
//! The three tiers share one heap, and a cell of one tier may lead to a cell of another. Where a
//! table is full, [`Heap::try_root`], [`Root::try_clone`] and [`Scope::try_hold`] return an error;
//! the functions without `try_` panic.
//!
//! [`Kind`]: crate::raw::Kind
//! [`Encoding`]: crate::raw::Encoding
//!
//! **Safe** means that safe code cannot make a dangling reference. A [`Local`] is a root until its
//! scope ends, so it may lie in a `Vec`; its lifetime keeps it inside the scope. A field checks by
//! address that it and its new value lie in the scope's heap. A type's members must be [`Send`] and
//! [`Sync`], since threads share cells, and a cell changes by interior mutability only.
//!
//! **Fast** means that a [`Gc`] is one word. Its cell lives only while the collector finds a
//! reference to it in a register, on a stack, in a field or in a root. A `Gc` in a `Vec` dangles.
//! Where the compiler or foreign code has only a value computed from the pointer, [`keep_alive`]
//! keeps the cell alive.
//!
//! # Kinds: where a cell's edges are
//!
//! A cell has no header. The page table gives its size and its [`Kind`](crate::raw::Kind): a leaf,
//! edges at fixed words, an array of edges from some word on, edges that a function reports, words
//! that are treated conservatively, weak words, or ephemerons. So an object of two pointers takes
//! 16 bytes. The derive describes a struct as a leaf or by fixed words. [`Array`], [`Slice`],
//! [`Bytes`], [`Weak`], [`WeakArray`], [`Ephemeron`] and the tables of [`WeakMap`] have kinds of
//! their own.
//!
//! Two rules hold for every cell:
//!
//! * **A new cell is zero, and a zero word is no edge.** A thread may be stopped between an
//!   allocation and the stores that follow, so the collector must be able to trace a
//!   half-initialised cell. Only a leaf of the kind
//!   [`Kind::leaf_uninit`](crate::raw::Kind::leaf_uninit) is not zeroed. If a kind's trace function
//!   depends on content (a tag, a length), the program stores that content first.
//! * **An edge is one aligned word at a fixed place.** Markers read it while mutators write it.
//!   Hence enums, options and vectors hold no edges in place. A table that grows is a field that
//!   leads to an array, and one store replaces the array. An enum of references and plain data is
//!   one word in a cell: a [`Dynamic`] value in a [`ValueField`].
//!
//! # Roots: where the collector looks
//!
//! | what | how it is scanned |
//! |---|---|
//! | registers, vectors, the innermost frame of each thread | word by word |
//! | frames of registered code at a call | by its stack map, exactly |
//! | frames of native code (Rust, C) | word by word |
//! | suspended stacks of [`coroutine`]s | as a thread's at a call |
//! | handles of open scopes, [`Root`], [`RawRoot`] | exactly |
//! | a declared [`RootRange`]: an interpreter's own stack | exactly, up to its limit |
//! | a [`RootCallback`] | as it reports |
//!
//! Word by word means that any word that names a byte of a cell keeps the cell. This costs
//! precision and never soundness: a stale word may keep a cell too long. A root range's limit must
//! be valid at every instruction of its thread. A callback may read only memory that mutators
//! change inside [`no_preempt`](Mutator::no_preempt). The collector scans nothing else: no memory
//! from malloc, no statics, no thread-locals.
//!
//! [`RawRoot`]: crate::raw::RawRoot
//! [`RootRange`]: crate::raw::RootRange
//! [`RootCallback`]: crate::raw::RootCallback
//!
//! # Barriers: what a store costs
//!
//! The write barrier changes an edge of a published cell: [`Field::set`], [`Mutator::write`], or
//! the code that [`jit`] describes for compilers. While marking is on, the barrier logs the old
//! value, so that marking keeps every cell that was reachable when it began. Stores into a new
//! cell, into stacks, handles and root ranges need no barrier. libc's `memcpy` and `qsort` must
//! never move edges. [`Weak::upgrade`] and [`Mutator::load_weak`] load a weak word and make its
//! target strong. [`Mutator::copy_weak`] copies weak words for tables that grow, without making
//! their targets strong. [`Mutator::write_pair`] changes a pair of an ephemeron.
//!
//! # Threads
//!
//! A thread that uses the heap attaches to it ([`Heap::attach`]) and gets a [`Mutator`], which
//! stays on the thread. A thread that is not attached may hold and read [`Root`]s.
//!
//! * [`Mutator::blocking`] is for calls outside of the heap that may take long. A stop does not
//!   wait for a thread in it. The closure must not use the heap; the safe tier panics there.
//! * [`Mutator::no_preempt`] keeps the thread from being stopped. A stop of the whole world waits
//!   for it, so it must be short, must not call malloc, and must not take a lock that another
//!   thread holds outside of such a section.
//! * A mutator runs on its thread's own stack, or on a stack of the heap's ([`coroutine`]). While
//!   the thread is on any other stack (an unregistered coroutine's, a signal handler's alternate
//!   stack), a stop waits until it is back, and `blocking` panics.
//! * The collector has a thread of its own. A thread may attach to several heaps. The child of a
//!   fork has the forking thread's heaps.
//!
//! # Signals
//!
//! Threads are stopped by SIGURG. If the host installed a handler for it earlier, that handler is
//! called for each signal. errno is kept. The kernel restarts most system calls. The others
//! (`poll`, `epoll_wait`, `nanosleep`, socket calls with a timeout) fail with EINTR, and a `write`
//! or `read` of many bytes may transfer a part of them; [`gc_preempt`] has the list. Make such
//! calls inside `blocking`, where no signal comes. If the host blocks SIGURG, or replaces the
//! handler without calling it, a watchdog names the thread on stderr. With `URGE_ASYNC=0` no
//! signals are sent: threads then stop when they allocate or block, and when `no_preempt` ends.
//!
//! # Values that need `Drop`, finalizers, weak references
//!
//! `Drop` runs neither in the sweep nor on the collector's thread. A value that needs it (a string,
//! a file, a box) waits in a queue after its cell has died, and [`Mutator::drop_dead_values`] drops
//! it. By then weak references to the value are null, its own fields are null, and the cells that
//! its fields led to may have been freed.
//!
//! The raw tier's finalizers ([`Mutator::register_finalizer`]) give the dead cell itself to the
//! program, with all cells that it leads to. Weak references to it are null, too, unless their kind
//! is [`Kind::long`](crate::raw::Kind::long).
//!
//! # Queues and stale words
//!
//! A compiler may leave a stale word on a stack or in a register. In the raw tier and in native
//! code such a word keeps the node of a queue that it names, although the queue has removed the
//! node. If the node still leads to the next one, the stale word keeps *all later nodes*. So a
//! queue takes the edge out of a node when it removes the node ([`Field::take`],
//! [`Field::take_gc`]): then a stale word keeps one node.
//!
//! # Limits
//!
//! [`HeapBuilder::hard_limit`] bounds the memory of cells. An allocation that would exceed it
//! collects; if that frees too little, it gives an [`AllocError`] and never aborts. A heap reserves
//! 256 GiB of the 128 TiB of addresses that a process has ([`HeapBuilder::reserve`] changes that),
//! and takes memory as it is used. Types may be aligned to at most 16 bytes. The crate runs on
//! Linux on x86-64 only.
//!
//! As a rule a collection stops the world twice, for some microseconds each: to scan roots, and to
//! end marking. Marking and sweeping are concurrent ([`HeapBuilder::stop_the_world`] changes that).
//!
//! # Pace
//!
//! The heap may grow by [`HeapBuilder::gc_percent`] of the bytes that are alive; a collection
//! should end by then. The pacer starts it early enough, by the time that the last collections
//! took. The collector uses a quarter of the processors, or those that no mutator wants if they are
//! more. A thread that allocates faster than the collector marks assists it: with up to a quarter
//! of its time while the heap is below its goal, with more above the goal. Beyond one and a half
//! times the growth that the heap may have, an allocation waits, a millisecond for each 8 KiB.
//! [`HeapBuilder::memory_limit`] makes collections earlier instead of failing, until they would
//! take as much time as the program. `URGE_TRACE=1` prints one line for each collection.
//! [`Heap::stats`] has the same figures, and histograms of all stops.
//!
//! # Young collections
//!
//! A cell of an [`immutable`](crate::raw::Kind::immutable) kind leads only to older cells, and
//! always to the same ones. So once a collection has found it alive, later ones need not trace it:
//! they take it for alive, and free the dead among the cells that were allocated since. Such a
//! collection is *young*. The pacer chooses it while most of the heap's cells with edges are of
//! immutable kinds and most new cells die young. When dead old cells take half of the room to grow,
//! a full collection follows ([`HeapBuilder::young_collections`], [`Heap::collect_young`]). Cells
//! do not move, and stores cost the same as without young collections, because each young
//! collection traces all old cells of other kinds again.
//!
//! # Further reading
//!
//! `gc-core/examples/` has a small interpreter, a JIT's code, a host with a signal handler of its
//! own, a worker pool, generators, and a foreign call. [`raw`] is for virtual machines with cells
//! of their own, and [`jit`] for compilers. In the source, `heap/` holds memory and finds the cell
//! that an address names, `alloc/` has what each mutator allocates from, and `collector/` is the
//! collector. In the repository, `docs/architecture.md` explains how they work together, and
//! `docs/glossary.md` has the terms, each with its source.

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
pub mod coroutine;
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
pub use api::capture::{InspectError, RootPlace};
pub use api::datum::{Fixnum, Plain, Static};
pub use api::ephemeron::{Ephemeron, WeakMap};
pub use api::field::Field;
pub use api::gc::{Gc, keep_alive};
pub use api::heap::Heap;
pub use api::inspect::{Census, KindCount, PathStep, WhyAlive};
pub use api::knobs::PausedCollections;
pub use api::local::{Local, Scope};
pub use api::mutator::Mutator;
pub use api::slice::{Slice, Values};
pub use api::slot::Slot;
pub use api::text::{Buffer, Str};
pub use api::trace::{Leaf, Trace};
pub use api::typed_root::Root;
pub use api::value::{Dynamic, ValueField};
pub use api::value_root::RootValue;
pub use api::weak::{Weak, WeakArray};
pub use config::{ConfigError, DEFAULT_RESERVE, HugePages, MINIMUM_LIMIT, MINIMUM_RESERVE, Young};
pub use error::{AllocError, SpaceError, TableFull};
pub use gc_derive::{Leaf, Plain, Trace};
/// The crate that stops threads. What this crate's functions name of it is here, so that an
/// embedder needs no second dependency: [`World`](gc_preempt::World),
/// [`StopError`](gc_preempt::StopError).
#[doc(no_inline)]
pub use gc_preempt as preempt;
pub use heap::POISON;
pub use memory::MapError;
pub use stats::{CollectionStats, HeapStats, StopTimes, Times};

/// What the derives name.
#[doc(hidden)]
pub mod derived {
    pub use crate::api::datum::{Class, Datum, key, key_of, null_variant};
}

/// Internal types for this workspace's harness and benches. They do not check addresses, and
/// change without notice.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals {
    pub use crate::alloc::{LocalAllocator, Refill, bump};
    pub use crate::barrier::routines as barrier_routines;
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
