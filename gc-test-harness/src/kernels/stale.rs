//! Precision as a count of cells: only a stale slot of an outer frame names the first node of a
//! large dead list.
//!
//! The managed function builds the list, keeps it in a slot of its frame across one call, reads it
//! once more, and makes a second call. The slot is not written again, so it holds the dead list's
//! address during the second call. The stack map at that call does not name the slot. A collection
//! that reads the frame by its map frees the list. A collection that scans each word of the frame
//! conservatively keeps the whole list.

use std::ffi::c_void;
use std::fmt;

use cranelift_codegen::ir::{InstBuilder, MemFlagsData, types};
use gc_core::raw::{Encoding, Site};
use gc_core::{Heap, Mutator};

use super::alloc::node_site;
use super::codegen::{Arena, Code, CodegenError};
use super::loops::NODE_VALUE;

/// `fn(data) -> a list`.
type Make = unsafe extern "C" fn(*mut c_void) -> usize;
/// `fn(data)`.
type Call = unsafe extern "C" fn(*mut c_void);
/// `fn(make, first, second, data) -> the list's first value`: makes the list, calls `first` while
/// the list is alive, and `second` when only a stale slot names it.
type Stale = unsafe extern "C" fn(Make, Call, Call, *mut c_void) -> u64;

/// The value of the list's first node.
const FIRST: u64 = 77;

/// The cells that were kept at the two calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retained {
    /// Cells kept while the list was alive.
    pub alive: u64,
    /// Cells kept while only the stale slot named the list.
    pub dead: u64,
    /// Frames that the second collection scanned by their stack maps.
    pub precise_frames: u32,
}

/// The reason why there is no count.
#[derive(Debug)]
pub enum StaleError {
    /// The function could not be compiled or registered.
    Codegen(CodegenError),
    /// The heap could not be built, or was full.
    Heap(String),
}

impl fmt::Display for StaleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StaleError::Codegen(e) => write!(f, "{e}"),
            StaleError::Heap(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for StaleError {}

impl From<CodegenError> for StaleError {
    fn from(e: CodegenError) -> StaleError {
        StaleError::Codegen(e)
    }
}

/// Runs the function with a list of `nodes` nodes, in its own heap and on its own thread. With
/// `maps`, the function is registered with its stack maps. Otherwise it is native code for the
/// collector, which scans the whole stack word by word.
pub fn retained(nodes: u64, maps: bool) -> Result<Retained, StaleError> {
    std::thread::scope(|scope| {
        let count = scope.spawn(|| on_this_thread(nodes, maps)).join();
        count.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn on_this_thread(nodes: u64, maps: bool) -> Result<Retained, StaleError> {
    let mut arena = Arena::new()?;
    stale(&mut arena)?;
    let code = arena.finish()?;
    // SAFETY: the function was compiled with this signature above, and `code` keeps the memory.
    let stale = unsafe { std::mem::transmute::<*const u8, Stale>(Code::entry_of(&code, "stale")?) };
    // The pacer starts no collection, so the two of the callbacks are the only ones.
    let heap = Heap::builder().gc_percent(u32::MAX).build();
    let heap = heap.map_err(|e| StaleError::Heap(e.to_string()))?;
    let mut guards = Vec::new();
    if maps {
        for code in &code {
            guards.push(code.register_with(&heap, Encoding::RAW)?);
        }
    }
    let site = node_site(&heap).map_err(|e| StaleError::Heap(e.to_string()))?;
    let mutator = heap.attach();
    let mutator = mutator.map_err(|e| StaleError::Heap(e.to_string()))?;
    let mut scene = Scene {
        mutator: &mutator,
        site,
        nodes,
        counts: Vec::new(),
    };
    // SAFETY: the callbacks take a pointer to a `Scene`, which outlives the call.
    let first = unsafe { stale(make, count, count, (&raw mut scene).cast()) };
    match scene.counts[..] {
        [(alive, _), (dead, precise_frames)] if first == FIRST => Ok(Retained {
            alive,
            dead,
            precise_frames,
        }),
        _ => Err(StaleError::Heap(format!(
            "the heap has no room for {nodes} nodes"
        ))),
    }
}

/// The data that the callbacks share.
struct Scene<'m> {
    mutator: &'m Mutator,
    site: Site,
    nodes: u64,
    /// For each collection, the cells alive and the frames scanned by a stack map.
    counts: Vec<(u64, u32)>,
}

/// Overwrites the words that earlier calls left below the caller's frame, so that no stale word of
/// native frames keeps cells.
#[inline(never)]
fn wipe_stack() {
    let mut words = [0usize; 4096];
    std::hint::black_box(&mut words);
}

unsafe extern "C" fn make(data: *mut c_void) -> usize {
    // SAFETY: `on_this_thread` passes a scene and does not use it during the call.
    let scene = unsafe { &*data.cast::<Scene<'_>>() };
    let mut list = 0usize;
    for left in (0..scene.nodes).rev() {
        // SAFETY: the cell is the new head of the list, which is on this stack and is returned in a
        // register. It has two words, and is written before another thread has it.
        unsafe {
            let Ok(cell) = scene.mutator.alloc_at(scene.site) else {
                return 0;
            };
            let words = cell.as_ptr().cast::<usize>();
            words.write(list);
            words.add(1).write((FIRST + left) as usize);
            list = words as usize;
        }
    }
    list
}

unsafe extern "C" fn count(data: *mut c_void) {
    wipe_stack();
    // SAFETY: `on_this_thread` passes a scene and does not use it during the call.
    let scene = unsafe { &mut *data.cast::<Scene<'_>>() };
    scene.mutator.collect();
    let last = scene.mutator.heap().stats().last;
    scene.counts.push((last.cells_live, last.frames_precise));
}

fn stale(arena: &mut Arena) -> Result<(), CodegenError> {
    let signature = arena.signature(&[types::I64; 4], &[types::I64]);
    let make = arena.signature(&[types::I64], &[types::I64]);
    let call = arena.signature(&[types::I64], &[]);
    arena.function("stale", &signature, |body| {
        let params = body.enter();
        let (maker, first, second, data) = (params[0], params[1], params[2], params[3]);
        let b = &mut body.builder;
        let make = b.import_signature(make);
        let call = b.import_signature(call);
        let made = b.ins().call_indirect(make, maker, &[data]);
        let list = b.inst_results(made)[0];
        b.declare_value_needs_stack_map(list);
        let nothing = b.create_block();
        let something = b.create_block();
        b.ins().brif(list, something, &[], nothing, &[]);

        b.switch_to_block(something);
        b.ins().call_indirect(call, first, &[data]);
        let value = b
            .ins()
            .load(types::I64, MemFlagsData::trusted(), list, NODE_VALUE);
        b.ins().call_indirect(call, second, &[data]);
        b.ins().return_(&[value]);

        b.switch_to_block(nothing);
        let zero = b.ins().iconst(types::I64, 0);
        b.ins().return_(&[zero]);
    })
}
