//! Stack maps in LLVM's format, version 3: the section `.llvm_stackmaps` in the memory of a loaded
//! module.
//!
//! The input is untrusted. A cursor checks every read against the section's end. Each count is
//! compared with the number of bytes that are left before memory is allocated for it. A
//! contradiction is an error that says what and where. Time and memory are linear in the section's
//! length: a location makes eight slots at most.
//!
//! # Records
//!
//! A `gc.statepoint` leaves a record at its return address: three constants (calling convention,
//! flags, number of deopt values), the deopt values, then pairs of locations, a base and a pointer
//! derived from it, equal for a plain reference, then the addresses of allocas. A base lies
//!
//! - **Indirect**, at an offset from RSP: a slot (with a frame pointer and dynamic allocas, from
//!   RBP). This is the normal case. A vector of references is one location of several words.
//! - **in a register** across the call (only with `-fixup-allow-gcptr-in-csr`): a register that
//!   callees preserve. The reference is in that register, or in the saved registers of a frame
//!   further in. Both are scanned conservatively, so the pair makes no slot.
//! - **as a constant** with a constant derived from it, mostly null: no slot. The embedder keeps
//!   the target of a constant alive.
//! - elsewhere, or in more than eight words, which no register has: the frame is scanned
//!   conservatively.
//!
//! **Direct** is the address of an alloca. The record does not give its size, or which of its words
//! are references, so the frame of such a record is scanned conservatively. (Two such locations
//! side by side look like a pair.)
//!
//! Other deopt values are no references of the collector: a live reference among them also appears
//! in a pair. A record without the shape of a statepoint (`llvm.experimental.stackmap` and
//! `patchpoint` make such records) gives no references: its frame is scanned conservatively.
//!
//! # What a record lacks
//!
//! - The distance from SP to the return address: a function's stack size does not include what it
//!   pushes for one call (LLVM 19 pushes arguments from the seventh on), so a slot may lie above
//!   it. The walker uses the unwind tables, which include it. A slot outside of the frame that they
//!   give makes the frame conservative.
//! - The area of outgoing arguments: it lies below every slot of the record, so it is scanned up to
//!   the lowest slot.
//! - The registers that the frame saved for its caller: the walker takes them from the unwind
//!   tables.
//!
//! A linker concatenates the tables of several objects; all of them are read.

use crate::context::PRESERVED;

use super::maps::{BaseRegister, FrameWord, Layout, Sites, Slot, StackMaps};
use crate::table_error::{StackMapError, StackMapErrorKind};

const DWARF_RSP: u16 = 7;
const DWARF_RBP: u16 = 6;
/// A larger frame is an error.
const MAX_FRAME: u64 = 1 << 30;
/// More pushed arguments are an error.
const MAX_ARGUMENTS: u32 = 1 << 16;
/// Words of one location that become slots: the largest vector register has eight. Without this
/// bound the 12 bytes of a location could claim 8,191 words.
const MAX_WORDS: u16 = 8;
/// Bytes of the smallest table, a header alone.
const HEADER: usize = 16;

/// A position in the section; every read is checked against its end.
struct Cursor<'a> {
    section: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn left(&self) -> usize {
        self.section.len() - self.at
    }

    /// Fails unless `count` things of `size` bytes are left.
    fn expect(&self, count: u64, size: u64) -> Result<(), StackMapError> {
        let wanted = count.saturating_mul(size);
        if wanted > self.left() as u64 {
            let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
            return Err(StackMapErrorKind::Truncated {
                wanted,
                left: self.left(),
            }
            .at(self.at));
        }
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], StackMapError> {
        match self.section[self.at..].first_chunk::<N>() {
            Some(bytes) => {
                self.at += N;
                Ok(*bytes)
            }
            None => Err(StackMapErrorKind::Truncated {
                wanted: N,
                left: self.left(),
            }
            .at(self.at)),
        }
    }

    fn u8(&mut self) -> Result<u8, StackMapError> {
        Ok(u8::from_le_bytes(self.take()?))
    }

    fn u16(&mut self) -> Result<u16, StackMapError> {
        Ok(u16::from_le_bytes(self.take()?))
    }

    fn u32(&mut self) -> Result<u32, StackMapError> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn i32(&mut self) -> Result<i32, StackMapError> {
        Ok(i32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, StackMapError> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    /// Skips the padding up to a multiple of eight. The section itself is aligned to eight.
    fn align(&mut self) -> Result<(), StackMapError> {
        let padding = self.at.next_multiple_of(8) - self.at;
        self.expect(1, padding as u64)?;
        self.at += padding;
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Where {
    Register,
    Direct,
    Indirect,
    Constant,
    /// A constant in the pool, which is not looked up.
    Pooled,
}

#[derive(Clone, Copy)]
struct Location {
    at: usize,
    kind: Where,
    size: u16,
    register: u16,
    /// Offset, small constant, or index into the pool.
    value: i32,
}

struct Function {
    address: usize,
    /// Bytes from SP to the return address but for pushed arguments; `None` with dynamic allocas.
    frame: Option<u32>,
    records: u64,
}

impl StackMaps {
    /// The table in a `.llvm_stackmaps` section in memory, after relocation; see
    /// [`llvm`](crate::stackmap::llvm).
    ///
    /// Reading takes time and memory linear in the section's length.
    ///
    /// # Errors
    /// The section is malformed: the error says how and where.
    pub fn from_llvm(section: &[u8]) -> Result<Self, StackMapError> {
        parse(section)
    }
}

fn parse(section: &[u8]) -> Result<StackMaps, StackMapError> {
    let mut cursor = Cursor { section, at: 0 };
    let mut sites = Sites::default();
    let mut entries = Vec::new();
    while cursor.left() > 0 {
        // Zeros after the last table that are too short for another table are alignment.
        if cursor.left() < HEADER && section[cursor.at..].iter().all(|&b| b == 0) && cursor.at > 0 {
            break;
        }
        table(&mut cursor, &mut sites, &mut entries)?;
    }
    sites.finish(Vec::new(), entries)
}

fn table(
    cursor: &mut Cursor<'_>,
    sites: &mut Sites,
    entries: &mut Vec<usize>,
) -> Result<(), StackMapError> {
    let start = cursor.at;
    cursor.expect(1, HEADER as u64)?;
    let version = cursor.u8()?;
    if version != 3 {
        return Err(StackMapErrorKind::Version(version).at(start));
    }
    cursor.u8()?;
    cursor.u16()?;
    let function_count = cursor.u32()?;
    let constants = cursor.u32()?;
    let record_count = cursor.u32()?;

    cursor.expect(function_count.into(), 24)?;
    let mut functions = Vec::with_capacity(function_count as usize);
    let mut sum = 0u64;
    for _ in 0..function_count {
        let at = cursor.at;
        let address = cursor.u64()? as usize;
        let size = cursor.u64()?;
        let records = cursor.u64()?;
        if address == 0 {
            return Err(StackMapErrorKind::NotRelocated.at(at));
        }
        let frame = match size {
            u64::MAX => None,
            _ if size > MAX_FRAME || !size.is_multiple_of(8) => {
                return Err(StackMapErrorKind::FrameSize(size).at(at + 8));
            }
            _ => Some(size as u32),
        };
        sum = sum.saturating_add(records);
        entries.push(address);
        functions.push(Function {
            address,
            frame,
            records,
        });
    }
    if sum != u64::from(record_count) {
        return Err(StackMapErrorKind::Counts {
            functions: sum,
            header: record_count,
        }
        .at(start + 12));
    }
    cursor.expect(constants.into(), 8)?;
    cursor.at += 8 * constants as usize;
    // A record without locations and live-outs takes 24 bytes.
    cursor.expect(record_count.into(), 24)?;
    for function in &functions {
        for _ in 0..function.records {
            record(cursor, function, constants, sites)?;
        }
    }
    Ok(())
}

fn record(
    cursor: &mut Cursor<'_>,
    function: &Function,
    constants: u32,
    sites: &mut Sites,
) -> Result<(), StackMapError> {
    let at = cursor.at;
    cursor.u64()?; // the statepoint's id, which means nothing here
    let offset = cursor.u32()?;
    cursor.u16()?;
    let count = cursor.u16()?;
    cursor.expect(count.into(), 12)?;
    let mut locations = Vec::with_capacity(count.into());
    for _ in 0..count {
        locations.push(location(cursor, constants)?);
    }
    cursor.align()?;
    cursor.u16()?;
    let live_outs = cursor.u16()?;
    cursor.expect(live_outs.into(), 4)?;
    cursor.at += 4 * usize::from(live_outs);
    cursor.align()?;

    let Some(return_address) = function.address.checked_add(offset as usize) else {
        return Err(StackMapErrorKind::Address.at(at + 8));
    };
    let mut slots = Vec::new();
    let known = references(&locations, function.frame, &mut slots)?;
    // The arguments of the call lie below every slot. Without a slot from RSP nothing bounds them.
    let places = slots
        .iter()
        .flat_map(|s: &Slot| [Some(s.edge), s.derived])
        .flatten();
    let lowest = places
        .filter(|p| p.from == BaseRegister::Sp)
        .map(|p| p.offset as u32)
        .min();
    let layout = Layout {
        span: function.frame,
        clobber: 0,
        outgoing: lowest,
    };
    sites.push(return_address, at, known, layout, slots)
}

fn location(cursor: &mut Cursor<'_>, constants: u32) -> Result<Location, StackMapError> {
    let at = cursor.at;
    let kind = cursor.u8()?;
    cursor.u8()?;
    let size = cursor.u16()?;
    let register = cursor.u16()?;
    cursor.u16()?;
    let value = cursor.i32()?;
    let kind = match kind {
        1 => Where::Register,
        2 => Where::Direct,
        3 => Where::Indirect,
        4 => Where::Constant,
        5 => {
            if u32::try_from(value).is_ok_and(|index| index < constants) {
                Where::Pooled
            } else {
                return Err(StackMapErrorKind::Constant {
                    index: value,
                    pool: constants,
                }
                .at(at));
            }
        }
        other => return Err(StackMapErrorKind::LocationKind(other).at(at)),
    };
    Ok(Location {
        at,
        kind,
        size,
        register,
        value,
    })
}

/// Collects the slots of a record. False: the record does not give all references.
fn references(
    locations: &[Location],
    frame: Option<u32>,
    slots: &mut Vec<Slot>,
) -> Result<bool, StackMapError> {
    let [a, b, deopt, rest @ ..] = locations else {
        return Ok(false);
    };
    let constant = |l: &Location| matches!(l.kind, Where::Constant | Where::Pooled);
    if !(constant(a) && constant(b) && matches!(deopt.kind, Where::Constant)) {
        return Ok(false);
    }
    let Some(pairs) = usize::try_from(deopt.value)
        .ok()
        .and_then(|n| rest.get(n..))
    else {
        return Err(StackMapErrorKind::Deopt(deopt.value as u32 as u64).at(deopt.at));
    };
    let direct = |l: &Location| matches!(l.kind, Where::Direct);
    if rest.iter().any(direct) && seam::knows_allocas() {
        return Ok(false);
    }
    if !pairs.len().is_multiple_of(2) {
        return Err(StackMapErrorKind::Unpaired(pairs.len()).at(pairs[0].at));
    }
    let mut known = true;
    for pair in pairs.chunks_exact(2) {
        let (base, derived) = (&pair[0], &pair[1]);
        // A constant has no words, so sizes need not agree.
        if base.size != derived.size && !constant(base) && !constant(derived) {
            let sizes = StackMapErrorKind::PairSizes {
                base: base.size,
                derived: derived.size,
            };
            return Err(sizes.at(base.at));
        }
        let edges = match base.kind {
            Where::Indirect => words(base, frame)?,
            // No slot: see the head of this file.
            Where::Register if PRESERVED.contains(&base.register.into()) => continue,
            Where::Constant | Where::Pooled if constant(derived) => continue,
            _ => None,
        };
        let Some(edges) = edges else {
            known = false;
            continue;
        };
        let derived = match derived.kind {
            Where::Indirect => match words(derived, frame)? {
                None => {
                    known = false;
                    continue;
                }
                some => some,
            },
            _ => None,
        };
        let mut derived = derived.into_iter().flatten();
        slots.extend(edges.map(|edge| Slot {
            edge,
            derived: derived.next().filter(|d| *d != edge),
        }));
    }
    Ok(known)
}

/// The words of an indirect location. `None`: they count from a register that the walker does not
/// know, or are too many.
fn words(
    location: &Location,
    frame: Option<u32>,
) -> Result<Option<impl Iterator<Item = FrameWord> + use<>>, StackMapError> {
    let size = location.size;
    if size == 0 || !size.is_multiple_of(8) {
        return Err(StackMapErrorKind::SlotSize(size).at(location.at));
    }
    let limit = frame.unwrap_or(MAX_FRAME as u32) + MAX_ARGUMENTS;
    let (low, high) = match location.register {
        DWARF_RSP => (0, i64::from(limit)),
        // RBP was pushed right below the return address; slots lie below it. (With frames of
        // unknown size only a large bound can be told.)
        DWARF_RBP => (-i64::from(limit), 0),
        _ => return Ok(None),
    };
    let from = if location.register == DWARF_RSP {
        BaseRegister::Sp
    } else {
        BaseRegister::Rbp
    };
    if size / 8 > seam::max_words() {
        return Ok(None);
    }
    let offset = i64::from(location.value);
    if offset % 8 != 0 || offset < low || offset + i64::from(size) > high {
        return Err(StackMapErrorKind::Slot {
            offset,
            frame: limit,
        }
        .at(location.at));
    }
    Ok(Some((0..i32::from(size / 8)).map(move |i| FrameWord {
        from,
        offset: offset as i32 + 8 * i,
    })))
}

/// What tests may break here.
mod seam {
    use super::MAX_WORDS;
    use crate::faults::Fault;

    pub(super) fn knows_allocas() -> bool {
        !Fault::AllocasAsPairs.planted()
    }

    pub(super) fn max_words() -> u16 {
        if Fault::UnboundedLocations.planted() {
            u16::MAX
        } else {
            MAX_WORDS
        }
    }
}
