//! The requests for collections, and the numbers of the collections that have begun and ended:
//! mutators ask and wait here, and the collector's thread waits here for work.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::stress::BREATH;

/// The requests for collections, and how far the collector has come.
///
/// Collections have numbers. A request wants one that has not begun yet, so all requests that come
/// while one is under way are served by the next. The lock is one of std: mutators take it inside
/// `blocking` or `no_preempt` only, and the collector outside of stops, so no thread is stopped
/// while it holds the lock.
#[derive(Default)]
pub(crate) struct Requests {
    /// Whether the collector's thread exists.
    pub(crate) alive: AtomicBool,
    /// Stress: collections follow each other, whether a thread asks or not.
    continuous: bool,
    /// Stress: each cycle keeps its phases open.
    stress_phases: bool,
    pub(crate) state: Mutex<Wanted>,
    /// Whether the next collection takes back the spans of mutators inside `blocking`.
    spans_wanted: AtomicBool,
    wake: Condvar,
    done: Condvar,
}

#[derive(Default)]
pub(crate) struct Wanted {
    wanted: u64,
    /// The last collection that must collect all cells, not only young ones.
    whole: u64,
    begun: u64,
    ended: u64,
    /// Whether the collector's thread existed in the parent of this process.
    forked: bool,
    /// Whether there is work for the collector's thread other than a collection.
    nudged: bool,
    /// The last collection after which all free memory is to go back to the system, and the last
    /// one after which it did.
    trim: u64,
    trimmed: u64,
    /// Bytes that the last trim gave back.
    gone: u64,
    shutdown: bool,
}

/// The next task of the collector's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Collection,
    /// No thread wants a collection: the wait has timed out, or the thread was nudged.
    Nothing,
    /// The heap's last handle is dropped.
    End,
}

impl Requests {
    pub(crate) fn new(continuous: bool, stress_phases: bool) -> Self {
        Self {
            continuous,
            stress_phases: continuous || stress_phases,
            ..Self::default()
        }
    }

    /// Whether each phase is to stay open until mutators meet it.
    pub(super) fn stress_phases(&self) -> bool {
        self.stress_phases
    }

    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, Wanted> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a collection that begins after this call and returns its number. Does not wait.
    /// `whole`: of all cells; otherwise the pacer may make it a young one.
    pub(crate) fn ask(&self, whole: bool) -> u64 {
        let mut state = self.lock();
        let number = state.begun + 1;
        state.wanted = state.wanted.max(number);
        if whole {
            state.whole = number;
        }
        self.wake.notify_one();
        number
    }

    /// Asks for a collection of all cells after which all free memory goes back to the system, and
    /// returns its number. Does not wait.
    pub(crate) fn ask_to_trim(&self) -> u64 {
        self.want_spans();
        let number = self.ask(true);
        let mut state = self.lock();
        state.trim = state.trim.max(number);
        number
    }

    /// Waits until the trim after collection `number` is done. Returns the bytes that went back.
    pub(crate) fn wait_for_trim(&self, number: u64) -> u64 {
        let mut state = self.lock();
        while state.trimmed < number && !state.shutdown {
            state = self
                .done
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.gone
    }

    /// By the collector: is all free memory to go back after the last collection?
    pub(super) fn is_trim_due(&self) -> bool {
        let state = self.lock();
        state.trimmed < state.trim && state.trim <= state.ended
    }

    /// By the collector: `gone` bytes have gone back.
    pub(super) fn trimmed(&self, gone: u64) {
        let mut state = self.lock();
        (state.trimmed, state.gone) = (state.ended, gone);
        self.done.notify_all();
    }

    /// The next collection takes back spans of mutators that are inside `blocking`.
    pub(crate) fn want_spans(&self) {
        // Relaxed: the request that follows, or the next collection, orders it.
        self.spans_wanted.store(true, Ordering::Relaxed);
    }

    /// Whether this collection takes them back; clears the request.
    pub(super) fn take_spans_wanted(&self) -> bool {
        self.spans_wanted.swap(false, Ordering::Relaxed)
    }

    /// Wakes the collector's thread for the work that it does between collections. Inside
    /// `no_preempt`.
    pub(crate) fn nudge(&self) {
        self.lock().nudged = true;
        self.wake.notify_one();
    }

    /// Waits until collection `number` has ended, so that the cells that it found dead are free.
    pub(crate) fn wait(&self, number: u64) {
        let mut state = self.lock();
        while state.ended < number && !state.shutdown {
            state = self
                .done
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the collection that is under way or was asked for last, if there is one.
    pub(crate) fn wait_for_last(&self) {
        let last = {
            let state = self.lock();
            state.wanted.max(state.begun)
        };
        self.wait(last);
    }

    /// Waits for the collection that is under way; `false`: there is none.
    pub(crate) fn wait_for_present(&self) -> bool {
        let (present, under_way) = {
            let state = self.lock();
            (state.begun, state.begun > state.ended)
        };
        // A collection that was under way at the fork that made this process has no thread to end
        // it.
        let waits = under_way && self.alive.load(Ordering::SeqCst);
        if waits {
            self.wait(present);
        }
        waits
    }

    /// As [`wait_for_last`](Self::wait_for_last), but for at most `most`.
    pub(crate) fn wait_for_last_at_most(&self, most: Duration) {
        let state = self.lock();
        let last = state.wanted.max(state.begun);
        if state.ended < last && !state.shutdown {
            drop(self.done.wait_timeout(state, most));
        }
    }

    /// By the collector: waits for work, and for no longer than `patience` if that is given.
    pub(super) fn next(&self, patience: Option<Duration>) -> Next {
        let patience = if self.continuous {
            Some(BREATH)
        } else {
            patience
        };
        let mut state = self.lock();
        loop {
            if state.shutdown {
                self.alive.store(false, Ordering::SeqCst);
                self.done.notify_all();
                return Next::End;
            }
            if state.wanted > state.begun {
                return Next::Collection;
            }
            if std::mem::take(&mut state.nudged) {
                return Next::Nothing;
            }
            let Some(patience) = patience else {
                state = self
                    .wake
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let waited = self.wake.wait_timeout(state, patience);
            let (now, waited) = waited.unwrap_or_else(PoisonError::into_inner);
            state = now;
            if waited.timed_out() && !state.shutdown && state.wanted <= state.begun {
                return if self.continuous {
                    Next::Collection
                } else {
                    Next::Nothing
                };
            }
        }
    }

    pub(super) fn is_wanted(&self) -> bool {
        let state = self.lock();
        state.shutdown || state.wanted > state.begun
    }

    /// A collection begins: a request that comes from now on is served by the next. Returns its
    /// number, and whether it must collect all cells.
    pub(super) fn begin(&self) -> (u64, bool) {
        let mut state = self.lock();
        state.begun += 1;
        (state.begun, state.whole >= state.begun)
    }

    pub(super) fn end(&self, number: u64) {
        self.lock().ended = number;
        self.done.notify_all();
    }

    /// In the child of a fork.
    pub(crate) fn collector_is_gone(&self) {
        let mut state = self.lock();
        self.alive.store(false, Ordering::SeqCst);
        state.forked = true;
        // Requests of the parent's threads are served in the parent.
        state.begun = state.begun.max(state.ended);
        // The threads that wait for a trim are in the parent, too.
        state.trimmed = state.trimmed.max(state.trim);
    }

    /// Whether the collector's thread can be joined: it is not a thread that exists in the parent
    /// only.
    pub(crate) fn can_be_joined(&self) -> bool {
        let state = self.lock();
        self.alive.load(Ordering::SeqCst) || !state.forked
    }

    /// Ends the collector's thread.
    pub(crate) fn shut_down(&self) {
        self.lock().shutdown = true;
        self.wake.notify_one();
    }
}
