//! One mutator's state word: where it is, what was asked of it, and for which stop.
//!
//! ```text
//! 63                                   8      5      4      3     2     1..0
//! [ number of the stop that marked it  | 0 | ASIDE | PEND | HELD | ASK | phase ]
//! ```
//!
//! Every change is one compare-and-swap on this word, by the mutator or by the one stopper that
//! holds the registry lock, and is tried again from a fresh read when it fails. A mark (ASKED,
//! HELD, PENDING, STOPPED) counts only for the stop whose number stands beside it; once that stop
//! has been resumed the mark means nothing and needs no clean-up.
//!
//! ```text
//!   RUNNING --stopper asks--> RUNNING+ASKED(n) --handler, poll or trampoline--> STOPPED(n) --after resume(n)--> RUNNING
//!      |  ^                        |  +PENDING: deferred to the end of no_preempt      |
//!      v  |                                                                           stopper of n+1 takes it over: STOPPED(n+1)
//!   BLOCKED --stopper holds--> BLOCKED+HELD(n) --after resume(n)--> RUNNING
//!   BLOCKED --set aside--> BLOCKED+ASIDE --taken back--> BLOCKED
//! ```
//!
//! What follows from it:
//! * A thread that was resumed but has not left its park is STOPPED(n); the next stopper swaps n+1
//!   in. Either the thread's own swap to RUNNING wins, and the stopper sees a running thread and
//!   asks it, or the stopper's wins, and the thread's swap fails and it parks again. It cannot be
//!   counted as stopped and run.
//! * A thread enters BLOCKED only from a word without a live ASKED, so a blocked thread has never
//!   been asked and gets no signal from us, once [`in flight`](crate::registry::Record) signals are
//!   waited for.
//! * ASIDE belongs to no stop. The holder of the registry lock sets it and takes it away, and a
//!   thread cannot leave BLOCKED with it: so a thread that is aside stands still until it has had
//!   the registry lock, which every stop holds (`members.rs`).
//! * Acknowledging is the swap ASKED(n) -> STOPPED(n). It can happen once a stop, so the stopper
//!   may count acknowledgements.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

/// What the protocol needs of its atomic word, so that loom's can stand in (feature `loom`, the
/// test at the end of this file).
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

/// Where a mutator is.
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
    /// Acquire pairs with every swap's Release: who sees a thread stopped, sees the snapshot that
    /// it published.
    pub(crate) fn load(&self) -> Word {
        Word(self.0.load(Ordering::Acquire))
    }

    /// Starts over, for a record that no stopper can see.
    pub(crate) fn reset(&self) {
        self.0.store(Word::running().0, Ordering::Release);
    }

    /// AcqRel: Release publishes the mutator's snapshot or the stopper's number, Acquire takes the
    /// other's. SeqCst would add nothing: all that the protocol decides is decided on this one
    /// word.
    fn swap(&self, from: Word, to: Word) -> Result<(), Word> {
        self.0
            .compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
            .map_err(Word)
    }

    // ---- the stopper's side, under the registry lock --------------------------------------------

    /// Asks a running mutator to stop for stop `number`, and holds one that is blocked or still
    /// parked from the stop before. `before_asking` runs just before each attempt to ask, so that an
    /// acknowledgement never arrives uncounted; `unasked` undoes it when the attempt fails.
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

    /// Leaves word of a deferral, if the thread is still asked by stop `number`.
    pub(crate) fn defer(&self, number: u64) {
        let w = self.load();
        if w.asked() && w.number() == number && !w.pending() {
            // Only this thread moves its word away from ASKED while the stop lasts, so this cannot
            // fail; and if it did, the stopper's retry would come back here.
            let _ = self.swap(w, w.as_pending());
        }
    }

    /// Takes a deferral back: the stopper is to signal again.
    pub(crate) fn undefer(&self) {
        let w = self.load();
        if w.pending() {
            // As in `defer`: only this thread moves its word while the stop lasts.
            let _ = self.swap(w, Word(w.0 & !PENDING));
        }
    }

    /// Acknowledges stop `number`. True once: the caller then counts itself as stopped and parks.
    pub(crate) fn acknowledge(&self, number: u64) -> bool {
        let w = self.load();
        w.asked() && w.number() == number && self.swap(w, Word::as_stopped(number)).is_ok()
    }

    /// Leaves STOPPED if the stop in it has been resumed; otherwise says which stop to wait for.
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

    /// Enters BLOCKED, unless a live stop asks for the thread: then gives its number.
    pub(crate) fn enter_blocked(&self, resumed: impl Fn() -> u64) -> Result<(), u64> {
        let mut w = self.load();
        loop {
            debug_assert_eq!(w.phase(), Phase::Running);
            if w.asked() && resumed() < w.number() {
                return Err(w.number());
            }
            match self.swap(w, w.as_blocked()) {
                Ok(()) => return Ok(()),
                Err(now) => w = now,
            }
        }
    }

    /// Leaves BLOCKED, unless the thread is aside, or a live stop holds it.
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
mod tests {
    use super::*;

    fn ask(s: &State, n: u64) -> Request {
        s.request_or_hold(n, || (), || ())
    }

    #[test]
    fn a_resumed_thread_that_has_not_left_its_park_is_taken_over() {
        let s = State::new();
        assert_eq!(ask(&s, 1), Request::Asked);
        assert!(s.acknowledge(1));
        assert!(!s.acknowledge(1), "an acknowledgement counts once");
        assert_eq!(s.leave_stopped(|| 0), Err(1));
        assert_eq!(ask(&s, 2), Request::Held);
        assert_eq!(s.leave_stopped(|| 1), Err(2), "resumed for 1, held for 2");
        assert_eq!(s.leave_stopped(|| 2), Ok(()));
        assert_eq!(s.load().phase(), Phase::Running);
    }

    #[test]
    fn a_blocked_thread_is_held_and_never_asked() {
        let s = State::new();
        assert_eq!(s.enter_blocked(|| 0), Ok(()));
        assert_eq!(ask(&s, 1), Request::Held);
        assert_eq!(s.leave_blocked(|| 0), Err(Kept::Stop(1)));
        assert_eq!(s.leave_blocked(|| 1), Ok(()));
    }

    #[test]
    fn a_thread_that_is_aside_stays_blocked_through_the_stops_of_other_worlds() {
        let s = State::new();
        assert!(!s.set_aside(), "it runs");
        assert_eq!(s.enter_blocked(|| 0), Ok(()));
        assert!(s.set_aside());
        assert_eq!(s.leave_blocked(|| 0), Err(Kept::Aside));
        assert_eq!(ask(&s, 1), Request::Held);
        assert_eq!(s.leave_blocked(|| 1), Err(Kept::Aside));
        s.take_back();
        assert_eq!(s.leave_blocked(|| 0), Err(Kept::Stop(1)));
        assert_eq!(s.leave_blocked(|| 1), Ok(()));
    }

    #[test]
    fn an_asked_thread_may_not_block_before_it_has_stopped() {
        let s = State::new();
        assert_eq!(ask(&s, 1), Request::Asked);
        assert_eq!(s.enter_blocked(|| 0), Err(1));
        s.defer(1);
        assert!(s.load().pending());
        assert!(s.acknowledge(1));
        assert_eq!(s.leave_stopped(|| 1), Ok(()));
        assert_eq!(s.enter_blocked(|| 1), Ok(()));
    }

    #[test]
    fn marks_of_another_stop_mean_nothing() {
        let s = State::new();
        assert_eq!(ask(&s, 1), Request::Asked);
        assert!(!s.acknowledge(2));
        s.defer(2);
        assert!(!s.load().pending());
        // resumed without this thread (it died, say): the stale request does not keep it from
        // blocking
        assert_eq!(s.enter_blocked(|| 1), Ok(()));
        assert_eq!(s.leave_blocked(|| 1), Ok(()));
    }
}

/// The protocol under every interleaving of one stopper and one mutator that loom can make of it:
/// with the cargo feature `loom`, `cargo test -p gc-preempt --features loom --lib loom`.
#[cfg(all(test, feature = "loom"))]
mod loom_model {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::atomic::AtomicU64 as LoomU64;
    use loom::sync::{Arc, Mutex};

    atomic_word!(LoomU64);

    /// What is shared besides the state word: the number of the last stop resumed, acknowledgements
    /// to come, and a heap that belongs to the mutator while it runs and to the stopper while it is
    /// stopped. Loom reports an access of both as a race.
    struct Shared {
        state: State<LoomU64>,
        /// The registry lock, and whether stops pass over the mutator.
        aside: Mutex<bool>,
        resumed: LoomU64,
        outstanding: LoomU64,
        heap: UnsafeCell<u64>,
    }

    impl Shared {
        fn resumed(&self) -> u64 {
            self.resumed.load(Ordering::Acquire)
        }

        fn touch(&self) {
            // SAFETY: what is being checked: loom fails the test if another thread's access is
            // concurrent.
            self.heap.with_mut(|heap| unsafe { *heap += 1 });
        }

        /// The handler: acknowledge if asked, and park.
        fn poll(&self) {
            let word = self.state.load();
            if word.asked()
                && self.resumed() < word.number()
                && self.state.acknowledge(word.number())
            {
                self.outstanding.fetch_sub(1, Ordering::AcqRel);
                while self.state.leave_stopped(|| self.resumed()).is_err() {
                    loom::thread::yield_now();
                }
            }
        }

        fn block_and_come_back(&self) {
            while self.state.enter_blocked(|| self.resumed()).is_err() {
                self.poll();
            }
            while let Err(kept) = self.state.leave_blocked(|| self.resumed()) {
                match kept {
                    Kept::Stop(_) => loom::thread::yield_now(),
                    Kept::Aside => {
                        let mut aside = self.aside.lock().unwrap();
                        *aside = false;
                        self.state.take_back();
                    }
                }
            }
        }

        /// Sets the mutator aside if it is blocked.
        fn set_aside(&self) {
            let mut aside = self.aside.lock().unwrap();
            *aside |= self.state.set_aside();
        }

        fn stop_and_resume(&self, number: u64) {
            let aside = self.aside.lock().unwrap();
            if *aside {
                // It stands still for as long as the lock is held.
                self.touch();
                self.resumed.store(number, Ordering::Release);
                return;
            }
            self.outstanding.store(1, Ordering::Relaxed);
            self.state.request_or_hold(
                number,
                || {
                    self.outstanding.fetch_add(1, Ordering::Relaxed);
                },
                || {
                    self.outstanding.fetch_sub(1, Ordering::AcqRel);
                },
            );
            self.outstanding.fetch_sub(1, Ordering::AcqRel);
            while self.outstanding.load(Ordering::Acquire) != 0 {
                loom::thread::yield_now();
            }
            self.touch();
            self.resumed.store(number, Ordering::Release);
        }
    }

    fn model(stops: u64, mutator: fn(&Shared)) {
        model_with(stops, false, mutator);
    }

    fn model_with(stops: u64, sets_aside: bool, mutator: fn(&Shared)) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(4);
        model.check(move || {
            let shared = Arc::new(Shared {
                state: State(LoomU64::new(Word::running().0)),
                aside: Mutex::new(false),
                resumed: LoomU64::new(0),
                outstanding: LoomU64::new(0),
                heap: UnsafeCell::new(0),
            });
            let thread = loom::thread::spawn({
                let shared = shared.clone();
                move || {
                    mutator(&shared);
                    // It leaves as a thread does: blocked for ever.
                    while shared.state.enter_blocked(|| shared.resumed()).is_err() {
                        shared.poll();
                    }
                }
            });
            for number in 1..=stops {
                if sets_aside {
                    shared.set_aside();
                }
                shared.stop_and_resume(number);
            }
            thread.join().unwrap();
        });
    }

    #[test]
    fn loom_a_thread_that_polls_never_runs_in_a_stop() {
        model(2, |s| {
            s.touch();
            s.poll();
            s.touch();
        });
    }

    #[test]
    fn loom_a_thread_that_blocks_never_runs_in_a_stop() {
        model(2, |s| {
            s.touch();
            s.block_and_come_back();
            s.touch();
        });
    }

    #[test]
    fn loom_a_thread_that_is_aside_never_runs_in_a_stop() {
        model_with(2, true, |s| {
            s.touch();
            s.block_and_come_back();
            s.touch();
        });
    }

    #[test]
    fn loom_blocking_and_polling_take_turns() {
        model(2, |s| {
            s.block_and_come_back();
            s.touch();
            s.poll();
            s.touch();
        });
    }
}
