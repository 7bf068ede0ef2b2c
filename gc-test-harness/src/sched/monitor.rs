//! The monitor thread, as Go's `sysmon`: it asks workers to preempt green threads that run longer
//! than their slice, wakes sleepers while all workers are in loops, and notices when nothing goes
//! on.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::options::Mode;
use super::worker::Shared;

/// For how long all workers have to stay in the same green threads, with others waiting, to count
/// as stalled.
const STALL: Duration = Duration::from_secs(1);

/// The body of the monitor's thread.
pub(super) fn run(shared: &Shared) {
    let options = shared.options;
    // A loop runs for a slice and a half at most before it is asked, which leaves half a slice.
    let period = (options.slice / 4).clamp(Duration::from_micros(200), Duration::from_millis(10));
    let mut seen: Vec<(u64, Instant)> = vec![(0, Instant::now()); shared.seats.len()];
    // Acquire pairs with the Release in `Scheduler::drop`.
    while !shared.over.load(Ordering::Acquire) {
        std::thread::park_timeout(period);
        // Workers do it, too, unless all of them are in loops.
        shared.timers.due(|green| {
            if green.unparked() {
                shared.queues.inject(green);
            }
        });
        let now = Instant::now();
        let mut stuck = 0;
        for (seat, (ticks, since)) in shared.seats.iter().zip(&mut seen) {
            // Relaxed: a late value makes a request late.
            let current = seat.ticks.load(Ordering::Relaxed);
            let runs = current % 2 == 1;
            if current != *ticks || !runs {
                (*ticks, *since) = (current, now);
                continue;
            }
            stuck += usize::from(now - *since >= STALL);
            if options.mode == Mode::Async
                && now - *since >= options.slice
                && let Some(preempter) = seat.preempter.get()
            {
                shared.requests.fetch_add(1, Ordering::Relaxed);
                preempter.preempt();
            }
        }
        if stuck == shared.seats.len() && shared.queues.has_work() {
            shared.stalled.store(true, Ordering::Relaxed);
        }
    }
}
