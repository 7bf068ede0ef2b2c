//! Checks, in tests, that a stop finds every live reference of compiled code. Liveness comes from
//! the bytecode, not from the code generator that is tested.
//!
//! With an oracle, compiled code records before each call the references in its slots that are live
//! across the call, by the *bytecode's* liveness (`analysis.rs`) and not by Cranelift's. The words
//! are complemented, so that they keep no cells alive. A stop at a random time ([`Oracle::check`])
//! demands that the walker finds each of these references, in a slot that a stack map names or in a
//! word that is scanned conservatively. It also counts the references that stack maps name and the
//! bytecode takes for dead.
//!
//! Each activation of compiled code has a frame in its isolate's [`Shadow`]:
//!
//! | word | content |
//! |---|---|
//! | 0 | the frame's length in words |
//! | 1 | low half: number of references, 0 outside calls; high half: the call instruction's index |
//! | 2.. | the references, complemented |
//!
//! A frame's references are written before its count, and the count is set to 0 after the call, so
//! each frame is right at every instruction. Captured variables are not in the frame: they are on
//! the value stack, a declared root range.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gc_preempt::{RootSink, Stopped};

use crate::lox::isolate::FRAMES_MAX;
use crate::lox::value::{ADDRESS, REFERENCE};

/// The words of the longest frame. Larger activations have no frame.
pub(super) const FRAME_MAX: usize = 1024;
/// Words of a shadow, with room for every activation.
const WORDS: usize = FRAMES_MAX as usize * FRAME_MAX;
/// Words before a frame's references.
pub(super) const HEAD: usize = 2;

/// The frames of live references of one isolate.
#[derive(Debug)]
pub struct Shadow {
    /// Address of the first free word.
    pub(super) top: AtomicUsize,
    words: Box<[AtomicU64]>,
    /// An address on the stack of the isolate's thread.
    thread: usize,
}

impl Shadow {
    fn new() -> Shadow {
        let words: Box<[AtomicU64]> = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        let here = 0_u8;
        Shadow {
            top: AtomicUsize::new(words.as_ptr() as usize),
            words,
            thread: &raw const here as usize,
        }
    }

    /// Calls `f` with each live reference: the index of the call instruction, and the cell's
    /// address.
    fn each(&self, mut f: impl FnMut(u32, usize)) {
        // Relaxed, all of them: the isolate's thread is stopped, and the stop orders its writes
        // before these reads.
        let used = (self.top.load(Ordering::Relaxed) - self.words.as_ptr() as usize) / 8;
        let word = |index: usize| self.words[index].load(Ordering::Relaxed);
        let mut frame = 0;
        while frame < used {
            let state = word(frame + 1);
            for index in 0..(state & 0xFFFF_FFFF) as usize {
                let reference = !word(frame + HEAD + index);
                if reference >= REFERENCE {
                    f((state >> 32) as u32, (reference & ADDRESS) as usize);
                }
            }
            frame += word(frame) as usize;
        }
    }
}

/// Checks the stack maps of the isolates whose JIT was attached with it.
#[derive(Debug)]
pub struct Oracle {
    shadows: Mutex<Vec<Arc<Shadow>>>,
    /// The words that the walker found in the present stop. The memory is allocated beforehand,
    /// because a stop may not allocate.
    found: Mutex<Found>,
    checks: AtomicU64,
    references: AtomicU64,
    exact: AtomicU64,
    beyond: AtomicU64,
    missing: AtomicU64,
    first_missing: AtomicU64,
}

/// The result of an [`Oracle`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Number of stops that had a live reference to find.
    pub checks: u64,
    /// Number of live references in all stops.
    pub references: u64,
    /// Number of references in slots that stack maps name.
    pub exact: u64,
    /// Number of those that are in no frame's record.
    pub beyond: u64,
    /// Number of live references that the walker did not find. It must be 0.
    pub missing: u64,
    /// The index of the call instruction across which the first missing reference was live.
    pub first_missing: u64,
}

#[derive(Debug)]
struct Found {
    exact: Vec<usize>,
    conservative: Vec<usize>,
    overflow: bool,
}

/// The most words that are kept for one thread's stack.
const FOUND_MAX: usize = 1 << 16;

fn note(list: &mut Vec<usize>, overflow: &mut bool, word: usize) {
    if list.len() < list.capacity() {
        list.push(word);
    } else {
        *overflow = true;
    }
}

impl RootSink for Found {
    fn conservative(&mut self, words: Range<usize>) {
        for address in words.step_by(8) {
            // SAFETY: the walker names readable words of a stopped thread's stack.
            let word = unsafe { *(address as *const usize) };
            if word != 0 {
                note(
                    &mut self.conservative,
                    &mut self.overflow,
                    word & ADDRESS as usize,
                );
            }
        }
    }

    fn exact(&mut self, slot: usize, _: u32) {
        // SAFETY: as above.
        let word = unsafe { *(slot as *const u64) };
        if word >= REFERENCE {
            note(
                &mut self.exact,
                &mut self.overflow,
                (word & ADDRESS) as usize,
            );
        }
    }

    fn derived(&mut self, base: usize, _: usize, encoding: u32) {
        self.exact(base, encoding);
    }
}

impl Default for Oracle {
    fn default() -> Oracle {
        Oracle {
            shadows: Mutex::default(),
            found: Mutex::new(Found {
                exact: Vec::with_capacity(FOUND_MAX),
                conservative: Vec::with_capacity(FOUND_MAX),
                overflow: false,
            }),
            checks: AtomicU64::new(0),
            references: AtomicU64::new(0),
            exact: AtomicU64::new(0),
            beyond: AtomicU64::new(0),
            missing: AtomicU64::new(0),
            first_missing: AtomicU64::new(0),
        }
    }
}

impl Oracle {
    /// Adds the isolate of the calling thread.
    pub(super) fn watch(&self) -> Arc<Shadow> {
        let shadow = Arc::new(Shadow::new());
        let mut shadows = self.shadows.lock().unwrap_or_else(PoisonError::into_inner);
        shadows.push(Arc::clone(&shadow));
        shadow
    }

    /// Removes an isolate.
    pub(super) fn forget(&self, shadow: &Arc<Shadow>) {
        let mut shadows = self.shadows.lock().unwrap_or_else(PoisonError::into_inner);
        shadows.retain(|other| !Arc::ptr_eq(other, shadow));
    }

    /// Checks all isolates of the stopped world that were added. Only one thread at a time may call
    /// it.
    pub fn check(&self, stopped: &Stopped<'_>) {
        // A thread that was stopped while it adds its isolate holds the lock. It has run no
        // compiled code yet, so the check is skipped.
        let (Ok(shadows), Ok(mut found)) = (self.shadows.try_lock(), self.found.try_lock()) else {
            return;
        };
        // Relaxed, all counters: statistics, read after the threads have ended.
        let add = |counter: &AtomicU64, by: u64| counter.fetch_add(by, Ordering::Relaxed);
        for mutator in stopped.mutators() {
            let stack = mutator.stack();
            for shadow in shadows
                .iter()
                .filter(|shadow| stack.contains(&shadow.thread))
            {
                found.exact.clear();
                found.conservative.clear();
                found.overflow = false;
                mutator.walk(&mut *found);
                if found.overflow {
                    continue;
                }
                let mut live = 0;
                shadow.each(|instruction, cell| {
                    live += 1;
                    let seen = found.exact.contains(&cell) || found.conservative.contains(&cell);
                    if !seen && add(&self.missing, 1) == 0 {
                        let first = &self.first_missing;
                        first.store(instruction.into(), Ordering::Relaxed);
                    }
                });
                let beyond = found.exact.iter().filter(|&&cell| {
                    let mut known = false;
                    shadow.each(|_, live| known |= live == cell);
                    !known
                });
                add(&self.beyond, beyond.count() as u64);
                add(&self.exact, found.exact.len() as u64);
                add(&self.references, live);
                add(&self.checks, u64::from(live > 0));
            }
        }
    }

    /// The result up to now.
    pub fn verdict(&self) -> Verdict {
        // Relaxed: as in `check`.
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Verdict {
            checks: get(&self.checks),
            references: get(&self.references),
            exact: get(&self.exact),
            beyond: get(&self.beyond),
            missing: get(&self.missing),
            first_missing: get(&self.first_missing),
        }
    }
}
