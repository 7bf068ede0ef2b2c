//! Two resumers of one suspended stack and a walk beside them, and the start of a stack beside a
//! walk, under every interleaving that loom makes with at most three preemptions. No walk has
//! reported the stack in this epoch.

use super::*;
use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicU64 as LoomU64;
use loom::sync::{Arc, Mutex};

const EPOCH: u64 = 1;

/// The stack's turns, the registry lock, and the stack's frames: they belong to the thread that
/// runs on the stack, and else to the holder of the lock while the stack is due. Loom reports an
/// access of both as a race.
struct Shared {
    turns: Turns<LoomU64>,
    registry: Mutex<u32>,
    frames: UnsafeCell<u64>,
}

impl Shared {
    /// A pass beside the program, or the report of a resumer. Counts its walks in the lock.
    fn report(&self) {
        let mut walks = self.registry.lock().unwrap();
        if self.turns.is_due(EPOCH) {
            // SAFETY: what is being checked: loom fails the test if another thread's access is
            // concurrent.
            self.frames.with(|frames| assert_eq!(unsafe { *frames }, 0));
            *walks += 1;
            self.turns.reported(EPOCH);
        }
    }

    /// Makes the first frame of a stack that has none.
    fn start(&self) {
        assert!(self.turns.claim(StackState::Idle, StackState::Running));
        // SAFETY: as in `report`.
        self.frames.with_mut(|frames| unsafe { *frames += 1 });
        self.turns.reported(EPOCH);
        self.turns.set(StackState::Suspended);
    }

    fn resume(&self) {
        loop {
            if self.turns.state() != StackState::Suspended {
                return; // the other resumer runs it, or is about to
            }
            if !self.turns.claim(StackState::Suspended, StackState::Claimed) {
                continue;
            }
            if self.turns.may_run(EPOCH) {
                self.turns.set(StackState::Running);
                // SAFETY: as in `report`.
                self.frames.with_mut(|frames| unsafe { *frames += 1 });
                return self.turns.set(StackState::Suspended);
            }
            self.turns.set(StackState::Suspended);
            self.report();
        }
    }
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            turns: Turns::new(LoomU64::new(0), LoomU64::new(0)),
            registry: Mutex::new(0),
            frames: UnsafeCell::new(0),
        })
    }
}

fn check(body: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(body);
}

#[test]
fn loom_a_suspended_stack_is_walked_once_before_it_runs_and_never_while_it_runs() {
    check(|| {
        let shared = Shared::new();
        shared.turns.set(StackState::Suspended);
        let resumers = [(); 2].map(|()| {
            let shared = shared.clone();
            loom::thread::spawn(move || shared.resume())
        });
        shared.report();
        for resumer in resumers {
            resumer.join().unwrap();
        }
        assert_eq!(*shared.registry.lock().unwrap(), 1);
    });
}

#[test]
fn loom_a_stack_that_is_started_in_the_epoch_is_not_walked() {
    check(|| {
        let shared = Shared::new();
        let starter = loom::thread::spawn({
            let shared = shared.clone();
            move || {
                shared.start();
                shared.resume();
            }
        });
        shared.report();
        starter.join().unwrap();
        assert_eq!(*shared.registry.lock().unwrap(), 0);
    });
}
