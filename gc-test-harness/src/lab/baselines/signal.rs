//! The signal floor: threads stopped and resumed in as few instructions as can be, with nothing
//! done in between.
//!
//! The least that a stop by signal costs on this machine, so that the library's own times can be
//! given as ratios. A request is one store and one `tgkill` a thread; the handler stores its
//! acknowledgement, waits on a futex until the resume's number has come, and returns. It keeps no
//! registers and looks up no code.
//!
//! Two details make it the least. First, at each number of threads the
//! better of *spinning* and *sleeping* while waiting for the acknowledgements counts ([`Wait`]):
//! spinning is quicker with a processor to spare and slower when it takes one from a thread that
//! must still run its handler. Second, a thread that was resumed but has not been scheduled since
//! is taken over for the next round where it stands, as any collector would: on a machine with more
//! threads than processors, a floor that waited for it to leave and come back would be no floor.
//!
//! It uses SIGUSR1 and its own statics: one [`Floor`] a process, and its threads may be mutators of
//! a world as well.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::report::Samples;

/// What the collector's side does until the last acknowledgement is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Read the counter over and over.
    Spin,
    /// Sleep on the counter; the last handler wakes it.
    Sleep,
}

impl Wait {
    /// The word for tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Wait::Spin => "spin",
            Wait::Sleep => "sleep",
        }
    }
}

/// Why there is no floor to measure.
#[derive(Debug)]
pub enum FloorError {
    /// Another [`Floor`] is alive in this process.
    Busy,
    /// The system refused the handler or a signal.
    System(std::io::Error),
}

impl fmt::Display for FloorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FloorError::Busy => f.write_str(
                "the signal floor is being measured already; it has one handler a process",
            ),
            FloorError::System(e) => write!(f, "the signal floor's SIGUSR1 was refused: {e}"),
        }
    }
}

impl std::error::Error for FloorError {}

/// The number of the last request.
static REQUEST: AtomicU32 = AtomicU32::new(0);
/// The number of the last resume: the word that parked threads sleep on.
static RESUMED: AtomicU32 = AtomicU32::new(0);
/// Acknowledgements of this request: the word that a sleeping collector sleeps on.
static ACKNOWLEDGED: AtomicU32 = AtomicU32::new(0);
/// How many acknowledgements a sleeping collector waits for; 0 while it spins.
static WAKE_AT: AtomicU32 = AtomicU32::new(0);
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Stalls that a thread can leave behind between two drains; a round adds at most one.
const STALLS: usize = 64;

/// One thread.
struct Record {
    tid: libc::pid_t,
    /// 0: running. Else the number of the request it is stopped for.
    stopped_for: AtomicU32,
    stalls: [AtomicU64; STALLS],
    /// How many stalls were ever written.
    written: AtomicU32,
}

thread_local! {
    // Constant and without a destructor: a plain word at a fixed offset from the thread pointer,
    // safe in a handler.
    static RECORD: Cell<*const Record> = const { Cell::new(std::ptr::null()) };
}

/// The handler and its threads; dropping it gives the old handler back.
pub struct Floor {
    threads: Mutex<Vec<Arc<Record>>>,
    previous: libc::sigaction,
}

/// A thread's membership; it leaves when this is dropped.
pub struct Member<'f> {
    floor: &'f Floor,
    /// The record is found through this thread's own storage.
    not_send: PhantomData<*const ()>,
}

/// What one round took.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// From the request until the last acknowledgement.
    pub stop: Duration,
    /// From the request until the resume is published.
    pub pause: Duration,
    /// Threads that were running and had to be signalled.
    pub signalled: u32,
}

impl Floor {
    /// Installs the handler.
    pub fn new() -> Result<Floor, FloorError> {
        if TAKEN.swap(true, Ordering::AcqRel) {
            return Err(FloorError::Busy);
        }
        // SAFETY: both structs are plain data that the call reads and fills; the handler is
        // async-signal-safe.
        let installed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            let mut previous: libc::sigaction = std::mem::zeroed();
            match libc::sigaction(libc::SIGUSR1, &action, &mut previous) {
                0 => Ok(previous),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        match installed {
            Ok(previous) => Ok(Floor {
                threads: Mutex::default(),
                previous,
            }),
            Err(error) => {
                TAKEN.store(false, Ordering::Release);
                Err(FloorError::System(error))
            }
        }
    }

    /// Makes the calling thread one that rounds stop.
    pub fn enroll(&self) -> Member<'_> {
        // SAFETY: gettid has no preconditions.
        let tid = unsafe { libc::gettid() };
        let record = Arc::new(Record {
            tid,
            stopped_for: AtomicU32::new(0),
            stalls: [const { AtomicU64::new(0) }; STALLS],
            written: AtomicU32::new(0),
        });
        RECORD.set(Arc::as_ptr(&record));
        self.lock().push(record);
        Member {
            floor: self,
            not_send: PhantomData,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Record>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops all threads and resumes them at once. The caller must not be one of them.
    pub fn round(&self, wait: Wait) -> Result<Round, FloorError> {
        let threads = self.lock();
        let number = REQUEST.load(Ordering::Relaxed) + 1;
        ACKNOWLEDGED.store(0, Ordering::Relaxed);
        let start = now();
        // Release, here and below: pairs with the handler's Acquire load; the counter's reset comes
        // before the request.
        REQUEST.store(number, Ordering::Release);
        let mut waited_for = 0;
        for thread in threads.iter() {
            // AcqRel: pairs with the thread's own exchange on its way out. Whichever is first
            // decides: taken over where it stands, or running and signalled.
            let parked = thread.stopped_for.load(Ordering::Relaxed);
            let taken_over = parked != 0
                && thread
                    .stopped_for
                    .compare_exchange(parked, number, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok();
            if !taken_over {
                waited_for += 1;
            }
        }
        // Release: ordered before the signals by the system call; the handlers read it after their
        // acknowledgement.
        let wake_at = if wait == Wait::Sleep { waited_for } else { 0 };
        WAKE_AT.store(wake_at, Ordering::Release);
        for thread in threads.iter() {
            if thread.stopped_for.load(Ordering::Relaxed) != number
                && let Err(error) = signal(thread.tid)
            {
                RESUMED.store(number, Ordering::Release);
                futex_wake_all(&RESUMED);
                return Err(error);
            }
        }
        loop {
            // Acquire: pairs with the handlers' additions; what the threads wrote before is seen.
            let seen = ACKNOWLEDGED.load(Ordering::Acquire);
            if seen == waited_for {
                break;
            }
            match wait {
                Wait::Spin => std::hint::spin_loop(),
                Wait::Sleep => futex_wait(&ACKNOWLEDGED, seen),
            }
        }
        let stopped = now();
        // Release: pairs with the parked threads' Acquire loads.
        RESUMED.store(number, Ordering::Release);
        let resumed = now();
        futex_wake_all(&RESUMED);
        Ok(Round {
            stop: Duration::from_nanos(stopped - start),
            pause: Duration::from_nanos(resumed - start),
            signalled: waited_for,
        })
    }

    /// `rounds` rounds, recorded with the threads' own stalls. `between` runs after each: it gives
    /// the threads time.
    pub fn rounds(
        &self,
        rounds: u32,
        wait: Wait,
        mut between: impl FnMut(Duration),
    ) -> Result<Samples, FloorError> {
        let mut samples = Samples::new();
        let mut drains: Vec<(Arc<Record>, u32)> = self
            .lock()
            .iter()
            .map(|thread| (Arc::clone(thread), thread.written.load(Ordering::Acquire)))
            .collect();
        for _ in 0..rounds {
            let round = self.round(wait)?;
            samples.record(round.stop, round.pause);
            samples.met(round.signalled);
            between(round.pause);
            for (thread, read) in &mut drains {
                // Acquire: pairs with the handler's Release store, after which the stall is in its
                // place.
                let written = thread.written.load(Ordering::Acquire);
                for i in *read..written {
                    let stall = thread.stalls[i as usize % STALLS].load(Ordering::Relaxed);
                    samples.record_stall(Duration::from_nanos(stall));
                }
                *read = written;
            }
        }
        Ok(samples)
    }
}

impl fmt::Debug for Floor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Floor")
            .field("threads", &self.lock().len())
            .finish_non_exhaustive()
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // SAFETY: gives back what `new` was given.
        unsafe { libc::sigaction(libc::SIGUSR1, &self.previous, std::ptr::null_mut()) };
        TAKEN.store(false, Ordering::Release);
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        // A round holds the lock until all its signals are answered, by this thread too, in the
        // middle of waiting here.
        let record = RECORD.get();
        self.floor
            .lock()
            .retain(|thread| Arc::as_ptr(thread) != record);
        RECORD.set(std::ptr::null());
    }
}

/// All that a stopped thread does. It touches atomics, two thread-local words and the futex, and no
/// errno.
extern "C" fn on_signal(_: libc::c_int) {
    let start = now();
    let record = RECORD.get();
    if record.is_null() {
        return;
    }
    // SAFETY: set by `enroll` and cleared before the record goes.
    let record = unsafe { &*record };
    let number = REQUEST.load(Ordering::Acquire);
    record.stopped_for.store(number, Ordering::Release);
    // AcqRel: pairs with the collector's Acquire load of the counter.
    let acknowledged = ACKNOWLEDGED.fetch_add(1, Ordering::AcqRel) + 1;
    if acknowledged == WAKE_AT.load(Ordering::Acquire) {
        futex_wake_all(&ACKNOWLEDGED);
    }
    loop {
        // Acquire: pairs with the resume's Release store.
        let resumed = RESUMED.load(Ordering::Acquire);
        let stopped_for = record.stopped_for.load(Ordering::Relaxed);
        if stopped_for > resumed {
            futex_wait(&RESUMED, resumed);
        } else if record
            .stopped_for
            .compare_exchange(stopped_for, 0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
        {
            break;
        }
    }
    let written = record.written.load(Ordering::Relaxed);
    record.stalls[written as usize % STALLS].store(now() - start, Ordering::Relaxed);
    record.written.store(written + 1, Ordering::Release);
}

/// Nanoseconds of the monotonic clock, through the vDSO.
fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: fills the struct above.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

fn signal(tid: libc::pid_t) -> Result<(), FloorError> {
    // SAFETY: sends a signal whose handler is installed to a thread of this process.
    let status = unsafe {
        let pid = PID.load(Ordering::Relaxed);
        let pid = if pid == 0 { libc::getpid() } else { pid };
        PID.store(pid, Ordering::Relaxed);
        libc::syscall(libc::SYS_tgkill, pid, tid, libc::SIGUSR1)
    };
    match status {
        0 => Ok(()),
        _ => Err(FloorError::System(std::io::Error::last_os_error())),
    }
}

/// The process's own id, asked for once: `getpid` is a system call.
static PID: AtomicI32 = AtomicI32::new(0);

/// A bare system call: the handler must leave errno alone, and saving it would cost more than this.
fn futex(word: &AtomicU32, operation: libc::c_int, value: u32) {
    // SAFETY: the kernel reads the word that the reference keeps alive, and no further argument is
    // used: no timeout.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") libc::SYS_futex => _,
            in("rdi") word.as_ptr(),
            in("rsi") operation | libc::FUTEX_PRIVATE_FLAG,
            in("rdx") value,
            in("r10") 0,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
}

/// Sleeps as long as the word has that value; may return early.
fn futex_wait(word: &AtomicU32, value: u32) {
    futex(word, libc::FUTEX_WAIT, value);
}

fn futex_wake_all(word: &AtomicU32) {
    futex(word, libc::FUTEX_WAKE, i32::MAX as u32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::codegen::Arena;
    use crate::kernels::loops::{Loops, count_oracle};

    #[test]
    fn every_thread_is_stopped_in_every_round_and_computes_on() {
        let loops = Loops::compile(&mut Arena::new().expect("an arena")).expect("compiles");
        let floor = Floor::new().expect("no other floor");
        assert!(matches!(Floor::new(), Err(FloorError::Busy)));
        let (threads, turns) = (3, 200_000);
        let running = AtomicU32::new(0);
        let over = AtomicBool::new(false);
        let expected = count_oracle(1, turns);
        let counted = std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let _member = floor.enroll();
                    running.fetch_add(1, Ordering::SeqCst);
                    while !over.load(Ordering::SeqCst) {
                        assert_eq!((loops.count)(1, turns), expected);
                    }
                });
            }
            while running.load(Ordering::SeqCst) < threads {
                std::thread::yield_now();
            }
            let gap = || std::thread::sleep(Duration::from_micros(50));
            let spun = floor.rounds(100, Wait::Spin, |_| gap());
            let slept = floor.rounds(100, Wait::Sleep, |_| gap());
            over.store(true, Ordering::SeqCst);
            [spun, slept].map(|samples| samples.expect("signals arrive").stop.len())
        });
        assert_eq!(counted, [100, 100]);
    }
}
