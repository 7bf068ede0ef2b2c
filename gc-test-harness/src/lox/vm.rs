//! Construction, run and drop of an isolate.

use super::bytecode::{Constant, Function, Program};
use super::cells::{BOXED, LoxHeap, OutOfMemory};
use super::clear;
use super::interpreter::{interpret, interpret_cleared};
use super::isolate::{FRAMES_MAX, Hooks, Memory, Output, PASSED_MAX, Roots, Vm};
use super::lookups::Lookups;
use super::points::Points;
use super::proto::{Cache, Proto};
use super::runtime;
use super::value::Value;
use crate::lox::fault::Fault;
use gc_core::AttachError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Slots of the value stack. An activation needs up to 256 locals, its operands, and up to 256
/// slots more where compiled code calls a function that is not compiled. An activation that needs
/// more slots than are left fails with "Stack overflow." as well.
const STACK_SLOTS: usize = FRAMES_MAX as usize * 1024;

/// The reason why an isolate could not be made.
#[derive(Debug)]
pub enum StartError {
    /// The thread could not be attached to the heap.
    Attach(AttachError),
    /// The heap has no room for the program's constants.
    OutOfMemory,
}

/// Construction and run.
impl Vm {
    /// An isolate of `program` for this thread. The thread must have no other isolate of the same
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
        clear::find_vectors();
        let stack = Memory::new(STACK_SLOTS, Value::NIL);
        let globals_memory = Memory::new(program.globals.len(), Value::UNDEFINED);
        let mut vm = Box::new(Vm {
            stack_limit: AtomicUsize::new(stack.words as usize),
            // Relaxed: this thread wrote it.
            stack_end: stack.end.load(Ordering::Relaxed),
            globals: globals_memory.words,
            runs: mutator.runs(),
            frame_count: 0,
            resume_at: 0,
            resume_height: 0,
            until_cleared: clear::EVERY,
            preempt: AtomicU32::new(0),
            last_id: 0,
            roots: Roots {
                open_upvalues: Value::NIL,
                strings: Value::NIL,
                passed: [Value::NIL; PASSED_MAX],
            },
            hooks: Hooks {
                hot_call: None,
                hot_loop: None,
                missed: None,
                data: std::ptr::null_mut(),
            },
            has_points: false,
            points: Points::default(),
            lox: lox.clone(),
            program,
            protos: Vec::new(),
            lookups: Lookups::new(),
            greens: None,
            faulty_limit: Fault::CachedStackTop.planted(),
            faulty_operands: Fault::StaleInterpreted.planted(),
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
        // Relaxed: the range is not declared yet, so no other thread reads its end.
        vm.roots_end.store(roots_end, Ordering::Relaxed);
        vm.declare_roots();
        vm.prepare(&functions)
            .map_err(|OutOfMemory| StartError::OutOfMemory)?;
        Ok(vm)
    }

    fn declare_roots(&mut self) {
        let words = |first: *const Value| first.cast::<usize>();
        // SAFETY: each range is memory with a fixed address until `drop` has withdrawn the ranges;
        // every word of it is initialised, and the word with its end lives as long.
        unsafe {
            self.ranges = vec![
                self.mutator
                    .root_range(words(self.stack.words), &raw const self.stack_limit, BOXED)
                    .expect("room for a range"),
                self.mutator
                    .root_range(
                        words(self.globals),
                        &raw const *self.globals_memory.end,
                        BOXED,
                    )
                    .expect("room for a range"),
                self.mutator
                    .root_range(
                        words(self.constants.words),
                        &raw const *self.constants.end,
                        BOXED,
                    )
                    .expect("room for a range"),
                self.mutator
                    .root_range(
                        (&raw const self.roots).cast(),
                        &raw const *self.roots_end,
                        BOXED,
                    )
                    .expect("room for a range"),
            ];
        }
    }

    /// Makes the natives, the functions' state, and the cells of their constants.
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
                // SAFETY: `constants` has one word for each constant of all functions.
                unsafe {
                    *constant = value;
                    constant = constant.add(1);
                }
            }
            let id = self.new_id()?;
            let caches = self.caches.last_mut().expect("just pushed").as_mut_ptr();
            self.protos.push(Box::new(Proto {
                entry: if Fault::StaleNativeStack.planted() {
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
        // In the order of `list_functions`, a function's first child follows the function, and each
        // further child follows the descendants of the child before it.
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
                // SAFETY: the stack has room for one slot, and the call keeps the entry's protocol:
                // the callee is at `base`, below the limit. Release: the slot is written before the
                // limit covers it; the collector reads the limit in a stop.
                unsafe {
                    *base = closure;
                    self.stack_limit
                        .store(base.add(1) as usize, Ordering::Release);
                    ((*script).entry)((&raw mut *self).cast(), closure, base)
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
        self.greens = None;
        self.ranges.clear();
    }
}

/// Appends the function, then the functions inside it, each before its own inner functions.
fn list_functions(function: &Arc<Function>, list: &mut Vec<Arc<Function>>) {
    list.push(function.clone());
    for inner in &function.functions {
        list_functions(inner, list);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lox::compiler::compile;
    use crate::lox::isolate::NATIVES;
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
        let mut strings = vec![kept]; // compared, never followed
        for number in 0..1_000 {
            // The value stack keeps the strings alive: a vector is no root.
            let string = vm
                .intern(format!("string {number}").as_bytes())
                .expect("room");
            // SAFETY: the stack has room for 1,000 slots, and the limit covers those in use.
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
