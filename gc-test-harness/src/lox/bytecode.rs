//! Bytecode: instructions, functions, programs. The compiler makes it; the interpreter and the JIT
//! take it.
//!
//! # Instructions
//!
//! An [`Instruction`] is 8 bytes: an opcode, a small operand `a`, an operand `b`, a wide operand
//! `c`. A function's code is an array of instructions and jump targets are indices into it, so a
//! translator needs no decoding. The code is for a stack machine, and the stack's height is the
//! same each time that an instruction is reached ([`Instruction::effect`]). A local variable is the
//! stack slot of its number. Each instruction has a line.
//!
//! | opcode | operands | stack: before -> after |
//! |---|---|---|
//! | `Constant` | c: index into constants | -> v |
//! | `Nil` `True` `False` | | -> v |
//! | `Pop` | | v -> |
//! | `GetLocal` | c: slot | -> v |
//! | `SetLocal` | c: slot | v -> v |
//! | `GetGlobal` | c: index into globals | -> v, error when undefined |
//! | `DefineGlobal` | c | v -> |
//! | `SetGlobal` | c | v -> v, error when undefined |
//! | `GetUpvalue` `SetUpvalue` | c: index into the closure's upvalues | -> v; v -> v |
//! | `GetProperty` | b: cache, c: symbol | object -> v |
//! | `SetProperty` | b: cache, c: symbol | object v -> v |
//! | `GetSuper` | b: cache, c: symbol | this superclass -> bound method |
//! | `Equal` `Greater` `Less` `Add` `Subtract` `Multiply` `Divide` | | x y -> v |
//! | `Not` `Negate` | | x -> v |
//! | `Print` | | v -> |
//! | `Jump` | c: target, always forwards | |
//! | `JumpIfFalse` | c: target, forwards | v -> v (both ways) |
//! | `JumpIfTrue` | c: target, forwards | v -> v (both ways) |
//! | `PopJumpIfFalse` | c: target, forwards | v -> (both ways) |
//! | `Loop` | c: target, always backwards: the back-edge of a loop | |
//! | `Call` | a: arguments | callee arg.. -> v |
//! | `Invoke` | a: arguments, b: cache, c: symbol | receiver arg.. -> v |
//! | `SuperInvoke` | a: arguments, b: cache, c: symbol | this arg.. superclass -> v |
//! | `Closure` | c: index into the children of the [`Proto`](super::proto::Proto) | -> closure |
//! | `CloseUpvalue` | | v -> ; the slot was captured at least once |
//! | `Return` | | v -> (ends the activation) |
//! | `Class` | b: name in constants, c: fields that its methods set on `this` | -> class |
//! | `Inherit` | | superclass class -> superclass |
//! | `Method` | c: symbol | class closure -> class |
//!
//! As in the book, `>=`, `<=` and `!=` are `Less Not`, `Greater Not` and `Equal Not`, which defines
//! their results for NaN. The compiler makes `JumpIfFalse` for `and` and `JumpIfTrue` for `or`; a
//! `Pop` follows.
//!
//! # Captured slots
//!
//! [`Function::captured`] has a bit for each slot that some closure may capture. A captured slot
//! must be on the value stack, because open upvalues point there; any other slot can be in a
//! register. Variables of successive blocks may share a slot. [`Function::captures_any`] says
//! whether `Return` must close upvalues.

use std::sync::Arc;

/// An opcode. The table at the head of the file describes each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[expect(missing_docs, reason = "the table at the head of the file says it all")]
pub enum Op {
    Constant,
    Nil,
    True,
    False,
    Pop,
    GetLocal,
    SetLocal,
    GetGlobal,
    DefineGlobal,
    SetGlobal,
    GetUpvalue,
    SetUpvalue,
    GetProperty,
    SetProperty,
    GetSuper,
    Equal,
    Greater,
    Less,
    Add,
    Subtract,
    Multiply,
    Divide,
    Not,
    Negate,
    Print,
    Jump,
    JumpIfFalse,
    JumpIfTrue,
    PopJumpIfFalse,
    Loop,
    Call,
    Invoke,
    SuperInvoke,
    Closure,
    CloseUpvalue,
    Return,
    Class,
    Inherit,
    Method,
}

/// One instruction. See the head of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Instruction {
    /// the opcode
    pub op: Op,
    /// number of arguments
    pub a: u8,
    /// cache, or constant
    pub b: u16,
    /// wide operand
    pub c: u32,
}

impl Instruction {
    /// The change of the stack's height by the instruction, in slots.
    pub fn effect(self) -> i32 {
        let arguments = i32::from(self.a);
        match self.op {
            Op::Constant
            | Op::Nil
            | Op::True
            | Op::False
            | Op::GetLocal
            | Op::GetGlobal
            | Op::GetUpvalue
            | Op::Closure
            | Op::Class => 1,
            Op::SetLocal
            | Op::SetGlobal
            | Op::SetUpvalue
            | Op::GetProperty
            | Op::Not
            | Op::Negate
            | Op::Jump
            | Op::JumpIfFalse
            | Op::JumpIfTrue
            | Op::Loop => 0,
            Op::Pop
            | Op::DefineGlobal
            | Op::SetProperty
            | Op::GetSuper
            | Op::Equal
            | Op::Greater
            | Op::Less
            | Op::Add
            | Op::Subtract
            | Op::Multiply
            | Op::Divide
            | Op::Print
            | Op::PopJumpIfFalse
            | Op::CloseUpvalue
            | Op::Return
            | Op::Inherit
            | Op::Method => -1,
            Op::Call | Op::Invoke => -arguments,
            Op::SuperInvoke => -arguments - 1,
        }
    }

    /// The index of the instruction that this one may jump to.
    pub fn target(self) -> Option<usize> {
        matches!(
            self.op,
            Op::Jump | Op::JumpIfFalse | Op::JumpIfTrue | Op::PopJumpIfFalse | Op::Loop
        )
        .then_some(self.c as usize)
    }

    /// Whether control never continues at the next instruction, so that only a jump reaches it.
    pub fn ends_block(self) -> bool {
        matches!(self.op, Op::Jump | Op::Loop | Op::Return)
    }
}

/// A constant. Strings become cells when an isolate is made.
#[derive(Clone, PartialEq, Debug)]
pub enum Constant {
    /// a number literal
    Number(f64),
    /// a string literal, or a name
    String(Box<[u8]>),
}

/// The source of one upvalue of a new closure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Capture {
    /// the slot of this number in the enclosing activation
    Local(u8),
    /// the upvalue of this number in the enclosing closure
    Upvalue(u8),
}

/// A compiled function: immutable, without cells, shared by all isolates of the program.
#[derive(Debug)]
pub struct Function {
    /// `None`: the script
    pub name: Option<Box<[u8]>>,
    /// number of parameters
    pub arity: u32,
    /// the sources of a closure's upvalues
    pub captures: Vec<Capture>,
    /// the code
    pub code: Vec<Instruction>,
    /// the line of each instruction
    pub lines: Vec<u32>,
    /// the constants
    pub constants: Vec<Constant>,
    /// the functions declared inside
    pub functions: Vec<Arc<Function>>,
    /// slots of an activation: callee or `this`, parameters, locals, operands
    pub max_stack: u32,
    /// bit n: some closure made in this function may capture slot n
    pub captured: [u64; 4],
    /// number of inline caches
    pub caches: u32,
    /// whether the function is an `init` method, which returns `this` (slot 0)
    pub is_initializer: bool,
    /// whether slot 0 is `this` rather than the callee
    pub is_method: bool,
}

impl Function {
    /// Whether some closure may capture this slot.
    pub fn is_captured(&self, slot: usize) -> bool {
        slot < 256 && self.captured[slot / 64] >> (slot % 64) & 1 == 1
    }

    /// Whether any slot is ever captured, so that `Return` must close upvalues.
    pub fn captures_any(&self) -> bool {
        self.captured != [0; 4]
    }
}

/// A whole compiled program.
#[derive(Debug)]
pub struct Program {
    /// the top level
    pub script: Arc<Function>,
    /// the names of the global variables, by index; the first ones are the natives
    pub globals: Vec<Box<[u8]>>,
    /// the names of the properties, by symbol
    pub symbols: Vec<Box<[u8]>>,
}

/// The symbol of `init`.
pub const SYMBOL_INIT: u32 = 0;
