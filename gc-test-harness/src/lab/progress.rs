//! The progress of long work: a line on standard error, if that is a terminal, at most ten times a
//! second.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// The least time between two lines.
const EVERY: Duration = Duration::from_millis(100);

/// The progress line. Dropping it clears the line.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    /// The time of the last line. `None`: standard error is no terminal.
    shown: Option<Instant>,
    any: bool,
}

impl Progress {
    /// A line that counts `what`.
    pub fn new(what: &'static str) -> Progress {
        Progress {
            what,
            shown: std::io::stderr().is_terminal().then(Instant::now),
            any: false,
        }
    }

    /// Shows that `done` of `all` are done, unless the last line is more recent than `EVERY`.
    pub fn show(&mut self, done: u64, all: u64) {
        let Some(shown) = self.shown.filter(|shown| shown.elapsed() >= EVERY) else {
            return;
        };
        debug_assert!(shown <= Instant::now());
        let _ = write!(std::io::stderr(), "\r{done} of {all} {}\x1b[K", self.what);
        self.shown = Some(Instant::now());
        self.any = true;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.any {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
