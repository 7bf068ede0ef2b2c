//! Roots: what stacks, root ranges, handles and the embedder's callbacks hold, turned into marked
//! cells while the world is stopped.
//!
//! No root is believed. A word of a stack, a stale slot beyond an interpreter's top, a handle that
//! an unattached thread has just freed: each is looked up in the heap's tables, and one that does
//! not name an allocated cell marks nothing. That costs a few loads a word and buys that a wrong
//! root keeps too much at worst.
//!
//! # Who scans
//! The collector, one stack after the other, once all are stopped: 0.7 us a thread with a shallow
//! stack (about 300 words, most of them vector registers in use, and six native frames), where the
//! signal that stopped it took 13 us; 50 ns a native frame, 17 a managed one at a call site that
//! was met before. The other way was tried in an experiment: each thread walks its own stack in the
//! handler before it acknowledges, and leaves what it finds in a buffer. One thread gains nothing
//! by it (34 us either way, depth 10; 283 against 273 us at a depth of 5,000), and 4 or 16 threads
//! of shallow stacks lost by it, in the median. Several deep stacks at once gained: 4 threads of
//! 5,000 frames on 2 processors, 1,128 us for one scanner and 783 for all at once. That was the
//! best of 180 rounds on a busy machine, which says where it may pay and not how much. For that
//! every handler would need more stack, resolve words beside running mutators and fill buffers that
//! can overflow, so one scanner it is until deep stacks on many processors matter.
//!
//! # One wait for all look-ups
//! While the heap is marked its tables are nowhere near: a word that may name a cell needs three
//! lines of them (unit, allocated bit, mark bit), each of which took 0.3 to 0.4 us to come at 1
//! GiB. All three follow from the word alone. So they are asked for when the word is met, and the
//! word waits in a ring ([`Ring`]) until it is its turn: 14 such words of one shallow stack took 17
//! us one by one.
//!
//! # Slots are scanned beside the program
//! A program may hold roots by the million, so stop 1 looks at none of them. It notes, under the
//! tables' lock, which slots there are ([`Roots::snapshot`]), and the collector scans those piece
//! by piece while mutators run. Who frees or changes a slot of the snapshot that has not been
//! scanned yet logs what it held, under the same lock, as the barrier does with an edge that is
//! overwritten. A new root needs nothing: what it names was reachable when marking began, or was
//! born black. So a copy needs nothing either, though its source may be freed before it is scanned:
//! that is when it is logged.
//!
//! Ranges and callbacks are scanned in the stop: what they name changes at any instruction, without
//! a barrier.
//!
//! # Who may change the tables
//! All tables are under one lock. A mutator holds it inside `no_preempt` only, an unattached thread
//! (which is never stopped) at any time, and the collector while it notes the snapshot, for each
//! piece of it, and while it scans ranges and callbacks. Without `no_preempt` the collector would
//! wait for ever for a mutator that it has stopped itself. An unattached thread logs while it holds
//! the lock, and only while the snapshot is not scanned to its end; so no word is on its way into
//! the log when the collector has scanned the last piece, and stop 2 finds them all.

use core::hint::black_box;
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

use gc_preempt::{Mutex, MutexGuard};
use gc_preempt::{RootSink, WalkStats};

use crate::encoding::Encoding;
use crate::fault::planted;
use crate::heap::{Cell, PAGE, Space};
use crate::mark::Marker;
use crate::memory::MapError;
use crate::memory::places::Places;
use crate::memory::prefetch::Ring;
use crate::memory::tables::{Mapped, Slab};
use crate::verify::{Source, Verify};

/// What a heap scans besides stacks.
pub(crate) struct Roots {
    slots: Mapped<AtomicUsize>,
    tables: Mutex<Tables>,
}

/// Everything here is in mapped memory: it is changed inside `no_preempt`, where malloc may not be
/// called.
pub(crate) struct Tables {
    /// Which slots are used.
    used: Places,
    /// Slots of the snapshot that have not been scanned.
    unscanned: Range<usize>,
    ranges: Slab<RangeRoot>,
    callbacks: Slab<Callback>,
}

/// Root ranges a heap can have: one or two a mutator. In a heap of few addresses one for each of so
/// many handles.
const MAX_RANGES: usize = 1 << 20;
const HANDLES_A_RANGE: usize = 16;
/// Root callbacks a heap can have, in the same way.
const MAX_CALLBACKS: usize = 1 << 16;
const HANDLES_A_CALLBACK: usize = 64;

/// An embedder's root callback.
pub(crate) type Callback = Box<dyn FnMut(&mut RootVisitor<'_>) + Send>;

/// A declared root range.
#[derive(Clone, Copy)]
pub(crate) struct RangeRoot {
    pub(crate) base: *const usize,
    pub(crate) limit: *const AtomicUsize,
    pub(crate) encoding: Encoding,
    /// What the limit was at registration. Only a planted fault looks at it.
    cached: usize,
}

// SAFETY: the pointers are followed by the collector while the world is stopped, which whoever
// registered the range has allowed.
unsafe impl Send for RangeRoot {}

impl RangeRoot {
    /// # Safety
    /// See `Mutator::root_range`.
    pub(crate) unsafe fn new(
        base: *const usize,
        limit: *const AtomicUsize,
        encoding: Encoding,
    ) -> Self {
        // SAFETY: the caller passes a live limit word. Relaxed: the caller's own thread writes it.
        let cached = unsafe { (*limit).load(Ordering::Relaxed) };
        Self {
            base,
            limit,
            encoding,
            cached,
        }
    }
}

impl Roots {
    /// Tables with room for `handles` handles.
    pub(crate) fn new(handles: usize) -> Result<Self, MapError> {
        Ok(Self {
            slots: Mapped::growing(handles)?,
            tables: Mutex::new(Tables::new(handles)?),
        })
    }

    /// The tables, to be changed: inside `no_preempt`, or by a thread that is no mutator.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock()
    }

    /// Before the stop in which they are scanned, by the collector: has what will be looked at
    /// brought near its processor. Nothing is believed of what it sees.
    pub(crate) fn rehearse(&self) {
        /// What is worth it: a line takes a tenth of a microsecond to come, and 16 us is what a
        /// stop takes at least.
        const MOST: usize = 64;
        let mut tables = self.lock();
        let mut from = 0;
        for _ in 0..MOST {
            let Some((at, range)) = tables.ranges.next(from) else {
                break;
            };
            black_box(range);
            from = at + 1;
        }
    }

    /// A handle on the cell at `address` (or on nothing: zero). `None`: there are as many as there
    /// can be. Protected as [`Roots::lock`].
    pub(crate) fn add(&self, address: usize) -> Option<usize> {
        self.add_locked(&mut self.lock(), address)
    }

    fn add_locked(&self, tables: &mut Tables, address: usize) -> Option<usize> {
        let slot = tables.used.take()?;
        if slot >= self.slots.writable() && self.slots.make_writable(slot + 1).is_err() {
            tables.used.give(slot);
            return None;
        }
        // Relaxed: the lock orders the slots' use; a handle's own readers have it from its maker.
        self.slots[slot].store(address, Ordering::Relaxed);
        Some(slot)
    }

    /// A second handle on what `slot` holds.
    pub(crate) fn copy(&self, slot: usize) -> Option<usize> {
        // Read under the lock: between a look and the lock, another thread could change the slot
        // and a collection free the cell.
        let mut tables = self.lock();
        self.add_locked(&mut tables, self.get(slot))
    }

    /// Frees a handle, or lets it hold something else. Calls `log`, under the lock, with what it
    /// held if that is still to be scanned. Protected as [`Roots::lock`].
    pub(crate) fn change(&self, slot: usize, to: Option<usize>, log: impl FnOnce(usize)) {
        let mut tables = self.lock();
        if tables.unscanned.contains(&slot) {
            let word = self.slots[slot].load(Ordering::Relaxed);
            if word != 0 {
                log(word);
            }
        }
        match to {
            // Release pairs with the Acquire of `get`.
            Some(address) => self.slots[slot].store(address, Ordering::Release),
            None => {
                tables.used.give(slot);
            }
        }
    }

    /// What a handle holds.
    #[inline]
    pub(crate) fn get(&self, slot: usize) -> usize {
        // Acquire pairs with the Release of `set`: the cell's content is seen by whom finds the
        // cell here.
        self.slots[slot].load(Ordering::Acquire)
    }

    /// In stop 1: the slots that are used now are to be scanned; how many. `grows`: those that are
    /// used later as well, until [`end_snapshot`](Self::end_snapshot).
    ///
    /// So it is where stacks are still to be scanned: code inside `blocking` may make a root of
    /// what a variable of its caller's names, and clear that.
    pub(crate) fn snapshot(&self, grows: bool) -> usize {
        let mut tables = self.lock();
        let end = if grows { usize::MAX } else { tables.used.end() };
        tables.unscanned = 0..end;
        tables.used.used()
    }

    /// All stacks have been scanned: slots beyond those that are used now need not be. Before the
    /// first piece.
    pub(crate) fn end_snapshot(&self) {
        let mut tables = self.lock();
        tables.unscanned.end = tables.unscanned.end.min(tables.used.end());
    }

    /// Nothing is to be scanned: in the child of a fork.
    pub(crate) fn forget_snapshot(&self) {
        self.lock().unscanned = 0..0;
    }

    /// Scans some more slots of the snapshot; `false`: all have been.
    pub(crate) fn scan_piece(&self, scanner: &mut Scanner<'_, '_>) -> bool {
        /// Slots under one lock: some microseconds.
        const PIECE: usize = 1024;
        let mut tables = self.lock();
        let Range { start, end } = tables.unscanned.clone();
        let mut from = start;
        for _ in 0..PIECE {
            let Some(slot) = tables.used.next(from, end) else {
                tables.unscanned = 0..0;
                return false;
            };
            // Relaxed: under the lock.
            scanner.word(self.slots[slot].load(Ordering::Relaxed), Encoding::RAW);
            from = slot + 1;
        }
        tables.unscanned.start = from;
        true
    }

    /// Calls `f` with each root of the snapshot. In the stop.
    pub(crate) fn for_each(&self, mut f: impl FnMut(usize)) {
        let tables = self.lock();
        let mut from = 0;
        while let Some(slot) = tables.used.next(from, usize::MAX) {
            f(self.slots[slot].load(Ordering::Relaxed));
            from = slot + 1;
        }
    }

    /// Gives back the memory that a peak of roots, ranges and callbacks has left. Outside of stops.
    pub(crate) fn trim(&self) {
        let mut from = Some(0);
        while let Some(at) = from {
            // SAFETY: whole pages of slots, none of which is used.
            from = self.lock().used.trim_piece(at, |empty| unsafe {
                self.slots.discard(empty);
            });
        }
        let mut from = Some(0);
        while let Some(at) = from {
            from = self.lock().ranges.trim_piece(at);
        }
        let mut from = Some(0);
        while let Some(at) = from {
            from = self.lock().callbacks.trim_piece(at);
        }
    }
}

impl Tables {
    fn new(slots: usize) -> Result<Self, MapError> {
        Ok(Self {
            used: Places::new(slots)?,
            unscanned: 0..0,
            ranges: Slab::new((slots / HANDLES_A_RANGE).clamp(1, MAX_RANGES))?,
            callbacks: Slab::new((slots / HANDLES_A_CALLBACK).clamp(1, MAX_CALLBACKS))?,
        })
    }

    pub(crate) fn add_range(&mut self, range: RangeRoot) -> Option<usize> {
        self.ranges.add(range).ok()
    }

    pub(crate) fn remove_range(&mut self, at: usize) {
        self.ranges.take(at);
    }

    /// Gives the callback back, to be dropped outside of the lock, if there are as many as there
    /// can be.
    pub(crate) fn add_callback(&mut self, callback: Callback) -> Result<usize, Callback> {
        self.callbacks.add(callback)
    }

    /// The callback, to be dropped outside of the lock: its drop is the embedder's code.
    #[must_use]
    pub(crate) fn take_callback(&mut self, at: usize) -> Option<Callback> {
        self.callbacks.take(at)
    }
}

/// The encodings in use, numbered for the whole process: a thread may have frames of one heap's
/// code and be a mutator of another, whose collector meets the former's slots too.
mod encodings {
    use core::sync::atomic::{AtomicUsize, Ordering};

    use gc_preempt::Mutex;

    use crate::encoding::Encoding;

    /// Runtimes have a handful each.
    const MOST: usize = 1024;

    static WORDS: [[AtomicUsize; 3]; MOST] = [const { [const { AtomicUsize::new(0) }; 3] }; MOST];
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    static ADDING: Mutex<()> = Mutex::new(());

    /// The encoding of that number. In a stop or out of it.
    pub(crate) fn numbered(number: u32) -> Option<Encoding> {
        // Acquire pairs with the Release in `number`: entries below the count are whole, and do not
        // change.
        let n = COUNT.load(Ordering::Acquire);
        let words = WORDS[..n].get(number as usize)?;
        let [mask, value, keep] = [0, 1, 2].map(|i| words[i].load(Ordering::Relaxed));
        Some(Encoding { mask, value, keep })
    }

    /// All of them.
    pub(crate) fn all() -> impl Iterator<Item = Encoding> {
        (0..).map_while(numbered)
    }

    /// The number of `encoding`, a new one if it has none. `None`: there are as many as there can
    /// be.
    pub(crate) fn number(encoding: Encoding) -> Option<u32> {
        let known = || all().position(|e| e == encoding).map(|at| at as u32);
        known().or_else(|| {
            gc_preempt::no_preempt_here(|| {
                let _adding = ADDING.lock();
                known().or_else(|| {
                    let at = COUNT.load(Ordering::Relaxed);
                    let words = WORDS.get(at)?;
                    for (to, from) in
                        words
                            .iter()
                            .zip([encoding.mask, encoding.value, encoding.keep])
                    {
                        to.store(from, Ordering::Relaxed);
                    }
                    COUNT.store(at + 1, Ordering::Release);
                    Some(at as u32)
                })
            })
        })
    }
}
pub(crate) use encodings::number as encoding_number;

/// Asks for the mark bits of what a word of the barrier's log names: it will be looked at soon.
pub(crate) fn prefetch_logged(space: &Space, word: usize) {
    for offset in encodings::all()
        .filter_map(|encoding| encoding.decode(word))
        .filter_map(|address| space.offset(address))
    {
        space.marked_bits().prefetch(offset);
    }
}

/// Asks for all else that [`names_unmarked`] will want to know of a word, if it names what is not
/// marked. Its mark bits are there.
pub(crate) fn prefetch_unmarked(space: &Space, word: usize) {
    for address in encodings::all().filter_map(|encoding| encoding.decode(word)) {
        if space.contains(address) && !names_marked(space, address) {
            space.prefetch_cell(address);
        }
    }
}

/// Whether an address names a marked cell by its first granule, as most that are logged do: one
/// look at the heap's tables where [`Space::resolve`] takes three.
fn names_marked(space: &Space, address: usize) -> bool {
    space.is_marked(address)
}

/// Marks what one word of the barrier's log names: an edge in an encoding of some kind, or a word
/// of a conservative cell.
pub(crate) fn logged(space: &Space, marker: &mut Marker<'_>, word: usize) {
    for address in encodings::all().filter_map(|encoding| encoding.decode(word)) {
        if !names_marked(space, address)
            && let Some(cell) = space.resolve(address)
        {
            marker.cell(cell);
        }
    }
    let any = space
        .encodings()
        .iter()
        .filter_map(|encoding| encoding.decode(word))
        .any(|address| !names_marked(space, address));
    if any && !planted("log-exact-only") {
        marker.conservative(word);
    }
}

/// Whether a word of the barrier's log names a cell that is not marked, read in any of the ways in
/// which [`logged`] reads it.
pub(crate) fn names_unmarked(space: &Space, word: usize) -> bool {
    let unmarked = |cell: Cell| !space.is_marked(cell.base);
    let exact = encodings::all()
        .filter_map(|encoding| encoding.decode(word))
        .filter(|address| !names_marked(space, *address))
        .any(|address| space.resolve(address).is_some_and(unmarked));
    let conservative = || {
        space
            .encodings()
            .iter()
            .filter_map(|encoding| encoding.decode(word))
            .filter(|address| !names_marked(space, *address))
            .any(|address| space.resolve(address).is_some_and(unmarked))
    };
    exact || (!planted("log-exact-only") && conservative())
}

/// What a scan of the roots has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// Frames, as the walker counts them.
    pub(crate) frames: WalkStats,
    /// Words that were looked at one by one, as they may be anything.
    pub(crate) conservative_words: u64,
    /// Words that a map, a range or a table names.
    pub(crate) exact_words: u64,
    /// Cells that a conservative word was the first to reach.
    pub(crate) conservative_marked: u64,
    /// Cells that an exact word was the first to reach.
    pub(crate) exact_marked: u64,
}

impl Scanned {
    /// The size of what was scanned: what the pacer counts as roots.
    pub(crate) fn bytes(&self) -> u64 {
        (self.conservative_words + self.exact_words) * size_of::<usize>() as u64
    }
}

impl core::ops::AddAssign for Scanned {
    fn add_assign(&mut self, other: Self) {
        self.frames += other.frames;
        self.conservative_words += other.conservative_words;
        self.exact_words += other.exact_words;
        self.conservative_marked += other.conservative_marked;
        self.exact_marked += other.exact_marked;
    }
}

/// Words that wait for what tells of them.
const WAITING: usize = 32;

/// Marks what roots hold. What it was told of is marked when it ends, not before.
pub(crate) struct Scanner<'a, 'm> {
    space: &'a Space,
    marker: &'a mut Marker<'m>,
    /// Addresses that words decode to whose lines of the heap's tables have been asked for: those
    /// that name a cell exactly, and those that may.
    exact: Ring<WAITING>,
    any: Ring<WAITING>,
    verify: Option<&'m Verify>,
    /// Addresses of all units that were ever in use. Nothing beyond them names a cell, and to look
    /// there would be the first touch of a page of the heap's tables: a fault of 7 us in the stop,
    /// for a word that happens to look like an address of the large reserve.
    used: Range<usize>,
    /// A conservative word can only be such an address itself: nearly every word is none, and is
    /// done with in one compare.
    plain: bool,
    pub(crate) scanned: Scanned,
}

impl<'a, 'm> Scanner<'a, 'm> {
    pub(crate) fn new(
        space: &'a Space,
        marker: &'a mut Marker<'m>,
        verify: Option<&'m Verify>,
    ) -> Self {
        marker.record(verify);
        Self {
            space,
            marker,
            exact: Ring::new(),
            any: Ring::new(),
            verify,
            used: space.base()..space.base() + space.top() * PAGE,
            plain: space.encodings() == [Encoding::RAW],
            scanned: Scanned::default(),
        }
    }

    pub(crate) fn space(&self) -> &'a Space {
        self.space
    }

    /// What is reported from now on comes from there.
    pub(crate) fn source(&mut self, source: Source) {
        if let Some(verify) = self.verify {
            self.settle();
            verify.source(source);
        }
    }

    /// Marks what waits.
    fn settle(&mut self) {
        while let Some(address) = self.exact.pop() {
            self.name(address);
        }
        while let Some(address) = self.any.pop() {
            self.may_name(address);
        }
    }

    /// Marks what waits, and says what was seen.
    pub(crate) fn finish(mut self) -> Scanned {
        self.settle();
        self.scanned
    }

    /// An address that names a cell, if it does.
    fn name(&mut self, address: usize) {
        if let Some(cell) = self.space.resolve(address) {
            self.scanned.exact_marked += u64::from(self.marker.cell(cell));
        }
    }

    /// An address that may name a cell.
    fn may_name(&mut self, address: usize) {
        self.scanned.conservative_marked += u64::from(self.marker.interior(address));
    }

    /// Ranges and callbacks. The world is stopped, so whoever holds the tables' lock is running and
    /// soon done.
    pub(crate) fn tables(&mut self, roots: &Roots) {
        let mut tables = roots.lock();
        let mut from = 0;
        while let Some((at, &mut range)) = tables.ranges.next(from) {
            from = at + 1;
            let limit = if planted("cached-limit") {
                range.cached
            } else {
                // SAFETY: alive while it is registered, says `Mutator::root_range`. Relaxed: its
                // writer is stopped.
                unsafe { (*range.limit).load(Ordering::Relaxed) }
            };
            for slot in (range.base as usize..limit).step_by(size_of::<usize>()) {
                // SAFETY: `Mutator::root_range` asks that base to limit be readable at every
                // instruction.
                let word = unsafe { (slot as *const usize).read_volatile() };
                self.word(word, range.encoding);
            }
        }
        let mut from = 0;
        while let Some((at, callback)) = tables.callbacks.next(from) {
            from = at + 1;
            callback(&mut RootVisitor { scanner: self });
        }
    }

    /// Asks for all that tells whether an address names a cell. False: it names none.
    fn ask(&self, address: usize) -> bool {
        let is_used = address.wrapping_sub(self.used.start) < self.used.len();
        is_used && self.space.prefetch_cell(address)
    }

    /// One exact word.
    pub(crate) fn word(&mut self, word: usize, encoding: Encoding) {
        self.scanned.exact_words += 1;
        let Some(address) = encoding.decode(word) else {
            return;
        };
        if planted("trust-roots") {
            self.marker.edge(word, encoding);
        } else if self.ask(address)
            && let Some(oldest) = self.exact.exchange(address)
        {
            self.name(oldest);
        }
    }

    /// A word that may be anything.
    fn any_word(&mut self, word: usize) {
        let space = self.space;
        for encoding in space.encodings() {
            if let Some(address) = encoding.decode(word)
                && self.ask(address)
                && let Some(oldest) = self.any.exchange(address)
            {
                self.may_name(oldest);
            }
        }
    }
}

impl Drop for Scanner<'_, '_> {
    fn drop(&mut self) {
        self.settle();
        self.marker.record(None);
    }
}

impl RootSink for Scanner<'_, '_> {
    fn conservative(&mut self, words: Range<usize>) {
        self.scanned.conservative_words += (words.len() / size_of::<usize>()) as u64;
        // As in `ask`.
        let (base, last) = match self.plain {
            true => (self.used.start, self.used.len().saturating_sub(1)),
            false => (0, usize::MAX),
        };
        for at in words.step_by(size_of::<usize>()) {
            // SAFETY: the walker hands out ranges of a stopped thread's stack and register file,
            // which stay mapped while it is stopped. Volatile: the words may be the spilled state
            // of any code, initialised or not.
            let word = unsafe { (at as *const usize).read_volatile() };
            if word.wrapping_sub(base) <= last {
                self.any_word(word);
            }
        }
    }

    fn exact(&mut self, slot: usize, encoding: u32) {
        // SAFETY: as above; the slot lies in a frame of the stopped thread.
        let word = unsafe { (slot as *const usize).read_volatile() };
        match encodings::numbered(encoding) {
            Some(encoding) => self.word(word, encoding),
            // Code that was registered past the heap: nothing says how its words are meant.
            None => self.any_word(word),
        }
    }

    fn derived(&mut self, base: usize, _derived: usize, encoding: u32) {
        self.exact(base, encoding);
    }
}

/// Takes what a walk finds, and looks at nothing: see `stacks.rs`.
pub(crate) struct Unscanned;

impl RootSink for Unscanned {
    fn conservative(&mut self, _words: Range<usize>) {}
    fn exact(&mut self, _slot: usize, _encoding: u32) {}
    fn derived(&mut self, _base: usize, _derived: usize, _encoding: u32) {}
}

/// What a root callback reports to.
///
/// The callback runs while the world is stopped: it must not allocate, lock anything that a mutator
/// may hold, print or panic, and may only read what mutators change inside `no_preempt` (a `Vec`
/// that was stopped in the middle of growing has no valid state).
pub struct RootVisitor<'s> {
    scanner: &'s mut (dyn VisitRoots + 's),
}

/// Hides the scanner from embedders.
trait VisitRoots {
    fn exact_word(&mut self, word: usize, encoding: Encoding);
    fn any_words(&mut self, words: Range<usize>);
}

impl VisitRoots for Scanner<'_, '_> {
    fn exact_word(&mut self, word: usize, encoding: Encoding) {
        self.word(word, encoding);
    }

    fn any_words(&mut self, words: Range<usize>) {
        self.conservative(words);
    }
}

impl RootVisitor<'_> {
    /// A word that is an edge of the given encoding, or none.
    pub fn word(&mut self, word: usize, encoding: Encoding) {
        self.scanner.exact_word(word, encoding);
    }

    /// Words that are edges of the given encoding.
    pub fn words(&mut self, words: &[usize], encoding: Encoding) {
        for word in words {
            self.scanner.exact_word(*word, encoding);
        }
    }

    /// Memory whose every word may be anything.
    pub fn conservative(&mut self, words: &[usize]) {
        let range = words.as_ptr_range();
        self.scanner
            .any_words(range.start as usize..range.end as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::SpaceConfig;
    use crate::heap::tests::Toy;
    use crate::kind::Kind;

    #[test]
    fn freed_handles_are_used_again() {
        let roots = Roots::new(1 << 12).unwrap();
        let a = roots.add(0x1000).unwrap();
        let b = roots.add(0x2000).unwrap();
        let c = roots.copy(b).unwrap();
        assert_eq!(
            (roots.get(a), roots.get(b), roots.get(c)),
            (0x1000, 0x2000, 0x2000)
        );
        let free = |slot| roots.change(slot, None, |_| panic!("nothing is to be scanned"));
        free(a);
        free(c);
        assert_eq!(roots.add(0x3000), Some(a));
        assert_eq!(roots.add(0x4000), Some(c));
        assert_eq!(roots.add(0x5000), Some(3));
        roots.change(b, Some(0x6000), |_| panic!("nothing is to be scanned"));
        assert_eq!(roots.get(b), 0x6000);
    }

    #[test]
    fn the_last_handle_is_followed_by_none() {
        let roots = Roots::new(1 << 12).unwrap();
        for i in 0..1 << 12 {
            assert_eq!(roots.add(i * 16), Some(i));
        }
        assert_eq!(roots.add(16), None);
        roots.change(7, None, |_| ());
        assert_eq!(roots.add(16), Some(7));
    }

    #[test]
    fn a_root_that_goes_before_it_was_scanned_is_logged_and_no_other() {
        let mut toy = Toy::small();
        let leaf = toy.space.add_kind(Kind::leaf("leaf")).unwrap();
        let cells: Vec<usize> = (0..3000).map(|_| toy.alloc(leaf, 16)).collect();
        let (space, roots) = (&toy.space, Roots::new(1 << 12).unwrap());
        for cell in &cells {
            roots.add(*cell).unwrap();
        }
        space.begin_marking();
        assert_eq!(roots.snapshot(false), 3000);
        let late = roots.add(cells[0]).unwrap();
        let mut marker = Marker::new(space, &toy.queue, &toy.weak);
        let mut scanner = Scanner::new(space, &mut marker, None);
        assert!(roots.scan_piece(&mut scanner));
        let change = |slot, to| {
            let mut logged = 0;
            roots.change(slot, to, |word| logged = word);
            logged
        };
        assert_eq!(
            (change(0, None), change(1, Some(cells[2]))),
            (0, 0),
            "these have been scanned"
        );
        assert_eq!(
            (change(2500, None), change(2501, Some(0))),
            (cells[2500], cells[2501])
        );
        assert_eq!(
            change(late, None),
            cells[0],
            "it may have a place in the snapshot"
        );
        while roots.scan_piece(&mut scanner) {}
        assert_eq!(change(2700, None), 0);
        assert_eq!(scanner.finish().exact_marked, 2998);
        let unmarked: Vec<usize> = (0..3000).filter(|i| !space.is_marked(cells[*i])).collect();
        assert_eq!(unmarked, [2500, 2501]);
    }

    #[test]
    fn an_encoding_has_one_number() {
        let odd = Encoding {
            mask: 7,
            value: 5,
            keep: !7,
        };
        let number = encodings::number(odd).unwrap();
        assert_eq!(encodings::number(odd), Some(number));
        assert_eq!(encodings::numbered(number), Some(odd));
        assert_ne!(encodings::number(Encoding::low_bits(3)), Some(number));
        assert_eq!(encodings::numbered(u32::MAX), None);
    }

    /// Is the page there that says what this unit holds?
    fn is_known(space: &Space, unit: usize) -> bool {
        let word = core::ptr::from_ref(space.page_table().word(unit)) as usize;
        let mut page = 0u8;
        // SAFETY: a page of the table, which is mapped, and a byte for it.
        let result = unsafe { libc::mincore((word & !4095) as *mut _, 1, &raw mut page) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        page & 1 != 0
    }

    #[test]
    fn a_word_that_leads_beyond_all_units_in_use_is_not_looked_up() {
        let mut toy = Toy::new(SpaceConfig {
            reserve: 64 << 30,
            ..SpaceConfig::default()
        });
        let leaf = toy.space.add_kind(Kind::leaf("leaf")).unwrap();
        let cells: Vec<usize> = (0..200).map(|_| toy.alloc(leaf, 512)).collect();
        let space = &toy.space;
        let beyond = space.base() + (48 << 30);
        let last = space.base() + space.top() * PAGE;
        let words = [beyond, cells[3] + 8, last, cells[199], beyond + 8];
        space.begin_marking();
        let mut marker = Marker::new(space, &toy.queue, &toy.weak);
        let mut scanner = Scanner::new(space, &mut marker, None);
        let range = words.as_ptr_range();
        scanner.conservative(range.start as usize..range.end as usize);
        scanner.word(beyond + 16, Encoding::RAW);
        let scanned = scanner.finish();
        assert_eq!(scanned.conservative_marked, 2);
        assert!(space.is_marked(cells[3]) && space.is_marked(cells[199]));
        assert!(is_known(space, 0) && !is_known(space, (48 << 30) / PAGE));
    }
}
