//! A worker thread: takes green threads from the queues and runs them, each until it suspends
//! itself, is preempted or ends.
//!
//! Native code of a green thread is not preempted. So it may use its worker, and the worker's
//! mutator, until it suspends itself or calls managed code. After that it may be on another worker.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use gc_core::{Heap, Mutator};
use gc_preempt::{
    PreemptHook, Preempter, Resumed, StackPool, World, suspend, take_preempt_request_here,
};

use super::green::Green;
use super::options::{Counts, Mode, Options};
use super::queue::{Local, Queues};
use super::timers::Timers;

/// The longest sleep of an idle worker.
const NAP: Duration = Duration::from_millis(100);

/// What the monitor sees of a worker.
#[derive(Default)]
pub(super) struct Seat {
    /// Odd while it runs a green thread; one more at each change.
    pub(super) ticks: AtomicU64,
    pub(super) preempter: OnceLock<Preempter>,
    preemptions: AtomicU64,
}

/// What workers, green threads and the monitor share.
pub(super) struct Shared {
    world: World,
    stacks: StackPool,
    pub(super) options: Options,
    pub(super) queues: Queues<Arc<Green>>,
    pub(super) timers: Timers<Arc<Green>>,
    pub(super) seats: Vec<Seat>,
    pub(super) over: AtomicBool,
    pub(super) requests: AtomicU64,
    pub(super) stalled: AtomicBool,
    /// Green threads that have not ended, and the first panic.
    live: Mutex<(u64, Option<String>)>,
    ended: Condvar,
}

impl Shared {
    pub(super) fn new(heap: &Heap, options: Options) -> (Arc<Shared>, Vec<Local<Arc<Green>>>) {
        let (queues, locals) = Queues::new(options.workers);
        let shared = Arc::new(Shared {
            world: heap.world().clone(),
            stacks: StackPool::new(options.stack),
            options,
            queues,
            timers: Timers::new(),
            seats: (0..options.workers).map(|_| Seat::default()).collect(),
            over: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            stalled: AtomicBool::new(false),
            live: Mutex::new((0, None)),
            ended: Condvar::new(),
        });
        (shared, locals)
    }

    /// Makes a green thread, and hands it to `enqueue`.
    pub(super) fn spawn(
        &self,
        f: impl FnOnce() + Send + 'static,
        enqueue: impl FnOnce(Arc<Green>),
    ) -> Result<Arc<Green>, String> {
        let memory = self.stacks.take().map_err(|e| e.to_string())?;
        // SAFETY: the memory is the registration's own.
        let stack = unsafe { self.world.register_stack(memory.range(), memory) };
        let stack = stack.map_err(|e| e.to_string())?;
        let body = move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(f)) {
                with_worker(|worker| worker.shared.note_panic(words(&*panic)));
            }
        };
        // SAFETY: green threads keep nothing of a thread's over a suspension (the head of
        // `sched/mod.rs`), and workers end on their own stacks.
        unsafe { stack.start(body) }.map_err(|e| e.to_string())?;
        let green = Green::new(stack);
        self.live().0 += 1;
        enqueue(green.clone());
        Ok(green)
    }

    fn live(&self) -> MutexGuard<'_, (u64, Option<String>)> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_panic(&self, words: String) {
        self.live().1.get_or_insert(words);
    }

    /// A green thread has ended.
    fn end(&self) {
        let mut live = self.live();
        live.0 -= 1;
        if live.0 == 0 {
            self.ended.notify_all();
        }
    }

    pub(super) fn wait(&self) -> Result<(), String> {
        let ended = self.ended.wait_while(self.live(), |live| live.0 != 0);
        let live = ended.unwrap_or_else(PoisonError::into_inner);
        live.1.clone().map_or(Ok(()), Err)
    }

    pub(super) fn counts(&self) -> Counts {
        let sum = |of: fn(&Seat) -> u64| self.seats.iter().map(of).sum();
        // Relaxed: counts.
        Counts {
            switches: sum(|seat| seat.ticks.load(Ordering::Relaxed).div_ceil(2)),
            preemptions: sum(|seat| seat.preemptions.load(Ordering::Relaxed)),
            requests: self.requests.load(Ordering::Relaxed),
            stalled: self.stalled.load(Ordering::Relaxed),
        }
    }
}

/// A worker, on its thread.
struct Worker {
    shared: Arc<Shared>,
    local: Local<Arc<Green>>,
    mutator: Mutator,
    index: usize,
}

/// The body of a worker's thread. It tells whether the worker works.
pub(super) fn run(
    heap: &Heap,
    shared: Arc<Shared>,
    local: Local<Arc<Green>>,
    index: usize,
    tell: Sender<Result<(), String>>,
) {
    let mutator = match seam::attach(heap, index) {
        Ok(mutator) => mutator,
        Err(error) => {
            let told = seam::refusal(format!("a worker cannot attach: {error}"));
            // `Scheduler::start` waits for it.
            let _ = tell.send(told);
            return;
        }
    };
    let worker = Worker {
        shared,
        local,
        mutator,
        index,
    };
    let thread = worker.mutator.thread();
    if worker.shared.options.mode == Mode::Async {
        let hook = PreemptHook {
            f: preempted,
            data: std::ptr::null_mut(),
        };
        // SAFETY: the hook suspends the stack that it runs on, and keeps nothing of the thread's.
        unsafe { thread.set_preempt_hook(Some(hook)) };
    }
    let _ = worker.seat().preempter.set(thread.preempter());
    // As above.
    let _ = tell.send(Ok(()));
    drop(tell);
    worker.work();
}

impl Worker {
    fn seat(&self) -> &Seat {
        &self.shared.seats[self.index]
    }

    fn work(&self) {
        let shared = &*self.shared;
        // Acquire pairs with the Release in `Scheduler::drop`.
        let is_over = || shared.over.load(Ordering::Acquire);
        let mut yielded = None;
        loop {
            shared.timers.due(|green| self.unpark(&green));
            let next = match yielded.take() {
                Some(green) => self.local.next_after(&shared.queues, green),
                None => self.local.next(&shared.queues),
            };
            if let Some(green) = next {
                yielded = self.run(green);
            } else if is_over() {
                return;
            } else {
                let nap = shared.timers.wait().unwrap_or(NAP).min(NAP);
                self.mutator.blocking(|| shared.queues.sleep(nap, is_over));
            }
        }
    }

    /// Runs a green thread until it is suspended or ends. Gives it back if it goes on when it is
    /// its turn again.
    fn run(&self, green: Arc<Green>) -> Option<Arc<Green>> {
        let here = std::ptr::from_ref(self).cast_mut().cast();
        // A request that meant the green thread before.
        take_preempt_request_here();
        // Relaxed, both: only this thread writes it, and the monitor may read it late.
        let ticks = self.seat().ticks.load(Ordering::Relaxed);
        self.seat().ticks.store(ticks + 1, Ordering::Relaxed);
        let outcome = green.resume(here);
        self.seat().ticks.store(ticks + 2, Ordering::Relaxed);
        match outcome {
            Ok(Resumed::Suspended) if green.has_parked() && green.parked() => return None,
            Ok(Resumed::Suspended) => return Some(green),
            Ok(Resumed::Finished) => {}
            Err(error) => {
                let words = format!("a stack was not resumed: {error}");
                self.shared.note_panic(words);
            }
        }
        self.shared.end();
        None
    }

    fn unpark(&self, green: &Arc<Green>) {
        if green.unparked() {
            self.local.push(&self.shared.queues, green.clone());
        }
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a green thread panicked").to_owned()
}

/// The hook of a worker that is preempted: suspends the green thread that runs, where it is.
unsafe extern "C" fn preempted(_: *mut ()) {
    Green::with_here(|green, _| green.is_preempted());
    with_worker(|worker| worker.seat().preemptions.fetch_add(1, Ordering::Relaxed));
    // An error means that this is no green thread, or one that may not leave its stack now. It goes
    // on then.
    let _ = suspend();
}

// ---- what green threads call --------------------------------------------------------------------

const NOT_GREEN: &str = "called on a green thread";

/// Calls `f` with the worker that runs this green thread. `None`: this is no green thread.
fn with_worker<R>(f: impl FnOnce(&Worker) -> R) -> Option<R> {
    // SAFETY: the worker stands still in `Worker::run` while its green thread runs, and `f` does
    // not suspend it.
    Green::with_here(|_, worker| f(unsafe { &*worker.cast_const().cast::<Worker>() }))
}

/// Lets other green threads run.
///
/// # Panics
/// Elsewhere than on a green thread.
#[inline]
pub fn yield_now() {
    suspend().expect(NOT_GREEN);
}

/// Waits until another thread calls [`unpark`], or for no reason.
///
/// # Panics
/// Elsewhere than on a green thread.
pub fn park() {
    Green::with_here(|green, _| green.parks()).expect(NOT_GREEN);
    suspend().expect(NOT_GREEN);
}

/// Ends the [`park`] of a green thread, or the next one, if it is not parked. From a green thread
/// of the same scheduler.
///
/// # Panics
/// Elsewhere than on a green thread.
pub fn unpark(green: &Arc<Green>) {
    with_worker(|worker| worker.unpark(green)).expect(NOT_GREEN);
}

/// The running green thread.
///
/// # Panics
/// Elsewhere than on a green thread.
pub(super) fn current() -> Arc<Green> {
    Green::here().expect(NOT_GREEN)
}

/// How often the running green thread was preempted so far.
///
/// # Panics
/// Elsewhere than on a green thread.
pub fn preemptions_here() -> u64 {
    Green::with_here(|green, _| green.preemptions()).expect(NOT_GREEN)
}

/// Waits for at least so long.
///
/// # Panics
/// Elsewhere than on a green thread.
pub fn sleep(time: Duration) {
    let deadline = Instant::now() + time;
    with_worker(|worker| worker.shared.timers.add(deadline, current())).expect(NOT_GREEN);
    while Instant::now() < deadline {
        park();
    }
}

/// Makes a green thread of the same scheduler.
///
/// # Errors
/// The system gives no memory for its stack.
///
/// # Panics
/// Elsewhere than on a green thread.
pub fn spawn(f: impl FnOnce() + Send + 'static) -> Result<Arc<Green>, String> {
    let spawned = with_worker(|worker| {
        let queue = |green| worker.local.push(&worker.shared.queues, green);
        worker.shared.spawn(f, queue)
    });
    spawned.expect(NOT_GREEN)
}

/// Calls `f` with the mutator of the worker that runs this green thread. `f` neither suspends the
/// green thread nor runs managed code.
///
/// # Panics
/// Elsewhere than on a green thread.
pub fn with_mutator<R>(f: impl FnOnce(&Mutator) -> R) -> R {
    with_worker(|worker| f(&worker.mutator)).expect(NOT_GREEN)
}

/// What tests may break here.
mod seam {
    use gc_core::{Heap, Mutator};

    use crate::fault::{Event, Fault};

    pub(super) fn attach(heap: &Heap, index: usize) -> Result<Mutator, String> {
        if Event::WorkerRefused.planted() && index == 1 {
            return Err("refused by a test".to_owned());
        }
        heap.attach().map_err(|error| error.to_string())
    }

    /// What a worker tells that does not work.
    pub(super) fn refusal(why: String) -> Result<(), String> {
        if Fault::RefusalsUntold.planted() {
            return Ok(());
        }
        Err(why)
    }
}
