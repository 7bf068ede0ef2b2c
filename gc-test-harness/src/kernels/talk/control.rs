//! The memory that a kernel shares with its thread and with the stopper.

use std::sync::atomic::{AtomicU64, AtomicUsize};

use gc_core::Mutator;

/// A stack limit that no stack pointer reaches.
pub const NO_LIMIT: usize = 0;
/// A poisoned stack limit: each stack pointer is below it.
pub const POISON: usize = usize::MAX;

/// A thread's words that polls read. Each kernel gets its address as the first argument, and passes
/// it on to the functions that it calls.
///
/// The stopper raises a word before it requests the stop, and lowers it before the resume. A poll
/// that sees a raised word calls [`Mutator::poll`](gc_preempt::Mutator::poll), which decides. So the
/// words need no order with the rest of memory: a poll that reads an old value costs one iteration.
#[repr(C)]
#[derive(Debug)]
pub struct Control {
    /// Not 0 if the thread should call the runtime ([`Strategy::BackEdge`]).
    ///
    /// [`Strategy::BackEdge`]: super::strategy::Strategy::BackEdge
    pub flag: AtomicU64,
    /// The thread should call the runtime if its stack pointer is below ([`Strategy::Prologue`]).
    ///
    /// [`Strategy::Prologue`]: super::strategy::Strategy::Prologue
    pub limit: AtomicUsize,
    /// The address of the page that polls load from ([`Strategy::BackEdgeFault`]).
    ///
    /// [`Strategy::BackEdgeFault`]: super::strategy::Strategy::BackEdgeFault
    pub page: usize,
    /// The running thread's mutator, for the runtime's side of a poll.
    pub mutator: *const Mutator,
}

/// A kernel's arguments.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Input {
    /// The number of times that the kernel does its work. Not 0.
    pub passes: AtomicU64,
    /// Not 0: the kernel ends after the present pass. A condition of the program, and no poll.
    pub over: AtomicU64,
    /// The kernel's own arguments.
    pub words: [u64; 8],
}
