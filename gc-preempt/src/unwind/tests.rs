//! Rules read from the tables of this process's own modules, and what malformed tables give.

use proptest::prelude::*;

use super::*;

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

/// What a row is kept for is what it says: no other rule would have been found for any of its PCs. A PLT is among them, which stands at the
/// beginning of a module's code, and whose rule depends on the PC.
#[test]
fn a_kept_row_speaks_of_the_pcs_that_it_holds_for_and_of_no_others() {
    setup();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let starts = maps.lines().filter(|line| line.contains(" r-xp "));
    let starts = starts.map(|line| usize::from_str_radix(line.split('-').next().unwrap(), 16));
    let (mut kept, mut found) = (0, 0);
    for start in starts.map(Result::unwrap).chain([setup as fn() as usize]) {
        let mut rows = Rows::new();
        for pc in start..start + 4000 {
            let row = look_up(pc);
            if let Some(known) = rows.find(pc) {
                assert_eq!(Some(known), row.map(|row| row.rule), "{pc:#x}");
                found += 1;
            } else if let Some(row) = row {
                assert!(row.pcs.contains(&pc), "{pc:#x}");
                rows.keep(&row);
                kept += 1;
            }
        }
        assert_eq!(rows.find(0), None);
    }
    assert!(found > 2 * kept, "{found} found, {kept} kept");
}

#[test]
fn a_rule_is_not_carried_from_a_stop_to_the_next_unless_its_module_stays() {
    setup();
    let foreign = Box::into_raw(Box::new(0u64)) as usize;
    let mut session = Session::new(7);
    let cache = session.cache.expect("a cache");
    let slot = |pc: usize| {
        let hash = (pc as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        // SAFETY: this test has taken the cache.
        unsafe { &mut (*cache.kept.get()).entries[hash as usize % ENTRIES] }
    };
    let planted = Rule {
        saves: 1234,
        ..Rule::SIGNAL
    };
    *slot(foreign) = Entry {
        pc: foreign,
        stop: 7,
        rule: Some(planted),
    };
    assert_eq!(
        session.rule(foreign, None),
        Some(&planted),
        "kept within the stop"
    );
    session.stop = 8;
    assert_eq!(
        session.rule(foreign, None),
        None,
        "looked up anew in the next"
    );
    *slot(foreign) = Entry {
        pc: foreign,
        stop: NEVER,
        rule: Some(planted),
    };
    assert_eq!(session.rule(foreign, None), None, "of a walk in no stop");
    session.stop = NEVER;
    for _ in 0..2 {
        slot(foreign).rule = Some(planted);
        assert_eq!(
            session.rule(foreign, None),
            None,
            "nor does such a walk believe another"
        );
    }
    let own = setup as fn() as usize;
    assert!(session.rule(own, None).is_some());
    assert_eq!(slot(own).stop, ALWAYS);
    // SAFETY: allocated above.
    drop(unsafe { Box::from_raw(foreign as *mut u64) });
}

/// A copy of the vDSO's tables, as if they had come with generated code.
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
            Err(at) => assert!(at <= section.len()),
            Ok(table) => for (range, _) in &table.entries {
                for pc in range.clone().take(200) {
                    let _ = table.look_up(pc);
                }
            },
        }
    }
}
