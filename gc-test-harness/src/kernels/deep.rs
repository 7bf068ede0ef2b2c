//! Managed frames for a stack walker: a deep recursion, and callers that keep a reference in
//! unusual places.

use std::ffi::c_void;

use cranelift_codegen::ir::{InstBuilder, MemFlagsData, types};

use super::codegen::{Arena, Code, CodegenError};
use super::loops::{NODE_VALUE, params_of};

/// `fn(data, depth) -> a new cell`: makes the cell that a frame of [`Frames::deep`] keeps.
pub type Fresh = unsafe extern "C" fn(*mut c_void, u64) -> usize;
/// `fn(data)`: the innermost frame calls it.
pub type Bottom = unsafe extern "C" fn(*mut c_void);
/// `fn(depth, fresh, bottom, data, a, b, stacked, c) -> checksum`. The last two arguments are
/// passed on the stack.
pub type Deep = unsafe extern "C" fn(u64, Fresh, Bottom, *mut c_void, u64, u64, usize, u64) -> u64;
/// `fn(slot, callee)`: takes the reference out of the slot, calls `callee` with it as the only
/// argument on the stack, and stores the result in the slot.
pub type StackArgument = unsafe extern "C" fn(*mut usize, StackArgumentCallee);
/// Takes six numbers in registers and a reference on the stack, and gives the reference.
pub type StackArgumentCallee = unsafe extern "C" fn(u64, u64, u64, u64, u64, u64, usize) -> usize;
/// `fn(numbers, callee, data) -> checksum`: keeps eight numbers across a call of `callee(data)`, so
/// it must save all callee-saved registers of its own caller.
pub type SavesRegisters = unsafe extern "C" fn(*const [u64; 8], Bottom, *mut c_void) -> u64;

/// The compiled functions.
#[derive(Clone, Debug)]
pub struct Frames {
    /// A recursion in which each frame keeps two declared references: its own, and one that was
    /// passed on the stack.
    pub deep: Deep,
    /// A caller whose outgoing argument is the only root.
    pub stack_argument: StackArgument,
    /// A frame whose saved registers may be the only copy of a reference of its caller.
    pub saves_registers: SavesRegisters,
    /// The functions to register.
    pub code: Vec<Code>,
}

impl Frames {
    /// Compiles all functions into the arena.
    pub fn compile(arena: &mut Arena) -> Result<Frames, CodegenError> {
        deep(arena)?;
        stack_argument(arena)?;
        saves_registers(arena)?;
        let code = arena.finish()?;
        let entry = |name: &str| Code::entry_of(&code, name);
        // SAFETY: each function was compiled above with the signature of its type, and `code` keeps
        // the memory.
        unsafe {
            Ok(Frames {
                deep: std::mem::transmute::<*const u8, Deep>(entry("deep")?),
                stack_argument: std::mem::transmute::<*const u8, StackArgument>(entry(
                    "stack_argument",
                )?),
                saves_registers: std::mem::transmute::<*const u8, SavesRegisters>(entry(
                    "saves_registers",
                )?),
                code,
            })
        }
    }
}

/// [`deep_oracle`] says what the function computes. Two references in declared slots and four
/// numbers in callee-saved registers are live across the inner call.
fn deep(arena: &mut Arena) -> Result<(), CodegenError> {
    let signature = arena.signature(&[types::I64; 8], &[types::I64]);
    let fresh = arena.signature(&[types::I64; 2], &[types::I64]);
    let bottom = arena.signature(&[types::I64], &[]);
    let this = arena.declare("deep", &signature)?;
    arena.define(this, |body| {
        let params = body.enter();
        let [depth, make, call, data, a, b, stacked, c] = params[..] else {
            unreachable!("the signature has eight parameters")
        };
        let this = body.callee(this);
        let builder = &mut body.builder;
        let flags = MemFlagsData::trusted();
        builder.declare_value_needs_stack_map(stacked);
        let inner = builder.create_block();
        let innermost = builder.create_block();
        let joined = builder.create_block();
        let below = builder.append_block_param(joined, types::I64);

        let fresh = builder.import_signature(fresh);
        let made = builder.ins().call_indirect(fresh, make, &[data, depth]);
        let node = builder.inst_results(made)[0];
        builder.declare_value_needs_stack_map(node);
        let x = builder.ins().imul_imm_s(a, 5);
        let y = builder.ins().bxor(b, c);
        builder.ins().brif(depth, inner, &[], innermost, &[]);

        builder.switch_to_block(inner);
        let less = builder.ins().iadd_imm_s(depth, -1);
        let c_next = builder.ins().iadd_imm_s(c, 1);
        let deeper = [less, make, call, data, x, y, node, c_next];
        let deeper = builder.ins().call(this, &deeper);
        let result = builder.inst_results(deeper)[0];
        builder.ins().jump(joined, &params_of(&[result]));

        builder.switch_to_block(innermost);
        let bottom = builder.import_signature(bottom);
        builder.ins().call_indirect(bottom, call, &[data]);
        builder.ins().jump(joined, &params_of(&[depth]));

        builder.switch_to_block(joined);
        let own = builder.ins().load(types::I64, flags, node, NODE_VALUE);
        let given = builder.ins().load(types::I64, flags, stacked, NODE_VALUE);
        let mut sum = builder.ins().imul_imm_s(below, 31);
        for part in [own, given, given, given, x, y, depth] {
            sum = builder.ins().iadd(sum, part);
        }
        builder.ins().return_(&[sum]);
    })
}

/// The result of [`Frames::deep`] if the cell made for depth `d` has the value `value(d)`, and the
/// first `stacked` cell the value `value(depth + 1)`.
pub fn deep_oracle(depth: u64, a: u64, b: u64, c: u64, value: impl Fn(u64) -> u64) -> u64 {
    let mut frames = Vec::new();
    let (mut a, mut b, mut c) = (a, b, c);
    for at in (0..=depth).rev() {
        (a, b) = (a.wrapping_mul(5), b ^ c);
        frames.push((at, a, b));
        c = c.wrapping_add(1);
    }
    frames.iter().rev().fold(0, |below: u64, &(at, x, y)| {
        let given = value(at + 1).wrapping_mul(3);
        [value(at), given, x, y, at]
            .into_iter()
            .fold(below.wrapping_mul(31), u64::wrapping_add)
    })
}

/// The reference is dead after the call, so the call's map does not name it. Only the outgoing
/// arguments hold it.
fn stack_argument(arena: &mut Arena) -> Result<(), CodegenError> {
    let signature = arena.signature(&[types::I64; 2], &[]);
    let callee = arena.signature(&[types::I64; 7], &[types::I64]);
    arena.function("stack_argument", &signature, |body| {
        let params = body.enter();
        let b = &mut body.builder;
        let flags = MemFlagsData::trusted();
        let reference = b.ins().load(types::I64, flags, params[0], 0);
        b.declare_value_needs_stack_map(reference);
        let zero = b.ins().iconst(types::I64, 0);
        b.ins().store(flags, zero, params[0], 0);
        let callee = b.import_signature(callee);
        let arguments = [zero, zero, zero, zero, zero, zero, reference];
        let call = b.ins().call_indirect(callee, params[1], &arguments);
        let back = b.inst_results(call)[0];
        b.ins().store(flags, back, params[0], 0);
        b.ins().return_(&[]);
    })
}

fn saves_registers(arena: &mut Arena) -> Result<(), CodegenError> {
    let signature = arena.signature(&[types::I64; 3], &[types::I64]);
    let callee = arena.signature(&[types::I64], &[]);
    arena.function("saves_registers", &signature, |body| {
        let params = body.enter();
        let b = &mut body.builder;
        // Loads, because Cranelift would compute a sum or a product after the call, where its value
        // is needed.
        let flags = MemFlagsData::trusted();
        let mut kept = Vec::new();
        for i in 0..8 {
            kept.push(b.ins().load(types::I64, flags, params[0], 8 * i));
        }
        let callee = b.import_signature(callee);
        b.ins().call_indirect(callee, params[1], &[params[2]]);
        let mut sum = kept[0];
        for &number in &kept[1..] {
            sum = b.ins().bxor(sum, number);
            sum = b.ins().imul_imm_s(sum, 7);
        }
        b.ins().return_(&[sum]);
    })
}

/// The result of [`Frames::saves_registers`].
pub fn saves_registers_oracle(numbers: &[u64; 8]) -> u64 {
    let rest = numbers[1..].iter();
    rest.fold(numbers[0], |sum, number| (sum ^ number).wrapping_mul(7))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLEE_SAVED: u32 = 5 * 8;

    fn compiled() -> Frames {
        Frames::compile(&mut Arena::new().expect("an arena")).expect("compiles")
    }

    fn code<'a>(frames: &'a Frames, name: &str) -> &'a Code {
        let found = frames.code.iter().find(|code| code.name == name);
        found.expect("was compiled")
    }

    unsafe extern "C" fn fresh(cells: *mut c_void, depth: u64) -> usize {
        // SAFETY: the caller below passes a vector and does not use it during the call.
        let cells = unsafe { &mut *cells.cast::<Vec<Box<[u64; 2]>>>() };
        cells.push(Box::new([0, depth * 11]));
        cells[cells.len() - 1].as_ptr() as usize
    }

    unsafe extern "C" fn bottom(cells: *mut c_void) {
        // SAFETY: the argument is the one that `fresh` expects.
        unsafe { fresh(cells, 1 << 40) };
    }

    #[test]
    fn a_deep_recursion_gives_the_oracles_answer() {
        let frames = compiled();
        let mut cells: Vec<Box<[u64; 2]>> = vec![Box::new([0, 101 * 11])];
        let first = cells[0].as_ptr() as usize;
        let data = (&raw mut cells).cast();
        // SAFETY: `data` is what `fresh` and `bottom` expect, and it outlives the call.
        let sum = unsafe { (frames.deep)(100, fresh, bottom, data, 3, 4, first, 5) };
        assert_eq!(sum, deep_oracle(100, 3, 4, 5, |depth| depth * 11));
        assert_eq!(cells.len(), 103);
    }

    #[test]
    fn a_deep_frame_has_every_part_that_a_walker_must_know() {
        let frames = compiled();
        let facts = &code(&frames, "deep").facts;
        assert!(facts.clobber >= 4 * 8, "{facts:?}");
        assert_eq!(facts.outgoing, 16, "two stack-passed arguments");
        let mut slots: Vec<usize> = facts.sites.iter().map(|s| s.slots.len()).collect();
        slots.sort_unstable();
        assert_eq!(slots, [1, 2, 2]); // fresh(), then deep() and bottom()
    }

    #[test]
    fn a_stack_passed_argument_is_in_no_map() {
        let frames = compiled();
        let facts = &code(&frames, "stack_argument").facts;
        assert!(facts.outgoing >= 8, "{facts:?}");
        assert!(facts.sites.iter().all(|site| site.slots.is_empty()));
    }

    #[test]
    fn every_callee_saved_register_is_saved() {
        let frames = compiled();
        assert!(code(&frames, "saves_registers").facts.clobber >= CALLEE_SAVED);
        let numbers = [3, 1, 4, 1, 5, 9, 2, 6];
        let mut cells: Vec<Box<[u64; 2]>> = Vec::new();
        let data = (&raw mut cells).cast();
        // SAFETY: `data` is what `bottom` expects, and it outlives the call.
        let sum = unsafe { (frames.saves_registers)(&numbers, bottom, data) };
        assert_eq!(sum, saves_registers_oracle(&numbers));
    }
}
