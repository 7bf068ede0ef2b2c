//! The lists of weak cells, pairs and dying words of one heap: markers fill them, the collector's
//! thread selects and clears.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use gc_preempt::{Mutex, MutexGuard};

use super::modes::JUDGING_LONG;
use super::slot::{WeakSlot, is_dead, is_dead_target, words_of};
use super::waiting::Waiting;
use crate::heap::{GRANULE, Space};
use crate::kind::{Descriptor, Tag};
use crate::memory::MapError;
use crate::memory::chunked::Chunked;
use crate::tracer::WORD;

/// The result of [`WeakWork::wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The pair is entered. The marker tests the key's mark once more.
    Entered,
    /// There is no room: the pair is strong.
    NoRoom,
}

/// Which words a stage clears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    /// None: marking is not over.
    None,
    /// Words of short kinds, and pairs.
    Short,
    /// All words, also of cells met since.
    All,
}

/// The result of a piece of clearing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cleared {
    /// Words and pairs that the piece looked at; 0: there are no more.
    pub(crate) examined: usize,
    pub(crate) cleared: u64,
}

/// Locks of pairs, for changes by several threads and while words are being cleared. A few suffice:
/// each is held for some nanoseconds.
const PAIR_LOCKS: usize = 16;

/// The lists of one heap. Markers fill them, one thread (the collector's) selects and clears.
pub struct WeakWork {
    /// Entries: first bytes of marked weak cells, and weak slots with [`SINGLE`] set; 0: the place
    /// is taken, but not written yet.
    met: Chunked<AtomicUsize>,
    /// Places that were asked for, with and without success.
    met_len: AtomicUsize,
    /// A place had no memory.
    met_lost: AtomicBool,
    /// Entries of `met` that have been looked at, words of the next entry, and pairs of `waiting`.
    met_seen: AtomicUsize,
    met_word: AtomicUsize,
    pairs_seen: AtomicUsize,
    /// Weak slots whose targets were not marked; how many have been judged; and how many of the
    /// judged ones are long, and have been put first.
    dying: Chunked<AtomicUsize>,
    dying_len: AtomicUsize,
    judged: AtomicUsize,
    longs: AtomicUsize,
    /// There was no room for another.
    spilled: AtomicBool,
    /// A [`Stage`].
    stage: AtomicU8,
    locks: [CachePadded<Mutex<()>>; PAIR_LOCKS],
    pub(super) waiting: Waiting,
}

/// Set in an entry of `met` that is one word or pair instead of a cell.
const SINGLE: usize = 1;

/// The most entries of a list. A heap has no more than it has cells.
const MOST: usize = 1 << 26;

impl WeakWork {
    /// Lists for the markers of `space`.
    pub fn new(space: &Space) -> Result<WeakWork, MapError> {
        let heap_bytes = space.reserved().len();
        let cells = (heap_bytes / GRANULE).min(MOST);
        WeakWork::with_room(cells, cells, cells, heap_bytes)
    }

    /// Lists of so many entries, for tests that fill them.
    pub(crate) fn with_room(
        met: usize,
        pairs: usize,
        dying: usize,
        heap_bytes: usize,
    ) -> Result<WeakWork, MapError> {
        let zero = || AtomicUsize::new(0);
        Ok(WeakWork {
            met: Chunked::new(met)?,
            met_len: zero(),
            met_lost: AtomicBool::new(false),
            met_seen: zero(),
            met_word: zero(),
            pairs_seen: zero(),
            dying: Chunked::new(dying)?,
            dying_len: zero(),
            judged: zero(),
            longs: zero(),
            spilled: AtomicBool::new(false),
            stage: AtomicU8::new(Stage::None as u8),
            locks: [(); PAIR_LOCKS].map(|()| CachePadded::new(Mutex::new(()))),
            waiting: Waiting::new(pairs, heap_bytes)?,
        })
    }

    // ---- markers' -------------------------------------------------------------------------------

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
        if self.met_len.load(Ordering::Relaxed) <= self.met.capacity() {
            let at = self.met_len.fetch_add(1, Ordering::Relaxed);
            match self.met.make(at) {
                // Ordering: Release pairs with the Acquire in `met_entry`.
                Some(place) => place.store(entry, Ordering::Release),
                // Relaxed: read in a stop.
                None => self.met_lost.store(true, Ordering::Relaxed),
            }
        }
    }

    /// A pair of a marked cell whose key, at offset `key` of the address range, is not marked.
    pub(crate) fn wait(&self, weak_slot: WeakSlot, key: usize) -> Wait {
        if self.waiting.wait(weak_slot.0, key) {
            Wait::Entered
        } else {
            Wait::NoRoom
        }
    }

    /// Calls `f` for each pair that may wait for the cell at offset `key`.
    pub(crate) fn wake(&self, key: usize, mut f: impl FnMut(WeakSlot)) {
        if !seam::wakes() {
            return;
        }
        let mut steps = 0;
        for weak_slot in self.waiting.waiters(key) {
            steps += 1;
            f(WeakSlot(weak_slot));
        }
        if steps != 0 {
            self.waiting.count(steps);
        }
    }

    /// For a marker that has run out of work: calls `f` with a bounded number of pairs, some of
    /// whose keys may have been marked before markers began to look. False: there are none.
    pub(crate) fn wake_old(&self, mut f: impl FnMut(WeakSlot)) -> bool {
        let Some(piece) = self.waiting.piece() else {
            return false;
        };
        self.waiting.count(piece.len() as u64);
        for node in piece {
            if let Some(weak_slot) = self.waiting.at(node) {
                f(WeakSlot(weak_slot));
            }
        }
        true
    }

    // ---- the collector's ------------------------------------------------------------------------

    /// Before stop 1, when no marker is at work: forgets what markers met in the last cycle.
    pub fn begin(&self, space: &Space) {
        // Relaxed throughout: no marker is at work.
        let met = self.met_len.swap(0, Ordering::Relaxed);
        let dying = self.dying_len.swap(0, Ordering::Relaxed);
        if seam::gives_tables_back() {
            // SAFETY: as above.
            unsafe {
                self.met.clear(met);
                self.dying.clear(dying);
            }
        }
        for count in [
            &self.met_seen,
            &self.met_word,
            &self.pairs_seen,
            &self.judged,
            &self.longs,
        ] {
            count.store(0, Ordering::Relaxed);
        }
        self.spilled.store(false, Ordering::Relaxed);
        self.met_lost.store(false, Ordering::Relaxed);
        self.stage.store(Stage::None as u8, Ordering::Relaxed);
        self.waiting.begin(space.used_bytes());
    }

    /// Beside the mutators, once marking has run out of work, by one thread: finds the weak words
    /// and the pairs to clear, among those met since the last call. A marked target stays marked,
    /// so `WeakWork::clear_dying` need not look at the other words again.
    pub fn select_dying(&self, space: &Space) {
        self.look_at_met(space, usize::MAX, |weak_slot| self.note(space, weak_slot));
    }

    /// With nothing left to mark, in a stop or while mutators' flags say that words are being
    /// cleared: looks at about `most` words and pairs, and clears the words of `stage` whose
    /// targets, or keys, are not marked. Stages come in their order, and end when a piece has
    /// looked at none. The later stage also looks at cells that markers met between the two.
    pub(crate) fn clear_piece(&self, space: &Space, stage: Stage, most: usize) -> Cleared {
        self.begin_stage(stage);
        self.clear_some(space, most)
    }

    /// After the last piece of a stage.
    pub(crate) fn end_stage(&self) {
        // Relaxed: as in `begin_stage`.
        self.stage.store(Stage::None as u8, Ordering::Relaxed);
        self.judged.store(0, Ordering::Relaxed);
        let longs = self.longs.swap(0, Ordering::Relaxed);
        self.dying_len.store(longs, Ordering::Relaxed);
    }

    /// Must the world stand while words are cleared? `met` had no room for a weak cell.
    pub(crate) fn clears_in_stops(&self) -> bool {
        self.is_lost()
    }

    /// In the child of a fork: clears the words that the parent's collector had not cleared yet.
    /// Mutators have seen that their targets are dead.
    pub(crate) fn end_clearing(&self, space: &Space) {
        let stage = self.stage();
        while stage != Stage::None && self.clear_some(space, usize::MAX).examined != 0 {}
        self.end_stage();
    }

    /// In a stop, with nothing left to mark: clears every weak word whose target is not marked, and
    /// every ephemeron whose key is not. Returns their number. After more marking it may be called
    /// again, for cells met meanwhile.
    #[cfg(any(test, feature = "internals"))]
    pub fn clear_dying(&self, space: &Space) -> u64 {
        self.clear_piece(space, Stage::All, usize::MAX).cleared
    }

    /// The entry `at` of `met`, if it is written. Otherwise a marking mutator is about to write it,
    /// and has done so by the next stop.
    fn met_entry(&self, at: usize) -> Option<usize> {
        // Ordering: Acquire pairs with the Release in `enter`.
        let entry = self.met.get(at)?.load(Ordering::Acquire);
        (entry != 0).then_some(entry)
    }

    /// Calls `f` for each of the next `most` words and pairs that were met and have not been looked
    /// at. Returns their number.
    fn look_at_met(&self, space: &Space, most: usize, mut f: impl FnMut(WeakSlot)) -> usize {
        let mut examined = 0;
        // Relaxed throughout: the collector's own.
        let mut at = self.met_seen.load(Ordering::Relaxed);
        while examined < most
            && let Some(entry) = self.met_entry(at)
        {
            let mut words = words_of_entry(space, entry);
            let mut word = self.met_word.load(Ordering::Relaxed);
            while examined < most
                && let Some(weak_slot) = words(word)
            {
                f(weak_slot);
                (examined, word) = (examined + 1, word + 1);
            }
            // The entry may have more words; the next call finds out.
            if examined == most {
                self.met_word.store(word, Ordering::Relaxed);
                return examined;
            }
            at += 1;
            self.met_word.store(0, Ordering::Relaxed);
            self.met_seen.store(at, Ordering::Relaxed);
        }
        let pairs = self.waiting.len();
        let mut at = self.pairs_seen.load(Ordering::Relaxed);
        while examined < most && at < pairs {
            // A pair that found no room has no slot, and is strong.
            if let Some(weak_slot) = self.waiting.at(at) {
                f(WeakSlot(weak_slot));
            }
            (examined, at) = (examined + 1, at + 1);
            self.pairs_seen.store(at, Ordering::Relaxed);
        }
        examined
    }

    fn note(&self, space: &Space, weak_slot: WeakSlot) {
        if is_dead(space, weak_slot) {
            self.enter_dying(weak_slot);
        }
    }

    fn enter_dying(&self, weak_slot: WeakSlot) {
        // Relaxed: the collector's own.
        let len = self.dying_len.load(Ordering::Relaxed);
        match self.dying.make(len) {
            Some(place) => {
                place.store(weak_slot.0, Ordering::Relaxed);
                self.dying_len.store(len + 1, Ordering::Relaxed);
            }
            None => self.spilled.store(true, Ordering::Relaxed),
        }
    }

    fn dying_at(&self, at: usize) -> WeakSlot {
        let weak_slot = self.dying.get(at).expect("it was entered");
        WeakSlot(weak_slot.load(Ordering::Relaxed))
    }

    fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Relaxed) {
            stage if stage == Stage::Short as u8 => Stage::Short,
            stage if stage == Stage::All as u8 => Stage::All,
            _ => Stage::None,
        }
    }

    /// Begins a stage, or goes on with it. Nothing is grey.
    fn begin_stage(&self, stage: Stage) {
        if self.stage() == stage {
            return;
        }
        // Relaxed throughout: the collector's own.
        self.stage.store(stage as u8, Ordering::Relaxed);
        if self.spilled.swap(false, Ordering::Relaxed) {
            for count in [&self.met_seen, &self.met_word, &self.pairs_seen] {
                count.store(0, Ordering::Relaxed);
            }
            // The next stage looks at all long words.
            self.spilled.store(stage == Stage::Short, Ordering::Relaxed);
        }
    }

    fn clear_some(&self, space: &Space, most: usize) -> Cleared {
        let mut done = Cleared::default();
        if !seam::clears() {
            return done;
        }
        let keeps_long = self.stage() == Stage::Short;
        let is_long = |weak_slot: WeakSlot| space.kinds.get(weak_slot.kind()).long;
        if self.is_lost() {
            // In a stop, all at once: a second call finds nothing to clear.
            let kinds = &space.kinds;
            for kind in kinds.of_tag(Tag::Weak).chain(kinds.of_tag(Tag::Ephemeron)) {
                space.for_each_cell_of(kind, &mut |cell, marked| {
                    if marked && !(keeps_long && space.kinds.get(cell.kind).long) {
                        for weak_slot in (0..).map_while(words_of(space, cell)) {
                            done.cleared += u64::from(self.clear(space, weak_slot, false));
                        }
                    }
                });
            }
            return done;
        }
        while done.examined < most {
            let at = self.judged.load(Ordering::Relaxed);
            if at < self.dying_len.load(Ordering::Relaxed) {
                let weak_slot = self.dying_at(at);
                done.examined += 1;
                if keeps_long && is_long(weak_slot) {
                    self.judged.store(at + 1, Ordering::Relaxed);
                    let longs = self.longs.fetch_add(1, Ordering::Relaxed);
                    if let Some(place) = self.dying.get(longs) {
                        place.store(weak_slot.0, Ordering::Relaxed);
                    }
                    continue;
                }
                // The child of a fork may judge it a second time, which clears nothing twice.
                let always = !seam::looks_again();
                done.cleared += u64::from(self.clear(space, weak_slot, always));
                self.judged.store(at + 1, Ordering::Relaxed);
                continue;
            }
            if !seam::looks_at_met() {
                break;
            }
            let examined = self.look_at_met(space, most - done.examined, |weak_slot| {
                if keeps_long && is_long(weak_slot) {
                    self.note(space, weak_slot);
                } else {
                    done.cleared += u64::from(self.clear(space, weak_slot, false));
                }
            });
            done.examined += examined;
            // `note` has put long words into `dying`, which come first.
            if examined == 0 {
                break;
            }
        }
        done
    }

    /// `met` had no room for a weak cell.
    fn is_lost(&self) -> bool {
        self.met_lost.load(Ordering::Relaxed)
            || self.met_len.load(Ordering::Relaxed) > self.met.capacity()
    }

    /// Makes the word, or the pair's key, what its kind says a dead one becomes, and the pair's
    /// value null, if it leads to a cell that is not marked; or, for a test, `always`. Says whether
    /// it did. A word that a mutator stores meanwhile stays.
    fn clear(&self, space: &Space, weak_slot: WeakSlot, always: bool) -> bool {
        let descriptor = space.kinds.get(weak_slot.kind());
        let slot = weak_slot.address() as *const AtomicUsize;
        // SAFETY: a word of a marked cell.
        let target = unsafe { &*slot };
        let _whole =
            (descriptor.tag == Tag::Ephemeron).then(|| self.lock_pair(weak_slot.address()));
        // Acquire: as `is_dead`.
        let word = target.load(Ordering::Acquire);
        if !always && !is_dead_target(space, weak_slot.kind(), word) {
            return false;
        }
        // Relaxed: what it becomes leads nowhere.
        if target
            .compare_exchange(
                word,
                descriptor.cleared(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            )
            .is_err()
        {
            return false;
        }
        if descriptor.tag == Tag::Ephemeron {
            // SAFETY: a pair of a marked cell. Its lock is held. A thread that stores a value
            // without the lock holds the key, which is dead.
            unsafe { (*slot.add(1)).store(0, Ordering::Relaxed) };
        }
        true
    }

    // ---- mutators' ------------------------------------------------------------------------------

    /// Keeps other threads from changing the pair at `slot` by anything but plain stores. Under
    /// `no_preempt`, or by the collector.
    pub(crate) fn lock_pair(&self, slot: usize) -> MutexGuard<'_, ()> {
        self.locks[slot / (2 * WORD) % PAIR_LOCKS].lock()
    }

    /// By a mutator, in the same piece under `no_preempt` in which it has copied `words` words to
    /// `to`, in a weak cell or an ephemeron's, while marking is on.
    pub(crate) fn copied(&self, space: &Space, to: usize, words: usize) {
        let Some(cell) = space.resolve(to) else {
            return;
        };
        let pairs = space.kinds.get(cell.kind).tag == Tag::Ephemeron;
        for word in (0..words).step_by(if pairs { 2 } else { 1 }) {
            let weak_slot = WeakSlot::new(to + word * WORD, cell.kind);
            if is_dead(space, weak_slot) && seam::notes_copies() {
                self.enter(weak_slot.0 | SINGLE);
            }
        }
    }

    /// By a mutator under `no_preempt`, while words are being cleared: copies `words` words of a
    /// weak cell, or of an ephemeron's pairs, as they will be.
    ///
    /// # Safety
    /// As `Mutator::copy_weak`.
    pub(crate) unsafe fn copy_judged(
        &self,
        space: &Space,
        to: usize,
        from: usize,
        words: usize,
        mode: u32,
    ) {
        let Some(cell) = space.resolve(to) else {
            return;
        };
        let Descriptor { tag, long, .. } = *space.kinds.get(cell.kind);
        let cleared = space.kinds.get(cell.kind).cleared();
        // SAFETY: the caller says that both are words of live cells.
        let at = |slot: usize| unsafe { &*(slot as *const AtomicUsize) };
        if tag == Tag::Ephemeron {
            for offset in (0..words).step_by(2).map(|word| word * WORD) {
                let (key, value) = {
                    let _whole = self.lock_pair(from + offset);
                    // Acquire: as `is_dead`.
                    let [key, value] =
                        [0, WORD].map(|word| at(from + offset + word).load(Ordering::Acquire));
                    let gone = key == cleared || is_dead_target(space, cell.kind, key);
                    if gone { (cleared, 0) } else { (key, value) }
                };
                // The value first: a marker that finds the key finds its value. Release: as
                // `Mutator::write_pair`.
                at(to + offset + WORD).store(value, Ordering::Release);
                at(to + offset).store(key, Ordering::Release);
            }
            return;
        }
        for offset in (0..words).map(|word| word * WORD) {
            // Acquire: as `is_dead`.
            let word = at(from + offset).load(Ordering::Acquire);
            let is_dead = is_dead_target(space, cell.kind, word);
            let stays = !is_dead || long && mode == JUDGING_LONG;
            at(to + offset).store(if stays { word } else { cleared }, Ordering::Release);
            if is_dead && stays {
                let weak_slot = WeakSlot::new(to + offset, cell.kind);
                self.enter(weak_slot.0 | SINGLE);
            }
        }
    }

    /// All locks, for a fork.
    pub(crate) fn lock_for_fork(&self) -> impl Sized + '_ {
        self.locks.each_ref().map(|lock| lock.lock())
    }
}

/// The weak words of an entry of `met`, by number.
fn words_of_entry(space: &Space, entry: usize) -> impl FnMut(usize) -> Option<WeakSlot> + use<> {
    let single = (entry & SINGLE != 0).then_some(WeakSlot(entry & !SINGLE));
    let cell = match single {
        Some(_) => None,
        None => space.resolve(entry),
    };
    debug_assert!(
        single.is_some() || cell.is_some(),
        "a weak cell was met at {entry:#x}, where no cell is"
    );
    let mut words = cell.map(|cell| words_of(space, cell));
    move |n| match &mut words {
        Some(words) => words(n),
        None => single.filter(|_| n == 0),
    }
}

mod seam {
    use crate::fault::Fault;

    pub(super) fn wakes() -> bool {
        !Fault::NoWake.planted()
    }

    pub(super) fn gives_tables_back() -> bool {
        !Fault::TablesKept.planted()
    }

    pub(super) fn clears() -> bool {
        !Fault::KeepWeak.planted()
    }

    /// Looks again whether the target of a word that was chosen for clearing is dead.
    pub(super) fn looks_again() -> bool {
        !Fault::NoRecheck.planted()
    }

    /// Looks at the cells that were met since.
    pub(super) fn looks_at_met() -> bool {
        !Fault::MetSinceKept.planted()
    }

    pub(super) fn notes_copies() -> bool {
        !Fault::CopiesUnnoted.planted()
    }
}
