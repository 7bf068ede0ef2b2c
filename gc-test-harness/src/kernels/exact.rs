//! What an exact scan of a frame needs that was interrupted in a compiled function: the places of
//! its references, and of what it keeps for its caller.
//!
//! Two of the talk's strategies scan so. `maps` stops at any instruction and uses the table of all
//! instructions. `step` stops at *points* only: where a call returns to, and where a jump backwards
//! leads to.
//!
//! # What the frame keeps for its caller
//!
//! A native caller may have its only copy of a reference in a callee-saved register. In the body,
//! the register belongs to the function if the function has saved it, and then the saved word
//! belongs to the caller. In the prologue and the epilogue the register may belong to either, so
//! both the register and the saved word count as the caller's. Those words are scanned
//! conservatively. No table has them.

use std::ops::Range;

use cranelift_codegen::CompiledCode;
use cranelift_codegen::ir::{self, InstructionData, Opcode, SourceLoc, ValueLabel};
use cranelift_codegen::ir::{ValueLabelAssignments, ValueLabelStart};
use cranelift_codegen::isa::unwind::UnwindInst;
use cranelift_frontend::FunctionBuilder;
use gc_preempt::stackmap::cranelift::Function;

use super::places::{Place, PlaceTable, Places, TooLarge};

/// The source location of a return, whose code contains the epilogue.
const RETURN: u32 = u32::MAX - 1;

/// Whether Cranelift made the code of this place for a return.
pub(super) fn is_of_a_return(place: SourceLoc) -> bool {
    place.bits() == RETURN
}

/// The callee-saved registers except RBP, by their DWARF numbers.
const CALLEE_SAVED: [u32; 5] = [3, 12, 13, 14, 15];

/// A register that a prologue saves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Its DWARF number.
    pub register: u32,
    /// The word that it is saved in, in bytes below the CFA.
    pub below_cfa: u32,
    /// The offset of the instruction after the save.
    pub from: u32,
}

/// The facts of one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExactFrame {
    /// The places of references at each instruction, by Cranelift's value-label ranges.
    pub instructions: PlaceTable,
    /// The places of references at the points: return addresses, targets of jumps backwards, and
    /// marked instructions.
    pub points: PlaceTable,
    /// What the prologue saves.
    pub saved: Vec<Saved>,
    /// From the prologue's last instruction to the last of the body; epilogues may lie inside.
    pub body: u32,
    /// The epilogues.
    pub epilogues: Vec<Range<u32>>,
}

impl ExactFrame {
    /// Reads the facts of a function that was just compiled.
    pub(super) fn new(
        compiled: &CompiledCode,
        facts: &Function,
        marks: &[Range<u32>],
    ) -> Result<ExactFrame, TooLarge> {
        let instructions = PlaceTable::of_ranges(&compiled.value_labels_ranges)?;
        let mut points = Vec::new();
        let mut slots = Places::default();
        for site in &facts.sites {
            let mut places = instructions.at(site.return_offset);
            for slot in &site.slots {
                let place = Place::BelowCfa(facts.frame_to_fp + 16 - slot);
                places.insert(place)?;
                slots.insert(place)?;
            }
            points.push((site.return_offset, places));
        }
        let edges = compiled.bb_edges.iter();
        let heads = edges.filter(|(from, to)| to <= from).map(|(_, to)| *to);
        for offset in heads.chain(marks.iter().map(|mark| mark.start)) {
            points.push((offset, instructions.at(offset).union(slots)));
        }
        points.sort_by_key(|point| point.0);
        // Where a call returns to another point, the places of both count.
        points.dedup_by(|later, first| {
            let same = later.0 == first.0;
            if same {
                first.1 = first.1.union(later.1);
            }
            same
        });
        let mut body = 0;
        let mut saved = Vec::new();
        for (offset, inst) in &compiled.buffer.unwind_info {
            body = body.max(*offset);
            if let UnwindInst::SaveReg {
                clobber_offset,
                reg,
            } = inst
                && let Some(Place::Register(register)) = Place::of_hardware(reg.hw_enc())
            {
                saved.push(Saved {
                    register,
                    below_cfa: facts.clobber + 16 - clobber_offset,
                    from: *offset,
                });
            }
        }
        let epilogues = compiled.buffer.get_srclocs_sorted().iter();
        Ok(ExactFrame {
            instructions,
            points: PlaceTable::of_rows(points),
            saved,
            body,
            epilogues: epilogues
                .filter(|piece| is_of_a_return(piece.loc))
                .map(|piece| piece.start..piece.end)
                .collect(),
        })
    }

    /// The places that may hold references of the caller at this instruction.
    pub fn of_caller(&self, offset: u32) -> Places {
        let mut places = Places::default();
        let mut add = |place| {
            // Its place was named in the unwind rules, or is a register.
            let _ = places.insert(place);
        };
        let in_body = offset >= self.body && !self.epilogues.iter().any(|e| e.contains(&offset));
        for register in CALLEE_SAVED {
            let saved = self.saved.iter().find(|saved| saved.register == register);
            if let Some(saved) = saved
                && offset >= saved.from
            {
                add(Place::BelowCfa(saved.below_cfa));
            }
            if saved.is_none() || !in_body {
                add(Place::Register(register));
            }
        }
        places
    }
}

/// Gives each reference a value label, so that Cranelift keeps its places.
pub(super) fn label(builder: &mut FunctionBuilder<'_>, references: &[ir::Value]) {
    builder.func.dfg.collect_debug_info();
    for (number, &reference) in references.iter().enumerate() {
        builder.set_val_label(reference, ValueLabel::from_u32(number as u32));
    }
}

/// Labels what Cranelift has added to a finished body: the loads of references from the slots that
/// stack maps name. Also marks the returns.
pub(super) fn label_reloads(func: &mut ir::Function) {
    let insts: Vec<ir::Inst> = func
        .layout
        .blocks()
        .flat_map(|block| func.layout.block_insts(block))
        .collect();
    let mut slots = Vec::new();
    for &inst in &insts {
        let entries = func.dfg.user_stack_map_entries(inst).unwrap_or_default();
        slots.extend(entries.iter().map(|entry| entry.slot));
        if func.dfg.insts[inst].opcode() == Opcode::Return {
            func.set_srcloc(inst, SourceLoc::new(RETURN));
        }
    }
    let mut reloads = Vec::new();
    for &inst in &insts {
        if let InstructionData::Load { arg, .. } = func.dfg.insts[inst]
            && let Some(address) = func.dfg.value_def(arg).inst()
            && let InstructionData::StackAddr { stack_slot, .. } = func.dfg.insts[address]
            && slots.contains(&stack_slot)
        {
            reloads.push(func.dfg.first_result(inst));
        }
    }
    let Some(labels) = func.dfg.values_labels.as_mut() else {
        return;
    };
    let first = labels.len() as u32;
    for (number, value) in (first..).zip(reloads) {
        let start = ValueLabelStart {
            from: Default::default(),
            label: ValueLabel::from_u32(number),
        };
        labels.insert(value, ValueLabelAssignments::Starts(vec![start]));
    }
}

#[cfg(test)]
mod tests {
    use super::super::codegen::{Arena, Code};
    use super::super::loops;
    use super::super::places::{Place, Places};

    fn chase(keeps_places: bool) -> Code {
        let mut arena = Arena::new().unwrap();
        if keeps_places {
            arena.keep_places();
        }
        loops::chase(&mut arena, true).unwrap();
        arena.finish().unwrap().remove(0)
    }

    #[test]
    fn labels_change_no_byte_of_the_code() {
        let (plain, labelled) = (chase(false), chase(true));
        assert_eq!(plain.bytes(), labelled.bytes());
        assert!(plain.exact.is_none());
        let exact = labelled.exact.unwrap();
        assert!(exact.instructions.len() * 10 < plain.bytes().len());
        // One register holds each node in turn, from the load of the first one on.
        let rows: Vec<Places> = exact.instructions.rows().map(|row| row.1).collect();
        assert_eq!(rows.len(), 2);
        assert!(matches!(
            rows[0].iter().collect::<Vec<_>>()[..],
            [Place::Register(_)]
        ));
        assert_eq!(rows[1], Places::default());
        let points: Vec<(u32, Places)> = exact.points.rows().collect();
        assert_eq!(points.len(), 1, "the loop's head");
        assert_eq!(points[0].1, rows[0]);
        // The epilogue has no references, and all registers are its caller's.
        let [epilogue] = &exact.epilogues[..] else {
            panic!("{exact:?}")
        };
        assert_eq!(epilogue.end as usize, plain.bytes().len());
        assert_eq!(exact.of_caller(epilogue.start).iter().count(), 5);
    }
}
