//! Stops threads at any instruction, says where they stand, and resumes them there.
//!
//! This is the lower half of Urge, and knows nothing of heaps. A [`World`] is a set of threads, its
//! mutators. [`World::stop`] fires SIGURG at each of them, holds those that are in a
//! [`blocking`](Mutator::blocking) region without a signal, and returns once all stand still: at
//! *any* instruction, so code that runs in between pays nothing, no poll, no load, no branch.
//! [`StoppedMutator::walk`] then says where the references of each thread are: the registers and
//! the innermost frame word by word, since no compiler leaves a map for an arbitrary instruction;
//! every managed frame further out exactly, by the stack map of the call it waits in; native frames
//! word by word, between the bounds that their unwind tables give.
//!
//! It is what Go 1.14 did for its loops ("Pardon the Interruption: Loop Preemption in Go 1.14"), as
//! a library for any runtime.
//!
//! ```
//! use gc_preempt::{Config, World};
//! use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
//! static DONE: AtomicBool = AtomicBool::new(false);
//! static READY: AtomicBool = AtomicBool::new(false);
//!
//! let world = World::new(Config::default())?;
//! let thread = std::thread::spawn({
//!     let world = world.clone();
//!     move || {
//!         let _mutator = world.attach(core::ptr::null_mut()).unwrap();
//!         READY.store(true, Relaxed);
//!         while !DONE.load(Relaxed) { std::hint::spin_loop() } // no poll in here
//!     }
//! });
//! while !READY.load(Relaxed) { std::hint::spin_loop() }
//! let stopped = world.stop()?;
//! assert_eq!(stopped.mutators().count(), 1);
//! let report = stopped.resume();
//! println!("stopped after {:?}", report.time_to_stop);
//! DONE.store(true, Relaxed);
//! thread.join().unwrap();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Floors
//!
//! A file uses files of its own floor's earlier part and of the floors below, never above:
//!
//! | floor | files |
//! |---|---|
//! | system | `context`, `clock`, `quiet`, `park`, `signal`, `signal_mask`, `arch`, `thread_key`, `own_stack`, `altstack`, `handler_chain` |
//! | one thread's record | `state` (its one word), `stopper`, `stop_number`, `registry` |
//! | code | [`stackmap`], `unwind`, [`mod@code`] |
//! | frames | [`walk`] |
//! | one world's threads | `stopped_mutator`, `members` |
//! | the protocol, a thread's side | `stop_point`, `blocking`, `handler` |
//! | the protocol, handles | `attach`, `fork`, `mutator`, `here`, `world` |
//!
//! # What a host's thread notices of stops
//!
//! A stop is a signal with `SA_RESTART`, so a mutator that is in a system call then notices what
//! signal(7) says of any signal. In [`blocking`](Mutator::blocking) no signal comes, and a thread
//! notices nothing.
//!
//! * **EINTR.** `poll`, `select`, `epoll_wait`, `nanosleep`, `usleep`, `pause`, `sigsuspend`,
//!   `sigwaitinfo`, `sigtimedwait`, `msgsnd`, `msgrcv`, `semop`, `semtimedop`, `io_getevents`,
//!   `io_uring_enter`, and socket calls with `SO_RCVTIMEO` or `SO_SNDTIMEO` end in EINTR.
//! * **Short transfers.** A `write`, `send`, `read` or `sendfile` that has moved a part of its
//!   bytes ends with their number. Loop, as for any signal, or make the call in `blocking`, where
//!   it is whole.
//! * **errno** is kept by stops and by every wait of this crate; `blocking` leaves what its closure
//!   has left.
//! * **Cancellation.** `pthread_exit` and deferred cancellation (the default type) work in and
//!   outside of `blocking`: the thread unwinds, and is detached. A cancellation that comes while
//!   the thread is stopped takes effect after the resume. A mutator must not enable *asynchronous*
//!   cancellation around calls of this crate, which are no more async-cancel-safe than `malloc`; in
//!   loops of its own it may.
//! * **The bare `exit` system call** on a mutator's thread is noticed by the next stop, which
//!   leaves the thread out. What the stack held is no root from then on. The stack must not be
//!   unmapped before the stop that is under way is over; `pthread_join` on such a thread, which may
//!   do so, is to be called while no stop walks, so end threads in another way where that can be.
//!
//! # Rules for the time of a stop
//!
//! From [`World::stop`] to [`Stopped::resume`] the calling thread must not take any lock that a
//! stopped thread may hold. That excludes malloc, printing, and the loader. A panic there aborts,
//! with a message written past all locks.
//!
//! The same goes for [`no_preempt`](Mutator::no_preempt): a thread inside waits for nobody, since
//! the one it waits for may be stopped already and is not resumed before the thread itself has
//! stopped. So there is no malloc in `no_preempt`, nor under a lock that is taken there.

mod acknowledgements;
mod altstack;
mod arch;
mod attach;
mod blocking;
mod clock;
pub mod code;
mod config;
pub mod context;
mod errors;
pub mod faults;
mod fork;
#[cfg(feature = "faults")]
#[doc(hidden)]
pub mod fuzz;
mod handler;
mod handler_chain;
mod here;
mod lifeline;
mod members;
mod mutator;
mod own_stack;
mod panics;
mod park;
mod pin;
mod processors;
mod quiet;
mod registry;
mod signal;
mod signal_mask;
pub mod stackmap;
mod state;
mod stop_number;
mod stop_point;
mod stopped_mutator;
mod stopper;
#[cfg(feature = "faults")]
mod strict_allocator;
mod table_error;
mod text;
mod thread_key;
mod unwind;
pub mod walk;
mod watchdog;
mod world;

pub use code::{CodeError, CodeGuard, CodeSpec, CodeWhat, FrameRule};
pub use config::{Config, ConfigError};
pub use context::{Origin, Registers, Snapshot};
pub use errors::{AttachError, HandshakeError, SetupError, StopError};
pub use here::{blocking_here, no_preempt_here};
pub use members::{ForkHooks, MutatorHooks, World};
pub use mutator::{InNoPreempt, Mutator, StopHook};
pub use park::{Mutex, MutexGuard, wait as futex_wait, wake as futex_wake};
pub use quiet::KeepErrno;
pub use registry::{MutatorId, in_no_preempt_here};
pub use stop_point::NoPreempt;
pub use stopped_mutator::StoppedMutator;
pub use stopper::holds_a_stop;
#[cfg(feature = "faults")]
pub use strict_allocator::StrictAllocator;
pub use walk::{RootSink, WalkStats};
pub use world::{StopReport, Stopped};

#[cfg(all(test, feature = "faults"))]
#[global_allocator]
static STRICT: StrictAllocator = StrictAllocator;
