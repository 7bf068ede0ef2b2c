//! The thread that ends slices: it asks for preemption when one green thread has run for one.

use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gc_preempt::Preempter;

use super::preemption;
use crate::lox::fault::Fault;

/// The time between two signals of one request, and their number.
const BETWEEN: Duration = Duration::from_micros(100);
const SIGNALS: u32 = 20;

/// How the isolate's thread is asked.
pub(super) struct Asks {
    /// The flag that the interpreter looks at.
    pub(super) flag: *const AtomicU32,
    /// Marks the thread, for compiled code.
    pub(super) preempter: Preempter,
    /// The thread's number in the system.
    pub(super) thread: c_int,
    /// Number of switches to a green thread and back.
    pub(super) switches: Arc<AtomicU64>,
}

// SAFETY: the flag is atomic and outlives the monitor, by the contract of `start`.
unsafe impl Send for Asks {}

/// A running monitor. Its drop ends the thread.
pub(super) struct Monitor {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread to give.
    ///
    /// # Safety
    /// The isolate's flag and its thread outlive the monitor.
    pub(super) unsafe fn start(asks: Asks, slice: Duration) -> Result<Monitor, String> {
        let over = Arc::new(AtomicBool::new(false));
        let watched = over.clone();
        let thread = std::thread::Builder::new()
            .name("lox monitor".into())
            .spawn(move || watch(&watched, &asks, slice))
            .map_err(|e| format!("Could not start a thread: {e}"))?;
        Ok(Monitor {
            over,
            thread: Some(thread),
        })
    }
}

/// Asks for preemption whenever a slice has passed without a switch.
fn watch(over: &AtomicBool, asks: &Asks, slice: Duration) {
    let (mut seen, mut since) = (0, Instant::now());
    // Relaxed, all: no other data is published by these words.
    while !over.load(Ordering::Relaxed) {
        std::thread::park_timeout(slice / 4);
        let switches = asks.switches.load(Ordering::Relaxed);
        if switches != seen {
            (seen, since) = (switches, Instant::now());
        } else if since.elapsed() >= slice && is_running(seen) {
            if !Fault::SlicesWithoutEnd.planted() {
                ask(over, asks, seen);
            }
            since = Instant::now();
        }
    }
}

/// Whether a green thread runs after that many switches: each one counts twice, at its resume and
/// when it is suspended.
fn is_running(switches: u64) -> bool {
    switches % 2 == 1
}

/// Asks until the green thread has been suspended, or signals have been sent for a while.
fn ask(over: &AtomicBool, asks: &Asks, seen: u64) {
    // SAFETY: the contract of `start`. Relaxed: a flag alone.
    unsafe { (*asks.flag).store(1, Ordering::Relaxed) };
    asks.preempter.preempt();
    for _ in 0..SIGNALS {
        std::thread::park_timeout(BETWEEN);
        // SAFETY: the contract of `start`. Relaxed: the green thread has looked, and runs alone.
        let has_looked = unsafe { (*asks.flag).load(Ordering::Relaxed) == 0 };
        let runs_on = asks.switches.load(Ordering::Relaxed) == seen;
        if has_looked || !runs_on || over.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: a system call without pointers. The thread has a handler, and lives.
        unsafe {
            let signal = preemption::signal();
            libc::syscall(libc::SYS_tgkill, libc::getpid(), asks.thread, signal);
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // The thread does not panic.
            let _ = thread.join();
        }
    }
}
