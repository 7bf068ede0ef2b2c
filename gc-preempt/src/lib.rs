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
//! # Rooms
//!
//! `world` and `mutator` are the protocol, `state` its one word a thread, `stop_point` where a
//! thread may be stopped, `registry` the threads, `signal` the handler, `arch` what depends on the
//! processor, `park` the futex; [`code`] says what a PC lies in, [`stackmap`] what a return address
//! means, [`walk`] ties them together.
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
mod clock;
pub mod code;
mod config;
pub mod context;
pub mod faults;
#[cfg(feature = "faults")]
#[doc(hidden)]
pub mod fuzz;
mod handler_chain;
mod lifeline;
mod mutator;
mod own_stack;
mod park;
mod pin;
mod processors;
mod quiet;
mod registry;
mod signal;
mod signal_mask;
pub mod stackmap;
mod state;
mod stop_point;
mod unwind;
pub mod walk;
mod watchdog;
mod world;

pub use code::{CodeError, CodeGuard, CodeSpec, CodeWhat, FrameRule};
pub use config::{Config, ConfigError};
pub use context::{Origin, Registers, Snapshot};
pub use mutator::{InNoPreempt, Mutator, MutatorId, NoPreempt, StopHook};
pub use park::{Mutex, MutexGuard, wait as futex_wait, wake as futex_wake};
pub use quiet::KeepErrno;
pub use walk::{RootSink, WalkStats};
pub use world::{
    AttachError, ForkHooks, HandshakeError, MutatorHooks, SetupError, StopError, StopReport,
    Stopped, StoppedMutator, World, blocking_here, holds_a_stop, in_no_preempt_here,
    no_preempt_here,
};

#[cfg(all(test, feature = "faults"))]
#[global_allocator]
static STRICT: crate::faults::StrictAllocator = crate::faults::StrictAllocator;
