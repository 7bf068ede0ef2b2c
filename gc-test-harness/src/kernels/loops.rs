//! Loops without a poll: such a loop runs to its end unless a stop takes effect at any instruction.
//!
//! No loop contains a call, a load of a flag or a load from a guard page. `tests` below reads the
//! generated instructions and checks that, and that declared references change no byte of the code.
//! Each loop except the empty one gives an answer that its Rust counterpart (`*_oracle`) computes,
//! too, so a register that a stop lost or changed shows at once.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{BlockArg, InstBuilder, MemFlagsData, types};

use super::codegen::{Arena, Code, CodegenError};

/// O'Neill's 32-bit PCG multiplier. Any odd number of this size would do. Cranelift would load a
/// larger one from memory behind the code, but this loop must not load.
pub(crate) const MULTIPLIER: u64 = 747_796_405;

/// The offset of a node's reference in [`Loops::chase`]'s ring. The node's value follows it.
pub const NODE_NEXT: i32 = 0;
/// The offset of a node's value.
pub const NODE_VALUE: i32 = 8;

/// `fn(seed, rounds) -> checksum`. `rounds` must not be 0.
pub type Count = extern "C" fn(u64, u64) -> u64;
/// `fn(seed, rounds, place) -> checksum`: as [`Count`], but each turn stores the rounds left in
/// `place`, so that other threads see the progress.
pub type CountAloud = unsafe extern "C" fn(u64, u64, *mut u64) -> u64;
/// `fn() -> !`.
pub type Empty = extern "C" fn();
/// `fn(slot, steps) -> the sum of the values on the way`: takes the reference out of the slot, and
/// stores a reference there at the end.
pub type Chase = unsafe extern "C" fn(*mut usize, u64) -> u64;
/// `fn(text, text length, output, table) -> bytes written`. The length must be a multiple of 4 and
/// not 0.
pub type Base64 = unsafe extern "C" fn(*const u8, usize, *mut u8, *const u8) -> usize;
/// `fn(lock, counter, times, hold)`: `times` times, takes the lock, holds it for `hold` turns of an
/// empty loop and adds 1 to the counter. Neither number may be 0.
pub type Spinlock = unsafe extern "C" fn(*mut u64, *mut u64, u64, u64);
/// `fn(ready, release)`: sets `*ready`, then waits until `*release` is set.
pub type Wait = unsafe extern "C" fn(*mut u8, *const u8);

/// The compiled loops.
#[derive(Clone, Debug)]
pub struct Loops {
    /// The counting loop.
    pub count: Count,
    /// The counting loop with a store.
    pub count_aloud: CountAloud,
    /// The loop `jmp self`, which ends only with its process.
    pub empty: Empty,
    /// Follows a ring of heap nodes whose only root is a register.
    pub chase: Chase,
    /// Decodes a whole buffer of base64.
    pub base64: Base64,
    /// Contends for a spinlock without back-off, yield or poll.
    pub spinlock: Spinlock,
    /// Waits for a change of a byte in memory, for tests that need a thread to stay in place.
    pub wait: Wait,
    /// The functions to register.
    pub code: Vec<Code>,
}

impl Loops {
    /// Compiles all loops into the arena.
    pub fn compile(arena: &mut Arena) -> Result<Loops, CodegenError> {
        count(arena, false)?;
        count(arena, true)?;
        empty(arena)?;
        chase(arena, true)?;
        base64(arena)?;
        spinlock(arena)?;
        wait(arena)?;
        let code = arena.finish()?;
        let entry = |name: &str| Code::entry_of(&code, name);
        // SAFETY: each function was compiled above with the signature of its type, and `code` keeps
        // the memory.
        unsafe {
            Ok(Loops {
                count: std::mem::transmute::<*const u8, Count>(entry("count")?),
                count_aloud: std::mem::transmute::<*const u8, CountAloud>(entry("count_aloud")?),
                empty: std::mem::transmute::<*const u8, Empty>(entry("empty")?),
                chase: std::mem::transmute::<*const u8, Chase>(entry("chase")?),
                base64: std::mem::transmute::<*const u8, Base64>(entry("base64")?),
                spinlock: std::mem::transmute::<*const u8, Spinlock>(entry("spinlock")?),
                wait: std::mem::transmute::<*const u8, Wait>(entry("wait")?),
                code,
            })
        }
    }
}

/// `acc = acc * MULTIPLIER + i` for `i` from `rounds` down to 1: a multiply, an add and a decrement
/// in each turn.
fn count(arena: &mut Arena, aloud: bool) -> Result<(), CodegenError> {
    let params = &[types::I64; 3][..if aloud { 3 } else { 2 }];
    let signature = arena.signature(params, &[types::I64]);
    let name = if aloud { "count_aloud" } else { "count" };
    arena.function(name, &signature, |body| {
        let params = body.enter();
        let b = &mut body.builder;
        let factor = b.ins().iconst(types::I64, MULTIPLIER.cast_signed());
        let turn = b.create_block();
        let sum = b.append_block_param(turn, types::I64);
        let left = b.append_block_param(turn, types::I64);
        let done = b.create_block();
        b.ins().jump(turn, &params_of(&params[..2]));
        b.switch_to_block(turn);
        if let Some(&place) = params.get(2) {
            b.ins().store(MemFlagsData::trusted(), left, place, 0);
        }
        let scaled = b.ins().imul(sum, factor);
        let sum = b.ins().iadd(scaled, left);
        let left = b.ins().iadd_imm_s(left, -1);
        b.ins()
            .brif(left, turn, &params_of(&[sum, left]), done, &[]);
        b.switch_to_block(done);
        b.ins().return_(&[sum]);
    })
}

/// The result of [`Loops::count`] and [`Loops::count_aloud`].
pub fn count_oracle(seed: u64, rounds: u64) -> u64 {
    (1..=rounds).rev().fold(seed, |sum, left| {
        sum.wrapping_mul(MULTIPLIER).wrapping_add(left)
    })
}

fn empty(arena: &mut Arena) -> Result<(), CodegenError> {
    let signature = arena.signature(&[], &[]);
    arena.function("empty", &signature, |body| {
        body.enter();
        let b = &mut body.builder;
        let turn = b.create_block();
        b.ins().jump(turn, &[]);
        b.switch_to_block(turn);
        b.ins().jump(turn, &[]);
    })
}

/// Two loads and an add in each turn. The slot is emptied first, so that only a register keeps the
/// ring while the loop runs.
pub(crate) fn chase(arena: &mut Arena, declare: bool) -> Result<(), CodegenError> {
    let signature = arena.signature(&[types::I64, types::I64], &[types::I64]);
    arena.function("chase", &signature, |body| {
        let params = body.enter();
        let b = &mut body.builder;
        let flags = MemFlagsData::trusted();
        let head = b.ins().load(types::I64, flags, params[0], 0);
        let zero = b.ins().iconst(types::I64, 0);
        b.ins().store(flags, zero, params[0], 0);
        let turn = b.create_block();
        let node = b.append_block_param(turn, types::I64);
        let sum = b.append_block_param(turn, types::I64);
        let left = b.append_block_param(turn, types::I64);
        let done = b.create_block();
        b.ins().jump(turn, &params_of(&[head, zero, params[1]]));
        b.switch_to_block(turn);
        let value = b.ins().load(types::I64, flags, node, NODE_VALUE);
        let next = b.ins().load(types::I64, flags, node, NODE_NEXT);
        let sum = b.ins().iadd(sum, value);
        let left = b.ins().iadd_imm_s(left, -1);
        b.ins()
            .brif(left, turn, &params_of(&[next, sum, left]), done, &[]);
        b.switch_to_block(done);
        b.ins().store(flags, next, params[0], 0);
        b.ins().return_(&[sum]);
        if declare {
            for reference in [head, node, next] {
                body.reference(reference);
            }
        }
    })
}

/// The result of [`Loops::chase`] for a ring with these values in this order.
pub fn chase_oracle(values: &[u64], steps: u64) -> u64 {
    let all: u64 = values.iter().copied().fold(0, u64::wrapping_add);
    let length = values.len() as u64;
    let rest = values.iter().take((steps % length) as usize).copied();
    rest.fold(all.wrapping_mul(steps / length), u64::wrapping_add)
}

fn base64(arena: &mut Arena) -> Result<(), CodegenError> {
    let signature = arena.signature(&[types::I64; 4], &[types::I64]);
    arena.function("base64", &signature, |body| {
        let params = body.enter();
        let (text, length, output, table) = (params[0], params[1], params[2], params[3]);
        let b = &mut body.builder;
        let flags = MemFlagsData::trusted();
        let zero = b.ins().iconst(types::I64, 0);
        let turn = b.create_block();
        let read = b.append_block_param(turn, types::I64);
        let written = b.append_block_param(turn, types::I64);
        let done = b.create_block();
        b.ins().jump(turn, &params_of(&[zero, zero]));
        b.switch_to_block(turn);
        let from = b.ins().iadd(text, read);
        let mut group = zero;
        for i in 0..4 {
            let letter = b.ins().uload8(types::I64, flags, from, i);
            let entry = b.ins().iadd(table, letter);
            let bits = b.ins().uload8(types::I64, flags, entry, 0);
            let shifted = b.ins().ishl_imm_u(group, 6);
            group = b.ins().bor(shifted, bits);
        }
        let to = b.ins().iadd(output, written);
        for i in 0..3 {
            let byte = b.ins().ushr_imm_u(group, 16 - 8 * i);
            b.ins().istore8(flags, byte, to, i as i32);
        }
        let read = b.ins().iadd_imm_s(read, 4);
        let written = b.ins().iadd_imm_s(written, 3);
        let more = b.ins().icmp(IntCC::UnsignedLessThan, read, length);
        b.ins()
            .brif(more, turn, &params_of(&[read, written]), done, &[]);
        b.switch_to_block(done);
        b.ins().return_(&[written]);
        for reference in [text, output] {
            b.declare_value_needs_stack_map(reference);
        }
    })
}

/// The alphabet of RFC 4648.
pub const BASE64_ALPHABET: &[u8; 64] =
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The table that [`Loops::base64`] reads: the six bits of each letter.
pub fn base64_table() -> [u8; 256] {
    let mut table = [0; 256];
    for (bits, &letter) in BASE64_ALPHABET.iter().enumerate() {
        table[usize::from(letter)] = bits as u8;
    }
    table
}

/// Encodes bytes for [`Loops::base64`]. The length must be a multiple of 3, so that no padding is
/// needed.
pub fn base64_encode(bytes: &[u8]) -> Vec<u8> {
    let groups = bytes.as_chunks::<3>().0.iter();
    groups
        .flat_map(|&[a, b, c]| {
            let group = u32::from_be_bytes([0, a, b, c]);
            [18, 12, 6, 0].map(|shift| BASE64_ALPHABET[(group >> shift) as usize & 63])
        })
        .collect()
}

fn spinlock(arena: &mut Arena) -> Result<(), CodegenError> {
    let signature = arena.signature(&[types::I64; 4], &[]);
    arena.function("spinlock", &signature, |body| {
        let params = body.enter();
        let (lock, counter, times, hold) = (params[0], params[1], params[2], params[3]);
        let b = &mut body.builder;
        let flags = MemFlagsData::trusted();
        let free = b.ins().iconst(types::I64, 0);
        let held = b.ins().iconst(types::I64, 1);
        let again = b.create_block();
        let left = b.append_block_param(again, types::I64);
        let spin = b.create_block();
        let inside = b.create_block();
        let linger = b.create_block();
        let wait = b.append_block_param(linger, types::I64);
        let leave = b.create_block();
        let done = b.create_block();
        b.ins().jump(again, &params_of(&[times]));
        b.switch_to_block(again);
        b.ins().jump(spin, &[]);
        b.switch_to_block(spin);
        let seen = b.ins().atomic_cas(flags, lock, free, held);
        b.ins().brif(seen, spin, &[], inside, &[]);
        b.switch_to_block(inside);
        let before = b.ins().load(types::I64, flags, counter, 0);
        b.ins().jump(linger, &params_of(&[hold]));
        b.switch_to_block(linger);
        let rest = b.ins().iadd_imm_s(wait, -1);
        b.ins().brif(rest, linger, &params_of(&[rest]), leave, &[]);
        b.switch_to_block(leave);
        let after = b.ins().iadd_imm_s(before, 1);
        b.ins().store(flags, after, counter, 0);
        b.ins().atomic_store(flags, free, lock);
        let left = b.ins().iadd_imm_s(left, -1);
        b.ins().brif(left, again, &params_of(&[left]), done, &[]);
        b.switch_to_block(done);
        b.ins().return_(&[]);
    })
}

fn wait(arena: &mut Arena) -> Result<(), CodegenError> {
    let signature = arena.signature(&[types::I64; 2], &[]);
    arena.function("wait", &signature, |body| {
        let params = body.enter();
        let b = &mut body.builder;
        let flags = MemFlagsData::trusted();
        let one = b.ins().iconst(types::I8, 1);
        b.ins().atomic_store(flags, one, params[0]);
        let turn = b.create_block();
        let done = b.create_block();
        b.ins().jump(turn, &[]);
        b.switch_to_block(turn);
        let seen = b.ins().atomic_load(types::I8, flags, params[1]);
        b.ins().brif(seen, done, &[], turn, &[]);
        b.switch_to_block(done);
        b.ins().return_(&[]);
    })
}

/// Values as the arguments of a jump.
pub(crate) fn params_of(values: &[cranelift_codegen::ir::Value]) -> Vec<BlockArg> {
    values.iter().copied().map(BlockArg::Value).collect()
}

#[cfg(test)]
mod tests;
