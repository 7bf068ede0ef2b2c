//! The protocol under every interleaving of one stopper and one mutator that loom makes of it, with
//! at most four preemptions.

use super::*;
use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicU64 as LoomU64;
use loom::sync::{Arc, Mutex};

atomic_word!(LoomU64);

/// Shared by the two threads in addition to the state word: the number of the last stop resumed,
/// acknowledgements to come, and a heap that belongs to the mutator while it runs and to the
/// stopper while it is stopped. Loom reports an access of both as a race.
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
        if word.asked() && self.resumed() < word.number() && self.state.acknowledge(word.number()) {
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
