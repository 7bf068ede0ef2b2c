//! An isolate: the state that the interpreter and compiled code share, and the protocol of calls.
//!
//! # Activations
//!
//! Each call of a Lox function is one native call of [`Proto::entry`](super::proto::Proto),
//! interpreted or compiled. At most [`FRAMES_MAX`] calls are nested, so native recursion is
//! bounded. The protocol:
//!
//! * The caller puts the callee (or receiver) and the arguments on the value stack from `base` on,
//!   below the published limit. The caller checks the number of arguments: the error "Expected %d
//!   arguments but got %d." names *the caller's line*.
//! * The callee's prologue fails with "Stack overflow." when [`Vm::frame_count`] is [`FRAMES_MAX`].
//!   It appends no trace line of its own, so this error names the caller's line as well. Otherwise
//!   the callee increments the count, and decrements it when it returns.
//! * A callee that uses the value stack beyond its arguments fills the slots from the old limit up
//!   to its own with nil. It then publishes the new limit, which is never lower than the old one,
//!   and restores the old one when it returns. So each slot below the limit holds a value at every
//!   instruction, and the collector scans `[stack, stack_limit)` exactly. A slot above the limit
//!   has no meaning. Compiled code without captured slots need not change the limit.
//! * The callee returns its result, or [`Value::ERROR`] with the message in the isolate. A function
//!   that gets `ERROR` from a call or a helper appends its own line with [`Vm::trace`] and returns
//!   [`Value::ERROR`]. So the stack trace grows as the error unwinds, innermost frame first, in the
//!   order in which clox prints it.
//!
//! # For compiled code
//!
//! Field offsets are the `VM_*` constants. The helpers that the interpreter and compiled code share
//! are `extern "C"` functions in [`super::runtime`].
//!
//! The interpreter counts [`Proto::calls_left`] and [`Proto::loops_left`] down, and calls
//! [`Hooks::hot_call`] or [`Hooks::hot_loop`] at zero. `hot_call` may set the function's entries.
//! `hot_loop` may return an entry that continues at the loop's head in the same activation: the
//! entry takes all slots from the value stack. If the function returns inside the loop, the entry
//! returns its result, and the interpreter restores limit and count. Otherwise the entry writes the
//! slots back, sets [`Vm::resume_at`] and [`Vm::resume_height`], and returns [`Value::RESUME`]: the
//! interpreter continues behind the loop.

use super::bytecode::{Function, Program};
use super::cells::{LoxHeap, OutOfMemory};
use super::greens::Greens;
use super::lookups::Lookups;
use super::object::*;
use super::points::Points;
use super::proto::{Cache, Entry, Proto};
use super::value::{Value, write_number};
use gc_core::Mutator;
use gc_core::jit::Run;
use gc_core::raw::RootRange;
use std::ffi::c_void;
use std::io::Write;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize};

/// The most activations that may be nested, the script's included.
pub const FRAMES_MAX: u32 = 64;

/// The names of the first global variables, which hold native functions, in this order.
pub const NATIVES: [&str; 1] = ["clock"];

/// One isolate. Its address never changes, and only its own thread uses it.
#[repr(C)]
pub struct Vm {
    /// End address of the scanned part of the value stack. The collector reads it while this thread
    /// is stopped.
    pub stack_limit: AtomicUsize,
    /// End address of the value stack.
    pub stack_end: usize,
    /// Address of the first global variable. The globals are a declared root range, so stores need
    /// no barrier.
    pub globals: *mut Value,
    /// This mutator's runs, indexed by site. Compiled code allocates from them.
    pub runs: *mut Run,
    /// Number of nested activations, the script's included.
    pub frame_count: u32,
    /// After [`Value::RESUME`]: the index of the instruction to continue with.
    pub resume_at: u32,
    /// After [`Value::RESUME`]: the number of slots in use at that instruction.
    pub resume_height: u32,
    /// Calls and loop iterations until dead native stack is cleared again (see [`super::clear`]).
    pub until_cleared: u32,
    /// Not 0 if the green thread that runs is to let others run. Another thread sets it, and the
    /// interpreter looks at it.
    pub preempt: AtomicU32,
    /// The last id that was assigned.
    pub(super) last_id: u32,
    /// References of the isolate itself; a declared root range.
    pub roots: Roots,
    /// The JIT's functions that the interpreter and compiled code call.
    pub hooks: Hooks,
    /// Whether compiled code gets points: the isolate has green threads.
    pub has_points: bool,
    /// The points of compiled code.
    pub points: Points,
    /// The heap's kinds and sites.
    pub lox: LoxHeap,
    /// The program, with the names of globals and properties.
    pub program: Arc<Program>,
    /// Every function: the script first, each function before the functions declared inside it.
    pub protos: Vec<Box<Proto>>,
    pub(super) lookups: Lookups,
    pub(super) greens: Option<Box<Greens>>,
    /// Fault "cached-stack-top": the interpreter does not publish its own limit.
    pub(super) faulty_limit: bool,
    /// Fault "stale-interpreted": the interpreter does not clear slots that it has popped.
    pub(super) faulty_operands: bool,
    pub(super) output: Output,
    pub(super) message: Vec<u8>,
    pub(super) stack_trace: Vec<u8>,
    /// The declared root ranges; withdrawn before their memory is freed.
    pub(super) ranges: Vec<RootRange>,
    pub(super) roots_end: Box<AtomicUsize>,
    pub(super) stack: Memory,
    pub(super) globals_memory: Memory,
    pub(super) constants: Memory,
    pub(super) caches: Vec<Box<[Cache]>>,
    pub(super) children: Vec<Box<[*mut Proto]>>,
    /// This thread's mutator.
    pub mutator: Mutator,
}

/// The references of the isolate itself.
#[repr(C)]
pub struct Roots {
    /// The open upvalue of the highest slot, or nil.
    pub open_upvalues: Value,
    /// boxed [`Interned`]
    pub strings: Value,
    /// The values of a call from compiled code to compiled code that do not fit into registers. nil
    /// between calls.
    pub passed: [Value; PASSED_MAX],
}

/// The most values that a call passes: the callee or receiver, and 255 arguments.
pub(super) const PASSED_MAX: usize = 256;

/// The functions that ask the JIT for machine code. All are `None` without the JIT.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Hooks {
    /// Called when a function's `calls_left` has reached zero, before the interpreter executes this
    /// call. Its arguments are at `base`.
    pub hot_call: Option<unsafe extern "C" fn(vm: *mut Vm, proto: *mut Proto, base: *mut Value)>,
    /// Called when a function's `loops_left` has reached zero, at the back-edge to instruction
    /// `target`. The function's slots are at `base`. Returns the entry to continue with, or `None`.
    pub hot_loop: Option<
        unsafe extern "C" fn(
            vm: *mut Vm,
            proto: *mut Proto,
            target: u32,
            base: *mut Value,
        ) -> Option<Entry>,
    >,
    /// Called when compiled code has found, at the access of cache `place`, a shape that it was not
    /// compiled for.
    pub missed: Option<unsafe extern "C" fn(vm: *mut Vm, place: *mut Cache)>,
    /// The JIT's own data.
    pub data: *mut c_void,
}

/// The destination of printed text.
pub enum Output {
    /// The text is kept until [`Vm::take_output`].
    Kept(Vec<u8>),
    /// The text is written to this process's stdout in large pieces.
    Stdout(Vec<u8>),
}

/// Bytes after which [`Output::Stdout`] is written.
const OUTPUT_PIECE: usize = 1 << 15;

/// The words of a root range at a fixed address, with the range's end address in a word of its own.
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
        // SAFETY: `new` made the pointer from a box of this length, and its root range was
        // withdrawn before.
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

/// Ids, errors and output.
impl Vm {
    /// A fresh id.
    pub(super) fn new_id(&mut self) -> Result<u32, OutOfMemory> {
        self.last_id = self.last_id.checked_add(1).ok_or(OutOfMemory)?;
        Ok(self.last_id)
    }

    /// Begins a runtime error.
    #[cold]
    pub fn fail(&mut self, message: &str) -> Value {
        self.fail_with(message, b"", "")
    }

    /// Begins a runtime error whose message contains a name.
    #[cold]
    pub fn fail_with(&mut self, before: &str, name: &[u8], after: &str) -> Value {
        self.message = [before.as_bytes(), name, after.as_bytes()].concat();
        Value::ERROR
    }

    /// The number of global variables.
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

    /// Writes the text that has not been written to stdout yet.
    pub(super) fn flush(&mut self) {
        if let Output::Stdout(text) = &mut self.output {
            let text = std::mem::take(text);
            // Inside `blocking`, so that the collector does not wait for a slow reader. Errors are
            // ignored, as in a C program that ignores `printf`'s result: the program continues when
            // the reader is gone (`| head`).
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
/// If `value` is a reference, its cell must be alive.
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
    // SAFETY: the caller's promise; the tag gives the cell's type.
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
        } else if tag == Tag::Channel as u8 {
            out.extend_from_slice(b"<channel>");
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
