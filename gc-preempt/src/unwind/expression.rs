//! Evaluates the DWARF expressions that occur in unwind rows.

use super::rule::Value;

/// A number on the evaluation's stack.
#[derive(Clone, Copy)]
enum Term {
    Constant(i64),
    Value(Value),
}

/// Evaluates a DWARF expression to a [`Value`], for the few forms that occur in unwind rows. The
/// PLT's says whether PC stands behind its push (`rsp + 8 + ((rip & 15) >= 11) * 8`), a function
/// that realigns its stack keeps its CFA in memory (`*(rbp - 8)`).
#[allow(non_upper_case_globals, reason = "the names are DWARF's")]
pub(super) fn evaluate(code: &[u8], pc: usize, pushed: Option<Value>) -> Option<Value> {
    use gimli::constants::{
        DW_OP_and, DW_OP_breg0, DW_OP_breg31, DW_OP_const1s, DW_OP_const1u, DW_OP_deref, DW_OP_ge,
        DW_OP_lit0, DW_OP_lit31, DW_OP_minus, DW_OP_plus, DW_OP_plus_uconst, DW_OP_shl, DwOp,
    };
    let mut input = code.iter().copied();
    let mut stack = [Term::Constant(0); 8];
    let mut depth = 0;
    if let Some(value) = pushed {
        stack[0] = Term::Value(value);
        depth = 1;
    }
    while let Some(op) = input.next().map(DwOp) {
        let term = if (DW_OP_lit0..=DW_OP_lit31).contains(&op) {
            Term::Constant(i64::from(op.0 - DW_OP_lit0.0))
        } else if (DW_OP_breg0..=DW_OP_breg31).contains(&op) {
            let offset = leb(&mut input, true)?;
            match op.0 - DW_OP_breg0.0 {
                register @ 0..16 => Term::Value(Value {
                    register,
                    offset: i32::try_from(offset).ok()?,
                    loaded: None,
                }),
                16 => Term::Constant((pc as i64).wrapping_add(offset)),
                _ => return None,
            }
        } else if op == DW_OP_const1u {
            Term::Constant(input.next()?.into())
        } else if op == DW_OP_const1s {
            Term::Constant((input.next()? as i8).into())
        } else {
            depth = usize::checked_sub(depth, 1)?;
            let top = *stack.get(depth)?;
            match op {
                DW_OP_deref => match top {
                    Term::Value(Value {
                        register,
                        offset,
                        loaded: None,
                    }) => Term::Value(Value {
                        register,
                        offset,
                        loaded: Some(0),
                    }),
                    _ => return None,
                },
                DW_OP_plus_uconst => add(top, Term::Constant(leb(&mut input, false)?))?,
                _ => {
                    depth = usize::checked_sub(depth, 1)?;
                    let below = *stack.get(depth)?;
                    match (op, below, top) {
                        (DW_OP_plus, a, b) => add(a, b)?,
                        (DW_OP_minus, a, Term::Constant(b)) => {
                            add(a, Term::Constant(b.checked_neg()?))?
                        }
                        (DW_OP_and, Term::Constant(a), Term::Constant(b)) => Term::Constant(a & b),
                        (DW_OP_ge, Term::Constant(a), Term::Constant(b)) => {
                            Term::Constant((a >= b).into())
                        }
                        (DW_OP_shl, Term::Constant(a), Term::Constant(b)) => {
                            Term::Constant(a.checked_shl(u32::try_from(b).ok()?)?)
                        }
                        _ => return None,
                    }
                }
            }
        };
        *stack.get_mut(depth)? = term;
        depth += 1;
    }
    match stack.get(depth.checked_sub(1)?)? {
        Term::Value(value) => Some(*value),
        Term::Constant(_) => None,
    }
}

fn add(a: Term, b: Term) -> Option<Term> {
    let (mut value, by) = match (a, b) {
        (Term::Constant(a), Term::Constant(b)) => return Some(Term::Constant(a.checked_add(b)?)),
        (Term::Value(v), Term::Constant(c)) | (Term::Constant(c), Term::Value(v)) => (v, c),
        _ => return None,
    };
    let field = value.loaded.as_mut().unwrap_or(&mut value.offset);
    *field = i32::try_from(i64::from(*field).checked_add(by)?).ok()?;
    Some(Term::Value(value))
}

/// A LEB128 number.
fn leb(input: &mut impl Iterator<Item = u8>, signed: bool) -> Option<i64> {
    let mut result = 0i64;
    for shift in (0..63).step_by(7) {
        let byte = input.next()?;
        result |= i64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            if signed && byte & 0x40 != 0 {
                result |= -1 << (shift + 7);
            }
            return Some(result);
        }
    }
    None
}
