//! A scheduler's settings and counts.

use std::time::Duration;

/// When a green thread is suspended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Mode {
    /// At calls into the scheduler only.
    Cooperative,
    /// Also at the end of its slice, at any instruction of managed code.
    Async,
}

/// A scheduler's settings.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Worker threads.
    pub workers: usize,
    /// How long a green thread runs before the monitor asks for its preemption.
    pub slice: Duration,
    /// When a green thread is suspended.
    pub mode: Mode,
    /// Bytes of a green thread's stack. An injected call and its hook need 64 KiB of it.
    pub stack: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            workers: 2,
            slice: Duration::from_millis(10),
            mode: Mode::Async,
            stack: 256 << 10,
        }
    }
}

/// What a scheduler has counted so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Times that a worker has resumed a green thread.
    pub switches: u64,
    /// Times that a green thread was preempted.
    pub preemptions: u64,
    /// Requests of the monitor.
    pub requests: u64,
    /// Whether the monitor has found all workers in the same green threads for a second, with
    /// others waiting.
    pub stalled: bool,
}
