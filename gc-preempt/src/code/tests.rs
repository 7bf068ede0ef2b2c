//! Classification against a list searched from end to end, refused registrations, and removal.

use proptest::prelude::*;

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::stackmap::StackMaps;
use crate::stackmap::cranelift::Function;

fn managed(range: Range<usize>) -> CodeSpec {
    let what = CodeWhat::Managed {
        frames: FrameRule::Rbp,
        maps: StackMaps::default(),
        encoding: 0,
    };
    CodeSpec {
        range,
        what,
        owner: None,
    }
}

fn inner(range: Range<usize>, what: CodeWhat) -> CodeSpec {
    CodeSpec {
        range,
        what,
        owner: None,
    }
}

impl CodeMap {
    /// For a map that only one test uses: there is no stop and no other thread.
    fn add(&'static self, spec: CodeSpec) -> Result<CodeGuard, CodeError> {
        // SAFETY: the map is this test's alone.
        unsafe { self.register(1, spec.checked()?) }
    }

    fn at(&self, pc: usize) -> PcClass {
        // SAFETY: as above.
        unsafe { self.classify(pc) }
    }

    fn remove(&self, stacks: &[&[usize]], words: &[usize]) -> usize {
        let stacks = stacks.iter().map(|s| {
            let range = s.as_ptr_range();
            range.start as usize..range.end as usize
        });
        // SAFETY: as above; the stacks are slices.
        unsafe {
            self.take_dropped();
            self.reap(1, stacks, words.iter().copied());
            self.sweep().len()
        }
    }
}

#[test]
fn a_pc_is_classified_by_the_innermost_range() {
    let map = CodeMap::leaked();
    assert_eq!(map.at(0x1000), PcClass::Native);
    let _guards = [
        map.add(inner(0x1100..0x1110, CodeWhat::Restart)).unwrap(),
        map.add(managed(0x1000..0x2000)).unwrap(),
        map.add(inner(0x1200..0x1204, CodeWhat::Unsafe)).unwrap(),
        map.add(inner(0x3000..0x3008, CodeWhat::Restart)).unwrap(),
        map.add(inner(0x4000..0x4001, CodeWhat::Restart)).unwrap(),
        map.add(inner(0x1fff..0x2000, CodeWhat::Unsafe)).unwrap(),
        map.add(managed(0x2000..0x2800)).unwrap(),
    ];
    let restart = PcClass::Restart { start: 0x1100 };
    for (pc, place) in [
        (0, PcClass::Native),
        (0xfff, PcClass::Native),
        (0x1000, PcClass::Managed),
        (0x1100, PcClass::Managed),
        (0x1101, restart),
        (0x110f, restart),
        (0x1110, PcClass::Managed),
        (0x11ff, PcClass::Managed),
        (0x1200, PcClass::Unsafe),
        (0x1203, PcClass::Unsafe),
        (0x1204, PcClass::Managed),
        (0x1ffe, PcClass::Managed),
        (0x1fff, PcClass::Unsafe),
        (0x2000, PcClass::Managed),
        (0x27ff, PcClass::Managed),
        (0x2800, PcClass::Native),
        (0x3000, PcClass::Native),
        (0x3001, PcClass::Restart { start: 0x3000 }),
        (0x3008, PcClass::Native),
        (0x4000, PcClass::Native),
        (usize::MAX, PcClass::Native),
    ] {
        assert_eq!(map.at(pc), place, "{pc:#x}");
    }
    // SAFETY: the map is this test's alone.
    unsafe {
        assert!(
            map.managed(0x1105).is_some(),
            "the maps of the code around a restart range"
        );
        assert!(map.managed(0x3004).is_none());
    }
}

#[test]
fn a_removed_range_leaves_nothing_behind() {
    let map = CodeMap::leaked();
    let outer = map.add(managed(0x1000..0x2000)).unwrap();
    let hole = map.add(inner(0x1100..0x1200, CodeWhat::Unsafe)).unwrap();
    drop(hole);
    assert_eq!(map.at(0x1100), PcClass::Unsafe, "only a stop may remove it");
    assert_eq!(map.remove(&[], &[]), 1);
    assert_eq!(map.at(0x1100), PcClass::Managed);
    drop(outer);
    assert_eq!(map.remove(&[], &[]), 1);
    assert_eq!(map.at(0x1100), PcClass::Native);
}

#[test]
fn overlapping_ranges_are_refused_with_both_names() {
    let map = CodeMap::leaked();
    let _a = map.add(managed(0x1000..0x2000)).unwrap();
    let _b = map.add(inner(0x3000..0x3010, CodeWhat::Unsafe)).unwrap();
    for (spec, says) in [
        (
            managed(0x1fff..0x2001),
            "managed code at 0x1fff..0x2001 overlaps managed code registered at 0x1000..0x2000; each",
        ),
        (
            managed(0x3008..0x4000),
            "overlaps an unsafe range registered at 0x3000..0x3010; an unsafe or a restart range lies either",
        ),
        (
            inner(0xff0..0x1010, CodeWhat::Restart),
            "a restart range at 0xff0..0x1010 overlaps managed code",
        ),
        (inner(0x300f..0x3010, CodeWhat::Restart), "do not share"),
        (managed(0x10..0x10), "is empty"),
    ] {
        let error = map.add(spec).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    assert!(
        map.add(managed(0x2000..0x3000)).is_ok(),
        "neighbours do not overlap"
    );
}

#[test]
fn a_stack_map_outside_of_its_range_is_refused() {
    let function = Function {
        address: 0x1000,
        size: 0x20,
        frame_to_fp: 16,
        clobber: 0,
        outgoing: 0,
        sites: Vec::new(),
    };
    let with = |range| CodeSpec {
        range,
        what: CodeWhat::Managed {
            frames: FrameRule::Rbp,
            maps: StackMaps::from_cranelift(std::slice::from_ref(&function)).unwrap(),
            encoding: 0,
        },
        owner: None,
    };
    let map = CodeMap::leaked();
    let outside = |address| Some(address);
    for (range, address) in [
        (0x1001..0x1020, outside(0x1000)),
        (0x1000..0x101f, outside(0x101f)),
    ] {
        match map.add(with(range)) {
            Err(CodeError::Outside { address: at, .. }) => assert_eq!(Some(at), address),
            other => panic!("{other:?}"),
        }
    }
    assert!(map.add(with(0x1000..0x1020)).is_ok());
}

struct Owner(Arc<AtomicUsize>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn code_stays_while_a_stack_or_a_register_points_into_it() {
    let drops = Arc::new(AtomicUsize::new(0));
    let map = CodeMap::leaked();
    let spec = |range, drops: &Arc<AtomicUsize>| CodeSpec {
        owner: Some(Box::new(Owner(drops.clone()))),
        ..managed(range)
    };
    let guard = map.add(spec(0x1000..0x2000, &drops)).unwrap();
    let _stays = map.add(spec(0x2001..0x3000, &drops)).unwrap();
    assert_eq!(map.remove(&[], &[]), 0, "the guard lives");
    drop(guard);
    assert_eq!(map.remove(&[&[1, 2], &[7, 0x1234, 9]], &[]), 0);
    assert_eq!(map.remove(&[&[7]], &[0x1000]), 0);
    assert_eq!(
        map.remove(&[&[0x2000]], &[]),
        0,
        "a call at the very end returns to the end"
    );
    assert!(matches!(
        map.add(managed(0x1000..0x1010)),
        Err(CodeError::Overlap { leaving: true, .. })
    ));
    assert_eq!(drops.load(Ordering::Relaxed), 0);
    assert_eq!(map.remove(&[&[0xfff, 0x2001]], &[0]), 1);
    assert_eq!(drops.load(Ordering::Relaxed), 1);
    assert_eq!(map.at(0x1000), PcClass::Native);
    assert_eq!(map.at(0x2001), PcClass::Managed);
    assert!(map.add(managed(0x1000..0x1010)).is_ok());
}

#[test]
fn another_worlds_stop_removes_nothing() {
    let map = CodeMap::leaked();
    drop(map.add(managed(0x1000..0x2000)).unwrap());
    // SAFETY: the map is this test's alone.
    unsafe {
        map.take_dropped();
        map.reap(2, std::iter::empty(), std::iter::empty());
        assert!(map.sweep().is_empty());
        map.world_gone(1);
        assert_eq!(map.sweep().len(), 1);
    }
}

/// A JIT compiler registers each function when it is compiled, and the function keeps the arena. If
/// a registration, search or removal looked at the other ones, this test would take a quarter of an
/// hour.
#[test]
fn an_arena_is_filled_and_emptied_function_by_function() {
    const FUNCTIONS: usize = 100_000;
    let drops = Arc::new(AtomicUsize::new(0));
    let map = CodeMap::leaked();
    let arena = Arc::new(Owner(drops.clone()));
    let range = |function: usize| 0x10_0000 + 64 * function..0x10_0000 + 64 * function + 64;
    let add = |function| {
        let owner: Box<dyn Any + Send> = Box::new(arena.clone());
        let what = managed(range(function));
        let guard = map.add(CodeSpec {
            owner: Some(owner),
            ..what
        });
        guard.unwrap()
    };
    // In a scattered order: the multiplier and the count have no factor in common.
    let mut guards: Vec<_> = (0..FUNCTIONS)
        .map(|i| add(i * 77_773 % FUNCTIONS))
        .collect();
    drop(arena);
    for function in [0, 1, FUNCTIONS / 2, FUNCTIONS - 1] {
        assert_eq!(map.at(range(function).start), PcClass::Managed);
        assert!(map.add(managed(range(function))).is_err());
    }
    assert_eq!(map.at(range(FUNCTIONS).start), PcClass::Native);
    // One by one, while some word points into a function that was dropped before.
    drop(guards.pop());
    let pinned = range(FUNCTIONS.wrapping_sub(1) * 77_773 % FUNCTIONS).start + 1;
    for _ in 0..1_000 {
        drop(guards.pop());
        assert_eq!(map.remove(&[&[1, 2, 3]], &[pinned]), 1);
    }
    // All at once, by several threads.
    std::thread::scope(|scope| {
        let half = guards.split_off(guards.len() / 2);
        scope.spawn(|| drop(half));
        scope.spawn(|| drop(guards));
    });
    assert_eq!(map.remove(&[], &[pinned]), FUNCTIONS - 1_001);
    assert_eq!(drops.load(Ordering::Relaxed), 0);
    assert_eq!(map.remove(&[], &[]), 1);
    assert_eq!(
        drops.load(Ordering::Relaxed),
        1,
        "the arena's last function is gone"
    );
}

#[test]
fn what_a_gone_world_leaves_goes_with_its_guards_whenever_they_are_dropped() {
    let map = CodeMap::leaked();
    let [early, late] =
        [0x1000..0x2000, 0x3000..0x4000].map(|range| map.add(managed(range)).unwrap());
    let unsafe_range = map.add(inner(0x1800..0x1810, CodeWhat::Unsafe)).unwrap();
    assert!(map.any_unsafe());
    drop(early);
    // SAFETY: the map is this test's alone.
    unsafe {
        map.take_dropped();
        map.world_gone(1);
        assert_eq!(map.sweep().len(), 1);
        assert!(map.sweep().is_empty());
        drop(late);
        drop(unsafe_range);
        map.take_dropped();
        assert_eq!(map.sweep().len(), 2);
    }
    assert!(!map.any_unsafe());
    assert_eq!(map.at(0x3000), PcClass::Native);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Ranges of all kinds are registered and removed in any order. Each address is classified as
    /// the innermost range around it says, and a refused range overlaps another one.
    #[test]
    fn any_ranges_are_classified_as_a_list_would(
        ranges in proptest::collection::vec((0usize..200, 1usize..60, 0u8..3, any::<bool>()), 1..20),
    ) {
        let map = CodeMap::leaked();
        let mut guards: Vec<(Range<usize>, CodeKind, CodeGuard)> = Vec::new();
        for (start, length, kind, remove) in ranges {
            let range = start..start + length;
            let spec = match kind {
                0 => managed(range.clone()),
                1 => inner(range.clone(), CodeWhat::Unsafe),
                _ => inner(range.clone(), CodeWhat::Restart),
            };
            let kind = spec.what.kind();
            let apart = |r: &Range<usize>| r.end <= range.start || range.end <= r.start;
            let within = |a: &Range<usize>, b: &Range<usize>| b.start <= a.start && a.end <= b.end;
            let fits = guards.iter().all(|(r, k, _)| {
                apart(r)
                    || (kind == CodeKind::Managed && *k != CodeKind::Managed && within(r, &range))
                    || (kind != CodeKind::Managed && *k == CodeKind::Managed && within(&range, r))
            });
            let added = map.add(spec);
            prop_assert_eq!(added.is_ok(), fits);
            if let Ok(guard) = added {
                guards.push((range.clone(), kind, guard));
            }
            if remove && !guards.is_empty() {
                drop(guards.swap_remove(length % guards.len()));
                prop_assert_eq!(map.remove(&[], &[]), 1);
            }
            for pc in 0..270 {
                let holds = |kind| guards.iter().find(|g| g.1 == kind && g.0.contains(&pc));
                let expected = match (holds(CodeKind::Unsafe), holds(CodeKind::Restart)) {
                    (Some(_), _) => PcClass::Unsafe,
                    (_, Some(r)) if r.0.start < pc => PcClass::Restart { start: r.0.start },
                    _ if holds(CodeKind::Managed).is_some() => PcClass::Managed,
                    _ => PcClass::Native,
                };
                prop_assert_eq!(map.at(pc), expected);
                // SAFETY: the map is this test's alone.
                let managed = unsafe { map.managed(pc) }.is_some();
                prop_assert_eq!(managed, holds(CodeKind::Managed).is_some());
            }
        }
    }
}
