//! A scheduler of green threads: many of them on a few worker threads, preempted by signals in the
//! middle of a loop.
//!
//! ```text
//!            spawn, wake-ups, ends of slices
//!                        |
//!   global queue   [ g g g g ... ]            timers: sleeping green threads by their deadlines
//!                    |         |
//!   worker 0  [ g g ]           [ g ]  worker 1      a queue each; an idle worker steals
//!        |  resume                 |
//!        v                         v
//!     green thread              green thread         on a stack of its own, suspended by a call
//!        ^                         ^                 (yield, sleep, channel) or by preemption
//!        +----- monitor thread ----+                 asks workers to preempt what runs too long
//! ```
//!
//! Workers are mutators of one heap. A green thread runs on a registered stack of `gc-preempt`, and
//! may go on on another worker after each suspension. So it keeps nothing that belongs to a thread:
//! it gets its worker's mutator by [`with_mutator`] for as long as it neither suspends itself nor
//! runs managed code.
//!
//! With [`Mode::Async`] a green thread whose slice is over is suspended at whatever instruction of
//! managed code it has come to: the monitor requests it (`gc_preempt::Preempter`), and the worker's
//! hook suspends the running stack, with all registers on it. With [`Mode::Cooperative`] only calls
//! into the scheduler suspend.

pub mod channel;
mod green;
mod monitor;
mod options;
mod queue;
mod timers;
mod worker;

pub use channel::Channel;
pub use green::Green;
pub use options::{Counts, Mode, Options};
pub use worker::{park, preemptions_here, sleep, spawn, unpark, with_mutator, yield_now};

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::JoinHandle;

use gc_core::Heap;

use worker::Shared;

/// The worker threads and the monitor of one heap's green threads.
///
/// Its drop waits for all green threads.
pub struct Scheduler {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    monitor: Option<JoinHandle<()>>,
}

impl Scheduler {
    /// Starts the threads, and waits until each worker is a mutator of the heap. A mutator that
    /// calls it counts as blocked meanwhile.
    ///
    /// # Errors
    /// The heap's or the system's refusal, also of one worker alone. No thread is left then.
    pub fn start(heap: &Heap, options: Options) -> Result<Scheduler, String> {
        let (shared, locals) = Shared::new(heap, options);
        let mut scheduler = Scheduler {
            shared: shared.clone(),
            threads: Vec::new(),
            monitor: None,
        };
        let (tell, told) = mpsc::channel();
        for (index, local) in locals.into_iter().enumerate() {
            let (shared, heap, tell) = (shared.clone(), heap.clone(), tell.clone());
            let body = move || worker::run(&heap, shared, local, index, tell);
            let named = std::thread::Builder::new().name(format!("worker {index}"));
            let thread = named.spawn(body).map_err(|e| e.to_string())?;
            scheduler.threads.push(thread);
        }
        drop(tell);
        for _ in 0..options.workers {
            // A worker that has panicked tells nothing.
            let told = gc_preempt::blocking_here(|| told.recv());
            told.unwrap_or_else(|_| Err("a worker has ended".to_owned()))?;
        }
        let monitor = std::thread::Builder::new().name("monitor".to_owned());
        let monitor = monitor.spawn(move || monitor::run(&shared));
        scheduler.monitor = Some(monitor.map_err(|e| e.to_string())?);
        Ok(scheduler)
    }

    /// Makes a green thread, which runs as soon as a worker is free.
    ///
    /// # Errors
    /// The system gives no memory for its stack.
    pub fn spawn(&self, f: impl FnOnce() + Send + 'static) -> Result<Arc<Green>, String> {
        self.shared
            .spawn(f, |green| self.shared.queues.inject(green))
    }

    /// Waits until all green threads have ended.
    ///
    /// # Errors
    /// The message of the first one that has panicked.
    pub fn wait(&self) -> Result<(), String> {
        self.shared.wait()
    }

    /// The handle by which the monitor preempts that worker, when the worker has started.
    pub fn preempter(&self, worker: usize) -> Option<gc_preempt::Preempter> {
        self.shared.seats.get(worker)?.preempter.get().cloned()
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        self.shared.counts()
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        let _ = self.wait();
        // Release pairs with the Acquire loads of the workers and the monitor.
        self.shared.over.store(true, Ordering::Release);
        self.shared.queues.wake_all();
        if let Some(monitor) = &self.monitor {
            monitor.thread().unpark();
        }
        for thread in self.threads.drain(..).chain(self.monitor.take()) {
            let _ = thread.join();
        }
    }
}
