//! Futexes: wait, wake, and compare; and a lock made of them. Every wait of this crate is one.
//!
//! All functions are async-signal-safe: they do not allocate, and keep libc's `errno`, the only
//! thread-local state that they touch. The lock is the three-state lock of Drepper's "Futexes Are
//! Tricky".

use crate::lock_order::Class;
use crate::quiet::KeepErrno;
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

/// Sleeps while `*word == expected`, at most `timeout`. May return early for any reason: callers
/// re-check in a loop. Not for a mutator outside of `blocking`.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    let _kept = KeepErrno::new();
    let spec;
    let ptr = match timeout {
        Some(t) => {
            spec = libc::timespec {
                tv_sec: t.as_secs().min(i64::MAX as u64) as libc::time_t,
                tv_nsec: libc::c_long::from(t.subsec_nanos() as i32),
            };
            &raw const spec
        }
        None => core::ptr::null(),
    };
    // SAFETY: the futex word is a live, aligned u32 and `ptr` is null or points at a live timespec;
    // the kernel writes neither.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            expected,
            ptr,
        );
    }
}

/// Wakes up to `count` sleepers of `word`.
pub fn wake(word: &AtomicU32, count: i32) {
    let _kept = KeepErrno::new();
    // SAFETY: only the address is used, as a key; the kernel writes nothing through it.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            count,
        );
    }
}

/// Does the word at `address` hold `value` now? `false` where nothing is mapped. The kernel reads
/// the word: it compares before it moves sleepers to another futex, and here it moves none to
/// `unused`.
pub(crate) fn is_word(address: usize, value: u32, unused: &AtomicU32) -> bool {
    let _kept = KeepErrno::new();
    // SAFETY: the kernel reads four bytes at the address, if they may be read, and writes nothing.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_futex,
            address,
            libc::FUTEX_CMP_REQUEUE | libc::FUTEX_PRIVATE_FLAG,
            0_usize, // are woken
            0_usize, // are moved
            unused.as_ptr(),
            value,
        )
    };
    moved == 0
}

/// The low half of a 64-bit counter, which changes with every increment: a futex word for waits on
/// the counter.
pub(crate) fn low_half(counter: &AtomicU64) -> &AtomicU32 {
    const { assert!(cfg!(target_endian = "little")) };
    // SAFETY: an AtomicU64 is eight bytes aligned to eight; its first four are, on a little-endian
    // machine, its low half. Only the kernel's comparison reads through this reference, so no
    // mixed-size Rust access races with the 64-bit ones.
    unsafe { &*core::ptr::from_ref(counter).cast::<AtomicU32>() }
}

/// Hints that the core is in a spin loop.
#[inline]
pub(crate) fn spin_hint() {
    core::hint::spin_loop();
}

const FREE: u32 = 0;
const TAKEN: u32 = 1;
const CONTENDED: u32 = 2;

/// A futex lock with a constant constructor that never allocates and never poisons.
///
/// ```compile_fail
/// // A guard of a `Cell` must not be shared between threads.
/// fn shared<T: Sync>(_: &T) {}
/// let lock = gc_preempt::sys::Mutex::new(std::cell::Cell::new(1));
/// shared(&lock.lock());
/// ```
///
/// It is not fair. A mutator may hold one only inside `no_preempt`, where it is not stopped, since
/// the stopper may take the lock too.
pub struct Mutex<T> {
    word: AtomicU32,
    class: Class,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands out one reference at a time, so sharing it is sending the value.
unsafe impl<T: Send> Sync for Mutex<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Mutex<T> {}

impl<T> Mutex<T> {
    /// An unlocked lock.
    #[track_caller]
    pub const fn new(value: T) -> Self {
        Self {
            word: AtomicU32::new(FREE),
            class: Class::new(),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the lock if it is free.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        // Acquire pairs with the Release of `unlock`.
        self.word
            .compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
            .then(|| self.guard())
    }

    /// Takes the lock, spinning for a moment, then sleeping.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.class.check();
        for _ in 0..100 {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            spin_hint();
        }
        // Acquire pairs with the Release of `unlock`.
        while self.word.swap(CONTENDED, Ordering::Acquire) != FREE {
            wait(&self.word, CONTENDED, None);
        }
        self.guard()
    }

    /// The lock is this thread's.
    fn guard(&self) -> MutexGuard<'_, T> {
        self.class.taken();
        MutexGuard {
            lock: self,
            _value: PhantomData,
        }
    }

    fn unlock(&self) {
        self.class.left();
        // Release publishes what was done under the lock to the next Acquire.
        if self.word.swap(FREE, Ordering::Release) == CONTENDED {
            wake(&self.word, 1);
        }
    }
}

/// Holds a [`Mutex`]; dropping it unlocks.
pub struct MutexGuard<'a, T> {
    lock: &'a Mutex<T>,
    /// Shared between threads like the reference that it is, not like the lock.
    _value: PhantomData<&'a mut T>,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the guard is the lock's only owner.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard is the lock's only owner.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn the_lock_excludes() {
        let counter = Arc::new(Mutex::new(0u64));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let counter = counter.clone();
                std::thread::spawn(move || {
                    for _ in 0..20_000 {
                        *counter.lock() += 1;
                    }
                })
            })
            .collect();
        for t in threads {
            t.join().unwrap();
        }
        assert_eq!(*counter.lock(), 80_000);
    }
}
