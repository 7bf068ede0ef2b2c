//! Tables of the places that hold references in a compiled function: registers and stack words, at
//! every instruction or at chosen ones.
//!
//! The source is Cranelift's value-label ranges: each reference of a kernel has a label, and
//! Cranelift says from which code offset to which one the label's value is in a register or in a
//! word below the CFA. The register allocator knows these ranges; nothing that runs needs them, so
//! nothing shows where they are wrong. `lab/talk/oracle.rs` does.
//!
//! A table is a byte string, because its size is what a map at every instruction costs:
//!
//! ```text
//! row    = offset less the row before's, in LEB128; toggles
//! toggle = the number of a place whose state changes, below 127; bit 7 is set in the row's last
//! ```
//!
//! A row without a change has the toggle 127. Places 0 to 15 are the registers in DWARF's order,
//! and place `16 + i` is the word `8 * (i + 1)` bytes below the CFA. Reading allocates nothing, so
//! a stopped world may read.

use std::fmt;

use cranelift_codegen::{LabelValueLoc, ValueLabelsRanges};

/// General registers, which are the first places.
const REGISTERS: u32 = 16;
/// The toggle of a row without a change. No place has this number.
const NO_CHANGE: u8 = 127;
/// Marks the last toggle of a row.
const LAST: u8 = 0x80;

/// The DWARF numbers of the general registers, by their numbers in machine code.
const DWARF: [u32; 16] = [0, 2, 1, 3, 7, 6, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15];

/// One place that may hold a reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The general register of this DWARF number.
    Register(u32),
    /// The word that begins so many bytes below the CFA.
    BelowCfa(u32),
}

impl Place {
    /// The register with this number in machine code.
    pub fn of_hardware(number: u8) -> Option<Place> {
        DWARF.get(usize::from(number)).copied().map(Place::Register)
    }

    /// The place's number. `None`: no table can name the place.
    fn number(self) -> Option<u32> {
        match self {
            Place::Register(number) => (number < REGISTERS).then_some(number),
            Place::BelowCfa(bytes) => {
                let word = (bytes / 8).checked_sub(1)?;
                let number = REGISTERS.checked_add(word)?;
                (bytes % 8 == 0 && number < u32::from(NO_CHANGE)).then_some(number)
            }
        }
    }

    fn of_number(number: u32) -> Place {
        match number.checked_sub(REGISTERS) {
            None => Place::Register(number),
            Some(word) => Place::BelowCfa(8 * (word + 1)),
        }
    }
}

/// A set of places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places(u128);

impl Places {
    /// Adds a place.
    ///
    /// # Errors
    /// The frame is too large: no table can name the place.
    pub fn insert(&mut self, place: Place) -> Result<(), TooLarge> {
        let number = place.number().ok_or(TooLarge(place))?;
        self.0 |= 1 << number;
        Ok(())
    }

    /// Removes a place.
    pub fn remove(&mut self, place: Place) {
        if let Some(number) = place.number() {
            self.0 &= !(1 << number);
        }
    }

    /// Whether the place is in the set.
    pub fn contains(self, place: Place) -> bool {
        place
            .number()
            .is_some_and(|number| self.0 & 1 << number != 0)
    }

    /// The places of both sets.
    pub fn union(self, other: Places) -> Places {
        Places(self.0 | other.0)
    }

    /// The places, registers first.
    pub fn iter(self) -> impl Iterator<Item = Place> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let number = (left != 0).then(|| left.trailing_zeros())?;
            left &= left - 1;
            Some(Place::of_number(number))
        })
    }
}

/// A place that is too far from the CFA for a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge(pub Place);

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a table of places cannot name {:?}", self.0)
    }
}

impl std::error::Error for TooLarge {}

/// The places of a function's references by code offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlaceTable {
    bytes: Vec<u8>,
}

impl PlaceTable {
    /// A table of rows that ascend by their offsets.
    pub fn of_rows(rows: impl IntoIterator<Item = (u32, Places)>) -> PlaceTable {
        let mut bytes = Vec::new();
        let mut before = (0, Places::default());
        for row in rows {
            let mut delta = row.0 - before.0;
            while delta >= 0x80 {
                bytes.push(delta as u8 | 0x80);
                delta >>= 7;
            }
            bytes.push(delta as u8);
            let changed = Places(row.1.0 ^ before.1.0);
            let first = bytes.len();
            bytes.extend(changed.iter().filter_map(Place::number).map(|n| n as u8));
            if bytes.len() == first {
                bytes.push(NO_CHANGE);
            }
            *bytes.last_mut().expect("a toggle was pushed") |= LAST;
            before = row;
        }
        PlaceTable { bytes }
    }

    /// A table with a row wherever a place begins or ceases to hold a labelled value.
    ///
    /// # Errors
    /// The frame is too large for a table.
    pub fn of_ranges(ranges: &ValueLabelsRanges) -> Result<PlaceTable, TooLarge> {
        let mut held = Vec::new();
        for range in ranges.values().flatten() {
            let place = match range.loc {
                LabelValueLoc::Reg(register) => register
                    .to_real_reg()
                    .and_then(|register| Place::of_hardware(register.hw_enc())),
                LabelValueLoc::CFAOffset(offset) => {
                    u32::try_from(-offset).ok().map(Place::BelowCfa)
                }
            };
            // A label of a value in no general register and above the CFA would be an argument of
            // the caller, which the caller's frame has.
            let Some(place) = place else { continue };
            held.push((range.start..range.end, place));
        }
        let mut offsets: Vec<u32> = held.iter().flat_map(|(r, _)| [r.start, r.end]).collect();
        offsets.sort_unstable();
        offsets.dedup();
        let mut rows = Vec::with_capacity(offsets.len());
        let mut before = Places::default();
        for offset in offsets {
            let mut places = Places::default();
            for (_, place) in held.iter().filter(|(range, _)| range.contains(&offset)) {
                places.insert(*place)?;
            }
            if places != before {
                rows.push((offset, places));
                before = places;
            }
        }
        Ok(PlaceTable::of_rows(rows))
    }

    /// Bytes of the table.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the table names no place.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The rows: where each begins, and its places.
    pub fn rows(&self) -> impl Iterator<Item = (u32, Places)> + '_ {
        let mut bytes = self.bytes.iter().copied();
        let mut row = (0, Places::default());
        std::iter::from_fn(move || {
            let mut shift = 0;
            loop {
                let byte = bytes.next()?;
                row.0 += u32::from(byte & 0x7f) << shift;
                shift += 7;
                if byte < 0x80 {
                    break;
                }
            }
            loop {
                let toggle = bytes.next()?;
                if toggle & !LAST != NO_CHANGE {
                    row.1.0 ^= 1 << (toggle & !LAST);
                }
                if toggle & LAST != 0 {
                    return Some(row);
                }
            }
        })
    }

    /// The places at this instruction by the last row that begins at or before it.
    pub fn at(&self, offset: u32) -> Places {
        let rows = self.rows().take_while(|row| row.0 <= offset);
        rows.last().map(|row| row.1).unwrap_or_default()
    }

    /// The places of the row that begins exactly at this instruction.
    pub fn exactly_at(&self, offset: u32) -> Option<Places> {
        let mut rows = self.rows().skip_while(|row| row.0 < offset);
        rows.next().filter(|row| row.0 == offset).map(|row| row.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(all: &[Place]) -> Places {
        let mut places = Places::default();
        for &place in all {
            places.insert(place).unwrap();
        }
        places
    }

    #[test]
    fn a_table_gives_back_its_rows() {
        let [a, b, c] = [
            Place::Register(5),
            Place::BelowCfa(24),
            Place::BelowCfa(888),
        ];
        let rows = [
            (0, places(&[a])),
            (3, places(&[a, b])),
            (3 + 0x90, places(&[a, b])),
            (0x1_0000, places(&[b, c])),
            (0x1_0001, places(&[])),
        ];
        let table = PlaceTable::of_rows(rows);
        assert!(table.rows().eq(rows));
        assert_eq!(table.at(2), rows[0].1);
        assert_eq!(table.at(0xffff), rows[2].1);
        assert_eq!(table.at(0x1_0000), rows[3].1);
        assert_eq!(table.exactly_at(0x93), Some(rows[2].1));
        assert_eq!(table.exactly_at(0x94), None);
        assert_eq!(PlaceTable::default().at(7), Places::default());
        assert!(rows[3].1.iter().eq([b, c]));
    }

    #[test]
    fn a_place_far_below_the_cfa_is_refused() {
        let far = Place::BelowCfa(896);
        assert_eq!(Places::default().insert(far), Err(TooLarge(far)));
        let odd = Place::BelowCfa(12);
        assert_eq!(Places::default().insert(odd), Err(TooLarge(odd)));
    }
}
