//! Makes compiled code record, for the [oracle](super::oracle) of a test, the references that are
//! live across each call.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{self, InstBuilder};

use super::analysis::{Type, closure_slot};
use super::oracle::{FRAME_MAX, HEAD};
use super::translator::{Operand, Translator};

/// The code that a translation adds for the oracle.
impl Translator<'_, '_, '_, '_> {
    /// Begins the activation's frame in the shadow.
    pub(super) fn open_frame(&mut self) {
        let Some(shadow) = self.unit.shadow else {
            return;
        };
        // The live slots, and the operands of one call.
        let length = HEAD as u64 + u64::from(self.unit.function.max_stack) + 256;
        if length > FRAME_MAX as u64 {
            return;
        }
        let top = self.word(&raw const shadow.top as u64);
        let frame = self.load(top, 0);
        let zero = self.word(0);
        self.store(zero, frame, 8);
        let words = self.word(length);
        self.store(words, frame, 0);
        let next = self.b().ins().iadd_imm_s(frame, 8 * length as i64);
        self.store(next, top, 0);
        self.frame = Some(frame);
    }

    /// Ends the activation's frame in the shadow.
    pub(super) fn close_frame(&mut self) {
        if let (Some(shadow), Some(frame)) = (self.unit.shadow, self.frame) {
            let top = self.word(&raw const shadow.top as u64);
            self.store(frame, top, 0);
        }
    }

    /// With an oracle: a flag that is always 1, which Cranelift cannot infer. Code that depends on
    /// it is not removed as dead, since the bytecode's liveness takes all code for reachable.
    pub(super) fn always(&mut self) -> Option<ir::Value> {
        let shadow = self.unit.shadow?;
        let top = self.word(&raw const shadow.top as u64);
        let top = self.load(top, 0);
        Some(self.icmp(IntCC::NotEqual, top, 0))
    }

    /// Before a call: records the references that are live across it.
    pub(super) fn watch(&mut self) {
        let Some(frame) = self.frame else { return };
        let mut count = 0;
        // No slot is live after a call within `Return`.
        let ends = self.unit.function.code[self.at].ends_block();
        let after = |slot: usize| !ends && self.unit.analysis.live.has(self.at + 1, slot);
        let mut live: Vec<Operand> = (0..self.stack.len())
            .filter(|&slot| after(slot) && !self.is_captured(slot))
            .map(|slot| self.stack[slot])
            .collect();
        if after(closure_slot(self.unit.function)) {
            live.push(Operand::boxed(Type::CELL, self.closure));
        }
        live.extend(&self.pending);
        for operand in live {
            if !operand.kind.may_refer() || operand.constant {
                continue;
            }
            let word = self.boxed(&operand);
            let hidden = self.b().ins().bnot(word);
            self.store(hidden, frame, 8 * (HEAD + count) as i32);
            count += 1;
        }
        let state = self.word(count as u64 | (self.at as u64) << 32);
        self.store(state, frame, 8);
    }

    /// After a call: empties the frame's record.
    pub(super) fn unwatch(&mut self) {
        if let Some(frame) = self.frame {
            let zero = self.word(0);
            self.store(zero, frame, 8);
        }
    }
}
