//! Finalizers: cells whose death an embedder wants to hear of, and the queue of those that died.
//!
//! What the embedder may rely on: a registered cell that is found unreachable is kept (it and whatever it leads to), moved to the queue
//! once, and handed out by `Mutator::next_finalizer` with the token it was registered with; after that it is a cell like any other, and
//! may be registered again. Cells that die in the same cycle are queued in the order of their registration, also when one leads to the
//! other: a cycle of finalizable cells has no better order. What the embedder must do: drain the queue now and then. No code of the
//! embedder's ever runs inside the collector, so a finalizer may allocate, lock, and ask for a collection.

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
    state: Mutex<State>,
    /// How many are ready, for those who only want to know.
    waiting: AtomicU64,
}

#[derive(Clone, Copy, Default)]
struct State {
    registered: usize,
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
        Ok(Self {
            registered: Pairs::new(capacity)?,
            ready: Pairs::new(capacity)?,
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
    /// Moves each registered cell that `marked` denies to the queue, after `keep` has been told to mark it. Gives their number.
    ///
    /// All are moved before the caller traces any of them: otherwise the death of a cell would depend on its place in the table.
    pub(crate) fn bury(
        &mut self,
        mut marked: impl FnMut(usize) -> bool,
        mut keep: impl FnMut(usize),
    ) -> u64 {
        let (mut kept, first) = (0, self.state.died);
        for at in 0..self.state.registered {
            let entry = self.all.registered.get(at);
            let room = self.state.died - self.state.taken < self.all.ready.capacity();
            if !marked(entry.cell) && room {
                self.all
                    .ready
                    .set(self.state.died % self.all.ready.capacity(), entry);
                self.state.died += 1;
            } else {
                self.all.registered.set(kept, entry);
                kept += 1;
            }
        }
        self.state.registered = kept;
        for at in first..self.state.died {
            keep(self.all.ready.get(at % self.all.ready.capacity()).cell);
        }
        // Where the queue had no room, the cell stays registered and is kept until the next cycle.
        for at in 0..kept {
            let cell = self.all.registered.get(at).cell;
            if !marked(cell) {
                keep(cell);
            }
        }
        self.all.waiting.store(
            (self.state.died - self.state.taken) as u64,
            Ordering::Relaxed,
        );
        (self.state.died - first) as u64
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
            let mut kept = std::collections::HashSet::new();
            let died = f
                .stopped()
                .bury(|_| false, |cell| assert!(kept.insert(cell)));
            assert_eq!(died, if round == 0 { n as u64 } else { 0 });
            assert_eq!(kept.len(), n);
        }
        assert_eq!((0..).take_while(|_| f.next().is_some()).count(), n);
    }
}
