//! The tests' knowledge of which references are live, kept apart from everything that it judges.
//!
//! While a test watches, compiled code writes before each call which of its slots hold references
//! that are live across it: by the *bytecode's* liveness (`analysis.rs`), never by Cranelift's. The
//! words are complemented, so that they root nothing. A stop at a random moment ([`Oracle::check`])
//! then demands that the walker finds every one of them, in a slot that a stack map names or in a
//! word that is scanned conservatively, and counts what the maps name beyond them.
//!
//! Each activation of compiled code has a frame in its isolate's [`Shadow`]:
//!
//! | word | content |
//! |---|---|
//! | 0 | the frame's length in words |
//! | 1 | low half: how many references follow, 0 outside of calls; high half: the instruction that calls |
//! | 2.. | the references, complemented |
//!
//! A frame's references are written before its count, and its count is 0 again after the call: at
//! any instruction each frame says the truth. Captured variables are not in it: they are on the
//! value stack, a declared root range.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gc_preempt::{RootSink, Stopped};

use crate::lox::isolate::FRAMES_MAX;
use crate::lox::value::{ADDRESS, REFERENCE};

/// The longest frame that is kept; larger activations go unwatched.
pub(super) const FRAME_MAX: usize = 1024;
/// Words of a shadow: room for every activation.
const WORDS: usize = FRAMES_MAX as usize * FRAME_MAX;
/// Words before a frame's references.
pub(super) const HEAD: usize = 2;

/// One isolate's frames of live references.
#[derive(Debug)]
pub struct Shadow {
    /// Address of the first free word.
    pub(super) top: AtomicUsize,
    words: Box<[AtomicU64]>,
    /// Some address on the stack of the isolate's thread.
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

    /// Calls `f` with each live reference: the instruction that calls, the cell's address.
    fn each(&self, mut f: impl FnMut(u32, usize)) {
        // Relaxed, all of them: the isolate's thread is stopped, which orders everything.
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

/// Watches the isolates that were started with it.
#[derive(Debug)]
pub struct Oracle {
    shadows: Mutex<Vec<Arc<Shadow>>>,
    /// What the walker found in the stop under way. Its memory is there beforehand: a stop
    /// allocates nothing.
    found: Mutex<Found>,
    checks: AtomicU64,
    references: AtomicU64,
    exact: AtomicU64,
    beyond: AtomicU64,
    missing: AtomicU64,
    first_missing: AtomicU64,
}

/// What an [`Oracle`] has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Stops in which some live reference was looked for.
    pub checks: u64,
    /// Live references looked for, all stops together.
    pub references: u64,
    /// References in slots that stack maps name.
    pub exact: u64,
    /// Of those, the ones that no frame takes for live.
    pub beyond: u64,
    /// Live references that the walker did not find. Must be 0.
    pub missing: u64,
    /// The call, by its instruction, across which the first one missing was live.
    pub first_missing: u64,
}

#[derive(Debug)]
struct Found {
    exact: Vec<usize>,
    conservative: Vec<usize>,
    overflow: bool,
}

/// Room for the words of one thread's stack.
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
    /// Begins to watch the isolate of the calling thread.
    pub(super) fn watch(&self) -> Arc<Shadow> {
        let shadow = Arc::new(Shadow::new());
        let mut shadows = self.shadows.lock().unwrap_or_else(PoisonError::into_inner);
        shadows.push(Arc::clone(&shadow));
        shadow
    }

    /// Ends watching one.
    pub(super) fn forget(&self, shadow: &Arc<Shadow>) {
        let mut shadows = self.shadows.lock().unwrap_or_else(PoisonError::into_inner);
        shadows.retain(|other| !Arc::ptr_eq(other, shadow));
    }

    /// Looks at all watched isolates of the stopped world. Only one thread may do so.
    pub fn check(&self, stopped: &Stopped<'_>) {
        // A stopped isolate may be about to be watched, and hold the lock: then it has run no
        // compiled code yet.
        let (Ok(shadows), Ok(mut found)) = (self.shadows.try_lock(), self.found.try_lock()) else {
            return;
        };
        // Relaxed, all counters: statistics, read after the threads are gone.
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

    /// What was seen until now.
    pub fn verdict(&self) -> Verdict {
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
