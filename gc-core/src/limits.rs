//! The numbers that bound a heap's shape: its grain, its largest cells, and the sizes of its
//! tables.

/// Bytes of a page, the grain of the address range. The page size: then a large object is rounded
/// to pages, as the system rounds it anyway, and wastes less than an eighth of itself.
pub const PAGE: usize = 1 << PAGE_SHIFT;
pub(crate) const PAGE_SHIFT: u32 = 12;

/// Bytes of a granule: cells are multiples of it, and each bitmap has a bit for each.
pub const GRANULE: usize = 16;

/// The largest cell that lives in a span with others; above it, an object has pages of its own.
pub const MAX_SMALL: usize = 32 << 10;

/// The longest span in pages. A page's distance to its span's start has six bits in the page table.
pub(crate) const MAX_SPAN_PAGES: usize = 64;

/// The most pages an address range can have: a large object's distance has 30 bits.
pub(crate) const MAX_PAGES: usize = 1 << 30;

/// The most sites a heap can have.
pub const MAX_SITES: usize = 1 << 16;

/// The least address space of a heap. Where the system refuses even this, there is no heap.
pub const MIN_RESERVE: u64 = 16 << 20;

/// The most address space of a heap: what the page table can number.
pub const MAX_RESERVE: u64 = (MAX_PAGES as u64) << PAGE_SHIFT;

/// The least hard limit: room for a span of the largest cells.
pub const MIN_HARD_LIMIT: u64 = (MAX_SPAN_PAGES * PAGE) as u64;

/// The most encodings that are tried on a conservative word.
pub const MAX_ENCODINGS: usize = 8;
