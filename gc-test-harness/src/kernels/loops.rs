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
const MULTIPLIER: u64 = 747_796_405;

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
                b.declare_value_needs_stack_map(reference);
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
mod tests {
    use super::*;

    /// Compiles one kernel in its own arena, and gives its code and the instructions as Cranelift
    /// prints them.
    fn listed(kernel: impl Fn(&mut Arena) -> Result<(), CodegenError>) -> (Code, Vec<String>) {
        let mut arena = Arena::new().expect("an arena");
        arena.keep_listings();
        kernel(&mut arena).expect("compiles");
        let code = arena.finish().expect("links").remove(0);
        let listing = code.listing.as_deref().expect("was asked for");
        let lines = listing.lines().map(|line| line.trim().to_owned()).collect();
        (code, lines)
    }

    /// The instructions from a loop's head to its backward jump, which are the only ones that
    /// repeat.
    fn loop_of(lines: &[String]) -> &[String] {
        for (end, line) in lines.iter().enumerate() {
            let Some(target) = line.strip_prefix("jmp     label") else {
                continue;
            };
            let head = format!("block{target}:");
            if let Some(start) = lines[..end].iter().position(|line| *line == head) {
                return &lines[start + 1..=end];
            }
        }
        panic!("no loop in {lines:#?}");
    }

    fn touches_memory(line: &str) -> bool {
        line.contains('(') && !line.starts_with("lea")
    }

    #[test]
    fn a_counting_loop_touches_no_memory_and_calls_nothing() {
        let (_, lines) = listed(|arena| count(arena, false));
        let body = loop_of(&lines);
        assert!(
            body.iter()
                .all(|line| !touches_memory(line) && !line.contains("call")),
            "{body:#?}"
        );
    }

    #[test]
    fn a_chasing_loop_loads_its_two_words_and_nothing_else() {
        let (_, lines) = listed(|arena| chase(arena, true));
        let body = loop_of(&lines);
        let memory = body.iter().filter(|line| touches_memory(line)).count();
        assert_eq!(memory, 2, "{body:#?}");
        assert!(body.iter().all(|line| !line.contains("call")), "{body:#?}");
    }

    #[test]
    fn declared_references_and_a_registered_arena_change_no_byte_of_a_loop() {
        let (plain, _) = listed(|arena| chase(arena, false));
        let (declared, _) = listed(|arena| chase(arena, true));
        assert_eq!(plain.bytes(), declared.bytes());
        let mut arena = Arena::new().expect("an arena");
        let loops = Loops::compile(&mut arena).expect("compiles");
        let among_others = loops.code.iter().find(|code| code.name == "chase");
        assert_eq!(among_others.expect("is there").bytes(), plain.bytes());
    }

    #[test]
    fn stopping_and_collecting_changes_no_byte_of_a_loop() {
        let heap = gc_core::Heap::builder().build().expect("a heap");
        let mut arena = Arena::new().expect("an arena");
        let loops = Loops::compile(&mut arena).expect("compiles");
        let before: Vec<Vec<u8>> = loops.code.iter().map(|c| c.bytes().to_vec()).collect();
        let register = |code: &Code| code.register_with(&heap, gc_core::raw::Encoding::RAW);
        let _guards: Vec<_> = loops.code.iter().map(register).collect();
        std::thread::scope(|scope| {
            let counting = scope.spawn(|| {
                let _mutator = heap.attach().expect("attaches");
                (loops.count)(1, 30_000_000)
            });
            while !counting.is_finished() {
                heap.collect();
            }
        });
        let after: Vec<Vec<u8>> = loops.code.iter().map(|c| c.bytes().to_vec()).collect();
        assert_eq!(before, after);
    }

    #[test]
    fn every_loop_gives_the_oracles_answer() {
        let loops = Loops::compile(&mut Arena::new().expect("an arena")).expect("compiles");
        assert_eq!((loops.count)(7, 1000), count_oracle(7, 1000));
        let mut place = 0;
        // SAFETY: the place is a word of this frame.
        let aloud = unsafe { (loops.count_aloud)(7, 1000, &raw mut place) };
        assert_eq!((aloud, place), (count_oracle(7, 1000), 1));

        let values = [3, 1, 4, 1, 5];
        let mut ring: Vec<[usize; 2]> = values.iter().map(|&v| [0, v as usize]).collect();
        for i in 0..ring.len() {
            ring[i][0] = ring[(i + 1) % values.len()].as_ptr() as usize;
        }
        let mut slot = ring[0].as_ptr() as usize;
        // SAFETY: the slot names a ring of nodes that outlive the call.
        let sum = unsafe { (loops.chase)(&mut slot, 13) };
        assert_eq!(sum, chase_oracle(&values.map(|v| v as u64), 13));
        assert_eq!(slot, ring[3].as_ptr() as usize);

        let bytes: Vec<u8> = (0..3000_u32).map(|i| ((i * i) >> 3) as u8).collect();
        let text = base64_encode(&bytes);
        let mut decoded = vec![0; bytes.len()];
        let table = base64_table();
        // SAFETY: text, output and table are as long as the kernel requires.
        let written = unsafe {
            (loops.base64)(
                text.as_ptr(),
                text.len(),
                decoded.as_mut_ptr(),
                table.as_ptr(),
            )
        };
        assert_eq!((written, decoded), (bytes.len(), bytes));
    }

    #[test]
    fn the_spinlock_excludes() {
        let loops = Loops::compile(&mut Arena::new().expect("an arena")).expect("compiles");
        let (mut lock, mut counter) = (0_u64, 0_u64);
        let words = [&raw mut lock as usize, &raw mut counter as usize];
        std::thread::scope(|scope| {
            for _ in 0..2 {
                // SAFETY: both words outlive the scope, and only the kernel accesses them
                // meanwhile.
                scope.spawn(|| unsafe {
                    (loops.spinlock)(words[0] as *mut u64, words[1] as *mut u64, 500, 20);
                });
            }
        });
        assert_eq!((lock, counter), (0, 1000));
    }
}
