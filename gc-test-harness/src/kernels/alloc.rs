//! Allocation in machine code: inlined bump allocation from the mutator's run, and a call when the
//! run is used up.
//!
//! The loop builds linked lists. When a list is complete, the loop walks it, adds up the values of
//! its nodes, and drops it. Each node is written once, right after its allocation. So the sum shows
//! a cell that was allocated twice, a cell that was freed too early, and a cell whose first stores
//! came before the cursor's store.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, types};
use gc_core::jit::Run;
use gc_core::raw::{Encoding, Kind, KindError, Site};
use gc_core::{Heap, Mutator};

use super::codegen::{Arena, Code, CodegenError};
use super::loops::{NODE_NEXT, NODE_VALUE, params_of};

/// Bytes of a node: a reference and a value.
pub const NODE_BYTES: usize = 16;

/// The argument of the loop's slow path: the mutator whose run is used up, and the site.
#[derive(Debug)]
pub struct Allocator<'m> {
    mutator: &'m Mutator,
    site: Site,
}

impl<'m> Allocator<'m> {
    /// An allocator for one mutator and the site of its nodes.
    pub fn new(mutator: &'m Mutator, site: Site) -> Allocator<'m> {
        Allocator { mutator, site }
    }

    /// The run that the loop allocates from.
    pub fn run(&self) -> *mut Run {
        // SAFETY: the mutator's array holds a run for each site of its heap.
        unsafe { self.mutator.runs().add(self.site.index()) }
    }
}

/// The kind of a node: its first word is the reference.
pub fn node_kind() -> Kind {
    Kind::words_at("node", &[0], Encoding::RAW)
}

/// The site of a heap's nodes. Each call makes a new kind.
pub fn node_site(heap: &Heap) -> Result<Site, KindError> {
    let kind = heap.kind(node_kind())?;
    heap.site(kind, NODE_BYTES)
        .map_err(|error| unreachable!("16 bytes are a small cell: {error:?}"))
}

/// `fn(allocator, run, lists, length) -> the sum of all values, or 0 if the heap is full`. Neither
/// number may be 0.
pub type Lists = unsafe extern "C" fn(*const Allocator<'_>, *mut Run, u64, u64) -> u64;

/// The compiled loop.
#[derive(Clone, Debug)]
pub struct Allocating {
    /// Builds and drops lists.
    pub lists: Lists,
    /// The functions to register.
    pub code: Vec<Code>,
}

impl Allocating {
    /// Compiles the loop into the arena.
    pub fn compile(arena: &mut Arena) -> Result<Allocating, CodegenError> {
        lists(arena)?;
        let code = arena.finish()?;
        // SAFETY: the function was compiled with this signature above, and `code` keeps the memory.
        let lists =
            unsafe { std::mem::transmute::<*const u8, Lists>(Code::entry_of(&code, "lists")?) };
        Ok(Allocating { lists, code })
    }
}

/// The result of [`Allocating::lists`]: the nodes of a list have the values `length`, `length - 1`,
/// ..., 1.
pub fn lists_oracle(lists: u64, length: u64) -> u64 {
    lists.wrapping_mul(length * (length + 1) / 2)
}

/// The slow path: native code that may stop, collect and wait. Gives 0 if there is no room.
unsafe extern "C" fn refill(allocator: *const Allocator<'_>) -> usize {
    // SAFETY: the loop passes its own argument, which outlives it.
    let allocator = unsafe { &*allocator };
    // SAFETY: the cell is returned in a register, and the loop stores it or keeps it in a register.
    let cell = unsafe { allocator.mutator.alloc_at(allocator.site) };
    cell.map_or(0, |cell| cell.as_ptr() as usize)
}

fn lists(arena: &mut Arena) -> Result<(), CodegenError> {
    let slow = arena.signature(&[types::I64], &[types::I64]);
    let slow = arena.import("lists_refill", refill as *const u8, &slow)?;
    let signature = arena.signature(&[types::I64; 4], &[types::I64]);
    arena.function("lists", &signature, |body| {
        let params = body.enter();
        let (allocator, run, lists, length) = (params[0], params[1], params[2], params[3]);
        let slow = body.callee(slow);
        let b = &mut body.builder;
        let flags = MemFlagsData::trusted();
        let (cursor, limit) = (
            std::mem::offset_of!(Run, cursor) as i32,
            std::mem::offset_of!(Run, limit) as i32,
        );
        let zero = b.ins().iconst(types::I64, 0);

        let list = b.create_block(); // a new list: (lists left, sum)
        let lists_left = b.append_block_param(list, types::I64);
        let list_sum = b.append_block_param(list, types::I64);
        let node = b.create_block(); // a new node: (the list so far, nodes left)
        let head = b.append_block_param(node, types::I64);
        let nodes_left = b.append_block_param(node, types::I64);
        let fast = b.create_block();
        let used_up = b.create_block();
        let cell_made = b.create_block(); // (the cell)
        let cell = b.append_block_param(cell_made, types::I64);
        let walk = b.create_block(); // (a node, sum)
        let at = b.append_block_param(walk, types::I64);
        let walk_sum = b.append_block_param(walk, types::I64);
        let walked = b.create_block();
        let done = b.create_block();
        let full = b.create_block();

        b.ins().jump(list, &params_of(&[lists, zero]));

        b.switch_to_block(list);
        b.ins().jump(node, &params_of(&[zero, length]));

        b.switch_to_block(node);
        let free = b.ins().load(types::I64, flags, run, cursor);
        let end = b.ins().load(types::I64, flags, run, limit);
        let next_free = b.ins().iadd_imm_s(free, NODE_BYTES as i64);
        let over = b.ins().icmp(IntCC::UnsignedGreaterThan, next_free, end);
        b.ins().brif(over, used_up, &[], fast, &[]);

        b.switch_to_block(fast);
        // The cursor's store comes before the cell's first store, here and in the machine code:
        // neither Cranelift nor x86-64 reorders stores.
        b.ins().store(flags, next_free, run, cursor);
        b.ins().jump(cell_made, &params_of(&[free]));

        b.switch_to_block(used_up);
        b.set_cold_block(used_up);
        let call = b.ins().call(slow, &[allocator]);
        let refilled = b.inst_results(call)[0];
        b.ins()
            .brif(refilled, cell_made, &params_of(&[refilled]), full, &[]);

        b.switch_to_block(cell_made);
        b.ins().store(flags, head, cell, NODE_NEXT);
        b.ins().store(flags, nodes_left, cell, NODE_VALUE);
        let fewer = b.ins().iadd_imm_s(nodes_left, -1);
        b.ins().brif(
            fewer,
            node,
            &params_of(&[cell, fewer]),
            walk,
            &params_of(&[cell, list_sum]),
        );

        b.switch_to_block(walk);
        let value = b.ins().load(types::I64, flags, at, NODE_VALUE);
        let next = b.ins().load(types::I64, flags, at, NODE_NEXT);
        let sum = b.ins().iadd(walk_sum, value);
        b.ins()
            .brif(next, walk, &params_of(&[next, sum]), walked, &[]);

        b.switch_to_block(walked);
        let fewer = b.ins().iadd_imm_s(lists_left, -1);
        b.ins()
            .brif(fewer, list, &params_of(&[fewer, sum]), done, &[]);

        b.switch_to_block(done);
        b.ins().return_(&[sum]);
        b.switch_to_block(full);
        b.ins().return_(&[zero]);
        for reference in [head, cell, refilled, at, next] {
            b.declare_value_needs_stack_map(reference);
        }
    })
}

/// Allocates a ring of nodes with these values through the mutator, and gives its first node.
///
/// The caller must keep the reference where the collector scans: in a local variable or a register.
pub fn ring(allocator: &Allocator<'_>, values: &[u64]) -> Option<usize> {
    let mutator = allocator.mutator;
    let mut first = 0;
    let mut last = 0;
    for &value in values {
        // SAFETY: the cell becomes part of the chain that `first` holds, on this stack.
        let cell = unsafe { mutator.alloc_at(allocator.site) }.ok()?.as_ptr();
        // SAFETY: a new cell of two words.
        unsafe { cell.cast::<usize>().add(1).write(value as usize) };
        if last == 0 {
            first = cell as usize;
        } else {
            // SAFETY: the node before is live through `first`, and its first word is the reference.
            unsafe { mutator.write(last as *mut usize, cell as usize) };
        }
        last = cell as usize;
    }
    // SAFETY: the last node is live through `first`, and its first word is the reference.
    unsafe { mutator.write(last as *mut usize, first) };
    Some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::loops::{Loops, chase_oracle};

    #[test]
    fn lists_survive_the_collections_that_their_making_causes() {
        let heap = Heap::builder().gc_percent(0).build().expect("a heap");
        let mut arena = Arena::new().expect("an arena");
        let kernel = Allocating::compile(&mut arena).expect("compiles");
        let _guards: Vec<_> = kernel
            .code
            .iter()
            .map(|code| code.register_with(&heap, Encoding::RAW).expect("registers"))
            .collect();
        let site = node_site(&heap).expect("a kind");
        let mutator = heap.attach().expect("attaches");
        let allocator = Allocator::new(&mutator, site);
        let (lists, length) = (300, 500);
        // SAFETY: the allocator, its run and its heap outlive the call.
        let sum = unsafe { (kernel.lists)(&allocator, allocator.run(), lists, length) };
        assert_eq!(sum, lists_oracle(lists, length));
        assert!(heap.stats().collections > 0);
    }

    #[test]
    fn a_ring_that_hangs_from_a_register_is_walked() {
        let heap = Heap::builder().build().expect("a heap");
        let loops = Loops::compile(&mut Arena::new().expect("an arena")).expect("compiles");
        let mutator = heap.attach().expect("attaches");
        let allocator = Allocator::new(&mutator, node_site(&heap).expect("a kind"));
        let values: Vec<u64> = (0..100).map(|i| i * i).collect();
        let mut slot = ring(&allocator, &values).expect("has room");
        // SAFETY: the slot names a ring of live nodes.
        let sum = unsafe { (loops.chase)(&mut slot, 12_345) };
        assert_eq!(sum, chase_oracle(&values, 12_345));
    }
}
