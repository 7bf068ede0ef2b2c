//! The collector's thread: it waits for requests, runs collections, and gives memory back between
//! them.

use core::sync::atomic::Ordering;
use std::sync::Arc;

use super::background::{Idle, Surplus, back_ahead, give_all_back};
use super::cycle::Cycle;
use super::requests::Next;
use super::state::State;
use crate::mark::kept_bytes;
use crate::mark::workers::Workers;
use crate::thread::Thread;

/// Starts the collector's thread, with every signal blocked but SIGURG: no handler of the host may
/// run there, least of all during a stop. A parked thread needs SIGURG to find out that a root
/// callback's panic waits for a lock.
pub(crate) fn spawn(state: &Arc<State>) -> std::io::Result<Thread> {
    let state = state.clone();
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are written by the calls before they are read.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::sigdelset(all.as_mut_ptr(), libc::SIGURG);
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    state.requests.alive.store(true, Ordering::SeqCst);
    let body = {
        let state = state.clone();
        move || {
            let bomb = AbortOnPanic;
            run(&state);
            core::mem::forget(bomb);
        }
    };
    // SAFETY: the thread owns the state that it uses.
    let thread = unsafe { Thread::start("urge-collector", body) };
    // SAFETY: the call above has filled `before`.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), core::ptr::null_mut()) };
    if thread.is_err() {
        state.requests.alive.store(false, Ordering::SeqCst);
    }
    thread
}

/// Aborts the process if the collector panics: the heap would be half collected, and every thread
/// that waits for a collection would wait for ever.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        eprintln!(
            "urge: the collector's thread panicked: the heap is inconsistent, and the process aborts"
        );
        std::process::abort();
    }
}

/// Runs collections until the heap's last handle is dropped. The body of the collector's thread.
fn run(state: &State) {
    // SAFETY: the call has no arguments and writes no memory. Relaxed: only this thread compares
    // it, to tell itself from others.
    state
        .collector
        .store(unsafe { libc::pthread_self() } as usize, Ordering::Relaxed);
    // SAFETY: this is the heap's collector, of which there is one at a time; `workers` is dropped
    // at the end.
    let mut workers = unsafe { Workers::new(&state.space, &state.queue, &state.weak) };
    let mut surplus = Surplus::default();
    let mut idle = Idle::new(state);
    loop {
        let patience = [surplus.patience, idle.patience()]
            .into_iter()
            .flatten()
            .min();
        match state.requests.next(patience) {
            Next::End => return,
            Next::Nothing if idle.is_due() => {
                state.requests.want_spans();
                state.requests.ask(true);
                continue;
            }
            Next::Nothing => {}
            Next::Collection => {
                Cycle::new(state, &mut workers).run();
                idle.collected();
                // SAFETY: the cycle's marker is gone, mutators have markers while marking only, and
                // there is one cycle at a time.
                unsafe { state.queue.trim(kept_bytes(state.space.used_bytes())) };
            }
        }
        if state.requests.is_trim_due() {
            // SAFETY: as above.
            unsafe { state.queue.trim(0) };
            state.requests.trimmed(give_all_back(state));
        }
        back_ahead(state);
        surplus.give_back(state);
    }
}
