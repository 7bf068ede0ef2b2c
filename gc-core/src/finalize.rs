//! Finalizers: the registrations of cells that an embedder wants to get when they have died, and
//! the queue of the dead ones. Values that need `Drop` have such a table, too.
//!
//! What the embedder may rely on: a registered cell that is found unreachable is kept, with all
//! that it leads to. It moves to the queue once, and `Mutator::next_finalizer` returns it with the
//! token that it was registered with. After that it is a cell like any other, and may be registered
//! again. Cells that die in the same cycle are queued in the order of their registration, also when
//! one leads to the other: a cycle of finalizable cells has no better order. A cell that a mutator
//! may still reach is never queued. What the embedder must do: drain the queue now and then. No
//! code of the embedder runs inside the collector, so a finalizer may allocate, lock, and ask for a
//! collection.
//!
//! # What a stop costs
//! Every value that needs `Drop` is registered, so there may be millions of registrations. No stop
//! may go over all of them, nor over all that die. A cycle has these steps. Each works in pieces
//! that take the lock, and a long step runs beside the mutators (`collector/mod.rs` says when):
//!
//! ```text
//! select_piece   goes over the registrations, closes the holes that the last deaths have left, and
//!                notes which cells are not marked
//! judge_piece    moves the noted cells that are still not marked to the queue, where no mutator
//!                sees them yet
//! keep_piece     names the moved cells, so that the collector marks them
//! publish        O(1), in the last stop: mutators may take the moved cells
//! ```
//! Marks must not change from the first `judge_piece` to the last: all are judged before any of
//! them is traced. Otherwise the death of a cell would depend on its place in the table. A cell
//! that is registered after `select_piece` has come to the end is not looked at: its maker held it
//! while marking was on, so it is marked. `begin` takes back a cycle that was abandoned (in the
//! child of a fork).

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use gc_preempt::Mutex;

use crate::fault::protected;
use crate::memory::MapError;
use crate::memory::chunked::Chunked;

/// A registration, or a dead cell in the queue: the cell and the embedder's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Registration {
    pub(crate) cell: usize,
    pub(crate) token: usize,
}

/// Registrations that one piece moves together to close holes: a mutator that registers a cell
/// waits for the lock meanwhile.
const GAPS_PIECE: usize = 256;

const NONE: Registration = Registration { cell: 0, token: 0 };

/// The registrations and the queue of a heap.
///
/// Mutators change it under its lock and inside `no_preempt`; the collector takes the lock for a
/// piece. So a thread that holds the lock runs, and soon releases it.
pub(crate) struct Finalizers {
    registered: Registrations,
    ready: Registrations,
    /// Places of registrations whose cells were not marked. Used by the collector alone.
    unmarked: Chunked<AtomicU32>,
    state: Mutex<State>,
    /// Dead cells in the queue, for reports.
    waiting: AtomicU64,
}

#[derive(Clone, Copy, Default)]
struct State {
    registered: usize,
    /// The registrations that this cycle's pass has seen, and how many of them it has kept. The
    /// kept ones lie in `0..kept`, and those from `seen` on have not moved. Both are `registered`
    /// when the pass is done.
    seen: usize,
    kept: usize,
    /// Places in `unmarked`, and how many of them have been judged.
    unmarked: usize,
    judged: usize,
    /// Whether the pass has come to its end.
    passed: bool,
    /// Whether a list had no room, so that dead cells stay registered: they are kept until the next
    /// cycle.
    overflowed: bool,
    /// Dead cells are entries `taken..died` of the ring `ready`. The dead cells of a cycle that is
    /// not over follow, up to `dying`.
    taken: usize,
    died: usize,
    dying: usize,
    /// The number of these cells, and then of registrations, that `keep_piece` has named.
    named: usize,
    /// The ring's memory before this entry has gone back to the system.
    trimmed: usize,
    /// Whether deaths have left holes among the registrations.
    gaps: bool,
}

/// Registrations of words.
struct Registrations(Chunked<AtomicUsize>);

impl Registrations {
    const CHUNK: usize = Chunked::<AtomicUsize>::CHUNK / 2;

    fn new(capacity: usize) -> Result<Self, MapError> {
        Ok(Self(Chunked::new(capacity * 2)?))
    }

    fn capacity(&self) -> usize {
        self.0.capacity() / 2
    }

    fn get(&self, at: usize) -> Registration {
        // Relaxed, here and in `set`: the lock orders everything.
        let [cell, token] =
            [at * 2, at * 2 + 1].map(|word| self.0.get(word).map(|w| w.load(Ordering::Relaxed)));
        Registration {
            cell: cell.unwrap_or(0),
            token: token.unwrap_or(0),
        }
    }

    /// Writes an entry. False: its memory is not mapped.
    fn set(&self, at: usize, entry: Registration) -> bool {
        let (Some(cell), Some(token)) = (self.0.get(at * 2), self.0.get(at * 2 + 1)) else {
            return false;
        };
        cell.store(entry.cell, Ordering::Relaxed);
        token.store(entry.token, Ordering::Relaxed);
        true
    }

    /// Maps the memory of an entry. False: the system has none.
    fn make(&self, at: usize) -> bool {
        let has_memory = self.0.ensure(at * 2);
        seam::had_memory(has_memory, || self.0.get(at * 2).is_some())
    }
}

/// The result of an attempt to register.
enum Attempt {
    Done,
    Full,
    /// The memory of this entry is missing.
    Missing(usize),
}

impl Finalizers {
    /// Room for `capacity` registrations and as many deaths.
    pub(crate) fn new(capacity: usize) -> Result<Self, MapError> {
        // Whole chunks: the ring's end is a chunk's end.
        let capacity = capacity
            .next_multiple_of(Registrations::CHUNK)
            .min(u32::MAX as usize / 2 / Registrations::CHUNK * Registrations::CHUNK);
        Ok(Self {
            // Twice as many, since the holes that deaths leave are closed a moment later.
            registered: Registrations::new(2 * capacity)?,
            ready: Registrations::new(capacity)?,
            // As many, since all cells may die at once.
            unmarked: Chunked::new(2 * capacity)?,
            state: Mutex::new(State::default()),
            waiting: AtomicU64::new(0),
        })
    }

    /// Registers a cell; `false`: there is no room.
    pub(crate) fn register(&self, entry: Registration) -> bool {
        loop {
            match protected(|| self.try_register(entry)) {
                Attempt::Done => return true,
                Attempt::Full => return false,
                // Outside `no_preempt`, so that no stop waits for the system to map it. And outside
                // of the lock, so the collector, which takes back empty chunks, may take this one
                // back before it is used. The next attempt maps it again.
                Attempt::Missing(at) => {
                    if !self.registered.make(at) {
                        return false;
                    }
                }
            }
        }
    }

    fn try_register(&self, entry: Registration) -> Attempt {
        let mut state = self.state.lock();
        if state.registered == self.registered.capacity() {
            return Attempt::Full;
        }
        if !self.registered.set(state.registered, entry) {
            return Attempt::Missing(state.registered);
        }
        state.registered += 1;
        Attempt::Done
    }

    /// The next dead cell. Under `no_preempt`; when that ends, the cell must be in a register or on
    /// the stack of the calling mutator.
    pub(crate) fn next(&self) -> Option<Registration> {
        let mut state = self.state.lock();
        if state.taken == state.died {
            return None;
        }
        let entry = self.ready.get(state.taken % self.ready.capacity());
        state.taken += 1;
        // Relaxed: a hint.
        self.waiting
            .store((state.died - state.taken) as u64, Ordering::Relaxed);
        Some(entry)
    }

    /// Dead cells that wait to be taken.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Calls `f` with at most `most` of the cells that wait, from the `from`th dead cell of all on.
    /// Returns the number to go on at, if there are more. While mutators run: a mutator that takes
    /// a cell meanwhile logs it.
    pub(crate) fn ready_piece(
        &self,
        from: usize,
        most: usize,
        mut f: impl FnMut(usize),
    ) -> Option<usize> {
        let state = self.state.lock();
        let first = from.max(state.taken);
        let end = (first + most).min(state.died);
        for at in first..end {
            f(self.ready.get(at % self.ready.capacity()).cell);
        }
        (end < state.died).then_some(end)
    }

    /// Before stop 1: begins a pass over the registrations. Takes back the changes of an abandoned
    /// cycle.
    pub(crate) fn begin(&self) {
        let mut state = self.state.lock();
        self.take_back(&mut state);
        if state.seen != state.kept {
            self.pass(&mut state, usize::MAX, |_| true);
        }
        (state.seen, state.kept) = (0, 0);
        (state.unmarked, state.judged) = (0, 0);
        (state.passed, state.overflowed) = (false, false);
    }

    /// Registers the cells again that an abandoned cycle has moved to the queue.
    fn take_back(&self, state: &mut State) {
        let mut next = state.died;
        for at in 0..state.judged {
            let place = self.unmarked_place(at);
            // A moved registration has left its place empty, in the same order.
            if next < state.dying && self.registered.get(place).cell == 0 {
                let entry = self.ready.get(next % self.ready.capacity());
                self.registered.set(place, entry);
                next += 1;
            }
        }
        (state.dying, state.named) = (state.died, 0);
    }

    fn unmarked_place(&self, at: usize) -> usize {
        let place = self.unmarked.get(at);
        place.map_or(0, |place| place.load(Ordering::Relaxed) as usize)
    }

    /// The number of registrations, with those of the cells that were found dead last.
    #[cfg(test)]
    fn registered(&self) -> usize {
        self.state.lock().registered
    }

    /// Looks at `most` registrations and notes the cells that are not `marked`. True: there are
    /// more. While mutators run: a mutator that registers waits for the lock.
    pub(crate) fn select_piece(&self, most: usize, marked: impl Fn(usize) -> bool) -> bool {
        let mut state = self.state.lock();
        !state.passed && self.pass(&mut state, most, marked)
    }

    fn pass(&self, state: &mut State, most: usize, marked: impl Fn(usize) -> bool) -> bool {
        let end = state.registered.min(state.seen.saturating_add(most));
        for at in state.seen..end {
            let entry = self.registered.get(at);
            if entry.cell == 0 {
                continue;
            }
            if !marked(entry.cell) {
                match self.unmarked.make(state.unmarked) {
                    Some(place) => {
                        place.store(state.kept as u32, Ordering::Relaxed);
                        state.unmarked += 1;
                    }
                    // The system has no memory for the note.
                    None => state.overflowed = true,
                }
            }
            if state.kept != at {
                self.registered.set(state.kept, entry);
            }
            state.kept += 1;
        }
        state.seen = end;
        if end < state.registered {
            return true;
        }
        state.registered = state.kept;
        state.seen = state.kept;
        state.passed = true;
        false
    }

    /// Of the next `most` noted registrations, moves those whose cells are still not `marked` to
    /// the queue, where mutators do not see them before [`publish`](Self::publish). It first looks
    /// at all registrations that the pass has not come to. Returns how many it looked at; 0: there
    /// are no more.
    pub(crate) fn judge_piece(&self, most: usize, marked: impl Fn(usize) -> bool) -> usize {
        let mut state = self.state.lock();
        let state = &mut *state;
        if !state.passed {
            let looked = most.min(state.registered - state.seen).max(1);
            self.pass(state, most, &marked);
            return looked;
        }
        let end = state.unmarked.min(state.judged.saturating_add(most));
        let looked = end - state.judged;
        for at in state.judged..end {
            let place = self.unmarked_place(at);
            let entry = self.registered.get(place);
            if marked(entry.cell) {
                continue;
            }
            let room = state.dying - state.taken < self.ready.capacity();
            let to = state.dying % self.ready.capacity();
            if room && self.ready.make(to) && self.ready.set(to, entry) {
                state.dying += 1;
                self.registered.set(place, NONE);
            } else {
                state.overflowed = true;
            }
        }
        state.judged = end;
        looked
    }

    /// The number of cells that this cycle has moved to the queue so far.
    #[cfg(test)]
    fn dying(&self) -> usize {
        let state = self.state.lock();
        state.dying - state.died
    }

    /// Calls `keep` with the next `most` cells to mark: `true` for cells that were moved to the
    /// queue, in their order, and `false` for cells that stay registered although they may be dead,
    /// since there was no room. Returns their number; 0: there are no more.
    pub(crate) fn keep_piece(&self, most: usize, mut keep: impl FnMut(usize, bool)) -> usize {
        let mut state = self.state.lock();
        let moved = state.dying - state.died;
        let left = if state.overflowed {
            state.registered
        } else {
            0
        };
        let end = (moved + left).min(state.named.saturating_add(most));
        let named = end.saturating_sub(state.named);
        for at in state.named..end {
            if at < moved {
                let at = (state.died + at) % self.ready.capacity();
                keep(self.ready.get(at).cell, true);
            } else {
                let cell = self.registered.get(at - moved).cell;
                if cell != 0 {
                    keep(cell, false);
                }
            }
        }
        state.named = end.max(state.named);
        named
    }

    /// In the stop that ends the cycle: mutators may take the cells that it has moved to the queue.
    /// Returns their number.
    pub(crate) fn publish(&self) -> u64 {
        let mut state = self.state.lock();
        let died = state.dying - state.died;
        state.died = state.dying;
        state.gaps |= died != 0;
        (state.unmarked, state.judged, state.named) = (0, 0, 0);
        state.overflowed = false;
        self.waiting
            .store((state.died - state.taken) as u64, Ordering::Relaxed);
        died as u64
    }

    /// Closes the holes that the cycle has left, and returns empty memory to the system. By the
    /// collector, outside of stops.
    pub(crate) fn trim(&self) {
        if !seam::trims() {
            return;
        }
        while self.close_gaps_piece() {}
        // One chunk under one lock, so that a mutator that registers waits for the lock, and not
        // for the system.
        while let Some(chunk) = self.empty_chunk() {
            drop(chunk);
        }
    }

    fn close_gaps_piece(&self) -> bool {
        let mut state = self.state.lock();
        if core::mem::take(&mut state.gaps) {
            (state.seen, state.kept) = (0, 0);
            state.passed = false;
        }
        !state.passed && self.pass(&mut state, GAPS_PIECE, |_| true)
    }

    fn empty_chunk(&self) -> Option<crate::memory::chunked::Chunk> {
        let mut state = self.state.lock();
        // SAFETY: elements behind those in use are used under the lock only, in all of these lists.
        unsafe {
            let places = state.unmarked;
            let behind = self.registered.0.take_last_beyond(2 * state.registered);
            if let Some(chunk) = behind.or_else(|| self.unmarked.take_last_beyond(places)) {
                return Some(chunk);
            }
            let capacity = self.ready.capacity();
            while state.trimmed / Registrations::CHUNK < state.taken / Registrations::CHUNK {
                let first = state.trimmed / Registrations::CHUNK * Registrations::CHUNK;
                state.trimmed = first + Registrations::CHUNK;
                // Otherwise the ring has come round, and the chunk is in use again.
                if state.dying <= first + capacity
                    && let Some(chunk) = self.ready.0.take_chunk(2 * (first % capacity))
                {
                    return Some(chunk);
                }
            }
        }
        None
    }

    /// Takes the lock, for a fork.
    pub(crate) fn lock_for_fork(&self) -> impl Sized + '_ {
        self.state.lock()
    }
}

mod seam {
    use core::time::Duration;

    use crate::fault::Fault;

    /// Whether the system had memory, even if a trim has given it back since.
    pub(super) fn had_memory(then: bool, now: impl FnOnce() -> bool) -> bool {
        if Fault::TrimmedIsFull.planted() {
            std::thread::sleep(Duration::from_millis(20));
            return now();
        }
        then
    }

    pub(super) fn trims() -> bool {
        !Fault::TablesKept.planted()
    }
}

#[cfg(test)]
mod tests;
