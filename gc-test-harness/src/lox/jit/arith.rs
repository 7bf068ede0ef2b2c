//! Translates arithmetic, comparisons and conditions.
//!
//! All values other than numbers are quiet NaNs as doubles, and arithmetic on a NaN makes a NaN. So
//! an operation is executed first and its *result* is tested: if the result is no NaN, both
//! operands were numbers. If it is a NaN, cold code tests the operands: either both are numbers
//! (`0/0`), or the operation fails.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{self, InstBuilder};

use super::analysis::{Type, sum_type};
use super::helpers::Helper;
use super::translator::{Cause, Operand, Translator};
use crate::lox::bytecode::Op;
use crate::lox::value::{QNAN, Value};

impl Translator<'_, '_, '_, '_> {
    fn fcmp(&mut self, condition: FloatCC, left: ir::Value, right: ir::Value) -> ir::Value {
        self.b().ins().fcmp(condition, left, right)
    }

    /// Fails if one of the operands is no number. The operands are tested only if the flag
    /// `unordered` is set.
    fn demand_numbers(&mut self, unordered: ir::Value, operands: &[Operand], cause: Cause) {
        let unknown: Vec<&Operand> = operands
            .iter()
            .filter(|o| !o.kind.is(Type::NUMBER))
            .collect();
        if unknown.is_empty() {
            return;
        }
        let look = self.cold_block();
        let on = self.b().create_block();
        self.b().ins().brif(unordered, look, &[], on, &[]);
        self.b().switch_to_block(look);
        let away = self.failure(cause);
        for operand in unknown {
            let word = self.boxed(operand);
            let mut number = self.is_number(word);
            if let Some(always) = self.always() {
                number = self.b().ins().band(number, always);
                let never = self.b().ins().bxor_imm_u(always, 1);
                number = self.b().ins().bor(number, never);
            }
            self.stay_if(number, away);
        }
        self.b().ins().jump(on, &[]);
        self.b().switch_to_block(on);
        for operand in operands {
            self.proven_number(operand);
        }
    }

    fn apply(&mut self, op: Op, left: ir::Value, right: ir::Value) -> ir::Value {
        let ins = self.b().ins();
        match op {
            Op::Add => ins.fadd(left, right),
            Op::Subtract => ins.fsub(left, right),
            Op::Multiply => ins.fmul(left, right),
            _ => ins.fdiv(left, right),
        }
    }

    pub(super) fn arithmetic(&mut self, op: Op) {
        let right = self.pop();
        let left = self.pop();
        self.arithmetic_on(op, left, right);
    }

    fn arithmetic_on(&mut self, op: Op, left: Operand, right: Operand) {
        let (l, r) = (self.double(&left), self.double(&right));
        let result = self.apply(op, l, r);
        let unordered = self.fcmp(FloatCC::Unordered, result, result);
        self.demand_numbers(unordered, &[left, right], Cause::Operands);
        self.push(Operand::number(result));
    }

    pub(super) fn negate(&mut self) {
        let operand = self.pop();
        let number = self.double(&operand);
        let unordered = self.fcmp(FloatCC::Unordered, number, number);
        self.demand_numbers(unordered, &[operand], Cause::Operand);
        // Not `fneg`: Cranelift turns -x * -x into x * x. If x is a NaN, its sign is then wrong,
        // and programs print it.
        let sign = self.b().ins().f64const(-0.0);
        let result = self.b().ins().bxor(number, sign);
        self.push(Operand::number(result));
    }

    pub(super) fn add(&mut self) {
        let right = self.pop();
        let left = self.pop();
        let kind = sum_type(left.kind, right.kind);
        if kind == Type::NUMBER {
            // The error of a string next to a number has another message than that of `-`.
            self.add_numbers(left, right);
            return;
        }
        let (l, r) = (self.boxed(&left), self.boxed(&right));
        if kind == Type::CELL {
            let result = self.ask_helper(Helper::Add, &[l, r]);
            self.push(Operand::boxed(kind, result));
            return;
        }
        let (x, y) = (self.double(&left), self.double(&right));
        let sum = self.b().ins().fadd(x, y);
        let boxed = self.boxed(&Operand::number(sum));
        let unordered = self.fcmp(FloatCC::Unordered, sum, sum);
        let look = self.cold_block();
        let ask = self.cold_block();
        let (done, result) = self.join_block();
        self.branch_or_join(unordered, look, done, boxed);
        self.b().switch_to_block(look);
        for word in [l, r] {
            let number = self.is_number(word);
            self.stay_if(number, ask);
        }
        self.jump_with(done, boxed);
        self.b().switch_to_block(ask);
        let asked = self.ask_helper(Helper::Add, &[l, r]);
        self.jump_with(done, asked);
        self.b().switch_to_block(done);
        self.push(Operand::boxed(kind, result));
    }

    fn branch_or_join(
        &mut self,
        condition: ir::Value,
        away: ir::Block,
        join: ir::Block,
        value: ir::Value,
    ) {
        let args = [ir::BlockArg::Value(value)];
        self.b().ins().brif(condition, away, &[], join, &args);
    }

    fn add_numbers(&mut self, left: Operand, right: Operand) {
        let (x, y) = (self.double(&left), self.double(&right));
        let sum = self.b().ins().fadd(x, y);
        let unordered = self.fcmp(FloatCC::Unordered, sum, sum);
        self.demand_numbers(unordered, &[left, right], Cause::Sum);
        self.push(Operand::number(sum));
    }

    pub(super) fn compare(&mut self, op: Op) {
        let right = self.pop();
        let left = self.pop();
        let (l, r) = (self.double(&left), self.double(&right));
        let unordered = self.fcmp(FloatCC::Unordered, l, r);
        self.demand_numbers(unordered, &[left, right], Cause::Operands);
        let condition = if op == Op::Less {
            FloatCC::LessThan
        } else {
            FloatCC::GreaterThan
        };
        let flag = self.fcmp(condition, l, r);
        self.push(Operand::flag(flag));
    }

    pub(super) fn equal(&mut self) {
        let right = self.pop();
        let left = self.pop();
        if left.is_dead() || right.is_dead() {
            return self.push(Operand::dead(Type::BOOLEAN));
        }
        let flag = if left.kind.is(Type::NUMBER) || right.kind.is(Type::NUMBER) {
            // A word that is no number is a NaN, which equals no double.
            let (l, r) = (self.double(&left), self.double(&right));
            self.fcmp(FloatCC::Equal, l, r)
        } else if let (Some(l), Some(r)) = (left.flag, right.flag) {
            self.b().ins().icmp(IntCC::Equal, l, r)
        } else {
            let (l, r) = (self.boxed(&left), self.boxed(&right));
            let same = self.b().ins().icmp(IntCC::Equal, l, r);
            if left.kind.may_be(Type::NUMBER) && right.kind.may_be(Type::NUMBER) {
                let mask = self.word(QNAN);
                let bits = self.b().ins().band(l, mask);
                let odd = self.icmp(IntCC::Equal, bits, QNAN);
                let identical = self.b().ins().band(same, odd);
                let (x, y) = (self.double(&left), self.double(&right));
                let equal = self.fcmp(FloatCC::Equal, x, y);
                self.b().ins().bor(identical, equal)
            } else {
                same
            }
        };
        self.push(Operand::flag(flag));
    }

    pub(super) fn not(&mut self) {
        let operand = self.pop();
        if operand.is_dead() {
            return self.push(Operand::dead(Type::BOOLEAN));
        }
        let flag = match self.truth(&operand) {
            Ok(known) => {
                let bit = i64::from(!known);
                self.b().ins().iconst(ir::types::I8, bit)
            }
            Err(flag) => {
                let zero = self.b().ins().iconst(ir::types::I8, 0);
                self.b().ins().icmp(IntCC::Equal, flag, zero)
            }
        };
        self.push(Operand::flag(flag));
    }

    /// Whether a condition holds: known now, or as a flag at run time.
    pub(super) fn truth(&mut self, operand: &Operand) -> Result<bool, ir::Value> {
        let truth = self.plain_truth(operand);
        let Some(always) = self.always() else {
            return truth;
        };
        Err(match truth {
            Ok(true) => always,
            Ok(false) => self.b().ins().bxor_imm_u(always, 1),
            Err(flag) => self.b().ins().band(flag, always),
        })
    }

    fn plain_truth(&mut self, operand: &Operand) -> Result<bool, ir::Value> {
        if let Some(flag) = operand.flag {
            return Err(flag);
        }
        if operand.kind.is(Type::NIL) {
            return Ok(false);
        }
        // The oracle takes a tested reference for live until the test, so with an oracle the test
        // is generated.
        let watched = self.unit.shadow.is_some() && operand.kind.may_refer();
        if !operand.kind.may_be(Type::NIL.join(Type::BOOLEAN)) && !watched {
            return Ok(true);
        }
        // `nil` and `false` are adjacent words.
        let word = self.boxed(operand);
        let nil = self.constant(Value::NIL);
        let distance = self.b().ins().isub(word, nil);
        Err(self.icmp(IntCC::UnsignedGreaterThan, distance, 1))
    }
}
