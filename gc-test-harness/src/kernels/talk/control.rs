//! The memory that a kernel shares with its thread and with the stopper.

use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use gc_core::Mutator;
use gc_core::jit::Context;
use gc_core::raw::Site;

/// A stack limit that no stack pointer reaches.
pub const NO_LIMIT: usize = 0;
/// A poisoned stack limit: each stack pointer is below it.
pub const POISON: usize = usize::MAX;

/// A thread's words that polls read. Each kernel gets its address as the first argument, and passes
/// it on to the functions that it calls.
///
/// The stopper raises a word before it requests the stop, and lowers it before the resume. A poll
/// that sees a raised word calls [`Mutator::poll`](gc_preempt::Mutator::poll), which decides. So
/// the words need no order with the rest of memory: a poll that reads an old value costs one
/// iteration.
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
    /// Not 0: the kernel ends after the present pass. A condition of the program, and no poll.
    pub over: AtomicU64,
    /// The running thread's record, for the write barrier.
    pub context: AtomicPtr<Context>,
    /// The running thread's mutator, for the runtime's side of a poll.
    pub mutator: AtomicPtr<Mutator>,
    /// The site of the nodes that kernels allocate.
    pub site: Site,
    /// The nodes that were allocated last, at the places `made % MADE`.
    pub nodes: Box<[AtomicUsize]>,
    /// The number of nodes that were allocated.
    pub made: AtomicUsize,
    /// An address of the stack between the kernel's frames, below, and its caller's, above. 0 while
    /// no kernel runs.
    pub caller: AtomicUsize,
}

/// The number of nodes that [`Control::nodes`] remembers.
pub const MADE: usize = 4096;

impl Control {
    /// The words of a thread whose polls, if they load from a page, load from this one.
    pub fn new(site: Site, page: usize) -> Control {
        Control {
            flag: AtomicU64::new(0),
            limit: AtomicUsize::new(NO_LIMIT),
            page,
            over: AtomicU64::new(0),
            context: AtomicPtr::default(),
            mutator: AtomicPtr::default(),
            site,
            nodes: (0..MADE).map(|_| AtomicUsize::new(0)).collect(),
            made: AtomicUsize::new(0),
            caller: AtomicUsize::new(0),
        }
    }

    /// Makes these the words of the calling thread.
    ///
    /// # Safety
    /// The mutator is the calling thread's, and outlives all calls of kernels with this control.
    pub unsafe fn belongs_to(&self, mutator: &Mutator) {
        // Relaxed, here and below: only this thread reads them.
        let context = mutator.context().cast_mut();
        self.context.store(context, Ordering::Relaxed);
        let mutator = std::ptr::from_ref(mutator).cast_mut();
        self.mutator.store(mutator, Ordering::Relaxed);
    }

    /// The thread's mutator.
    ///
    /// # Safety
    /// Called by the thread that [`belongs_to`](Control::belongs_to) has named, while its mutator
    /// lives.
    pub unsafe fn mutator(&self) -> &Mutator {
        // SAFETY: the caller's contract.
        unsafe { &*self.mutator.load(Ordering::Relaxed) }
    }
}

/// A kernel's arguments.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Input {
    /// The number of times that the kernel does its work. Not 0.
    pub passes: AtomicU64,
    /// The kernel's own arguments.
    pub words: [u64; 8],
}
