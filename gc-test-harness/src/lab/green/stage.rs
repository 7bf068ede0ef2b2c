//! What all scenes need: a heap, the loops without polls, and a scheduler.

use std::sync::Arc;

use gc_core::jit::CodeGuard;
use gc_core::raw::{Encoding, Site};
use gc_core::{Heap, HeapBuilder};

use crate::kernels::alloc::{Allocator, node_site, ring};
use crate::kernels::codegen::Arena;
use crate::kernels::loops::Loops;
use crate::kernels::reverse::Reversing;
use crate::sched::{Options, Scheduler, with_mutator};

/// The most values that [`Stage::values`] reads: a ring that is broken may have no end.
const LONGEST: usize = 1_000;

/// A heap with registered loops.
pub struct Stage {
    /// The heap of all workers.
    pub heap: Heap,
    /// The loops. Their code stays as long as this value or a clone of the loops.
    pub loops: Arc<Loops>,
    /// A loop that stores references, for green threads.
    pub reversing: Reversing,
    site: Site,
    _guards: Vec<CodeGuard>,
}

impl Stage {
    /// Builds the heap and compiles the loops.
    ///
    /// # Errors
    /// The refusal of Cranelift, the heap or the system.
    pub fn new(heap: HeapBuilder) -> Result<Stage, String> {
        let heap = heap.build().map_err(|e| e.to_string())?;
        let mut arena = Arena::new().map_err(|e| e.to_string())?;
        let loops = Loops::compile(&mut arena).map_err(|e| e.to_string())?;
        let register =
            |code| crate::kernels::codegen::Code::register_with(code, &heap, Encoding::RAW);
        let reversing = Reversing::compile(&mut arena, store).map_err(|e| e.to_string())?;
        let code = loops.code.iter().chain(&reversing.code);
        let guards = code.map(register).collect::<Result<_, _>>();
        let guards = guards.map_err(|e| e.to_string())?;
        Ok(Stage {
            site: node_site(&heap).map_err(|e| e.to_string())?,
            loops: Arc::new(loops),
            reversing,
            heap,
            _guards: guards,
        })
    }

    /// Starts a scheduler.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn scheduler(&self, options: Options) -> Result<Scheduler, String> {
        Scheduler::start(&self.heap, options)
    }

    /// The values of a ring.
    ///
    /// # Safety
    /// The slot names a node of a ring, lies on the stack of the calling thread, and no other
    /// thread changes the ring.
    pub unsafe fn values(slot: &usize) -> Vec<u64> {
        let mut values = Vec::new();
        let mut at = *slot;
        loop {
            // SAFETY: the caller's contract. A node is a reference and a value.
            let [next, value] = unsafe { (at as *const [usize; 2]).read() };
            values.push(value as u64);
            at = next;
            if at == *slot || values.len() > LONGEST {
                return values;
            }
        }
    }

    /// A maker of rings, for green threads.
    pub fn rings(&self) -> impl Fn(&[u64]) -> Option<usize> + Copy + Send + 'static {
        let site = self.site;
        move |values| with_mutator(|mutator| ring(&Allocator::new(mutator, site), values))
    }
}

/// The store of [`Reversing`]'s loop, by the mutator of the worker that runs it now.
unsafe extern "C" fn store(word: *mut usize, reference: usize) {
    // SAFETY: the loop passes a node's word and a node, both live.
    with_mutator(|mutator| unsafe { mutator.write(word, reference) });
}
