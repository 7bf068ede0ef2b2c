//! The part of an allocation that serves the collector: it requests a collection that is due,
//! assists marking that is behind, and waits for a collector that is late.

use core::sync::atomic::Ordering;
use core::time::Duration;
use std::time::Instant;

use crate::api::mutator::Mutator;
use crate::mark::Marker;
use crate::pacer;
use crate::thread::thread_cpu;

/// Number of cells that a mutator marks between two readings of the clock: a microsecond of work,
/// or ten if each cell is a cache miss.
const ASSIST_PIECE: usize = 128;

/// Bytes from which an allocation waits for the current collection if it would take the heap past
/// its goal.
const LARGE: usize = 1 << 20;

/// The longest time that a mutator marks without a stop. A stop waits for its end. Each beginning
/// costs some tenths of a microsecond, because the words in a marker's prefetch ring go back to the
/// queue.
const ASSIST_SLICE: Duration = Duration::from_micros(8);

/// The longest time that one allocation marks, whatever its share is: a tenth of 10 ms, the window
/// over which utilisation is judged. An allocation of 128 KiB may have a share of 65,536 cells, and
/// a cell takes 100 ns in a heap of some GiB whose cells lie at random.
const ASSIST_MOST: Duration = Duration::from_millis(1);

impl Mutator {
    /// Called before an allocation of `bytes`: requests a collection if one is due, and assists the
    /// current one if it is behind. The thread waits only if collections stop the world, or if the
    /// collector is so late that the heap would grow without bound. Then it waits for a bounded
    /// time for each allocation, not for an event.
    #[inline]
    pub(super) fn keep_pace(&self, bytes: usize) {
        let state = self.heap.state();
        let pace = &state.pace;
        let used = pace.used(state.space.allocated_since().saturating_add(bytes as u64));
        let asks = self.heap.ask_if_due(used);
        let is_block = bytes >= LARGE && state.concurrent && seam::holds_blocks_back();
        if is_block && pace.overshoots(used) {
            // A few blocks of this size take the heap past its goal, and they are allocated faster
            // than the collector marks.
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

    /// Marks, if marking is behind the bytes that were allocated meanwhile.
    fn assist(&self, used: u64, bytes: u64) {
        let (state, record) = (self.heap.state(), self.record());
        let (pace, line) = (&state.pace, state.pace.line());
        let owed = pace.owed(&line, used, bytes, state.queue.large_work());
        if self.thread().in_no_preempt() {
            return;
        }
        if owed == 0 {
            // The expected cells are marked, but marking finds more. The heap must not grow without
            // bound meanwhile.
            if line.waits(used) {
                self.wait_a_moment(bytes);
            }
            return;
        }
        if pace.now() < record.credit_until.get() && !pace.is_stressed() {
            return;
        }
        // Processor time of this thread: time that the system gives to other threads does not count
        // as an assist.
        let before = thread_cpu();
        let mut left = owed;
        let mut dry = false;
        let mut took = Duration::ZERO;
        while left != 0 && !dry && took < ASSIST_MOST {
            // A stop waits for one slice, not for the whole assist. The record's flag says whether
            // marking is on. It changes in stops only, so it does not change while the marker
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
                seam::delay();
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

    /// The time that assists of this mutator have taken since it attached: processor time in which
    /// allocations marked because the collector was behind, and time in which they waited because
    /// the heap was beyond all bounds. The collector takes this time and that of the stops
    /// ([`HeapStats::pause_total`](crate::HeapStats::pause_total)) from the thread.
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

    /// Waits for the current collection, for a bounded time.
    #[cold]
    fn wait_a_moment(&self, bytes: u64) {
        if !self.thread().in_no_preempt() {
            let requests = &self.heap.state().requests;
            self.thread()
                .blocking(|| requests.wait_for_last_at_most(pacer::moment(bytes)));
        }
    }
}

mod seam {
    use core::time::Duration;

    use crate::fault::Fault;

    #[inline(always)]
    pub(super) fn holds_blocks_back() -> bool {
        !Fault::BlocksOvershoot.planted()
    }

    /// Not planted faults: an assist ends when the collector has begun a stop, or in less time
    /// than the collector waits for an assist.
    pub(super) fn delay() {
        if Fault::SlowAssists.planted() {
            gc_preempt::faults::hold_until(gc_preempt::is_asked_to_stop_here);
        }
        if Fault::BriskAssists.planted() {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
