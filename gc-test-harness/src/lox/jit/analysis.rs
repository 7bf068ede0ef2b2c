//! Analyses a function's bytecode before its translation: stack heights, blocks, live slots, types.
//!
//! The analyses use the bytecode only. The translation relies on the types: a slot that is always a
//! number is in a floating-point register. The tests' oracle relies on the live slots, which do not
//! depend on Cranelift.
//!
//! # Types
//!
//! A forward analysis over the slots computes the set of types that a value may have ([`Type`]). It
//! begins with empty sets and reaches the least fixpoint. So the counter of `for (var i = 0; i < n;
//! i = i + 1)` is a number, although the loop adds to it. An operation that demands a type also
//! proves it: after `n < 2`, the slot that `n` was read from holds a number. [`Types::step`] is the
//! effect of one instruction. The translation must give its operands the same types.
//!
//! # Liveness
//!
//! A backward analysis over the slots, operands included, computes the live slots. A copy
//! (`GetLocal`, `SetLocal`) and an operation without side effect (`Equal`, `Not`, `Pop`) use their
//! operand only if their result is used.
//!
//! A result in a captured slot is always used, because an instruction of another function may read
//! it through a closure. So the instruction that writes a captured slot uses its operands, whether
//! this function reads the slot or not.

use std::ops::Range;

use crate::lox::fault::Fault;

use crate::lox::bytecode::{Capture, Constant, Function, Instruction, Op};

/// A set of the types that a value may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Type(u8);

impl Type {
    /// a number
    pub(super) const NUMBER: Type = Type(1);
    /// `true` or `false`
    pub(super) const BOOLEAN: Type = Type(2);
    /// `nil`
    pub(super) const NIL: Type = Type(4);
    /// an instance
    pub(super) const INSTANCE: Type = Type(8);
    /// any other cell
    pub(super) const CELL: Type = Type(16);
    /// a string or a number: the result of `+`
    pub(super) const SUM: Type = Type(1 | 16);
    /// any value
    pub(super) const ANY: Type = Type(31);

    /// The union of both sets.
    pub(super) fn join(self, other: Type) -> Type {
        Type(self.0 | other.0)
    }

    /// Whether each type of this set is in `other`.
    pub(super) fn is(self, other: Type) -> bool {
        self.0 & !other.0 == 0
    }

    /// Whether some type of this set is in `other`.
    pub(super) fn may_be(self, other: Type) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether the value may be a reference.
    pub(super) fn may_refer(self) -> bool {
        self.may_be(Type(8 | 16))
    }

    /// The representation of a value of this type as a block parameter.
    pub(super) fn form(self) -> Form {
        if self == Type::NUMBER {
            Form::Number
        } else if self == Type::BOOLEAN {
            Form::Flag
        } else {
            Form::Boxed
        }
    }
}

/// The machine representation of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// a double
    Number,
    /// a byte, 0 or 1
    Flag,
    /// a [`Value`](crate::lox::value::Value)'s word
    Boxed,
}

/// A set of slots for each instruction.
#[derive(Debug)]
pub(super) struct SlotSets {
    words: usize,
    bits: Vec<u64>,
}

impl SlotSets {
    fn new(sets: usize, slots: usize) -> SlotSets {
        let words = slots.div_ceil(64).max(1);
        SlotSets {
            words,
            bits: vec![0; sets * words],
        }
    }

    /// Whether the set of instruction `at` contains the slot.
    pub(super) fn has(&self, at: usize, slot: usize) -> bool {
        self.bits[at * self.words + slot / 64] >> (slot % 64) & 1 == 1
    }

    fn set(&mut self, at: usize) -> &mut [u64] {
        &mut self.bits[at * self.words..(at + 1) * self.words]
    }
}

/// The types of all slots at one instruction.
#[derive(Clone, Debug)]
pub(super) struct Types {
    slots: Vec<Type>,
    /// the local variable of which the slot is an unchanged copy
    origins: Vec<Option<u32>>,
}

impl Types {
    fn new(slots: Vec<Type>) -> Types {
        let origins = vec![None; slots.len()];
        Types { slots, origins }
    }

    fn pop(&mut self) -> (Type, Option<u32>) {
        let origin = self.origins.pop().flatten();
        (self.slots.pop().unwrap_or(Type::ANY), origin)
    }

    fn push(&mut self, function: &Function, kind: Type, origin: Option<u32>) {
        let captured = function.is_captured(self.slots.len());
        self.slots.push(if captured { Type::ANY } else { kind });
        self.origins.push(origin.filter(|_| !captured));
    }

    /// Pops an operand that must be a number.
    fn pop_number(&mut self) {
        if let (_, Some(origin)) = self.pop() {
            self.slots[origin as usize] = Type::NUMBER;
        }
    }

    /// Applies the instruction's effect to the types.
    pub(super) fn step(&mut self, function: &Function, instruction: Instruction) {
        let c = instruction.c;
        let count = usize::from(instruction.a);
        match instruction.op {
            Op::Constant => {
                let kind = match function.constants[c as usize] {
                    Constant::Number(_) => Type::NUMBER,
                    Constant::String(_) => Type::CELL,
                };
                self.push(function, kind, None);
            }
            Op::Nil => self.push(function, Type::NIL, None),
            Op::True | Op::False => self.push(function, Type::BOOLEAN, None),
            Op::Pop | Op::DefineGlobal | Op::Print | Op::PopJumpIfFalse | Op::CloseUpvalue => {
                self.pop();
            }
            Op::GetLocal => {
                let origin = Some(c).filter(|_| !function.is_captured(c as usize));
                self.push(function, self.slots[c as usize], origin);
            }
            Op::SetLocal => {
                for origin in &mut self.origins {
                    if *origin == Some(c) {
                        *origin = None;
                    }
                }
                if !function.is_captured(c as usize) {
                    let top = self.slots.len() - 1;
                    self.slots[c as usize] = self.slots[top];
                    if !function.is_captured(top) {
                        self.origins[top] = Some(c);
                    }
                }
            }
            Op::GetGlobal | Op::GetUpvalue => self.push(function, Type::ANY, None),
            Op::SetGlobal
            | Op::SetUpvalue
            | Op::Jump
            | Op::JumpIfFalse
            | Op::JumpIfTrue
            | Op::Loop => {}
            Op::GetProperty => {
                self.pop();
                self.push(function, Type::ANY, None);
            }
            Op::SetProperty => {
                let (kind, origin) = self.pop();
                self.pop();
                self.push(function, kind, origin);
            }
            Op::GetSuper => {
                self.pop();
                self.pop();
                self.push(function, Type::CELL, None);
            }
            Op::Equal => {
                self.pop();
                self.pop();
                self.push(function, Type::BOOLEAN, None);
            }
            Op::Greater | Op::Less => {
                self.pop_number();
                self.pop_number();
                self.push(function, Type::BOOLEAN, None);
            }
            Op::Add => {
                let top = self.slots.len() - 1;
                let kind = sum_type(self.slots[top - 1], self.slots[top]);
                if kind == Type::NUMBER {
                    self.pop_number();
                    self.pop_number();
                } else {
                    self.pop();
                    self.pop();
                }
                self.push(function, kind, None);
            }
            Op::Subtract | Op::Multiply | Op::Divide => {
                self.pop_number();
                self.pop_number();
                self.push(function, Type::NUMBER, None);
            }
            Op::Not => {
                self.pop();
                self.push(function, Type::BOOLEAN, None);
            }
            Op::Negate => {
                self.pop_number();
                self.push(function, Type::NUMBER, None);
            }
            Op::Call | Op::Invoke => self.call(function, count + 1),
            Op::SuperInvoke => self.call(function, count + 2),
            Op::Closure | Op::Class => self.push(function, Type::CELL, None),
            Op::Return | Op::Inherit | Op::Method => {
                self.pop();
            }
        }
    }

    fn call(&mut self, function: &Function, operands: usize) {
        for _ in 0..operands {
            self.pop();
        }
        self.push(function, Type::ANY, None);
    }
}

/// The type of `left + right` if it does not fail: with a number as one operand, the result is a
/// number.
pub(super) fn sum_type(left: Type, right: Type) -> Type {
    if left.is(Type::NUMBER) || right.is(Type::NUMBER) {
        Type::NUMBER
    } else if !left.may_be(Type::NUMBER) || !right.may_be(Type::NUMBER) {
        Type::CELL
    } else {
        Type::SUM
    }
}

/// The result of the analyses of a function that is entered at one instruction.
#[derive(Debug)]
pub(super) struct Analysis {
    /// the types of the slots at the entry
    pub(super) start: Vec<Type>,
    /// the live slots before each instruction
    pub(super) live: SlotSets,
    /// the types of the slots at each instruction that begins a block
    pub(super) entry: Vec<Option<Vec<Type>>>,
}

impl Analysis {
    /// Analyses the code that can be reached from instruction `start` within `region`, with these
    /// types of the slots at `start`. A block outside `region` that is entered from inside gets its
    /// types as well.
    pub(super) fn new(
        function: &Function,
        start: usize,
        region: &Range<usize>,
        slots: Vec<Type>,
    ) -> Analysis {
        let depth = depths(function, start, slots.len() as u32);
        let leaders = leaders(function, start);
        let live = liveness(function, &depth);
        let mut entry: Vec<Option<Vec<Type>>> = vec![None; function.code.len()];
        entry[start] = Some(slots.clone());
        let mut work = vec![start];
        while let Some(block) = work.pop() {
            if !region.contains(&block) {
                continue;
            }
            let mut types = Types::new(entry[block].clone().unwrap_or_default());
            let mut at = block;
            loop {
                let instruction = function.code[at];
                types.step(function, instruction);
                if let Some(target) = instruction.target() {
                    flow(&mut entry[target], &types, target, &mut work);
                }
                at += 1;
                if instruction.ends_block() {
                    break;
                }
                if leaders[at] {
                    flow(&mut entry[at], &types, at, &mut work);
                    break;
                }
            }
        }
        Analysis {
            start: slots,
            live,
            entry,
        }
    }
}

/// The number of slots in use before instruction `at`, or `None` if it cannot be reached.
pub(super) fn depth_at(function: &Function, at: usize) -> Option<u32> {
    depths(function, 0, function.arity + 1)[at]
}

/// The number that stands for the running closure in sets of slots.
pub(super) fn closure_slot(function: &Function) -> usize {
    function.max_stack as usize
}

/// Whether child function `child` captures an upvalue of `function`.
pub(super) fn hands_upvalues_on(function: &Function, child: usize) -> bool {
    let mut captures = function.functions[child].captures.iter();
    captures.any(|capture| matches!(capture, Capture::Upvalue(_)))
}

/// The range of instructions of the outermost loop around instruction `at`.
pub(super) fn loop_nest(function: &Function, at: usize) -> Range<usize> {
    let mut nest = at..at + 1;
    loop {
        let before = nest.clone();
        for (last, instruction) in function.code.iter().enumerate() {
            let first = instruction.c as usize;
            // Two loops are nested or disjoint, except for the two back-edges of a `for`, whose
            // ranges overlap.
            if instruction.op == Op::Loop && first < nest.end && last >= nest.start {
                nest = nest.start.min(first)..nest.end.max(last + 1);
            }
        }
        if nest == before {
            return nest;
        }
    }
}

/// The number of block parameters of the function's code, which Cranelift's work grows with.
pub(super) fn weight(analysis: &Analysis) -> usize {
    let entries = analysis.entry.iter().enumerate();
    entries
        .filter_map(|(at, types)| {
            let slots = types.as_ref()?.len();
            Some(
                (0..slots)
                    .filter(|&slot| analysis.live.has(at, slot))
                    .count(),
            )
        })
        .sum()
}

/// The types of a function's slots when it is called.
pub(super) fn parameter_types(function: &Function) -> Vec<Type> {
    (0..=function.arity as usize)
        .map(|slot| match slot {
            _ if function.is_captured(slot) => Type::ANY,
            0 if function.is_method => Type::INSTANCE,
            0 => Type::CELL,
            _ => Type::ANY,
        })
        .collect()
}

/// Joins the types into those at a block's entry. A block whose types changed is analysed again.
fn flow(entry: &mut Option<Vec<Type>>, types: &Types, block: usize, work: &mut Vec<usize>) {
    match entry {
        None => {
            *entry = Some(types.slots.clone());
            work.push(block);
        }
        Some(old) => {
            let mut changed = false;
            for (old, &new) in old.iter_mut().zip(&types.slots) {
                let joined = old.join(new);
                changed |= joined != *old;
                *old = joined;
            }
            if changed {
                work.push(block);
            }
        }
    }
}

/// For each instruction, whether it begins a block.
fn leaders(function: &Function, start: usize) -> Vec<bool> {
    let mut leaders = vec![false; function.code.len() + 1];
    leaders[start] = true;
    for (at, instruction) in function.code.iter().enumerate() {
        if let Some(target) = instruction.target() {
            leaders[target] = true;
            leaders[at + 1] = true;
        }
    }
    leaders
}

fn depths(function: &Function, start: usize, depth: u32) -> Vec<Option<u32>> {
    let mut depths = vec![None; function.code.len()];
    let mut work = vec![(start, depth)];
    while let Some((at, depth)) = work.pop() {
        if depths[at].is_some() {
            continue;
        }
        depths[at] = Some(depth);
        let instruction = function.code[at];
        let after = depth.wrapping_add_signed(instruction.effect());
        if let Some(target) = instruction.target() {
            work.push((target, after));
        }
        if !instruction.ends_block() {
            work.push((at + 1, after));
        }
    }
    depths
}

fn liveness(function: &Function, depths: &[Option<u32>]) -> SlotSets {
    let slots = function.max_stack as usize + 1;
    let mut live = SlotSets::new(function.code.len(), slots);
    let mut set = vec![0u64; live.words];
    let mut changed = true;
    while changed {
        changed = false;
        for (at, &instruction) in function.code.iter().enumerate().rev() {
            let Some(depth) = depths[at] else { continue };
            set.fill(0);
            if let Some(target) = instruction.target() {
                add(&mut set, live.set(target));
            }
            if !instruction.ends_block() {
                add(&mut set, live.set(at + 1));
            }
            uses(function, &mut set, instruction, depth as usize);
            if *live.set(at) != set[..] {
                live.set(at).copy_from_slice(&set);
                changed = true;
            }
        }
    }
    live
}

fn add(set: &mut [u64], other: &[u64]) {
    for (word, other) in set.iter_mut().zip(other) {
        *word |= other;
    }
}

/// Turns the set of slots that are live after an instruction into the set before it.
fn uses(function: &Function, set: &mut [u64], instruction: Instruction, depth: usize) {
    // A closure may read a captured slot at any time.
    let used = |set: &[u64], slot: usize| {
        set[slot / 64] >> (slot % 64) & 1 == 1
            || function.is_captured(slot) && !Fault::CapturedUnused.planted()
    };
    let add = |set: &mut [u64], slot: usize| set[slot / 64] |= 1 << (slot % 64);
    let remove = |set: &mut [u64], slot: usize| set[slot / 64] &= !(1 << (slot % 64));
    let c = instruction.c as usize;
    let count = usize::from(instruction.a);
    // Uses `operands` operands and puts a result into the slot of the lowest.
    let replace = |set: &mut [u64], operands: usize| {
        remove(set, depth - operands);
        for slot in depth - operands..depth {
            add(set, slot);
        }
    };
    let closure = closure_slot(function);
    match instruction.op {
        Op::Constant | Op::Nil | Op::True | Op::False | Op::GetGlobal | Op::Class => {
            remove(set, depth)
        }
        Op::GetUpvalue => {
            remove(set, depth);
            add(set, closure);
        }
        Op::Closure => {
            remove(set, depth);
            if hands_upvalues_on(function, c) {
                add(set, closure);
            }
        }
        Op::SetUpvalue => {
            add(set, depth - 1);
            add(set, closure);
        }
        Op::GetLocal => {
            let copied = used(set, depth);
            remove(set, depth);
            if copied {
                add(set, c);
            }
        }
        Op::SetLocal => {
            let copied = used(set, c);
            remove(set, c);
            if copied {
                add(set, depth - 1);
            }
        }
        Op::Pop | Op::CloseUpvalue => remove(set, depth - 1),
        Op::DefineGlobal
        | Op::SetGlobal
        | Op::Print
        | Op::JumpIfFalse
        | Op::JumpIfTrue
        | Op::PopJumpIfFalse
        | Op::Return => add(set, depth - 1),
        Op::GetProperty | Op::Negate => replace(set, 1),
        Op::SetProperty
        | Op::GetSuper
        | Op::Greater
        | Op::Less
        | Op::Add
        | Op::Subtract
        | Op::Multiply
        | Op::Divide => replace(set, 2),
        Op::Equal => {
            if used(set, depth - 2) {
                replace(set, 2);
            } else {
                remove(set, depth - 1);
            }
        }
        Op::Not => {}
        Op::Jump | Op::Loop => {}
        Op::Call | Op::Invoke => replace(set, count + 1),
        Op::SuperInvoke => replace(set, count + 2),
        Op::Inherit | Op::Method => {
            add(set, depth - 2);
            add(set, depth - 1);
        }
    }
}
