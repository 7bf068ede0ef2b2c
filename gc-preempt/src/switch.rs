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
//! A suspended stack may be resumed by another thread. So the code on it looks its thread's record
//! up after each suspension ([`registry::current`]), and never keeps it over one. A resumer stays
//! on its thread: the stack that it has resumed returns to it.
//!
//! # What is reported
//! A side leaves its stack inside [`arch::call_spilled`]: the registers that a callee preserves are
//! on the stack, above the SP that it publishes. The frames below, of the switch itself, hold no
//! references.

use core::sync::atomic::Ordering;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::arch::{self, switch};
use crate::blocking::{lock, may_wait};
use crate::errors::StackError;
use crate::members::Inner;
use crate::registry::{self, Record};
use crate::stack_record::{Payload, StackRecord, StackState};
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
fn is_attached(record: &'static Record, inner: &Inner) -> Result<bool, StackError> {
    // Relaxed, here and below: the thread's own.
    if record.resumes_in.load(Ordering::Relaxed) == inner.id {
        return Ok(true);
    }
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

/// Switches to a stack by `switch`, and back.
fn go<R>(
    stack: &'static StackRecord,
    inner: &Inner,
    by: By,
    switch: impl FnOnce() -> R,
) -> Result<R, StackError> {
    let record = registry::current().ok_or(StackError::NotAttached)?;
    may_leave(record)?;
    if !is_attached(record, inner)? {
        return Err(StackError::NotAttached);
    }
    claim(record, stack, inner, by)?;

    struct Call<F, R> {
        record: &'static Record,
        stack: &'static StackRecord,
        by: By,
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
        let (record, stack, by) = (call.record, call.stack, call.by);
        // Relaxed, here and below: no stop reads these words before the section ends.
        let outer = record.current.load(Ordering::Relaxed);
        let left = record.current().map_or(&record.left, |s| &s.left);
        left.set(seam::left_at(sp), fp, pc);
        stack.outer.store(outer, Ordering::Relaxed);
        seam::claimed(record);
        stack.set(StackState::Running);
        record
            .current
            .store(core::ptr::from_ref(stack).cast_mut(), Ordering::Relaxed);
        let _back = Back { record, stack, by };
        if by == By::Host {
            arrived(record);
        }
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
        by,
        f: Some(switch),
        result: None,
    };
    arch::call_spilled(entry(&call), (&raw mut call).cast());
    match call.result {
        Some(result) => Ok(result),
        None => unreachable!("leave runs the switch"),
    }
}

/// The resumer's arrival, when the stack that it has resumed was left, by a return or by unwinding.
struct Back {
    record: &'static Record,
    stack: &'static StackRecord,
    by: By,
}

impl Drop for Back {
    fn drop(&mut self) {
        let Self { record, stack, by } = *self;
        if by == By::Host {
            leaves(record);
        }
        let outer = stack.outer.swap(core::ptr::null_mut(), Ordering::Relaxed);
        record.current.store(outer, Ordering::Relaxed);
        let state = match stack.leaves.load(Ordering::Relaxed) {
            true => StackState::Suspended,
            false => StackState::Finished,
        };
        // From here on another thread may resume the stack.
        stack.give_back(state);
        arrived(record);
    }
}

/// Begins a section that [`arrived`] ends, maybe on another stack.
fn leaves(record: &'static Record) {
    core::mem::forget(NoPreempt::on(record));
}

/// Ends the section in which the running thread has switched.
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
    go(stack, inner, By::Host, switch)
}

/// Does what [`Stack::resume`](crate::Stack::resume) says.
pub(crate) fn resume(stack: &'static StackRecord, inner: &Inner) -> Result<Resumed, StackError> {
    let (resumed, panic) = go(stack, inner, By::Us, || {
        // SAFETY: this thread has claimed the stack, which was prepared by `start` or left by
        // `suspend`: `sp` is its SP. The cells are this thread's until `Back` gives the stack back.
        unsafe {
            switch::switch(stack.back.get(), *stack.sp.get());
            match stack.leaves.load(Ordering::Relaxed) {
                true => (Resumed::Suspended, None),
                false => (Resumed::Finished, (*stack.panic.get()).take()),
            }
        }
    })?;
    match panic {
        Some(payload) => resume_unwind(payload),
        None => Ok(resumed),
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
    // SAFETY: this thread has claimed the stack.
    unsafe { *stack.sp.get() = prepared.to };
    let [sp, fp, pc] = prepared.frame;
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
extern "C-unwind" fn first<F: FnOnce()>(data: *mut ()) -> ! {
    arrived_on(registry::current());
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
        let mut gone = 0;
        // SAFETY: the running stack's cells are this thread's. `back` is the SP that its resumer
        // has stored, on this thread.
        unsafe {
            *stack.panic.get() = panic;
            switch::switch(&raw mut gone, *stack.back.get());
        }
    }
    text::die("a stack whose function has ended was resumed")
}

/// The running thread's record, and the registered stack that it runs on.
fn here() -> Result<(&'static Record, &'static StackRecord), StackError> {
    let record = registry::current().ok_or(StackError::NotOnAStack)?;
    Ok((record, record.current().ok_or(StackError::NotOnAStack)?))
}

/// The [`data`](crate::Stack::data) of the registered stack that the calling code runs on. `None`:
/// it runs on none.
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
pub fn suspend() -> Result<(), StackError> {
    let (record, stack) = here()?;
    may_leave(record)?;
    if !stack.started.load(Ordering::Relaxed) {
        return Err(StackError::OtherSwitch);
    }
    leaves(record);
    leave_by(stack, By::Us, || {
        // SAFETY: the running stack's cells are this thread's. `back` is the SP that its resumer
        // has stored, on this thread.
        unsafe { switch::switch(stack.sp.get(), *stack.back.get()) };
    });
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
    Ok(leave_by(stack, By::Host, switch))
}

/// Publishes where the running stack is left, and runs `switch`.
fn leave_by<R>(stack: &'static StackRecord, by: By, switch: impl FnOnce() -> R) -> R {
    struct Call<F, R> {
        stack: &'static StackRecord,
        by: By,
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
        let (stack, by) = (call.stack, call.by);
        stack.left.set(seam::left_at(sp), fp, pc);
        // Relaxed: read by the resumer, which is this thread.
        stack.leaves.store(true, Ordering::Relaxed);
        let _arrival = Arrival {
            stack,
            by,
            before: seam::before(),
        };
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
        by,
        f: Some(switch),
        result: None,
    };
    arch::call_spilled(entry(&call), (&raw mut call).cast());
    match call.result {
        Some(result) => result,
        None => unreachable!("leave runs the switch"),
    }
}

/// The arrival on a stack that was suspended, by a return or by unwinding.
struct Arrival {
    stack: &'static StackRecord,
    by: By,
    /// The record of the thread that has left the stack. Only a planted fault reads it.
    before: Option<&'static Record>,
}

impl Drop for Arrival {
    #[inline(never)]
    fn drop(&mut self) {
        let on_it = |record: &Record| {
            record
                .current()
                .is_some_and(|s| core::ptr::eq(s, self.stack))
        };
        if !registry::current().is_some_and(on_it) {
            text::die("a suspended stack was switched to without `Stack::resume_with`");
        }
        // The function goes on: its next end is no suspension.
        self.stack.leaves.store(false, Ordering::Relaxed);
        if self.by == By::Us {
            arrived_on(seam::now(self.before));
        }
    }
}

/// Ends the section in which a thread has switched.
fn arrived_on(record: Option<&'static Record>) {
    match record {
        Some(record) => arrived(record),
        None => text::die("a stack runs on a thread that is not attached"),
    }
}

/// What tests may break here.
mod seam {
    use crate::faults::{self, Delay, Fault};
    use crate::registry::{self, Record};

    pub(super) fn reports_first() -> bool {
        !Fault::ResumesUnreported.planted()
    }

    /// A stack is neither suspended nor in a thread's chain.
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

    /// Where a stack is left: below the registers that were saved on it.
    pub(super) fn left_at(sp: usize) -> usize {
        if Fault::LeftAboveSaves.planted() {
            sp + 48
        } else {
            sp
        }
    }

    /// The record of the thread that leaves a stack. `None`, if the planted fault does not use it.
    pub(super) fn before() -> Option<&'static Record> {
        if Fault::KeepsRecord.planted() {
            registry::current()
        } else {
            None
        }
    }

    /// The record of the thread that runs now, which may be another than before the switch.
    pub(super) fn now(before: Option<&'static Record>) -> Option<&'static Record> {
        if Fault::KeepsRecord.planted() {
            before
        } else {
            registry::current()
        }
    }
}
