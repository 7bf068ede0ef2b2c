//! The signal floor: threads are stopped and resumed in as few instructions as possible, with no
//! work in between.
//!
//! It is the least cost of a stop by signal on this machine, and the library's own times are given
//! as ratios to it. A request is one store and one `tgkill` for each thread. The handler stores its
//! acknowledgement, waits on a futex until the resume's number has come, and returns. It publishes
//! no registers and looks up no code.
//!
//! Two details make it the least. First, the floor's side *spins* or *sleeps* while it waits for
//! the acknowledgements, and the better of the two at each number of threads counts ([`Wait`]).
//! Spinning is faster if a processor is free, and slower if it takes one from a thread that must
//! still run its handler. Second, a thread that was resumed but has not been scheduled since is
//! taken over for the next round where it is, as a collector would do it. On a machine with more
//! threads than processors, a floor that waited until such a thread had left the handler and come
//! back would not be the least.
//!
//! The floor uses SIGUSR1 and static variables, so a process has one [`Floor`]. Its threads may be
//! mutators of a world, too.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::report::Samples;

/// The way in which the stopping side waits for the last acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Read the counter repeatedly.
    Spin,
    /// Sleep on the counter. The last handler wakes the sleeper.
    Sleep,
}

impl Wait {
    /// The name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Wait::Spin => "spin",
            Wait::Sleep => "sleep",
        }
    }
}

/// The reason why the floor cannot be measured.
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
                "the signal floor is being measured already; a process has one handler for it",
            ),
            FloorError::System(e) => write!(f, "the signal floor's SIGUSR1 was refused: {e}"),
        }
    }
}

impl std::error::Error for FloorError {}

/// The number of the last request.
static REQUEST: AtomicU32 = AtomicU32::new(0);
/// The number of the last resume: the word on which parked threads wait.
static RESUMED: AtomicU32 = AtomicU32::new(0);
/// Acknowledgements of the current request: the word on which a sleeping stopper waits.
static ACKNOWLEDGED: AtomicU32 = AtomicU32::new(0);
/// The number of acknowledgements at which a handler wakes the stopper; 0 while the stopper spins.
static WAKE_AT: AtomicU32 = AtomicU32::new(0);
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Stalls that a thread can record between two drains. A round adds at most one.
const STALLS: usize = 64;

/// The record of one thread.
struct Record {
    tid: libc::pid_t,
    /// The number of the request for which the thread is stopped; 0 while it runs.
    stopped_for: AtomicU32,
    stalls: [AtomicU64; STALLS],
    /// The number of stalls that were ever written.
    written: AtomicU32,
}

thread_local! {
    // Constant and without a destructor, so that it is a plain word at a fixed offset from the
    // thread pointer, which a handler can read.
    static RECORD: Cell<*const Record> = const { Cell::new(std::ptr::null()) };
}

/// The handler and its threads. Dropping it restores the old handler.
pub struct Floor {
    threads: Mutex<Vec<Arc<Record>>>,
    previous: libc::sigaction,
}

/// A thread's membership, which ends when this is dropped.
pub struct Member<'f> {
    floor: &'f Floor,
    /// `!Send`: the record is found through this thread's own storage.
    not_send: PhantomData<*const ()>,
}

/// The times of one round.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// From the stop request until the last acknowledgement.
    pub stop: Duration,
    /// From the stop request until the resume is published.
    pub pause: Duration,
    /// Threads that were running and were sent the signal.
    pub signalled: u32,
}

impl Floor {
    /// Installs the handler.
    pub fn new() -> Result<Floor, FloorError> {
        // AcqRel: pairs with the Release stores of `false`, so that the floor before has restored
        // its handler.
        if TAKEN.swap(true, Ordering::AcqRel) {
            return Err(FloorError::Busy);
        }
        // SAFETY: zero is a valid sigaction, which the call reads, and the call fills the other
        // one. The handler is async-signal-safe.
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
                // Release: pairs with the swap above.
                TAKEN.store(false, Ordering::Release);
                Err(FloorError::System(error))
            }
        }
    }

    /// Adds the calling thread to those that rounds stop.
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
        // Relaxed, here and below: the lock excludes other stoppers, and the round before has all
        // its acknowledgements.
        let number = REQUEST.load(Ordering::Relaxed) + 1;
        ACKNOWLEDGED.store(0, Ordering::Relaxed);
        let start = now();
        // Release, here and below: pairs with the handler's Acquire load. The counter's reset comes
        // before the request.
        REQUEST.store(number, Ordering::Release);
        let mut waited_for = 0;
        for thread in threads.iter() {
            // AcqRel: pairs with the exchange of the thread that leaves the handler. The first of
            // the two decides whether the thread is taken over where it is, or runs and is sent the
            // signal.
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
        // Release: the system call orders it before the signals, and a handler reads it after its
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
            // Acquire: pairs with the handlers' additions, so that the threads' writes before them
            // are visible.
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

    /// Runs `rounds` rounds and records them with the threads' own stalls. `between` runs after
    /// each round and gives the threads time to run.
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
                // Acquire: pairs with the handler's Release store, which comes after the stall's.
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
        // SAFETY: restores the action that `new` replaced.
        unsafe { libc::sigaction(libc::SIGUSR1, &self.previous, std::ptr::null_mut()) };
        // Release: pairs with the swap in `new`, after the handler was restored.
        TAKEN.store(false, Ordering::Release);
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        // A round holds the lock until all its signals are answered. This thread answers, too,
        // while it waits for the lock.
        let record = RECORD.get();
        self.floor
            .lock()
            .retain(|thread| Arc::as_ptr(thread) != record);
        RECORD.set(std::ptr::null());
    }
}

/// The handler: all that a stopped thread does. It touches atomics, two thread-local words and the
/// futex, but not errno.
extern "C" fn on_signal(_: libc::c_int) {
    let start = now();
    let record = RECORD.get();
    if record.is_null() {
        return;
    }
    // SAFETY: `enroll` has set the pointer, and the pointer is cleared before the record is freed.
    let record = unsafe { &*record };
    // Acquire: pairs with the request's Release store. Release: the stopper's exchange reads it.
    let number = REQUEST.load(Ordering::Acquire);
    record.stopped_for.store(number, Ordering::Release);
    // AcqRel: pairs with the stopper's Acquire load of the counter.
    let acknowledged = ACKNOWLEDGED.fetch_add(1, Ordering::AcqRel) + 1;
    // Acquire: pairs with the stopper's Release store of `WAKE_AT`.
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
    // Relaxed: only this thread writes these words. Release: pairs with the Acquire load in
    // `rounds`, so that the stall is visible before its number.
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
        // Relaxed: all threads store the same number.
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

/// The process's own id, which is read once because `getpid` is a system call.
static PID: AtomicI32 = AtomicI32::new(0);

/// A system call without the libc wrapper. The handler must leave errno alone, and saving it would
/// cost more.
fn futex(word: &AtomicU32, operation: libc::c_int, value: u32) {
    // SAFETY: the kernel reads the word, which the reference keeps alive. No further argument is
    // used, because there is no timeout.
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

/// Sleeps while the word has that value. May return early.
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
