//! Stack maps from Cranelift's facts of compiled functions, in structs that do not depend on a
//! release of Cranelift.
//!
//! The table has an entry for each *call*, not for each of Cranelift's user stack maps. Two kinds
//! of call have no user stack map: a call across which no reference lives, and a library call that
//! Cranelift has inserted, across which references may live in callee-saved registers. Only the
//! converter can distinguish them (by the relocation), and does so in [`Site::known`].
//!
//! From SP upwards a frame holds outgoing arguments, sized slots (the references that live across
//! calls are here), spills, registers saved for the caller, the caller's RBP and the return
//! address. Two of these areas may hold the only copy of a reference and have no map: the arguments
//! (while the callee is still in its prologue) and the saved registers (with a native caller).
//! Hence [`Function::outgoing`] and [`Function::clobber`], which are scanned conservatively.

use super::maps::{BaseRegister, FrameWord, Layout, Sites, Slot, StackMaps};
use crate::table_error::{StackMapError, StackMapErrorKind};

/// One compiled function, at its final address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// The address of its first instruction.
    pub address: usize,
    /// Bytes of code, constants and jump tables included (`buffer.total_size()`).
    pub size: u32,
    /// FP less SP at each of its calls (`frame_layout.frame_to_fp_offset`).
    pub frame_to_fp: u32,
    /// Bytes below FP where it saves registers of its caller
    /// (`DefineNewFrame.offset_downward_to_clobbers`).
    pub clobber: u32,
    /// Bytes from SP upwards where it puts the arguments of its calls: up to its lowest sized slot.
    /// A function without sized slots gives `frame_to_fp - clobber`.
    pub outgoing: u32,
    /// Every call in it.
    pub sites: Vec<Site>,
}

/// One call, seen from the frame that makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Where the call returns to, in bytes from the function's address.
    pub return_offset: u32,
    /// Whether `slots` holds all references. False for a call that may be a libcall, which has no
    /// map although references live across it: then the frame is scanned conservatively.
    pub known: bool,
    /// The references that live across the call, in bytes from SP. A call without a user stack map
    /// has none.
    pub slots: Vec<u32>,
}

/// A larger frame is an error.
const MAX_FRAME: u32 = 1 << 30;

impl StackMaps {
    /// The table of functions that Cranelift compiled; see
    /// [`cranelift`](crate::stackmap::cranelift).
    ///
    /// # Errors
    /// The facts contradict each other: the error says which and where.
    pub fn from_cranelift(functions: &[Function]) -> Result<Self, StackMapError> {
        build(functions)
    }
}

fn build(functions: &[Function]) -> Result<StackMaps, StackMapError> {
    let mut sites = Sites::default();
    let mut ranges = Vec::with_capacity(functions.len());
    for function in functions {
        let Function {
            address,
            size,
            frame_to_fp: frame,
            clobber,
            outgoing,
            ..
        } = *function;
        let bad = |fault: StackMapErrorKind| Err(fault.at(address));
        let Some(end) = address.checked_add(size as usize).filter(|_| size > 0) else {
            return bad(StackMapErrorKind::FunctionSize(size));
        };
        ranges.push(address..end);
        if !frame.is_multiple_of(8) || frame > MAX_FRAME {
            return bad(StackMapErrorKind::FrameSize(frame.into()));
        }
        if clobber > frame || !clobber.is_multiple_of(8) {
            return bad(StackMapErrorKind::FramePart {
                part: clobber,
                frame,
            });
        }
        if outgoing > frame {
            return bad(StackMapErrorKind::FramePart {
                part: outgoing,
                frame,
            });
        }
        let layout = Layout {
            span: Some(frame),
            clobber,
            // A slot of four bytes may begin between two words.
            outgoing: Some(outgoing.next_multiple_of(8)),
        };
        for site in &function.sites {
            let offset = site.return_offset;
            if offset == 0 || offset > size {
                return bad(StackMapErrorKind::ReturnOffset { offset, size });
            }
            let return_address = address + offset as usize;
            // Slots lie between the arguments and the saved registers, or the facts contradict each
            // other.
            let highest = (frame - clobber).checked_sub(8);
            for &slot in &site.slots {
                if !slot.is_multiple_of(8) || slot < outgoing || Some(slot) > highest {
                    return Err(StackMapErrorKind::Slot {
                        offset: slot.into(),
                        frame,
                    }
                    .at(return_address));
                }
            }
            let slots = site.slots.iter().map(|&slot| Slot {
                edge: FrameWord {
                    from: BaseRegister::Sp,
                    offset: slot as i32,
                },
                derived: None,
            });
            sites.push(return_address, return_address, site.known, layout, slots)?;
        }
    }
    ranges.sort_unstable_by_key(|r| r.start);
    if let Some(pair) = ranges.windows(2).find(|w| w[0].end > w[1].start) {
        return Err(StackMapErrorKind::FunctionOverlap {
            other: pair[0].start,
        }
        .at(pair[1].start));
    }
    sites.finish(ranges, Vec::new())
}
