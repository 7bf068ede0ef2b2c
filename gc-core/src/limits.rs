//! The constants that bound a heap: its page, its granule, its largest cells, and the sizes of its
//! tables.

/// Bytes of a page: the unit of the heap's address range. It is the size of a system page, to which
/// the system would round a large object anyway. A large object wastes less than an eighth of
/// itself.
pub const PAGE: usize = 1 << PAGE_SHIFT;
pub(crate) const PAGE_SHIFT: u32 = 12;

/// Bytes of a granule. A cell is a multiple of it, and each bitmap has a bit for each granule.
pub const GRANULE: usize = 16;

/// The largest cell that shares a span with others. A larger one is a large object, with pages of
/// its own.
pub const MAX_SMALL: usize = 32 << 10;

/// The longest span in pages. The page table has six bits for a page's distance to its span's first
/// page.
pub(crate) const MAX_SPAN_PAGES: usize = 64;

/// The most pages of an address range. The page table has 30 bits for a distance in a large object.
pub(crate) const MAX_PAGES: usize = 1 << 30;

/// The most sites of a heap.
pub const MAX_SITES: usize = 1 << 16;

/// The least address space of a heap. If the system refuses even this, there is no heap.
pub const MIN_RESERVE: u64 = 16 << 20;

/// The most address space of a heap: as much as the page table can number.
pub const MAX_RESERVE: u64 = (MAX_PAGES as u64) << PAGE_SHIFT;

/// The least hard limit: a span of the largest cells.
pub const MIN_HARD_LIMIT: u64 = (MAX_SPAN_PAGES * PAGE) as u64;

/// The most encodings that a conservative word is decoded by.
pub const MAX_ENCODINGS: usize = 8;

/// The value of each word of a freed cell if [`HeapBuilder::poison`](crate::HeapBuilder::poison) is
/// on. It is no address of a heap, and no address that a program may read.
pub const POISON: usize = 0xdead_ce11_dead_ce11;
