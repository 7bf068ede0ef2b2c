//! One attached thread: blocking regions, sections that may not be stopped, voluntary stops.

use crate::arch;
use crate::code::CODE;
use crate::context::{Origin, Registers, Snapshot};
use crate::faults;
use crate::park;
use crate::registry::{self, Record};
use crate::signal::{self, SignalMask};
use crate::state::Phase;
use crate::walk;
use crate::world::World;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU32, Ordering, compiler_fence};
use core::time::Duration;

/// Acknowledgements that the stop under way still waits for, and two flags of the stopper's sleep. Its futex word.
static OUTSTANDING: AtomicU32 = AtomicU32::new(0);
/// The stopper sleeps: who brings the count to zero wakes it.
const ASLEEP: u32 = 1 << 31;
/// A thread could not stop where it stood: the stopper is to send its signal again.
const RETRY: u32 = 1 << 30;
const COUNT: u32 = RETRY - 1;

/// The count of acknowledgements, as the stopper sees it.
pub(crate) mod outstanding {
    use super::*;

    pub(crate) fn begin() {
        // One more than asked, so that it cannot reach zero while threads are still being asked. Relaxed: published by the asking swap.
        OUTSTANDING.store(1, Ordering::Relaxed);
    }

    pub(crate) fn add() {
        OUTSTANDING.fetch_add(1, Ordering::Relaxed);
    }

    /// One thread is stopped. AcqRel: the last one's caller, who sees zero with Acquire, sees every thread's snapshot.
    pub(crate) fn done() {
        let old = OUTSTANDING.fetch_sub(1, Ordering::AcqRel);
        if old & COUNT == 1 && old & ASLEEP != 0 {
            park::wake(&OUTSTANDING, 1);
        }
    }

    pub(crate) fn retry() {
        let old = OUTSTANDING.fetch_or(RETRY, Ordering::AcqRel);
        if old & ASLEEP != 0 {
            park::wake(&OUTSTANDING, 1);
        }
    }

    pub(crate) fn none_left() -> bool {
        OUTSTANDING.load(Ordering::Acquire) & COUNT == 0
    }

    pub(crate) fn take_retry() -> bool {
        OUTSTANDING.load(Ordering::Relaxed) & RETRY != 0
            && OUTSTANDING.fetch_and(!RETRY, Ordering::Relaxed) & RETRY != 0
    }

    pub(crate) fn sleep(at_most: Duration) {
        let now = OUTSTANDING.fetch_or(ASLEEP, Ordering::AcqRel) | ASLEEP;
        if now & COUNT != 0 && now & RETRY == 0 {
            park::wait(&OUTSTANDING, now, Some(at_most));
        }
        OUTSTANDING.fetch_and(!ASLEEP, Ordering::Relaxed);
    }
}

/// Parks the thread until the stop that it acknowledged, and every later one that took it over, has been resumed. Async-signal-safe.
pub(crate) fn park_stopped(record: &Record) {
    while let Err(number) = record.state.leave_stopped(registry::resumed) {
        registry::wait_for_resume(number);
    }
}

/// Acknowledges stop `number` from where `snapshot` says, and parks. False if there was nothing to acknowledge.
///
/// # Safety
/// On the record's own thread, with every signal but the synchronous faults blocked, and `snapshot` true until this returns.
pub(crate) unsafe fn acknowledge_and_park(
    record: &Record,
    number: u64,
    snapshot: Snapshot,
) -> bool {
    // SAFETY: the thread has not acknowledged `number` yet, so no stopper reads the snapshot.
    unsafe { record.publish(snapshot) };
    if !record.state.acknowledge(number) {
        return false;
    }
    outstanding::done();
    park_stopped(record);
    true
}

/// Stops here and now for every live stop that asks for this thread.
///
/// A thread that `may_go_on` does so where it stands in a handler that has interrupted an unsafe range; one that is about to wait cannot.
#[cold]
fn stop_here(record: &'static Record, may_go_on: bool) {
    struct Call {
        record: &'static Record,
        may_go_on: bool,
    }
    extern "C" fn at_call(data: *mut (), sp: usize, fp: usize, pc: usize) {
        // SAFETY: `stop_here` passes its own Call, alive until this returns.
        let &Call { record, may_go_on } = unsafe { &*data.cast::<Call>() };
        let mask = SignalMask::all_but_faults();
        loop {
            let word = record.state.load();
            if !word.asked() || registry::resumed() >= word.number() {
                return;
            }
            let from = signal::now();
            let snapshot = at_call_snapshot(record, sp, fp, pc);
            // A stack that nobody has told us of would not be scanned. And this may be a host's handler, which has interrupted what must not be stopped.
            let own_stack = record.stack().contains(&sp) || faults::planted("no-stack-check");
            let may_stop = own_stack
                && (mask.was_empty()
                    // SAFETY: own thread and stack; the stop that asks is under way, since the word still says so.
                    || unsafe { walk::settle(&CODE, word.number(), &snapshot, record.stack()) }
                    || !may_go_on);
            if !may_stop {
                // The stopper's signals find the thread once that is over.
                record.state.undefer();
                outstanding::retry();
                return;
            }
            // SAFETY: own thread, signals blocked by `mask`; the snapshot names this call's frame, which stays until we return.
            unsafe { acknowledge_and_park(record, word.number(), snapshot) };
            record.note_stall(word.number(), from);
        }
    }
    let call = Call { record, may_go_on };
    arch::call_spilled(at_call, core::ptr::from_ref(&call).cast_mut().cast());
}

fn at_call_snapshot(record: &Record, sp: usize, fp: usize, pc: usize) -> Snapshot {
    Snapshot {
        registers: Registers::at_call(sp, fp, pc),
        vectors: 0..0,
        origin: Origin::Call,
        interrupted: record.interrupted.load(Ordering::Relaxed),
    }
}

/// Stops if a stop asks for it. The end of every `no_preempt`, and `Mutator::poll`.
#[inline]
pub(crate) fn poll(record: &'static Record) {
    if record.state.load().asked() {
        stop_here(record, true);
    }
}

/// Waits until no signal of ours is on its way to this thread, so that none can interrupt a system call of the embedder's (H5).
///
/// It is there at the latest when the thread next returns from the kernel; the bound is for a thread whose mask has come to block SIGURG.
fn drain_signals(record: &Record) {
    for _ in 0..1000 {
        if record.in_flight.load(Ordering::Relaxed) == 0 {
            return;
        }
        // SAFETY: no arguments, no memory.
        unsafe { libc::sched_yield() };
    }
}

/// Runs `f` as BLOCKED: registers spilled, stack pointer published, the stopper does not wait and sends nothing.
///
/// # Panics
/// Inside `no_preempt`, and on a stack that is not the thread's own.
pub(crate) fn blocked<R>(record: &'static Record, f: impl FnOnce() -> R) -> R {
    assert!(
        record.depth.load(Ordering::Relaxed) == 0,
        "blocking inside no_preempt: a stop could wait for this thread for ever"
    );
    if record.state.load().phase() == Phase::Blocked {
        return f();
    }
    let here = 0u8;
    assert!(
        record.stack().contains(&(&raw const here as usize)),
        "blocking on a stack that is not the thread's own: it would not be scanned"
    );
    struct Call<F, R> {
        record: &'static Record,
        f: Option<F>,
        result: Option<std::thread::Result<R>>,
    }
    extern "C" fn enter<F: FnOnce() -> R, R>(data: *mut (), sp: usize, fp: usize, pc: usize) {
        // SAFETY: `blocked` passes its own Call of these very types, alive until it returns.
        let call = unsafe { &mut *data.cast::<Call<F, R>>() };
        let record = call.record;
        loop {
            drain_signals(record);
            // As inside no_preempt: a handler that parked between publishing and entering would leave its own snapshot, or half of it.
            record.depth.store(
                u32::from(!faults::planted("no-blocking-section")),
                Ordering::Relaxed,
            );
            compiler_fence(Ordering::SeqCst);
            // SAFETY: own thread, RUNNING and not acknowledged: no stopper reads the snapshot.
            unsafe { record.publish(at_call_snapshot(record, sp, fp, pc)) };
            if faults::planted("slow-blocking") {
                for _ in 0..2_000 {
                    park::spin_hint();
                }
            }
            let entered = record.state.enter_blocked(registry::resumed);
            compiler_fence(Ordering::SeqCst);
            record.depth.store(0, Ordering::Relaxed);
            if entered.is_ok() {
                break;
            }
            compiler_fence(Ordering::SeqCst);
            stop_here(record, false);
        }
        if let Some(f) = call.f.take() {
            // A panic must not unwind through the assembly before the state is RUNNING again; it goes on in `blocked`.
            call.result = Some(std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)));
        }
        if record.state.leave_blocked(registry::resumed).is_err() {
            let _mask = SignalMask::all_but_faults();
            while let Err(number) = record.state.leave_blocked(registry::resumed) {
                registry::wait_for_resume(number);
            }
        }
    }
    fn entry<F: FnOnce() -> R, R>(_: &Call<F, R>) -> extern "C" fn(*mut (), usize, usize, usize) {
        enter::<F, R>
    }
    let mut call = Call {
        record,
        f: Some(f),
        result: None,
    };
    arch::call_spilled(entry(&call), (&raw mut call).cast());
    match call.result {
        Some(Ok(result)) => result,
        Some(Err(panic)) => std::panic::resume_unwind(panic),
        None => unreachable!("enter runs f"),
    }
}

/// Which mutator: the kernel's thread id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MutatorId(pub u32);

impl core::fmt::Display for MutatorId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "thread {}", self.0)
    }
}

/// [`Mutator::try_blocking`] inside [`Mutator::no_preempt`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InNoPreempt;

impl core::fmt::Display for InNoPreempt {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("blocking inside no_preempt: leave the section first, or a stop could wait for this thread for ever")
    }
}

impl std::error::Error for InNoPreempt {}

/// A function that a stop runs on the stopped thread itself, after the resume.
///
/// It runs on the mutator's own stack as if the interrupted instruction had called it, and only after stops that found the thread in
/// managed code. It may allocate, block, and be stopped in turn.
#[derive(Clone, Copy)]
pub struct StopHook {
    /// Called with `data`.
    pub f: unsafe extern "C" fn(*mut ()),
    /// Handed to `f`.
    pub data: *mut (),
}

/// The running thread's attachment to a [`World`]. Detaches when dropped; stays on its thread.
///
/// ```
/// use gc_preempt::{Config, World};
/// let world = World::new(Config::default())?;
/// let mutator = world.attach(core::ptr::null_mut())?;
/// let n = mutator.blocking(|| 6 * 7); // a stop does not wait for this closure
/// assert_eq!(n, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Mutator {
    pub(crate) record: &'static Record,
    pub(crate) world: World,
    _on_its_thread: PhantomData<*mut ()>,
}

impl Mutator {
    pub(crate) fn new(record: &'static Record, world: World) -> Self {
        Self {
            record,
            world,
            _on_its_thread: PhantomData,
        }
    }

    /// The thread.
    pub fn id(&self) -> MutatorId {
        MutatorId(self.record.tid.load(Ordering::Relaxed) as u32)
    }

    /// The world that it is attached to.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Runs `f`, which promises not to touch the heap. The stopper neither waits for it nor sends it a signal, so no system call in it
    /// ends in EINTR because of a stop. When `f` ends during a stop, the thread waits for the resume.
    ///
    /// # Panics
    /// Inside [`no_preempt`](Self::no_preempt): see [`try_blocking`](Self::try_blocking). And on a stack that is not the thread's own, a
    /// coroutine's say: what it holds would not be scanned.
    pub fn blocking<R>(&self, f: impl FnOnce() -> R) -> R {
        blocked(self.record, f)
    }

    /// [`blocking`](Self::blocking), with an error where that panics.
    ///
    /// # Errors
    /// [`InNoPreempt`], and `f` has not run.
    pub fn try_blocking<R>(&self, f: impl FnOnce() -> R) -> Result<R, InNoPreempt> {
        if self.in_no_preempt() {
            Err(InNoPreempt)
        } else {
            Ok(blocked(self.record, f))
        }
    }

    /// Runs `f` without being stopped in it. Keep it short: a stop waits. Its end is a poll.
    pub fn no_preempt<R>(&self, f: impl FnOnce() -> R) -> R {
        let _section = self.no_preempt_guard();
        f()
    }

    /// [`no_preempt`](Self::no_preempt) as a guard.
    #[inline]
    pub fn no_preempt_guard(&self) -> NoPreempt<'_> {
        NoPreempt::on(self.record)
    }

    /// Could this thread wait in [`blocking`](Self::blocking) now? Not inside [`no_preempt`](Self::no_preempt), nor on a stack that is not its own.
    pub fn may_block(&self) -> bool {
        let here = 0u8;
        !self.in_no_preempt() && self.record.stack().contains(&(&raw const here as usize))
    }

    /// Is this thread in a [`no_preempt`](Self::no_preempt) section?
    pub fn in_no_preempt(&self) -> bool {
        self.record.depth.load(Ordering::Relaxed) != 0
    }

    /// Is this thread inside [`blocking`](Self::blocking)? There it must not touch the heap.
    #[inline]
    pub fn is_blocking(&self) -> bool {
        self.record.state.load().phase() == Phase::Blocked
    }

    /// Stops here if a stop asks for it. Never needed with signals on; without them (`URGE_ASYNC=0`) this is where threads stop.
    #[inline]
    pub fn poll(&self) {
        if !self.in_no_preempt() {
            poll(self.record);
        }
    }

    /// Sets what a stop runs on this thread, or nothing. See [`StopHook`]. Detaching unsets it.
    ///
    /// # Safety
    /// `hook.f` may be called with `hook.data` on this thread at any instruction of managed code, until another hook is set or the thread
    /// is detached.
    pub unsafe fn set_stop_hook(&self, hook: Option<StopHook>) {
        let _section = self.no_preempt_guard();
        let (f, data) = hook.map_or((core::ptr::null_mut(), core::ptr::null_mut()), |h| {
            (h.f as *mut (), h.data)
        });
        // Relaxed: read by this thread alone, in its handler and trampoline, which the section keeps out.
        self.record.hook_data.store(data, Ordering::Relaxed);
        self.record.hook.store(f, Ordering::Relaxed);
        self.record
            .hook_world
            .store(self.world.inner.id, Ordering::Relaxed);
    }
}

impl Drop for Mutator {
    fn drop(&mut self) {
        self.world.detach(self.record);
    }
}

/// A section in which the thread is not stopped. See [`Mutator::no_preempt_guard`].
pub struct NoPreempt<'m> {
    record: &'static Record,
    _mutator: PhantomData<(&'m Mutator, *mut ())>,
}

impl NoPreempt<'_> {
    /// On the record's own thread.
    #[inline]
    pub(crate) fn on(record: &'static Record) -> Self {
        let depth = record.depth.load(Ordering::Relaxed);
        // Relaxed with a compiler fence: only this thread's own signal handler reads it, and it sees this thread's stores in program order.
        record.depth.store(depth + 1, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        NoPreempt {
            record,
            _mutator: PhantomData,
        }
    }
}

impl Drop for NoPreempt<'_> {
    #[inline]
    fn drop(&mut self) {
        // First the depth, then the look: a handler between the two stops the thread itself, one before them has left its mark.
        compiler_fence(Ordering::SeqCst);
        let depth = self.record.depth.load(Ordering::Relaxed) - 1;
        self.record.depth.store(depth, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        if depth == 0 {
            poll(self.record);
        }
    }
}
