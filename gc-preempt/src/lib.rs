//! Stops threads at any instruction, reports their state, and resumes them there.
//!
//! This crate is the lower half of Urge, and has no heap. A [`World`] is a set of threads, its
//! mutators. [`World::stop`] sends SIGURG to each of them, and returns when all are stopped, at
//! *any* instruction. The code between two stops pays nothing: no poll, no load, no branch. A stop
//! holds a mutator in a [`blocking`](Mutator::blocking) region without a signal.
//!
//! [`StoppedMutator::walk`] reports the places of a thread's references:
//!
//! * registers and the innermost frame word by word, since no compiler makes a map for every
//!   instruction,
//! * outer managed frames exactly, by the stack maps of their calls,
//! * native frames word by word, between the bounds from their unwind tables.
//!
//! Go 1.14 stops its loops in this way ("Pardon the Interruption: Loop Preemption in Go 1.14").
//! This crate stops the threads of any runtime.
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
//! A file uses files that are before it in this list, and no later ones:
//!
//! 1. System: `faults`, `context`, `config`, `clock`, `text`, `quiet`, `pin`, `signal_mask`,
//!    `park`, `processors`, `signal`, `thread_key`, `lifeline`, `arch`, `own_stack`, `altstack`,
//!    `handler_chain`, `stack_memory`, `stack_record`.
//! 2. One thread's record: `state` (its one word), `stopper`, `stop_number`, `acknowledgements`,
//!    `hook`, `registry`, `panics`.
//! 3. Code: `table_error`, `unwind`, [`stackmap`], `code`.
//! 4. Frames: `walk`.
//! 5. One world's threads and stacks: `errors`, `stopped_mutator`, `suspended_stack`, `members`.
//! 6. A thread's side of the protocol: `stop_point`, `blocking`, `switch`, `handler`, `watchdog`.
//! 7. Handles: `attach`, `fork`, `here`, `mutator`, `preempt`, `stack`, `world`, `explain`.
//!
//! # Stacks that are not a thread's own
//!
//! [`World::register_stack`] makes a [`Stack`] of any memory. A mutator on it is stopped and walked
//! as on its thread's own stack, and so are the stacks from which that one was resumed. A suspended
//! stack is walked from where it was left: by a switch, or in the middle of any instruction where a
//! hook suspends it. [`Stopped::suspended`] lists such stacks in a stop. With
//! [`Stopped::begin_stack_epoch`] a stop need not look at them: they are reported beside the
//! program, or by the thread that resumes one first.
//!
//! # Effects of stops on a host's threads
//!
//! A stop is a signal with `SA_RESTART`. So a stop of a mutator in a system call has the effects
//! that signal(7) describes for any signal. In [`blocking`](Mutator::blocking) no signal comes, and
//! a stop has no effect.
//!
//! * **EINTR.** `poll`, `select`, `epoll_wait`, `nanosleep`, `usleep`, `pause`, `sigsuspend`,
//!   `sigwaitinfo`, `sigtimedwait`, `msgsnd`, `msgrcv`, `semop`, `semtimedop`, `io_getevents`,
//!   `io_uring_enter`, and socket calls with `SO_RCVTIMEO` or `SO_SNDTIMEO` end in EINTR.
//! * **Short transfers.** A `write`, `send`, `read` or `sendfile` that has transferred a part of
//!   its bytes returns their number. Call it in a loop, as for any signal, or in `blocking`, where
//!   it is not interrupted.
//! * **errno.** Stops and all waits of this crate keep errno. After `blocking` it is as the closure
//!   left it.
//! * **Cancellation.** `pthread_exit` and deferred cancellation (the default type) work in and
//!   outside of `blocking`: the thread unwinds, and is detached. A cancellation that comes while
//!   the thread is stopped takes effect after the resume. A mutator must not enable *asynchronous*
//!   cancellation around calls of this crate, which are no more async-cancel-safe than `malloc`; in
//!   loops of its own it may.
//! * **The bare `exit` system call.** The next stop notices that a mutator's thread has ended so,
//!   and leaves the thread out: the words of its stack are no roots any more. Nothing may unmap
//!   that stack while a stop is under way. `pthread_join` on the thread may unmap it, so end
//!   threads in another way if you can.
//!
//! # Rules for the time of a stop
//!
//! From [`World::stop`] to [`Stopped::resume`] the calling thread must not take a lock that a
//! stopped thread may hold: no malloc, no printing, no call of the loader. A panic in that time
//! ends the process with a message.
//!
//! A thread inside [`no_preempt`](Mutator::no_preempt) must not wait for another mutator: a stop
//! may hold that mutator already, and does not resume it before the waiting thread has stopped. So
//! do not call malloc in `no_preempt`, nor under a lock that a thread takes in `no_preempt`.

mod acknowledgements;
mod altstack;
mod arch;
mod attach;
mod blocking;
mod clock;
mod code;
mod config;
mod context;
mod errors;
mod explain;
pub mod faults;
mod fork;
#[cfg(feature = "faults")]
#[doc(hidden)]
pub mod fuzz;
mod handler;
mod handler_chain;
mod here;
mod hook;
mod lifeline;
mod lock_order;
mod members;
mod mutator;
mod own_stack;
mod panics;
mod park;
mod pin;
mod preempt;
mod processors;
mod quiet;
mod registry;
mod signal;
mod signal_mask;
mod stack;
mod stack_memory;
mod stack_record;
pub mod stackmap;
mod state;
mod stop_number;
mod stop_point;
mod stopped_mutator;
mod stopper;
#[cfg(feature = "faults")]
mod strict_allocator;
mod suspended_stack;
mod switch;
mod table_error;
mod text;
mod thread_key;
mod unwind;
mod walk;
mod watchdog;
mod world;

pub use code::{CodeError, CodeGuard, CodeKind, CodeSpec, CodeWhat, FrameRule};
pub use config::{Config, ConfigError};
pub use context::{Origin, Registers, Snapshot};
pub use errors::{AttachError, HandshakeError, SetupError, StackError, StopError};
pub use explain::{Explanation, StopAt, explain};
pub use here::{blocking_here, no_preempt_here};
#[doc(hidden)]
pub use lock_order::forget_held_locks;
pub use members::{ForkHooks, MutatorHooks, StackHooks, World};
pub use mutator::{InNoPreempt, Mutator, StopHook};
pub use preempt::{
    PreemptHook, Preempter, preempt_wanted_here, preempted_at_here, take_preempt_request_here,
};
pub use registry::{MutatorId, in_no_preempt_here, is_asked_to_stop_here};
pub use stack::Stack;
pub use stack_memory::{StackMemory, StackPool};
pub use stack_record::StackState;
pub use stop_point::NoPreempt;
pub use stopped_mutator::StoppedMutator;
pub use stopper::holds_a_stop;
#[cfg(feature = "faults")]
pub use strict_allocator::StrictAllocator;
pub use suspended_stack::SuspendedStack;
pub use switch::{Resumed, data_here, suspend, suspend_with};
pub use walk::{FrameEnd, FrameReport, RootSink, WalkStats};
pub use world::{StopReport, Stopped};

/// System facilities for a runtime on top of this crate: a lock and futexes that work where malloc
/// must not be called, and a guard that keeps errno.
pub mod sys {
    pub use crate::park::{Mutex, MutexGuard, wait as futex_wait, wake as futex_wake};
    pub use crate::quiet::KeepErrno;
}
#[doc(hidden)]
pub use sys::*;

#[cfg(all(test, feature = "faults"))]
#[global_allocator]
static STRICT: StrictAllocator = StrictAllocator;
