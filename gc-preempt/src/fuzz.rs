//! Entry points for a fuzzing engine: the readers of stack maps and unwind tables on arbitrary
//! bytes, and walks by the tables that they make.
//!
//! Only with the cargo feature `faults`, which the workspace's tests and `gc-test-harness/fuzz`
//! turn on. Each function panics at the first wrong answer: an error without a place, a table that
//! is larger than its input allows, a slot outside of its frame, a word of the stack that was not
//! reported.

use std::ops::Range;
use std::sync::atomic::AtomicUsize;

use crate::code::{CodeMap, CodeSpec, CodeWhat, FrameRule};
use crate::context::{RSP, Registers, Snapshot};
use crate::own_stack::StackBounds;
use crate::stackmap::{StackMaps, cranelift};
use crate::unwind::NEVER;
use crate::walk::{RootSink, WalkStats, walk};

/// Reads a `.llvm_stackmaps` section.
///
/// # Panics
/// At the first wrong answer.
pub fn llvm(section: &[u8]) {
    match StackMaps::from_llvm(section) {
        Ok(maps) => maps.check(section.len()),
        Err(error) => assert!(error.at <= section.len(), "{error}"),
    }
}

/// Reads an `.eh_frame` section, and looks up each function's first and last instruction.
///
/// # Panics
/// At the first wrong answer.
pub fn eh_frame(section: &[u8]) {
    match StackMaps::default().with_eh_frame(section, 0x10_0000) {
        Ok(maps) => {
            let table = maps.unwind_table().expect("it was just given");
            // An entry takes twelve bytes at least.
            assert!(table.functions().count() <= section.len() / 12);
            for function in table.functions() {
                let found = table.look_up(function.start);
                assert!(found.is_none_or(|row| row.pcs.contains(&function.start)));
                let found = table.look_up(function.end - 1);
                assert!(found.is_none_or(|row| row.pcs.contains(&(function.end - 1))));
            }
        }
        Err(error) => assert!(error.at <= section.len(), "{error}"),
    }
}

/// Takes Cranelift's facts of some functions, and walks a stack by them.
///
/// # Panics
/// At the first wrong answer.
pub fn cranelift(input: &[u8]) {
    let mut input = Input(input);
    let mut functions = Vec::new();
    for _ in 0..input.byte() % 5 {
        let mut function = cranelift::Function {
            address: input.word() & 0xf_ffff_ffff,
            size: input.half(),
            frame_to_fp: input.half(),
            clobber: input.half(),
            outgoing: input.half(),
            sites: Vec::new(),
        };
        for _ in 0..input.byte() % 5 {
            function.sites.push(cranelift::Site {
                return_offset: input.half(),
                known: input.byte() % 4 != 0,
                slots: (0..input.byte() % 9).map(|_| input.half()).collect(),
            });
        }
        functions.push(function);
    }
    let slots = functions
        .iter()
        .flat_map(|f| &f.sites)
        .map(|s| 1 + s.slots.len());
    let most = slots.sum::<usize>() + functions.len();
    if let Ok(maps) = StackMaps::from_cranelift(&functions) {
        maps.check(24 * most);
        walk_by(maps, FrameRule::Rbp, &mut input);
    }
}

/// Walks a stack by a stack map of LLVM's and unwind tables, whose lengths the input's first bytes
/// say.
///
/// # Panics
/// At the first wrong answer.
pub fn frames(input: &[u8]) {
    let mut input = Input(input);
    let [maps, tables] = [0; 2].map(|_| input.half() as usize);
    let Ok(maps) = StackMaps::from_llvm(input.bytes(maps)) else {
        return;
    };
    if let Ok(maps) = maps.with_eh_frame(input.bytes(tables), 0x10_0000) {
        walk_by(maps, FrameRule::Cfi, &mut input);
    }
}

/// An input's bytes in pieces; zeros behind its end.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    fn number<const N: usize>(&mut self) -> u64 {
        let mut word = [0; 8];
        let bytes = self.bytes(N);
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    }

    fn byte(&mut self) -> u8 {
        self.number::<1>() as u8
    }

    fn half(&mut self) -> u32 {
        self.number::<2>() as u32
    }

    fn word(&mut self) -> usize {
        self.number::<8>() as usize
    }
}

/// Words of a stack.
const WORDS: usize = 64;

/// Which words of a stack were reported.
struct Seen {
    stack: Range<usize>,
    registers: Range<usize>,
    words: [bool; WORDS],
}

impl Seen {
    fn word(&mut self, address: usize) {
        assert!(address.is_multiple_of(8) && self.stack.contains(&address));
        self.words[(address - self.stack.start) / 8] = true;
    }
}

impl RootSink for Seen {
    fn conservative(&mut self, words: Range<usize>) {
        if words != self.registers {
            words.step_by(8).for_each(|word| self.word(word));
        }
    }

    fn exact(&mut self, slot: usize, _: u32) {
        self.word(slot);
    }

    fn derived(&mut self, base: usize, derived: usize, _: u32) {
        assert_ne!(base, derived);
        self.word(base);
        self.word(derived);
    }
}

/// Walks a stack that the input describes, of a thread that called out of the code of these maps.
/// No frame is interrupted, so the walk does not read that code.
fn walk_by(maps: StackMaps, frames: FrameRule, input: &mut Input<'_>) {
    let range = 1..usize::MAX;
    let what = CodeWhat::Managed {
        frames,
        maps,
        encoding: 0,
    };
    let spec = CodeSpec {
        range,
        what,
        owner: None,
    };
    let Ok(spec) = spec.checked() else {
        return;
    };
    let map = CodeMap::leaked();
    // SAFETY: the map is this call's alone.
    let guard = unsafe { map.register(1, spec) }.expect("nothing is in the way");
    let mut words = [0; WORDS];
    let start = words.as_ptr() as usize;
    // A word is a place on the stack or anything.
    let mut word = || match input.byte() {
        at @ 0..=95 => start + 8 * usize::from(at),
        _ => input.word(),
    };
    let mut registers = Registers {
        pc: word(),
        ..Registers::default()
    };
    registers.gpr = registers.gpr.map(|_| word());
    let sp = start + 8 * (registers.gpr[RSP] % WORDS);
    registers.gpr[RSP] = sp;
    words.iter_mut().for_each(|place| *place = word());
    let snapshot = Snapshot {
        registers,
        ..Snapshot::default()
    };
    let own = snapshot.registers.gpr.as_ptr_range();
    let mut seen = Seen {
        stack: start..start + 8 * WORDS,
        registers: own.start as usize..own.end as usize,
        words: [false; WORDS],
    };
    let outermost = AtomicUsize::new(0);
    let bounds = StackBounds {
        stack: seen.stack.clone(),
        outermost: &outermost,
    };
    // SAFETY: the stack is this call's own array, and the thread that stands on it does not exist.
    let stats = unsafe { walk(map, NEVER, &snapshot, bounds, &mut seen) };
    std::hint::black_box(&words);
    drop(guard);
    // SAFETY: as above.
    let removed = unsafe {
        map.take_dropped();
        map.reap(1, [].into_iter(), [].into_iter());
        map.sweep()
    };
    assert_eq!(removed.len(), 1);
    // SAFETY: it came from a box, and the only guard is gone.
    drop(unsafe { Box::from_raw(std::ptr::from_ref(map).cast_mut()) });
    let WalkStats {
        precise, to_base, ..
    } = stats;
    if precise == 0 && to_base {
        let first = (sp - start) / 8;
        assert!(seen.words[first..].iter().all(|seen| *seen), "{stats:?}");
    }
}
