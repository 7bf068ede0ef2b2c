//! A heap's memory as one thing: what an address names, what is allocated and what is marked, and
//! how memory is taken and given back. The folder beside this file has what is done with it.

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
use super::page_runs::{CHUNK_PAGES, NoSpan, Record, Records, Spans};
use super::page_table::{Page, PageTable, are_far};
use super::prefault::Prefault;
use super::range::Range;
use super::scavenge::SmallChunks;
use super::size_classes::{MAX_SMALL, PAGE, TABLE};
use super::span_lists::{Entry, Site, Sites, Swaps};
use crate::encoding::Encoding;
use crate::error::{SiteError, SpaceError};
use crate::fault::planted;
use crate::kind::{Kind, KindError, KindId, Kinds, MAX_KINDS};
use crate::limits::{MAX_ENCODINGS, MAX_RESERVE, MIN_HARD_LIMIT, MIN_RESERVE};
use crate::memory::prefetch::prefetch;

pub use iterate::POISON;

/// How a heap's memory is laid out and limited.
#[derive(Debug, Clone)]
pub struct SpaceConfig {
    /// Address space to reserve, in bytes. All tables are sized by it.
    pub reserve: u64,
    /// Spans and large objects in use never exceed this many bytes.
    pub hard_limit: Option<u64>,
    /// What is tried on a conservative word. An empty list means [`Encoding::RAW`] alone.
    pub conservative: Vec<Encoding>,
    /// Does a word just past the bytes that were asked for keep their cell alive? Each cell then
    /// has a spare byte behind them.
    pub past_the_end: bool,
    /// Stress: a mutator is told to collect after this many allocations.
    pub collect_every: Option<u64>,
    /// Bytes that the system backs from the start, tables included, and never gets back.
    pub pre_touch: u64,
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
        }
    }
}

/// A cell that an address names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// Its first byte.
    pub base: usize,
    /// Its size in bytes (the size class's, or page-rounded).
    pub size: usize,
    /// What it holds. Types of the safe tier that have one layout share a kind.
    pub kind: KindId,
}

/// Heaps of this process. A figure: Relaxed.
static HEAPS: AtomicUsize = AtomicUsize::new(0);

/// Heaps that this process has now.
pub(crate) fn live_heaps() -> usize {
    HEAPS.load(Ordering::Relaxed)
}

/// One of [`HEAPS`].
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
    /// Which bitmap says what is allocated; the other one is for marks. Changes only while the
    /// world is stopped.
    pub(crate) role: AtomicUsize,
    /// Refills mark what they hand out. Changes only while the world is stopped.
    pub(crate) marking: AtomicBool,
    /// Markers ask for page words ahead. Changes only while the world is stopped.
    pub(crate) far: AtomicBool,
    pub(crate) kinds: Kinds,
    pub(crate) sites: Sites,
    pub(crate) spans: CachePadded<Mutex<Spans>>,
    /// Held by the collector while it sweeps a piece, and while a stretch that goes back to the
    /// system is in no list; and by a walk over all cells. No mutator waits for it.
    pub(crate) rearranging: Mutex<()>,
    prefault: Prefault,
    /// Chunks that are backed by small pages alone, since some of them have gone back. By the
    /// thread that gives memory back.
    small_chunks: SmallChunks,
    /// Memory has gone back since huge pages were wanted everywhere. By that thread: Relaxed.
    has_released: AtomicBool,
    /// Bytes that stay backed.
    pub(crate) pre_touched: u64,
    large: LargeObjects,
    /// What was handed out since the last swap.
    allocation_count: CachePadded<AllocationCount>,
    /// Bytes that a mutator may have been handed and not reported, and how many mutators there are.
    /// Both change in stops, and may be old.
    report_at: AtomicU64,
    mutators: AtomicUsize,
    /// How often the bitmaps have swapped. Changes only while the world is stopped.
    pub(crate) swaps: Swaps,
    /// Large objects that nobody has swept since the last swap, and spans, as far as sites' lists
    /// have been looked at since: see [`Space::is_swept`].
    pub(crate) unswept: CachePadded<AtomicUsize>,
    /// The site that the background sweep is at, and one past the last that it comes to.
    pub(crate) sweep_site: AtomicUsize,
    pub(crate) sweep_end: AtomicUsize,
    /// The chunk that the clearing of the spare bitmap is at, and where it ends.
    pub(crate) clear_chunk: AtomicUsize,
    pub(crate) clear_end: AtomicUsize,
    /// The spare bitmap is not cleared: see `sticky.rs`.
    pub(crate) sticky: AtomicBool,
    /// What was handed out while marking.
    pub(crate) allocated_black: AllocatedBlack,
    encodings: [Encoding; MAX_ENCODINGS],
    encoding_count: usize,
    pub(crate) collect_every: Option<u64>,
    hard_limit: Option<u64>,
}

/// Bytes of a new heap that can be written, and the least by which there become more: a heap's
/// first collection comes after about as many.
const FIRST_STEP: u64 = 4 << 20;

/// The most, and of those that can be written already the part.
const MOST_STEP: usize = 256 << 20;
const GROWTH: usize = 4;

/// Bytes of the reserve for which there is room for a kind: a kind that has cells has a span of 64
/// KiB, but many have none most of the time.
const BYTES_A_KIND: u64 = 16 << 10;

/// Kinds that a heap of the least reserve has room for.
const LEAST_KINDS: usize = 1024;

/// Kinds that a heap of `bytes` of addresses has room for.
pub(crate) fn kinds_for(bytes: u64) -> usize {
    ((bytes / BYTES_A_KIND) as usize).clamp(LEAST_KINDS, MAX_KINDS)
}

/// Pages at the start of the range that hold no cells. The range's own address stands in registers
/// and on stacks whenever somebody allocates; it must not keep whatever would lie there.
const NEVER_TAKEN: usize = 1;

impl Space {
    /// A space that belongs to no heap, for harnesses and benches.
    ///
    /// # Safety
    /// The caller answers for all that is done with it, by safe methods too: they take addresses,
    /// cells, sites, reservations and runs at their word. Each is given back to the space that it
    /// came from, `LocalAllocator` are used by one thread, markers share a queue made for this
    /// space, and what a method says of a stopped world holds.
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
        let range = Range::new(bytes as usize)?;
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
        let spare = usize::from(config.past_the_end && !planted("no-spare-byte"));
        Ok(Space {
            range,
            _counted: Counted::new(),
            len: bytes as usize,
            role: AtomicUsize::new(0),
            marking: AtomicBool::new(false),
            far: AtomicBool::new(false),
            kinds: Kinds::new(most_kinds)?,
            sites: Sites::new(most_kinds, spare)?,
            spans: CachePadded::new(Mutex::new(Spans::new(NEVER_TAKEN, writable, limit))),
            rearranging: Mutex::new(()),
            prefault,
            small_chunks: SmallChunks::default(),
            has_released: AtomicBool::new(false),
            pre_touched: pre_touch,
            large: LargeObjects::default(),
            allocation_count: CachePadded::default(),
            report_at: AtomicU64::new(0),
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
            hard_limit: config.hard_limit,
        })
    }

    /// Adds a kind. Outside `no_preempt`.
    pub fn add_kind(&self, kind: Kind) -> Result<KindId, KindError> {
        self.kinds.add(kind)
    }

    /// The name of a kind, for reports. Mallocs: outside `no_preempt`.
    #[cfg(any(test, feature = "internals"))]
    pub fn kind_name(&self, kind: KindId) -> Option<String> {
        self.kinds.name(kind)
    }

    /// The site of `bytes`-sized cells of `kind`; made at first use, then two loads. Under
    /// `no_preempt` or from an unattached thread.
    #[inline]
    pub fn site(&self, kind: KindId, bytes: usize) -> Result<Site, SiteError> {
        self.sites.get(&self.kinds, kind, bytes)
    }

    /// Has a cell for `bytes` bytes pages of its own, and no site?
    #[inline(always)]
    pub fn is_large(&self, bytes: usize) -> bool {
        self.sites.room(bytes) > MAX_SMALL
    }

    /// The address range, in bytes. It may be smaller than what was asked for.
    pub fn reserved(&self) -> std::ops::Range<usize> {
        self.range.base..self.range.base + self.len
    }

    /// Are there so many page words that it pays to ask for each one ahead? Takes the heap's lock.
    pub(crate) fn is_far(&self) -> bool {
        are_far(self.top())
    }

    /// Is more than half of what the hard limit allows in use? Takes the heap's lock.
    pub(crate) fn is_short(&self) -> bool {
        self.hard_limit
            .is_some_and(|limit| self.used_bytes() > limit / 2)
    }

    /// Bytes of spans and large objects in use: what the hard limit counts. Takes the heap's lock.
    pub fn used_bytes(&self) -> u64 {
        (self.spans.lock().used() * PAGE) as u64
    }

    /// Bytes that the heap has ever used of its address range, and bytes of the tables beside it
    /// that tell of them: bitmaps, page words, records, sites, cells allocated black. Where memory
    /// went back to the system, most of what told of it went back, too, and is still counted. Takes
    /// the heap's lock.
    pub fn metadata_bytes(&self) -> (u64, u64) {
        const A_PAGE: usize =
            size_of::<AtomicU32>() + size_of::<Record>() + 2 * WORDS_PER_PAGE * size_of::<u64>();
        let top = self.spans.lock().top();
        let tables = top * A_PAGE + top.div_ceil(8);
        let tables = tables + top.div_ceil(CHUNK_PAGES) + top.div_ceil(PAGES_PER_BITMAP_PAGE);
        let sites = self.sites.count() * size_of::<Entry>();
        let tables = tables + sites + self.allocated_black.peak_bytes();
        ((top * PAGE) as u64, tables as u64)
    }

    /// Where those tables lie, but for the sites.
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

    /// The hard limit that the heap was built with.
    pub fn hard_limit(&self) -> Option<u64> {
        self.hard_limit
    }

    /// The encodings that are tried on a conservative word.
    #[inline(always)]
    pub fn encodings(&self) -> &[Encoding] {
        if planted("no-decoding") {
            return &[Encoding::RAW];
        }
        &self.encodings[..self.encoding_count]
    }

    /// Is a cycle marking? Then every new cell is born marked.
    #[inline(always)]
    pub fn is_marking(&self) -> bool {
        // Ordering: Relaxed. It changes only while all mutators are stopped.
        self.marking.load(Ordering::Relaxed)
    }

    /// The cell that `address` lies in, if that cell is allocated (or in a run's tail). Any word
    /// may be asked.
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
                let mut index = class.index_of(in_span);
                if planted("interior-off-by-one") && in_span != index * class.size as usize {
                    index += 1;
                }
                let base = offset - in_span + index * class.size as usize;
                if index < class.cells as usize
                    && (self.allocated_bits().test(base) || planted("no-allocated-bit"))
                {
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

    /// Asks for all that tells whether `address` names a cell. False: it names none.
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

    /// Does the address lie in the heap's range?
    #[inline(always)]
    pub fn contains(&self, address: usize) -> bool {
        self.offset(address).is_some()
    }

    /// Is the cell with this first byte allocated? False for addresses outside the heap.
    #[inline]
    #[cfg(any(test, feature = "internals"))]
    pub fn is_allocated(&self, base: usize) -> bool {
        self.offset(base)
            .is_some_and(|offset| self.allocated_bits().test(offset))
    }

    /// Is the cell with this first byte marked? False for addresses outside the heap.
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

    /// Notes that the bitmaps' pages for this page may have bits: the allocated one's now, the
    /// other one's in its time. A page without that note is zero, and is not written when a bitmap
    /// is cleared: it may have gone back to the system.
    #[inline(always)]
    pub(crate) fn note_bits(&self, page: usize) {
        let noted = self.noted_bits(page / PAGES_PER_BITMAP_PAGE);
        // Ordering: Relaxed. Read by the clearing of the spare bitmap, which starts in a stop.
        if noted.load(Ordering::Relaxed) == 0 {
            noted.store(1, Ordering::Relaxed);
        }
    }

    /// The note of the bitmaps' page with this number.
    pub(crate) fn noted_bits(&self, bitmap_page: usize) -> &AtomicU8 {
        // SAFETY: pages of the address range; zeroed memory is a valid AtomicU8.
        unsafe { &*self.range.noted_bits.at(bitmap_page) }
    }

    /// All of the heap's locks, for a thread that forks: it takes them before, and parent and child
    /// drop them after.
    pub(crate) fn lock_for_fork(&self) -> impl Sized + '_ {
        // No other code takes two of these in another order (`gc-preempt/src/lock_order.rs`): the
        // lock of what goes back to the system comes first, the allocator of pages last. Who has a
        // chunk backed takes the latter meanwhile.
        let rearranging = self.rearranging.lock();
        let making = self.sites.lock_making();
        let kinds = self.kinds.lock();
        let sites: Vec<_> = (0..self.sites.count())
            .map(|site| self.lists(self.sites.at(site)))
            .collect();
        let large = self.lock_large();
        let early = planted("pages-before-backing").then(|| self.spans.lock());
        let backing = self.prefault.lock_for_fork();
        let spans = early.unwrap_or_else(|| self.spans.lock());
        (rearranging, making, kinds, sites, large, backing, spans)
    }

    /// In the child of a fork, after the locks of [`Space::lock_for_fork`] were dropped: takes over
    /// the spans that gone threads owned or were sweeping, and counts anew what is to be swept.
    /// `kept` gives the span, plus one, that the only thread left owns of a site; 0: none.
    ///
    /// The gone threads' runs are not looked at, since they may have been in the middle of filling
    /// one: the next collection finds the cells in them dead.
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
                if link != own && !listed.contains(&span) && !planted("spans-lost-in-child") {
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
        // The thread that was sweeping may have been at any of them.
        self.sweep_end.store(self.sites.count(), Ordering::Relaxed);
        self.sweep_site.store(0, Ordering::Relaxed);
    }

    /// Has `least` pages that were never taken written from now on, beyond those that can be
    /// already, and more where the system has them. By the holder of the lock.
    fn make_writable(&self, spans: &mut Spans, least: usize) -> Result<(), NoSpan> {
        let (from, end) = (spans.end(), self.len / PAGE);
        let wanted = (spans.top() + least).next_multiple_of(CHUNK_PAGES);
        if wanted > end {
            return Err(NoSpan::Exhausted);
        }
        // A heap that grows asks seldom; where memory is promised to none twice, it holds a quarter
        // more than it ever had.
        let mut more = (from / GROWTH).clamp(FIRST_STEP as usize / PAGE, MOST_STEP / PAGE);
        loop {
            let to = (from + more).next_multiple_of(CHUNK_PAGES).min(end);
            match self.range.make_writable(from, to.max(wanted)) {
                Ok(()) => {
                    spans.set_end(to.max(wanted));
                    return Ok(());
                }
                Err(e) if to <= wanted => return Err(NoSpan::System(e)),
                Err(_) => more /= 2,
            }
        }
    }

    /// What `take` finds in the free stretches; where it finds none, with more pages written.
    pub(crate) fn take_with<R>(
        &self,
        spans: &mut Spans,
        least: usize,
        mut take: impl FnMut(&mut Spans) -> Result<R, NoSpan>,
    ) -> Result<R, NoSpan> {
        match take(spans) {
            Err(NoSpan::Exhausted) => {
                self.make_writable(spans, least)?;
                take(spans)
            }
            taken => taken,
        }
    }

    /// Has pages up to `end` written from now on, of those that were never taken.
    fn writable_up_to(&self, end: usize) -> bool {
        let mut spans = self.spans.lock();
        let top = spans.top();
        end <= spans.end() || self.make_writable(&mut spans, end - top).is_ok()
    }

    /// Takes pages for a large object: the first, and whether all of them are known to be zero.
    pub(crate) fn take_pages(&self, pages: usize) -> Result<(usize, bool), NoSpan> {
        let (records, dirty) = (&self.range.records, &self.range.dirty);
        let first = self.take_with(&mut self.spans.lock(), pages, |spans| {
            spans.take(records, dirty, pages)
        })?;
        self.prefault.taken(first + pages);
        Ok((first, self.range.dirty.count(first, pages) == 0))
    }

    /// Gives a span of few pages back whose page words are zero.
    pub(crate) fn give_pages(&self, first: usize, pages: usize) {
        self.range.dirty.set(first, pages);
        self.spans
            .lock()
            .give(&self.range.records, &self.range.dirty, first, pages);
    }
}
