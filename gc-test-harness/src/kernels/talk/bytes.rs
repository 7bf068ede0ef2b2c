//! Kernels over bytes: base64 decode, FNV hash, string search.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, types};

use super::maker::Maker;
use crate::kernels::codegen::CodegenError;
use crate::kernels::loops::params_of;

/// `words = [text, groups, output, table]`: decodes groups of four letters by the table of
/// [`base64_table`](crate::kernels::loops::base64_table), and gives the number of bytes.
pub fn base64(maker: &mut Maker) -> Result<(), CodegenError> {
    maker.entry(|f, input| {
        let [text, groups, output, table] = [0, 1, 2, 3].map(|number| f.word(input, number));
        f.passes(input, |f| {
            let flags = MemFlagsData::trusted();
            let ends = f.each(groups, &[text, output], |f, _, carried| {
                let [from, to] = [carried[0], carried[1]];
                let b = &mut f.body.builder;
                let mut group = b.ins().iconst(types::I64, 0);
                for i in 0..4 {
                    let letter = b.ins().uload8(types::I64, flags, from, i);
                    let entry = b.ins().iadd(table, letter);
                    let bits = b.ins().uload8(types::I64, flags, entry, 0);
                    let shifted = b.ins().ishl_imm_u(group, 6);
                    group = b.ins().bor(shifted, bits);
                }
                for i in 0..3 {
                    let byte = b.ins().ushr_imm_u(group, 16 - 8 * i);
                    b.ins().istore8(flags, byte, to, i as i32);
                }
                vec![b.ins().iadd_imm_s(from, 4), b.ins().iadd_imm_s(to, 3)]
            });
            f.body.builder.ins().isub(ends[1], output)
        });
    })
}

/// The basis and the prime of the 64-bit FNV-1a hash.
const FNV: (u64, u64) = (0xcbf2_9ce4_8422_2325, 0x100_0000_01b3);

/// `words = [keys, count, length]`: the sum of the FNV-1a hashes of `count` keys of `length` bytes.
/// A function hashes a key.
pub fn hash(maker: &mut Maker) -> Result<(), CodegenError> {
    let key = maker.function("hash_key", &[types::I64; 2], &[types::I64], |f, params| {
        let [key, length] = [params[0], params[1]];
        let b = &mut f.body.builder;
        let basis = b.ins().iconst(types::I64, FNV.0.cast_signed());
        let prime = b.ins().iconst(types::I64, FNV.1.cast_signed());
        let hash = f.each(length, &[basis], |f, number, hash| {
            let b = &mut f.body.builder;
            let at = b.ins().iadd(key, number);
            let byte = b.ins().uload8(types::I64, MemFlagsData::trusted(), at, 0);
            let mixed = b.ins().bxor(hash[0], byte);
            vec![b.ins().imul(mixed, prime)]
        });
        f.body.builder.ins().return_(&hash);
    })?;
    maker.entry(|f, input| {
        let [keys, count, length] = [0, 1, 2].map(|number| f.word(input, number));
        f.passes(input, |f| {
            let zero = f.body.builder.ins().iconst(types::I64, 0);
            let sums = f.each(count, &[zero, keys], |f, _, carried| {
                let hash = f.call(key, &[carried[1], length]);
                let b = &mut f.body.builder;
                vec![
                    b.ins().iadd(carried[0], hash),
                    b.ins().iadd(carried[1], length),
                ]
            });
            sums[0]
        });
    })
}

/// The answer of [`hash`].
pub fn hash_oracle(keys: &[u8], length: usize) -> u64 {
    let hash = |key: &[u8]| {
        let bytes = key.iter().map(|&byte| u64::from(byte));
        bytes.fold(FNV.0, |hash, byte| (hash ^ byte).wrapping_mul(FNV.1))
    };
    keys.chunks_exact(length)
        .map(hash)
        .fold(0, u64::wrapping_add)
}

/// `words = [text, places, needle, length]`: the number of the first `places` places of the text at
/// which the needle stands. Where its first letter stands, a function compares the others.
pub fn search(maker: &mut Maker) -> Result<(), CodegenError> {
    let matches = maker.function("search_at", &[types::I64; 3], &[types::I64], |f, params| {
        let [text, needle, length] = [params[0], params[1], params[2]];
        let flags = MemFlagsData::trusted();
        let b = &mut f.body.builder;
        let zero = b.ins().iconst(types::I64, 0);
        let turn = b.create_block();
        let number = b.append_block_param(turn, types::I64);
        let done = b.create_block();
        b.ins().jump(turn, &params_of(&[zero]));
        b.switch_to_block(turn);
        let [left, right] = [text, needle].map(|at| {
            let at = b.ins().iadd(at, number);
            b.ins().uload8(types::I64, flags, at, 0)
        });
        let same = b.ins().icmp(IntCC::Equal, left, right);
        let number = b.ins().iadd_imm_s(number, 1);
        let fewer = b.ins().icmp(IntCC::UnsignedLessThan, number, length);
        let more = b.ins().band(same, fewer);
        f.back_edge(more, turn, &[number], done);
        let b = &mut f.body.builder;
        b.switch_to_block(done);
        let same = b.ins().uextend(types::I64, same);
        b.ins().return_(&[same]);
    })?;
    maker.entry(|f, input| {
        let [text, places, needle, length] = [0, 1, 2, 3].map(|number| f.word(input, number));
        f.passes(input, |f| {
            let flags = MemFlagsData::trusted();
            let b = &mut f.body.builder;
            let zero = b.ins().iconst(types::I64, 0);
            let first = b.ins().uload8(types::I64, flags, needle, 0);
            let found = f.each(places, &[zero], |f, number, found| {
                let b = &mut f.body.builder;
                let at = b.ins().iadd(text, number);
                let letter = b.ins().uload8(types::I64, flags, at, 0);
                let same = b.ins().icmp(IntCC::Equal, letter, first);
                let compare = b.create_block();
                let next = b.create_block();
                let sum = b.append_block_param(next, types::I64);
                b.ins()
                    .brif(same, compare, &[], next, &params_of(&[found[0]]));
                b.switch_to_block(compare);
                let one = f.call(matches, &[at, needle, length]);
                let b = &mut f.body.builder;
                let more = b.ins().iadd(found[0], one);
                b.ins().jump(next, &params_of(&[more]));
                b.switch_to_block(next);
                vec![sum]
            });
            found[0]
        });
    })
}

/// The answer of [`search`], for all places at which the whole needle fits.
pub fn search_oracle(text: &[u8], needle: &[u8]) -> u64 {
    let places = text.windows(needle.len());
    places.filter(|&place| place == needle).count() as u64
}
