//! Pairs of ephemerons that wait for keys which are not marked yet.
//!
//! A pair of a marked ephemeron cell keeps its value only if its key is alive for another reason
//! (Hayes 1997, "Ephemerons: a new finalization mechanism"). A marker that meets a pair whose key
//! is not marked enters it here, in a hash by key. A marker that follows a cell later looks here
//! for pairs that wait for the cell. So a pair is handled at most three times (met, taken over,
//! woken), and a chain of a million pairs, each value leading to the next key, takes a million
//! steps. Going over all pairs until nothing changes would take the square of that.
//!
//! # When markers look
//! A look costs a cache miss for each cell, and most keys are found alive on other paths. So
//! markers do not look until one of them has run out of work while pairs wait. That marker sets
//! `checking` and goes over the pairs that wait already (in pieces, which several markers share).
//! From then on markers look for each cell that they mark. (Whippet does it so, too: its
//! `gc-ephemeron.c` and the heap's `check_pending_ephemerons`. What differs: pairs in cells of any
//! length instead of one object each, nodes beside the heap instead of links inside, and nothing is
//! unlinked.)
//!
//! # Why no pair is missed
//! Four events, each sequentially consistent, and so in one order for all threads:
//! ```text
//! a marker with a pair (K, V)    a marker that reaches K    the one that turns checking on
//! L: link the pair into          M: mark K                  C: checking = true
//!    K's bucket                  R: checking? then look     P: for each pair linked so far:
//! T: K marked? then follow V        into the bucket            key marked? follow V
//! ```
//! If T comes after M, the first marker follows V. Otherwise L < T < M < R. If R reads true, it
//! finds the link. If it reads false, R < C < P, so P sees both the link and the mark, and follows
//! V. A pair that is linked only after P has gone over the list has C < L < M < R, so R reads true.
//! A pair may be followed twice; that marks nothing twice.
//!
//! A marker sets the bits of a bitmap's word together, so M is that instruction. R comes right
//! after it: if R reads true, the cells go to the queue, leaves too, and the marker looks into the
//! bucket when it takes a cell out.
//!
//! # Mutators
//! A pair that a mutator enters or changes while marking is on needs no look: the mutator holds key
//! and value, so both are marked in the end, and the barrier logs what it overwrites, value first
//! (`Mutator::write_pair`). So a node may name the pair's place instead of its words, and a marker
//! may read the key of one pair and the value of the next.
//!
//! # A full table
//! A pair that finds no room is followed as if both its words were strong, in this cycle. Nothing
//! dangles; too much may be kept. There is room for a pair for each cell of the heap, and for 2^26
//! at most.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::heap::GRANULE;
use crate::memory::MapError;
use crate::memory::chunked::Chunked;
use crate::memory::tables::{Mapped, Zeroed};

/// A pair that waits. All zero: the node is not written yet.
#[repr(C)]
pub(super) struct Node {
    /// The pair's address and kind: see [`super::WeakSlot`].
    weak_slot: AtomicUsize,
    /// The next node of the bucket, by index plus one.
    next: AtomicU32,
    /// The bucket, which the next cycle empties.
    bucket: AtomicU32,
}

// SAFETY: integers; zero is a value of each.
unsafe impl Zeroed for Node {}

/// Nodes of a piece when markers begin to look: some 20 us.
const PIECE: usize = 1024;

/// The most buckets: with as many pairs as there is room for, 16 share one. A small heap has no
/// more than one for each 128 bytes of its addresses.
const MOST_BUCKET_BITS: u32 = 22;

/// Bytes of the heap's addresses that a bucket must stand for.
const BYTES_A_BUCKET: usize = 128;

/// The fewest.
const LEAST_BUCKET_BITS: u32 = 10;

/// See the module.
pub(crate) struct Waiting {
    nodes: Chunked<Node>,
    buckets: Mapped<AtomicU32>,
    bucket_bits: AtomicU32,
    /// Nodes that were asked for, with and without success.
    used: AtomicUsize,
    checking: AtomicBool,
    /// The nodes that were there when checking began, and how many of them pieces have had.
    old: AtomicUsize,
    taken: AtomicUsize,
    /// Nodes that markers looked at, for tests and reports.
    steps: AtomicU64,
}

impl Waiting {
    /// Room for `pairs`, in a heap of `heap_bytes` of addresses.
    pub(super) fn new(pairs: usize, heap_bytes: usize) -> Result<Waiting, MapError> {
        let bits = (heap_bytes / BYTES_A_BUCKET).max(1).ilog2();
        let most = 1 << bits.clamp(LEAST_BUCKET_BITS, MOST_BUCKET_BITS);
        let buckets = Mapped::growing(most)?;
        buckets.make_writable(1 << LEAST_BUCKET_BITS)?;
        Ok(Waiting {
            nodes: Chunked::new(pairs.clamp(1 << 10, u32::MAX as usize - 1))?,
            buckets,
            bucket_bits: AtomicU32::new(LEAST_BUCKET_BITS),
            used: AtomicUsize::new(0),
            checking: AtomicBool::new(false),
            old: AtomicUsize::new(0),
            taken: AtomicUsize::new(0),
            steps: AtomicU64::new(0),
        })
    }

    /// Before stop 1, when no marker is at work: empties the table. `heap_bytes` decides the number
    /// of buckets: one for the least room that a pair and its key can take.
    pub(super) fn begin(&self, heap_bytes: u64) {
        // Relaxed throughout: no marker is at work.
        let (used, bits) = (self.len(), self.bucket_bits.load(Ordering::Relaxed));
        if used * 64 < 1 << bits {
            for node in (0..used).filter_map(|node| self.nodes.get(node)) {
                let bucket = node.bucket.load(Ordering::Relaxed) as usize;
                self.buckets[bucket].store(0, Ordering::Relaxed);
            }
        } else if used != 0 {
            // SAFETY: no marker is at work.
            unsafe { self.buckets.zero(1 << bits) };
        }
        // SAFETY: as above.
        unsafe { self.nodes.clear(used) };
        let bits = (heap_bytes / (2 * GRANULE as u64)).max(1).ilog2();
        let bits = bits.clamp(LEAST_BUCKET_BITS, self.buckets.len().ilog2());
        // Where the system refuses, more pairs share a bucket.
        let _ = self.buckets.make_writable(1 << bits);
        let bits = bits.min(self.buckets.writable().ilog2());
        self.bucket_bits.store(bits, Ordering::Relaxed);
        for count in [&self.used, &self.old, &self.taken] {
            count.store(0, Ordering::Relaxed);
        }
        self.checking.store(false, Ordering::Relaxed);
    }

    /// Pairs that wait, or have waited in this cycle.
    pub(super) fn len(&self) -> usize {
        self.used.load(Ordering::SeqCst).min(self.nodes.capacity())
    }

    /// Nodes that were looked at since the heap was made.
    #[cfg(test)]
    pub(super) fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Must a marker that marks a cell look for pairs that wait for it? (R)
    #[inline(always)]
    pub(crate) fn checking(&self) -> bool {
        // Ordering: SeqCst; a plain load on this architecture. See the module's argument.
        self.checking.load(Ordering::SeqCst)
    }

    fn bucket(&self, key: usize) -> usize {
        let bits = self.bucket_bits.load(Ordering::Relaxed);
        ((key / GRANULE) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> (64 - bits)
    }

    /// The pair waits for the cell whose offset in the address range is `key` (L). The caller tests
    /// the key's mark again afterwards (T). False: there is no room.
    #[must_use]
    pub(super) fn wait(&self, weak_slot: usize, key: usize) -> bool {
        let Some(index) = self.reserve() else {
            return false;
        };
        self.write(index, weak_slot, key);
        self.link(index);
        true
    }

    /// A node that [`reserve`](Self::reserve) has given out.
    fn node(&self, index: usize) -> &Node {
        self.nodes.get(index).expect("its memory was made with it")
    }

    // L, step by step.

    fn reserve(&self) -> Option<usize> {
        if self.used.load(Ordering::Relaxed) >= self.nodes.capacity() {
            return None;
        }
        let index = self.used.fetch_add(1, Ordering::SeqCst);
        // Where the system has no memory for the node, its place stays empty: see `at`.
        self.nodes.make(index).is_some().then_some(index)
    }

    fn write(&self, index: usize, weak_slot: usize, key: usize) {
        let node = self.node(index);
        node.bucket
            .store(self.bucket(key) as u32, Ordering::Relaxed);
        // SeqCst: P reads it by its number, without the link.
        node.weak_slot.store(weak_slot, Ordering::SeqCst);
    }

    fn link(&self, index: usize) {
        let node = self.node(index);
        let head = &self.buckets[node.bucket.load(Ordering::Relaxed) as usize];
        let mut first = head.load(Ordering::Relaxed);
        loop {
            node.next.store(first, Ordering::Relaxed);
            // Ordering: SeqCst as the module says; it also publishes the node to the reader in
            // `waiters`.
            match head.compare_exchange_weak(
                first,
                index as u32 + 1,
                Ordering::SeqCst,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => first = now,
            }
        }
    }

    /// All pairs that may wait for the cell at offset `key`: all pairs of its bucket.
    pub(super) fn waiters(&self, key: usize) -> impl Iterator<Item = usize> + '_ {
        // Ordering: SeqCst, the second half of R.
        let mut link = self.buckets[self.bucket(key)].load(Ordering::SeqCst);
        core::iter::from_fn(move || {
            let node = self.nodes.get((link as usize).checked_sub(1)?)?;
            link = node.next.load(Ordering::Relaxed);
            Some(node.weak_slot.load(Ordering::Relaxed))
        })
    }

    pub(super) fn count(&self, steps: u64) {
        self.steps.fetch_add(steps, Ordering::Relaxed);
    }

    /// For a marker that has run out of work: turns checking on if pairs wait (C), and hands out a
    /// piece of the pairs that waited before (P).
    pub(super) fn piece(&self) -> Option<Range<usize>> {
        if !self.checking() {
            if self.used.load(Ordering::SeqCst) == 0 {
                return None;
            }
            self.turn_on();
            self.count_old();
        }
        let old = self.old.load(Ordering::SeqCst);
        if self.taken.load(Ordering::Relaxed) >= old {
            return None;
        }
        let first = self.taken.fetch_add(PIECE, Ordering::Relaxed);
        (first < old).then(|| first..(first + PIECE).min(old))
    }

    // C, step by step.

    fn turn_on(&self) {
        self.checking.store(true, Ordering::SeqCst);
    }

    fn count_old(&self) {
        // Two markers may both get here; then the pairs between their counts are handled twice.
        self.old.fetch_max(self.len(), Ordering::SeqCst);
    }

    /// The pair of a node, or `None` if it has not been written yet: then its writer tests its key.
    pub(super) fn at(&self, node: usize) -> Option<usize> {
        let weak_slot = self.nodes.get(node)?.weak_slot.load(Ordering::SeqCst);
        (weak_slot != 0).then_some(weak_slot)
    }
}

/// Runs the protocol's steps in every possible order. Each step is one sequentially consistent
/// access, so no other executions exist. (Loom treats such accesses as weaker ones, and would
/// report faults that cannot happen.)
#[cfg(test)]
mod orders {
    use super::*;

    const KEY: usize = 48 * GRANULE;
    const SLOT: usize = 0x1000;

    /// The order of steps that a thread gets wrong.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fault {
        None,
        /// The waiter tests the key's mark before it links.
        LookFirst,
        /// The thread that marks reads `checking` before it marks.
        AskFirst,
        /// The thread that turns checking on counts the old pairs before.
        CountFirst,
    }

    struct Model<'a> {
        waiting: &'a Waiting,
        fault: Fault,
        index: Option<usize>,
        marked: bool,
        looks: bool,
        followed: bool,
    }

    impl Model<'_> {
        /// The steps of three threads: one with a pair, one that marks its key, one that turns
        /// checking on.
        const STEPS: [usize; 3] = [4, 3, 3];

        fn step(&mut self, thread: usize, step: usize) {
            let w = self.waiting;
            match (thread, step) {
                (0, 0) => self.index = w.reserve(),
                (0, 1) => w.write(self.index.expect("there is room"), SLOT, KEY),
                (0, 2) if self.fault == Fault::LookFirst => self.followed |= self.marked,
                (0, 2) => w.link(self.index.expect("there is room")),
                (0, _) if self.fault == Fault::LookFirst => {
                    w.link(self.index.expect("there is room"))
                }
                (0, _) => self.followed |= self.marked,
                (1, 0) if self.fault == Fault::AskFirst => self.looks = w.checking(),
                (1, 0) => self.marked = true,
                (1, 1) if self.fault == Fault::AskFirst => self.marked = true,
                (1, 1) => self.looks = w.checking(),
                (1, _) => {
                    self.followed |= self.looks && w.waiters(KEY).any(|weak_slot| weak_slot == SLOT)
                }
                (_, 0) if self.fault == Fault::CountFirst => w.count_old(),
                (_, 0) => w.turn_on(),
                (_, 1) if self.fault == Fault::CountFirst => w.turn_on(),
                (_, 1) => w.count_old(),
                (_, _) => self.go_over(),
            }
        }

        /// The work of each marker that has run out of cells.
        fn go_over(&mut self) {
            while let Some(piece) = self.waiting.piece() {
                for node in piece {
                    self.followed |= self.waiting.at(node) == Some(SLOT) && self.marked;
                }
            }
        }
    }

    /// Runs every order that continues `order`. Returns the number of orders, and of those that
    /// lost the pair.
    fn all(waiting: &Waiting, fault: Fault, done: [usize; 3], order: &mut Vec<usize>) -> [u64; 2] {
        let mut counts = [0, 0];
        let mut last = true;
        for thread in 0..3 {
            if done[thread] < Model::STEPS[thread] {
                last = false;
                let mut next = done;
                next[thread] += 1;
                order.push(thread);
                let [orders, lost] = all(waiting, fault, next, order);
                order.pop();
                counts = [counts[0] + orders, counts[1] + lost];
            }
        }
        if !last {
            return counts;
        }
        waiting.begin(0);
        let mut model = Model {
            waiting,
            fault,
            index: None,
            marked: false,
            looks: false,
            followed: false,
        };
        let mut steps = [0; 3];
        for &thread in order.iter() {
            model.step(thread, steps[thread]);
            steps[thread] += 1;
        }
        model.go_over();
        [1, u64::from(!model.followed)]
    }

    /// No order of the steps loses a pair, and each wrong order of two steps does.
    #[test]
    fn no_order_of_the_steps_loses_a_pair_and_each_step_has_its_place() {
        let waiting = Waiting::new(1 << 10, 1 << 20).unwrap();
        let run = |fault| all(&waiting, fault, [0; 3], &mut Vec::new());
        assert_eq!(run(Fault::None), [4200, 0]);
        for fault in [Fault::LookFirst, Fault::AskFirst, Fault::CountFirst] {
            let [orders, lost] = run(fault);
            assert!(orders == 4200 && lost > 0, "{fault:?} loses nothing");
        }
    }
}
