//! Says which thread keeps a stop waiting, and why.

use crate::handler;
use crate::quiet::NoCancel;
use crate::registry::Record;
use crate::signal::SIGNAL;
use crate::text::Text;
use core::fmt::Write;
use core::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// When the watchdog speaks first, unless a world has another setting.
pub(crate) const FIRST: Duration = Duration::from_secs(1);

/// Reports a thread that keeps one stop waiting.
pub(crate) struct Watchdog {
    begun: Instant,
    next: Duration,
}

impl Watchdog {
    /// A watchdog that speaks when the stop has waited for `first`, then at twice that, and so on.
    pub(crate) fn new(begun: Instant, first: Duration) -> Self {
        Self { begun, next: first }
    }

    /// Names the thread that `culprit` finds, if the next report is due.
    pub(crate) fn look(&mut self, now: Instant, culprit: impl FnOnce() -> Option<&'static Record>) {
        if seam::is_silent() {
            return;
        }
        let waited = now - self.begun;
        if waited < self.next {
            return;
        }
        self.next = self.next.saturating_mul(2);
        if let Some(record) = culprit() {
            report(record, waited);
        }
    }
}

fn report(record: &Record, waited: Duration) {
    let _no_cancel = NoCancel::new();
    let tid = record.tid.load(Ordering::Relaxed);
    let mut name = [0; 32];
    let name = proc_file(tid, "comm", &mut name).trim_ascii_end();
    let mut status = [0; 2048];
    let status = proc_file(tid, "status", &mut status);
    let blocked = field(status, b"SigBlk:").and_then(|v| u64::from_str_radix(v, 16).ok());
    let mut t = Text::new();
    let _ = write!(
        t,
        "urge: thread {tid} ({}) has not answered a stop for {} ms.",
        core::str::from_utf8(name).unwrap_or("?"),
        waited.as_millis()
    );
    match blocked {
        Some(mask) => {
            let urg = mask >> (SIGNAL - 1) & 1 == 1;
            let _ = write!(
                t,
                " Blocked signals {mask:#018x}: SIGURG is {}among them.",
                if urg { "" } else { "not " }
            );
        }
        None => {
            let _ = write!(t, " Its signal mask cannot be read.");
        }
    }
    let depth = record.depth.load(Ordering::Relaxed);
    let obstacle = record.obstacle(record.state.load().number());
    let _ = match (handler::still_installed(), depth, obstacle) {
        (false, ..) => write!(
            t,
            " Another handler was installed over Urge's: install the host's first, or pass SIGURG on."
        ),
        (true, 1.., _) => write!(
            t,
            " It is inside no_preempt (depth {depth}): sections must be short and must not wait."
        ),
        (true, 0, Some(obstacle)) => write!(t, " It was met last {}.", obstacle.words()),
        (true, 0, None) => {
            let state = field(status, b"State:").unwrap_or("unknown");
            write!(t, " State {state}.")
        }
    };
    let _ = t.write_str("\n");
    t.print();
}

/// Reads a file of the thread's /proc directory without malloc. Empty if it cannot be read.
fn proc_file<'a>(tid: i32, file: &str, buffer: &'a mut [u8]) -> &'a [u8] {
    let mut path = Text::new();
    let _ = write!(path, "/proc/self/task/{tid}/{file}\0");
    // SAFETY: the path ends in a zero, the buffer is writable for its length, the descriptor is
    // closed once.
    let n = unsafe {
        let fd = libc::open(
            path.bytes().as_ptr().cast(),
            libc::O_RDONLY | libc::O_CLOEXEC,
        );
        if fd < 0 {
            return &[];
        }
        let n = libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len());
        libc::close(fd);
        n
    };
    &buffer[..n.max(0) as usize]
}

/// The value after `name` in a /proc status file.
fn field<'a>(status: &'a [u8], name: &[u8]) -> Option<&'a str> {
    let line = status
        .split(|&b| b == b'\n')
        .find(|l| l.starts_with(name))?;
    core::str::from_utf8(line[name.len()..].trim_ascii()).ok()
}

/// What tests may break here.
mod seam {
    use crate::faults::Fault;

    pub(super) fn is_silent() -> bool {
        Fault::NoWatchdog.planted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_speaks_when_its_time_has_passed_and_when_twice_that_has() {
        let (begun, first) = (Instant::now(), Duration::from_secs(10));
        let mut watchdog = Watchdog::new(begun, first);
        let mut asked = Vec::new();
        for seconds in 1..=45 {
            watchdog.look(begun + Duration::from_secs(seconds), || {
                asked.push(seconds);
                None
            });
        }
        assert_eq!(asked, [10, 20, 40]);
    }

    #[test]
    fn proc_status_names_this_thread_and_its_mask() {
        // SAFETY: a system call without arguments.
        let tid = unsafe { libc::gettid() };
        let mut status = [0; 2048];
        let status = proc_file(tid, "status", &mut status);
        assert!(field(status, b"SigBlk:").is_some_and(|v| u64::from_str_radix(v, 16).is_ok()));
        assert!(field(status, b"Nonsense:").is_none());
        assert_eq!(proc_file(-1, "status", &mut [0; 8]), b"");
    }
}
