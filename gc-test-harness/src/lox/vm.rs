//! One isolate: the state that both tiers share, and the interpreter.
//!
//! # Activations
//!
//! Each call of a Lox function is one native call of [`Proto::entry`](super::bytecode::Proto),
//! whether interpreted or compiled: at most [`FRAMES_MAX`] are nested, so native recursion is
//! bounded. The protocol:
//!
//! * The caller puts callee (or receiver) and arguments on the value stack, `base` on, below the
//!   published limit. It checks the number of
//!   arguments ("Expected %d arguments but got %d." is an error *of the caller's line*).
//! * The callee's prologue fails with "Stack overflow." (again on the caller's line: it appends no
//!   trace line of its own) when [`Vm::frame_count`] is [`FRAMES_MAX`]; otherwise it counts itself,
//!   and counts down again when it leaves.
//! * A callee that uses the value stack beyond its arguments fills the slots from the old limit up
//!   to its own with nil, then publishes the new limit, which is never lower than the old one; when
//!   it leaves it puts the old one back. So each slot below the limit holds a value at any
//!   instruction (the collector scans `[stack, stack_limit)` precisely), and a slot above it means
//!   nothing. Compiled code without captured slots need not touch it at all.
//! * It returns the result, or [`Value::ERROR`] with the message in the isolate. Whoever gets that
//!   from a call or a helper appends its own line with [`Vm::trace`] and returns it in turn: the
//!   stack trace grows as the error unwinds, innermost frame first, just as the book's machine
//!   prints it.
//!
//! # For compiled code
//!
//! Field offsets are the `VM_*` constants. Helpers that both tiers use are `extern "C"` functions
//! in [`super::runtime`]. The hooks: an interpreted function counts
//! [`Proto::calls_left`](super::bytecode::Proto) and [`Proto::loops_left`](super::bytecode::Proto)
//! down; at zero it calls [`Hooks::hot_call`], [`Hooks::hot_loop`]. The former may set the
//! function's entries. The latter may return an entry that goes on at the loop's head in the same
//! activation: it takes all slots from the value stack, and returns the function's result if that
//! ends inside the loop; frame count, limit and the closing of upvalues (`Return` does it) work as
//! at that place in the interpreter, which afterwards only puts limit and count back. Or it puts
//! the slots back, writes [`Vm::resume_at`] and [`Vm::resume_height`], and returns
//! [`Value::RESUME`]: the interpreter goes on behind the loop.

use super::bytecode::{Cache, Constant, Entry, Function, Program, Proto};
use super::cells::{BOXED, LoxHeap, OutOfMemory};
use super::classes::Lookups;
use super::clear::interpret;
use super::interpreter::interpret_cleared;
use super::object::*;
use super::runtime;
use super::value::{Value, write_number};
use gc_core::{AttachError, Mutator, RootRange, Run};
use gc_preempt::faults::planted;
use std::ffi::c_void;
use std::io::Write;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many activations may be nested, the script's included.
pub const FRAMES_MAX: u32 = 64;

/// Slots of the value stack. An activation needs up to 256 locals, its operands, and, where
/// compiled code calls what is not compiled, up to 256 more for the call; one that would need more
/// than is left is "Stack overflow." too.
const STACK_SLOTS: usize = FRAMES_MAX as usize * 1024;

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
    last_id: u32,
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
    output: Output,
    message: Vec<u8>,
    stack_trace: Vec<u8>,
    /// Declared ranges; taken back before their memory goes.
    ranges: Vec<RootRange>,
    roots_end: Box<AtomicUsize>,
    stack: Memory,
    globals_memory: Memory,
    constants: Memory,
    caches: Vec<Box<[Cache]>>,
    children: Vec<Box<[*mut Proto]>>,
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
const PASSED_MAX: usize = 256;

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

/// Why there is no isolate.
#[derive(Debug)]
pub enum StartError {
    /// The thread could not be attached to the heap.
    Attach(AttachError),
    /// The heap has no room for the program's constants.
    OutOfMemory,
}

/// Size at which [`Output::Stdout`] is written.
const OUTPUT_PIECE: usize = 1 << 15;

/// Words outside the heap that the collector reads, at one address, with the end of their range
/// beside them.
struct Memory {
    words: *mut Value,
    length: usize,
    end: Box<AtomicUsize>,
}

impl Memory {
    fn new(length: usize, value: Value) -> Memory {
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

/// Life of an isolate.
impl Vm {
    /// An isolate of `program` for this thread, which must be attached to no other of the same
    /// heap.
    pub fn new(
        lox: &LoxHeap,
        program: Arc<Program>,
        output: Output,
    ) -> Result<Box<Vm>, StartError> {
        let mutator = lox.heap.attach().map_err(StartError::Attach)?;
        let mut functions = Vec::new();
        list_functions(&program.script, &mut functions);
        let constants = functions
            .iter()
            .map(|function| function.constants.len())
            .sum();
        super::clear::find_vectors();
        let stack = Memory::new(STACK_SLOTS, Value::NIL);
        let globals_memory = Memory::new(program.globals.len(), Value::UNDEFINED);
        let mut vm = Box::new(Vm {
            stack_limit: AtomicUsize::new(stack.words as usize),
            stack_end: stack.end.load(Ordering::Relaxed),
            globals: globals_memory.words,
            runs: mutator.runs(),
            frame_count: 0,
            resume_at: 0,
            resume_height: 0,
            until_cleared: super::clear::EVERY,
            last_id: 0,
            roots: Roots {
                open_upvalues: Value::NIL,
                strings: Value::NIL,
                passed: [Value::NIL; PASSED_MAX],
            },
            hooks: Hooks {
                hot_call: None,
                hot_loop: None,
                data: std::ptr::null_mut(),
            },
            lox: lox.clone(),
            program,
            protos: Vec::new(),
            lookups: Lookups::new(),
            faulty_limit: planted("cached-stack-top"),
            faulty_operands: planted("stale-interpreted"),
            output,
            message: Vec::new(),
            stack_trace: Vec::new(),
            ranges: Vec::new(),
            roots_end: Box::default(),
            stack,
            globals_memory,
            constants: Memory::new(constants, Value::NIL),
            caches: Vec::new(),
            children: Vec::new(),
            mutator,
        });
        let roots_end = &raw const vm.roots as usize + size_of::<Roots>();
        vm.roots_end.store(roots_end, Ordering::Relaxed);
        vm.declare_roots();
        vm.prepare(&functions)
            .map_err(|OutOfMemory| StartError::OutOfMemory)?;
        Ok(vm)
    }

    fn declare_roots(&mut self) {
        let words = |first: *const Value| first.cast::<usize>();
        // SAFETY: each range is memory that lives at one address until `drop` has taken the ranges
        // back; every word of it is initialised, and each end stands beside its memory.
        unsafe {
            self.ranges = vec![
                self.mutator.root_range(
                    words(self.stack.words),
                    &raw const self.stack_limit,
                    BOXED,
                ),
                self.mutator.root_range(
                    words(self.globals),
                    &raw const *self.globals_memory.end,
                    BOXED,
                ),
                self.mutator.root_range(
                    words(self.constants.words),
                    &raw const *self.constants.end,
                    BOXED,
                ),
                self.mutator.root_range(
                    (&raw const self.roots).cast(),
                    &raw const *self.roots_end,
                    BOXED,
                ),
            ];
        }
    }

    /// Makes what the functions need of cells, and the natives.
    fn prepare(&mut self, functions: &[Arc<Function>]) -> Result<(), OutOfMemory> {
        self.make_string_table()?;
        let clock = self.make_native(runtime::clock)?;
        // SAFETY: the natives come first among the globals.
        unsafe { *self.globals = clock };
        let mut constant = self.constants.words;
        for function in functions {
            let caches = vec![Cache::default(); function.caches as usize].into_boxed_slice();
            self.caches.push(caches);
            let first = constant;
            for value in &function.constants {
                let value = match value {
                    Constant::Number(number) => Value::number(*number),
                    Constant::String(bytes) => self.intern(bytes)?,
                };
                // SAFETY: there are as many words as constants.
                unsafe {
                    *constant = value;
                    constant = constant.add(1);
                }
            }
            let id = self.new_id()?;
            let caches = self.caches.last_mut().expect("just pushed").as_mut_ptr();
            self.protos.push(Box::new(Proto {
                entry: if planted("stale-native-stack") {
                    interpret_cleared
                } else {
                    interpret
                },
                fast_entry: std::ptr::null(),
                constants: first,
                caches,
                code: function.code.as_ptr(),
                children: std::ptr::null(),
                calls_left: u32::MAX,
                loops_left: u32::MAX,
                id,
                arity: function.arity,
                max_stack: function.max_stack,
                upvalues: function.captures.len() as u32,
                length: function.code.len() as u32,
                captures_any: function.captures_any(),
                jit: std::ptr::null_mut(),
                function: function.clone(),
            }));
        }
        self.link_children();
        Ok(())
    }

    fn link_children(&mut self) {
        // In the order of `list_functions`, a function's first child follows it, and each further
        // one follows the descendants of the one before.
        let count = self.protos.len();
        let mut sizes = vec![1; count];
        for index in (0..count).rev() {
            let mut children = Vec::new();
            let mut child = index + 1;
            for _ in 0..self.protos[index].function.functions.len() {
                children.push(&raw mut *self.protos[child]);
                child += sizes[child];
            }
            sizes[index] = child - index;
            let children = children.into_boxed_slice();
            self.protos[index].children = children.as_ptr();
            self.children.push(children);
        }
    }

    /// Runs the program. `false` after a runtime error.
    pub fn run(&mut self) -> bool {
        let script = &raw mut *self.protos[0];
        let result = match self.make_closure(script) {
            Ok(closure) => {
                let closure = Value::cell(closure);
                let base = self.stack.words;
                // SAFETY: the stack has room for one slot, and the entry's protocol is kept: the
                // callee is at `base`, below the limit.
                unsafe {
                    *base = closure;
                    self.stack_limit
                        .store(base.add(1) as usize, Ordering::Release);
                    ((*script).entry)(self, closure, base)
                }
            }
            Err(OutOfMemory) => self.fail("Out of memory."),
        };
        self.flush();
        !result.is_error()
    }

    /// What the program printed, if it was kept.
    pub fn take_output(&mut self) -> Vec<u8> {
        match &mut self.output {
            Output::Kept(text) => std::mem::take(text),
            Output::Stdout(_) => Vec::new(),
        }
    }

    /// Message and stack trace of the runtime error.
    pub fn error_text(&self) -> Vec<u8> {
        let mut text = self.message.clone();
        text.push(b'\n');
        text.extend_from_slice(&self.stack_trace);
        text
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.ranges.clear();
    }
}

/// The function, then all inside it, each before its own.
fn list_functions(function: &Arc<Function>, list: &mut Vec<Arc<Function>>) {
    list.push(function.clone());
    for inner in &function.functions {
        list_functions(inner, list);
    }
}

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
    fn flush(&mut self) {
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

    /// The open upvalue of a slot, made if there is none.
    ///
    /// # Safety
    /// `slot` must be a slot of the value stack that holds a value.
    pub(super) unsafe fn open_upvalue(
        &mut self,
        slot: *mut Value,
    ) -> Result<*mut Upvalue, OutOfMemory> {
        // SAFETY: the caller's promise; the list is of live upvalues, highest slot first.
        unsafe {
            let mut previous: *mut Upvalue = std::ptr::null_mut();
            let mut next = self.roots.open_upvalues;
            while next.is_cell() {
                let upvalue: *mut Upvalue = next.as_cell();
                if (*upvalue).location == slot {
                    return Ok(upvalue);
                }
                if (*upvalue).location < slot {
                    break;
                }
                previous = upvalue;
                next = (*upvalue).next;
            }
            let upvalue = self.make_upvalue(slot, next)?;
            if previous.is_null() {
                self.roots.open_upvalues = Value::cell(upvalue);
            } else {
                self.store(&raw mut (*previous).next, Value::cell(upvalue));
            }
            Ok(upvalue)
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
            let class = super::classes::class_of(value);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lox::compiler::compile;
    use crate::lox::run::{RunConfig, make_heap};

    fn isolate(source: &str, config: &RunConfig) -> Box<Vm> {
        let program = compile(source.as_bytes(), &NATIVES).expect("a right program");
        let lox = make_heap(config).expect("a heap");
        Vm::new(&lox, Arc::new(program), Output::Kept(Vec::new())).expect("an isolate")
    }

    #[test]
    fn dead_strings_leave_the_intern_table_and_it_does_not_grow_for_ever() {
        // 32,767 different strings, of which 15 are alive at a time.
        let source = "fun all(text, depth) { if (depth == 0) return; all(text + \"a\", depth - 1); all(text + \"b\", depth - 1); } all(\"\", 14);";
        let config = RunConfig {
            gc_every: Some(500),
            ..RunConfig::default()
        };
        let mut vm = isolate(source, &config);
        assert!(vm.run());
        vm.mutator.collect();
        let (living, capacity) = vm.interned();
        assert!(living < 100, "{living} strings are alive");
        assert!(capacity <= 4096, "room for {capacity} strings");
    }

    #[test]
    fn equal_strings_are_one_cell_also_after_the_table_was_made_anew() {
        let mut vm = isolate("", &RunConfig::default());
        let kept = vm.intern(b"kept").expect("room");
        let mut strings = vec![kept]; // compared with, never looked into
        for number in 0..1_000 {
            // Held by the value stack: a vector is no root.
            let string = vm
                .intern(format!("string {number}").as_bytes())
                .expect("room");
            // SAFETY: the stack has room for so many, and the limit covers them.
            unsafe {
                let slot = vm.stack.words.add(number);
                slot.write(string);
                vm.stack_limit
                    .store(slot.add(1) as usize, Ordering::Release);
            }
            strings.push(string);
        }
        vm.mutator.collect();
        for number in 0..1_000 {
            let again = vm
                .intern(format!("string {number}").as_bytes())
                .expect("room");
            assert!(again == strings[number + 1], "string {number}");
        }
        let left = vm.intern(b"string").expect("room");
        let right = vm.intern(b" 7").expect("room");
        assert!(vm.concatenate(left, right).ok() == Some(strings[8]));
    }
}
