//! Caches unwind rules, within a stop and from one stop to the next.
//!
//! Rules are kept by PC, since the same calling frames are on the stacks at most stops. The
//! innermost frame's PC differs at each stop, but lies in few functions, in which one row holds for
//! most instructions. So the last rows are also kept by the range of PCs that they hold for.
//!
//! A cached rule becomes wrong if its module is unloaded and another one is loaded at its address.
//! A module stays loaded while a frame on a stopped stack lies in it, so within one stop every rule
//! is good. From one stop to the next a rule is good only if its module is never unloaded: the
//! executable, libc, the loader, the vDSO, and the module that Urge is part of. Every other rule
//! carries the number of its stop.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::modules::{look_up, stays};
use super::rule::{Row, Rule};
use super::table::Table;

/// Rows of one cache.
const ROWS: usize = 16;
/// Entries of one cache; a program's stopped stacks show a few hundred distinct PCs.
const ENTRIES: usize = 512;
/// Caches: so many walks at the same time have one. A further walk runs without a cache.
const CACHES: usize = 4;
/// Instead of a stop's number: the rule is good in every stop.
const ALWAYS: u64 = u64::MAX;
/// Instead of a stop's number: the rule is good in no stop. For a walk outside of any stop: its
/// frames, and their module, may be gone before the next walk.
pub(crate) const NEVER: u64 = 0;

#[derive(Clone, Copy)]
struct CachedRule {
    pc: usize,
    /// The stop that it was looked up in, or [`ALWAYS`].
    stop: u64,
    rule: Option<Rule>,
}

/// The last rows that were looked up in modules that are never unloaded.
struct Rows {
    /// Apart from the rules, so that a search reads a few lines.
    pcs: [[usize; 2]; ROWS],
    rules: [Option<Rule>; ROWS],
    /// The row to be replaced next.
    next: usize,
}

impl Rows {
    const fn new() -> Self {
        Self {
            pcs: [[0; 2]; ROWS],
            rules: [None; ROWS],
            next: 0,
        }
    }

    fn find(&self, pc: usize) -> Option<Rule> {
        let at = self
            .pcs
            .iter()
            .position(|[from, to]| (*from..*to).contains(&pc))?;
        self.rules[at]
    }

    fn keep(&mut self, row: &Row) {
        let at = self.next % ROWS;
        self.pcs[at] = [row.pcs.start, row.pcs.end];
        self.rules[at] = Some(row.rule);
        self.next = at + 1;
    }
}

struct Kept {
    entries: [CachedRule; ENTRIES],
    rows: Rows,
}

struct Cache {
    taken: AtomicBool,
    kept: UnsafeCell<Kept>,
}

// SAFETY: what is kept is touched only by the session that has set `taken`.
unsafe impl Sync for Cache {}

static CACHE: [Cache; CACHES] = [const {
    Cache {
        taken: AtomicBool::new(false),
        kept: UnsafeCell::new(Kept {
            entries: [CachedRule {
                pc: 0,
                stop: 0,
                rule: None,
            }; ENTRIES],
            rows: Rows::new(),
        }),
    }
}; CACHES];

/// The memory of the cache that a walk gets if no other walk runs.
pub(crate) fn kept_rules() -> Range<usize> {
    let cache = (&raw const CACHE[0]).addr();
    cache..cache + size_of::<Cache>()
}

/// Stores to each page of that memory, so that no stop has the page faults.
pub(super) fn touch_kept_rules() {
    if let Some(cache) = Session::new(NEVER).cache {
        let kept = cache.kept.get().cast::<u8>();
        for at in (0..size_of::<Kept>()).step_by(4096) {
            // SAFETY: a byte of what the session has taken, stored as it was.
            unsafe { kept.add(at).write_volatile(kept.add(at).read_volatile()) };
        }
    }
}

/// The rules, for one walk.
pub(crate) struct Session {
    stop: u64,
    cache: Option<&'static Cache>,
    /// The rule looked up last, for a walk without a cache.
    last: Option<Rule>,
}

impl Session {
    /// For a walk in the stop or handshake of that number, which is unique in the process, or
    /// outside of any stop ([`NEVER`]).
    pub(crate) fn new(stop: u64) -> Self {
        seam::before_a_walk();
        // Acquire pairs with the Release in `drop`: the entries of the walk before are seen.
        let cache = CACHE
            .iter()
            .find(|c| !c.taken.swap(true, Ordering::Acquire));
        Self {
            stop,
            cache,
            last: None,
        }
    }

    /// The rule at a PC. For a calling frame `pc` is the return address less one, since the call
    /// may be the last instruction of its row.
    ///
    /// `table` was registered with the code at that PC. With it, the loader's modules are not
    /// searched.
    pub(crate) fn rule(&mut self, pc: usize, table: Option<&Table>) -> Option<&Rule> {
        if seam::has_no_tables() {
            return None;
        }
        let look_up = |pc| table.map_or_else(|| look_up(pc), |t| t.look_up(pc));
        let Some(cache) = self.cache else {
            self.last = look_up(pc).map(|row| row.rule);
            return self.last.as_ref();
        };
        // SAFETY: this session has taken the cache, and `&mut self` lends the entry once.
        let Kept { entries, rows } = unsafe { &mut *cache.kept.get() };
        // Fibonacci hashing: call sites are close together and far from random in their low bits.
        let hash = (pc as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let entry = &mut entries[hash as usize % ENTRIES];
        // A rule from a module is not good at a PC for which code with a table was registered
        // later.
        let is_good = entry.stop == ALWAYS && table.is_none()
            || entry.stop == self.stop && self.stop != NEVER;
        if entry.pc != pc || !is_good {
            let always = table.is_none() && stays(pc);
            let stop = if always { ALWAYS } else { self.stop };
            let known = if always { rows.find(pc) } else { None };
            let rule = known.or_else(|| {
                let row = look_up(pc)?;
                if always {
                    rows.keep(&row);
                }
                Some(row.rule)
            });
            *entry = CachedRule { pc, stop, rule };
        }
        entry.rule.as_ref()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(cache) = self.cache {
            // Release pairs with the Acquire in `new`.
            cache.taken.store(false, Ordering::Release);
        }
    }
}

/// What tests may break here.
mod seam {
    use core::ffi::{c_int, c_void};

    use crate::faults::Fault;

    pub(super) fn before_a_walk() {
        if Fault::AskTheLoader.planted() {
            ask_the_loader();
        }
    }

    pub(super) fn has_no_tables() -> bool {
        Fault::NoUnwindTables.planted()
    }

    /// Walks the list of modules, which takes the loader's lock: a stop must not do that.
    fn ask_the_loader() {
        extern "C" fn each(_: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
            0
        }
        // SAFETY: the callback touches nothing.
        unsafe { libc::dl_iterate_phdr(Some(each), std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::setup;
    use super::*;

    /// What a row is kept for is what it says: no other rule would have been found for any of its
    /// PCs. A PLT is among them, which stands at the beginning of a module's code, and whose rule
    /// depends on the PC.
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
        *slot(foreign) = CachedRule {
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
        *slot(foreign) = CachedRule {
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
}
