//! What an allocation does for the collector: it asks for a collection that is due, marks where
//! marking is behind, and waits where the collector is late.

use core::sync::atomic::Ordering;
use core::time::Duration;
use std::time::Instant;

use crate::api::mutator::Mutator;
use crate::fault::{Fault, planted};
use crate::mark::Marker;
use crate::pacer;
use crate::thread::thread_cpu;

/// Cells that a mutator marks between two looks at the clock: a microsecond's work, or ten where
/// each is a miss in memory.
const ASSIST_PIECE: usize = 128;

/// Bytes of an allocation that waits for a collection under way, if it would take the heap past its
/// goal.
const LARGE: usize = 1 << 20;

/// How long a mutator marks at a time. A stop waits for its end; and each beginning costs some
/// tenths of a microsecond, since what waits in a marker's rings goes back to the queue.
const ASSIST_SLICE: Duration = Duration::from_micros(8);

/// How long one allocation marks at most, whatever it owes: a tenth of the 10 ms that
/// [`Mutator::assisted`] is judged by. An allocation of 128 KiB may owe 65,536 cells, and in a heap
/// of some GiB that lies at random a cell takes 100 ns.
const ASSIST_MOST: Duration = Duration::from_millis(1);

impl Mutator {
    /// Before an allocation of `bytes`: asks for a collection if one is due, and goes on, helping
    /// the one that is under way where that is behind. Waits only where collections stop the world,
    /// or where the collector is so late that the heap would grow without bound; and then for a
    /// moment an allocation, not until something has come to pass.
    #[inline]
    pub(super) fn keep_pace(&self, bytes: usize) {
        let state = self.heap.state();
        let pace = &state.pace;
        let used = pace.used(state.space.allocated_since().saturating_add(bytes as u64));
        let asks = self.heap.ask_if_due(used);
        let is_block = bytes >= LARGE && state.concurrent && !planted(Fault::BlocksOvershoot);
        if is_block && pace.overshoots(used) {
            // A few of these are as much as the heap may grow by, and are made faster than anything
            // is marked.
            self.wait_a_moment(bytes as u64);
        } else if asks {
            if !state.concurrent && !self.thread().in_no_preempt() {
                self.thread().blocking(|| state.requests.wait_for_last());
            }
        } else if pace.may_assist() {
            self.assist(used, bytes as u64);
        } else if pace.must_wait(used) {
            self.wait_a_moment(bytes as u64);
        }
        if state.space.must_tell() {
            self.thread().no_preempt(|| state.requests.nudge());
        }
    }

    /// Marks, if marking is behind what has been allocated meanwhile.
    fn assist(&self, used: u64, bytes: u64) {
        let (state, record) = (self.heap.state(), self.record());
        let (pace, line) = (&state.pace, state.pace.line());
        let owed = pace.owed(&line, used, bytes, state.queue.large_work());
        if self.thread().in_no_preempt() {
            return;
        }
        if owed == 0 {
            // All that was expected is marked, and more turns up: the heap does not grow without
            // bound meanwhile.
            if line.waits(used) {
                self.wait_a_moment(bytes);
            }
            return;
        }
        if pace.now() < record.credit_until.get() && !pace.is_stressed() {
            return;
        }
        // Its own time: what the system gives to others meanwhile is no help.
        let before = thread_cpu();
        let mut left = owed;
        let mut dry = false;
        let mut took = Duration::ZERO;
        while left != 0 && !dry && took < ASSIST_MOST {
            // A stop waits for a piece, not for all of it. The mutator's own flag says whether
            // there is anything to mark for: it changes in stops only, so not while the marker
            // lives.
            dry = self.thread().no_preempt(|| {
                if record.marking.load(Ordering::Relaxed) == 0 || !pace.begin_assist() {
                    return true;
                }
                let begun = Instant::now();
                let mut marker = Marker::new(&state.space, &state.queue, &state.weak);
                let dry = loop {
                    let dry = marker.drain_bounded(ASSIST_PIECE);
                    left = left.saturating_sub(ASSIST_PIECE as u64);
                    if dry || left == 0 || begun.elapsed() > ASSIST_SLICE {
                        break dry;
                    }
                };
                // Longer than the collector waits for it, and shorter.
                if planted(Fault::SlowHelpers) {
                    std::thread::sleep(Duration::from_millis(30));
                }
                if planted(Fault::BriskHelpers) {
                    std::thread::sleep(Duration::from_millis(2));
                }
                marker.publish();
                pace.end_assist(marker.marked());
                took += begun.elapsed();
                dry
            });
        }
        let spent = thread_cpu().saturating_sub(before);
        pace.add_assist_time(spent);
        let assist_credit = pacer::assist_credit(spent, line.share(used));
        let now = pace.now();
        record.credit_until.set(now + assist_credit);
        let mut assisted = spent;
        if dry && line.waits(used) {
            self.wait_a_moment(bytes);
            assisted += pace.now() - now;
        }
        record.assisted.set(record.assisted.get() + assisted);
    }

    /// How long allocations of this mutator have marked for the collector since it attached,
    /// because it was behind, in processor time, and waited for it where the heap was beyond all
    /// bounds. What the collector takes of a thread's time is this and the stops
    /// ([`HeapStats::pause_total`](crate::HeapStats::pause_total)).
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().build()?;
    /// let mutator = heap.attach()?;
    /// assert!(mutator.assisted().is_zero(), "nothing was allocated");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn assisted(&self) -> Duration {
        Duration::from_nanos(self.record().assisted.get())
    }

    /// Lets the collector get on.
    #[cold]
    fn wait_a_moment(&self, bytes: u64) {
        if !self.thread().in_no_preempt() {
            let requests = &self.heap.state().requests;
            self.thread()
                .blocking(|| requests.wait_for_last_at_most(pacer::moment(bytes)));
        }
    }
}
