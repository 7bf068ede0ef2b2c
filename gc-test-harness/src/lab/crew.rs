//! Threads of one heap that repeatedly compute a value that is known in advance.
//!
//! They compute it in compiled kernels, from registers and objects that a lost root, a changed
//! register or a cell freed too early would spoil. The first wrong answer ends the crew.
//!
//! | thread | at a stop, it is | checks |
//! |---|---|---|
//! | counting | in a loop without memory access | the loop's sum |
//! | chasing | in a loop over a ring that only a register keeps | the ring's sum |
//! | recursing | in a loop below managed frames, each with an object | all frames' objects |
//! | allocating | anywhere from inlined allocation to the collector's own code | each list's sum |

use std::ffi::c_void;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use gc_core::jit::CodeGuard;
use gc_core::raw::{Encoding, Site};
use gc_core::{Heap, Mutator};

use crate::kernels::alloc::{Allocating, Allocator, Lists, lists_oracle, node_site, ring};
use crate::kernels::codegen::{Arena, Code};
use crate::kernels::deep::{Deep, Frames, deep_oracle};
use crate::kernels::loops::{Chase, Count, Loops, chase_oracle, count_oracle};

/// The work of one call of each kernel.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Iterations of the counting loop, and nodes that the chasing loop visits.
    pub turns: u64,
    /// Nodes of the chasing loop's ring.
    pub ring: u64,
    /// Managed frames of the recursion.
    pub depth: u64,
    /// Lists to allocate, and nodes of one list.
    pub lists: (u64, u64),
}

/// The machine code of the kernels.
pub struct Kernels {
    count: Count,
    chase: Chase,
    deep: Deep,
    lists: Lists,
    all: [Vec<Code>; 3],
}

impl Kernels {
    /// Compiles the kernels into `arena`, which must outlive all calls.
    ///
    /// # Errors
    /// The refusal of Cranelift or of the system.
    pub fn compile(arena: &mut Arena) -> Result<Kernels, String> {
        let loops = Loops::compile(arena).map_err(|e| e.to_string())?;
        let frames = Frames::compile(arena).map_err(|e| e.to_string())?;
        let allocating = Allocating::compile(arena).map_err(|e| e.to_string())?;
        Ok(Kernels {
            count: loops.count,
            chase: loops.chase,
            deep: frames.deep,
            lists: allocating.lists,
            all: [loops.code, frames.code, allocating.code],
        })
    }

    /// The counting loop. It needs neither a heap nor an attached thread.
    pub fn count(&self) -> Count {
        self.count
    }

    /// Registers the stack maps with a heap until the guards are dropped.
    ///
    /// # Errors
    /// The heap's refusal.
    pub fn register(&self, heap: &Heap) -> Result<Vec<CodeGuard>, String> {
        let code = self.all.iter().flatten();
        let guards = code.map(|code| code.register_with(heap, Encoding::RAW));
        guards.collect::<Result<_, _>>().map_err(|e| e.to_string())
    }
}

/// The state that the threads share.
pub struct Crew<'a> {
    heap: &'a Heap,
    kernels: &'a Kernels,
    site: Site,
    sizes: Sizes,
    started: AtomicUsize,
    over: AtomicBool,
    answers: AtomicU64,
    failure: Mutex<Option<String>>,
}

/// Ends the crew when dropped, also on an early return. Otherwise the scope of the threads would
/// never end.
pub struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        // Release: pairs with the Acquire load in `Crew::is_over`.
        self.0.store(true, Ordering::Release);
    }
}

/// The work of a thread, which returns after the crew has ended.
pub type Work<'a> = fn(&Crew<'a>, &Mutator) -> Result<(), String>;

impl<'a> Crew<'a> {
    /// A crew without threads. The caller keeps the kernels registered with the heap while the crew
    /// works.
    ///
    /// # Errors
    /// The heap's refusal of a site for nodes.
    pub fn new(heap: &'a Heap, kernels: &'a Kernels, sizes: Sizes) -> Result<Crew<'a>, String> {
        Ok(Crew {
            heap,
            kernels,
            site: node_site(heap).map_err(|e| e.to_string())?,
            sizes,
            started: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            answers: AtomicU64::new(0),
            failure: Mutex::new(None),
        })
    }

    /// The heap that the threads attach to.
    pub fn heap(&self) -> &'a Heap {
        self.heap
    }

    /// The number of threads that have attached.
    pub fn started(&self) -> usize {
        // Acquire: pairs with the Release addition in `thread`, which comes after the attach.
        self.started.load(Ordering::Acquire)
    }

    /// Whether the crew has ended.
    pub fn is_over(&self) -> bool {
        // Acquire: pairs with the Release stores in `fail` and `Over::drop`.
        self.over.load(Ordering::Acquire)
    }

    /// A guard that ends the crew when it is dropped.
    pub fn until_dropped(&self) -> Over<'_> {
        Over(&self.over)
    }

    /// Answers that were compared with the known value and were right.
    pub fn answers(&self) -> u64 {
        // Relaxed: a count, which orders nothing.
        self.answers.load(Ordering::Relaxed)
    }

    /// Counts one more right answer.
    pub fn right(&self) {
        // Relaxed: a count, which orders nothing.
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// The first wrong answer, if there was one.
    pub fn failure(&self) -> Option<String> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.clone()
    }

    /// Keeps the first wrong answer and ends the crew.
    pub fn fail(&self, why: String) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(why);
        // Release: pairs with the Acquire load in `is_over`.
        self.over.store(true, Ordering::Release);
    }

    /// Attaches the calling thread and runs `work` on it.
    pub fn thread(&self, work: Work<'a>) {
        let worked = self
            .heap
            .attach()
            .map_err(|e| e.to_string())
            .and_then(|mutator| {
                // Release: pairs with the Acquire load in `started`.
                self.started.fetch_add(1, Ordering::Release);
                work(self, &mutator)
            });
        if let Err(why) = worked {
            self.fail(why);
        }
    }

    /// Calls `compute` until the crew ends, and compares each answer with `expected`.
    fn check(
        &self,
        mutator: &Mutator,
        what: &str,
        expected: u64,
        mut compute: impl FnMut() -> u64,
    ) -> Result<(), String> {
        while !self.is_over() {
            let got = compute();
            if got != expected {
                return Err(format!(
                    "the {what} thread computed {got:#x} instead of {expected:#x}: a stop or a collection spoiled a register or an object"
                ));
            }
            self.right();
            // With `URGE_ASYNC=0` a thread stops only here, after tens of milliseconds.
            mutator.thread().poll();
        }
        Ok(())
    }

    /// The counting thread.
    pub fn count(&self, mutator: &Mutator) -> Result<(), String> {
        let turns = self.sizes.turns;
        let expected = count_oracle(1, turns);
        self.check(mutator, "counting", expected, || {
            (self.kernels.count)(1, turns)
        })
    }

    /// The chasing thread.
    pub fn chase(&self, mutator: &Mutator) -> Result<(), String> {
        let allocator = Allocator::new(mutator, self.site);
        let values: Vec<u64> = (0..self.sizes.ring).map(|i| i * i).collect();
        // The reference is on this stack between two calls, and in a register during a call.
        let mut slot = ring(&allocator, &values).ok_or("the heap has no room for a ring")?;
        let turns = self.sizes.turns;
        let expected = chase_oracle(&values, turns);
        // SAFETY: the slot names a ring of live nodes.
        self.check(mutator, "chasing", expected, || unsafe {
            (self.kernels.chase)(&raw mut slot, turns)
        })
    }

    /// The recursing thread.
    pub fn recurse(&self, mutator: &Mutator) -> Result<(), String> {
        let allocator = Allocator::new(mutator, self.site);
        let call = Recursion {
            allocator: &allocator,
            count: self.kernels.count,
            turns: self.sizes.turns / 4,
        };
        let data = (&raw const call).cast_mut().cast();
        let depth = self.sizes.depth;
        let expected = deep_oracle(depth, 1, 2, 3, |depth| depth * 3);
        self.check(mutator, "recursing", expected, || {
            // SAFETY: `fresh` and `bottom` take a pointer to `Recursion`, which outlives the call.
            unsafe {
                let outermost = fresh(data, depth + 1);
                (self.kernels.deep)(depth, fresh, bottom, data, 1, 2, outermost, 3)
            }
        })
    }

    /// An allocating thread.
    pub fn allocate(&self, mutator: &Mutator) -> Result<(), String> {
        let allocator = Allocator::new(mutator, self.site);
        let (lists, length) = self.sizes.lists;
        let expected = lists_oracle(lists, length);
        // SAFETY: the allocator and its run outlive the call.
        self.check(mutator, "allocating", expected, || unsafe {
            (self.kernels.lists)(&allocator, allocator.run(), lists, length)
        })
    }
}

/// The argument of the recursion's callbacks.
struct Recursion<'a> {
    allocator: &'a Allocator<'a>,
    count: Count,
    turns: u64,
}

/// Makes a node whose value is three times its frame's depth. A full heap ends the process, because
/// the frames above cannot handle it.
unsafe extern "C" fn fresh(data: *mut c_void, depth: u64) -> usize {
    // SAFETY: `recurse` passes a `Recursion` that outlives the call.
    let recursion = unsafe { &*data.cast::<Recursion<'_>>() };
    match ring(recursion.allocator, &[depth * 3]) {
        Some(node) => node,
        None => {
            eprintln!("gclab: the heap has no room for a node of 16 bytes");
            std::process::abort()
        }
    }
}

/// Runs a loop for a while at the bottom of the recursion.
unsafe extern "C" fn bottom(data: *mut c_void) {
    // SAFETY: `recurse` passes a `Recursion` that outlives the call.
    let recursion = unsafe { &*data.cast::<Recursion<'_>>() };
    std::hint::black_box((recursion.count)(1, recursion.turns));
}

impl fmt::Debug for Crew<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crew")
            .field("started", &self.started())
            .field("answers", &self.answers())
            .finish_non_exhaustive()
    }
}
