//! Builds the functions of a kernel for one strategy: each builder is written once, and calls a
//! hook at each function's entry and at each back edge.
//!
//! A strategy that leaves code alone inserts no instruction and no block at a hook, so that its
//! code equals that of the reference byte for byte.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    Block, FuncRef, InstBuilder, MemFlagsData, Signature, Type, Value, types,
};
use cranelift_codegen::isa::CallConv;
use cranelift_module::FuncId;

use super::control::{Control, Input};
use super::poll_page::stub_address;
use super::strategy::Strategy;
use crate::kernels::codegen::{Arena, Body, Code, CodegenError};
use crate::kernels::loops::params_of;

/// `fn(control, input) -> answer`.
pub type Run = unsafe extern "C" fn(*const Control, *const Input) -> u64;

/// The first mark of poll loads; see [`Maker::finish`].
const FIRST_MARK: u32 = 1;

/// Compiles a kernel's functions.
pub struct Maker {
    /// The arena, for imports and signatures.
    pub arena: Arena,
    strategy: Strategy,
    poll: FuncId,
}

/// A kernel's machine code.
#[derive(Clone, Debug)]
pub struct Made {
    /// The entry.
    pub run: Run,
    /// All functions, the entry's last.
    pub code: Vec<Code>,
    /// The addresses of the loads that fault to stop ([`Strategy::BackEdgeFault`]).
    pub poll_loads: Vec<usize>,
    /// Bytes of the tables of places that the strategy's stops read.
    place_bytes: u64,
}

/// Bytes of a table's head for a function: its address and size, and its frame's three numbers.
const FUNCTION_BYTES: u64 = 24;
/// Bytes of a table's entry for a call: its return offset, and the number of its slots.
const SITE_BYTES: u64 = 6;
/// Bytes of a slot in a table.
const SLOT_BYTES: u64 = 2;

impl Made {
    /// Bytes of machine code, constants included.
    pub fn code_bytes(&self) -> u64 {
        let sizes = self.code.iter().map(|code| u64::from(code.facts.size));
        sizes.sum()
    }

    /// Bytes of the tables that a stop reads: of the stack maps of the calls, packed as a compiler
    /// would write them to a file, of the addresses of poll loads, and of the places of references
    /// where the strategy stops.
    pub fn metadata_bytes(&self) -> u64 {
        let functions = self.code.iter().map(|code| {
            let sites = code.facts.sites.iter();
            let sites = sites.map(|site| SITE_BYTES + SLOT_BYTES * site.slots.len() as u64);
            FUNCTION_BYTES + sites.sum::<u64>()
        });
        functions.sum::<u64>() + 4 * self.poll_loads.len() as u64 + self.place_bytes
    }
}

impl Maker {
    /// A maker with an arena of its own, so that a kernel's code has the same alignment for each
    /// strategy.
    ///
    /// # Errors
    /// The refusal of Cranelift or of the system.
    pub fn new(strategy: Strategy) -> Result<Maker, CodegenError> {
        let mut arena = Arena::with_size(ARENA_BYTES)?;
        // The tables change no byte of the code.
        arena.keep_places();
        // The polls' callee preserves all registers. With a callee of the System V convention
        // Cranelift would keep values of the loop on the stack, for a call that is made rarely.
        let signature = Signature::new(CallConv::PreserveAll);
        let poll = arena.import("talk_poll", stub_address(), &signature)?;
        Ok(Maker {
            arena,
            strategy,
            poll,
        })
    }

    /// Puts so many small functions before the kernel's, each of which moves the kernel's code by
    /// [`PLACE_BYTES`].
    ///
    /// # Errors
    /// Cranelift's refusal.
    pub fn move_by(&mut self, places: u32) -> Result<(), CodegenError> {
        for place in 0..places {
            let signature = self.arena.signature(&[], &[]);
            self.arena
                .function(&format!("place_{place}"), &signature, |body| {
                    body.enter();
                    body.builder.ins().return_(&[]);
                })?;
        }
        Ok(())
    }

    /// Compiles a function. Its first parameter is the control's address, and `params` are the
    /// others.
    ///
    /// # Errors
    /// Cranelift's refusal.
    pub fn function(
        &mut self,
        name: &str,
        params: &[Type],
        returns: &[Type],
        build: impl FnOnce(&mut Polled<'_, '_, '_>, &[Value]),
    ) -> Result<FuncId, CodegenError> {
        let params = [&[types::I64], params].concat();
        let signature = self.arena.signature(&params, returns);
        let id = self.arena.declare(name, &signature)?;
        let (strategy, poll) = (self.strategy, self.poll);
        self.arena.define(id, |body| {
            let params = body.enter();
            let poll = body.callee(poll);
            let mut polled = Polled {
                strategy,
                control: params[0],
                page: None,
                poll,
                marks: 0,
                body,
            };
            polled.at_entry();
            build(&mut polled, &params[1..]);
        })?;
        Ok(id)
    }

    /// Compiles the kernel's entry: `build` gets the input's address.
    ///
    /// # Errors
    /// Cranelift's refusal.
    pub fn entry(
        &mut self,
        build: impl FnOnce(&mut Polled<'_, '_, '_>, Value),
    ) -> Result<(), CodegenError> {
        self.function(ENTRY, &[types::I64], &[types::I64], |polled, params| {
            build(polled, params[0]);
        })?;
        Ok(())
    }

    /// Links the functions.
    ///
    /// # Errors
    /// The refusal of Cranelift or of the system, or a kernel without an entry.
    pub fn finish(mut self) -> Result<Made, CodegenError> {
        let code = self.arena.finish()?;
        let entry = Code::entry_of(&code, ENTRY)?;
        // SAFETY: `entry` compiled the function with this signature, and `code` keeps the memory.
        let run = unsafe { std::mem::transmute::<*const u8, Run>(entry) };
        let loads = code.iter().flat_map(|code| {
            let start = code.facts.address;
            code.marks
                .iter()
                .map(move |mark| start + mark.start as usize)
        });
        let poll_loads = loads.collect();
        let frames = code.iter().filter_map(|code| code.exact.as_deref());
        let place_bytes = match self.strategy {
            Strategy::Maps => frames.map(|frame| frame.instructions.len()).sum(),
            Strategy::Step | Strategy::BackEdgeFault => {
                frames.map(|frame| frame.points.len()).sum()
            }
            _ => 0,
        };
        Ok(Made {
            run,
            code,
            poll_loads,
            place_bytes: place_bytes as u64,
        })
    }
}

/// A kernel has a few kilobytes of code.
const ARENA_BYTES: usize = 1 << 20;
/// The alignment of functions.
pub const PLACE_BYTES: usize = 16;
/// The name of a kernel's entry.
const ENTRY: &str = "run";

/// A function under construction.
pub struct Polled<'p, 'a, 'f> {
    /// The function's body.
    pub body: &'p mut Body<'a, 'f>,
    strategy: Strategy,
    control: Value,
    /// The poll page's address, in a register.
    page: Option<Value>,
    poll: FuncRef,
    /// The number of poll loads so far.
    marks: u32,
}

impl Polled<'_, '_, '_> {
    /// The control's address, the first argument of each function of the kernel.
    pub fn control(&self) -> Value {
        self.control
    }

    /// The hook at the function's entry.
    fn at_entry(&mut self) {
        let control = self.control;
        let b = &mut self.body.builder;
        let flags = MemFlagsData::trusted();
        match self.strategy {
            Strategy::Prologue => {
                let offset = std::mem::offset_of!(Control, limit) as i32;
                let limit = b.ins().load(types::I64, flags, control, offset);
                let sp = b.ins().get_stack_pointer(types::I64);
                let over = b.ins().icmp(IntCC::UnsignedLessThan, sp, limit);
                let slow = b.create_block();
                let on = b.create_block();
                b.ins().brif(over, slow, &[], on, &[]);
                b.switch_to_block(slow);
                b.set_cold_block(slow);
                b.ins().call(self.poll, &[]);
                b.ins().jump(on, &[]);
                b.switch_to_block(on);
            }
            Strategy::BackEdgeFault => {
                let offset = std::mem::offset_of!(Control, page) as i32;
                self.page = Some(b.ins().load(types::I64, flags, control, offset));
            }
            _ => {}
        }
    }

    /// Jumps back to a loop's first block if the condition is not 0, and else out of the loop. The
    /// hook stands on the edge that leads back.
    pub fn back_edge(&mut self, condition: Value, head: Block, carried: &[Value], exit: Block) {
        let carried = params_of(carried);
        let control = self.control;
        if let Strategy::BackEdge | Strategy::BackEdgeFault = self.strategy {
            let edge = self.body.builder.create_block();
            self.body
                .builder
                .ins()
                .brif(condition, edge, &[], exit, &[]);
            self.body.builder.switch_to_block(edge);
        }
        match self.strategy {
            Strategy::BackEdge => {
                let b = &mut self.body.builder;
                let offset = std::mem::offset_of!(Control, flag) as i32;
                let flags = MemFlagsData::trusted();
                let raised = b.ins().load(types::I64, flags, control, offset);
                let slow = b.create_block();
                b.ins().brif(raised, slow, &[], head, &carried);
                b.switch_to_block(slow);
                b.set_cold_block(slow);
                b.ins().call(self.poll, &[]);
                b.ins().jump(head, &carried);
            }
            Strategy::BackEdgeFault => {
                if let Some(page) = self.page {
                    self.body.mark(Some(FIRST_MARK + self.marks));
                    self.marks += 1;
                    // An atomic load has an effect for Cranelift, which neither removes it nor
                    // joins it with another. On x86-64 it is a plain one.
                    let flags = MemFlagsData::new();
                    let b = &mut self.body.builder;
                    b.ins().atomic_load(types::I64, flags, page);
                    self.body.mark(None);
                }
                self.body.builder.ins().jump(head, &carried);
            }
            _ => {
                let b = &mut self.body.builder;
                b.ins().brif(condition, head, &carried, exit, &[]);
            }
        }
    }

    /// Loads word `number` of the input.
    pub fn word(&mut self, input: Value, number: usize) -> Value {
        let offset = std::mem::offset_of!(Input, words) + 8 * number;
        let flags = MemFlagsData::trusted();
        let b = &mut self.body.builder;
        b.ins().load(types::I64, flags, input, offset as i32)
    }

    /// Builds the loop over the passes: `pass` builds one pass from its first block on, and gives
    /// the answer. The function returns the last pass's answer.
    pub fn passes(&mut self, input: Value, pass: impl FnOnce(&mut Self) -> Value) {
        let flags = MemFlagsData::trusted();
        let passes = std::mem::offset_of!(Input, passes) as i32;
        let over = std::mem::offset_of!(Control, over) as i32;
        let control = self.control;
        let b = &mut self.body.builder;
        let wanted = b.ins().load(types::I64, flags, input, passes);
        let head = b.create_block();
        let left = b.append_block_param(head, types::I64);
        let done = b.create_block();
        b.ins().jump(head, &params_of(&[wanted]));
        b.switch_to_block(head);
        let answer = pass(self);
        let b = &mut self.body.builder;
        let left = b.ins().iadd_imm_s(left, -1);
        let over = b.ins().load(types::I64, flags, control, over);
        let zero = b.ins().iconst(types::I64, 0);
        let again = b.ins().select(over, zero, left);
        self.back_edge(again, head, &[left], done);
        let b = &mut self.body.builder;
        b.switch_to_block(done);
        b.ins().return_(&[answer]);
    }

    /// Builds a loop of `count` turns, at least one. `turn` gets the number of the turn, from 0 on,
    /// and the carried values, and gives their next values. Gives the last ones.
    pub fn each(
        &mut self,
        count: Value,
        carried: &[Value],
        turn: impl FnOnce(&mut Self, Value, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let b = &mut self.body.builder;
        let zero = b.ins().iconst(types::I64, 0);
        let first = [&[zero], carried].concat();
        let head = b.create_block();
        let params: Vec<Value> = first
            .iter()
            .map(|&value| {
                let kind = b.func.dfg.value_type(value);
                b.append_block_param(head, kind)
            })
            .collect();
        let done = b.create_block();
        b.ins().jump(head, &params_of(&first));
        b.switch_to_block(head);
        let next = turn(self, params[0], &params[1..]);
        let b = &mut self.body.builder;
        let number = b.ins().iadd_imm_s(params[0], 1);
        let more = b.ins().icmp(IntCC::UnsignedLessThan, number, count);
        let all = [&[number], &next[..]].concat();
        self.back_edge(more, head, &all, done);
        self.body.builder.switch_to_block(done);
        next
    }

    /// Calls a function of the kernel, which gets the control first, and gives its result.
    pub fn call(&mut self, function: FuncId, arguments: &[Value]) -> Value {
        let callee = self.body.callee(function);
        let arguments = [&[self.control], arguments].concat();
        let b = &mut self.body.builder;
        let call = b.ins().call(callee, &arguments);
        b.inst_results(call)[0]
    }

    /// Declares a value as a reference to a heap cell.
    pub fn reference(&mut self, value: Value) {
        self.body.reference(value);
    }
}
