//! Switching between stacks: resuming, suspending, arriving.
//!
//! # Invariant
//! A stop finds `Record::current` naming the stack that the thread's SP lies on, and each other
//! stack with frames is walked from its `left`: it is suspended, or in the thread's chain. Two
//! means keep a stop from seeing a thread half switched:
//!
//! * From the claim of a stack until `current` names it, and from the return to the resumer until
//!   the stack counts as suspended or finished, the thread is inside `no_preempt`: the stack is
//!   neither in a chain nor suspended then.
//! * While SP and `current` disagree, `may_stop` refuses (`Obstacle::ForeignStack`), and the
//!   stopper signals again. A switch of the host's runs so: it may call malloc, wait, or unwind.
//!
//! A switch of ours stays inside `no_preempt` until the other side has arrived, so no stop signals
//! a second time for it.
//!
//! # Threads
//! A suspended stack may be resumed by another thread. So the code on it never keeps its thread's
//! record over a suspension. A switch of ours brings the record of the resumer along, and after a
//! switch of the host's the code looks it up ([`registry::current`]). A resumer stays on its
//! thread: the stack that it has resumed returns to it.
//!
//! # What is reported
//! The registers that a callee preserves are on the stack that is left, above the SP that is
//! published. [`arch::switch`](mod@crate::arch::switch) pushes them and publishes that SP. A switch
//! of the host's runs inside [`arch::call_spilled`]. The frames below, of the switch itself, hold
//! no references.

use core::sync::atomic::Ordering;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::arch::{self, switch};
use crate::blocking::{lock, may_wait};
use crate::errors::StackError;
use crate::members::Inner;
use crate::registry::{self, Record};
use crate::stack_record::{Left, Payload, StackRecord, StackState};
use crate::state::Phase;
use crate::stop_point::{NoPreempt, Obstacle};
use crate::stopper::holds_a_stop;
use crate::text;

/// How [`Stack::resume`](crate::Stack::resume) has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resumed {
    /// The function has suspended itself, and may be resumed.
    Suspended,
    /// The function has ended.
    Finished,
}

/// Who switches a stack.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// `arch::switch`.
    Us,
    /// Code of the host's.
    Host,
}

fn address(record: &'static Record) -> usize {
    core::ptr::from_ref(record) as usize
}

/// May the running thread leave the stack that it runs on?
#[inline]
fn may_leave(record: &Record) -> Result<(), StackError> {
    if holds_a_stop() {
        return Err(StackError::HoldsAStop);
    }
    if record.state.load().phase() == Phase::Blocked {
        return Err(StackError::Blocking);
    }
    match may_wait(record) {
        Ok(()) => Ok(()),
        Err(Obstacle::NoPreempt) => Err(StackError::InNoPreempt),
        Err(_) => Err(StackError::ElsewhereNow),
    }
}

/// Is the running thread a mutator of that world?
#[inline]
fn is_attached(record: &'static Record, inner: &Inner) -> Result<bool, StackError> {
    // Relaxed, here and below: the thread's own.
    if record.resumes_in.load(Ordering::Relaxed) == inner.id {
        return Ok(true);
    }
    look_up_attached(record, inner)
}

#[cold]
fn look_up_attached(record: &'static Record, inner: &Inner) -> Result<bool, StackError> {
    let mut lock = lock()?;
    let mut all = inner.members(&mut lock).all();
    let is = all.any(|m| core::ptr::eq(m.record, record));
    if is {
        record.resumes_in.store(inner.id, Ordering::Relaxed);
    }
    Ok(is)
}

// ---- the resumer's side -------------------------------------------------------------------------

/// Claims a stack for the running thread, which is inside `no_preempt` afterwards.
fn claim(
    record: &'static Record,
    stack: &'static StackRecord,
    inner: &Inner,
    by: By,
) -> Result<(), StackError> {
    loop {
        let section = NoPreempt::on(record);
        let from = stack.state();
        let (runner, me) = (stack.runner.load(Ordering::Relaxed), address(record));
        let to = match from {
            StackState::Suspended => StackState::Claimed,
            StackState::Idle | StackState::Finished if by == By::Host => StackState::Running,
            StackState::Idle => return Err(StackError::Idle),
            StackState::Finished => return Err(StackError::Finished),
            StackState::Lost => return Err(StackError::Lost),
            StackState::Running if runner == me => return Err(StackError::Ancestor),
            StackState::Claimed | StackState::Running => return Err(StackError::Running),
        };
        if !stack.claim(from, to, me) {
            continue;
        }
        // Asked of a stack that is claimed: before, another thread may start it in another way.
        let is_ours = stack.started.load(Ordering::Relaxed) == (by == By::Us);
        if from == StackState::Suspended && !is_ours {
            stack.give_back(StackState::Suspended);
            return Err(StackError::OtherSwitch);
        }
        let epoch = inner.epoch();
        if from != StackState::Suspended {
            stack.reported(epoch);
            stack.outermost.store(0, Ordering::Relaxed);
            stack.started.store(false, Ordering::Relaxed);
            stack.leaves.store(false, Ordering::Relaxed);
        } else if !stack.may_run(epoch) && seam::reports_first() {
            stack.give_back(StackState::Suspended);
            drop(section);
            inner.report_before_resume(&mut lock()?, stack);
            continue;
        }
        core::mem::forget(section);
        return Ok(());
    }
}

/// Claims a stack for the running thread, which is inside `no_preempt` afterwards. Gives its
/// record.
#[inline]
fn begin(
    stack: &'static StackRecord,
    inner: &Inner,
    by: By,
) -> Result<&'static Record, StackError> {
    let record = registry::current().ok_or(StackError::NotAttached)?;
    may_leave(record)?;
    if !is_attached(record, inner)? {
        return Err(StackError::NotAttached);
    }
    claim(record, stack, inner, by)?;
    Ok(record)
}

/// Notes that the thread runs on a stack that it has claimed. Gives the stack that it leaves; null:
/// its own.
#[inline]
fn leave_for(record: &'static Record, stack: &'static StackRecord) -> *mut StackRecord {
    // Relaxed: no stop reads these words before the section ends.
    let outer = record.current.load(Ordering::Relaxed);
    stack.outer.store(outer, Ordering::Relaxed);
    seam::claimed(record);
    stack.set(StackState::Running);
    let stack = core::ptr::from_ref(stack).cast_mut();
    record.current.store(stack, Ordering::Relaxed);
    outer
}

/// The thread is back from a stack that it has resumed, and inside `no_preempt`.
#[inline]
fn come_back(record: &'static Record, stack: &'static StackRecord) {
    // Relaxed, here and below: the thread's own.
    let outer = stack.outer.load(Ordering::Relaxed);
    stack.outer.store(core::ptr::null_mut(), Ordering::Relaxed);
    record.current.store(outer, Ordering::Relaxed);
    let state = match stack.leaves.load(Ordering::Relaxed) {
        true => StackState::Suspended,
        false => StackState::Finished,
    };
    // From here on another thread may resume the stack.
    stack.give_back(state);
    arrived(record);
}

/// Where the running thread leaves, or has left, the stack `current`; null: its own.
///
/// # Safety
/// A stack that a thread runs on, or has resumed another from, stays registered.
#[inline]
unsafe fn left_of(record: &'static Record, current: *mut StackRecord) -> &'static Left {
    // SAFETY: the caller's contract.
    unsafe { current.as_ref() }.map_or(&record.left, |stack| &stack.left)
}

/// Switches to a stack by `switch` of the host's, and back.
fn go<R>(
    stack: &'static StackRecord,
    inner: &Inner,
    switch: impl FnOnce() -> R,
) -> Result<R, StackError> {
    let record = begin(stack, inner, By::Host)?;

    struct Call<F, R> {
        record: &'static Record,
        stack: &'static StackRecord,
        f: Option<F>,
        result: Option<R>,
    }
    extern "C-unwind" fn leave<F: FnOnce() -> R, R>(
        data: *mut (),
        sp: usize,
        fp: usize,
        pc: usize,
    ) {
        // SAFETY: `go` passes its own Call of these very types, alive until it returns.
        let call = unsafe { &mut *data.cast::<Call<F, R>>() };
        let (record, stack) = (call.record, call.stack);
        let left = record.current().map_or(&record.left, |s| &s.left);
        left.set(sp, fp, pc);
        leave_for(record, stack);
        let _back = Back { record, stack };
        arrived(record);
        if let Some(f) = call.f.take() {
            call.result = Some(f());
        }
    }
    fn entry<F: FnOnce() -> R, R>(
        _: &Call<F, R>,
    ) -> extern "C-unwind" fn(*mut (), usize, usize, usize) {
        leave::<F, R>
    }
    let mut call = Call {
        record,
        stack,
        f: Some(switch),
        result: None,
    };
    arch::call_spilled(entry(&call), (&raw mut call).cast());
    match call.result {
        Some(result) => Ok(result),
        None => unreachable!("leave runs the switch"),
    }
}

/// The resumer's arrival, when the stack that it has resumed was left by a switch of the host's: by
/// a return or by unwinding.
struct Back {
    record: &'static Record,
    stack: &'static StackRecord,
}

impl Drop for Back {
    fn drop(&mut self) {
        leaves(self.record);
        come_back(self.record, self.stack);
    }
}

/// Begins a section that [`arrived`] ends, maybe on another stack.
#[inline]
fn leaves(record: &'static Record) {
    core::mem::forget(NoPreempt::on(record));
}

/// Ends the section in which the running thread has switched.
#[inline]
fn arrived(record: &'static Record) {
    // SAFETY: the section was begun on this thread, and forgotten.
    drop(unsafe { NoPreempt::resumed(record) });
}

/// Does what [`Stack::resume_with`](crate::Stack::resume_with) says.
///
/// # Safety
/// As there.
pub(crate) unsafe fn resume_with<R>(
    stack: &'static StackRecord,
    inner: &Inner,
    switch: impl FnOnce() -> R,
) -> Result<R, StackError> {
    go(stack, inner, switch)
}

/// Does what [`Stack::resume`](crate::Stack::resume) says.
#[inline]
pub(crate) fn resume(stack: &'static StackRecord, inner: &Inner) -> Result<Resumed, StackError> {
    let record = begin(stack, inner, By::Us)?;
    let outer = leave_for(record, stack);
    // SAFETY: this thread runs on `outer`, and has claimed the other stack, which was prepared by
    // `start` or left by `suspend`: `left` has its SP. What runs there does not unwind into this
    // frame (see `first`).
    unsafe {
        let left = left_of(record, outer);
        switch::switch(
            left.words(),
            stack.left.sp(),
            core::ptr::from_ref(record).cast(),
        );
    }
    let panic = match stack.leaves.load(Ordering::Relaxed) {
        true => None,
        // SAFETY: the cell is this thread's until `come_back` gives the stack back.
        false => Some(unsafe { (*stack.panic.get()).take() }),
    };
    come_back(record, stack);
    match panic {
        None => Ok(Resumed::Suspended),
        Some(None) => Ok(Resumed::Finished),
        Some(Some(payload)) => resume_unwind(payload),
    }
}

/// Does what [`Stack::start`](crate::Stack::start) says.
///
/// # Safety
/// As there.
pub(crate) unsafe fn start<F: FnOnce() + Send + 'static>(
    stack: &'static StackRecord,
    inner: &Inner,
    f: F,
) -> Result<(), StackError> {
    let top = (stack.memory.end - size_of::<F>().min(stack.memory.len())) & !(align_of::<F>() - 1);
    let top = top & !15;
    if top.saturating_sub(stack.memory.start) < stack.memory.len() / 2 {
        return Err(StackError::Memory);
    }
    let record = registry::current();
    // No stop finds the function on neither of the two stacks.
    let _section = record.map(NoPreempt::on);
    loop {
        let from = stack.state();
        match from {
            StackState::Idle | StackState::Finished => {}
            StackState::Suspended => return Err(StackError::Suspended),
            StackState::Lost => return Err(StackError::Lost),
            StackState::Claimed | StackState::Running => return Err(StackError::Running),
        }
        if stack.claim(from, StackState::Running, record.map_or(0, address)) {
            break;
        }
    }
    // SAFETY: the stack has no frames, and this thread has claimed it. The function fits above
    // `top`, and half of the stack is left below.
    let prepared = unsafe {
        (top as *mut F).write(f);
        switch::prepare(top, stack.memory.end, first::<F>, top as *mut ())
    };
    let [sp, fp, pc] = prepared;
    stack.left.set(sp, fp, pc);
    stack.outermost.store(0, Ordering::Relaxed);
    stack.started.store(true, Ordering::Relaxed);
    stack.leaves.store(false, Ordering::Relaxed);
    stack.reported(inner.epoch());
    stack.give_back(StackState::Suspended);
    Ok(())
}

// ---- on the stack -------------------------------------------------------------------------------

/// The first function on a stack that `start` has prepared.
extern "C-unwind" fn first<F: FnOnce()>(data: *mut (), record: *const ()) -> ! {
    // SAFETY: `resume` has passed it.
    arrived(unsafe { record_of(record) });
    // SAFETY: `start` has written it there, and this is its only reader.
    let f = unsafe { data.cast::<F>().read() };
    finish(catch_unwind(AssertUnwindSafe(f)).err())
}

/// Switches back to the resumer for good.
fn finish(panic: Option<Payload>) -> ! {
    if let Some(record) = registry::current()
        && let Some(stack) = record.current()
    {
        leaves(record);
        // SAFETY: the running stack's cell is this thread's, and the frame is never entered again.
        // The resumer was left by a switch, on this thread.
        unsafe {
            *stack.panic.get() = panic;
            let resumer = left_of(record, stack.outer.load(Ordering::Relaxed));
            switch::switch(stack.left.words(), resumer.sp(), core::ptr::null());
        }
    }
    text::die("a stack whose function has ended was resumed")
}

/// The record that a resumer has passed along.
///
/// # Safety
/// [`resume`] has passed it.
#[inline]
unsafe fn record_of(passed: *const ()) -> &'static Record {
    // SAFETY: the caller's contract; records are never unmapped.
    unsafe { &*passed.cast::<Record>() }
}

/// The running thread's record, and the registered stack that it runs on.
#[inline]
fn here() -> Result<(&'static Record, &'static StackRecord), StackError> {
    let record = registry::current().ok_or(StackError::NotOnAStack)?;
    Ok((record, record.current().ok_or(StackError::NotOnAStack)?))
}

/// The [`data`](crate::Stack::data) of the registered stack that the calling code runs on. `None`:
/// it runs on none.
#[inline]
pub fn data_here() -> Option<*mut ()> {
    here()
        .ok()
        .map(|(_, stack)| stack.data.load(Ordering::Relaxed))
}

/// Suspends the function that [`Stack::start`](crate::Stack::start) has started: its resumer goes
/// on. Returns when the stack is resumed, maybe on another thread.
///
/// A stop hook ([`StopHook`](crate::StopHook)) may call it: then the interrupted code is suspended
/// in the middle of an instruction sequence.
///
/// # Errors
/// The calling code does not run on such a stack, is inside `no_preempt` or `blocking`, or holds a
/// stop.
#[inline]
pub fn suspend() -> Result<(), StackError> {
    let (record, stack) = here()?;
    may_leave(record)?;
    if !stack.started.load(Ordering::Relaxed) {
        return Err(StackError::OtherSwitch);
    }
    leaves(record);
    // Relaxed, here and below: read by the resumer, which is this thread.
    stack.leaves.store(true, Ordering::Relaxed);
    // SAFETY: this thread runs on the stack. Its resumer was left by a switch, on this thread.
    let now = unsafe {
        let resumer = left_of(record, stack.outer.load(Ordering::Relaxed));
        let passed = switch::switch(stack.left.words(), resumer.sp(), core::ptr::null());
        record_of(passed)
    };
    // The function goes on: its next end is no suspension.
    stack.leaves.store(false, Ordering::Relaxed);
    arrived(seam::now(record, now));
    Ok(())
}

/// Runs `switch`, which switches by means of the host's to the stack that has resumed this one, and
/// returns when this stack is resumed. That may be on another thread.
///
/// # Errors
/// The calling code does not run on a stack that [`Stack::resume_with`](crate::Stack::resume_with)
/// has resumed, is inside `no_preempt` or `blocking`, or holds a stop: `switch` has not run.
///
/// # Safety
/// As for [`Stack::resume_with`](crate::Stack::resume_with), and `switch` switches to the resumer.
pub unsafe fn suspend_with<R>(switch: impl FnOnce() -> R) -> Result<R, StackError> {
    let (record, stack) = here()?;
    may_leave(record)?;
    if stack.started.load(Ordering::Relaxed) {
        return Err(StackError::OtherSwitch);
    }
    Ok(leave_by(stack, switch))
}

/// Publishes where the running stack is left, and runs `switch`.
fn leave_by<R>(stack: &'static StackRecord, switch: impl FnOnce() -> R) -> R {
    struct Call<F, R> {
        stack: &'static StackRecord,
        f: Option<F>,
        result: Option<R>,
    }
    extern "C-unwind" fn leave<F: FnOnce() -> R, R>(
        data: *mut (),
        sp: usize,
        fp: usize,
        pc: usize,
    ) {
        // SAFETY: `leave_by` passes its own Call of these very types, alive until it returns.
        let call = unsafe { &mut *data.cast::<Call<F, R>>() };
        let stack = call.stack;
        stack.left.set(sp, fp, pc);
        // Relaxed: read by the resumer, which is this thread.
        stack.leaves.store(true, Ordering::Relaxed);
        let _arrival = Arrival(stack);
        if let Some(f) = call.f.take() {
            call.result = Some(f());
        }
    }
    fn entry<F: FnOnce() -> R, R>(
        _: &Call<F, R>,
    ) -> extern "C-unwind" fn(*mut (), usize, usize, usize) {
        leave::<F, R>
    }
    let mut call = Call {
        stack,
        f: Some(switch),
        result: None,
    };
    arch::call_spilled(entry(&call), (&raw mut call).cast());
    match call.result {
        Some(result) => result,
        None => unreachable!("leave runs the switch"),
    }
}

/// The arrival on a stack that a switch of the host's has suspended, by a return or by unwinding.
struct Arrival(&'static StackRecord);

impl Drop for Arrival {
    #[inline(never)]
    fn drop(&mut self) {
        let on_it = |record: &Record| record.current().is_some_and(|s| core::ptr::eq(s, self.0));
        if !registry::current().is_some_and(on_it) {
            text::die("a suspended stack was switched to without `Stack::resume_with`");
        }
        // The function goes on: its next end is no suspension.
        self.0.leaves.store(false, Ordering::Relaxed);
    }
}

/// What tests may break here.
mod seam {
    use crate::faults::{self, Delay, Fault};
    use crate::registry::Record;

    pub(super) fn reports_first() -> bool {
        !Fault::ResumesUnreported.planted()
    }

    /// A stack is neither suspended nor in a thread's chain.
    #[inline]
    pub(super) fn claimed(record: &'static Record) {
        if Fault::HalfSwitched.planted() {
            super::arrived(record);
        }
        if Delay::HeldClaim.planted() {
            faults::hold();
        }
        if Fault::HalfSwitched.planted() {
            super::leaves(record);
        }
    }

    /// The record of the thread that runs now, which may be another than before the switch.
    #[inline]
    pub(super) fn now(before: &'static Record, now: &'static Record) -> &'static Record {
        if Fault::KeepsRecord.planted() {
            before
        } else {
            now
        }
    }
}
