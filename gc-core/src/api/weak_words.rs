//! Weak words and ephemeron pairs of the raw tier: loads, stores and copies.

use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;

use crate::api::mutator::Mutator;
use crate::barrier;
use crate::fault::{Fault, planted};
use crate::weak::{IDLE, MARKING};

impl Mutator {
    /// Loads a word of a weak cell and makes its target strong: the result may be kept like any
    /// reference. The word comes as it is, tags and all; the kind's `cleared` value says that the
    /// target is dead.
    ///
    /// # Safety
    /// `slot` is a word of a live weak cell of this heap.
    #[inline]
    pub unsafe fn load_weak(&self, slot: *const usize) -> usize {
        self.heap.shared().stacks.are_used();
        // SAFETY: forwarded.
        unsafe { self.load_weak_word(slot) }
    }

    /// The same, for the safe tier, in an open window.
    ///
    /// # Safety
    /// As [`load_weak`](Self::load_weak).
    #[inline]
    pub(crate) unsafe fn load_weak_word(&self, slot: *const usize) -> usize {
        // SAFETY: forwarded; the context is this thread's.
        unsafe { barrier::load_weak(self.context.as_ptr(), slot) }
    }

    /// Changes a pair of a published ephemeron cell
    /// ([`Kind::ephemeron`](crate::raw::Kind::ephemeron)): enters one, replaces one by another, or,
    /// with the kind's `cleared` and 0, removes one. The old value is logged like any overwritten
    /// edge.
    ///
    /// Not to be stopped in the middle: a collection that found the old key with the new value
    /// would clear both if the old key were dead. Other threads that read the pair meanwhile may
    /// find one word old and one new; tables that several threads change need a lock of their own.
    ///
    /// # Safety
    /// `pair` is the first word of a pair of a live ephemeron cell of this heap, and `key` and
    /// `value` are null or targets that this thread holds strongly, in the kind's encoding.
    #[inline]
    pub unsafe fn write_pair(&self, pair: *mut usize, key: usize, value: usize) {
        self.thread().no_preempt(|| {
            // The collector may be clearing the pair that is replaced.
            let clearing = self.record().marking.load(Ordering::Relaxed) > MARKING;
            let weak = &self.heap.shared().weak;
            let _whole = clearing.then(|| weak.lock_pair(pair as usize));
            // SAFETY: forwarded.
            unsafe { self.write_both(pair, key, value) };
        });
    }

    /// Replaces a pair's value, if its key is still `key`. One unit with
    /// [`remove_pair`](Self::remove_pair): between the look and the store no thread removes the
    /// pair, which would leave the value in a pair without a key, to be kept for as long as the
    /// pair's cell.
    ///
    /// # Safety
    /// As [`write_pair`](Self::write_pair).
    pub(crate) unsafe fn replace_value(&self, pair: *mut usize, key: usize, value: usize) {
        // SAFETY: forwarded. Relaxed: compared, not followed.
        let is_there = || unsafe { (*pair.cast::<AtomicUsize>()).load(Ordering::Relaxed) } == key;
        if planted(Fault::PairUnlocked) {
            let is_there = is_there();
            std::thread::sleep(Duration::from_millis(2));
            if is_there {
                // SAFETY: forwarded.
                unsafe { self.write(pair.add(1), value) };
            }
            return;
        }
        self.thread().no_preempt(|| {
            let _whole = self.heap.shared().weak.lock_pair(pair as usize);
            if is_there() {
                // SAFETY: forwarded.
                unsafe { self.write(pair.add(1), value) };
            }
        });
    }

    /// Removes a pair: its key becomes `cleared`, its value null. See
    /// [`replace_value`](Self::replace_value).
    ///
    /// # Safety
    /// As [`write_pair`](Self::write_pair).
    pub(crate) unsafe fn remove_pair(&self, pair: *mut usize, cleared: usize) {
        self.thread().no_preempt(|| {
            let _whole = self.heap.shared().weak.lock_pair(pair as usize);
            // SAFETY: forwarded.
            unsafe { self.write_both(pair, cleared, 0) };
        });
    }

    /// Writes a pair's words, the value first, through the barrier: a marker that finds the key
    /// gone must find the value logged.
    ///
    /// # Safety
    /// As [`write_pair`](Self::write_pair); under `no_preempt`.
    #[inline]
    unsafe fn write_both(&self, pair: *mut usize, key: usize, value: usize) {
        // SAFETY: forwarded.
        unsafe {
            if planted(Fault::PairsUnlogged) {
                pair.add(1).write_volatile(value);
            }
            self.write(pair.add(1), value);
            // Release: a thread that loads the key finds the value, and both initialised.
            (*pair.cast::<AtomicUsize>()).store(key, Ordering::Release);
        }
    }

    /// Copies words of a weak cell, or whole pairs of an ephemeron's, to another cell of the kind,
    /// without making what they lead to strong: for tables that grow. Each word may be cleared
    /// while it is copied, as any weak word may at any time.
    ///
    /// # Safety
    /// `from` and `to` lie in live cells of this heap and of the same kind, `words` words each,
    /// from a pair's first word on. No word of `to` is an edge yet.
    pub unsafe fn copy_weak(&self, to: *mut usize, from: *const usize, words: usize) {
        /// Words that are copied without a stop in between: less than a microsecond.
        const PIECE: usize = 64;
        for first in (0..words).step_by(PIECE) {
            let words = PIECE.min(words - first);
            // SAFETY: forwarded. Volatile: neither the compiler nor libc is to copy in pieces that
            // are not words. Backwards, so that a marker which finds a key finds its value.
            self.thread().no_preempt(|| unsafe {
                let (to, from) = (to.add(first), from.add(first));
                let mode = self.record().marking.load(Ordering::Relaxed);
                let (space, weak) = (&self.heap.shared().space, &self.heap.shared().weak);
                if mode > MARKING && !planted(Fault::JudgedOpen) {
                    return weak.copy_judged(space, to as usize, from as usize, words, mode);
                }
                for word in (0..words).rev() {
                    to.add(word).write_volatile(from.add(word).read_volatile());
                }
                if mode != IDLE {
                    weak.copied(space, to as usize, words);
                }
            });
        }
    }
}
