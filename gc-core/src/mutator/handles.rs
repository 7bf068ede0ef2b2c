//! A mutator's handle table: it roots the cells of the mutator's open scopes.
//!
//! ```text
//! segment 0, 64 KiB:  [ chunk of a | chunk of b | hole | chunk of a |          ]
//! segment 1, 128 KiB: ...                                           ^ top
//!
//! chunk:  [ header | slot | slot | slot ]
//! ```
//!
//! The table is a stack of chunks, in segments that double in size. A scope's first chunk has 4
//! words, its second 16, and each further one 64.
//!
//! Each scope has chunks of its own, so that an outer scope may be used while an inner one is open,
//! and scopes may end in any order (as those of coroutines do). A scope takes its first chunk with
//! its first handle. As a rule scopes end innermost first, and the stack shrinks by their chunks. A
//! chunk that does not lie at the top becomes a hole, which the next scope that needs a chunk of
//! its size takes. When all scopes have ended, the stack is empty.
//!
//! Two simpler designs lost. One stack of handles with a mark for each scope: a handle that the
//! outer scope makes while an inner one is open lies above the inner scope's mark, and ends with
//! it. Chunks of one size: a scope in each level of a recursion, with a handle or two, takes 512
//! bytes.
//!
//! # Reading beside the owner
//! The owner writes the table, and the collector reads it *beside* the owner. Stop 1 only notes the
//! height of the stack ([`Handles::begin_reading`]). A slot below that height does not change until
//! its scope ends, or it logs what it held (`api/slot.rs`). A handle that the owner pushes later
//! need not be read: its cell is in the snapshot, or was allocated black. If a scope ends before
//! the table is read, its handles go to the owner's log, as an edge does that the barrier
//! overwrites. So the stop costs the same whatever the table holds.
//!
//! Every word is a cell's address, zero, or odd: a header, or a link of a hole. So a reader needs
//! no structure to read by. Slots are zero from a chunk's beginning until they are pushed, so no
//! word of an earlier scope is taken for a handle.
//!
//! # Memory
//! The system alone bounds the table. In each cycle's last stop the collector lowers the limit up
//! to which the owner pushes without the lock ([`Handles::lower`]). The memory above it is free,
//! and goes back to the system after the stop ([`Handles::trim`]).

use core::cell::{Cell, UnsafeCell};
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering, compiler_fence};

use gc_preempt::Mutex;

use crate::memory::MapError;
use crate::memory::os::Map;

/// Words of a chunk, by the number of its size. The first size holds the handles of most scopes,
/// with a header of 8 bytes.
const SIZES: [usize; 3] = [4, 16, 64];
/// Bytes of the first segment; each further one has twice as many as the one before.
const FIRST: usize = 64 << 10;
/// Segments of a table: together more than a tebibyte, which no program fills.
const SEGMENTS: usize = 25;
/// Bytes by which the owner's limit rises at a time.
const STEP: usize = 256 << 10;
/// Bytes above the top that are kept, since the owner soon needs them again.
const SLACK: usize = 32 << 10;
const PAGE: usize = 4096;
/// Chunks that are given back under one `no_preempt`, and the same for chunks whose handles are
/// logged as well.
const PIECE: usize = 64;
const LOGGED_PIECE: usize = 4;

const WORD: usize = size_of::<usize>();

/// The first word of a chunk. It is odd, as no cell's address is.
///
/// ```text
/// 63        20   7..5      4..2       1      0
/// [ link / 8 |  below+1  |  size  |  free  | 1 ]
/// ```
#[derive(Clone, Copy)]
struct Header(usize);

impl Header {
    /// The header of a scope's chunk. `below`: the size of the chunk under it in its segment, if
    /// there is one. `link`: the address of the scope's chunk before, or 0.
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

/// A segment of the table. All words are addresses; zero: not mapped.
#[derive(Default)]
struct Segment {
    base: AtomicUsize,
    /// The end of the memory that the owner uses without the lock. The collector lowers it in
    /// stops; the owner raises it under the lock.
    limit: AtomicUsize,
    /// The end of the memory that was touched since it was given back. Under the lock.
    touched: AtomicUsize,
    /// The end of the chunks when the owner went on to the next segment, and the last chunk's size
    /// plus one. Read by the owner, and by the collector for segments below the top's.
    left_at: AtomicUsize,
    left_below: Cell<usize>,
}

fn segment_bytes(segment: usize) -> usize {
    FIRST << segment
}

/// The handles of one mutator.
pub(crate) struct Handles {
    /// The address of the next chunk. Relaxed, here and in this whole file unless a comment says
    /// otherwise: one thread writes, and its stop orders the collector's reads.
    top: AtomicUsize,
    /// The segment that the top is in.
    current: AtomicUsize,
    /// Whether the collector has still to read the handles of stop 1: then the end of a scope logs
    /// its handles.
    unread: AtomicBool,
    /// The height of the stack at stop 1: the segment, and the top.
    snapshot: [AtomicUsize; 2],
    /// The size of the chunk under the top, plus one; 0: there is none in the segment. Used by the
    /// owner alone, as `holes`.
    below: Cell<usize>,
    /// The first hole of each size; 0: none. A hole's second and third word link it to the next
    /// hole and to the previous one.
    holes: [Cell<usize>; SIZES.len()],
    segments: [Segment; SEGMENTS],
    /// Memory of the segments. Changed under the lock.
    maps: UnsafeCell<[Option<Map>; SEGMENTS]>,
    /// Held by the owner while it goes beyond a limit, under `no_preempt`, and by the collector
    /// while it gives memory back. The collector then also holds the lock of the heap's records, so
    /// a fork finds this lock free.
    growing: Mutex<()>,
}

/// A word of the table.
///
/// # Safety
/// `address` is one of a mapped segment.
unsafe fn word<'a>(address: usize) -> &'a AtomicUsize {
    // SAFETY: by the contract; mapped memory is aligned and initialised, and the reference does not
    // outlive the table.
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

    /// Maps a segment. Under the lock, or before the table is shared.
    fn map(&self, at: usize) -> Result<(), MapError> {
        let map = Map::new(segment_bytes(at))?;
        let base = map.base().expose_provenance();
        let segment = &self.segments[at];
        let limit = base + segment_bytes(at).min(STEP);
        segment.base.store(base, Ordering::Relaxed);
        segment.limit.store(limit, Ordering::Relaxed);
        segment.touched.store(limit, Ordering::Relaxed);
        // SAFETY: under the lock, or before the table is shared.
        unsafe { (*self.maps.get())[at] = Some(map) };
        Ok(())
    }

    // ---- the owner's side, under `no_preempt` ---------------------------------------------------

    /// Takes a chunk for a scope whose last chunk is at `link` (0: none). All its slots are zero.
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
        // SAFETY: the chunk lies below the limit of a mapped segment and above all other chunks, so
        // the owner alone uses it.
        unsafe {
            let header = Header::new(size, self.below.get().checked_sub(1), link);
            word(chunk).store(header.0, Ordering::Relaxed);
            if size == 0 {
                // Three stores: `memset` takes longer than the rest of this function, and most
                // scopes have this chunk alone.
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

    /// Gives one chunk back. Returns the chunk before it of its scope, or 0.
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

    /// Lowers the top to `chunk`, the chunk below the top, and further over all holes that lie
    /// below it.
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

    /// The chunk of this size that ends at `end`.
    fn under(&self, end: usize, size: usize) -> (usize, Header) {
        let chunk = end - SIZES[size] * WORD;
        // SAFETY: a chunk of the table: the header above it, or its segment, gives its size.
        (
            chunk,
            Header(unsafe { word(chunk) }.load(Ordering::Relaxed)),
        )
    }

    fn make_hole(&self, chunk: usize, header: Header) {
        let size = header.size();
        let next = self.holes[size].replace(chunk);
        // SAFETY: the chunk of a scope that has ended, and a hole.
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

    /// Must the end of a scope, or a change of a slot, log its handles?
    #[inline]
    pub(crate) fn is_unread(&self) -> bool {
        // Acquire pairs with the Release of `all_read`: the owner uses the slots again after the
        // collector has read them.
        self.unread.load(Ordering::Acquire) && seam::logs_handles()
    }

    /// By an owner that detaches: calls `log` with each handle that the collector may not have read
    /// yet.
    pub(crate) fn retire(&self, log: impl FnMut(usize)) {
        if self.is_unread() {
            self.note(false);
            self.for_each(log);
            self.unread.store(false, Ordering::Relaxed);
        }
    }

    // ---- the collector's side -------------------------------------------------------------------

    /// In stop 1: the handles that are in the table now are to be read. `false`: there are none.
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

    /// The number of bytes that are to be read, at most.
    pub(crate) fn bytes_to_read(&self) -> usize {
        let [current, top] = [0, 1].map(|at| self.snapshot[at].load(Ordering::Relaxed));
        top - self.segments[current].base.load(Ordering::Relaxed) + segment_bytes(current) - FIRST
    }

    /// Beside the owner: calls `f` with each handle in `most` bytes of the snapshot, from position
    /// `from` on (at first 0). Among them may be handles that were pushed since. Returns the
    /// position to go on at.
    pub(crate) fn read_piece(
        &self,
        from: usize,
        most: usize,
        f: impl FnMut(usize),
    ) -> Option<usize> {
        let height = [0, 1].map(|at| self.snapshot[at].load(Ordering::Relaxed));
        self.read_below(height, from, most, f)
    }

    /// As [`read_piece`](Self::read_piece), of a stack of this height: the segment, and the top.
    fn read_below(
        &self,
        [last, top]: [usize; 2],
        from: usize,
        most: usize,
        mut f: impl FnMut(usize),
    ) -> Option<usize> {
        // A position counts the bytes of all segments before it.
        let segment = (0..last)
            .find(|at| from < segment_bytes(at + 1) - FIRST)
            .unwrap_or(last);
        let before = segment_bytes(segment) - FIRST;
        let base = self.segments[segment].base.load(Ordering::Relaxed);
        let end = match segment {
            at if at == last => top,
            // `left_at` may have changed since: chunks beyond it belonged to scopes that have
            // ended, and were logged.
            at => self.segments[at].left_at.load(Ordering::Relaxed),
        };
        let first = base + (from - before);
        let stop = end.min(first + most);
        for address in (first..stop).step_by(WORD) {
            // SAFETY: a word of a segment. The segment stays mapped until `trim`, which does not
            // run while handles are to be read.
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

    /// All of the snapshot has been read: the ends of scopes no longer log.
    pub(crate) fn all_read(&self) {
        // Release pairs with the Acquire of `is_unread`.
        self.unread.store(false, Ordering::Release);
    }

    /// Whether the snapshot of this table is still to be read.
    pub(crate) fn is_to_be_read(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }

    /// Calls `f` with each handle of the snapshot. By the owner, or by the collector.
    pub(crate) fn for_each(&self, mut f: impl FnMut(usize)) {
        let mut from = Some(0);
        while let Some(at) = from {
            from = self.read_piece(at, usize::MAX / 2, &mut f);
        }
    }

    /// In a stop: calls `f` with each open handle, and leaves the snapshot as it is.
    pub(crate) fn for_each_open(&self, mut f: impl FnMut(usize)) {
        let height = [&self.current, &self.top].map(|word| word.load(Ordering::Relaxed));
        if height[1] == 0 {
            return;
        }
        let mut from = Some(0);
        while let Some(at) = from {
            from = self.read_below(height, at, usize::MAX / 2, &mut f);
        }
    }

    /// In a stop: lowers the owner's limit to a little above the top. `true`: there is memory above
    /// it, so a [`trim`](Self::trim) must follow.
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

    /// Gives the memory above the owner's limit back. Outside of stops, when no handles are to be
    /// read; under the lock of the heap's records.
    pub(crate) fn trim(&self) {
        let _growing = self.growing.lock();
        // The owner goes on to a higher segment under this lock only.
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
            // SAFETY: whole pages of the mapping, beyond the owner's limit, which the owner raises
            // under this lock only.
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

/// The chunks of one scope. The scope that makes a chain must end it, see [`Chain::end`].
pub(crate) struct Chain<'m> {
    handles: &'m Handles,
    thread: &'m gc_preempt::Mutator,
    /// The next handle's slot, and the end of the chunk that is being filled. Both are null at
    /// first.
    cursor: Cell<*const AtomicUsize>,
    limit: Cell<*const AtomicUsize>,
    /// The chunk that is being filled; 0: none.
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
    /// The system refused memory, and the cell is not rooted.
    #[inline]
    pub(crate) fn push(&self, address: usize) -> Result<(), MapError> {
        let slot = self.cursor.get();
        if slot == self.limit.get() {
            return self.grow(address);
        }
        // SAFETY: a slot of the chain's last chunk, in a table that outlives the chain.
        unsafe { (*slot).store(address, Ordering::Relaxed) };
        // From here on the slot roots the cell, as a stop of this thread sees it. Before, the cell
        // is in a register.
        compiler_fence(Ordering::SeqCst);
        self.cursor.set(slot.wrapping_add(1));
        Ok(())
    }

    /// Makes an empty slot, which roots nothing until its owner stores a cell.
    ///
    /// # Errors
    /// The system refused memory.
    pub(crate) fn empty(&self) -> Result<NonNull<AtomicUsize>, MapError> {
        self.push(0)?;
        let slot = self.cursor.get().wrapping_sub(1).cast_mut();
        // SAFETY: `push` has just stored into this slot.
        Ok(unsafe { NonNull::new_unchecked(slot) })
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

    /// Ends the scope: its handles no longer root their cells. Calls `log` with each handle if the
    /// collector has not read them yet.
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
        // SAFETY: a slot of the chunk.
        let handle = unsafe { word(chunk + slot * WORD) }.load(Ordering::Relaxed);
        if handle != 0 {
            log(handle);
        }
    }
}

mod seam {
    use crate::fault::Fault;

    #[inline(always)]
    pub(super) fn logs_handles() -> bool {
        !Fault::HandlesUnlogged.planted()
    }
}

#[cfg(test)]
mod tests;
