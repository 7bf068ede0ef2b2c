//! Weak words and ephemeron pairs of the raw tier: loads, stores and copies.

use core::sync::atomic::{AtomicUsize, Ordering};

use crate::api::mutator::Mutator;
use crate::barrier;
use crate::weak::{IDLE, MARKING};

impl Mutator {
    /// Loads a word of a weak cell and makes its target strong: the result may be kept like any
    /// reference. The word is returned with its tags. The kind's `cleared` value means that the
    /// target is dead.
    ///
    /// ```
    /// # use gc_core::Heap;
    /// # use gc_core::raw::{Encoding, Kind};
    /// # let heap = Heap::builder().build()?;
    /// # let mutator = heap.attach()?;
    /// # let leaf = heap.kind(Kind::leaf("leaf"))?;
    /// let weak = heap.kind(Kind::weak("weak", 0, Encoding::RAW, 0))?;
    /// // SAFETY: the cells are of this heap and large enough, and this stack leads to them.
    /// unsafe {
    ///     let target = mutator.alloc_raw(leaf, 16)?;
    ///     let cell = mutator.alloc_raw(weak, 16)?.cast::<usize>();
    ///     cell.write(target.as_ptr() as usize);
    ///     mutator.collect();
    ///     assert_eq!(mutator.load_weak(cell.as_ptr()), target.as_ptr() as usize);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Safety
    /// `slot` is a word of a live weak or ephemeron cell of this heap. The thread is not inside
    /// `blocking`.
    #[inline]
    pub unsafe fn load_weak(&self, slot: *const usize) -> usize {
        self.heap.shared().stacks.are_used();
        // SAFETY: forwarded.
        unsafe { self.load_weak_word(slot) }
    }

    /// Does what [`load_weak`](Self::load_weak) does, for the safe tier: the caller's window is
    /// open.
    ///
    /// # Safety
    /// As [`load_weak`](Self::load_weak).
    #[inline]
    pub(crate) unsafe fn load_weak_word(&self, slot: *const usize) -> usize {
        // SAFETY: forwarded; the record is this thread's.
        unsafe { barrier::load_weak(self.context.as_ptr(), slot) }
    }

    /// Changes a pair of a published ephemeron cell
    /// ([`Kind::ephemeron`](crate::raw::Kind::ephemeron)): enters a pair, replaces it, or removes
    /// it (with the kind's `cleared` as key and 0 as value). The barrier logs the old value.
    ///
    /// The thread is not stopped between the two stores: if a collection found the new value beside
    /// the old key, and the old key were dead, it would clear both. Other threads may see one old
    /// and one new word meanwhile, so a table that several threads change needs a lock.
    ///
    /// ```
    /// # use gc_core::Heap;
    /// # use gc_core::raw::{Encoding, Kind};
    /// # let heap = Heap::builder().build()?;
    /// # let mutator = heap.attach()?;
    /// # let leaf = heap.kind(Kind::leaf("leaf"))?;
    /// let pairs = heap.kind(Kind::ephemeron("pairs", 0, Encoding::RAW, 0))?;
    /// // SAFETY: the cells are of this heap and large enough, and this stack leads to them.
    /// unsafe {
    ///     let key = mutator.alloc_raw(leaf, 16)?.as_ptr() as usize;
    ///     let value = mutator.alloc_raw(leaf, 16)?.as_ptr() as usize;
    ///     let pair = mutator.alloc_raw(pairs, 16)?.cast::<usize>().as_ptr();
    ///     mutator.write_pair(pair, key, value);
    ///     mutator.collect();
    ///     assert_eq!(mutator.load_weak(pair), key);
    ///     assert_eq!(pair.add(1).read(), value);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Safety
    /// `pair` is the first word of a pair of a live ephemeron cell of this heap. `key` and `value`
    /// are in the kind's encoding, and are null or targets that this thread holds strongly. The
    /// thread is not inside `blocking`.
    #[inline]
    pub unsafe fn write_pair(&self, pair: *mut usize, key: usize, value: usize) {
        self.thread().no_preempt(|| {
            // While the collector clears weak words, it may be clearing this very pair.
            let clearing = self.record().marking.load(Ordering::Relaxed) > MARKING;
            let weak = &self.heap.shared().weak;
            let _whole = clearing.then(|| weak.lock_pair(pair as usize));
            // SAFETY: forwarded.
            unsafe { self.write_both(pair, key, value) };
        });
    }

    /// Replaces a pair's value if the pair's key is still `key`. The lock makes the comparison and
    /// the store one step for [`remove_pair`](Self::remove_pair): otherwise a removal in between
    /// would leave the value in a pair without a key, which would keep it as long as the pair's
    /// cell lives.
    ///
    /// # Safety
    /// As [`write_pair`](Self::write_pair).
    pub(crate) unsafe fn replace_value(&self, pair: *mut usize, key: usize, value: usize) {
        // SAFETY: forwarded. Relaxed: the key is compared, not followed.
        let is_there = || unsafe { (*pair.cast::<AtomicUsize>()).load(Ordering::Relaxed) } == key;
        // SAFETY: forwarded.
        let write = || unsafe { self.write(pair.add(1), value) };
        if !seam::is_one_step() {
            return seam::in_two_steps(is_there, write);
        }
        seam::hold();
        self.thread().no_preempt(|| {
            let _whole = self.heap.shared().weak.lock_pair(pair as usize);
            if is_there() {
                write();
            }
        });
    }

    /// Removes a pair: its key becomes `cleared`, its value null. See
    /// [`replace_value`](Self::replace_value) for the lock.
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

    /// Writes the words of a pair through the barrier, the value first: when a marker finds the old
    /// key gone, the old value must be in the log.
    ///
    /// # Safety
    /// As [`write_pair`](Self::write_pair). The thread is inside `no_preempt`.
    #[inline]
    unsafe fn write_both(&self, pair: *mut usize, key: usize, value: usize) {
        // SAFETY: forwarded.
        unsafe {
            seam::before_the_barrier(pair, value);
            self.write(pair.add(1), value);
            // Release pairs with the Acquire of a weak load: a thread that loads the key finds the
            // value, and both initialised.
            (*pair.cast::<AtomicUsize>()).store(key, Ordering::Release);
        }
    }

    /// Copies words of a weak cell, or whole pairs of an ephemeron cell, to another cell of the
    /// same kind, without making their targets strong. For tables that grow. The collector may
    /// clear a word while it is copied.
    ///
    /// # Safety
    /// `from` and `to` lie in live cells of this heap and of the same kind, with `words` words
    /// each; in ephemeron cells both begin at the first word of a pair. All words at `to` are null
    /// or `cleared`. The thread is not inside `blocking`.
    pub unsafe fn copy_weak(&self, to: *mut usize, from: *const usize, words: usize) {
        /// Words that are copied between two stops: less than a microsecond.
        const PIECE: usize = 64;
        for first in (0..words).step_by(PIECE) {
            let words = PIECE.min(words - first);
            // SAFETY: forwarded. Volatile, so that the compiler and libc copy whole words.
            // Backwards, so that a marker that finds a key finds its value.
            self.thread().no_preempt(|| unsafe {
                let (to, from) = (to.add(first), from.add(first));
                let mode = self.record().marking.load(Ordering::Relaxed);
                let (space, weak) = (&self.heap.shared().space, &self.heap.shared().weak);
                if mode > MARKING && seam::copies_what_lives() {
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

mod seam {
    use crate::fault::Fault;

    /// Compares the key and stores the value in one step.
    pub(super) fn is_one_step() -> bool {
        !Fault::PairUnlocked.planted()
    }

    pub(super) fn in_two_steps(is_there: impl FnOnce() -> bool, write: impl FnOnce()) {
        let is_there = is_there();
        hold();
        if is_there {
            write();
        }
    }

    /// Not a planted fault: another thread removes the pair meanwhile.
    #[inline(always)]
    pub(super) fn hold() {
        if Fault::HeldValue.planted() {
            gc_preempt::faults::hold();
        }
    }

    /// The barrier finds the old value, and logs it.
    ///
    /// # Safety
    /// `pair` names a pair of a live cell.
    #[inline(always)]
    pub(super) unsafe fn before_the_barrier(pair: *mut usize, value: usize) {
        if Fault::PairsUnlogged.planted() {
            // SAFETY: the caller's contract.
            unsafe { pair.add(1).write_volatile(value) };
        }
    }

    /// Copies no word whose target is dead.
    pub(super) fn copies_what_lives() -> bool {
        !Fault::JudgedOpen.planted()
    }
}
