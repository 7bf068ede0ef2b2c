//! One isolate: the state that both tiers share.
//!
//! # Activations
//!
//! Each call of a Lox function is one native call of [`Proto::entry`](super::proto::Proto),
//! whether interpreted or compiled: at most [`FRAMES_MAX`] are nested, so native recursion is
//! bounded. The protocol:
//!
//! * The caller puts callee (or receiver) and arguments on the value stack from `base` on, below
//!   the published limit. It checks the number of arguments ("Expected %d arguments but got %d." is
//!   an error *of the caller's line*).
//! * The callee's prologue fails with "Stack overflow." (again on the caller's line: it appends no
//!   trace line of its own) when [`Vm::frame_count`] is [`FRAMES_MAX`]; otherwise it counts itself,
//!   and counts down again when it leaves.
//! * A callee that uses the value stack beyond its arguments fills the slots from the old limit up
//!   to its own with nil, then publishes the new limit, which is never lower than the old one; when
//!   it leaves it puts the old one back. So each slot below the limit holds a value at any
//!   instruction (the collector scans `[stack, stack_limit)` precisely), and a slot above it means
//!   nothing. Compiled code without captured slots need not touch it at all.
//! * It returns the result, or [`Value::ERROR`] with the message in the isolate. A function that
//!   gets that from a call or a helper appends its own line with [`Vm::trace`] and returns
//!   [`Value::ERROR`] in turn: the stack trace grows as the error unwinds, innermost frame first,
//!   as the book's machine prints it.
//!
//! # For compiled code
//!
//! Field offsets are the `VM_*` constants. Helpers that both tiers use are `extern "C"` functions
//! in [`super::runtime`].
//!
//! An interpreted function counts [`Proto::calls_left`] and [`Proto::loops_left`] down, and calls
//! [`Hooks::hot_call`] or [`Hooks::hot_loop`] at zero. `hot_call` may set the function's entries.
//! `hot_loop` may return an entry that goes on at the loop's head in the same activation: the entry
//! takes all slots from the value stack. If the function ends inside the loop, the entry returns
//! its result, and the interpreter puts limit and count back. Otherwise the entry puts the slots
//! back, writes [`Vm::resume_at`] and [`Vm::resume_height`], and returns [`Value::RESUME`]: the
//! interpreter goes on behind the loop.

use super::bytecode::{Function, Program};
use super::cells::{LoxHeap, OutOfMemory};
use super::lookups::Lookups;
use super::object::*;
use super::proto::{Cache, Entry, Proto};
use super::value::{Value, write_number};
use gc_core::Mutator;
use gc_core::jit::Run;
use gc_core::raw::RootRange;
use std::ffi::c_void;
use std::io::Write;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// How many activations may be nested, the script's included.
pub const FRAMES_MAX: u32 = 64;

/// The global variables that exist from the beginning, in this order.
pub const NATIVES: [&str; 1] = ["clock"];

/// One isolate. At one address for its whole life; only its own thread touches it.
#[repr(C)]
pub struct Vm {
    /// End address of the part of the value stack that is scanned. Read by the collector while this
    /// thread is stopped.
    pub stack_limit: AtomicUsize,
    /// End address of the value stack.
    pub stack_end: usize,
    /// First global variable; a declared root range, so stores need no barrier.
    pub globals: *mut Value,
    /// This mutator's runs, indexed by site: where compiled code allocates.
    pub runs: *mut Run,
    /// Nested activations, the script's included.
    pub frame_count: u32,
    /// After [`Value::RESUME`]: the instruction to go on with.
    pub resume_at: u32,
    /// After [`Value::RESUME`]: how many slots are in use there.
    pub resume_height: u32,
    /// Counts down to the next time that dead native stack is cleared (see [`super::clear`]).
    pub until_cleared: u32,
    /// The last id given out.
    pub(super) last_id: u32,
    /// Cells that the isolate itself refers to; a declared root range.
    pub roots: Roots,
    /// What the JIT wants to be asked.
    pub hooks: Hooks,
    /// The heap's kinds and sites.
    pub lox: LoxHeap,
    /// What runs here; names of globals and properties.
    pub program: Arc<Program>,
    /// Every function, the script first, then each before those declared inside it.
    pub protos: Vec<Box<Proto>>,
    pub(super) lookups: Lookups,
    /// Fault "cached-stack-top": the collector sees the stack only as high as it was at each call.
    pub(super) faulty_limit: bool,
    /// Fault "stale-interpreted": the interpreter leaves what it has popped.
    pub(super) faulty_operands: bool,
    pub(super) output: Output,
    pub(super) message: Vec<u8>,
    pub(super) stack_trace: Vec<u8>,
    /// Declared ranges; taken back before their memory goes.
    pub(super) ranges: Vec<RootRange>,
    pub(super) roots_end: Box<AtomicUsize>,
    pub(super) stack: Memory,
    pub(super) globals_memory: Memory,
    pub(super) constants: Memory,
    pub(super) caches: Vec<Box<[Cache]>>,
    pub(super) children: Vec<Box<[*mut Proto]>>,
    /// This thread's part of the heap.
    pub mutator: Mutator,
}

/// The isolate's own references.
#[repr(C)]
pub struct Roots {
    /// The open upvalue of the highest slot, or nil.
    pub open_upvalues: Value,
    /// boxed [`Interned`]
    pub strings: Value,
    /// On their way from compiled code to compiled code: the values of a call that do not fit into
    /// registers. nil between calls.
    pub passed: [Value; PASSED_MAX],
}

/// The most values that a call passes: callee or receiver, and 255 arguments.
pub(super) const PASSED_MAX: usize = 256;

/// What the interpreter calls when something is hot. `None` without the JIT.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Hooks {
    /// A function's `calls_left` reached zero; it is about to run with its arguments at `base`.
    pub hot_call: Option<unsafe extern "C" fn(vm: *mut Vm, proto: *mut Proto, base: *mut Value)>,
    /// A function's `loops_left` reached zero at the back-edge to instruction `target`, slots at
    /// `base`. The entry to go on with, or none.
    pub hot_loop: Option<
        unsafe extern "C" fn(
            vm: *mut Vm,
            proto: *mut Proto,
            target: u32,
            base: *mut Value,
        ) -> Option<Entry>,
    >,
    /// Compiled code met a shape at `place` that it was not compiled for.
    pub missed: Option<unsafe extern "C" fn(vm: *mut Vm, place: *mut Cache)>,
    /// The JIT's own.
    pub data: *mut c_void,
}

/// Where printed text goes.
pub enum Output {
    /// Kept until the isolate is done.
    Kept(Vec<u8>),
    /// Written to this process's stdout in large pieces.
    Stdout(Vec<u8>),
}

/// Size at which [`Output::Stdout`] is written.
const OUTPUT_PIECE: usize = 1 << 15;

/// Words outside the heap that the collector reads, at one address, with the end of their range
/// beside them.
pub(super) struct Memory {
    pub(super) words: *mut Value,
    length: usize,
    pub(super) end: Box<AtomicUsize>,
}

impl Memory {
    pub(super) fn new(length: usize, value: Value) -> Memory {
        let words = Box::into_raw(vec![value; length].into_boxed_slice()).cast::<Value>();
        let end = Box::new(AtomicUsize::new(
            words as usize + length * size_of::<Value>(),
        ));
        Memory { words, length, end }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `new` made it from such a box, and its root range was taken back before.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.words, self.length)) });
    }
}

/// Byte offset of [`Vm::stack_limit`].
pub const VM_STACK_LIMIT: i32 = offset_of!(Vm, stack_limit) as i32;
/// Byte offset of [`Vm::stack_end`].
pub const VM_STACK_END: i32 = offset_of!(Vm, stack_end) as i32;
/// Byte offset of [`Vm::globals`].
pub const VM_GLOBALS: i32 = offset_of!(Vm, globals) as i32;
/// Byte offset of [`Vm::runs`].
pub const VM_RUNS: i32 = offset_of!(Vm, runs) as i32;
/// Byte offset of [`Vm::frame_count`].
pub const VM_FRAME_COUNT: i32 = offset_of!(Vm, frame_count) as i32;
/// Byte offset of [`Vm::until_cleared`].
pub const VM_UNTIL_CLEARED: i32 = offset_of!(Vm, until_cleared) as i32;
/// Byte offset of [`Vm::resume_at`].
pub const VM_RESUME_AT: i32 = offset_of!(Vm, resume_at) as i32;
/// Byte offset of [`Vm::resume_height`].
pub const VM_RESUME_HEIGHT: i32 = offset_of!(Vm, resume_height) as i32;
/// Byte offset of [`Roots::open_upvalues`].
pub const VM_OPEN_UPVALUES: i32 = (offset_of!(Vm, roots) + offset_of!(Roots, open_upvalues)) as i32;

/// Byte offset of [`Roots::passed`].
pub const VM_PASSED: i32 = (offset_of!(Vm, roots) + offset_of!(Roots, passed)) as i32;

/// What running code asks of the isolate.
impl Vm {
    /// An id that nothing had before.
    pub(super) fn new_id(&mut self) -> Result<u32, OutOfMemory> {
        self.last_id = self.last_id.checked_add(1).ok_or(OutOfMemory)?;
        Ok(self.last_id)
    }

    /// Begins a runtime error.
    #[cold]
    pub fn fail(&mut self, message: &str) -> Value {
        self.fail_with(message, b"", "")
    }

    /// Begins a runtime error whose message names something.
    #[cold]
    pub fn fail_with(&mut self, before: &str, name: &[u8], after: &str) -> Value {
        self.message = [before.as_bytes(), name, after.as_bytes()].concat();
        Value::ERROR
    }

    /// How many global variables there are.
    pub fn global_count(&self) -> usize {
        self.program.globals.len()
    }

    /// Adds a line to the stack trace.
    #[cold]
    pub fn trace(&mut self, function: &Function, line: u32) {
        let out = &mut self.stack_trace;
        // Writing to a vector cannot fail.
        let _ = write!(out, "[line {line}] in ");
        match &function.name {
            None => out.extend_from_slice(b"script"),
            Some(name) => {
                out.extend_from_slice(name);
                out.extend_from_slice(b"()");
            }
        }
        out.push(b'\n');
    }

    /// Prints a value and a newline.
    pub(super) fn print(&mut self, value: Value) {
        let out = match &mut self.output {
            Output::Kept(text) | Output::Stdout(text) => text,
        };
        // SAFETY: a program's value is a number, a singleton or a live cell.
        unsafe { write_value(out, value) };
        out.push(b'\n');
        if let Output::Stdout(text) = &self.output
            && text.len() >= OUTPUT_PIECE
        {
            self.flush();
        }
    }

    /// Writes what waits for stdout.
    pub(super) fn flush(&mut self) {
        if let Output::Stdout(text) = &mut self.output {
            let text = std::mem::take(text);
            // A reader that is slow, or gone as after `| head`: the collector must not wait for it,
            // and the program goes on, as a C program does that does not look at what printf
            // returns.
            self.mutator.blocking(|| {
                let mut stdout = std::io::stdout().lock();
                let _ = stdout.write_all(&text).and_then(|()| stdout.flush());
            });
        }
    }
}

/// Appends a value as `print` shows it.
///
/// # Safety
/// A reference must be to a live cell.
unsafe fn write_value(out: &mut Vec<u8>, value: Value) {
    if value.is_number() {
        return write_number(out, value.as_number());
    }
    if !value.is_cell() {
        out.extend_from_slice(match value {
            Value::TRUE => b"true",
            Value::FALSE => b"false",
            _ => b"nil",
        });
        return;
    }
    // SAFETY: the caller's promise; the tag tells the cell's type.
    unsafe {
        let tag = header(value).tag();
        if tag == Tag::String as u8 {
            out.extend_from_slice(Str::bytes(value.as_cell()));
        } else if tag == Tag::Closure as u8 {
            write_function(out, value);
        } else if tag == Tag::BoundMethod as u8 {
            write_function(out, (*value.as_cell::<BoundMethod>()).method);
        } else if tag == Tag::Class as u8 {
            out.extend_from_slice(Str::bytes((*value.as_cell::<Class>()).name.as_cell()));
        } else if tag == Tag::Native as u8 {
            out.extend_from_slice(b"<native fn>");
        } else {
            let class = class_of(value);
            out.extend_from_slice(Str::bytes((*class).name.as_cell()));
            out.extend_from_slice(b" instance");
        }
    }
}

/// # Safety
/// `closure` must refer to a live closure.
unsafe fn write_function(out: &mut Vec<u8>, closure: Value) {
    // SAFETY: the caller's promise.
    let function = unsafe { &(*(*closure.as_cell::<Closure>()).proto).function };
    match &function.name {
        None => out.extend_from_slice(b"<script>"),
        Some(name) => {
            out.extend_from_slice(b"<fn ");
            out.extend_from_slice(name);
            out.push(b'>');
        }
    }
}
