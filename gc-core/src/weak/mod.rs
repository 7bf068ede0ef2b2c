//! What markers meet that is not an edge: weak cells and pairs of ephemerons; who of them has lost a target, and the clearing.
//!
//! ```text
//!   marking        a marker that meets a weak cell notes it (`met`); a pair whose key is not marked waits for it (`waiting`)
//!   before stop 2  `select`, beside the mutators: of those, the words whose targets are not marked go to `dying`
//!   stop 2         `clear`: the dying words, and cells and pairs met since, are looked at again; whose target is still unmarked is cleared
//! ```
//! So a stop costs what dies, some tens of nanoseconds a word, and not what the heap holds. All words to one dead target are cleared in
//! the same stop: were one left, an intern table would hand out a string that another one has already made anew.
//!
//! # Why words stored meanwhile need no look
//! `select` reads each word once, and a mutator may store another word into the cell at once afterwards; a weak cell that was made while
//! marking is on is black from birth and met by nobody. The rule that makes both harmless: **whoever stores a word into a weak cell holds
//! its target strongly** (in a register, on its stack, in a handle), having made it, got it by an edge, or by the weak load. And what a
//! mutator holds strongly at any time while marking is on is marked before `clear` begins. It was reachable when marking began, and the
//! snapshot keeps it; or it was made since, black; or it came by a weak load, which logs it, and the logs are drained before. So a word
//! that `select` did not see, because it was stored later, has a marked target. The same holds for both words of a pair. A word that was
//! dying when `select` saw it and has been overwritten since is read again by `clear`, which judges what it finds.
//!
//! A table that grows would keep all its targets if each word were copied by a weak load, and if marking is on often, for ever. So there is
//! `Mutator::copy_weak`, which keeps nothing: what it copies while marking is on, and finds unmarked, it notes like a marker, within the
//! same piece that is not stopped. The value of a copied pair needs no more: the pair that it was copied from is one of the snapshot, or
//! was stored strongly, or is itself a copy of such a one; it waits, and its value is followed, or it was overwritten, and its value
//! logged.
//!
//! # Full lists
//! All lists are address space mapped beforehand. If more weak cells are met than `met` has room for, `clear` walks all cells of weak kinds
//! instead, in the stop. If more words are dying than `dying` has room for, it looks at all words of all cells that were met. If more pairs
//! wait than there is room for, those pairs are strong in this cycle (see [`waiting`]).

mod waiting;

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::fault::planted;
use crate::heap::{Cell, GRANULE, MapError, Space};
use crate::kind::{Descriptor, KindId, Tag};
use crate::mapped::Mapped;
use waiting::Waiting;

const WORD: usize = size_of::<usize>();

/// A word of a weak cell, or a pair's first: its address, and above it the cell's kind, which says how it is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tie(usize);

/// User addresses have 47 bits.
const KIND_SHIFT: u32 = 48;

impl Tie {
    pub(crate) fn new(slot: usize, kind: KindId) -> Tie {
        Tie(slot | kind.index() << KIND_SHIFT)
    }

    pub(crate) fn slot(self) -> usize {
        self.0 & ((1 << KIND_SHIFT) - 1)
    }

    pub(crate) fn kind(self) -> KindId {
        KindId((self.0 >> KIND_SHIFT) as u16)
    }
}

/// What came of a pair whose key is not marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// It is entered; the key's mark is to be looked at once more.
    Entered,
    /// There is no room: the pair is strong.
    NoRoom,
}

/// The lists of one heap. Markers fill them, one thread (the collector's) selects and clears.
pub(crate) struct WeakWork {
    /// First bytes of marked weak cells, and ties with [`SINGLE`] set; 0: taken, but not written yet.
    met: Mapped<AtomicUsize>,
    /// Places that were asked for, also in vain.
    met_len: AtomicUsize,
    /// How many of them `select` has looked at, and the same for pairs that wait.
    met_seen: AtomicUsize,
    pairs_seen: AtomicUsize,
    /// Ties of words and pairs whose targets were not marked.
    dying: Mapped<AtomicUsize>,
    dying_len: AtomicUsize,
    /// There were more.
    spilled: AtomicBool,
    waiting: Waiting,
}

/// Marks an entry of `met` that is one word or pair, and not a cell.
const SINGLE: usize = 1;

/// The most entries of a list. A heap has no more than it has cells.
const MOST: usize = 1 << 26;

impl WeakWork {
    /// Lists for a heap of `heap_bytes` of addresses.
    pub(crate) fn new(heap_bytes: usize) -> Result<WeakWork, MapError> {
        let cells = (heap_bytes / GRANULE).min(MOST);
        WeakWork::with_room(cells, cells, cells)
    }

    /// Lists of so many entries, for tests that fill them.
    pub(crate) fn with_room(met: usize, pairs: usize, dying: usize) -> Result<WeakWork, MapError> {
        Ok(WeakWork {
            met: Mapped::reserve(met, 1)?,
            met_len: AtomicUsize::new(0),
            met_seen: AtomicUsize::new(0),
            pairs_seen: AtomicUsize::new(0),
            dying: Mapped::reserve(dying, 1)?,
            dying_len: AtomicUsize::new(0),
            spilled: AtomicBool::new(false),
            waiting: Waiting::new(pairs)?,
        })
    }

    // ---- markers' --------------------------------------------------------------------------------------------------------------

    /// See [`Waiting::checking`].
    #[inline(always)]
    pub(crate) fn checking(&self) -> bool {
        self.waiting.checking()
    }

    /// A weak cell has been marked.
    pub(crate) fn meet(&self, cell: usize) {
        self.enter(cell);
    }

    fn enter(&self, entry: usize) {
        // Relaxed: a bound for the counter only.
        if self.met_len.load(Ordering::Relaxed) <= self.met.len() {
            let at = self.met_len.fetch_add(1, Ordering::Relaxed);
            if let Some(place) = self.met.get(at) {
                // Ordering: Release pairs with the Acquire in `select`.
                place.store(entry, Ordering::Release);
            }
        }
    }

    /// A pair of a marked cell whose key, at offset `key` of the address range, is not marked.
    pub(crate) fn wait(&self, tie: Tie, key: usize) -> Wait {
        if self.waiting.wait(tie.0, key) {
            Wait::Entered
        } else {
            Wait::NoRoom
        }
    }

    /// Calls `f` for each pair that may wait for the cell at offset `key`.
    pub(crate) fn wake(&self, key: usize, mut f: impl FnMut(Tie)) {
        if planted("no-wake") {
            return;
        }
        let mut steps = 0;
        for tie in self.waiting.waiters(key) {
            steps += 1;
            f(Tie(tie));
        }
        if steps != 0 {
            self.waiting.count(steps);
        }
    }

    /// For a marker that has run out of work: calls `f` with a bounded number of pairs, some of whose keys may have been marked before markers
    /// began to look. False: there are none.
    pub(crate) fn wake_old(&self, mut f: impl FnMut(Tie)) -> bool {
        let Some(piece) = self.waiting.piece() else {
            return false;
        };
        self.waiting.count(piece.len() as u64);
        for node in piece {
            if let Some(tie) = self.waiting.at(node) {
                f(Tie(tie));
            }
        }
        true
    }

    /// Of the cells and pairs met since the last call, notes the words whose targets are not marked. See [`Space::select_dying`].
    fn select(&self, space: &Space) {
        let met = self.met_len.load(Ordering::Relaxed).min(self.met.len());
        let mut at = self.met_seen.load(Ordering::Relaxed);
        while at < met {
            // Ordering: Acquire pairs with the Release in `meet`. A place that is not written yet is a marking mutator's; the next call
            // goes on from there.
            let entry = self.met[at].load(Ordering::Acquire);
            if entry == 0 {
                break;
            }
            each_word(space, entry, &mut |tie| self.note(space, tie));
            at += 1;
        }
        self.met_seen.store(at, Ordering::Relaxed);
        let pairs = self.waiting.len();
        let mut at = self.pairs_seen.load(Ordering::Relaxed);
        while at < pairs {
            let Some(tie) = self.waiting.at(at) else {
                break;
            };
            self.note(space, Tie(tie));
            at += 1;
        }
        self.pairs_seen.store(at, Ordering::Relaxed);
    }

    fn note(&self, space: &Space, tie: Tie) {
        if !is_dead(space, tie) {
            return;
        }
        // Relaxed: the collector's own.
        let len = self.dying_len.load(Ordering::Relaxed);
        match self.dying.get(len) {
            Some(place) => {
                place.store(tie.0, Ordering::Relaxed);
                self.dying_len.store(len + 1, Ordering::Relaxed);
            }
            None => self.spilled.store(true, Ordering::Relaxed),
        }
    }

    /// See [`Space::clear_dying`].
    fn clear(&self, space: &Space) -> u64 {
        if planted("keep-weak") {
            return 0;
        }
        let mut cleared = 0;
        let mut judge = |tie: Tie| {
            if is_dead(space, tie) {
                clear(space, tie);
                cleared += 1;
            }
        };
        // Relaxed throughout: the world is stopped.
        let dying = self.dying_len.swap(0, Ordering::Relaxed);
        if self.spilled.swap(false, Ordering::Relaxed) {
            self.met_seen.store(0, Ordering::Relaxed);
            self.pairs_seen.store(0, Ordering::Relaxed);
        } else {
            for tie in &self.dying[..dying] {
                let tie = Tie(tie.load(Ordering::Relaxed));
                if planted("no-recheck") {
                    clear(space, tie);
                }
                judge(tie);
            }
        }
        let met = self.met_len.load(Ordering::Relaxed);
        if met > self.met.len() {
            let kinds = &space.kinds;
            for kind in kinds.of_tag(Tag::Weak).chain(kinds.of_tag(Tag::Ephemeron)) {
                space.for_each_cell_of(kind, &mut |cell, marked| {
                    if marked {
                        words_of(space, cell, &mut judge);
                    }
                });
            }
        } else {
            let since = self.met_seen.swap(met, Ordering::Relaxed)..met;
            for entry in &self.met[since] {
                if !planted("met-since-kept") {
                    each_word(space, entry.load(Ordering::Relaxed), &mut judge);
                }
            }
        }
        let pairs = self.waiting.len();
        for at in self.pairs_seen.swap(pairs, Ordering::Relaxed)..pairs {
            if let Some(tie) = self.waiting.at(at) {
                judge(Tie(tie));
            }
        }
        cleared
    }
}

impl Space {
    /// Before stop 1, when no marker is at work: forgets what markers met in the last cycle.
    pub fn begin_weak(&self) {
        let weak = &self.weak;
        // Relaxed throughout: no marker is at work.
        let met = weak.met_len.swap(0, Ordering::Relaxed).min(weak.met.len());
        // SAFETY: as above.
        unsafe { weak.met.zero(met) };
        for count in [&weak.met_seen, &weak.pairs_seen, &weak.dying_len] {
            count.store(0, Ordering::Relaxed);
        }
        weak.spilled.store(false, Ordering::Relaxed);
        weak.waiting.begin(self.used_bytes());
    }

    /// By a mutator, in the same piece under `no_preempt` in which it has copied `words` words to `to`, in a weak cell or an ephemeron's,
    /// while marking is on.
    pub(crate) fn copied_weak(&self, to: usize, words: usize) {
        let Some(cell) = self.resolve(to) else {
            return;
        };
        let pairs = self.kinds.get(cell.kind).tag == Tag::Ephemeron;
        for word in (0..words).step_by(if pairs { 2 } else { 1 }) {
            let tie = Tie::new(to + word * WORD, cell.kind);
            if is_dead(self, tie) && !planted("copies-unnoted") {
                self.weak.enter(tie.0 | SINGLE);
            }
        }
    }

    /// Beside the mutators, once marking has run out of work, by one thread: finds the weak words and the ephemerons that will have to be cleared,
    /// among those met since the last call. What is marked stays marked, so [`Space::clear_dying`] need not look at the others again.
    pub fn select_dying(&self) {
        self.weak.select(self);
    }

    /// In a stop, once dying words have been cleared: calls `f` with each target of the cell's weak words, or of its pairs' keys, that is
    /// not marked all the same. There should be none.
    pub(crate) fn for_each_dead_word(&self, cell: Cell, f: &mut dyn FnMut(Cell)) {
        let Descriptor { tag, encoding, .. } = self.kinds.get(cell.kind);
        if !matches!(tag, Tag::Weak | Tag::Ephemeron) {
            return;
        }
        words_of(self, cell, &mut |tie| {
            if is_dead(self, tie) {
                // SAFETY: a word of an allocated cell.
                let word = unsafe { (tie.slot() as *const usize).read_volatile() };
                if let Some(target) = encoding.decode(word).and_then(|a| self.resolve(a)) {
                    f(target);
                }
            }
        });
    }

    /// In a stop, with nothing left to mark: clears every weak word whose target is not marked, and every ephemeron whose key is not. Gives
    /// their number. When more has been marked since, it may be called again, for what was met meanwhile.
    pub fn clear_dying(&self) -> u64 {
        self.weak.clear(self)
    }
}

/// Calls `f` for each weak word that an entry of `met` stands for.
fn each_word(space: &Space, entry: usize, f: &mut dyn FnMut(Tie)) {
    if entry & SINGLE != 0 {
        return f(Tie(entry & !SINGLE));
    }
    match space.resolve(entry) {
        Some(cell) => words_of(space, cell, f),
        None => debug_assert!(false, "a weak cell was met at {entry:#x}, where no cell is"),
    }
}

/// Calls `f` for each weak word of a cell, or each pair.
fn words_of(space: &Space, cell: Cell, f: &mut dyn FnMut(Tie)) {
    let descriptor = space.kinds.get(cell.kind);
    let step = if descriptor.tag == Tag::Ephemeron {
        2 * WORD
    } else {
        WORD
    };
    let first = cell.base + descriptor.first_word as usize * WORD;
    // A last word without a partner is no pair.
    for slot in (first..cell.base + cell.size + 1 - step).step_by(step) {
        f(Tie::new(slot, cell.kind));
    }
}

/// Does the word, or the pair's key, lead to a cell that is not marked? A word that names no cell at all (an immortal object outside of the
/// heap) is not ours to judge.
fn is_dead(space: &Space, tie: Tie) -> bool {
    // SAFETY: a word of a marked cell. Ordering: Acquire pairs with the store that made a cell known (a release, as every store is on this
    // architecture): whoever finds it here finds it marked, if it was made while marking is on.
    let word = unsafe { (*(tie.slot() as *const AtomicUsize)).load(Ordering::Acquire) };
    let Some(address) = space.kinds.get(tie.kind()).encoding.decode(word) else {
        return false;
    };
    !space.is_marked(address)
        && space
            .resolve(address)
            .is_some_and(|target| !space.is_marked(target.base))
}

/// Makes the word, or the pair's key, what its kind says a dead one becomes, and the pair's value null.
fn clear(space: &Space, tie: Tie) {
    let Descriptor { tag, .. } = space.kinds.get(tie.kind());
    let slot = tie.slot() as *const AtomicUsize;
    // SAFETY: a word of a marked cell, and of a pair the second as well. Relaxed: every mutator is stopped.
    unsafe {
        (*slot).store(space.kinds.get(tie.kind()).cleared(), Ordering::Relaxed);
        if *tag == Tag::Ephemeron {
            (*slot.add(1)).store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
