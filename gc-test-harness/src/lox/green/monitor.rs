//! The thread that ends slices: it sets the isolate's flag when one green thread has run for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A running monitor. Its drop ends the thread.
pub(super) struct Monitor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// Number of switches to a green thread.
    switches: AtomicU64,
    over: AtomicBool,
}

/// The address of the isolate's flag.
struct Flag(*const AtomicU32);
// SAFETY: the word is atomic and outlives the thread, by the contract of `start`.
unsafe impl Send for Flag {}

impl Monitor {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread to give.
    ///
    /// # Safety
    /// The flag outlives the monitor.
    pub(super) unsafe fn start(flag: *const AtomicU32, slice: Duration) -> Result<Monitor, String> {
        let shared = Arc::new(Shared {
            switches: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        let (watched, flag) = (shared.clone(), Flag(flag));
        let thread = std::thread::Builder::new()
            .name("lox monitor".into())
            .spawn(move || {
                let flag = flag;
                // SAFETY: the contract of `start`.
                watch(&watched, unsafe { &*flag.0 }, slice);
            })
            .map_err(|e| format!("Could not start a thread: {e}"))?;
        Ok(Monitor {
            shared,
            thread: Some(thread),
        })
    }

    /// Another green thread runs from now on.
    pub(super) fn switched(&self) {
        // Relaxed: a count; a slice more or less does not matter.
        self.shared.switches.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sets the flag whenever a slice has passed without a switch.
fn watch(shared: &Shared, flag: &AtomicU32, slice: Duration) {
    let (mut seen, mut since) = (0, Instant::now());
    // Relaxed, all: no other data is published by these words.
    while !shared.over.load(Ordering::Relaxed) {
        std::thread::park_timeout(slice / 4);
        let switches = shared.switches.load(Ordering::Relaxed);
        if switches != seen {
            (seen, since) = (switches, Instant::now());
        } else if since.elapsed() >= slice {
            flag.store(1, Ordering::Relaxed);
            since = Instant::now();
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // The thread does not panic.
            let _ = thread.join();
        }
    }
}
