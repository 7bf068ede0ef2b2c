//! Rules read from the tables of this process's own modules, and the errors of malformed tables.

use proptest::prelude::*;

use super::expression::evaluate;
use super::modules::{look_up, module, stays};
use super::*;
use crate::context::{RBP, RSP};
use crate::table_error::{MAX_CIE, StackMapErrorKind};

fn at(register: usize, offset: i32, loaded: Option<i32>) -> Option<Value> {
    Some(Value {
        register: register as u8,
        offset,
        loaded,
    })
}

#[test]
fn the_plts_expression_depends_on_the_pc() {
    // breg7+8 breg16+0 lit15 and lit11 ge lit3 shl plus
    let plt = [0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22];
    assert_eq!(evaluate(&plt, 0x1000, None), at(RSP, 8, None));
    assert_eq!(evaluate(&plt, 0x100a, None), at(RSP, 8, None));
    assert_eq!(evaluate(&plt, 0x100b, None), at(RSP, 16, None));
}

#[test]
fn a_cfa_in_memory_is_loaded_once() {
    // breg6-8 deref
    assert_eq!(evaluate(&[0x76, 0x78, 0x06], 0, None), at(RBP, -8, Some(0)));
    // ... plus_uconst 16
    assert_eq!(
        evaluate(&[0x76, 0x78, 0x06, 0x23, 16], 0, None),
        at(RBP, -8, Some(16))
    );
    assert_eq!(evaluate(&[0x76, 0x78, 0x06, 0x06], 0, None), None);
    assert_eq!(evaluate(&[0x23, 8], 0, at(RSP, 8, None)), at(RSP, 16, None));
}

#[test]
fn what_cannot_be_expressed_is_no_rule() {
    for code in [
        &[][..],
        &[0x31],
        &[0x22],
        &[0x76],
        &[0x76, 0x80],
        &[0x06],
        &[0x76, 0, 0x77, 0, 0x22],
        &[0x90, 0x40, 0],
        &[0x31, 0x31, 0x31, 0x31, 0x31, 0x31, 0x31, 0x31, 0x31],
        &[0xff],
    ] {
        assert_eq!(evaluate(code, 0, None), None, "{code:?}");
    }
}

#[test]
fn modules_are_found_also_the_vdso_and_nothing_else() {
    setup();
    setup();
    let own = setup as fn() as usize;
    // SAFETY: only reads.
    let vdso = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) } as usize;
    for address in [own, vdso, libc::qsort as *const () as usize] {
        let module = module(address).expect("a module");
        assert!(module.segment(module.eh_frame_hdr).is_some());
        assert!(stays(address));
    }
    let stack = 0;
    assert!(module(&raw const stack as usize).is_none());
    assert!(module(0).is_none() && module(usize::MAX).is_none());
    assert!(look_up(0x1000).is_none());
}

#[test]
fn every_function_of_the_vdso_has_a_rule() {
    setup();
    // SAFETY: only reads.
    let vdso = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) } as usize;
    let module = module(vdso).unwrap();
    let section = module.segment(module.eh_frame_hdr).unwrap();
    let count = u32::from_le_bytes(*section[8..].first_chunk().unwrap()) as usize;
    assert!(count > 0);
    for entry in section[12..].chunks_exact(8).take(count) {
        let offset = i32::from_le_bytes(*entry.first_chunk().unwrap());
        let function = module.eh_frame_hdr.wrapping_add_signed(offset as isize);
        let rule = look_up(function).expect("a rule").rule;
        // At the first instruction of a function nothing has been pushed yet.
        assert_eq!(Some(rule.cfa), at(RSP, 8, None));
        assert_eq!(rule.back, Back::Address);
    }
}

#[test]
fn the_first_instruction_of_functions_has_the_plain_rule() {
    setup();
    for function in [setup as fn() as usize, libc::qsort as *const () as usize] {
        let rule = look_up(function).expect("a rule").rule;
        assert_eq!(Some(rule.cfa), at(RSP, 8, None));
        assert_eq!((rule.back, rule.saves), (Back::Address, 8));
        assert_eq!(rule.saved, [Saved::Same; 6]);
    }
}

/// A copy of the vDSO's tables, as a JIT compiler would register tables of its own.
fn vdso_tables() -> (Vec<u8>, usize) {
    // SAFETY: only reads.
    let vdso = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) } as usize;
    setup();
    let module = module(vdso).unwrap();
    let section = module.segment(module.eh_frame_hdr).unwrap();
    let function = module
        .eh_frame_hdr
        .wrapping_add_signed(i32::from_le_bytes(*section[12..].first_chunk().unwrap()) as isize);
    let (_, eh_frame) = module.entry(function).unwrap();
    (module.segment(eh_frame).unwrap().to_vec(), eh_frame)
}

#[test]
fn tables_of_generated_code_say_what_the_loaders_say() {
    let (section, address) = vdso_tables();
    let table = Table::parse(&section, address).unwrap();
    assert!(!table.entries.is_empty());
    let mut compared = 0;
    for (range, _) in &table.entries {
        for pc in range.clone() {
            assert_eq!(table.look_up(pc), look_up(pc), "{pc:#x}");
            compared += usize::from(table.look_up(pc).is_some());
        }
        assert_ne!(table.look_up(range.start), None);
    }
    assert!(compared > 100);
    assert_eq!(table.look_up(0), None);
    assert_eq!(table.look_up(usize::MAX), None);
}

/// A section of one CIE with these instructions, and an FDE with those for each function of 16
/// bytes from 0x1000 on.
fn section(column: u8, shared: &[u8], functions: &[&[u8]]) -> Vec<u8> {
    let mut section = Vec::new();
    let mut entry = |id: u32, rest: &[&[u8]]| {
        let mut body = id.to_le_bytes().to_vec();
        body.extend(rest.concat());
        body.resize((body.len() + 4).next_multiple_of(8) - 4, 0);
        section.extend((body.len() as u32).to_le_bytes());
        section.extend(body);
        section.len() as u32
    };
    // Version 1, addresses of eight bytes each, factors 1 and -8.
    let head = [1, b'z', b'R', 0, 1, 0x78, column, 1, 0x04];
    let mut next = entry(0, &[&head, shared]);
    for (at, instructions) in functions.iter().enumerate() {
        let start = 0x1000 + 16 * at as u64;
        let extent = [start.to_le_bytes(), 16u64.to_le_bytes()].concat();
        next = entry(next + 4, &[&extent, &[0], instructions]);
    }
    section
}

/// `rsp + 8` is the CFA.
const PLAIN: [u8; 3] = [0x0c, 7, 8];
/// The return address lies in the word below the CFA.
const PUSHED: [u8; 2] = [0x90, 1];

#[test]
fn only_an_undefined_return_address_ends_a_walk() {
    let back = |column, shared: &[u8], instructions: &[u8]| {
        let section = section(column, shared, &[instructions]);
        let table = Table::parse(&section, 0x10_0000).unwrap();
        table.look_up(0x1000).map(|row| row.rule.back)
    };
    let plain = [&PLAIN[..], &PUSHED].concat();
    assert_eq!(back(16, &plain, &[]), Some(Back::Address));
    assert_eq!(back(16, &plain, &[0x07, 16]), Some(Back::Outermost));
    assert_eq!(back(16, &PLAIN, &[0x07, 16]), Some(Back::Outermost));
    for (what, column, shared, instructions) in [
        ("silent", 16, &PLAIN[..], &[][..]),
        ("the same value", 16, &plain, &[0x08, 16]),
        ("in RBX", 16, &plain, &[0x09, 16, 3]),
        ("elsewhere", 16, &plain, &[0x05, 16, 2]),
        ("an expression", 16, &plain, &[0x10, 16, 2, 0x77, 0]),
        ("a value's expression", 16, &plain, &[0x16, 16, 2, 0x77, 0]),
        ("a value", 16, &plain, &[0x14, 16, 1]),
        ("restored to silence", 16, &PLAIN, &[0x07, 16, 0xd0]),
        ("in another column", 3, &plain, &[]),
        ("undefined, but another column's", 3, &plain, &[0x07, 16]),
        ("no CFA", 16, &PUSHED, &[]),
        ("another SP: a register's", 16, &plain, &[0x09, 7, 3]),
        ("another SP: saved", 16, &plain, &[0x87, 2]),
        ("another SP: unknown", 16, &plain, &[0x07, 7]),
    ] {
        assert_eq!(back(column, shared, instructions), None, "{what}");
    }
    assert_eq!(
        back(16, &plain, &[0x14, 7, 0]),
        Some(Back::Address),
        "SP is the CFA"
    );
}

/// A row that reaches past its entry's end gives no rule for the function behind it.
#[test]
fn a_row_ends_with_its_entry() {
    let shared = [&PLAIN[..], &PUSHED].concat();
    // advance_loc 63, def_cfa_offset 16
    let section = section(16, &shared, &[&[0x7f, 0x0e, 16], &[0x0e, 24]]);
    let table = Table::parse(&section, 0x10_0000).unwrap();
    let row = |pc| table.look_up(pc).unwrap();
    assert_eq!(row(0x1008).pcs, 0x1000..0x1010);
    assert_eq!(row(0x1008).rule.cfa.offset, 8);
    assert_eq!(
        (row(0x1010).rule.cfa.offset, row(0x1010).pcs),
        (24, 0x1010..0x1020)
    );
}

/// The instructions of a CIE run for each of its functions, so a long CIE is refused; and an FDE
/// shares only a CIE that begins where its word points.
#[test]
fn a_cie_is_short_and_read_once() {
    let shared = |bytes: usize| [&PLAIN[..], &PUSHED, &vec![0; bytes]].concat();
    let fits = section(16, &shared(480), &[&[][..]; 3]);
    assert_eq!(Table::parse(&fits, 0).unwrap().entries.len(), 3);
    let error = Table::parse(&section(16, &shared(520), &[&[][..]; 3]), 0).unwrap_err();
    assert!(
        matches!(error.kind, StackMapErrorKind::UnwindCie { bytes } if bytes > MAX_CIE),
        "{error}"
    );
    assert_eq!(error.at, 0);
    // The first FDE's word for its CIE points four bytes further back, where no CIE begins.
    let mut section = section(16, &shared(0), &[&[]]);
    let pointer = section.len() - 32 + 4;
    assert_eq!(section[pointer] as usize, pointer);
    section[pointer] -= 4;
    assert_eq!(
        Table::parse(&section, 0).unwrap_err().kind,
        StackMapErrorKind::Unwind
    );
}

proptest! {
    /// Damaged tables: an error with a place, or a table that gives rules or none.
    #[test]
    fn damaged_tables_are_read_without_a_panic(
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<proptest::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let (mut section, address) = vdso_tables();
        section.truncate(400);
        for (at, byte) in damage {
            let at = at.index(section.len());
            section[at] = byte;
        }
        if !whole {
            section.truncate(cut.index(section.len()));
        }
        match Table::parse(&section, address) {
            Err(error) => assert!(error.at <= section.len()),
            Ok(table) => for (range, _) in &table.entries {
                for pc in range.clone().take(200) {
                    let _ = table.look_up(pc);
                }
            },
        }
    }
}
