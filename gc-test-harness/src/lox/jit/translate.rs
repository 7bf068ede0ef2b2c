//! Translates one function's bytecode into Cranelift's intermediate code.
//!
//! The operand stack is executed abstractly (`translator.rs`), and only instructions that compute
//! generate code. At a block's entry each live slot is a block parameter, in the form of its type
//! there ([`Type::form`]): numbers are doubles. Captured slots are the exception: they are always
//! in the activation's window of the value stack, so that open upvalues work as in the interpreter.
//!
//! A captured slot that is popped is set to nil, because the window is a root for the whole
//! activation.
//!
//! A loop's back-edge is only a jump. In an isolate with green threads a loop's head and a
//! function's first block begin with a point ([`points`](crate::lox::points)).

use cranelift_codegen::ir::{self, BlockArg, InstBuilder, types};

use super::analysis::{Form, Type, hands_upvalues_on};
use super::helpers::Helper;
use super::translator::{Operand, Translator, Unit};
use crate::kernels::codegen::Body;
use crate::lox::bytecode::{Instruction, Op};
use crate::lox::value::Value;

impl<'a, 'b, 'm, 'f> Translator<'a, 'b, 'm, 'f> {
    /// Translates the whole unit into `body`.
    pub(super) fn run(unit: &'a Unit<'a>, body: &'b mut Body<'m, 'f>) {
        let params = body.enter();
        let mut translator = Translator::new(unit, body, &params);
        translator.declared(params[1]);
        if unit.osr {
            translator.enter_loop(params[2]);
        } else {
            translator.enter_function(&params);
        }
        let heads = unit.heads();
        for start in 0..unit.function.code.len() {
            if unit.analysis.entry[start].is_none() {
                continue;
            }
            translator.begin_block(start);
            if heads.contains(&start) {
                translator.body.point();
            }
            if unit.region.contains(&start) {
                translator.block(start);
            } else {
                translator.resume_at(start);
            }
        }
        translator.make_failures();
    }

    // ---- blocks ----

    /// The block that begins at an instruction.
    fn block_at(&mut self, start: usize) -> ir::Block {
        if let Some(&block) = self.blocks.get(&start) {
            return block;
        }
        let block = self.b().create_block();
        let unit = self.unit;
        for (slot, &kind) in unit.analysis.entry[start].iter().flatten().enumerate() {
            if self.is_captured(slot) || !unit.analysis.live.has(start, slot) {
                continue;
            }
            let machine = match kind.form() {
                Form::Number => types::F64,
                Form::Flag => types::I8,
                Form::Boxed => types::I64,
            };
            let param = self.b().append_block_param(block, machine);
            if kind.may_refer() {
                self.declared(param);
            }
        }
        self.blocks.insert(start, block);
        block
    }

    /// The block that begins at an instruction, and the arguments for it from here.
    pub(super) fn edge(&mut self, target: usize) -> (ir::Block, Vec<BlockArg>) {
        let block = self.block_at(target);
        let unit = self.unit;
        let mut args = Vec::new();
        for (slot, &kind) in unit.analysis.entry[target].iter().flatten().enumerate() {
            if self.is_captured(slot) || !unit.analysis.live.has(target, slot) {
                continue;
            }
            let operand = self.stack[slot];
            debug_assert!(
                operand.kind.is(kind),
                "the analysis knows more than the code"
            );
            args.push(BlockArg::Value(self.in_form(&operand, kind.form())));
        }
        (block, args)
    }

    /// Switches to a block. Its parameters become the slots.
    fn begin_block(&mut self, start: usize) {
        let block = self.block_at(start);
        self.b().switch_to_block(block);
        let params = self.b().block_params(block).to_vec();
        let mut params = params.into_iter();
        self.stack.clear();
        let unit = self.unit;
        for (slot, &kind) in unit.analysis.entry[start].iter().flatten().enumerate() {
            let mut operand = Operand {
                kind,
                ..Operand::default()
            };
            if !self.is_captured(slot) && unit.analysis.live.has(start, slot) {
                let param = params.next();
                match kind.form() {
                    Form::Number => operand.number = param,
                    Form::Flag => operand.flag = param,
                    Form::Boxed => operand.boxed = param,
                }
            }
            self.stack.push(operand);
        }
    }

    fn block(&mut self, start: usize) {
        let unit = self.unit;
        let mut at = start;
        loop {
            self.at = at;
            let instruction = unit.function.code[at];
            self.instruction(instruction);
            at += 1;
            if instruction.ends_block() || instruction.target().is_some() {
                return;
            }
            if unit.analysis.entry[at].is_some() {
                let (block, args) = self.edge(at);
                self.b().ins().jump(block, &args);
                return;
            }
        }
    }

    fn jump(&mut self, target: u32) {
        let (block, args) = self.edge(target as usize);
        self.b().ins().jump(block, &args);
    }

    fn jump_if(&mut self, instruction: Instruction) {
        let top = self.read(self.stack.len() - 1);
        if instruction.op == Op::PopJumpIfFalse {
            self.drop_top();
        }
        let (mut away, mut away_args) = self.edge(instruction.c as usize);
        let (mut next, mut next_args) = self.edge(self.at + 1);
        if instruction.op == Op::JumpIfTrue {
            (away, away_args, next, next_args) = (next, next_args, away, away_args);
        }
        match self.truth(&top) {
            Ok(true) => self.b().ins().jump(next, &next_args),
            Ok(false) => self.b().ins().jump(away, &away_args),
            Err(flag) => self
                .b()
                .ins()
                .brif(flag, next, &next_args, away, &away_args),
        };
    }

    fn instruction(&mut self, instruction: Instruction) {
        let c = instruction.c;
        match instruction.op {
            Op::Constant => self.push_constant(c),
            Op::Nil => {
                let nil = self.constant(Value::NIL);
                self.push(Operand {
                    constant: true,
                    ..Operand::boxed(Type::NIL, nil)
                });
            }
            Op::True | Op::False => {
                let flag = i64::from(instruction.op == Op::True);
                let flag = self.b().ins().iconst(types::I8, flag);
                self.push(Operand::flag(flag));
            }
            Op::Pop => self.drop_top(),
            Op::GetLocal => {
                let mut operand = self.read(c as usize);
                operand.origin = Some(c).filter(|_| !self.is_captured(c as usize));
                self.push(operand);
            }
            Op::SetLocal => self.set_local(c),
            Op::GetGlobal => self.get_global(c),
            Op::DefineGlobal => self.define_global(c),
            Op::SetGlobal => self.set_global(c),
            Op::GetUpvalue => {
                let location = self.upvalue_location(c);
                let value = self.load(location, 0);
                self.declared(value);
                self.push(Operand::boxed(Type::ANY, value));
            }
            Op::SetUpvalue => self.set_upvalue(c),
            Op::GetProperty => self.get_property(instruction),
            Op::SetProperty => self.set_property(instruction),
            Op::GetSuper => self.get_super(instruction),
            Op::Equal => self.equal(),
            Op::Greater | Op::Less => self.compare(instruction.op),
            Op::Add => self.add(),
            Op::Subtract | Op::Multiply | Op::Divide => self.arithmetic(instruction.op),
            Op::Not => self.not(),
            Op::Negate => self.negate(),
            Op::Print => {
                let value = self.pop();
                let value = self.boxed(&value);
                self.run_helper(Helper::Print, &[value]);
            }
            Op::Jump | Op::Loop => self.jump(c),
            Op::JumpIfFalse | Op::JumpIfTrue | Op::PopJumpIfFalse => self.jump_if(instruction),
            Op::Call => self.call_value(instruction),
            Op::Invoke => self.invoke(instruction),
            Op::SuperInvoke => self.super_invoke(instruction),
            Op::Closure => self.make_closure(c),
            Op::CloseUpvalue => {
                let slot = self.stack.len() - 1;
                let base = self.window();
                let from = self.b().ins().iadd_imm_s(base, 8 * slot as i64);
                self.run_helper(Helper::CloseUpvalues, &[from]);
                self.drop_top();
            }
            Op::Return => self.return_top(),
            Op::Class => {
                let proto = self.word(self.unit.proto as u64);
                let (name, fields) = (self.int(u32::from(instruction.b)), self.int(c));
                let class = self.ask_helper(Helper::Class, &[proto, name, fields]);
                self.push(Operand::boxed(Type::CELL, class));
            }
            Op::Inherit => {
                let class = self.pop();
                let superclass = self.read(self.stack.len() - 1);
                let (superclass, class) = (self.boxed(&superclass), self.boxed(&class));
                self.ask_helper(Helper::Inherit, &[superclass, class]);
            }
            Op::Method => {
                let method = self.pop();
                let class = self.read(self.stack.len() - 1);
                let (class, method) = (self.boxed(&class), self.boxed(&method));
                let symbol = self.int(c);
                self.ask_helper(Helper::Method, &[class, method, symbol]);
            }
        }
    }

    fn push_constant(&mut self, index: u32) {
        // SAFETY: the function has as many constants as the compiler counted.
        let value = unsafe { *(*self.unit.proto).constants.add(index as usize) };
        let operand = if value.is_number() {
            let number = self.b().ins().f64const(value.as_number());
            Operand::number(number)
        } else {
            let word = self.constant(value);
            Operand {
                constant: true,
                ..Operand::boxed(Type::CELL, word)
            }
        };
        self.push(operand);
    }

    fn set_local(&mut self, slot: u32) {
        let top = self.stack.len() - 1;
        let mut operand = self.read(top);
        for other in &mut self.stack {
            if other.origin == Some(slot) {
                other.origin = None;
            }
        }
        if self.is_captured(slot as usize) {
            let word = self.boxed(&operand);
            let base = self.window();
            self.store(word, base, 8 * slot as i32);
            return;
        }
        operand.origin = None;
        self.stack[slot as usize] = operand;
        if !self.is_captured(top) {
            self.stack[top].origin = Some(slot);
        }
    }

    fn make_closure(&mut self, child: u32) {
        let enclosing = if hands_upvalues_on(self.unit.function, child as usize) {
            self.closure
        } else {
            self.constant(Value::NIL)
        };
        // SAFETY: the function has as many children as the compiler counted.
        let child = unsafe { *(*self.unit.proto).children.add(child as usize) };
        let child = self.word(child as u64);
        let base = self.window();
        let closure = self.ask_helper(Helper::Closure, &[enclosing, child, base]);
        self.push(Operand::boxed(Type::CELL, closure));
    }
}
