//! Fork: the child, which has only the forking thread, finds every heap whole and can allocate and collect.
//!
//! A child inherits memory as it was at the fork, locks held by threads that it does not have among it. So the forking thread first gets
//! hold of everything itself, in an order in which no stop can be waiting for it:
//!
//! 1. each heap's cycle lock: waits (in `blocking`) for a collection that is under way, its background sweep included;
//! 2. gc-preempt's own handler takes the registry lock: from here on no thread of the process is stopped;
//! 3. the tables' locks, whose holders therefore run and are soon done.
//!
//! The child gives them back, and knows that its collectors' threads are gone; the next collection starts a new one. `pthread_atfork`
//! runs prepare handlers last registered first, hence the two halves here around gc-preempt's.

use core::cell::UnsafeCell;
use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};

use crate::api::heap::BuildError;
use crate::cycle::Shared;

static HEAPS: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());

/// Puts a heap on the list of those that a fork must take care of.
pub(crate) fn enrol(shared: &Arc<Shared>) {
    // A mutator of another heap may build one: it must not be stopped with the list locked.
    gc_preempt::no_preempt_here(|| {
        let mut heaps = HEAPS.lock().unwrap_or_else(PoisonError::into_inner);
        heaps.retain(|h| h.strong_count() > 0);
        heaps.push(Arc::downgrade(shared));
    });
}

/// What the forking thread holds, from the prepare handlers to the parent's and the child's.
struct OverFork(UnsafeCell<Option<Held>>);

// SAFETY: touched only by the thread that holds the list's lock, whose guard lies in it.
unsafe impl Sync for OverFork {}

static OVER_FORK: OverFork = OverFork(UnsafeCell::new(None));

/// The guards borrow from the heaps beside them; fields are dropped in their order.
struct Held {
    tables: Vec<Box<dyn Any>>,
    cycles: Vec<MutexGuard<'static, ()>>,
    heaps: Vec<Arc<Shared>>,
    _list: MutexGuard<'static, Vec<Weak<Shared>>>,
}

/// # Safety
/// The result is dropped before the heap: [`Held`] sees to that.
unsafe fn forever(shared: &Arc<Shared>) -> &'static Shared {
    // SAFETY: by this function's contract.
    unsafe { &*Arc::as_ptr(shared) }
}

/// The half that runs after gc-preempt's prepare handler.
pub(crate) fn install_before_the_world() -> Result<(), BuildError> {
    static ONCE: Once = Once::new();
    install(&ONCE, lock_tables, unlock_tables, unlock_tables)
}

/// The half that runs before gc-preempt's prepare handler.
pub(crate) fn install_after_the_world() -> Result<(), BuildError> {
    static ONCE: Once = Once::new();
    install(&ONCE, lock_cycles, unlock_cycles, child)
}

fn install(
    once: &Once,
    prepare: extern "C" fn(),
    parent: extern "C" fn(),
    child: extern "C" fn(),
) -> Result<(), BuildError> {
    let mut error = 0;
    once.call_once(|| {
        // SAFETY: the handlers live as long as the process.
        error = unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
    });
    if error == 0 {
        Ok(())
    } else {
        Err(BuildError::Thread(std::io::Error::from_raw_os_error(error)))
    }
}

extern "C" fn lock_cycles() {
    let held = gc_preempt::blocking_here(|| {
        let list = HEAPS.lock().unwrap_or_else(PoisonError::into_inner);
        let heaps: Vec<_> = list.iter().filter_map(Weak::upgrade).collect();
        let lock = |heap: &Arc<Shared>| {
            // SAFETY: the guard lies beside the heap in `Held`.
            let heap = unsafe { forever(heap) };
            heap.cycle.lock().unwrap_or_else(PoisonError::into_inner)
        };
        let cycles = heaps.iter().map(lock).collect();
        Held {
            tables: Vec::new(),
            cycles,
            heaps,
            _list: list,
        }
    });
    // SAFETY: this thread holds the list's lock.
    unsafe { *OVER_FORK.0.get() = Some(held) };
}

extern "C" fn lock_tables() {
    // SAFETY: as in `lock_cycles`.
    let Some(held) = (unsafe { &mut *OVER_FORK.0.get() }) else {
        return;
    };
    for heap in &held.heaps {
        // SAFETY: as in `lock_cycles`.
        held.tables
            .push(Box::new(unsafe { forever(heap) }.lock_tables()));
    }
}

extern "C" fn unlock_tables() {
    // SAFETY: as in `lock_cycles`.
    if let Some(held) = unsafe { &mut *OVER_FORK.0.get() } {
        held.tables.clear();
    }
}

extern "C" fn unlock_cycles() {
    // SAFETY: as in `lock_cycles`; the list's lock is given back with the rest.
    let Some(Held {
        cycles,
        heaps,
        _list: list,
        ..
    }) = (unsafe { (*OVER_FORK.0.get()).take() })
    else {
        return;
    };
    drop(cycles);
    drop(list);
    drop(heaps);
}

extern "C" fn child() {
    // SAFETY: as in `lock_cycles`; in the child there is no other thread.
    if let Some(held) = unsafe { &*OVER_FORK.0.get() } {
        for heap in &held.heaps {
            heap.requests.collector_is_gone();
            heap.space.forked();
        }
    }
    unlock_cycles();
}
