//! A pthread key, whose destructor runs when a thread that has set it ends.
//!
//! glibc runs the destructors of keys after those of Rust's thread-locals. So a value that a
//! thread-local holds, a `Mutator` say, is dropped in the ordinary way before.

use core::sync::atomic::{AtomicU32, Ordering};
use std::io;

/// A key that is made when it is first needed.
pub(crate) struct ThreadKey {
    /// 0: not made yet; otherwise the key plus one.
    made: AtomicU32,
    destructor: unsafe extern "C" fn(*mut libc::c_void),
}

impl ThreadKey {
    pub(crate) const fn new(destructor: unsafe extern "C" fn(*mut libc::c_void)) -> Self {
        Self {
            made: AtomicU32::new(0),
            destructor,
        }
    }

    fn key(&self) -> io::Result<libc::pthread_key_t> {
        // Relaxed, here and below: no other memory is published with the key's number.
        let known = self.made.load(Ordering::Relaxed);
        if known != 0 {
            return Ok(known - 1);
        }
        let mut key = 0;
        // SAFETY: the call fills the key; the destructor lives as long as the process.
        let error = unsafe { libc::pthread_key_create(&raw mut key, Some(self.destructor)) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // Two threads may race here: the loser's key goes unused.
        let raced = self
            .made
            .compare_exchange(0, key + 1, Ordering::Relaxed, Ordering::Relaxed);
        Ok(raced.map_or_else(|other| other - 1, |_| key))
    }

    /// The running thread's value. Null: it has set none.
    ///
    /// # Errors
    /// The system has no more keys.
    pub(crate) fn get(&self) -> io::Result<*mut libc::c_void> {
        // SAFETY: the key was made.
        self.key()
            .map(|key| unsafe { libc::pthread_getspecific(key) })
    }

    /// Sets the running thread's value. One that is not null has the destructor called with it.
    ///
    /// # Errors
    /// The system has no more keys, or no memory.
    pub(crate) fn set(&self, value: *const libc::c_void) -> io::Result<()> {
        // SAFETY: the key was made; the value is the destructor's business.
        match unsafe { libc::pthread_setspecific(self.key()?, value) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}
