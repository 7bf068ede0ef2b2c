//! Kernels that hold references to heap cells: a walk of a list, and a loop that stores references.

use std::sync::atomic::Ordering;

use cranelift_codegen::ir::{InstBuilder, MemFlagsData, types};
use gc_core::jit::store_address;

use super::control::{Control, MADE};
use super::maker::Maker;
use crate::kernels::codegen::CodegenError;
use crate::kernels::loops::{NODE_NEXT, NODE_VALUE, params_of};

/// `words = [slot]`: the sum of the values of the list whose first node the slot names. The slot is
/// read once a pass, and each node is dead for the kernel when it has left it.
pub fn list(maker: &mut Maker) -> Result<(), CodegenError> {
    maker.entry(|f, input| {
        let slot = f.word(input, 0);
        f.passes(input, |f| {
            let flags = MemFlagsData::trusted();
            let b = &mut f.body.builder;
            let first = b.ins().load(types::I64, flags, slot, 0);
            let zero = b.ins().iconst(types::I64, 0);
            let turn = b.create_block();
            let node = b.append_block_param(turn, types::I64);
            let sum = b.append_block_param(turn, types::I64);
            let done = b.create_block();
            b.ins().jump(turn, &params_of(&[first, zero]));
            b.switch_to_block(turn);
            let value = b.ins().load(types::I64, flags, node, NODE_VALUE);
            let next = b.ins().load(types::I64, flags, node, NODE_NEXT);
            let sum = b.ins().iadd(sum, value);
            for reference in [first, node, next] {
                f.reference(reference);
            }
            f.back_edge(next, turn, &[next, sum], done);
            f.body.builder.switch_to_block(done);
            sum
        });
    })
}

/// `words = [slot, length, rounds]`: in each round allocates a node with the round's number as its
/// value, adds the values of the nodes that a table names, and stores the new node in each of the
/// table's words, with the write barrier. The slot names the table. Gives the sum, or 0 if the heap
/// is full.
pub fn stores(maker: &mut Maker) -> Result<(), CodegenError> {
    let arena = &mut maker.arena;
    let signature = arena.signature(&[types::I64], &[types::I64]);
    let make = arena.import("talk_make", make as *const u8, &signature)?;
    let signature = arena.signature(&[types::I64; 3], &[]);
    let barrier = arena.import("talk_store", store_address() as *const u8, &signature)?;
    maker.entry(|f, input| {
        let [slot, length, rounds] = [0, 1, 2].map(|number| f.word(input, number));
        let flags = MemFlagsData::trusted();
        let offset = std::mem::offset_of!(Control, context) as i32;
        let control = f.control();
        let context = f
            .body
            .builder
            .ins()
            .load(types::I64, flags, control, offset);
        let barrier = f.body.callee(barrier);
        let table = f.body.builder.ins().load(types::I64, flags, slot, 0);
        f.reference(table);
        f.passes(input, |f| {
            let zero = f.body.builder.ins().iconst(types::I64, 0);
            let sums = f.each(rounds, &[zero], |f, round, sum| {
                let node = f.call(make, &[]);
                f.reference(node);
                let b = &mut f.body.builder;
                let made = b.create_block();
                let full = b.create_block();
                b.ins().brif(node, made, &[], full, &[]);
                b.switch_to_block(full);
                b.set_cold_block(full);
                b.ins().return_(&[zero]);
                b.switch_to_block(made);
                b.ins().store(flags, round, node, NODE_VALUE);
                f.each(length, sum, |f, number, sum| {
                    let b = &mut f.body.builder;
                    let offset = b.ins().ishl_imm_u(number, 3);
                    let word = b.ins().iadd(table, offset);
                    let old = b.ins().load(types::I64, flags, word, 0);
                    f.reference(old);
                    let b = &mut f.body.builder;
                    let value = b.ins().load(types::I64, flags, old, NODE_VALUE);
                    let sum = b.ins().iadd(sum[0], value);
                    b.ins().call(barrier, &[context, word, node]);
                    vec![sum]
                })
            });
            sums[0]
        });
    })
}

/// The answer of [`stores`] for a table that names nodes of the value `before`.
pub fn stores_oracle(length: u64, rounds: u64, before: u64) -> u64 {
    let nodes = (0..rounds - 1).fold(before, u64::wrapping_add);
    nodes.wrapping_mul(length)
}

/// The runtime's allocation of a node, which may stop, collect and wait. 0: there is no room.
unsafe extern "C" fn make(control: *const Control) -> usize {
    // SAFETY: compiled code passes its own argument on, and the control and its mutator outlive the
    // call of the kernel. The cell is returned in a register, and the kernel keeps it declared.
    let (control, cell) = unsafe {
        let control = &*control;
        (control, control.mutator().alloc_at(control.site))
    };
    cell.map_or(0, |cell| {
        let cell = cell.as_ptr() as usize;
        // Relaxed: read by this thread, and by stoppers while it is stopped.
        let number = control.made.load(Ordering::Relaxed);
        control.nodes[number % MADE].store(cell, Ordering::Relaxed);
        control.made.store(number + 1, Ordering::Relaxed);
        cell
    })
}
