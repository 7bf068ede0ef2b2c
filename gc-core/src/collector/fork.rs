//! Fork: the child, which has only the forking thread, finds its heaps consistent and can allocate
//! and collect.
//!
//! A child inherits memory as it was at the fork, with locks that threads of the parent held.
//! gc-preempt's fork handler takes the registry lock first. From then on no world is stopped and
//! none can be. So no collection is between its stop and its resume, and a thread that holds a lock
//! of a heap runs and releases it soon. Then the forking thread takes all these locks, and both
//! processes release them.
//!
//! The child abandons a cycle that was marking: its markers are gone, with the cells that they had.
//! That cycle has freed nothing, and the next one begins with a clear bitmap. If the cycle was
//! clearing weak words, the child clears the rest first: its program may have seen one of them
//! cleared, and must not find the others.
//!
//! The child has no collector's thread: its next collection starts a new one. Spans that lost
//! threads owned or were sweeping go back to their sites' lists, and their span reserves to the
//! heap. The next collection frees the cells of runs that these threads had.

use core::sync::atomic::Ordering;
use std::sync::Arc;

use gc_preempt::ForkHooks;

use super::state::State;
use crate::mutator::record::Context;
use crate::weak::IDLE;

/// Sets the fork hooks of the heap, which hold for as long as it lives.
pub(crate) fn enrol(state: &Arc<State>) {
    if !seam::has_handlers() {
        return;
    }
    let data = Arc::as_ptr(state).cast_mut().cast();
    // SAFETY: `State`'s drop removes the hooks before the memory is freed.
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
    // SAFETY: the heap is alive while its hooks are set; the guards are dropped by the other hooks,
    // while it is still alive.
    unsafe {
        let state: &'static State = &*data.cast();
        *state.over_fork.0.get() = Some(Box::new(state.lock_tables()));
        // A fork takes the locks of one heap after another, and no other thread holds locks of two
        // heaps.
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
            // The context of the child's only thread, if that is attached.
            if context.owner == me {
                kept = Some(context.context());
                continue;
            }
            // Such a context is never freed: its thread is gone.
            if let Some(gone) = contexts.take(at)
                && seam::gives_reserves_back()
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

/// Ends the marking that the parent's collector was doing.
///
/// # Safety
/// In the child's hook; `kept` is the context of the only thread, if that is attached.
unsafe fn abandon_cycle(state: &State, kept: Option<&Context>) {
    if !seam::abandons_cycle() {
        return;
    }
    // Relaxed: there is one thread.
    state.marking.store(IDLE, Ordering::Relaxed);
    state.clearing.store(false, Ordering::Relaxed);
    if seam::ends_clearing() {
        state.weak.end_clearing(&state.space);
    }
    if let Some(context) = kept {
        context.marking.store(0, Ordering::Relaxed);
        context.reset_log();
        context.handles.all_read();
    }
    state.roots.forget_snapshot();
    state.log.reset();
    // SAFETY: the markers' threads are gone, and the child's only thread has no marker: it is in
    // this hook, so it is not inside a flush.
    unsafe { state.queue.forget() };
    state.space.abandon_marking();
    state.pace.abandoned();
}

mod seam {
    use crate::fault::Fault;

    pub(super) fn has_handlers() -> bool {
        !Fault::NoForkHandlers.planted()
    }

    /// In the child, those of the threads that are gone.
    pub(super) fn gives_reserves_back() -> bool {
        !Fault::ReserveLostInChild.planted()
    }

    pub(super) fn abandons_cycle() -> bool {
        !Fault::CycleGoesOnInChild.planted()
    }

    pub(super) fn ends_clearing() -> bool {
        !Fault::UnjudgedInChild.planted()
    }
}
