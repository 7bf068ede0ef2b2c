//! Finalizers: cells whose death an embedder wants to hear of, and the queue of those that died.
//!
//! What the embedder may rely on: a registered cell that is found unreachable is kept (it and whatever it leads to), moved to the queue
//! once, and handed out by `Mutator::next_finalizer` with the token it was registered with; after that it is a cell like any other, and may
//! be registered again. Cells that die in the same cycle are queued in the order of their registration, also when one leads to the other: a
//! cycle of finalizable cells has no better order. A cell that a mutator may still reach is never queued. What the embedder must do: drain
//! the queue now and then. No code of the embedder's ever runs inside the collector, so a finalizer may allocate, lock, and ask for a
//! collection.
//!
//! # What a stop costs
//! Every value that needs `Drop` is registered, so there may be millions, and no stop may go over them all. Once marking has run out of
//! work, the collector goes over the registrations beside the mutators, in pieces: it closes the gaps that the last deaths have left, and
//! notes which cells are not marked. In the stop it looks at those again, and at no others: what is marked stays marked; and what was
//! registered since, its maker held strongly while marking was on, so it is marked, once the stop has drained the logs. All are judged
//! before any of them is traced: otherwise the death of a cell would depend on its place in the table.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use gc_preempt::{Mutex, MutexGuard};

use crate::heap::MapError;
use crate::mapped::Mapped;

/// A registration, or a death: the cell and the embedder's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) cell: usize,
    pub(crate) token: usize,
}

/// A heap's finalizers.
///
/// Mutators change it under its lock and inside `no_preempt`; the collector takes the lock in the stop. Whoever holds it is therefore
/// running, and soon done.
pub(crate) struct Finalizers {
    registered: Pairs,
    ready: Pairs,
    /// Places of registrations whose cells were not marked. The collector's own.
    unmarked: Mapped<AtomicUsize>,
    state: Mutex<State>,
    /// How many are ready, for those who only want to know.
    waiting: AtomicU64,
}

#[derive(Clone, Copy, Default)]
struct State {
    registered: usize,
    /// How far this cycle's pass over the registrations is, and how many it has kept: they lie in `0..kept`, and those from `seen` on where they
    /// were. Both are `registered` when it is done.
    seen: usize,
    kept: usize,
    /// Places in `unmarked`.
    unmarked: usize,
    /// The pass has come to an end once.
    passed: bool,
    /// Deaths are entries `taken..died` of the ring `ready`.
    taken: usize,
    died: usize,
}

/// Pairs of words in mapped memory.
struct Pairs(Mapped<AtomicUsize>);

impl Pairs {
    fn new(capacity: usize) -> Result<Self, MapError> {
        Ok(Self(Mapped::reserve(capacity * 2, 1 << 9)?))
    }

    fn capacity(&self) -> usize {
        self.0.len() / 2
    }

    fn get(&self, at: usize) -> Entry {
        // Relaxed, here and in `set`: the lock orders everything.
        Entry {
            cell: self.0[at * 2].load(Ordering::Relaxed),
            token: self.0[at * 2 + 1].load(Ordering::Relaxed),
        }
    }

    fn set(&self, at: usize, entry: Entry) {
        self.0[at * 2].store(entry.cell, Ordering::Relaxed);
        self.0[at * 2 + 1].store(entry.token, Ordering::Relaxed);
    }
}

impl Finalizers {
    /// Room for `capacity` registrations and as many deaths.
    pub(crate) fn new(capacity: usize) -> Result<Self, MapError> {
        let registered = Pairs::new(capacity)?;
        let places = registered.capacity();
        Ok(Self {
            registered,
            ready: Pairs::new(capacity)?,
            // No fewer: all may die at once.
            unmarked: Mapped::reserve(places, places)?,
            state: Mutex::new(State::default()),
            waiting: AtomicU64::new(0),
        })
    }

    /// Registers; `false` if there is no room. Under `no_preempt`.
    pub(crate) fn register(&self, entry: Entry) -> bool {
        let mut state = self.state.lock();
        if state.registered == self.registered.capacity() {
            return false;
        }
        self.registered.set(state.registered, entry);
        state.registered += 1;
        true
    }

    /// The next death. Under `no_preempt`; what is handed out must be in a register or on the stack of the calling mutator when that
    /// ends.
    pub(crate) fn next(&self) -> Option<Entry> {
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

    /// How many deaths wait to be taken.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Tells `f` at most `most` of the cells that wait, from the `from`th that ever died on; where to go on, if there are more. While
    /// mutators run: whoever takes one meanwhile makes sure that it is marked.
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

    /// Before stop 1: no registration has been looked at. What a cycle that was abandoned has left half done is ended.
    pub(crate) fn begin(&self) {
        let mut state = self.state.lock();
        if state.seen != state.kept {
            self.pass(&mut state, usize::MAX, |_| true);
        }
        (state.seen, state.kept) = (0, 0);
        state.unmarked = 0;
        state.passed = false;
    }

    /// Looks at `most` registrations and notes those that `marked` denies. True: there are more. While mutators run: one that registers waits for
    /// the lock.
    pub(crate) fn select_piece(&self, most: usize, marked: impl Fn(usize) -> bool) -> bool {
        let mut state = self.state.lock();
        !state.passed && self.pass(&mut state, most, marked)
    }

    /// How many registrations this cycle's pass has not looked at yet.
    pub(crate) fn unseen(&self) -> usize {
        let state = self.state.lock();
        if state.passed {
            0
        } else {
            state.registered - state.seen
        }
    }

    fn pass(&self, state: &mut State, most: usize, marked: impl Fn(usize) -> bool) -> bool {
        let end = state.registered.min(state.seen.saturating_add(most));
        for at in state.seen..end {
            let entry = self.registered.get(at);
            if entry.cell == 0 {
                continue;
            }
            if !marked(entry.cell) {
                self.unmarked[state.unmarked].store(state.kept, Ordering::Relaxed);
                state.unmarked += 1;
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

    /// Takes the lock, for the child of a fork.
    pub(crate) fn lock_for_fork(&self) -> impl Sized + '_ {
        self.state.lock()
    }

    /// The collector's view, for as long as the world is stopped.
    pub(crate) fn stopped(&self) -> StoppedFinalizers<'_> {
        StoppedFinalizers {
            all: self,
            state: self.state.lock(),
        }
    }
}

/// The finalizers of a stopped world.
pub(crate) struct StoppedFinalizers<'a> {
    all: &'a Finalizers,
    state: MutexGuard<'a, State>,
}

impl StoppedFinalizers<'_> {
    /// Moves each registered cell that `marked` denies to the queue, after `keep` has been told to mark it. Gives their number. Of cells that the
    /// pass beside the mutators has not come to (there was none, if the world was not resumed), it looks at all.
    pub(crate) fn bury(
        &mut self,
        marked: impl Fn(usize) -> bool,
        mut keep: impl FnMut(usize),
    ) -> u64 {
        let (all, state) = (self.all, &mut *self.state);
        if !state.passed {
            all.pass(state, usize::MAX, &marked);
        }
        let first = state.died;
        let mut left = 0;
        for at in 0..state.unmarked {
            let place = all.unmarked[at].load(Ordering::Relaxed);
            let entry = all.registered.get(place);
            if marked(entry.cell) {
                continue;
            }
            if state.died - state.taken < all.ready.capacity() {
                all.ready.set(state.died % all.ready.capacity(), entry);
                state.died += 1;
                all.registered.set(place, Entry { cell: 0, token: 0 });
            } else {
                // Where the queue has no room, the cell stays registered and is kept until the next cycle.
                all.unmarked[left].store(place, Ordering::Relaxed);
                left += 1;
            }
        }
        for at in first..state.died {
            keep(all.ready.get(at % all.ready.capacity()).cell);
        }
        for place in &all.unmarked[..left] {
            keep(all.registered.get(place.load(Ordering::Relaxed)).cell);
        }
        state.unmarked = 0;
        // The other gaps are closed by the next pass.
        while let Some(last) = state.registered.checked_sub(1)
            && all.registered.get(last).cell == 0
        {
            state.registered = last;
            (state.seen, state.kept) = (state.seen.min(last), state.kept.min(last));
        }
        all.waiting
            .store((state.died - state.taken) as u64, Ordering::Relaxed);
        (state.died - first) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_come_out_once_and_in_order() {
        let f = Finalizers::new(1 << 9).unwrap();
        for i in 1..=6 {
            assert!(f.register(Entry {
                cell: i * 16,
                token: i
            }));
        }
        let mut kept = Vec::new();
        assert_eq!(
            f.stopped()
                .bury(|cell| cell % 32 == 0, |cell| kept.push(cell)),
            3
        );
        assert_eq!(kept, [16, 48, 80]);
        assert_eq!(f.waiting(), 3);
        let mut ready = Vec::new();
        assert_eq!(f.ready_piece(0, 2, |cell| ready.push(cell)), Some(2));
        assert_eq!(f.ready_piece(2, 2, |cell| ready.push(cell)), None);
        assert_eq!(ready, kept);
        assert_eq!(f.next(), Some(Entry { cell: 16, token: 1 }));
        f.begin();
        assert_eq!(
            f.stopped()
                .bury(|_| true, |_| panic!("nothing is to be kept")),
            0
        );
        assert_eq!(f.next(), Some(Entry { cell: 48, token: 3 }));
        assert_eq!(f.next(), Some(Entry { cell: 80, token: 5 }));
        assert_eq!(f.next(), None);
        assert_eq!(f.waiting(), 0);
    }

    #[test]
    fn a_full_queue_keeps_its_cells_registered() {
        let f = Finalizers::new(1 << 9).unwrap();
        let n = f.registered.capacity();
        for round in 0..2 {
            for i in 0..n {
                assert!(f.register(Entry {
                    cell: (round * n + i + 1) * 16,
                    token: 0
                }));
            }
            assert!(!f.register(Entry { cell: 16, token: 0 }));
            f.begin();
            let mut kept = std::collections::HashSet::new();
            let died = f
                .stopped()
                .bury(|_| false, |cell| assert!(kept.insert(cell)));
            assert_eq!(died, if round == 0 { n as u64 } else { 0 });
            assert_eq!(kept.len(), n);
        }
        assert_eq!((0..).take_while(|_| f.next().is_some()).count(), n);
    }

    #[test]
    fn what_is_found_alive_after_the_pass_is_not_dead_and_what_registers_then_is_not_asked() {
        let f = Finalizers::new(1 << 9).unwrap();
        let register = |cell: usize| assert!(f.register(Entry { cell, token: cell }));
        (1..=100).for_each(|i| register(i * 16));
        // Multiples of 32 are alive; those of 48 are found so in the stop.
        f.begin();
        let mut pieces = 1;
        while f.select_piece(7, |cell| cell % 32 == 0) {
            pieces += 1;
            register(16 * (1000 + pieces));
        }
        assert_eq!((pieces, f.unseen()), (17, 0));
        register(1 << 20);
        let asked = core::cell::Cell::new(0);
        let died = f.stopped().bury(
            |cell| {
                asked.set(asked.get() + 1);
                cell % 32 == 0 || cell % 48 == 0
            },
            |cell| assert!(cell % 32 != 0 && cell % 48 != 0),
        );
        // Of the first hundred 50 were not marked, and of those that came during the pass 8 of 16.
        assert_eq!(asked.get(), 58);
        let dead: Vec<usize> = core::iter::from_fn(|| f.next().map(|e| e.cell)).collect();
        assert!(dead.is_sorted() && dead.len() as u64 == died);
        // All that are left are there once, in the order in which they came, whether a pass is abandoned or not.
        f.begin();
        assert!(f.select_piece(20, |_| false));
        register(1 << 21);
        f.begin();
        f.stopped().bury(|_| false, |_| ());
        let left: Vec<usize> = core::iter::from_fn(|| f.next().map(|e| e.cell)).collect();
        assert!(left.is_sorted() && left.contains(&(1 << 20)) && left.contains(&(1 << 21)));
        assert_eq!(left.len() + dead.len(), 100 + 16 + 2);
    }
}
