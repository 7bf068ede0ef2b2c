//! [`Space`]: its fields, its construction, and what an address names. The folder beside this file
//! has its other methods.

mod allocated_black;
mod allocation_count;
mod edges;
mod iterate;
mod large;
mod prefault;
mod scavenge;
mod span_lists;
mod span_reserve;
mod sticky;
mod sweep;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use gc_preempt::Mutex;

use super::allocated_black::AllocatedBlack;
use super::allocation_count::AllocationCount;
use super::bitmap::{Bitmap, PAGES_PER_BITMAP_PAGE, WORDS_PER_PAGE};
use super::large::LargeObjects;
use super::page_runs::{CHUNK_PAGES, NoPages, PageRuns, Record, Records};
use super::page_table::{Page, PageTable};
use super::prefault::Prefault;
use super::range::Range;
use super::scavenge::SmallChunks;
use super::size_classes::{MAX_SMALL, PAGE, TABLE};
use super::span_lists::{Site, SiteEntry, SiteTable, Swaps};
use crate::encoding::Encoding;
use crate::error::{SiteError, SpaceError};
use crate::kind::{Kind, KindError, KindId, Kinds, MAX_KINDS};
use crate::limits::{MAX_ENCODINGS, MAX_RESERVE, MIN_HARD_LIMIT, MIN_RESERVE};
use crate::memory::prefetch::prefetch;

/// How a heap's memory is laid out and limited.
#[derive(Debug, Clone)]
pub struct SpaceConfig {
    /// Address space to reserve, in bytes. All tables are sized by it.
    pub reserve: u64,
    /// Spans and large objects in use never exceed this many bytes.
    pub hard_limit: Option<u64>,
    /// The encodings that a conservative word is decoded by. An empty list means [`Encoding::RAW`]
    /// alone.
    pub conservative: Vec<Encoding>,
    /// Whether an address one past the end of the bytes that were asked for keeps their cell alive.
    /// Each cell then has a spare byte at its end.
    pub past_the_end: bool,
    /// Stress: each mutator collects after this many allocations.
    pub collect_every: Option<u64>,
    /// Bytes of the range that the system backs from the start, with their tables, and never gets
    /// back.
    pub pre_touch: u64,
    /// Whether the system may back cells and their bits by huge pages.
    pub huge_pages: bool,
}

impl Default for SpaceConfig {
    fn default() -> SpaceConfig {
        SpaceConfig {
            reserve: 256 << 30,
            hard_limit: None,
            conservative: vec![Encoding::RAW],
            past_the_end: false,
            collect_every: None,
            pre_touch: 0,
            huge_pages: true,
        }
    }
}

/// A cell of a heap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// The address of its first byte.
    pub base: usize,
    /// Its size in bytes: that of its size class, or whole pages for a large object.
    pub size: usize,
    /// Its kind. Types of the safe tier that have one layout share a kind.
    pub kind: KindId,
}

/// The number of heaps of this process. Relaxed: a figure for reports.
static HEAPS: AtomicUsize = AtomicUsize::new(0);

/// The number of heaps that this process has now.
pub(crate) fn live_heaps() -> usize {
    HEAPS.load(Ordering::Relaxed)
}

/// Counts one heap in [`HEAPS`] for as long as it lives.
struct Counted;

impl Counted {
    fn new() -> Counted {
        HEAPS.fetch_add(1, Ordering::Relaxed);
        Counted
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        HEAPS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One heap's memory.
pub struct Space {
    range: Range,
    _counted: Counted,
    /// Bytes of the address range.
    len: usize,
    /// Which of the two bitmaps is the allocated one; the other one takes marks. Changes only while
    /// the world is stopped.
    pub(crate) role: AtomicUsize,
    /// Whether a collection marks, so that new cells are allocated black. Changes only while the
    /// world is stopped.
    pub(crate) marking: AtomicBool,
    pub(crate) kinds: Kinds,
    pub(crate) sites: SiteTable,
    pub(crate) page_runs: CachePadded<Mutex<PageRuns>>,
    /// Held by the collector while it sweeps a piece, and while the page run that it gives back to
    /// the system is in no list. A walk over all cells holds it, too. No mutator waits for it.
    pub(crate) rearranging: Mutex<()>,
    prefault: Prefault,
    /// Chunks that the system backs by system pages alone, because a part of each has gone back.
    /// Written by the scavenger.
    small_chunks: SmallChunks,
    /// Memory has gone back since the heap last asked for huge pages everywhere. Relaxed: the
    /// scavenger alone reads and writes it.
    has_scavenged: AtomicBool,
    /// Bytes from the start of the range that never go back to the system.
    pub(crate) pre_touched: u64,
    large: LargeObjects,
    /// Cells and bytes that mutators got since the last swap.
    allocation_count: CachePadded<AllocationCount>,
    /// The number of mutators. A stop writes it; a reader may see an old value.
    mutators: AtomicUsize,
    /// The number of swaps of the bitmaps. Changes only while the world is stopped.
    pub(crate) swaps: Swaps,
    /// Spans and large objects that are not swept since the last swap. A span counts from the
    /// moment on at which a thread has looked at its site's lists: see [`Space::is_swept`].
    pub(crate) unswept: CachePadded<AtomicUsize>,
    /// The site that the background sweep is at, and one past the last site that it looks at.
    pub(crate) sweep_site: AtomicUsize,
    pub(crate) sweep_end: AtomicUsize,
    /// The chunk at which the spare bitmap is cleared next, and one past the last chunk.
    pub(crate) clear_chunk: AtomicUsize,
    pub(crate) clear_end: AtomicUsize,
    /// The spare bitmap keeps the marks of old cells: see `sticky.rs`.
    pub(crate) sticky: AtomicBool,
    /// The cells that were allocated black.
    pub(crate) allocated_black: AllocatedBlack,
    encodings: [Encoding; MAX_ENCODINGS],
    encoding_count: usize,
    pub(crate) collect_every: Option<u64>,
    /// Bytes that spans and large objects may take; `u64::MAX`: any number. Relaxed: the copy in
    /// `page_runs` decides, under its lock; this one serves messages and hints.
    hard_limit: AtomicU64,
    /// Whether the system may back cells and their bits by huge pages.
    huge_pages: bool,
}

/// Bytes of a new heap that can be written, and the least step by which this part grows. About as
/// much is allocated before a heap's first collection.
const FIRST_STEP: u64 = 4 << 20;

/// The largest step, and the part of the writable bytes that a step has.
const MOST_STEP: usize = 256 << 20;
const GROWTH: usize = 4;

/// Bytes of the reserve for each kind that the table of kinds has room for. A kind that has cells
/// has a span of 64 KiB, but many kinds have no cells most of the time.
const BYTES_A_KIND: u64 = 16 << 10;

/// The number of kinds that a heap of the least reserve has room for.
const LEAST_KINDS: usize = 1024;

/// The number of kinds that a heap of `bytes` of addresses has room for.
pub(crate) fn kinds_for(bytes: u64) -> usize {
    ((bytes / BYTES_A_KIND) as usize).clamp(LEAST_KINDS, MAX_KINDS)
}

/// Pages at the start of the range that hold no cells. A mutator that allocates has the range's own
/// address in a register or on its stack. That address must not keep a cell alive.
const NEVER_TAKEN: usize = 1;

impl Space {
    /// A space that belongs to no heap, for harnesses and benches.
    ///
    /// # Safety
    /// The methods of the space trust their arguments: addresses, cells, sites, reservations and
    /// runs. The caller passes each of them to the space that it came from. One thread uses a
    /// `LocalAllocator`. Markers share a queue that was made for this space. Where a method needs a
    /// stopped world, no other thread uses the space.
    #[cfg(feature = "internals")]
    pub unsafe fn bare(config: SpaceConfig) -> Result<Space, SpaceError> {
        Space::new(config)
    }

    /// Reserves the address range and its side tables.
    pub(crate) fn new(config: SpaceConfig) -> Result<Space, SpaceError> {
        const CHUNK: u64 = (CHUNK_PAGES * PAGE) as u64;
        if !(MIN_RESERVE..=MAX_RESERVE).contains(&config.reserve) {
            return Err(SpaceError::Reserve(config.reserve));
        }
        if let Some(limit) = config.hard_limit.filter(|limit| *limit < MIN_HARD_LIMIT) {
            return Err(SpaceError::LimitTooSmall(limit));
        }
        if config.conservative.len() > MAX_ENCODINGS {
            return Err(SpaceError::TooManyEncodings(config.conservative.len()));
        }
        let mut encodings = [Encoding::RAW; MAX_ENCODINGS];
        encodings[..config.conservative.len()].copy_from_slice(&config.conservative);
        let bytes = config.reserve.next_multiple_of(CHUNK);
        let range = Range::new(bytes as usize, config.huge_pages)?;
        let most_kinds = kinds_for(bytes);
        let limit = config
            .hard_limit
            .map_or(usize::MAX, |limit| limit as usize / PAGE);
        let pre_touch = config
            .pre_touch
            .min(bytes)
            .min(config.hard_limit.unwrap_or(u64::MAX))
            .next_multiple_of(CHUNK);
        let prefault = Prefault::default();
        let writable = pre_touch.max(FIRST_STEP).min(bytes) as usize / PAGE;
        range.make_writable(0, writable)?;
        if pre_touch != 0 {
            prefault.pre_touch(&range, pre_touch as usize / PAGE);
        }
        let spare = usize::from(config.past_the_end && seam::has_spare_byte());
        Ok(Space {
            range,
            _counted: Counted::new(),
            len: bytes as usize,
            role: AtomicUsize::new(0),
            marking: AtomicBool::new(false),
            kinds: Kinds::new(most_kinds)?,
            sites: SiteTable::new(most_kinds, spare)?,
            page_runs: CachePadded::new(Mutex::new(PageRuns::new(NEVER_TAKEN, writable, limit))),
            rearranging: Mutex::new(()),
            prefault,
            small_chunks: SmallChunks::default(),
            has_scavenged: AtomicBool::new(false),
            pre_touched: pre_touch,
            large: LargeObjects::default(),
            allocation_count: CachePadded::default(),
            mutators: AtomicUsize::new(0),
            unswept: CachePadded::default(),
            swaps: Swaps::default(),
            sweep_site: AtomicUsize::new(0),
            sweep_end: AtomicUsize::new(0),
            clear_chunk: AtomicUsize::new(0),
            clear_end: AtomicUsize::new(0),
            sticky: AtomicBool::new(false),
            allocated_black: AllocatedBlack::new(bytes as usize)?,
            encodings,
            encoding_count: config.conservative.len().max(1),
            collect_every: config.collect_every,
            hard_limit: AtomicU64::new(config.hard_limit.unwrap_or(u64::MAX)),
            huge_pages: config.huge_pages,
        })
    }

    /// Adds a kind. The caller is outside `no_preempt`.
    pub fn add_kind(&self, kind: Kind) -> Result<KindId, KindError> {
        self.kinds.add(kind)
    }

    /// The name of a kind, for reports. Mallocs: the caller is outside `no_preempt`.
    #[cfg(any(test, feature = "internals"))]
    pub fn kind_name(&self, kind: KindId) -> Option<String> {
        self.kinds.name(kind)
    }

    /// The site of `bytes`-sized cells of `kind`. The first call makes it; a later one takes two
    /// loads. The caller is under `no_preempt`, or its thread is no mutator.
    #[inline]
    pub fn site(&self, kind: KindId, bytes: usize) -> Result<Site, SiteError> {
        self.sites.get(&self.kinds, kind, bytes)
    }

    /// Whether a request of `bytes` bytes is a large object, which has no site.
    #[inline(always)]
    pub fn is_large(&self, bytes: usize) -> bool {
        self.sites.room(bytes) > MAX_SMALL
    }

    /// The addresses of the range. It may be smaller than the reserve that was asked for.
    pub fn reserved(&self) -> std::ops::Range<usize> {
        self.range.base..self.range.base + self.len
    }

    /// Whether more than half of the hard limit is in use. Takes the heap's lock.
    pub(crate) fn is_short(&self) -> bool {
        self.hard_limit()
            .is_some_and(|limit| self.used_bytes() > limit / 2)
    }

    /// Bytes of the spans and large objects in use. The hard limit bounds them. Takes the heap's
    /// lock.
    pub fn used_bytes(&self) -> u64 {
        (self.page_runs.lock().used() * PAGE) as u64
    }

    /// The bytes of the address range that the heap has ever used, and the bytes of the tables that
    /// describe them: bitmaps, page-table words, records, sites, notes of cells allocated black.
    /// When memory goes back to the system, most of its tables' memory goes back, too; these bytes
    /// stay counted. Takes the heap's lock.
    pub fn metadata_bytes(&self) -> (u64, u64) {
        const A_PAGE: usize =
            size_of::<AtomicU32>() + size_of::<Record>() + 2 * WORDS_PER_PAGE * size_of::<u64>();
        let top = self.page_runs.lock().top();
        let tables = top * A_PAGE + top.div_ceil(8);
        let tables = tables + top.div_ceil(CHUNK_PAGES) + top.div_ceil(PAGES_PER_BITMAP_PAGE);
        let sites = self.sites.count() * size_of::<SiteEntry>();
        let tables = tables + sites + self.allocated_black.peak_bytes();
        ((top * PAGE) as u64, tables as u64)
    }

    /// The addresses of those tables, except for the sites.
    #[cfg(test)]
    fn tables(&self) -> [std::ops::Range<usize>; 7] {
        let range = &self.range;
        let [first, second] = [&range.bits[0], &range.bits[1]].map(Bitmap::addresses);
        let rest = [range.page_table.addresses(), range.records.addresses()];
        let [pages, records] = rest;
        [
            first,
            second,
            pages,
            records,
            range.dirty.addresses(),
            range.noted_bits.addresses(),
            range.backed.addresses(),
        ]
    }

    /// The hard limit.
    pub fn hard_limit(&self) -> Option<u64> {
        let limit = self.hard_limit.load(Ordering::Relaxed);
        (limit != u64::MAX).then_some(limit)
    }

    /// Changes the hard limit. Cells beyond a lower limit stay; no page is taken until the heap is
    /// below it again. The caller is under `no_preempt`, or its thread is no mutator.
    pub(crate) fn set_hard_limit(&self, limit: Option<u64>) {
        let mut page_runs = self.page_runs.lock();
        page_runs.set_limit(limit.map_or(usize::MAX, |limit| limit as usize / PAGE));
        self.hard_limit
            .store(limit.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The encodings that a conservative word is decoded by.
    #[inline(always)]
    pub fn encodings(&self) -> &[Encoding] {
        seam::encodings(&self.encodings[..self.encoding_count])
    }

    /// Whether a collection marks. New cells are then allocated black.
    #[inline(always)]
    pub fn is_marking(&self) -> bool {
        // Ordering: Relaxed. It changes only while all mutators are stopped.
        self.marking.load(Ordering::Relaxed)
    }

    /// The cell that `address` lies in, if that cell is allocated. The cells in a run's tail count
    /// as allocated. `address` may be any word.
    #[inline]
    pub fn resolve(&self, address: usize) -> Option<Cell> {
        let offset = self.offset(address)?;
        let page = offset / PAGE;
        match self.range.page_table.get(page) {
            Page::Free => None,
            Page::Small {
                class,
                distance,
                kind,
            } => {
                let class = &TABLE[class];
                let in_span = distance * PAGE + offset % PAGE;
                let index = seam::index_of(class, in_span);
                let base = offset - in_span + index * class.size as usize;
                if index < class.cells as usize && seam::is_allocated(self, base) {
                    Some(Cell {
                        base: self.range.base + base,
                        size: class.size as usize,
                        kind,
                    })
                } else {
                    None
                }
            }
            Page::Large { distance } => self.large_cell(page.checked_sub(distance)?),
        }
    }

    /// Prefetches the words that tell whether `address` names a cell. `false`: the address lies
    /// outside the heap.
    #[inline]
    pub(crate) fn prefetch_cell(&self, address: usize) -> bool {
        let Some(offset) = self.offset(address) else {
            return false;
        };
        prefetch(core::ptr::from_ref(self.page_table().word(offset / PAGE)) as usize);
        self.allocated_bits().prefetch(offset);
        self.marked_bits().prefetch(offset);
        true
    }

    /// Whether the address lies in the heap's range.
    #[inline(always)]
    pub fn contains(&self, address: usize) -> bool {
        self.offset(address).is_some()
    }

    /// Whether the cell with this first byte is allocated. `false` for an address outside the heap.
    #[inline]
    #[cfg(any(test, feature = "internals"))]
    pub fn is_allocated(&self, base: usize) -> bool {
        self.offset(base)
            .is_some_and(|offset| self.allocated_bits().test(offset))
    }

    /// Whether the cell with this first byte is marked. `false` for an address outside the heap.
    #[inline]
    pub fn is_marked(&self, base: usize) -> bool {
        self.offset(base)
            .is_some_and(|offset| self.marked_bits().test(offset))
    }

    #[inline(always)]
    pub(crate) fn offset(&self, address: usize) -> Option<usize> {
        let offset = address.wrapping_sub(self.range.base);
        (offset < self.len).then_some(offset)
    }

    #[inline(always)]
    pub(crate) fn base(&self) -> usize {
        self.range.base
    }

    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline(always)]
    pub(crate) fn page_table(&self) -> &PageTable {
        &self.range.page_table
    }

    #[inline(always)]
    pub(crate) fn records(&self) -> &Records {
        &self.range.records
    }

    #[inline(always)]
    pub(crate) fn allocated_bits(&self) -> &Bitmap {
        // Ordering: Relaxed. The role changes only while all mutators are stopped.
        &self.range.bits[self.role.load(Ordering::Relaxed) & 1]
    }

    #[inline(always)]
    pub(crate) fn marked_bits(&self) -> &Bitmap {
        &self.range.bits[!self.role.load(Ordering::Relaxed) & 1]
    }

    /// Notes that the bitmap pages of this page may have bits: the allocated bitmap now, the spare
    /// one after a swap. A bitmap page without the note is zero. Clearing a bitmap does not write
    /// it, since it may have gone back to the system.
    #[inline(always)]
    pub(crate) fn note_bits(&self, page: usize) {
        let noted = self.noted_bits(page / PAGES_PER_BITMAP_PAGE);
        // Ordering: Relaxed. Read by the clearing of the spare bitmap, which starts in a stop.
        if noted.load(Ordering::Relaxed) == 0 {
            noted.store(1, Ordering::Relaxed);
        }
    }

    /// The note of the bitmap page with this number.
    pub(crate) fn noted_bits(&self, bitmap_page: usize) -> &AtomicU8 {
        // SAFETY: pages of the address range; zeroed memory is a valid AtomicU8.
        unsafe { &*self.range.noted_bits.at(bitmap_page) }
    }

    /// All of the heap's locks. A thread that forks takes them before; parent and child release
    /// them afterwards.
    pub(crate) fn lock_for_fork(&self) -> impl Sized + '_ {
        // No other code takes two of these locks in another order (`gc-preempt/src/lock_order.rs`).
        // The scavenger's lock comes first, the one of the free page runs last: a thread that has a
        // chunk backed takes the latter meanwhile.
        let rearranging = self.rearranging.lock();
        let making = self.sites.lock_making();
        let kinds = self.kinds.lock();
        let sites: Vec<_> = (0..self.sites.count())
            .map(|site| self.lists(self.sites.at(site)))
            .collect();
        let large = self.lock_large();
        let early = seam::lock_early(&self.page_runs);
        let backing = self.prefault.lock_for_fork();
        let page_runs = early.unwrap_or_else(|| self.page_runs.lock());
        (rearranging, making, kinds, sites, large, backing, page_runs)
    }

    /// In the child of a fork, after the locks of [`Space::lock_for_fork`] were released: puts the
    /// spans that threads of the parent owned or swept into lists, and counts anew what is to be
    /// swept. `kept` gives, for a site, the first page plus one of the span that the child's only
    /// thread owns; 0: none.
    ///
    /// The runs of the other threads are not read, since such a thread may have been filling one.
    /// The next collection finds the cells in them dead.
    pub(crate) fn forked(&self, kept: impl Fn(usize) -> u32) {
        for site in 0..self.sites.count() {
            let own = kept(site);
            let mut lists = self.lists(self.sites.at(site));
            let lists = &mut *lists;
            let mut listed = std::collections::HashSet::new();
            for list in lists.each() {
                list.each(self.records(), &mut |span| {
                    listed.insert(span);
                });
            }
            let mut link = lists.all;
            while let Some(span) = (link as usize).checked_sub(1) {
                if link != own && !listed.contains(&span) && seam::lists_spans_of_the_gone() {
                    lists.full.push(self.records(), span);
                }
                // SAFETY: chain links belong to the site's lock.
                link = unsafe { (*self.records().at(span)).all_next };
            }
        }
        let spans: usize = (0..self.sites.count())
            .map(|site| self.lists(self.sites.at(site)).unswept.len())
            .sum();
        self.unswept
            .store(spans + self.unswept_large(), Ordering::Relaxed);
        // The thread that swept in the parent may have been at any site.
        self.sweep_end.store(self.sites.count(), Ordering::Relaxed);
        self.sweep_site.store(0, Ordering::Relaxed);
    }

    /// Makes `least` pages beyond `top` writable, and more where the system has them. The caller
    /// holds the lock.
    fn make_writable(&self, page_runs: &mut PageRuns, least: usize) -> Result<(), NoPages> {
        let (from, end) = (page_runs.end(), self.len / PAGE);
        let wanted = (page_runs.top() + least).next_multiple_of(CHUNK_PAGES);
        if wanted > end {
            return Err(NoPages::Exhausted);
        }
        // Large steps: a heap that grows asks the system seldom. A quarter at most: where
        // overcommit is strict, the heap holds no more than a quarter of memory that it never used.
        let mut more = (from / GROWTH).clamp(FIRST_STEP as usize / PAGE, MOST_STEP / PAGE);
        loop {
            let to = (from + more).next_multiple_of(CHUNK_PAGES).min(end);
            match self.range.make_writable(from, to.max(wanted)) {
                Ok(()) => {
                    page_runs.set_end(to.max(wanted));
                    return Ok(());
                }
                Err(e) if to <= wanted => return Err(NoPages::System(e)),
                Err(_) => more /= 2,
            }
        }
    }

    /// Calls `take` on the free page runs. If it finds none, makes more pages writable and calls it
    /// again.
    pub(crate) fn take_with<R>(
        &self,
        page_runs: &mut PageRuns,
        least: usize,
        mut take: impl FnMut(&mut PageRuns) -> Result<R, NoPages>,
    ) -> Result<R, NoPages> {
        match take(page_runs) {
            Err(NoPages::Exhausted) => {
                self.make_writable(page_runs, least)?;
                take(page_runs)
            }
            taken => taken,
        }
    }

    /// Makes the pages up to `end` writable, which were never taken.
    fn writable_up_to(&self, end: usize) -> bool {
        let mut page_runs = self.page_runs.lock();
        let top = page_runs.top();
        end <= page_runs.end() || self.make_writable(&mut page_runs, end - top).is_ok()
    }

    /// Takes pages for a large object: the first one, and whether all of them are known to be zero.
    pub(crate) fn take_pages(&self, pages: usize) -> Result<(usize, bool), NoPages> {
        let (records, dirty) = (&self.range.records, &self.range.dirty);
        let first = self.take_with(&mut self.page_runs.lock(), pages, |page_runs| {
            page_runs.take(records, dirty, pages)
        })?;
        self.prefault.taken(first + pages);
        Ok((first, self.range.dirty.count(first, pages) == 0))
    }

    /// Gives back a span of few pages. Its page-table words are zero.
    pub(crate) fn give_pages(&self, first: usize, pages: usize) {
        self.range.dirty.set(first, pages);
        self.page_runs
            .lock()
            .give(&self.range.records, &self.range.dirty, first, pages);
    }
}

mod seam {
    use gc_preempt::{Mutex, MutexGuard};

    use super::Space;
    use crate::encoding::Encoding;
    use crate::fault::Fault;
    use crate::heap::page_runs::PageRuns;
    use crate::heap::size_classes::Class;

    pub(super) fn has_spare_byte() -> bool {
        !Fault::NoSpareByte.planted()
    }

    #[inline(always)]
    pub(super) fn encodings(configured: &[Encoding]) -> &[Encoding] {
        if Fault::NoDecoding.planted() {
            &[Encoding::RAW]
        } else {
            configured
        }
    }

    /// The cell of a span of this class that byte `in_span` of the span lies in.
    #[inline(always)]
    pub(super) fn index_of(class: &Class, in_span: usize) -> usize {
        let index = class.index_of(in_span);
        if Fault::InteriorOffByOne.planted() && in_span != index * class.size as usize {
            return index + 1;
        }
        index
    }

    #[inline(always)]
    pub(super) fn is_allocated(space: &Space, offset: usize) -> bool {
        space.allocated_bits().test(offset) || Fault::NoAllocatedBit.planted()
    }

    /// The lock of the free page runs, which comes last in a fork.
    #[inline(always)]
    pub(super) fn lock_early(page_runs: &Mutex<PageRuns>) -> Option<MutexGuard<'_, PageRuns>> {
        let is_early = Fault::PagesBeforeBacking.planted();
        is_early.then(|| page_runs.lock())
    }

    /// In the child, puts the spans that threads of the parent owned into lists.
    pub(super) fn lists_spans_of_the_gone() -> bool {
        !Fault::SpansLostInChild.planted()
    }
}
