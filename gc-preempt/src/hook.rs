//! A function that an embedder has a thread run after a stop, or when it is preempted.

use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// A hook's function.
pub(crate) type HookFn = unsafe extern "C" fn(*mut ());

/// One hook of a thread's record. The thread itself writes it, inside `no_preempt`, and reads it,
/// in its handler and its trampoline, which do not run there. Hence all accesses are Relaxed.
pub(crate) struct Hook {
    /// Null: none.
    f: AtomicPtr<()>,
    data: AtomicPtr<()>,
    /// The world whose mutator has set it.
    world: AtomicU64,
}

impl Hook {
    pub(crate) const fn new() -> Self {
        Self {
            f: AtomicPtr::new(core::ptr::null_mut()),
            data: AtomicPtr::new(core::ptr::null_mut()),
            world: AtomicU64::new(0),
        }
    }

    /// Sets the hook for a mutator of that world, or unsets it.
    pub(crate) fn set(&self, hook: Option<(HookFn, *mut ())>, world: u64) {
        let (f, data) = hook.map_or(
            (core::ptr::null_mut(), core::ptr::null_mut()),
            |(f, data)| (f as *mut (), data),
        );
        self.data.store(data, Ordering::Relaxed);
        self.f.store(f, Ordering::Relaxed);
        self.world.store(world, Ordering::Relaxed);
    }

    pub(crate) fn unset(&self) {
        self.f.store(core::ptr::null_mut(), Ordering::Relaxed);
    }

    /// Unsets what a mutator of that world has set.
    pub(crate) fn unset_of(&self, world: u64) {
        if self.world.load(Ordering::Relaxed) == world {
            self.unset();
        }
    }

    pub(crate) fn is_set(&self) -> bool {
        !self.f.load(Ordering::Relaxed).is_null()
    }

    /// Runs the hook, if there is one. After it the calling frame may be on another thread.
    ///
    /// # Safety
    /// On the record's own thread, where the hook's owner allows it.
    pub(crate) unsafe fn run(&self) {
        let f = self.f.load(Ordering::Relaxed);
        if !f.is_null() {
            // SAFETY: `set` stored a function of this type, whose owner vouches for it and its
            // data.
            unsafe {
                let f: HookFn = core::mem::transmute(f);
                f(self.data.load(Ordering::Relaxed));
            }
        }
    }
}
