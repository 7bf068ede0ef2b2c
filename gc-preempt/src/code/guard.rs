//! The guard of a registration, and the list of dropped guards.

use std::fmt;
use std::ops::Range;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use super::spec::Hex;

/// Keeps a range of code registered. Its drop begins the removal; see
/// [`CodeSpec::owner`](crate::CodeSpec::owner).
///
/// After the drop no thread may *enter* the code. Threads inside of it may finish it, and return
/// into it.
#[must_use = "dropping the guard removes the code at the next stop"]
pub struct CodeGuard {
    /// `Some` until the guard is dropped.
    pub(super) mark: Option<Arc<Mark>>,
    pub(super) dropped: &'static Dropped,
    pub(super) range: Range<usize>,
}

impl CodeGuard {
    /// The registered range.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }
}

impl fmt::Debug for CodeGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CodeGuard({})", Hex(&self.range))
    }
}

impl Drop for CodeGuard {
    fn drop(&mut self) {
        if let Some(mark) = self.mark.take() {
            // Relaxed: only an error's text asks.
            mark.leaving.store(true, Ordering::Relaxed);
            self.dropped.push(mark);
        }
    }
}

/// Shared by a guard and its region.
#[derive(Debug)]
pub(super) struct Mark {
    /// The guard was dropped.
    pub(super) leaving: AtomicBool,
    /// The next mark on the list of dropped guards.
    pub(super) next: AtomicPtr<Mark>,
    pub(super) world: u64,
    pub(super) key: Key,
}

/// Names a region: the map that holds it, and its first address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) managed: bool,
    pub(super) start: usize,
}

/// The marks of guards that were dropped since the list was last taken: a lock-free stack. It is
/// only taken as a whole, so no mark is pushed again while another thread holds its address, and
/// the ABA problem does not occur.
pub(super) struct Dropped(pub(super) AtomicPtr<Mark>);

impl Dropped {
    fn push(&self, mark: Arc<Mark>) {
        let mark = Arc::into_raw(mark).cast_mut();
        let mut head = self.0.load(Ordering::Relaxed);
        loop {
            // SAFETY: this thread alone has the mark, until the exchange succeeds.
            unsafe { (*mark).next.store(head, Ordering::Relaxed) };
            // Release pairs with the Acquire in `take`: the guard's owner has used the code before
            // its removal.
            let pushed =
                self.0
                    .compare_exchange_weak(head, mark, Ordering::Release, Ordering::Relaxed);
            match pushed {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Empties the list.
    pub(super) fn take(&self) -> impl Iterator<Item = Arc<Mark>> + use<> {
        // Acquire pairs with the Release in `push`.
        let mut next = self.0.swap(ptr::null_mut(), Ordering::Acquire);
        std::iter::from_fn(move || {
            // SAFETY: `push` has made the pointer, once. The mark is on the list that the swap
            // took, so no other thread takes it.
            let mark = (!next.is_null()).then(|| unsafe { Arc::from_raw(next) })?;
            next = mark.next.load(Ordering::Relaxed);
            Some(mark)
        })
    }
}
