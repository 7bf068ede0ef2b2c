//! What all scenes need: a heap, the loops without polls, and a scheduler.

use std::sync::Arc;

use gc_core::jit::CodeGuard;
use gc_core::raw::{Encoding, Site};
use gc_core::{Heap, HeapBuilder};

use crate::kernels::alloc::{Allocator, node_site, ring};
use crate::kernels::codegen::Arena;
use crate::kernels::loops::Loops;
use crate::sched::{Options, Scheduler, with_mutator};

/// A heap with registered loops.
pub struct Stage {
    /// The heap of all workers.
    pub heap: Heap,
    /// The loops. Their code stays as long as this value or a clone of the loops.
    pub loops: Arc<Loops>,
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
        let guards = loops.code.iter().map(register).collect::<Result<_, _>>();
        let guards = guards.map_err(|e| e.to_string())?;
        Ok(Stage {
            site: node_site(&heap).map_err(|e| e.to_string())?,
            loops: Arc::new(loops),
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

    /// A maker of rings, for green threads.
    pub fn rings(&self) -> impl Fn(&[u64]) -> Option<usize> + Copy + Send + 'static {
        let site = self.site;
        move |values| with_mutator(|mutator| ring(&Allocator::new(mutator, site), values))
    }
}
