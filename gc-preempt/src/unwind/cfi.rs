//! From an entry (FDE) of an unwind table to the rule at one PC.

use std::cell::Cell;

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameOffset, EndianSlice, LittleEndian, Register,
    RegisterRule, UnwindContext, UnwindContextStorage, UnwindExpression, UnwindSection,
    UnwindTableRow,
};

use super::expression::evaluate;
use super::rule::{Back, Row, Rule, Saved, Value};
use crate::context::{PRESERVED, RSP};

const RETURN_ADDRESS: u16 = 16;

/// gimli's storage on the stack. A function saves at most its sixteen registers, and state is
/// remembered one deep in all code that compilers make.
pub(super) struct Storage;

impl UnwindContextStorage<usize> for Storage {
    type Rules = [(Register, RegisterRule<usize>); 24];
    type Stack = [UnwindTableRow<usize, Self>; 5];
}

pub(super) type Section<'a> = EhFrame<EndianSlice<'a, LittleEndian>>;

/// The rule at `pc` by the entry (FDE) at that offset of a section, whose addresses are relative to
/// the section at `address`.
pub(super) fn rule_of(
    section: &Section<'_>,
    address: usize,
    offset: usize,
    pc: usize,
) -> Option<Row> {
    let bases = BaseAddresses::default().set_eh_frame(address as u64);
    let fde = section
        .fde_from_offset(&bases, EhFrameOffset(offset), EhFrame::cie_from_offset)
        .ok()?;
    if !fde.contains(pc as u64) {
        return None;
    }
    if fde.is_signal_trampoline() {
        return Some(Row {
            pcs: pc..pc + 1,
            rule: Rule::SIGNAL,
        });
    }
    // A CIE may name another column for the return address: then there is no rule.
    if fde.cie().return_address_register() != Register(RETURN_ADDRESS) {
        return None;
    }
    let mut context = UnwindContext::<usize, Storage>::new_in();
    let row = fde
        .unwind_info_for_address(section, &bases, &mut context, pc as u64)
        .ok()?;
    // An expression may depend on the PC, so its value holds for this PC only.
    let anywhere = Cell::new(true);
    let evaluate = |e: &UnwindExpression<usize>, pushed| {
        anywhere.set(false);
        evaluate(e.get(section).ok()?.0.slice(), pc, pushed)
    };
    let cfa = match row.cfa() {
        // gimli's initial value: the table does not give the frame's end. (No frame ends at RAX.)
        CfaRule::RegisterAndOffset {
            register: Register(0),
            offset: 0,
        } => return None,
        CfaRule::RegisterAndOffset { register, offset } => Value {
            register: u8::try_from(register.0).ok().filter(|r| *r < 16)?,
            offset: i32::try_from(*offset).ok()?,
            loaded: None,
        },
        CfaRule::Expression(e) => evaluate(e, None)?,
    };
    let back = match row.register(Register(RETURN_ADDRESS)) {
        Some(RegisterRule::Offset(-8)) => Back::Address,
        // Only "undefined" means that there is no caller. A row without a rule for the return
        // address (assembly under `.cfi_startproc simple`) does not tell.
        Some(RegisterRule::Undefined) => Back::Outermost,
        row => seam::without_return_address(row.is_none())?,
    };
    // The caller's SP is the CFA, unless the row says otherwise (a function that changes stacks
    // does).
    match row.register(Register(RSP as u16)) {
        None | Some(RegisterRule::ValOffset(0)) => {}
        Some(_) => return None,
    }
    let saved = PRESERVED.map(|register| match row.register(Register(register as u16)) {
        // A register that a row does not name has its value of before: the ABI's rule for these.
        None | Some(RegisterRule::SameValue) => Saved::Same,
        Some(RegisterRule::Offset(offset)) => i32::try_from(offset).map_or(Saved::Lost, Saved::Cfa),
        Some(RegisterRule::Expression(e)) => {
            let pushed = cfa.loaded.is_none().then_some(cfa);
            evaluate(&e, pushed).map_or(Saved::Lost, Saved::At)
        }
        Some(_) => Saved::Lost,
    });
    let lowest = row
        .registers()
        .try_fold(-8, |lowest: i64, (_, rule)| match rule {
            RegisterRule::Offset(offset) => Some(lowest.min(*offset)),
            RegisterRule::Undefined | RegisterRule::SameValue => Some(lowest),
            // It may be saved anywhere in the frame.
            _ => None,
        });
    let saves = lowest
        .and_then(|l| u32::try_from(l.checked_neg()?).ok())
        .unwrap_or(u32::MAX);
    // A row may reach past its entry's end, where another one speaks.
    let row = row.start_address() as usize..row.end_address().min(fde.end_address()) as usize;
    Some(Row {
        pcs: if anywhere.get() && row.contains(&pc) {
            row
        } else {
            pc..pc + 1
        },
        rule: Rule {
            cfa,
            back,
            saved,
            saves,
        },
    })
}

/// What tests may break here.
mod seam {
    use super::Back;
    use crate::faults::Fault;

    /// What a row says that has no return address at its place. `silent`: it does not name it.
    pub(super) fn without_return_address(silent: bool) -> Option<Back> {
        (silent && Fault::SilenceEndsWalks.planted()).then_some(Back::Outermost)
    }
}
