//! How far a long piece of work is: a line on stderr, where that is a terminal, ten times a second
//! at most.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// The least time between two lines.
const EVERY: Duration = Duration::from_millis(100);

/// The line. Dropping it clears it.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    /// When the last line was shown. `None`: stderr is no terminal.
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

    /// Says that so many of so many are done, unless it has just said so.
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
