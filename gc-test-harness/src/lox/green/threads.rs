//! Making, switching and suspending the green threads of an isolate.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use gc_core::coroutine::{Resumed, suspend};
use memmap2::MmapMut;

use super::super::cells::BOXED;
use super::super::clear;
use super::super::greens::{Green, Greens, Id};
use super::super::isolate::{FRAMES_MAX, Vm};
use super::super::value::Value;

/// Slots of a green thread's value stack, as many as of an isolate's own. Pages that are never
/// touched take no memory.
const SLOTS: usize = FRAMES_MAX as usize * 1024;

/// The first slots of a value stack belong to the scheduler: the open upvalues of a green thread
/// that does not run, and the value that a channel takes from it or gives to it.
const OPEN_UPVALUES: usize = 0;
pub(super) const PASSED: usize = 1;
const FIRST: usize = 2;

/// The isolate's green threads.
///
/// # Safety
/// The isolate has green threads, and the caller drops the reference before other code of the
/// isolate runs.
pub(super) unsafe fn greens<'a>(vm: *mut Vm) -> &'a mut Greens {
    // SAFETY: the caller's promise.
    unsafe {
        (*vm)
            .greens
            .as_mut()
            .expect("an isolate with green threads")
    }
}

/// Makes a green thread that calls `callee[0]` with the `count` values behind it.
///
/// # Safety
/// As [`greens`]; the values are alive.
pub(super) unsafe fn spawn(vm: *mut Vm, callee: *const Value, count: u32) -> Result<(), String> {
    // SAFETY: the promise; a green thread that has ended has no frames and no values.
    unsafe {
        let id = match greens(vm).ended.pop() {
            Some(id) => id,
            None => make(vm)?,
        };
        let green = greens(vm).all[id as usize - 1];
        let base = (*green).slot(FIRST);
        for slot in 0..=count as usize {
            base.add(slot).write(*callee.add(slot));
        }
        // Release: the slots are written before the limit covers them. The collector reads the
        // limit in a stop.
        let limit = base.add(count as usize + 1) as usize;
        (*green).limit.store(limit, Ordering::Release);
        let body = move |_: &gc_core::Mutator| {
            let result = clear::call(vm, base, count);
            if result.is_error() {
                greens(vm).failed = true;
            }
        };
        (*vm)
            .mutator
            .start(&(*green).stack, body)
            .map_err(|e| e.to_string())?;
        greens(vm).ready.push_back(id);
        Ok(())
    }
}

/// Makes the memory of a green thread.
///
/// # Safety
/// As [`greens`].
unsafe fn make(vm: *mut Vm) -> Result<Id, String> {
    // SAFETY: the promise.
    unsafe {
        let memory = greens(vm).pool.take().map_err(|e| e.to_string())?;
        let stack = (*vm).lox.heap.stack(memory).map_err(|e| e.to_string())?;
        let words = MmapMut::map_anon(SLOTS * 8).map_err(|e| e.to_string())?;
        let first = words.as_ptr().cast_mut().cast::<Value>();
        for slot in 0..FIRST {
            first.add(slot).write(Value::NIL);
        }
        let limit = Box::new(AtomicUsize::new(first.add(FIRST) as usize));
        // SAFETY: the mapping and the limit live until the range is dropped.
        let range = (*vm)
            .mutator
            .root_range(first.cast(), &raw const *limit, BOXED);
        let green = Green {
            stack,
            range: range.map_err(|e| e.to_string())?,
            limit,
            words,
            frame_count: 0,
            next: 0,
        };
        let greens = greens(vm);
        greens.all.push(Box::into_raw(Box::new(green)));
        Ok(greens.all.len() as Id)
    }
}

/// Makes the sleepers ready whose time has come.
pub(super) fn wake_sleepers(greens: &mut Greens) {
    if greens.sleepers.is_empty() {
        return;
    }
    let now = Instant::now();
    while let Some(sleeper) = greens.sleepers.peek()
        && sleeper.until <= now
    {
        greens.ready.push_back(sleeper.green);
        greens.sleepers.pop();
    }
}

/// Resumes a green thread until it suspends itself or ends.
///
/// # Safety
/// As [`greens`].
pub(super) unsafe fn switch(vm: *mut Vm, id: Id) -> Resumed {
    // SAFETY: the promise. A green thread's memory lives as long as the isolate.
    unsafe {
        let green = greens(vm).all[id as usize - 1];
        let first = (*green).slot(FIRST) as usize;
        greens(vm).current = id;
        // Relaxed, here and below: the count is a hint for the monitor, and the collector reads
        // limits in a stop, which does not come inside `no_preempt`.
        greens(vm).switches.fetch_add(1, Ordering::Relaxed);
        (*vm).preempt.store(0, Ordering::Relaxed);
        gc_preempt::take_preempt_request_here();
        (*vm).mutator.no_preempt(|| {
            (*vm).stack_end = (*green).slot(SLOTS) as usize;
            (*vm).frame_count = (*green).frame_count;
            (*vm).roots.open_upvalues = *(*green).slot(OPEN_UPVALUES);
            let limit = (*green).limit.load(Ordering::Relaxed);
            (*vm).stack_limit.store(limit, Ordering::Relaxed);
            (*green).limit.store(first, Ordering::Relaxed);
            greens(vm).first.store(first, Ordering::Relaxed);
        });
        let resumed = (*vm).mutator.resume(&(*green).stack);
        greens(vm).switches.fetch_add(1, Ordering::Relaxed);
        (*vm).mutator.no_preempt(|| {
            let finished = matches!(resumed, Ok(Resumed::Finished));
            let limit = (*vm).stack_limit.load(Ordering::Relaxed);
            (*green).frame_count = if finished { 0 } else { (*vm).frame_count };
            (*green)
                .slot(OPEN_UPVALUES)
                .write((*vm).roots.open_upvalues);
            (*vm).roots.open_upvalues = Value::NIL;
            let limit = if finished { first } else { limit };
            (*green).limit.store(limit, Ordering::Relaxed);
            (*vm).stack_limit.store(0, Ordering::Relaxed);
            greens(vm).first.store(0, Ordering::Relaxed);
        });
        resumed.expect("the green thread is suspended, and this thread may switch")
    }
}

/// Suspends the running green thread. Another part of the program makes it ready.
///
/// # Safety
/// As [`greens`]; a green thread runs.
pub(super) unsafe fn wait() {
    suspend().expect("a green thread runs outside of `blocking` and `no_preempt`");
}

/// Lets other green threads run, if any can.
///
/// # Safety
/// As [`wait`].
pub(super) unsafe fn let_others_run(vm: *mut Vm) -> bool {
    // SAFETY: the promise.
    unsafe {
        let greens = greens(vm);
        wake_sleepers(greens);
        if greens.ready.is_empty() {
            return false;
        }
        greens.ready.push_back(greens.current);
        wait();
        true
    }
}

/// The slice of the running green thread is over. Code calls this where it has found
/// [`Vm::preempt`] set.
///
/// # Safety
/// The head of [`runtime`](crate::lox::runtime).
#[cold]
pub unsafe extern "C" fn poll(vm: *mut Vm) {
    // SAFETY: the promise. Relaxed: a flag alone; the monitor sets it again after another slice.
    unsafe {
        (*vm).preempt.store(0, Ordering::Relaxed);
        gc_preempt::take_preempt_request_here();
        if let_others_run(vm) {
            greens(vm).preemptions += 1;
        }
    }
}
