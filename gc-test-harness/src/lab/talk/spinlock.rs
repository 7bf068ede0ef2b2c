//! The scene of two threads and a spinlock: the holder of the lock stops in a call, and the other
//! thread waits for the lock in a loop that has no call.
//!
//! The holder waits in a runtime call until the stop has taken effect, so it holds the lock for the
//! whole time of the stop, however fast the machine is. The stop ends only if the strategy stops
//! the loop of the other thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::bell::{Bell, Silence};
use super::figures::Spinlock;
use super::stage::{Stage, TalkError};
use crate::kernels::talk::spinlock::Rest;
use crate::kernels::talk::{Kernel, Strategy};

/// The time between two looks at the other threads.
const LOOK: Duration = Duration::from_micros(100);

/// Plays the scene. A stop that takes longer than `longest` is a deadlock, which the scene ends.
///
/// # Errors
/// The refusal of Cranelift, of the system or of the heap, or a wrong count of the lock's holders.
pub fn play(strategy: Strategy, longest: Duration) -> Result<Spinlock, TalkError> {
    let stage = Stage::new(Kernel::Spinlock, strategy)?;
    let [lock, counter, turns] = [const { AtomicU64::new(0) }; 3];
    let (holder_rest, waiter_rest) = (Rest::default(), Rest::default());
    waiter_rest.leave.store(true, Ordering::Release);
    let thread = |rest: &Rest| {
        stage.on_this_thread(1, |player| {
            let rest = std::ptr::from_ref(rest) as u64;
            let words = [&lock, &counter, &turns].map(|word| word.as_ptr() as u64);
            player.work.input.words[..4].copy_from_slice(&[words[0], words[1], rest, words[2]]);
            Ok(player.answer(1))
        })
    };
    let bell = Bell::new(longest);
    std::thread::scope(|scope| {
        let holder = scope.spawn(|| thread(&holder_rest));
        // Acquire: pairs with the Release in the runtime's call.
        while !holder_rest.entered.load(Ordering::Acquire) && !holder.is_finished() {
            std::thread::sleep(LOOK);
        }
        let waiter = scope.spawn(|| thread(&waiter_rest));
        // Relaxed: only the change counts.
        while turns.load(Ordering::Relaxed) == 0 && !waiter.is_finished() {
            std::thread::sleep(LOOK);
        }
        scope.spawn(|| bell.watch(&stage));
        let silence = Silence(&bell);
        let stopped = bell.attempt(|rung| stage.stop(|_| rung()));
        drop(silence);
        // Release: pairs with the Acquire in the runtime's call.
        holder_rest.leave.store(true, Ordering::Release);
        let answers = [holder, waiter].map(|thread| {
            let answer = thread.join();
            answer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let (_, _, deadlock) = stopped?;
        let [held, waited] = answers;
        let (held, waited) = (held?, waited?);
        let right = held == 1
            && waited == u64::from(!deadlock)
            && counter.load(Ordering::Relaxed) == held + waited;
        match (right, deadlock) {
            (true, true) => Ok(Spinlock::Deadlocks),
            (true, false) => Ok(Spinlock::Ends),
            (false, _) => Err(TalkError::WrongAnswer {
                kernel: Kernel::Spinlock,
                strategy,
            }),
        }
    })
}
