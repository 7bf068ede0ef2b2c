//! Says which thread keeps a stop waiting, and lets a panic in a stopped world die loudly instead
//! of waiting for ever.
//!
//! Both run while threads are stopped that may hold any lock, so they format into a fixed buffer
//! and write with `write(2)`.

use crate::arch;
use crate::clock;
use crate::quiet::NoCancel;
use crate::registry::Record;
use crate::signal;
use crate::world::STOPPER;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering};
use std::panic::PanicHookInfo;
use std::sync::{Mutex, PoisonError};
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
    let obstacle = record.obstacle(record.state.load().number());
    let _ = match (signal::still_installed(), depth, obstacle) {
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

// ---- panics in a stopped world ------------------------------------------------------------------
//
// A panic on the thread that holds a stop must not run what it runs elsewhere: the message may call
// malloc or take a lock of its own, the standard hook takes the lock of standard error, and
// unwinding calls malloc; a stopped thread may hold any of these. Two things end it:
//
// * A hook that aborts, with the panic's message. It is on top of whatever hook the host has when a
//   world is made, and when it is stopped first.
// * A hook that the host sets later comes before ours, and the message is written before any hook.
//   A panic that gets stuck in either waits for a lock that a parked thread holds. So a thread that
//   is parked for long has the stopper look at itself, by a signal, and the stopper aborts if it
//   panics.

/// How long a thread is parked before it has the stopper look at itself, and again.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// The thread that stops a world, by the kernel's number. Valid while `STOPPER` is not 0.
static STOPPER_TID: AtomicI32 = AtomicI32::new(0);
/// When the stopper was last asked to look at itself, in nanoseconds.
static ASKED: AtomicU64 = AtomicU64::new(0);

/// The address of the hook that was installed last, or null.
static HOOK: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Makes sure that the panic hook which aborts in a stopped world comes before the host's.
/// Allocates; takes the lock of the hook.
///
/// A hook that another thread sets between the two calls below is lost. So this is done where a
/// world is made or stopped first, not in each stop.
pub(crate) fn put_panic_hook_on_top() {
    if std::thread::panicking() || crate::world::in_no_preempt_here() {
        return;
    }
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let top = std::panic::take_hook();
    let address = core::ptr::from_ref(&*top).cast::<()>().cast_mut();
    // Relaxed: under `ONE_AT_A_TIME`.
    let last = HOOK.load(Ordering::Relaxed);
    if address == last || !last.is_null() && crate::faults::planted("hook-below") {
        std::panic::set_hook(top);
    } else {
        let ours: Box<dyn Fn(&PanicHookInfo<'_>) + Send + Sync> = Box::new(move |info| {
            if STOPPER.load(Ordering::Relaxed) != arch::thread_pointer() {
                return top(info);
            }
            abort_with(Some(info));
        });
        HOOK.store(
            core::ptr::from_ref(&*ours).cast::<()>().cast_mut(),
            Ordering::Relaxed,
        );
        std::panic::set_hook(ours);
    }
    drop(one);
}

fn abort_with(info: Option<&PanicHookInfo<'_>>) -> ! {
    let mut t = Text::new();
    let _ = t.write_str("urge: panic while the world is stopped");
    match info {
        Some(info) => {
            if let Some(at) = info.location() {
                let _ = write!(t, ", at {at}");
            }
            if let Some(message) = info.payload_as_str() {
                let _ = write!(t, ": {message}");
            }
        }
        None => {
            let _ = t.write_str(
                ": its message, or a panic hook that was set after the world was first stopped, waits for a lock that a stopped thread holds",
            );
        }
    }
    let _ = t.write_str("\n");
    t.print();
    std::process::abort();
}

/// Ends the process with a message that takes no lock.
pub(crate) fn die(why: &str) -> ! {
    let mut t = Text::new();
    let _ = writeln!(t, "urge: {why}");
    t.print();
    std::process::abort();
}

/// The calling thread is about to stop a world.
pub(crate) fn stop_begins() {
    // Relaxed, here and below: what matters is read by the stopper itself.
    // SAFETY: a system call without arguments.
    STOPPER_TID.store(unsafe { libc::gettid() }, Ordering::Relaxed);
    ASKED.store(clock::now(), Ordering::Relaxed);
}

/// Has the stopper look whether it is stuck in a panic. By a thread that has been parked for
/// [`PATIENCE`]. Async-signal-safe.
pub(crate) fn ask_the_stopper() {
    let (now, asked) = (clock::now(), ASKED.load(Ordering::Relaxed));
    let is_due = now.saturating_sub(asked) >= PATIENCE.as_nanos() as u64;
    if is_due
        && STOPPER.load(Ordering::Relaxed) != 0
        && !crate::faults::planted("stopper-unasked")
        && ASKED
            .compare_exchange(asked, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    {
        signal::send(STOPPER_TID.load(Ordering::Relaxed));
    }
}

/// Aborts if the calling thread panics in the stop that it holds. In the handler.
pub(crate) fn abort_if_panicking() {
    // `panicking` reads a counter and a thread-local that needs no initialisation, of a thread that
    // has used it before if it panics.
    if crate::world::holds_a_stop() && std::thread::panicking() {
        abort_with(None);
    }
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
