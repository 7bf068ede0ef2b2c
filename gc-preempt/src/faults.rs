//! Switches a hazard's cure off, so that its test can be seen to fail without it.
//!
//! Only with the cargo feature `faults`, which the workspace's tests turn on and nobody else
//! should: `URGE_FAULT` names the cures that are off, separated by commas. Without the feature
//! [`planted`] is a constant `false` and the compiler drops the branch.

/// Is the cure of that name switched off? Async-signal-safe.
#[cfg(feature = "faults")]
pub fn planted(name: &str) -> bool {
    real::names().split(',').any(|n| n == name)
}

/// Is the cure of that name switched off? Never, without the cargo feature `faults`.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub const fn planted(_name: &str) -> bool {
    false
}

/// How many steps the searches of the process's code map have taken so far. Tests compare them
/// instead of times.
#[cfg(feature = "faults")]
pub fn steps() -> u64 {
    // Relaxed: a count.
    real::STEPS.load(core::sync::atomic::Ordering::Relaxed)
}

/// One more of [`steps`]. Async-signal-safe.
#[inline(always)]
pub(crate) fn count_step() {
    #[cfg(feature = "faults")]
    real::STEPS.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
}

/// Reads `URGE_FAULT`, once, outside of any handler.
pub(crate) fn read_environment() {
    #[cfg(feature = "faults")]
    real::read_environment();
}

#[cfg(feature = "faults")]
mod real {
    use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

    pub(super) static STEPS: AtomicU64 = AtomicU64::new(0);
    static NAMES: AtomicPtr<String> = AtomicPtr::new(core::ptr::null_mut());

    pub(super) fn names() -> &'static str {
        // Acquire pairs with the Release below: the string is whole before it is found.
        // SAFETY: null, or a leaked string.
        unsafe { NAMES.load(Ordering::Acquire).as_ref() }.map_or("", String::as_str)
    }

    pub(super) fn read_environment() {
        if NAMES.load(Ordering::Relaxed).is_null() {
            let names = Box::leak(Box::new(std::env::var("URGE_FAULT").unwrap_or_default()));
            NAMES.store(names, Ordering::Release);
        }
    }
}
