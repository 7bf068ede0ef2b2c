//! Says which thread keeps a stop waiting, and lets a panic in a stopped world die loudly instead of waiting for ever.
//!
//! Both run while threads are stopped that may hold any lock, so they format into a fixed buffer and write with `write(2)`.

use crate::arch;
use crate::registry::Record;
use crate::signal;
use crate::world::STOPPER;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// When the watchdog speaks first. Then at twice that, and so on.
const FIRST: Duration = Duration::from_secs(1);

/// Text without malloc: cut off at the buffer's end.
pub(crate) struct Text {
    bytes: [u8; 1024],
    len: usize,
}

impl Text {
    pub(crate) fn new() -> Self {
        Self {
            bytes: [0; 1024],
            len: 0,
        }
    }

    /// Writes to standard error, past every lock.
    pub(crate) fn print(&self) {
        // SAFETY: the bytes are initialised; a short or failed write loses a message, nothing else.
        unsafe { libc::write(2, self.bytes.as_ptr().cast(), self.len) };
    }
}

impl Write for Text {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let n = s.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..self.len + n].copy_from_slice(&s.as_bytes()[..n]);
        self.len += n;
        Ok(())
    }
}

/// One stop's patience.
pub(crate) struct Watchdog {
    begun: Instant,
    next: Duration,
}

impl Watchdog {
    pub(crate) fn new(begun: Instant) -> Self {
        Self { begun, next: FIRST }
    }

    /// Names the thread that `culprit` finds, if it is time to.
    pub(crate) fn look(&mut self, now: Instant, culprit: impl FnOnce() -> Option<&'static Record>) {
        if crate::faults::planted("no-watchdog") {
            return;
        }
        let waited = now - self.begun;
        if waited < self.next {
            return;
        }
        self.next *= 2;
        if let Some(record) = culprit() {
            report(record, waited);
        }
    }
}

fn report(record: &Record, waited: Duration) {
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
            let urg = mask >> (signal::SIGNAL - 1) & 1 == 1;
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
    let _ = match (signal::still_installed(), depth, field(status, b"State:")) {
        (false, ..) => write!(
            t,
            " Another handler was installed over Urge's: install the host's first, or pass SIGURG on."
        ),
        (true, 1.., _) => write!(
            t,
            " It is inside no_preempt (depth {depth}): sections must be short and must not wait."
        ),
        (true, 0, state) => write!(t, " State {}.", state.unwrap_or("unknown")),
    };
    let _ = t.write_str("\n");
    t.print();
}

/// Reads a file of the thread's /proc directory without malloc. Empty if it cannot be read.
fn proc_file<'a>(tid: i32, file: &str, buffer: &'a mut [u8]) -> &'a [u8] {
    let mut path = Text::new();
    let _ = write!(path, "/proc/self/task/{tid}/{file}\0");
    // SAFETY: the path ends in a zero, the buffer is writable for its length, the descriptor is closed once.
    let n = unsafe {
        let fd = libc::open(path.bytes.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return &[];
        }
        let n = libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len());
        libc::close(fd);
        n
    };
    &buffer[..n.max(0) as usize]
}

/// The value behind `name` in a /proc status file.
fn field<'a>(status: &'a [u8], name: &[u8]) -> Option<&'a str> {
    let line = status
        .split(|&b| b == b'\n')
        .find(|l| l.starts_with(name))?;
    core::str::from_utf8(line[name.len()..].trim_ascii()).ok()
}

/// Makes a panic on the thread that holds a stop abort with a message written past all locks: the standard hook would take the lock
/// of standard error, and unwinding would call malloc, both of which a stopped thread may hold.
pub(crate) fn install_panic_hook() {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    if std::thread::panicking() || INSTALLED.swap(true, Ordering::Relaxed) {
        return;
    }
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if STOPPER.load(Ordering::Relaxed) != arch::thread_pointer() {
            return previous(info);
        }
        let mut t = Text::new();
        let _ = write!(t, "urge: panic while the world is stopped");
        if let Some(at) = info.location() {
            let _ = write!(t, ", at {at}");
        }
        if let Some(message) = info.payload_as_str() {
            let _ = write!(t, ": {message}");
        }
        let _ = t.write_str("\n");
        t.print();
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn text_is_cut_not_overrun() {
        let mut t = Text::new();
        for _ in 0..300 {
            t.write_str("0123456789").unwrap();
        }
        assert_eq!(t.len, t.bytes.len());
    }
}
