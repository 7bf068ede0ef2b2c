//! A loop that stores references: it reverses a ring in place, again and again.
//!
//! In the middle of a pass only registers lead to the nodes: one to those that were turned round,
//! one to the rest. Each turn stores a reference by a call of the runtime, with its write barrier,
//! and then counts in a loop without calls, in which a signal finds the code most of the time. The
//! code keeps nothing that belongs to a thread, so it may go on on another one.

use cranelift_codegen::ir::{InstBuilder, MemFlagsData, types};

use super::codegen::{Arena, Code, CodegenError};
use super::loops::{MULTIPLIER, NODE_NEXT, NODE_VALUE, params_of};

/// The runtime's store: `fn(word, reference)`, with the write barrier. The word is that of a live
/// node. It does not unwind.
pub type Store = unsafe extern "C" fn(*mut usize, usize);

/// `fn(slot, passes, pause) -> checksum`: takes the reference to a ring out of the slot, reverses
/// the ring `passes` times, and stores the reference there again. After each store it counts
/// `pause` turns. Neither number may be 0.
pub type Reverse = unsafe extern "C" fn(*mut usize, u64, u64) -> u64;

/// The compiled loop.
#[derive(Clone, Debug)]
pub struct Reversing {
    /// Reverses a ring.
    pub reverse: Reverse,
    /// The functions to register.
    pub code: Vec<Code>,
}

impl Reversing {
    /// Compiles the loop into the arena.
    ///
    /// # Errors
    /// Cranelift's refusal.
    pub fn compile(arena: &mut Arena, store: Store) -> Result<Reversing, CodegenError> {
        reverse(arena, store)?;
        let code = arena.finish()?;
        // SAFETY: the function was compiled with this signature, and `code` keeps the memory.
        let reverse =
            unsafe { std::mem::transmute::<*const u8, Reverse>(Code::entry_of(&code, "reverse")?) };
        Ok(Reversing { reverse, code })
    }
}

fn reverse(arena: &mut Arena, store: Store) -> Result<(), CodegenError> {
    let signature = arena.signature(&[types::I64; 2], &[]);
    let store = arena.import("reverse_store", store as *const u8, &signature)?;
    let signature = arena.signature(&[types::I64; 3], &[types::I64]);
    arena.function("reverse", &signature, |body| {
        let params = body.enter();
        let (slot, passes, pause) = (params[0], params[1], params[2]);
        let store = body.callee(store);
        let b = &mut body.builder;
        let flags = MemFlagsData::trusted();
        let factor = b.ins().iconst(types::I64, MULTIPLIER.cast_signed());
        let zero = b.ins().iconst(types::I64, 0);
        let first = b.ins().load(types::I64, flags, slot, 0);
        b.ins().store(flags, zero, slot, 0);

        let pass = b.create_block(); // (passes left, sum)
        let left = b.append_block_param(pass, types::I64);
        let pass_sum = b.append_block_param(pass, types::I64);
        let turn = b.create_block(); // (the node before, a node, sum)
        let before = b.append_block_param(turn, types::I64);
        let node = b.append_block_param(turn, types::I64);
        let turn_sum = b.append_block_param(turn, types::I64);
        let count = b.create_block(); // (turns left, sum)
        let rest = b.append_block_param(count, types::I64);
        let sum = b.append_block_param(count, types::I64);
        let counted = b.create_block();
        let turned = b.create_block();
        let done = b.create_block();

        b.ins().jump(pass, &params_of(&[passes, zero]));
        b.switch_to_block(pass);
        b.ins().jump(turn, &params_of(&[first, first, pass_sum]));

        b.switch_to_block(turn);
        let next = b.ins().load(types::I64, flags, node, NODE_NEXT);
        let word = b.ins().iadd_imm_s(node, i64::from(NODE_NEXT));
        b.ins().call(store, &[word, before]);
        let value = b.ins().load(types::I64, flags, node, NODE_VALUE);
        let mixed = b.ins().imul(turn_sum, factor);
        let mixed = b.ins().iadd(mixed, value);
        b.ins().jump(count, &params_of(&[pause, mixed]));

        b.switch_to_block(count);
        let mixed = b.ins().imul(sum, factor);
        let mixed = b.ins().iadd(mixed, rest);
        let fewer = b.ins().iadd_imm_s(rest, -1);
        b.ins()
            .brif(fewer, count, &params_of(&[fewer, mixed]), counted, &[]);

        b.switch_to_block(counted);
        let rounded = b
            .ins()
            .icmp(cranelift_codegen::ir::condcodes::IntCC::Equal, next, first);
        b.ins()
            .brif(rounded, turned, &[], turn, &params_of(&[node, next, mixed]));

        b.switch_to_block(turned);
        // The first node names itself since its turn; the last one comes after it now.
        let word = b.ins().iadd_imm_s(first, i64::from(NODE_NEXT));
        b.ins().call(store, &[word, node]);
        let fewer = b.ins().iadd_imm_s(left, -1);
        b.ins()
            .brif(fewer, pass, &params_of(&[fewer, mixed]), done, &[]);

        b.switch_to_block(done);
        b.ins().store(flags, first, slot, 0);
        b.ins().return_(&[mixed]);
        for reference in [first, before, node, next] {
            body.reference(reference);
        }
    })
}

/// The result of [`Reversing::reverse`] for a ring with these values, which are then in the order
/// that the ring has.
pub fn reverse_oracle(values: &mut [u64], passes: u64, pause: u64) -> u64 {
    let mix = |sum: u64, value| sum.wrapping_mul(MULTIPLIER).wrapping_add(value);
    let mut sum = 0;
    for _ in 0..passes {
        for value in values.iter() {
            sum = mix(sum, *value);
            sum = (1..=pause).rev().fold(sum, mix);
        }
        values[1..].reverse();
    }
    sum
}
