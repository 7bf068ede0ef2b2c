//! Kernels over numbers: integer sum, array sum, sieve, matrix multiply, mandelbrot.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, types};

use super::maker::Maker;
use crate::kernels::codegen::CodegenError;
use crate::kernels::loops::params_of;

/// `words = [count]`: the sum of the numbers below `count`.
pub fn sum(maker: &mut Maker) -> Result<(), CodegenError> {
    maker.entry(|f, input| {
        let count = f.word(input, 0);
        f.passes(input, |f| {
            let zero = f.body.builder.ins().iconst(types::I64, 0);
            let sums = f.each(count, &[zero], |f, number, sum| {
                vec![f.body.builder.ins().iadd(sum[0], number)]
            });
            sums[0]
        });
    })
}

/// The answer of [`sum`].
pub fn sum_oracle(count: u64) -> u64 {
    (0..count).fold(0, u64::wrapping_add)
}

/// `words = [array, length, times]`: the sum of the array's 64-bit numbers, `times` times.
pub fn array(maker: &mut Maker) -> Result<(), CodegenError> {
    maker.entry(|f, input| {
        let [array, length, times] = [0, 1, 2].map(|number| f.word(input, number));
        f.passes(input, |f| {
            let zero = f.body.builder.ins().iconst(types::I64, 0);
            let sums = f.each(times, &[zero], |f, _, sum| {
                f.each(length, sum, |f, number, sum| {
                    let b = &mut f.body.builder;
                    let offset = b.ins().ishl_imm_u(number, 3);
                    let at = b.ins().iadd(array, offset);
                    let value = b.ins().load(types::I64, MemFlagsData::trusted(), at, 0);
                    vec![b.ins().iadd(sum[0], value)]
                })
            });
            sums[0]
        });
    })
}

/// The answer of [`array()`].
pub fn array_oracle(array: &[u64], times: u64) -> u64 {
    let sum = array.iter().copied().fold(0, u64::wrapping_add);
    sum.wrapping_mul(times)
}

/// `words = [flags, length]`: the number of primes below `length`, by a byte for each number.
pub fn sieve(maker: &mut Maker) -> Result<(), CodegenError> {
    maker.entry(|f, input| {
        let [bytes, length] = [0, 1].map(|number| f.word(input, number));
        f.passes(input, |f| {
            let flags = MemFlagsData::trusted();
            let b = &mut f.body.builder;
            let zero = b.ins().iconst(types::I64, 0);
            let one = b.ins().iconst(types::I64, 1);
            f.each(length, &[], |f, number, _| {
                let b = &mut f.body.builder;
                let at = b.ins().iadd(bytes, number);
                b.ins().istore8(flags, zero, at, 0);
                Vec::new()
            });
            let primes = f.each(length, &[zero], |f, number, primes| {
                let b = &mut f.body.builder;
                let at = b.ins().iadd(bytes, number);
                let crossed = b.ins().uload8(types::I64, flags, at, 0);
                let big = b
                    .ins()
                    .icmp_imm_u(IntCC::UnsignedGreaterThanOrEqual, number, 2);
                let prime = b.ins().select(big, one, zero);
                let prime = b.ins().band_not(prime, crossed);
                let primes = b.ins().iadd(primes[0], prime);
                let square = b.ins().imul(number, number);
                let inside = b.ins().icmp(IntCC::UnsignedLessThan, square, length);
                let wanted = b.ins().select(inside, prime, zero);
                let cross = b.create_block();
                let multiple = b.append_block_param(cross, types::I64);
                let crossed = b.create_block();
                b.ins()
                    .brif(wanted, cross, &params_of(&[square]), crossed, &[]);
                b.switch_to_block(cross);
                let at = b.ins().iadd(bytes, multiple);
                b.ins().istore8(flags, one, at, 0);
                let multiple = b.ins().iadd(multiple, number);
                let more = b.ins().icmp(IntCC::UnsignedLessThan, multiple, length);
                f.back_edge(more, cross, &[multiple], crossed);
                f.body.builder.switch_to_block(crossed);
                vec![primes]
            });
            primes[0]
        });
    })
}

/// The answer of [`sieve`].
pub fn sieve_oracle(length: usize) -> u64 {
    let mut crossed = vec![false; length];
    let mut primes = 0;
    for number in 2..length {
        if !crossed[number] {
            primes += 1;
            for multiple in (number * number..length).step_by(number) {
                crossed[multiple] = true;
            }
        }
    }
    primes
}

/// `words = [a, b, c, n]`: the sum of all elements of the product of two `n` x `n` matrices, which
/// is stored in `c`. A function computes a row.
pub fn matrix(maker: &mut Maker) -> Result<(), CodegenError> {
    let row = maker.function(
        "matrix_row",
        &[types::I64; 4],
        &[types::F64],
        |f, params| {
            let [a, matrix, c, n] = [params[0], params[1], params[2], params[3]];
            let flags = MemFlagsData::trusted();
            let zero = f.body.builder.ins().f64const(0.0);
            let row = f.each(n, &[zero], |f, column, row| {
                let b = &mut f.body.builder;
                let offset = b.ins().ishl_imm_u(column, 3);
                let stride = b.ins().ishl_imm_u(n, 3);
                let first = b.ins().iadd(matrix, offset);
                let dot = f.each(n, &[zero, first], |f, k, carried| {
                    let b = &mut f.body.builder;
                    let offset = b.ins().ishl_imm_u(k, 3);
                    let left = b.ins().iadd(a, offset);
                    let left = b.ins().load(types::F64, flags, left, 0);
                    let right = b.ins().load(types::F64, flags, carried[1], 0);
                    let product = b.ins().fmul(left, right);
                    let dot = b.ins().fadd(carried[0], product);
                    vec![dot, b.ins().iadd(carried[1], stride)]
                });
                let b = &mut f.body.builder;
                let at = b.ins().iadd(c, offset);
                b.ins().store(flags, dot[0], at, 0);
                vec![b.ins().fadd(row[0], dot[0])]
            });
            f.body.builder.ins().return_(&row);
        },
    )?;
    maker.entry(|f, input| {
        let [a, matrix, c, n] = [0, 1, 2, 3].map(|number| f.word(input, number));
        f.passes(input, |f| {
            let b = &mut f.body.builder;
            let zero = b.ins().f64const(0.0);
            let stride = b.ins().ishl_imm_u(n, 3);
            let sums = f.each(n, &[zero, a, c], |f, _, carried| {
                let sum = f.call(row, &[carried[1], matrix, carried[2], n]);
                let b = &mut f.body.builder;
                let next = [carried[1], carried[2]].map(|at| b.ins().iadd(at, stride));
                vec![b.ins().fadd(carried[0], sum), next[0], next[1]]
            });
            let b = &mut f.body.builder;
            b.ins().bitcast(types::I64, MemFlagsData::new(), sums[0])
        });
    })
}

/// The answer of [`matrix`]: the sum's bits.
pub fn matrix_oracle(a: &[f64], b: &[f64], n: usize) -> u64 {
    let row = |row: &[f64]| {
        (0..n).fold(0.0, |sum, column| {
            let terms = row.iter().enumerate();
            sum + terms.fold(0.0, |dot, (k, left)| dot + left * b[k * n + column])
        })
    };
    let sum = a.chunks_exact(n).fold(0.0, |sum, r| sum + row(r));
    sum.to_bits()
}

/// The upper left corner of the mandelbrot kernel's picture.
const CORNER: (f64, f64) = (-2.0, -1.25);
/// Its width and its height.
const EXTENT: f64 = 2.5;

/// `words = [size, limit]`: the iterations of all pixels of a picture of the mandelbrot set, `size`
/// pixels wide and high, with at most `limit` iterations a pixel. A function computes a row.
pub fn mandelbrot(maker: &mut Maker) -> Result<(), CodegenError> {
    let row = maker.function(
        "mandelbrot_row",
        &[types::F64, types::F64, types::I64, types::I64],
        &[types::I64],
        |f, params| {
            let [y, step, size, limit] = [params[0], params[1], params[2], params[3]];
            let b = &mut f.body.builder;
            let none = b.ins().iconst(types::I64, 0);
            let zero = b.ins().f64const(0.0);
            let left = b.ins().f64const(CORNER.0);
            let four = b.ins().f64const(4.0);
            let sums = f.each(size, &[none, left], |f, _, carried| {
                let [sum, x] = [carried[0], carried[1]];
                let b = &mut f.body.builder;
                let turn = b.create_block();
                let re = b.append_block_param(turn, types::F64);
                let im = b.append_block_param(turn, types::F64);
                let count = b.append_block_param(turn, types::I64);
                let done = b.create_block();
                b.ins().jump(turn, &params_of(&[zero, zero, none]));
                b.switch_to_block(turn);
                let product = b.ins().fmul(re, im);
                let twice = b.ins().fadd(product, product);
                let [re2, im2] = [re, im].map(|part| b.ins().fmul(part, part));
                let difference = b.ins().fsub(re2, im2);
                let re = b.ins().fadd(difference, x);
                let im = b.ins().fadd(twice, y);
                let size = b.ins().fadd(re2, im2);
                let inside = b.ins().fcmp(FloatCC::LessThanOrEqual, size, four);
                let count = b.ins().iadd_imm_s(count, 1);
                let fewer = b.ins().icmp(IntCC::UnsignedLessThan, count, limit);
                let more = b.ins().band(inside, fewer);
                f.back_edge(more, turn, &[re, im, count], done);
                let b = &mut f.body.builder;
                b.switch_to_block(done);
                vec![b.ins().iadd(sum, count), b.ins().fadd(x, step)]
            });
            f.body.builder.ins().return_(&sums[..1]);
        },
    )?;
    maker.entry(|f, input| {
        let [size, limit] = [0, 1].map(|number| f.word(input, number));
        f.passes(input, |f| {
            let b = &mut f.body.builder;
            let none = b.ins().iconst(types::I64, 0);
            let top = b.ins().f64const(CORNER.1);
            let extent = b.ins().f64const(EXTENT);
            let pixels = b.ins().fcvt_from_uint(types::F64, size);
            let step = b.ins().fdiv(extent, pixels);
            let sums = f.each(size, &[none, top], |f, _, carried| {
                let count = f.call(row, &[carried[1], step, size, limit]);
                let b = &mut f.body.builder;
                vec![
                    b.ins().iadd(carried[0], count),
                    b.ins().fadd(carried[1], step),
                ]
            });
            sums[0]
        });
    })
}

/// The answer of [`mandelbrot`].
pub fn mandelbrot_oracle(size: u64, limit: u64) -> u64 {
    let step = EXTENT / size as f64;
    let pixel = |x: f64, y: f64| {
        let (mut re, mut im, mut count) = (0.0, 0.0, 0);
        loop {
            let (re2, im2, twice) = (re * re, im * im, re * im + re * im);
            (re, im, count) = (re2 - im2 + x, twice + y, count + 1);
            if re2 + im2 > 4.0 || count >= limit {
                return count;
            }
        }
    };
    let mut sum = 0;
    let mut y = CORNER.1;
    for _ in 0..size {
        let mut x = CORNER.0;
        for _ in 0..size {
            sum += pixel(x, y);
            x += step;
        }
        y += step;
    }
    sum
}
