//! Whether a test has taken a cure out: gc-preempt's switches, under the name that this crate uses
//! them by.

pub(crate) use gc_preempt::faults::planted;

/// Runs `f`, which changes tables, without being stopped in it.
pub(crate) fn protected<R>(f: impl FnOnce() -> R) -> R {
    if planted("tables-unprotected") {
        f()
    } else {
        gc_preempt::no_preempt_here(f)
    }
}
