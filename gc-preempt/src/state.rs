//! One mutator's state word: its phase, the marks of a stop, and the stop's number.
//!
//! ```text
//! 63                                   8      5      4      3     2     1..0
//! [ number of the stop that marked it  | 0 | ASIDE | PEND | HELD | ASK | phase ]
//! ```
//!
//! Every change is one compare-and-swap on this word, by the mutator or by the one stopper that
//! holds the registry lock, and is tried again from a fresh read when it fails. A mark (ASKED,
//! HELD, PENDING, STOPPED) counts only for the stop whose number is in the same word. Once that
//! stop has been resumed the mark means nothing, so it need not be removed.
//!
//! ```text
//! RUNNING          --stopper asks-->                 RUNNING+ASKED(n)
//! RUNNING+ASKED(n) --deferred to a section's end-->  RUNNING+ASKED(n)+PENDING
//! RUNNING+ASKED(n) --handler, poll or trampoline-->  STOPPED(n)
//! STOPPED(n)       --after resume(n)-->              RUNNING
//! STOPPED(n)       --stopper of n+1 takes it over--> STOPPED(n+1)
//! RUNNING          --blocking begins-->              BLOCKED
//! BLOCKED          --blocking ends-->                RUNNING
//! BLOCKED          --stopper holds-->                BLOCKED+HELD(n)
//! BLOCKED+HELD(n)  --after resume(n)-->              RUNNING
//! BLOCKED          --set aside-->                    BLOCKED+ASIDE
//! BLOCKED+ASIDE    --taken back-->                   BLOCKED
//! ```
//!
//! Invariants:
//! * A thread that was resumed but has not left its park is STOPPED(n), and the next stopper swaps
//!   n+1 in. If the thread's own swap to RUNNING wins, the stopper sees a running thread and asks
//!   it. If the stopper's swap wins, the thread's swap fails and it parks again. A thread never
//!   runs while it counts as stopped.
//! * A thread enters BLOCKED only from a word without a live ASKED, and after the signals that are
//!   [in flight](crate::registry::Record) have arrived. It looks for such signals once more when it
//!   is BLOCKED, since a request to preempt it does not ask. So a blocked thread gets no signal
//!   from us while it runs its embedder's code.
//! * ASIDE belongs to no stop. The holder of the registry lock sets and removes it, and a thread
//!   cannot leave BLOCKED with it. So a thread that is aside stands still until it has taken the
//!   registry lock, which every stop holds (`members.rs`).
//! * To acknowledge is the swap ASKED(n) -> STOPPED(n). It succeeds once a stop, so the stopper
//!   counts acknowledgements.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

/// The operations that the protocol needs of its atomic word. The model test implements them with
/// loom's (feature `loom`, `state/model.rs`).
pub(crate) trait AtomicWord {
    fn load(&self, order: Ordering) -> u64;
    fn store(&self, value: u64, order: Ordering);
    fn compare_exchange(
        &self,
        from: u64,
        to: u64,
        ok: Ordering,
        failed: Ordering,
    ) -> Result<u64, u64>;
}

macro_rules! atomic_word {
    ($t:ty) => {
        impl AtomicWord for $t {
            #[inline]
            fn load(&self, order: Ordering) -> u64 {
                self.load(order)
            }
            #[inline]
            fn store(&self, value: u64, order: Ordering) {
                self.store(value, order);
            }
            #[inline]
            fn compare_exchange(
                &self,
                from: u64,
                to: u64,
                ok: Ordering,
                failed: Ordering,
            ) -> Result<u64, u64> {
                self.compare_exchange(from, to, ok, failed)
            }
        }
    };
}

atomic_word!(AtomicU64);

const PHASE: u64 = 0b11;
const ASKED: u64 = 1 << 2;
const HELD: u64 = 1 << 3;
const PENDING: u64 = 1 << 4;
const ASIDE: u64 = 1 << 5;
const NUMBER_SHIFT: u32 = 8;

/// What a mutator does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Running,
    Stopped,
    Blocked,
}

/// A value of the state word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word(u64);

impl Word {
    pub(crate) const fn running() -> Self {
        Self(0)
    }

    #[inline]
    pub(crate) fn phase(self) -> Phase {
        match self.0 & PHASE {
            0 => Phase::Running,
            1 => Phase::Stopped,
            _ => Phase::Blocked,
        }
    }

    /// The stop that last marked the word.
    pub(crate) fn number(self) -> u64 {
        self.0 >> NUMBER_SHIFT
    }

    /// The thread runs and stop [`number`](Self::number) wants it stopped.
    #[inline]
    pub(crate) fn asked(self) -> bool {
        self.0 & (PHASE | ASKED) == ASKED
    }

    pub(crate) fn held(self) -> bool {
        self.0 & HELD != 0
    }

    pub(crate) fn pending(self) -> bool {
        self.0 & PENDING != 0
    }

    pub(crate) fn aside(self) -> bool {
        self.0 & ASIDE != 0
    }

    fn make(phase: u64, marks: u64, number: u64) -> Self {
        Self(phase | marks | number << NUMBER_SHIFT)
    }

    fn as_running(self) -> Self {
        Self::make(0, 0, self.number())
    }

    fn as_asked(number: u64) -> Self {
        Self::make(0, ASKED, number)
    }

    fn as_pending(self) -> Self {
        Self(self.0 | PENDING)
    }

    fn as_stopped(number: u64) -> Self {
        Self::make(1, 0, number)
    }

    fn as_blocked(self) -> Self {
        Self::make(2, 0, self.number())
    }

    /// A thread may be aside in one world and held by a stop of another.
    fn as_held(self, number: u64) -> Self {
        Self::make(2, HELD | self.0 & ASIDE, number)
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({})", self.phase(), self.number())?;
        for (on, name) in [
            (self.asked(), " asked"),
            (self.held(), " held"),
            (self.pending(), " pending"),
            (self.aside(), " aside"),
        ] {
            if on {
                f.write_str(name)?;
            }
        }
        Ok(())
    }
}

/// What [`State::request_or_hold`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Request {
    /// It was running and is now asked: it will acknowledge.
    Asked,
    /// It was blocked and is now held, or still parked from the stop before and now taken over: it
    /// counts as stopped.
    Held,
}

/// What keeps a thread in BLOCKED.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kept {
    /// The stop of that number holds it.
    Stop(u64),
    /// It is aside, and has to be taken back first.
    Aside,
}

/// The atomic state word of one mutator.
pub(crate) struct State<A = AtomicU64>(A);

impl State {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(Word::running().0))
    }
}

impl<A: AtomicWord> State<A> {
    /// The word.
    #[inline]
    pub(crate) fn load(&self) -> Word {
        // Acquire pairs with every swap's Release: a stopper that sees the thread stopped sees the
        // snapshot that it published.
        Word(self.0.load(Ordering::Acquire))
    }

    /// The phase, for a thread that is about to signal this one without a stop (`preempt.rs`).
    pub(crate) fn phase_in_total_order(&self) -> Phase {
        // SeqCst pairs with the swap in `enter_blocked`.
        Word(self.0.load(Ordering::SeqCst)).phase()
    }

    /// Sets RUNNING in a record that no stopper can see.
    pub(crate) fn reset(&self) {
        // Release pairs with the Acquire in `load`.
        self.0.store(Word::running().0, Ordering::Release);
    }

    fn swap(&self, from: Word, to: Word) -> Result<(), Word> {
        // AcqRel pairs with itself and with `load`: Release publishes the mutator's snapshot or the
        // stopper's number, Acquire takes over the other side's. SeqCst is not needed: every
        // decision of a stop is made on this one word.
        self.swap_by(from, to, Ordering::AcqRel)
    }

    fn swap_by(&self, from: Word, to: Word, order: Ordering) -> Result<(), Word> {
        self.0
            .compare_exchange(from.0, to.0, order, Ordering::Acquire)
            .map(drop)
            .map_err(Word)
    }

    // ---- the stopper's side, under the registry lock --------------------------------------------

    /// Asks a running mutator to stop for stop `number`, and holds one that is blocked or still
    /// parked from the stop before. `before_asking` runs just before each attempt to ask, so that
    /// an acknowledgement never arrives uncounted; `unasked` undoes it when the attempt fails.
    pub(crate) fn request_or_hold(
        &self,
        number: u64,
        mut before_asking: impl FnMut(),
        mut unasked: impl FnMut(),
    ) -> Request {
        let mut w = self.load();
        loop {
            let tried = match w.phase() {
                Phase::Running => {
                    before_asking();
                    let r = self
                        .swap(w, Word::as_asked(number))
                        .map(|()| Request::Asked);
                    if r.is_err() {
                        unasked();
                    }
                    r
                }
                Phase::Blocked => self.swap(w, w.as_held(number)).map(|()| Request::Held),
                Phase::Stopped => self
                    .swap(w, Word::as_stopped(number))
                    .map(|()| Request::Held),
            };
            match tried {
                Ok(request) => return request,
                Err(now) => w = now,
            }
        }
    }

    /// Sets a blocked thread aside. False: it runs. Under the registry lock.
    pub(crate) fn set_aside(&self) -> bool {
        let mut w = self.load();
        while w.phase() == Phase::Blocked {
            match self.swap(w, Word(w.0 | ASIDE)) {
                Ok(()) => return true,
                Err(now) => w = now,
            }
        }
        false
    }

    /// Undoes [`set_aside`](Self::set_aside). Under the registry lock.
    pub(crate) fn take_back(&self) {
        let w = self.load();
        debug_assert!(w.aside());
        // A word that is aside changes under the registry lock only, so this cannot fail.
        let taken = self.swap(w, Word(w.0 & !ASIDE));
        debug_assert!(taken.is_ok());
    }

    // ---- the mutator's side ---------------------------------------------------------------------

    /// Sets PENDING, if stop `number` still asks for the thread: the thread will stop by itself.
    pub(crate) fn defer(&self, number: u64) {
        let w = self.load();
        if w.asked() && w.number() == number && !w.pending() {
            // Only this thread changes its word while the stop asks for it, so this cannot fail. If
            // it did, the stopper would signal again.
            let _ = self.swap(w, w.as_pending());
        }
    }

    /// Removes PENDING: the stopper is to signal again.
    pub(crate) fn undefer(&self) {
        let w = self.load();
        if w.pending() {
            // As in `defer`, this cannot fail.
            let _ = self.swap(w, Word(w.0 & !PENDING));
        }
    }

    /// Acknowledges stop `number`. True once a stop: the caller then counts itself and parks.
    pub(crate) fn acknowledge(&self, number: u64) -> bool {
        let w = self.load();
        w.asked() && w.number() == number && self.swap(w, Word::as_stopped(number)).is_ok()
    }

    /// Leaves STOPPED.
    ///
    /// # Errors
    /// The number of the stop that has not been resumed yet.
    pub(crate) fn leave_stopped(&self, resumed: impl Fn() -> u64) -> Result<(), u64> {
        let mut w = self.load();
        loop {
            debug_assert_eq!(w.phase(), Phase::Stopped);
            if resumed() < w.number() {
                return Err(w.number());
            }
            match self.swap(w, w.as_running()) {
                Ok(()) => return Ok(()),
                Err(now) => w = now,
            }
        }
    }

    /// Enters BLOCKED.
    ///
    /// # Errors
    /// The number of a live stop that asks for the thread.
    pub(crate) fn enter_blocked(&self, resumed: impl Fn() -> u64) -> Result<(), u64> {
        let mut w = self.load();
        loop {
            debug_assert_eq!(w.phase(), Phase::Running);
            if w.asked() && resumed() < w.number() {
                return Err(w.number());
            }
            // SeqCst pairs with a request to preempt (`preempt.rs`): this thread looks for a signal
            // in flight after it, and the requester looks at this word after it has announced one.
            match self.swap_by(w, w.as_blocked(), Ordering::SeqCst) {
                Ok(()) => return Ok(()),
                Err(now) => w = now,
            }
        }
    }

    /// Leaves BLOCKED.
    ///
    /// # Errors
    /// The thread is aside, or a live stop holds it.
    pub(crate) fn leave_blocked(&self, resumed: impl Fn() -> u64) -> Result<(), Kept> {
        let mut w = self.load();
        loop {
            debug_assert_eq!(w.phase(), Phase::Blocked);
            if w.aside() {
                return Err(Kept::Aside);
            }
            if w.held() && resumed() < w.number() {
                return Err(Kept::Stop(w.number()));
            }
            match self.swap(w, w.as_running()) {
                Ok(()) => return Ok(()),
                Err(now) => w = now,
            }
        }
    }
}

#[cfg(test)]
mod tests;

/// The model test: with the cargo feature `loom`,
/// `cargo test -p gc-preempt --features loom --lib loom`.
#[cfg(all(test, feature = "loom"))]
mod model;
