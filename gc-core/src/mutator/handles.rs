//! A mutator's handle table: where the cells of its open scopes are rooted.
//!
//! ```text
//! segment 0, 64 KiB:  [ chunk of a | chunk of b | hole | chunk of a |          ]     the table: a stack of chunks, in segments that double in size
//! segment 1, 128 KiB: ...                                           ^ top
//!
//! chunk:  [ header | slot | slot | slot ]         4 words; a scope's second chunk has 16, and all others 64
//! ```
//! Each scope has chunks of its own, so that an outer scope may be used while an inner one is open,
//! and scopes may end in any order (those of coroutines do). A scope takes its first chunk with its
//! first handle. As a rule scopes end innermost first, and the stack shrinks by what they had; a
//! chunk that others lie above becomes a hole, which the next scope that wants one of its size
//! takes. When all scopes have ended, the stack is empty.
//!
//! Rejected: one stack of handles with a mark per scope. A handle that the outer scope makes while
//! an inner one is open would lie above the inner one's mark, and die with it. And chunks of one
//! size: a scope in each level of a recursion would cost 512 bytes for the handle or two that it
//! has.
//!
//! # Who reads it
//! The owner writes the table; the collector reads it *beside* the owner. In stop 1 it notes how
//! high the stack is ([`Handles::snapshot`]), and no more. A slot below that does not change until
//! its scope ends: what the owner pushes later it has got from the snapshot's graph, or it was born
//! black, and need not be seen. The end of a scope while the table is still to be read hands each
//! of its handles to the owner's log, as the barrier does an edge that is overwritten. So the stop
//! costs the same whatever the table holds.
//!
//! Every word is a cell's address, zero, or odd: a header, or the links of a hole. So a reader
//! needs no structure to read by. Slots are zero from a chunk's beginning until they are pushed, so
//! no word of an earlier scope is taken for a handle.
//!
//! # Memory
//! There is no bound but the system's. In each cycle's last stop the collector lowers the height up
//! to which the owner may go without asking ([`Handles::lower`]); what lies above it is free,
//! and goes back to the system after the stop ([`Handles::trim`]).

use core::cell::{Cell, UnsafeCell};
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering, compiler_fence};

use gc_preempt::Mutex;

use crate::fault::{Fault, planted};
use crate::memory::MapError;
use crate::memory::os::Map;

/// Words of a chunk, by its size's number. The first holds what most scopes make, at 8 bytes of
/// header.
const SIZES: [usize; 3] = [4, 16, 64];
/// Bytes of the first segment; each has twice as many as the one before.
const FIRST: usize = 64 << 10;
/// Together a tebibyte and more: as good as no bound.
const SEGMENTS: usize = 25;
/// Bytes by which the owner's bound rises when it asks.
const STEP: usize = 256 << 10;
/// Bytes above the top that are kept: they are wanted again soon.
const SLACK: usize = 32 << 10;
const PAGE: usize = 4096;
/// Chunks given back in one piece, between two places at which a stop can come in, and chunks whose
/// handles are logged as well.
const PIECE: usize = 64;
const LOGGED_PIECE: usize = 4;

const WORD: usize = size_of::<usize>();

/// What the first word of a chunk says. Odd, as no cell's address is.
///
/// ```text
/// 63        20   7..5      4..2       1      0
/// [ link / 8 |  below+1  |  size  |  free  | 1 ]
/// ```
#[derive(Clone, Copy)]
struct Header(usize);

impl Header {
    /// Of a scope's chunk: `below` is the size of the chunk under it, or there is none in its
    /// segment; `link` is the address of the scope's chunk before.
    fn new(size: usize, below: Option<usize>, link: usize) -> Self {
        Self(1 | size << 2 | below.map_or(0, |below| below + 1) << 5 | (link / WORD) << 20)
    }

    fn free(self) -> Self {
        Self(self.0 | 2)
    }

    fn is_free(self) -> bool {
        self.0 & 2 != 0
    }

    fn size(self) -> usize {
        self.0 >> 2 & 7
    }

    fn below(self) -> Option<usize> {
        (self.0 >> 5 & 7).checked_sub(1)
    }

    fn link(self) -> usize {
        self.0 >> 20 << 3
    }
}

/// A stretch of the table. Addresses; zero: not mapped.
#[derive(Default)]
struct Segment {
    base: AtomicUsize,
    /// How far the owner may go without taking the lock. The collector lowers it in stops; the
    /// owner raises it under the lock.
    limit: AtomicUsize,
    /// Where the memory ends that was touched since it was given back. Under the lock.
    touched: AtomicUsize,
    /// Where the chunks ended when the owner went on to the next segment, and the last one's size
    /// plus one. For the owner, and for the reader of the segments below the top's.
    left_at: AtomicUsize,
    left_below: Cell<usize>,
}

fn segment_bytes(segment: usize) -> usize {
    FIRST << segment
}

/// One mutator's handles.
pub(crate) struct Handles {
    /// Where the next chunk goes. Relaxed, here and in this whole file where nothing else is said:
    /// one thread writes, and its stop orders the collector's reads.
    top: AtomicUsize,
    /// The segment that the top is in.
    current: AtomicUsize,
    /// The collector has yet to read what the table held at stop 1: the end of a scope logs it.
    unread: AtomicBool,
    /// What it has to read: up to there.
    snapshot: [AtomicUsize; 2],
    /// The size of the chunk under the top, plus one; 0: there is none in the segment. For the
    /// owner, as what follows.
    below: Cell<usize>,
    /// The first hole of each size; 0: none. A hole's second and third word link it to the next and
    /// to the one before.
    holes: [Cell<usize>; SIZES.len()],
    segments: [Segment; SEGMENTS],
    /// Memory of the segments. Changed under the lock.
    maps: UnsafeCell<[Option<Map>; SEGMENTS]>,
    /// Held by the owner while it goes beyond a limit, under `no_preempt`, and by the collector
    /// while it gives memory back, which happens under the lock of the heap's records: so a fork
    /// finds it free.
    growing: Mutex<()>,
}

/// A word of the table.
///
/// # Safety
/// `address` is one of a mapped segment.
unsafe fn word<'a>(address: usize) -> &'a AtomicUsize {
    // SAFETY: by the contract; mapped memory is aligned and initialised, and the owner of the
    // reference does not outlive the table.
    unsafe { &*core::ptr::with_exposed_provenance::<AtomicUsize>(address) }
}

impl Handles {
    pub(crate) fn new() -> Result<Self, MapError> {
        let handles = Self {
            top: AtomicUsize::new(0),
            current: AtomicUsize::new(0),
            unread: AtomicBool::new(false),
            snapshot: Default::default(),
            below: Cell::new(0),
            holes: Default::default(),
            segments: Default::default(),
            maps: UnsafeCell::new([const { None }; SEGMENTS]),
            growing: Mutex::new(()),
        };
        handles.map(0)?;
        let base = handles.segments[0].base.load(Ordering::Relaxed);
        handles.top.store(base, Ordering::Relaxed);
        Ok(handles)
    }

    /// Maps a segment. Under the lock, or alone.
    fn map(&self, at: usize) -> Result<(), MapError> {
        let map = Map::new(segment_bytes(at))?;
        let base = map.base().expose_provenance();
        let segment = &self.segments[at];
        let limit = base + segment_bytes(at).min(STEP);
        segment.base.store(base, Ordering::Relaxed);
        segment.limit.store(limit, Ordering::Relaxed);
        segment.touched.store(limit, Ordering::Relaxed);
        // SAFETY: under the lock, or alone.
        unsafe { (*self.maps.get())[at] = Some(map) };
        Ok(())
    }

    // ---- the owner's side, under `no_preempt` ---------------------------------------------------

    /// A chunk for a scope whose last one is at `link` (0: none): all slots are zero.
    fn take(&self, size: usize, link: usize) -> Result<usize, MapError> {
        let hole = self.holes[size].get();
        if hole != 0 {
            self.fill_hole(size);
            // SAFETY: a hole is a chunk of the table.
            unsafe {
                let below = Header(word(hole).load(Ordering::Relaxed)).below();
                word(hole).store(Header::new(size, below, link).0, Ordering::Relaxed);
                for slot in 1..3 {
                    word(hole + slot * WORD).store(0, Ordering::Relaxed);
                }
            }
            return Ok(hole);
        }
        let bytes = SIZES[size] * WORD;
        let segment = &self.segments[self.current.load(Ordering::Relaxed)];
        if self.top.load(Ordering::Relaxed) + bytes > segment.limit.load(Ordering::Relaxed) {
            self.raise(bytes)?;
        }
        let chunk = self.top.load(Ordering::Relaxed);
        // SAFETY: below the limit of a mapped segment, and above all chunks: the owner's.
        unsafe {
            let header = Header::new(size, self.below.get().checked_sub(1), link);
            word(chunk).store(header.0, Ordering::Relaxed);
            if size == 0 {
                // Three stores: `memset` takes longer than all else here, and most scopes have this
                // chunk alone.
                for slot in 1..SIZES[0] {
                    word(chunk + slot * WORD).store(0, Ordering::Relaxed);
                }
            } else {
                let slots = core::ptr::with_exposed_provenance_mut::<u8>(chunk + WORD);
                slots.write_bytes(0, bytes - WORD);
            }
        }
        self.below.set(size + 1);
        self.top.store(chunk + bytes, Ordering::Relaxed);
        Ok(chunk)
    }

    /// Makes room for `bytes` bytes at the top.
    #[cold]
    fn raise(&self, bytes: usize) -> Result<(), MapError> {
        let _growing = self.growing.lock();
        let (at, top) = (
            self.current.load(Ordering::Relaxed),
            self.top.load(Ordering::Relaxed),
        );
        let segment = &self.segments[at];
        let end = segment.base.load(Ordering::Relaxed) + segment_bytes(at);
        if top + bytes <= end {
            let limit = (segment.limit.load(Ordering::Relaxed).max(top) + STEP).min(end);
            segment.limit.store(limit, Ordering::Relaxed);
            segment.touched.fetch_max(limit, Ordering::Relaxed);
            return Ok(());
        }
        let full = MapError {
            bytes: segment_bytes(at),
            errno: libc::ENOMEM,
        };
        let next = self.segments.get(at + 1).ok_or(full)?;
        if next.base.load(Ordering::Relaxed) == 0 {
            self.map(at + 1)?;
        }
        segment.left_at.store(top, Ordering::Relaxed);
        segment.left_below.set(self.below.replace(0));
        let base = next.base.load(Ordering::Relaxed);
        if next.limit.load(Ordering::Relaxed) < base + STEP {
            let limit = base + STEP.min(segment_bytes(at + 1));
            next.limit.store(limit, Ordering::Relaxed);
            next.touched.fetch_max(limit, Ordering::Relaxed);
        }
        self.top.store(base, Ordering::Relaxed);
        self.current.store(at + 1, Ordering::Relaxed);
        Ok(())
    }

    /// Gives one chunk back; the one before it of its scope, or 0.
    fn give(&self, chunk: usize) -> usize {
        // SAFETY: a scope's chunk, of the table.
        let header = Header(unsafe { word(chunk) }.load(Ordering::Relaxed));
        let bytes = SIZES[header.size()] * WORD;
        if chunk + bytes == self.top.load(Ordering::Relaxed) {
            self.pop(chunk, header);
        } else {
            self.make_hole(chunk, header);
        }
        header.link()
    }

    /// Lowers the top to `chunk`, which lies under it, and on to the last chunk that is none of the
    /// holes.
    fn pop(&self, mut chunk: usize, mut header: Header) {
        loop {
            let Some(below) = header.below() else {
                let at = self.current.load(Ordering::Relaxed);
                let Some(previous) = at.checked_sub(1) else {
                    self.set_top(chunk, 0);
                    return;
                };
                let segment = &self.segments[previous];
                self.current.store(previous, Ordering::Relaxed);
                self.set_top(
                    segment.left_at.load(Ordering::Relaxed),
                    segment.left_below.get(),
                );
                let Some(last) = segment.left_below.get().checked_sub(1) else {
                    return;
                };
                (chunk, header) = self.under(segment.left_at.load(Ordering::Relaxed), last);
                if !header.is_free() {
                    return;
                }
                self.unlink_hole(chunk, header);
                continue;
            };
            self.set_top(chunk, below + 1);
            (chunk, header) = self.under(chunk, below);
            if !header.is_free() {
                return;
            }
            self.unlink_hole(chunk, header);
        }
    }

    fn set_top(&self, top: usize, below: usize) {
        self.top.store(top, Ordering::Relaxed);
        self.below.set(below);
    }

    /// The chunk of that size that ends at `end`.
    fn under(&self, end: usize, size: usize) -> (usize, Header) {
        let chunk = end - SIZES[size] * WORD;
        // SAFETY: a chunk of the table: its neighbour, or its segment, says so.
        (
            chunk,
            Header(unsafe { word(chunk) }.load(Ordering::Relaxed)),
        )
    }

    fn make_hole(&self, chunk: usize, header: Header) {
        let size = header.size();
        let next = self.holes[size].replace(chunk);
        // SAFETY: a scope's chunk that has ended, and a hole.
        unsafe {
            word(chunk).store(header.free().0, Ordering::Relaxed);
            for slot in 3..SIZES[size] {
                word(chunk + slot * WORD).store(0, Ordering::Relaxed);
            }
            word(chunk + WORD).store(next | 1, Ordering::Relaxed);
            word(chunk + 2 * WORD).store(1, Ordering::Relaxed);
            if next != 0 {
                word(next + 2 * WORD).store(chunk | 1, Ordering::Relaxed);
            }
        }
    }

    /// Takes the first hole of a size out of the list.
    fn fill_hole(&self, size: usize) {
        let hole = self.holes[size].get();
        // SAFETY: a hole of the table.
        self.unlink_hole(hole, Header(unsafe { word(hole) }.load(Ordering::Relaxed)));
    }

    fn unlink_hole(&self, hole: usize, header: Header) {
        // SAFETY: holes of the table, linked by `make_hole`.
        unsafe {
            let next = word(hole + WORD).load(Ordering::Relaxed) & !1;
            let previous = word(hole + 2 * WORD).load(Ordering::Relaxed) & !1;
            match previous {
                0 => self.holes[header.size()].set(next),
                previous => word(previous + WORD).store(next | 1, Ordering::Relaxed),
            }
            if next != 0 {
                word(next + 2 * WORD).store(previous | 1, Ordering::Relaxed);
            }
        }
    }

    /// Must the end of a scope log its handles?
    #[inline]
    fn is_unread(&self) -> bool {
        // Acquire pairs with the Release of `all_read`: the collector has read the slots before
        // they are used again.
        self.unread.load(Ordering::Acquire) && !planted(Fault::HandlesUnlogged)
    }

    /// For an owner that detaches: calls `log` with what the collector may not have read yet.
    pub(crate) fn retire(&self, log: impl FnMut(usize)) {
        if self.is_unread() {
            self.note(false);
            self.for_each(log);
            self.unread.store(false, Ordering::Relaxed);
        }
    }

    // ---- the collector's side -------------------------------------------------------------------

    /// In stop 1: what the table holds now is to be read. `false`: nothing.
    pub(crate) fn begin_reading(&self) -> bool {
        self.note(true)
    }

    fn note(&self, unread: bool) -> bool {
        let (current, top) = (
            self.current.load(Ordering::Relaxed),
            self.top.load(Ordering::Relaxed),
        );
        let is_empty = current == 0 && top == self.segments[0].base.load(Ordering::Relaxed);
        self.snapshot[0].store(current, Ordering::Relaxed);
        self.snapshot[1].store(top, Ordering::Relaxed);
        if unread && !is_empty {
            self.unread.store(true, Ordering::Relaxed);
        }
        !is_empty
    }

    /// Bytes that are to be read, at most.
    pub(crate) fn bytes_to_read(&self) -> usize {
        let [current, top] = [0, 1].map(|at| self.snapshot[at].load(Ordering::Relaxed));
        top - self.segments[current].base.load(Ordering::Relaxed) + segment_bytes(current) - FIRST
    }

    /// Beside the owner: calls `f` with each handle in `most` bytes of the snapshot from `from` on
    /// (at first 0), and others that were pushed since. Where to go on.
    pub(crate) fn read_piece(
        &self,
        from: usize,
        most: usize,
        mut f: impl FnMut(usize),
    ) -> Option<usize> {
        let [last, top] = [0, 1].map(|at| self.snapshot[at].load(Ordering::Relaxed));
        // Positions count the bytes of all segments before.
        let segment = (0..last)
            .find(|at| from < segment_bytes(at + 1) - FIRST)
            .unwrap_or(last);
        let before = segment_bytes(segment) - FIRST;
        let base = self.segments[segment].base.load(Ordering::Relaxed);
        let end = match segment {
            at if at == last => top,
            // It may be another by now: the chunks beyond are those of scopes that have ended, and
            // logged.
            at => self.segments[at].left_at.load(Ordering::Relaxed),
        };
        let first = base + (from - before);
        let stop = end.min(first + most);
        for address in (first..stop).step_by(WORD) {
            // SAFETY: words of a segment, which stays mapped until `trim`, which does not run while
            // there is something to read.
            let handle = unsafe { word(address) }.load(Ordering::Relaxed);
            if handle != 0 && handle & 1 == 0 {
                f(handle);
            }
        }
        match stop < end {
            true => Some(before + (stop - base)),
            false => (segment < last).then(|| segment_bytes(segment + 1) - FIRST),
        }
    }

    /// All of the snapshot has been read: scopes end without logging again.
    pub(crate) fn all_read(&self) {
        // Release pairs with the Acquire of `is_unread`.
        self.unread.store(false, Ordering::Release);
    }

    /// Whether the snapshot of this table is still to be read.
    pub(crate) fn is_to_be_read(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }

    /// Calls `f` with each handle of the snapshot. For the owner, or the collector.
    pub(crate) fn for_each(&self, mut f: impl FnMut(usize)) {
        let mut from = Some(0);
        while let Some(at) = from {
            from = self.read_piece(at, usize::MAX / 2, &mut f);
        }
    }

    /// In a stop: takes the memory well above the top from the owner. `true`: there is some, so
    /// [`trim`](Self::trim) is to come.
    pub(crate) fn lower(&self) -> bool {
        let current = self.current.load(Ordering::Relaxed);
        let segment = &self.segments[current];
        let kept = self.top.load(Ordering::Relaxed).next_multiple_of(PAGE) + SLACK;
        if segment.limit.load(Ordering::Relaxed) > kept {
            segment.limit.store(kept, Ordering::Relaxed);
        }
        let above = self.segments.get(current + 1);
        segment.touched.load(Ordering::Relaxed) > segment.limit.load(Ordering::Relaxed)
            || above.is_some_and(|above| above.base.load(Ordering::Relaxed) != 0)
    }

    /// Gives the memory above the owner's bound back. Outside of stops, when nothing is to be read;
    /// under the lock of the heap's records.
    pub(crate) fn trim(&self) {
        let _growing = self.growing.lock();
        // The owner leaves a segment upwards under this lock only.
        let current = self.current.load(Ordering::Relaxed);
        let segment = &self.segments[current];
        let limit = segment.limit.load(Ordering::Relaxed);
        let touched = segment.touched.load(Ordering::Relaxed);
        // SAFETY: under the lock.
        let maps = unsafe { &mut *self.maps.get() };
        if touched > limit
            && let Some(map) = &maps[current]
        {
            let Range { start, end } = limit.next_multiple_of(PAGE)..touched;
            // SAFETY: whole pages of the mapping, beyond the owner's bound, which it raises under
            // this lock.
            if start < end && unsafe { map.discard(start - map.base() as usize, end - start) } {
                segment.touched.store(limit, Ordering::Relaxed);
            }
        }
        for (above, map) in self.segments.iter().zip(maps.iter_mut()).skip(current + 1) {
            above.base.store(0, Ordering::Relaxed);
            *map = None;
        }
    }
}

/// One scope's handles. Who makes it ends it, see [`Chain::end`].
pub(crate) struct Chain<'m> {
    handles: &'m Handles,
    thread: &'m gc_preempt::Mutator,
    /// Where the next handle goes, and the end of the chunk that is being filled. At first both
    /// null.
    cursor: Cell<*const AtomicUsize>,
    limit: Cell<*const AtomicUsize>,
    /// That chunk; 0: none.
    chunk: Cell<usize>,
}

impl<'m> Chain<'m> {
    #[inline]
    pub(crate) fn new(handles: &'m Handles, thread: &'m gc_preempt::Mutator) -> Self {
        Self {
            handles,
            thread,
            cursor: Cell::new(core::ptr::null()),
            limit: Cell::new(core::ptr::null()),
            chunk: Cell::new(0),
        }
    }

    /// Roots a cell until the chain ends.
    ///
    /// # Errors
    /// The system refused memory, and nothing has been rooted.
    #[inline]
    pub(crate) fn push(&self, address: usize) -> Result<(), MapError> {
        let slot = self.cursor.get();
        if slot == self.limit.get() {
            return self.grow(address);
        }
        // SAFETY: a slot of the chain's last chunk, in a table that outlives the chain.
        unsafe { (*slot).store(address, Ordering::Relaxed) };
        // From here on the slot has it, as this thread's stops see it; until then it is in a
        // register.
        compiler_fence(Ordering::SeqCst);
        self.cursor.set(slot.wrapping_add(1));
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn grow(&self, address: usize) -> Result<(), MapError> {
        let last = self.chunk.get();
        let size = match last {
            0 => 0,
            // SAFETY: the chain's own chunk.
            chunk => Header(unsafe { word(chunk) }.load(Ordering::Relaxed)).size() + 1,
        };
        let size = size.min(SIZES.len() - 1);
        let chunk = self.thread.no_preempt(|| self.handles.take(size, last))?;
        self.chunk.set(chunk);
        let pointer = core::ptr::with_exposed_provenance::<AtomicUsize>(chunk);
        self.limit.set(pointer.wrapping_add(SIZES[size]));
        self.cursor.set(pointer.wrapping_add(1));
        self.push(address)
    }

    /// Ends the scope: its handles root nothing any more. Hands them to `log` where the collector
    /// has not read them yet.
    #[inline]
    pub(crate) fn end(&self, log: impl FnMut(usize)) {
        if self.chunk.get() != 0 {
            self.give_all(log);
        }
    }

    #[inline]
    fn give_all(&self, mut log: impl FnMut(usize)) {
        let mut chunk = self.chunk.replace(0);
        while chunk != 0 {
            self.thread.no_preempt(|| {
                let is_unread = self.handles.is_unread();
                for _ in 0..if is_unread { LOGGED_PIECE } else { PIECE } {
                    if chunk == 0 {
                        break; // most scopes have one chunk
                    }
                    if is_unread {
                        log_chunk(chunk, &mut log);
                    }
                    chunk = self.handles.give(chunk);
                }
            });
        }
    }
}

#[cold]
fn log_chunk(chunk: usize, log: &mut impl FnMut(usize)) {
    // SAFETY: a scope's chunk, of the table.
    let size = Header(unsafe { word(chunk) }.load(Ordering::Relaxed)).size();
    for slot in 1..SIZES[size] {
        // SAFETY: a slot of it.
        let handle = unsafe { word(chunk + slot * WORD) }.load(Ordering::Relaxed);
        if handle != 0 {
            log(handle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a collector that begins to read now finds.
    fn all(handles: &Handles) -> Vec<usize> {
        handles.begin_reading();
        let mut all = Vec::new();
        let mut from = Some(0);
        while let Some(at) = from {
            from = handles.read_piece(at, 4096, |word| all.push(word));
        }
        handles.all_read();
        all.sort_unstable();
        all
    }

    fn with_table(f: impl FnOnce(&gc_preempt::Mutator, &Handles)) {
        let world = gc_preempt::World::new(gc_preempt::Config::default()).unwrap();
        let thread = world.attach(core::ptr::null_mut()).unwrap();
        f(&thread, &Handles::new().unwrap());
    }

    fn push(chain: &Chain<'_>, handle: usize) {
        chain.push(handle * 16).unwrap();
    }

    fn end(chain: Chain<'_>) {
        chain.end(|word| panic!("{word:#x} is logged though nothing is to be read"));
    }

    #[test]
    fn a_scope_s_handles_are_read_until_it_ends_in_whatever_order() {
        with_table(|thread, handles| {
            let outer = Chain::new(handles, thread);
            push(&outer, 1);
            let inner = Chain::new(handles, thread);
            (0..1000).for_each(|i| push(&inner, 1000 + i));
            // Made while the inner scope is open, and alive after it; enough of them to need chunks
            // above the inner one's.
            (0..200).for_each(|i| push(&outer, 100 + i));
            assert_eq!(all(handles).len(), 1201);
            end(inner);
            let kept: Vec<usize> = [1].into_iter().chain(100..300).map(|i| i * 16).collect();
            assert_eq!(all(handles), kept);
            let high = handles.top.load(Ordering::Relaxed);
            let again = Chain::new(handles, thread);
            (0..1000).for_each(|i| push(&again, 1 + i));
            assert_eq!(
                handles.top.load(Ordering::Relaxed),
                high,
                "holes are filled"
            );
            end(outer);
            assert_eq!(all(handles).len(), 1000);
            end(again);
            assert!(all(handles).is_empty());
            assert!(!handles.begin_reading(), "the stack is empty");
        });
    }

    #[test]
    fn scopes_that_come_and_go_at_random_keep_what_they_hold_and_leave_nothing() {
        with_table(|thread, handles| {
            let mut open: Vec<(Chain<'_>, Vec<usize>)> = Vec::new();
            let (mut random, mut next) = (11u64, 1);
            for step in 0..40_000 {
                random = random
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                let choice = (random >> 33) as usize;
                match choice % 8 {
                    0 => open.push((Chain::new(handles, thread), Vec::new())),
                    1 if !open.is_empty() => {
                        // Innermost first as a rule.
                        let at = if choice.is_multiple_of(5) {
                            choice % open.len()
                        } else {
                            open.len() - 1
                        };
                        end(open.remove(at).0);
                    }
                    _ if !open.is_empty() => {
                        let at = choice / 64 % open.len();
                        for _ in 0..choice / 8 % 40 {
                            push(&open[at].0, next);
                            open[at].1.push(next * 16);
                            next += 1;
                        }
                    }
                    _ => {}
                }
                if step % 1999 == 0 {
                    let mut held: Vec<usize> =
                        open.iter().flat_map(|(_, held)| held.clone()).collect();
                    held.sort_unstable();
                    assert_eq!(all(handles), held);
                    handles.lower();
                    handles.trim();
                }
            }
            open.drain(..).for_each(|(chain, _)| end(chain));
            assert!(!handles.begin_reading());
        });
    }

    #[test]
    fn an_empty_scope_takes_no_chunk_and_one_handle_four_words() {
        with_table(|thread, handles| {
            let top = handles.top.load(Ordering::Relaxed);
            end(Chain::new(handles, thread));
            let chain = Chain::new(handles, thread);
            push(&chain, 1);
            assert_eq!(handles.top.load(Ordering::Relaxed), top + 4 * WORD);
            end(chain);
            assert_eq!(handles.top.load(Ordering::Relaxed), top);
        });
    }

    #[test]
    fn a_peak_s_memory_goes_back_and_can_be_had_again() {
        with_table(|thread, handles| {
            let outer = Chain::new(handles, thread);
            push(&outer, 7);
            for _ in 0..3 {
                let peak = Chain::new(handles, thread);
                (0..1_000_000).for_each(|i| push(&peak, 1 + i));
                assert!(handles.current.load(Ordering::Relaxed) > 5);
                assert_eq!(all(handles).len(), 1_000_001);
                end(peak);
                assert!(handles.lower(), "there is something to give back");
                handles.trim();
                assert!(!handles.lower(), "it has been given back");
                let mapped = handles
                    .segments
                    .iter()
                    .filter(|s| s.base.load(Ordering::Relaxed) != 0);
                assert_eq!(mapped.count(), 1);
                assert_eq!(all(handles), [7 * 16]);
            }
            end(outer);
        });
    }

    #[test]
    fn a_scope_that_ends_before_it_was_read_is_logged_and_later_ones_are_not() {
        with_table(|thread, handles| {
            let outer = Chain::new(handles, thread);
            push(&outer, 1);
            let inner = Chain::new(handles, thread);
            (0..100).for_each(|i| push(&inner, 100 + i));
            assert!(handles.begin_reading());
            let mut logged = Vec::with_capacity(200); // no malloc in there
            inner.end(|word| logged.push(word));
            logged.sort_unstable();
            assert_eq!(logged, (100..200).map(|i| i * 16).collect::<Vec<_>>());
            let mut read = Vec::new();
            handles.for_each(|word| read.push(word));
            assert!(read.contains(&16));
            handles.all_read();
            end(outer);
        });
    }
}
