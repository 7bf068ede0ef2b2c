//! The queue of marked cells whose edges have not been followed yet: packets of items in mapped
//! memory.
//!
//! A marker fills and empties a packet of its own and exchanges only whole packets, so that many
//! markers can share the queue. All address space is mapped beforehand; a page is touched when it
//! is first used. A full queue loses nothing: the cell is marked, and the page that it begins in is
//! *flagged*. Once the queue is empty, a marker follows the marked cells of flagged pages again
//! (Boehm's collector calls it mark stack overflow). That ends, because each round marks a cell or
//! flags no page.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

use super::worker_state::WorkerState;
use crate::heap::{PAGE, Space};
use crate::marked::BYTES_A_CELL;
use crate::memory::MapError;
use crate::memory::os::Table;

/// Entries of a packet; with its head, it fills a page.
const ENTRIES: usize = 510;

#[repr(C)]
struct Packet {
    /// Index + 1 of the next packet in the stack that this one is in.
    next: AtomicU32,
    len: u32,
    /// Keeps the entries aligned to 16 bytes.
    _pad: u64,
    entries: [usize; ENTRIES],
}

/// A stack of packets by index (Treiber). The upper half of the word counts changes, so that an
/// exchange fails if a packet was taken and put back meanwhile.
#[derive(Default)]
struct Stack {
    head: AtomicU64,
}

impl Stack {
    fn push(&self, packets: &Table<Packet>, packet: u32) {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            // SAFETY: the packet exists and is the caller's; `next` is atomic, for a slow `pop` may
            // still read it.
            unsafe {
                (*packets.at(packet as usize))
                    .next
                    .store(head as u32, Ordering::Relaxed)
            };
            let new = ((head >> 32).wrapping_add(1) << 32) | (packet as u64 + 1);
            // Ordering: Release pairs with the Acquire in `pop`: it publishes the packet's entries.
            match self
                .head
                .compare_exchange_weak(head, new, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    fn pop(&self, packets: &Table<Packet>) -> Option<u32> {
        // Ordering: Acquire pairs with the Release in `push`.
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let packet = (head as u32).checked_sub(1)?;
            // SAFETY: a packet once used stays mapped; the count in the exchange below refuses a
            // stale `next`.
            let next = unsafe { (*packets.at(packet as usize)).next.load(Ordering::Relaxed) };
            let new = ((head >> 32).wrapping_add(1) << 32) | next as u64;
            match self
                .head
                .compare_exchange_weak(head, new, Ordering::Acquire, Ordering::Acquire)
            {
                Ok(_) => return Some(packet),
                Err(now) => head = now,
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed) as u32 == 0
    }
}

/// Grey cells, in mapped memory; shared by the markers of one heap.
pub struct MarkQueue {
    packets: Table<Packet>,
    /// Packets that have been used: the first `fresh` ones of the table.
    fresh: AtomicUsize,
    /// The most of them so far.
    peak: AtomicUsize,
    free: Stack,
    full: Stack,
    /// A bit for each page: a cell that begins there was marked but did not fit.
    flags: Table<AtomicU64>,
    flagged: AtomicBool,
    /// How often a cell did not fit, for reports and tests.
    overflows: AtomicU64,
    /// Bytes of large cells that were followed since `MarkQueue::take_large`.
    large: CachePadded<AtomicU64>,
    /// The workers' shared state.
    pub(super) workers: WorkerState,
}

/// Bytes of a queue that stay backed from one cycle to the next, of a heap with `heap` bytes in
/// use: 4 MiB, or what a random graph that fills the heap needs. Giving more back costs page faults
/// in each cycle, half of them in mutators: docs/experiments.md.
///
pub(crate) fn kept_bytes(heap: u64) -> usize {
    (heap / 64).max(4 << 20) as usize
}

impl MarkQueue {
    /// Maps a queue for `space` that holds about `cells` cells, and not less than a few packets of
    /// them.
    pub fn new(space: &Space, cells: usize) -> Result<MarkQueue, MapError> {
        Ok(MarkQueue {
            packets: Table::reserve(cells.div_ceil(ENTRIES).clamp(2, u32::MAX as usize - 1))?,
            fresh: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            free: Stack::default(),
            full: Stack::default(),
            flags: Table::new((space.len() / PAGE).div_ceil(64))?,
            flagged: AtomicBool::new(false),
            overflows: AtomicU64::new(0),
            large: CachePadded::default(),
            workers: WorkerState::default(),
        })
    }

    /// A marker has followed so many bytes of a large cell. It is called once for each part.
    pub(super) fn followed_large(&self, bytes: usize) {
        // Relaxed, here and below: for the pace.
        self.large.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The work of following large cells so far, in cells: a heap of a few large cells has as much
    /// to mark as a heap of many small ones.
    pub(crate) fn large_work(&self) -> u64 {
        if !seam::counts_large_cells() {
            return 0;
        }
        self.large.load(Ordering::Relaxed) / BYTES_A_CELL as u64
    }

    /// The same; counts anew.
    pub(crate) fn take_large_work(&self) -> u64 {
        let work = self.large_work();
        self.large.store(0, Ordering::Relaxed);
        work
    }

    /// Backs [`kept_bytes`] of such a heap from the start, if the system can.
    pub(crate) fn pre_touch(&self, heap: u64) {
        let packets = kept_bytes(heap) / size_of::<Packet>();
        let packets = packets.min(self.packets.len());
        if self.packets.make_writable(packets).is_ok() {
            self.packets.back(0, packets);
        }
    }

    /// How many marked cells did not fit so far. Each was followed all the same.
    #[cfg(any(test, feature = "internals"))]
    pub fn overflows(&self) -> u64 {
        self.overflows.load(Ordering::Relaxed)
    }

    /// Is there no packet of grey cells, and no flagged page? Markers may still have packets.
    pub fn is_empty(&self) -> bool {
        self.has_no_packet() && !self.has_flags()
    }

    pub(crate) fn has_no_packet(&self) -> bool {
        self.full.is_empty()
    }

    /// Did a cell not fit since [`MarkQueue::take_flags`] last took all that did not?
    pub(crate) fn has_flags(&self) -> bool {
        // Ordering: Relaxed. The caller has made the flags, or has synchronised with their makers.
        self.flagged.load(Ordering::Relaxed)
    }

    /// The most bytes that its packets ever took.
    pub(crate) fn peak_bytes(&self) -> u64 {
        // Ordering: Relaxed. A figure for reports.
        let now = self.fresh.load(Ordering::Relaxed);
        (self.peak.load(Ordering::Relaxed).max(now) * size_of::<Packet>()) as u64
    }

    /// Gives the memory of packets back to the system, but for the first `keep` bytes. Not in a
    /// stop. A stop that touches a page which has gone back takes twice as long.
    ///
    /// # Safety
    /// No marker of this queue exists.
    pub unsafe fn trim(&self, keep: usize) {
        let used = self.fresh.load(Ordering::Relaxed);
        self.peak.fetch_max(used, Ordering::Relaxed);
        if used * size_of::<Packet>() <= keep || !self.full.is_empty() {
            return;
        }
        self.free.head.store(0, Ordering::Relaxed);
        self.fresh.store(0, Ordering::Relaxed);
        let kept = keep / size_of::<Packet>();
        // SAFETY: no packet is in use: there is no marker, and the stacks are empty. Old contents
        // do no harm: a packet's `next` and `len` are always set before they are read.
        unsafe { self.packets.discard(kept, used - kept) };
    }

    /// Empties the queue.
    ///
    /// # Safety
    /// No marker of this queue exists, or its thread does not exist in this process.
    pub(crate) unsafe fn forget(&self) {
        self.full.head.store(0, Ordering::Relaxed);
        self.free.head.store(0, Ordering::Relaxed);
        self.fresh.store(0, Ordering::Relaxed);
        self.take_flags(|_| ());
        self.workers.forget();
    }

    fn take_free(&self) -> Option<u32> {
        if let Some(packet) = self.free.pop(&self.packets) {
            return Some(packet);
        }
        let fresh = self
            .fresh
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < self.packets.len()).then_some(n + 1)
            })
            .ok()?;
        // Where the system has no memory, the packet stays unused until the queue is trimmed.
        let is_there =
            fresh < self.packets.writable() || self.packets.make_writable(fresh + 1).is_ok();
        is_there.then_some(fresh as u32)
    }

    /// A marked cell that begins in `page` did not fit.
    #[cold]
    pub(crate) fn flag(&self, page: usize) {
        self.overflows.fetch_add(1, Ordering::Relaxed);
        // SAFETY: pages of the address range; zeroed memory is a valid AtomicU64.
        let word = unsafe { &*self.flags.at(page / 64) };
        word.fetch_or(1 << (page % 64), Ordering::Relaxed);
        // Ordering: Release pairs with the Acquire in `take_flags`: a marker that sees the flag
        // sees the bit, and the cell's mark.
        self.flagged.store(true, Ordering::Release);
    }

    /// Takes all flagged pages, if there are any; `f` is called for each.
    pub(crate) fn take_flags(&self, mut f: impl FnMut(usize)) -> bool {
        if !self.flagged.swap(false, Ordering::Acquire) {
            return false;
        }
        for index in 0..self.flags.len() {
            // SAFETY: as in `flag`.
            let word = unsafe { &*self.flags.at(index) };
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::Relaxed);
            while bits != 0 {
                f(index * 64 + bits.trailing_zeros() as usize);
                bits &= bits - 1;
            }
        }
        true
    }
}

/// A marker's local queue: the packet that it fills and empties.
pub(crate) struct LocalQueue<'a> {
    queue: &'a MarkQueue,
    /// The packet's entries: where they begin, where the next one goes, and where they end. All
    /// null: no packet.
    first: *mut usize,
    next: *mut usize,
    end: *mut usize,
    index: u32,
}

impl<'a> LocalQueue<'a> {
    pub(crate) fn new(queue: &'a MarkQueue) -> LocalQueue<'a> {
        let none = std::ptr::null_mut();
        LocalQueue {
            queue,
            first: none,
            next: none,
            end: none,
            index: 0,
        }
    }

    pub(crate) fn queue(&self) -> &'a MarkQueue {
        self.queue
    }

    /// Takes a packet and touches its memory. The collector calls it before a stop, since the first
    /// touch of a page costs more than a shallow stack's scan.
    pub(crate) fn make_ready(&mut self) {
        if self.first.is_null() && self.next_free() {
            // SAFETY: the packet is this marker's alone, and has room for an entry; it is a page.
            unsafe { self.next.write_volatile(0) };
        }
    }

    /// Adds an entry. False: there is no room for it.
    #[inline(always)]
    #[must_use]
    pub(crate) fn push(&mut self, entry: usize) -> bool {
        if self.next == self.end && !self.next_free() {
            return false;
        }
        // SAFETY: `next` is below `end`, inside the packet that is this marker's alone.
        unsafe {
            self.next.write(entry);
            self.next = self.next.add(1);
        }
        true
    }

    /// Takes the entry that was added last, or one of a packet from the shared queue.
    #[inline(always)]
    pub(crate) fn pop(&mut self) -> Option<usize> {
        if self.next == self.first && !self.next_full() {
            return None;
        }
        // SAFETY: `next` is above `first`, inside the packet that is this marker's alone.
        unsafe {
            self.next = self.next.sub(1);
            Some(self.next.read())
        }
    }

    /// Puts the packet into the shared queue.
    pub(crate) fn publish(&mut self) {
        if !self.first.is_null() {
            let empty = self.next == self.first;
            self.put_back(if empty {
                &self.queue.free
            } else {
                &self.queue.full
            });
            let none = std::ptr::null_mut();
            (self.first, self.next, self.end) = (none, none, none);
        }
    }

    /// Puts the older half of the packet into the shared queue: in a tree, the cells nearest to the
    /// root. For a marker that never fills a packet while a worker has nothing to do.
    #[cold]
    pub(crate) fn share(&mut self) {
        // SAFETY: both pointers lie in the packet, or both are null.
        let half = unsafe { self.next.offset_from(self.first) } as usize / 2;
        if half == 0 {
            return;
        }
        let Some(free) = self.queue.take_free() else {
            return;
        };
        let packet = self.queue.packets.at(free as usize);
        // SAFETY: the free packet is this marker's alone, and so is its own packet, which has more
        // than `half` entries.
        unsafe {
            let entries: *mut usize = (&raw mut (*packet).entries).cast();
            entries.copy_from_nonoverlapping(self.first, half);
            (*packet).len = half as u32;
            let left = self.next.offset_from(self.first) as usize - half;
            self.first.copy_from(self.first.add(half), left);
            self.next = self.first.add(left);
        }
        self.queue.full.push(&self.queue.packets, free);
        self.queue.workers.call();
    }

    #[cold]
    #[inline(never)]
    fn next_free(&mut self) -> bool {
        let Some(free) = self.queue.take_free() else {
            return false;
        };
        if !self.first.is_null() {
            self.put_back(&self.queue.full);
            self.queue.workers.call();
        }
        self.hold(free, 0);
        true
    }

    #[cold]
    #[inline(never)]
    fn next_full(&mut self) -> bool {
        let Some(full) = self.queue.full.pop(&self.queue.packets) else {
            return false;
        };
        if !self.first.is_null() {
            self.put_back(&self.queue.free);
        }
        // SAFETY: the packet was popped, so it is this marker's alone.
        let len = unsafe { (*self.queue.packets.at(full as usize)).len };
        self.hold(full, len as usize);
        true
    }

    fn put_back(&self, stack: &Stack) {
        // SAFETY: the packet is this marker's alone, and both pointers lie in it.
        unsafe {
            (*self.queue.packets.at(self.index as usize)).len =
                self.next.offset_from(self.first) as u32;
        }
        stack.push(&self.queue.packets, self.index);
    }

    fn hold(&mut self, index: u32, len: usize) {
        self.index = index;
        // SAFETY: the packet is in the table, and this marker's alone; `len` is at most ENTRIES.
        unsafe {
            self.first = (&raw mut (*self.queue.packets.at(index as usize)).entries).cast();
            self.next = self.first.add(len);
            self.end = self.first.add(ENTRIES);
        }
    }
}

impl Drop for LocalQueue<'_> {
    fn drop(&mut self) {
        self.publish();
    }
}

mod seam {
    use crate::fault::Fault;

    pub(super) fn counts_large_cells() -> bool {
        !Fault::LargeUnpaced.planted()
    }
}

#[cfg(test)]
mod tests;
