//! The two readers on well-formed input. Malformed input is an error value with a place, never a
//! panic.

use proptest::prelude::*;

use super::cranelift::{Function, Site as Call};
use super::maps::{Layout, Slot};
use super::*;

fn function() -> Function {
    Function {
        address: 0x1000,
        size: 0x80,
        frame_to_fp: 64,
        clobber: 16,
        outgoing: 8,
        sites: vec![
            Call {
                return_offset: 0x20,
                known: true,
                slots: vec![16, 8, 16],
            },
            Call {
                return_offset: 0x30,
                known: true,
                slots: vec![],
            },
            Call {
                return_offset: 0x80,
                known: false,
                slots: vec![],
            },
        ],
    }
}

fn sp(offset: i32) -> FrameWord {
    FrameWord {
        from: BaseRegister::Sp,
        offset,
    }
}

fn plain(offset: i32) -> Slot {
    Slot {
        edge: sp(offset),
        derived: None,
    }
}

#[test]
fn cranelift_calls_become_sites_by_return_address() {
    let mut far = function();
    far.address = 0x500;
    let maps = StackMaps::from_cranelift(&[function(), far]).unwrap();
    assert_eq!(maps.len(), 6);
    let site = maps.site(0x1020).unwrap();
    assert!(site.known);
    assert_eq!(site.slots, [plain(8), plain(16)]);
    assert_eq!(
        site.layout,
        Layout {
            span: Some(64),
            clobber: 16,
            outgoing: Some(8)
        }
    );
    assert!(
        maps.site(0x1030)
            .is_some_and(|s| s.known && s.slots.is_empty())
    );
    assert!(maps.site(0x1080).is_some_and(|s| !s.known));
    assert!(maps.site(0x1021).is_none());
    assert!(maps.site(0x520).is_some());
    assert_eq!(maps.function(0x107f), Some(0x1000));
    assert_eq!(maps.function(0x57f), Some(0x500));
    assert_eq!(maps.function(0x580), None);
    assert_eq!(maps.function(0), None);
    assert_eq!(maps.outside(&(0x500..0x1080)), None);
    assert_eq!(maps.outside(&(0x1000..0x1080)), Some(0x500));
}

#[test]
fn contradictions_in_cranelifts_facts_are_errors() {
    let refused = |change: &dyn Fn(&mut Function)| {
        let mut f = function();
        change(&mut f);
        StackMaps::from_cranelift(&[f]).unwrap_err().kind
    };
    assert_eq!(refused(&|f| f.size = 0), StackMapErrorKind::FunctionSize(0));
    assert_eq!(
        refused(&|f| f.address = usize::MAX),
        StackMapErrorKind::FunctionSize(0x80)
    );
    assert_eq!(
        refused(&|f| f.frame_to_fp = 60),
        StackMapErrorKind::FrameSize(60)
    );
    assert_eq!(
        refused(&|f| f.clobber = 72),
        StackMapErrorKind::FramePart {
            part: 72,
            frame: 64
        }
    );
    assert_eq!(
        refused(&|f| f.outgoing = 72),
        StackMapErrorKind::FramePart {
            part: 72,
            frame: 64
        }
    );
    assert_eq!(
        refused(&|f| f.sites[0].return_offset = 0x81),
        StackMapErrorKind::ReturnOffset {
            offset: 0x81,
            size: 0x80
        }
    );
    assert_eq!(
        refused(&|f| f.sites[0].return_offset = 0),
        StackMapErrorKind::ReturnOffset {
            offset: 0,
            size: 0x80
        }
    );
    assert_eq!(
        refused(&|f| f.sites[1].return_offset = 0x20),
        StackMapErrorKind::Twice {
            return_address: 0x1020
        }
    );
    // Off a word's boundary, among the arguments, among the saved registers, beyond the frame.
    for slot in [12, 0, 48, 64, u32::MAX - 7] {
        assert_eq!(
            refused(&|f| f.sites[0].slots = vec![slot]),
            StackMapErrorKind::Slot {
                offset: slot.into(),
                frame: 64
            }
        );
    }
    let mut near = function();
    near.address += 0x7f;
    assert_eq!(
        StackMaps::from_cranelift(&[near, function()]).unwrap_err(),
        StackMapErrorKind::FunctionOverlap { other: 0x1000 }.at(0x107f)
    );
}

/// Writes tables as LLVM does.
#[derive(Clone, Debug, Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn header(&mut self, functions: &[(u64, u64, u64)], constants: &[u64], records: u32) {
        self.0.extend([3, 0, 0, 0]);
        self.u32(functions.len() as u32);
        self.u32(constants.len() as u32);
        self.u32(records);
        for &(a, s, n) in functions {
            for v in [a, s, n] {
                self.0.extend(v.to_le_bytes());
            }
        }
        for c in constants {
            self.0.extend(c.to_le_bytes());
        }
    }

    fn u32(&mut self, v: u32) {
        self.0.extend(v.to_le_bytes());
    }

    fn u16(&mut self, v: u16) {
        self.0.extend(v.to_le_bytes());
    }

    /// Locations are (kind, size, register, value).
    fn record(&mut self, offset: u32, locations: &[(u8, u16, u16, i32)]) {
        self.0.extend(0xabcd_ef00_u64.to_le_bytes());
        self.u32(offset);
        self.u16(0);
        self.u16(locations.len() as u16);
        for &(kind, size, register, value) in locations {
            self.0.extend([kind, 0]);
            self.u16(size);
            self.u16(register);
            self.u16(0);
            self.u32(value as u32);
        }
        self.align();
        self.u16(0);
        self.u16(0);
        self.align();
    }

    fn align(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
    }

    /// A table of one function at 0x1000 with one statepoint returning to 0x1010.
    fn statepoint(frame: u64, deopt: i32, rest: &[(u8, u16, u16, i32)]) -> Self {
        let mut w = Self::default();
        w.header(&[(0x1000, frame, 1)], &[77], 1);
        let mut locations = vec![(4, 8, 0, 0), (4, 8, 0, 0), (4, 8, 0, deopt)];
        locations.extend(rest);
        w.record(0x10, &locations);
        w
    }

    fn site(&self) -> Result<(bool, Vec<Slot>, Layout), StackMapError> {
        let maps = StackMaps::from_llvm(&self.0)?;
        let site = maps.site(0x1010).unwrap();
        Ok((site.known, site.slots.to_vec(), site.layout))
    }
}

const REGISTER: u8 = 1;
const DIRECT: u8 = 2;
const INDIRECT: u8 = 3;
const CONSTANT: u8 = 4;
const POOLED: u8 = 5;

#[test]
fn llvm_pairs_become_slots() {
    let both = |offset| [(INDIRECT, 8, 7, offset), (INDIRECT, 8, 7, offset)];
    let mut rest = vec![(INDIRECT, 4, 7, 0), (POOLED, 8, 0, 0)];
    rest.extend(both(8));
    rest.extend(both(8));
    rest.extend([(INDIRECT, 8, 7, 8), (INDIRECT, 8, 7, 24)]);
    rest.extend([(CONSTANT, 8, 0, 0), (CONSTANT, 4, 0, 0)]);
    rest.extend([(REGISTER, 8, 3, 0), (REGISTER, 8, 3, 0)]);
    rest.extend([(INDIRECT, 16, 7, 32), (INDIRECT, 16, 7, 32)]);
    rest.extend([(INDIRECT, 8, 6, -16), (INDIRECT, 8, 6, -16)]);
    let (known, slots, layout) = Writer::statepoint(56, 2, &rest).site().unwrap();
    assert!(known);
    assert_eq!(
        slots,
        [
            plain(8),
            Slot {
                edge: sp(8),
                derived: Some(sp(24))
            },
            plain(32),
            plain(40),
            Slot {
                edge: FrameWord {
                    from: BaseRegister::Rbp,
                    offset: -16
                },
                derived: None
            },
        ]
    );
    assert_eq!(
        layout,
        Layout {
            span: Some(56),
            clobber: 0,
            outgoing: Some(8)
        }
    );
}

#[test]
fn llvm_says_when_it_does_not_know() {
    let (known, slots, layout) = Writer::statepoint(24, 0, &[]).site().unwrap();
    assert!(known && slots.is_empty());
    assert_eq!(layout.outgoing, None, "nothing bounds the arguments");
    // Dynamic allocas: the size is -1.
    let pair = [(INDIRECT, 8, 7, 1 << 20), (INDIRECT, 8, 7, 1 << 20)];
    let (known, _, layout) = Writer::statepoint(u64::MAX, 0, &pair).site().unwrap();
    assert!(known && layout.span.is_none());
    // From a base pointer.
    let pair = [(INDIRECT, 8, 3, 8), (INDIRECT, 8, 3, 8)];
    assert!(!Writer::statepoint(24, 0, &pair).site().unwrap().0);
    // Not a statepoint's record.
    let mut w = Writer::default();
    w.header(&[(0x1000, 24, 1)], &[], 1);
    w.record(0x10, &[(INDIRECT, 8, 7, 8)]);
    assert!(!w.site().unwrap().0);
}

/// Allocas in the places of a base, of a derived pointer and of a deopt value. What a map cannot
/// say of an alloca, the walker finds word by word.
#[test]
fn an_alloca_anywhere_in_a_record_of_llvms_makes_it_unknown() {
    let (slot, alloca) = ((INDIRECT, 8, 7, 8), (DIRECT, 8, 7, 8));
    for (deopt, rest) in [
        (0, &[alloca, alloca][..]),
        (0, &[alloca]),
        (0, &[slot, slot, alloca]),
        (0, &[slot, slot, alloca, alloca]),
        (0, &[slot, alloca]),
        (0, &[alloca, slot]),
        (0, &[alloca, (CONSTANT, 8, 0, 0)]),
        (0, &[(POOLED, 8, 0, 0), alloca]),
        (0, &[alloca, (REGISTER, 8, 3, 0)]),
        (1, &[alloca]),
        (1, &[alloca, slot, slot]),
        (2, &[slot, alloca, slot, slot]),
    ] {
        let (known, ..) = Writer::statepoint(24, deopt, rest).site().unwrap();
        assert!(!known, "{deopt} {rest:?}");
    }
}

/// Every kind of location in the places of a base and of a derived pointer. A site has a map only
/// where the base is a slot or a preserved register, or both are constants.
#[test]
fn every_other_pair_of_llvms_locations_is_a_slot_or_unknown() {
    let slot = (INDIRECT, 8, 7, 8);
    let (rbx, rax) = ((REGISTER, 8, 3, 0), (REGISTER, 8, 0, 0));
    let (zero, pooled) = ((CONSTANT, 8, 0, 0), (POOLED, 8, 0, 0));
    let other = (INDIRECT, 8, 3, 8);
    let vector = |words: u16| (INDIRECT, 8 * words, 7, 8);
    let one = [plain(8)];
    for (base, derived, known, slots) in [
        (slot, slot, true, &one[..]),
        (slot, rbx, true, &one),
        (slot, rax, true, &one),
        (slot, zero, true, &one),
        (slot, pooled, true, &one),
        (slot, other, false, &[]),
        (rbx, rbx, true, &[]),
        (rbx, slot, true, &[]),
        (rbx, zero, true, &[]),
        (rax, rax, false, &[]),
        (rax, slot, false, &[]),
        (zero, zero, true, &[]),
        (pooled, zero, true, &[]),
        (zero, slot, false, &[]),
        (pooled, slot, false, &[]),
        (zero, rbx, false, &[]),
        (other, other, false, &[]),
        (other, slot, false, &[]),
        (vector(2), vector(2), true, &[plain(8), plain(16)]),
        (vector(9), vector(9), false, &[]),
        (vector(8191), vector(8191), false, &[]),
    ] {
        let found = Writer::statepoint(1 << 17, 0, &[base, derived]).site();
        let (found, places, _) = found.unwrap();
        assert_eq!((found, &*places), (known, slots), "{base:?} {derived:?}");
    }
    // The number of deopt values is no constant of the pool, or the place where pairs begin has no
    // map.
    let mut w = Writer::default();
    w.header(&[(0x1000, 24, 1)], &[1], 1);
    w.record(0x10, &[zero, zero, pooled, slot, slot, slot]);
    assert!(!w.site().unwrap().0);
}

#[test]
fn concatenated_llvm_tables_are_all_read() {
    let mut w = Writer::statepoint(24, 0, &[]);
    let mut more = Writer::default();
    more.header(&[(0x2000, 8, 0), (0x3000, 8, 1)], &[], 1);
    more.record(4, &[]);
    w.0.extend(more.0);
    let maps = StackMaps::from_llvm(&w.0).unwrap();
    assert_eq!(maps.len(), 2);
    assert!(maps.site(0x1010).is_some() && maps.site(0x3004).is_some());
    assert_eq!(maps.outside(&(0x1000..0x3000)), Some(0x3000));
    w.0.extend([0; 8]);
    assert!(StackMaps::from_llvm(&w.0).is_ok(), "alignment at the end");
    assert!(StackMaps::from_llvm(&[]).is_ok_and(|m| m.is_empty()));
}

#[test]
fn malformed_llvm_tables_are_errors_with_a_place() {
    let good = Writer::statepoint(24, 0, &[(INDIRECT, 8, 7, 8), (INDIRECT, 8, 7, 8)]);
    let with = |at: usize, byte: u8| {
        let mut w = good.clone();
        w.0[at] = byte;
        w.site().unwrap_err()
    };
    assert_eq!(with(0, 2), StackMapErrorKind::Version(2).at(0));
    assert_eq!(
        with(12, 2),
        StackMapErrorKind::Counts {
            functions: 1,
            header: 2
        }
        .at(12)
    );
    assert!(
        matches!(with(7, 0xff).kind, StackMapErrorKind::Truncated { .. }),
        "functions"
    );
    assert!(
        matches!(with(11, 0xff).kind, StackMapErrorKind::Truncated { .. }),
        "constants"
    );
    assert_eq!(with(17, 0), StackMapErrorKind::NotRelocated.at(16));
    assert_eq!(with(24, 25), StackMapErrorKind::FrameSize(25).at(24));
    assert_eq!(
        with(31, 1),
        StackMapErrorKind::FrameSize(24 | 1 << 56).at(24)
    );
    let locations = 16 + 24 + 8 + 16;
    assert_eq!(
        with(locations, 9),
        StackMapErrorKind::LocationKind(9).at(locations)
    );
    assert_eq!(
        with(locations, 0),
        StackMapErrorKind::LocationKind(0).at(locations)
    );
    let deopt = locations + 24;
    assert_eq!(with(deopt + 8, 3), StackMapErrorKind::Deopt(3).at(deopt));
    assert_eq!(
        with(deopt + 8, 1),
        StackMapErrorKind::Unpaired(1).at(deopt + 24)
    );
    for cut in 1..good.0.len() {
        let error = StackMaps::from_llvm(&good.0[..cut]).unwrap_err();
        assert!(
            matches!(error.kind, StackMapErrorKind::Truncated { .. }),
            "{cut}: {error}"
        );
        assert!(error.at <= cut);
    }

    let refused = |frame, pair: [(u8, u16, u16, i32); 2]| {
        Writer::statepoint(frame, 0, &pair).site().unwrap_err().kind
    };
    let both = |l| [l, l];
    assert_eq!(
        refused(24, both((INDIRECT, 4, 7, 8))),
        StackMapErrorKind::SlotSize(4)
    );
    assert_eq!(
        refused(24, both((INDIRECT, 0, 7, 8))),
        StackMapErrorKind::SlotSize(0)
    );
    assert_eq!(
        refused(24, [(INDIRECT, 8, 7, 8), (INDIRECT, 16, 7, 8)]),
        StackMapErrorKind::PairSizes {
            base: 8,
            derived: 16
        }
    );
    for (frame, register, offset) in [
        (24, 7, 24 + (1 << 16)),
        (24, 7, -8),
        (24, 7, 12),
        (24, 6, 0),
        (24, 6, -32 - (1 << 16)),
        (0, 7, i32::MAX - 7),
    ] {
        assert_eq!(
            refused(frame, both((INDIRECT, 8, register, offset))),
            StackMapErrorKind::Slot {
                offset: offset.into(),
                frame: frame as u32 + (1 << 16)
            },
            "{frame} {register} {offset}"
        );
    }
    // The slot lies above the frame's size; arguments may have been pushed below it.
    assert!(
        Writer::statepoint(24, 0, &both((INDIRECT, 8, 7, 32)))
            .site()
            .unwrap()
            .0
    );
    assert_eq!(
        refused(24, [(INDIRECT, 8, 7, 8), (POOLED, 8, 0, 1)]),
        StackMapErrorKind::Constant { index: 1, pool: 1 }
    );
    assert_eq!(
        refused(24, [(INDIRECT, 8, 7, 8), (POOLED, 8, 0, -1)]),
        StackMapErrorKind::Constant { index: -1, pool: 1 }
    );
    let mut twice = good.clone();
    twice.0.extend(&good.0);
    assert_eq!(
        twice.site().unwrap_err().kind,
        StackMapErrorKind::Twice {
            return_address: 0x1010
        }
    );
    let mut beyond = Writer::default();
    beyond.header(&[(u64::MAX, 24, 1)], &[], 1);
    beyond.record(1, &[]);
    assert_eq!(beyond.site().unwrap_err().kind, StackMapErrorKind::Address);
}

#[test]
fn errors_say_what_would_be_right() {
    let error = StackMaps::from_llvm(&[2; 16]).unwrap_err().to_string();
    assert_eq!(
        error,
        "malformed stack map at 0x0: version 2; only version 3 is understood (LLVM 4 or later)"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Arbitrary bytes give an answer or an error, never a panic, and the answer's slots lie inside
    /// the frames.
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        crate::fuzz::llvm(&bytes);
        let mut versioned = vec![3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        versioned.extend(&bytes);
        crate::fuzz::llvm(&versioned);
    }

    /// A well-formed table with a few bytes changed.
    #[test]
    fn damaged_tables_are_read_without_a_panic(
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..5),
        locations in proptest::collection::vec((1u8..6, prop_oneof![Just(8u16), Just(16), 0u16..20], 3u16..9, -4i32..8), 0..6),
        deopt in 0i32..4,
    ) {
        let locations: Vec<_> = locations.into_iter().map(|(k, s, r, v)| (k, s, r, v * 8)).collect();
        let mut w = Writer::statepoint(64, deopt, &locations);
        crate::fuzz::llvm(&w.0);
        for (at, byte) in damage {
            let at = at.index(w.0.len());
            w.0[at] = byte;
        }
        crate::fuzz::llvm(&w.0);
    }
}
