//! Kernels over numbers: integer sum, array sum, sieve, matrix multiply, mandelbrot.

use cranelift_codegen::ir::{InstBuilder, types};

use super::maker::Maker;
use crate::kernels::codegen::CodegenError;
use crate::kernels::loops::params_of;

/// `words = [count]`: the sum of the numbers below `count`.
pub fn sum(maker: &mut Maker) -> Result<(), CodegenError> {
    maker.entry(|f, input| {
        let count = f.word(input, 0);
        f.passes(input, |f| {
            let (turn, carried) = f.block(&[types::I64, types::I64]);
            let (done, _) = f.block(&[]);
            let b = &mut f.body.builder;
            let zero = b.ins().iconst(types::I64, 0);
            b.ins().jump(turn, &params_of(&[zero, count]));
            b.switch_to_block(turn);
            let left = b.ins().iadd_imm_s(carried[1], -1);
            let sum = b.ins().iadd(carried[0], left);
            f.back_edge(left, turn, &[sum, left], done);
            f.body.builder.switch_to_block(done);
            sum
        });
    })
}

/// The answer of [`sum`].
pub fn sum_oracle(count: u64) -> u64 {
    (0..count).fold(0, u64::wrapping_add)
}
