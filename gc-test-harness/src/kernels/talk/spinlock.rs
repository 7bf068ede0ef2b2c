//! A spinlock in compiled code, whose holder calls the runtime.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cranelift_codegen::ir::{InstBuilder, MemFlagsData, types};

use super::control::Control;
use super::maker::Maker;
use crate::kernels::codegen::CodegenError;

/// The runtime call in which the lock's holder waits.
#[derive(Debug, Default)]
pub struct Rest {
    /// The holder has entered the call.
    pub entered: AtomicBool,
    /// The holder may leave it.
    pub leave: AtomicBool,
}

/// `words = [lock, counter, rest, turns]`: takes the lock, rests, adds 1 to the counter, releases
/// the lock, and gives 1. Each turn of the loop that waits for the lock adds 1 to `turns`. Gives 0
/// if the control's `over` ends that loop. [`Rest`] is the memory that `rest` names.
pub fn spinlock(maker: &mut Maker) -> Result<(), CodegenError> {
    let arena = &mut maker.arena;
    let signature = arena.signature(&[types::I64], &[]);
    let rest = arena.import("talk_rest", rest as *const u8, &signature)?;
    maker.entry(|f, input| {
        let words = [0, 1, 2, 3].map(|number| f.word(input, number));
        let [lock, counter, memory, turns] = words;
        let control = f.control();
        let rest = f.body.callee(rest);
        let over = std::mem::offset_of!(Control, over) as i32;
        let flags = MemFlagsData::trusted();
        let b = &mut f.body.builder;
        let free = b.ins().iconst(types::I64, 0);
        let held = b.ins().iconst(types::I64, 1);
        let spin = b.create_block();
        let again = b.create_block();
        let inside = b.create_block();
        let given_up = b.create_block();
        b.ins().jump(spin, &[]);
        b.switch_to_block(spin);
        let seen = b.ins().atomic_cas(flags, lock, free, held);
        b.ins().brif(seen, again, &[], inside, &[]);
        b.switch_to_block(again);
        let number = b.ins().load(types::I64, flags, turns, 0);
        let number = b.ins().iadd_imm_s(number, 1);
        b.ins().store(flags, number, turns, 0);
        let over = b.ins().load(types::I64, flags, control, over);
        let more = b.ins().bxor_imm_u(over, 1);
        f.back_edge(more, spin, &[], given_up);
        let b = &mut f.body.builder;
        b.switch_to_block(given_up);
        b.ins().return_(&[free]);
        b.switch_to_block(inside);
        b.ins().call(rest, &[memory]);
        let number = b.ins().load(types::I64, flags, counter, 0);
        let number = b.ins().iadd_imm_s(number, 1);
        b.ins().store(flags, number, counter, 0);
        b.ins().atomic_store(flags, free, lock);
        b.ins().return_(&[held]);
    })
}

/// A call into the runtime that blocks.
unsafe extern "C" fn rest(rest: *const Rest) {
    // SAFETY: the scene's own memory, which outlives its threads.
    let rest = unsafe { &*rest };
    gc_preempt::blocking_here(|| {
        // Release and Acquire: pair with the scene's load and store.
        rest.entered.store(true, Ordering::Release);
        while !rest.leave.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_micros(100));
        }
    });
}
