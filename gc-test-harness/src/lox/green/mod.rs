//! Green threads of one isolate: `gclab run --green`.
//!
//! A green thread has a native stack, which is a coroutine of the heap, and a value stack of its
//! own. One thread runs all green threads of an isolate, one at a time, because Lox's cells are not
//! made for parallel access. The natives are [`GREEN_NATIVES`].
//!
//! # Invariant
//! [`Vm`] holds the state of the green thread that runs: the limit and the end of its value stack,
//! its number of activations and its open upvalues. All other green threads have theirs in their
//! `Green` (`greens.rs`). `switch` exchanges them inside `no_preempt`. So a stop finds the words
//! of each value stack once: those of the running green thread by a root callback, up to
//! [`Vm::stack_limit`], and those of the others by their root ranges.
//!
//! # Where a green thread is suspended
//! In the natives that wait, and where it is preempted. A monitor thread asks for that when a green
//! thread has run for a slice. The interpreter looks at [`Vm::preempt`] at back-edges and at the
//! beginning of activations. Compiled code looks at nothing: signals lead it to the next point, at
//! a loop's head or a function's beginning (`preemption.rs`). So a green thread is suspended
//! between two instructions of bytecode, never in the middle of one: between the check of an
//! instance's shape and the access of its slot no other green thread runs that could add a field.

mod monitor;
mod natives;
mod preemption;
mod threads;

use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gc_core::coroutine::{Resumed, StackPool};

use super::cells::BOXED;
use super::greens::{Greens, Id};
use super::isolate::{NATIVES, Vm};
use super::value::Value;
use monitor::{Asks, Monitor};
pub use natives::GREEN_NATIVES;
use preemption::Preemption;
pub use threads::poll;
use threads::{greens, spawn, switch, wake_sleepers};

/// Bytes of a green thread's native stack: for as many activations as may be nested, and for the
/// runtime's functions. Pages that are never touched take no memory.
const NATIVE_STACK: usize = if cfg!(debug_assertions) {
    1 << 20
} else {
    256 << 10
};

/// The green thread of the script.
const MAIN: Id = 1;

/// The address of [`Vm::stack_limit`], for the root callback.
struct Limit(*const AtomicUsize);
// SAFETY: the word is atomic and outlives the callback.
unsafe impl Send for Limit {}

impl Vm {
    /// Makes the isolate one with green threads, before code is compiled or runs.
    ///
    /// # Errors
    /// The heap's refusal.
    pub(super) fn prepare_green(&mut self) -> Result<(), String> {
        // The callback takes the place of the range of the isolate's own value stack.
        drop(self.ranges.remove(0));
        // Relaxed, both: no code of the isolate has run, and the callback is not registered yet.
        self.stack_limit.store(0, Ordering::Relaxed);
        let first = Arc::new(AtomicUsize::new(0));
        let (start, limit) = (first.clone(), Limit(&raw const self.stack_limit));
        let report = move |roots: &mut gc_core::raw::RootVisitor<'_>| {
            let limit = &limit;
            // Relaxed: the mutator is stopped. It changes the first slot inside `no_preempt`.
            let from = start.load(Ordering::Relaxed);
            // SAFETY: the isolate lives, since its green threads own the callback. The slots up to
            // the limit are words of the running green thread's value stack.
            unsafe {
                let to = (*limit.0).load(Ordering::Relaxed);
                if from < to {
                    let words = std::slice::from_raw_parts(from as *const usize, (to - from) / 8);
                    roots.words(words, BOXED);
                }
            }
        };
        // SAFETY: the callback reads two words and the slots below the limit, which all hold values
        // at every instruction (`isolate.rs`).
        let running = unsafe { self.lox.heap.add_root_callback(report) };
        self.greens = Some(Box::new(Greens {
            all: Vec::new(),
            ended: Vec::new(),
            ready: VecDeque::new(),
            sleepers: BinaryHeap::new(),
            sleeps: 0,
            current: 0,
            failed: false,
            preemptions: 0,
            switches: Arc::default(),
            pool: StackPool::new(NATIVE_STACK),
            first,
            _running: running.map_err(|e| e.to_string())?,
        }));
        self.has_points = true;
        self.make_green_natives(NATIVES.len())
            .map_err(|_| "Out of memory.".to_string())
    }

    /// Runs the program as the first of its green threads, until it ends. `false` after a runtime
    /// error of any green thread, and where all of them wait.
    pub fn run_green(&mut self, slice: Duration) -> bool {
        let script = &raw mut *self.protos[0];
        let vm: *mut Vm = self;
        // SAFETY: the isolate is used by its pointer from here on, by this thread alone.
        let good = unsafe {
            match (*vm).make_closure(script) {
                Ok(closure) => {
                    let script = [Value::cell(closure)];
                    match spawn(vm, &raw const script[0], 0) {
                        Ok(()) => schedule(vm, slice),
                        Err(message) => !(*vm).fail(&message).is_error(),
                    }
                }
                Err(_) => !(*vm).fail("Out of memory.").is_error(),
            }
        };
        self.flush();
        good
    }

    /// How often green threads were suspended because their slices were over.
    pub fn preemptions(&self) -> u64 {
        self.greens.as_ref().map_or(0, |greens| greens.preemptions)
    }
}

/// Runs green threads until the first one has ended.
///
/// # Safety
/// As [`greens`].
unsafe fn schedule(vm: *mut Vm, slice: Duration) -> bool {
    // SAFETY: the isolate outlives the monitor, which is dropped at the end of this function.
    unsafe {
        let preemption = Preemption::begin(vm);
        let asks = Asks {
            flag: &raw const (*vm).preempt,
            preempter: preemption.preempter(),
            thread: libc::gettid(),
            switches: greens(vm).switches.clone(),
        };
        let _monitor = match Monitor::start(asks, slice) {
            Ok(monitor) => monitor,
            Err(error) => return !(*vm).fail(&error).is_error(),
        };
        loop {
            let Some(id) = next(vm) else {
                return !(*vm)
                    .fail("All green threads are waiting: deadlock.")
                    .is_error();
            };
            let resumed = switch(vm, id);
            if greens(vm).failed {
                return false;
            }
            if resumed == Resumed::Finished {
                if id == MAIN {
                    return true;
                }
                greens(vm).ended.push(id);
            }
        }
    }
}

/// The green thread that runs next. Waits for sleepers if no other can run. `None` if all wait for
/// each other.
///
/// # Safety
/// As [`greens`].
unsafe fn next(vm: *mut Vm) -> Option<Id> {
    loop {
        // SAFETY: the promise.
        unsafe {
            wake_sleepers(greens(vm));
            if let Some(id) = greens(vm).ready.pop_front() {
                return Some(id);
            }
            let until = greens(vm).sleepers.peek()?.until;
            (*vm).flush();
            let wait = until.saturating_duration_since(Instant::now());
            (*vm).mutator.blocking(|| std::thread::sleep(wait));
        }
    }
}
