//! Coroutines: stacks that are not a thread's own, for generators, fibers and green threads.
//!
//! A [`Stack`] belongs to one heap. A mutator [starts](crate::Mutator::start) a function on it and
//! [resumes](crate::Mutator::resume) it, and the function [suspends](suspend) itself. A thread is
//! stopped and scanned wherever it is, on its own stack or on any of these. A suspended stack is a
//! root: what its frames lead to stays alive.
//!
//! ```
//! use gc_core::coroutine::{Resumed, StackPool, suspend};
//! use gc_core::{Heap, Leaf};
//!
//! #[derive(Leaf)]
//! struct Number(u64);
//!
//! let heap = Heap::builder().build()?;
//! let mutator = heap.attach()?;
//! let pool = StackPool::new(64 << 10); // bytes of each stack
//! let stack = heap.stack(pool.take()?)?;
//! mutator.start(&stack, |mutator| {
//!     mutator.with_scope(|s| {
//!         let number = s.alloc(Number(7)).unwrap();
//!         suspend().unwrap();
//!         assert_eq!(number.0, 7); // the scope is still open
//!     });
//! })?;
//! assert_eq!(mutator.resume(&stack)?, Resumed::Suspended);
//! mutator.collect();
//! assert_eq!(mutator.resume(&stack)?, Resumed::Finished);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Which thread
//! A function that [`Mutator::start`](crate::Mutator::start) has started stays with that mutator:
//! another one gets [`StackError::OtherMutator`]. So it may keep its `&Mutator`, open scopes and
//! locals over a suspension. Scopes of several coroutines may end in any order.
//!
//! A function that [`Stack::start_anywhere`] has started may go on in any mutator of the heap.
//! Starting it is unsafe, because nothing that belongs to a mutator may live on its stack over a
//! suspension. A scheduler of green threads needs it.
//!
//! # What a stop costs
//! A stop scans the stacks that threads run on, and those from which these were resumed. It passes
//! over suspended stacks, however many there are. The collector scans them beside the program. A
//! stack that is resumed before the collector has come to it is scanned by the thread that resumes
//! it, once a collection. [`CollectionStats`](crate::CollectionStats) counts both.
//!
//! # How large
//! The heap's slow paths (a refill, an assist, the scan before a resume) take up to 8 KiB of the
//! stack that they are called on. Native code takes what it takes: Rust's printing and panicking
//! some KiB, C's `printf` more. A function that allocates should have 16 KiB, and one that may
//! panic 64 KiB. Pages that are never touched take no memory. Below each stack of a [`StackPool`]
//! lies a guard page.
//!
//! # Rules
//! * The references on a stack are those of its heap. A `Gc` of another heap dangles there.
//! * While a stack is suspended, no thread may overwrite a reference in its memory, except by
//!   [`Mutator::write`](crate::Mutator::write). Pass values through a cell's
//!   [`Field`](crate::Field) or a [`Root`](crate::Root).
//! * A signal handler must not suspend the code that it has interrupted. A hook of `gc-preempt` may
//!   ([`StopHook`](gc_preempt::StopHook), [`PreemptHook`](gc_preempt::PreemptHook)): then managed
//!   code is suspended at any of its instructions.
//! * A thread must not end on such a stack, and must not drop its `Mutator` there.

pub use crate::api::stack::{Stack, StackError};
pub use gc_preempt::{Resumed, StackMemory, StackPool, StackState, suspend, suspend_with};
