//! Worker threads that mark beside the collector, as many at a time as it asks for.
//!
//! Workers share a heap's queue, packet by packet. A marker gives half of its cells away while a
//! worker has nothing to do. `termination.rs` says when all work is done; the collector is the
//! leader.
//!
//! A worker's thread is made when it is first needed, and lives as long as the collector's. Between
//! two markings, and while it finds nothing, it sleeps on a futex. It blocks all signals, as the
//! collector's thread does, which makes it. It is no mutator, so a stop neither waits for it nor
//! stops it. A heap in which there is little to mark wakes none (H33): waking a thread costs as
//! much as marking a thousand cells, and a kernel that sees many threads run for an instant spreads
//! them over cold processors.
//!
//! The child of a fork has none of these threads; its collector makes new ones.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, Signal};

use super::marker::Marker;
use super::queue::MarkQueue;
use crate::heap::Space;
use crate::marked::Marked;
use crate::pacer;
use crate::thread::{Thread, thread_cpu};
use crate::weak::WeakWork;

/// Cells that the collector marks by itself before it wakes a worker: a quarter of a millisecond's
/// work.
const ENOUGH: u64 = 16 << 10;

/// Cells that a worker follows until it asks again whether another worker wants some.
const PIECE: usize = 512;

/// How often a worker that found nothing looks again before it sleeps: some 20 us.
const LOOKS: u32 = 1000;

/// How long the collector waits for cells from workers before it does other work.
const MOMENT: Duration = Duration::from_micros(50);

/// What workers did for a marking.
pub(crate) struct Work {
    /// Workers that were at work.
    pub(crate) helpers: u32,
    /// Nanoseconds of processor time that they needed.
    pub(crate) cpu: u64,
}

/// The workers of one collector.
pub(crate) struct Workers<'h> {
    space: &'h Space,
    queue: &'h MarkQueue,
    weak: &'h WeakWork,
    threads: Vec<Thread>,
    helpers: u32,
}

impl<'h> Workers<'h> {
    /// No worker yet.
    ///
    /// # Safety
    /// The queue has no other workers while these exist. They are dropped before what they borrow,
    /// and not forgotten: their threads read it.
    pub(crate) unsafe fn new(
        space: &'h Space,
        queue: &'h MarkQueue,
        weak: &'h WeakWork,
    ) -> Workers<'h> {
        Workers {
            space,
            queue,
            weak,
            threads: Vec::new(),
            helpers: 0,
        }
    }

    /// From now on so many workers may mark, for so many thousandths of their time. The others put
    /// their cells into the queue.
    pub(crate) fn set_helpers(&mut self, helpers: u32, permille: u32) {
        self.helpers = helpers;
        // Relaxed: hints.
        let state = &self.queue.workers;
        state.permille.store(permille, Ordering::Relaxed);
        state.wanted.store(helpers, Ordering::Relaxed);
    }

    /// Follows about `cells` cells, and gives work to workers. True: there seems to be nothing
    /// left; ask [`Workers::close`]. Not in a stop: it may make threads.
    pub(crate) fn step(&mut self, marker: &mut Marker<'h>, cells: usize) -> bool {
        let mut dry = marker.drain_piece(cells);
        if dry && self.queue.has_flags() {
            dry = !marker.core.follow_flagged();
        }
        let termination = &self.queue.workers.termination;
        if !termination.is_open() {
            if dry {
                return !marker.core.wake_old();
            }
            let little = marker.marked().cells < ENOUGH && seam::waits_for_enough();
            if self.helpers == 0 || little {
                return false;
            }
            self.start_threads();
            self.queue.workers.termination.open();
        }
        if !dry {
            marker.share_with_idle_workers();
            return false;
        }
        if !seam::waits_for_workers() {
            return true;
        }
        self.wait();
        // Ephemerons' keys come last: until then, markers find most of them on other paths.
        self.queue.workers.termination.at_work() == 0
            && self.queue.is_empty()
            && !marker.core.wake_old()
    }

    /// After a step that returned true, and after all else that may have made work: is there
    /// nothing left? Then no worker has a cell or can take one before the next step, and the
    /// marker's count has all that they marked.
    #[must_use]
    pub(crate) fn close(&mut self, marker: &mut Marker<'h>) -> bool {
        let state = &self.queue.workers;
        if !seam::waits_for_workers() {
            return true;
        }
        if !state.termination.close() {
            return false;
        }
        // Relaxed: `Termination::close` orders it.
        marker.add(Marked {
            cells: state.cells.swap(0, Ordering::Relaxed),
            bytes: state.bytes.swap(0, Ordering::Relaxed),
        });
        // Mutators may have put packets in, and flagged pages are the leader's work.
        self.queue.is_empty()
    }

    /// Cells that workers have marked and that are in no marker's count yet.
    pub(crate) fn cells(&self) -> u64 {
        self.queue.workers.cells.load(Ordering::Relaxed)
    }

    /// What workers did since the last call. After [`Workers::close`].
    pub(crate) fn take_work(&self) -> Work {
        let state = &self.queue.workers;
        Work {
            helpers: state.worked.swap(0, Ordering::Relaxed).count_ones(),
            cpu: state.cpu.swap(0, Ordering::Relaxed),
        }
    }

    /// Waits until the queue has a packet or no worker is at work, for [`MOMENT`] at most.
    fn wait(&self) {
        let state = &self.queue.workers;
        let until = Instant::now() + MOMENT;
        let mut looks = 0;
        state.waiting.store(true, Ordering::Relaxed);
        while state.termination.at_work() != 0 && self.queue.is_empty() {
            looks += 1;
            if looks % 64 == 0 {
                if Instant::now() > until {
                    break;
                }
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
        state.waiting.store(false, Ordering::Relaxed);
    }

    /// Makes the threads that are missing. Where the system refuses, fewer workers mark.
    #[cold]
    fn start_threads(&mut self) {
        // Threads inherit the mask: the collector's lets SIGURG through, and workers block it.
        let urgent = SigSet::from_iter([Signal::SIGURG]);
        let mask = urgent.thread_swap_mask(SigmaskHow::SIG_BLOCK);
        while self.threads.len() < self.helpers as usize {
            let number = self.threads.len() as u32;
            let (space, queue, weak) = (self.space, self.queue, self.weak);
            let body = move || {
                let bomb = AbortOnPanic;
                run_worker(space, queue, weak, number);
                core::mem::forget(bomb);
            };
            // SAFETY: the thread is joined when the workers are dropped, which is before what they
            // borrow (`new`).
            let thread = unsafe { Thread::start(&format!("urge-marker-{}", number + 1), body) };
            match thread {
                Ok(thread) => self.threads.push(thread),
                Err(_) => {
                    self.set_helpers(number, self.queue.workers.permille.load(Ordering::Relaxed));
                }
            }
        }
        // The system accepts both calls: the sets are valid.
        let _ = mask.and_then(|mask| mask.thread_set_mask());
    }
}

impl Drop for Workers<'_> {
    fn drop(&mut self) {
        let state = &self.queue.workers;
        state.ending.store(true, Ordering::SeqCst);
        state.wake(i32::MAX);
        for thread in self.threads.drain(..) {
            thread.join();
        }
        state.ending.store(false, Ordering::SeqCst);
    }
}

/// A marker that panicked has cells that no other marker will follow.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        eprintln!(
            "urge: a marker's thread panicked: the heap is inconsistent, and the process aborts"
        );
        std::process::abort();
    }
}

/// The body of a worker's thread.
fn run_worker(space: &Space, queue: &MarkQueue, weak: &WeakWork, number: u32) {
    let state = &queue.workers;
    let mut looks = 0;
    loop {
        // Ordering: SeqCst, see `wake`. It is read before the queue, so that the worker does not
        // sleep through a call that comes afterwards.
        let seen = state.calls.load(Ordering::SeqCst);
        if state.ending.load(Ordering::SeqCst) {
            return;
        }
        let may_work =
            || state.termination.is_open() && number < state.wanted.load(Ordering::Relaxed);
        if may_work() && !queue.has_no_packet() && state.termination.join() {
            looks = 0;
            state.joined.fetch_add(1, Ordering::Relaxed);
            state
                .worked
                .fetch_or(1 << number.min(63), Ordering::Relaxed);
            work(space, queue, weak, number);
            state.termination.leave();
        } else if may_work() && looks < LOOKS {
            looks += 1;
            std::hint::spin_loop();
        } else {
            looks = 0;
            state.sleep(seen);
        }
    }
}

/// Marks until nothing is left or this worker is not wanted any more.
fn work(space: &Space, queue: &MarkQueue, weak: &WeakWork, number: u32) {
    let state = &queue.workers;
    let mut marker = Marker::new(space, queue, weak);
    let (since, begun) = (Instant::now(), thread_cpu());
    let mut posted = Marked::default();
    let mut dry = false;
    while !dry && number < state.wanted.load(Ordering::Relaxed) {
        dry = marker.drain_piece(PIECE);
        let marked = marker.marked();
        state.post(marked, posted);
        posted = marked;
        marker.share_with_idle_workers();
        let permille = state.permille.load(Ordering::Relaxed);
        if permille < 1000 {
            let rest = pacer::rest(
                thread_cpu().saturating_sub(begun),
                since.elapsed().as_nanos() as u64,
                permille,
            );
            if rest != 0 {
                std::thread::sleep(Duration::from_nanos(rest));
            }
        }
    }
    // Its cells go into the queue, and the cells that it marks on that occasion count, too.
    marker.publish();
    state.post(marker.marked(), posted);
    state
        .cpu
        .fetch_add(thread_cpu().saturating_sub(begun), Ordering::Relaxed);
}

mod seam {
    use crate::fault::Fault;

    /// Wakes no worker before it has marked enough itself.
    pub(super) fn waits_for_enough() -> bool {
        !Fault::WakesForLittle.planted()
    }

    /// Does not end marking while a worker has work.
    pub(super) fn waits_for_workers() -> bool {
        !Fault::ClosedOverWork.planted()
    }
}

#[cfg(test)]
mod tests;
