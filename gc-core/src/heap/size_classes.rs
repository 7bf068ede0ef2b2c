//! Size classes: the size of the cell that a request gets, the length of a span of such cells, and
//! division by multiplication.
//!
//! Sizes grow by 16 bytes up to 128 bytes, and then in eight classes for each doubling up to
//! [`MAX_SMALL`]. So a cell is at most one eighth larger than its request. A span is long enough to
//! hold eight cells and to lose at most 1/64 of itself at its end.

pub(crate) use crate::limits::MAX_SPAN_PAGES;
pub use crate::limits::{GRANULE, MAX_SMALL, PAGE};

/// The number of size classes.
pub(crate) const CLASSES: usize = 8 + 8 * 8;

/// The shortest span in pages. Shorter spans would need more records for the same memory; longer
/// ones would waste more in kinds that have few cells.
const MIN_SPAN_PAGES: usize = 16;

/// The fewest cells in a span.
const MIN_CELLS: usize = 8;

/// The largest shift with which the reciprocal of 16 still fits 32 bits.
const RECIPROCAL_SHIFT: u32 = 35;

/// The numbers of a size class.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Class {
    /// Bytes of a cell.
    pub(crate) size: u32,
    /// `ceil(2^35 / size)`, for a division by multiplication. It exceeds `2^35 / size` by less than
    /// 1, so the shifted product exceeds the quotient by less than `offset / 2^35 < 2^18 / 2^35 =
    /// 2^-17`. A quotient that is no integer lies at least `1 / size >= 2^-15` below the next
    /// integer, so the product never reaches that integer.
    pub(crate) reciprocal: u32,
    /// Cells in a span.
    pub(crate) cells: u32,
    /// Pages in a span.
    pub(crate) pages: u32,
}

impl Class {
    /// Granules of a cell.
    #[inline(always)]
    pub(crate) const fn stride(&self) -> usize {
        self.size as usize / GRANULE
    }

    /// The number of the cell that byte `offset` of a span lies in. A number of `cells` or more
    /// stands for the end of the span, which is no cell.
    #[inline(always)]
    pub(crate) const fn index_of(&self, offset: usize) -> usize {
        debug_assert!(offset < MAX_SPAN_PAGES * PAGE);
        ((offset as u64 * self.reciprocal as u64) >> RECIPROCAL_SHIFT) as usize
    }
}

const fn size_of_class(class: usize) -> usize {
    if class < 8 {
        (class + 1) * 16
    } else {
        let doubling = (class - 8) / 8;
        (9 + (class - 8) % 8) << (doubling + 4)
    }
}

const fn span_pages(size: usize) -> usize {
    let mut least = (size * MIN_CELLS).div_ceil(PAGE);
    if least < MIN_SPAN_PAGES {
        least = MIN_SPAN_PAGES;
    }
    let mut best = least;
    let mut pages = least;
    while pages <= MAX_SPAN_PAGES {
        let waste = pages * PAGE % size;
        if waste * 64 <= pages * PAGE {
            return pages;
        }
        if waste * best < (best * PAGE % size) * pages {
            best = pages;
        }
        pages += 1;
    }
    best
}

/// All classes, smallest first.
pub(crate) static TABLE: [Class; CLASSES] = {
    let mut table = [Class {
        size: 0,
        reciprocal: 0,
        cells: 0,
        pages: 0,
    }; CLASSES];
    let mut class = 0;
    while class < CLASSES {
        let size = size_of_class(class);
        let pages = span_pages(size);
        table[class] = Class {
            size: size as u32,
            reciprocal: ((1u64 << RECIPROCAL_SHIFT).div_ceil(size as u64)) as u32,
            cells: (pages * PAGE / size) as u32,
            pages: pages as u32,
        };
        class += 1;
    }
    table
};

/// The class of a request of `bytes`, which is at most [`MAX_SMALL`].
#[inline(always)]
pub(crate) const fn class_of(bytes: usize) -> usize {
    debug_assert!(bytes <= MAX_SMALL);
    if bytes <= 128 {
        (bytes.saturating_sub(1)) / 16
    } else {
        let last = bytes - 1;
        let doubling = last.ilog2();
        8 + (doubling as usize - 7) * 8 + ((last >> (doubling - 3)) & 7)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each request gets the smallest size class that holds it.
    #[test]
    fn every_request_gets_the_smallest_class_that_holds_it() {
        for bytes in 0..=MAX_SMALL {
            let class = class_of(bytes);
            assert!(TABLE[class].size as usize >= bytes, "{bytes}");
            assert!(
                class == 0 || (TABLE[class - 1].size as usize) < bytes,
                "{bytes}"
            );
        }
        assert_eq!(TABLE[CLASSES - 1].size as usize, MAX_SMALL);
    }

    /// A cell wastes less than 16 bytes up to 128 bytes, and at most an eighth of its size above.
    #[test]
    fn a_cell_wastes_at_most_an_eighth_above_128_bytes_and_15_bytes_below() {
        for bytes in 1..=MAX_SMALL {
            let size = TABLE[class_of(bytes)].size as usize;
            if bytes <= 128 {
                assert!(size - bytes < 16, "{bytes}");
            } else {
                assert!((size - bytes) * 8 <= size, "{bytes} in {size}");
            }
        }
        for bytes in MAX_SMALL + 1..=4 * MAX_SMALL {
            assert!(
                (bytes.next_multiple_of(PAGE) - bytes) * 8 <= bytes.next_multiple_of(PAGE),
                "{bytes}"
            );
        }
    }

    /// A span has at least eight cells, and at most a 64th of it is unused at its end.
    #[test]
    fn a_span_holds_eight_cells_and_loses_at_most_a_64th_at_its_end() {
        for class in &TABLE {
            let (size, pages) = (class.size as usize, class.pages as usize);
            assert_eq!(size % GRANULE, 0);
            assert!(pages <= MAX_SPAN_PAGES && pages * PAGE >= 64 << 10);
            assert!(class.cells >= 8, "{class:?}");
            assert!(
                (pages * PAGE - class.cells as usize * size) * 64 <= pages * PAGE,
                "{class:?}"
            );
        }
    }

    /// The multiplication by a class's reciprocal divides each offset of a span exactly.
    #[test]
    fn the_reciprocal_divides_every_offset_of_every_span() {
        for class in &TABLE {
            for offset in 0..class.pages as usize * PAGE {
                assert_eq!(
                    class.index_of(offset),
                    offset / class.size as usize,
                    "{class:?} at {offset}"
                );
            }
        }
    }
}
