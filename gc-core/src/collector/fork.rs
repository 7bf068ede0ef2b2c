//! Fork: the child, which has only the forking thread, finds its heaps whole and can allocate and
//! collect.
//!
//! A child inherits memory as it was at the fork, locks held by threads that it does not have among
//! it. gc-preempt's fork handler takes the registry lock first: from then on no world is stopped
//! and none can be, so no collection is between its stop and its resume, and a thread that holds
//! one of our locks is running and soon done. Then the forking thread takes them all, and both
//! sides give them back.
//!
//! A cycle that was marking is abandoned in the child: its markers are gone, with what they had in
//! hand. Nothing has been freed by it, and the next one begins with a clear bitmap. Where it was
//! clearing weak words, the child clears the rest first: its program may have seen one of them
//! cleared, and must not find the others.
//!
//! The child knows that its collectors' threads are gone: the next collection starts a new one.
//! Spans that gone threads owned or were sweeping go back to their sites' lists, and what they had
//! claimed to the heap; what gone mutators were allocating is found dead by the next collection.

use core::sync::atomic::Ordering;
use std::sync::Arc;

use gc_preempt::ForkHooks;

use super::state::State;
use crate::fault::{Fault, planted};
use crate::mutator::record::Context;
use crate::weak::IDLE;

/// Has the heap looked after at forks, for as long as it lives.
pub(crate) fn enrol(state: &Arc<State>) {
    if planted(Fault::NoForkHandlers) {
        return;
    }
    let data = Arc::as_ptr(state).cast_mut().cast();
    // SAFETY: `State`'s drop takes the hooks away before the memory goes.
    unsafe {
        state.world.on_fork(ForkHooks {
            prepare,
            parent,
            child,
            data,
        })
    };
}

/// # Safety
/// In the prepare hook of the heap at `data`.
unsafe fn prepare(data: *mut ()) {
    // SAFETY: the heap is alive, or its hooks would be gone; the guards are dropped by the other
    // hooks, while it still is.
    unsafe {
        let state: &'static State = &*data.cast();
        *state.over_fork.0.get() = Some(Box::new(state.lock_tables()));
        // Heaps' locks are taken one heap after another, and by no other thread together.
        gc_preempt::forget_held_locks();
    }
}

/// # Safety
/// In the parent's hook of the heap at `data`.
unsafe fn parent(data: *mut ()) {
    // SAFETY: as in `prepare`.
    unsafe { *(*data.cast::<State>()).over_fork.0.get() = None };
}

/// # Safety
/// In the child's hook of the heap at `data`.
unsafe fn child(data: *mut ()) {
    // SAFETY: as in `prepare`.
    unsafe {
        parent(data);
        let state = &*data.cast::<State>();
        state.requests.collector_is_gone();
        let me = libc::pthread_self() as usize;
        let mut contexts = state.contexts.lock();
        let mut kept = None;
        let mut from = 0;
        while let Some((at, context)) = contexts.next(from) {
            from = at + 1;
            // The context of the thread that is left, which is attached.
            if context.owner == me {
                kept = Some(context.context());
                continue;
            }
            // Never freed: its thread is gone.
            if let Some(gone) = contexts.take(at)
                && !planted(Fault::ReserveLostInChild)
            {
                state
                    .space
                    .give_back_reserve(&gone.context().local.span_reserve);
            }
        }
        drop(contexts);
        state.dying.forked(me);
        abandon_cycle(state, kept);
        let owned_span = |site| kept.map_or(0, |context| context.local.owned_span(site));
        state.space.forked(owned_span);
    }
}

/// Makes an end of the marking that the parent's collector was at.
///
/// # Safety
/// In the child's hook; `kept` is the only thread's, if that is attached.
unsafe fn abandon_cycle(state: &State, kept: Option<&Context>) {
    if planted(Fault::CycleGoesOnInChild) {
        return;
    }
    // Relaxed: there is one thread.
    state.marking.store(IDLE, Ordering::Relaxed);
    state.clearing.store(false, Ordering::Relaxed);
    if !planted(Fault::UnjudgedInChild) {
        state.weak.end_clearing(&state.space);
    }
    if let Some(context) = kept {
        context.marking.store(0, Ordering::Relaxed);
        context.reset_log();
        context.handles.all_read();
    }
    state.roots.forget_snapshot();
    state.log.reset();
    // SAFETY: the markers' threads are gone, and this one has none: it is not inside a flush, for
    // it is here.
    unsafe { state.queue.forget() };
    state.space.abandon_marking();
    state.pace.abandoned();
}
