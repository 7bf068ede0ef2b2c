//! The edges of one cell, reported to a [`Sink`]. No other file interprets the layouts of kinds.

use std::ops::Range;

use crate::kind::{Descriptor, Tag};
use crate::tracer::{Sink, Tracer, WORD, load};

/// Bytes of an ephemeron's pair.
const PAIR: usize = 2 * WORD;

/// Pairs by which a key's mark is prefetched before it is needed.
const KEYS_AHEAD: usize = 8;

/// Reports the edges of a cell. If the cell's words are independent of each other, only those in
/// `part`.
///
/// # Safety
/// `cell` is an allocated cell of `size` bytes and of this descriptor's kind; `part` lies in it.
#[inline(always)]
pub(crate) unsafe fn follow<S: Sink>(
    descriptor: &Descriptor,
    cell: usize,
    size: usize,
    part: Range<usize>,
    sink: &mut S,
) {
    let encoding = descriptor.encoding;
    // SAFETY: all words that are read lie in the cell; a words kind's slots were checked against
    // the class when the site was made.
    unsafe {
        match descriptor.tag {
            Tag::Leaf | Tag::Weak => {}
            Tag::Words => follow_words(descriptor, cell, part, sink),
            Tag::Array => {
                let first = (cell + descriptor.first_word as usize * WORD).max(part.start);
                for word in (first..part.end).step_by(WORD) {
                    sink.edge(load(word), encoding);
                }
            }
            Tag::Elements => follow_elements(descriptor, cell, part, sink),
            Tag::Conservative => {
                for word in part.step_by(WORD) {
                    sink.conservative(load(word));
                }
            }
            Tag::Ephemeron => follow_pairs(descriptor, cell, size, part, sink),
            Tag::Traced => {
                if let Some(trace) = descriptor.trace {
                    trace(cell as *const u8, size, &mut Tracer::new(sink));
                }
            }
        }
    }
}

/// Reports the edges of a cell of a words kind that lie in `part`.
///
/// # Safety
/// `cell` is an allocated cell of this descriptor's kind, which is a words kind; `part` lies in it,
/// and begins at a multiple of 64 words from the cell's start.
#[inline(always)]
unsafe fn follow_words<S: Sink>(
    descriptor: &Descriptor,
    cell: usize,
    part: Range<usize>,
    sink: &mut S,
) {
    /// Bytes of a cell that a word of the slot bitmap describes.
    const BYTES: usize = 64 * WORD;
    let encoding = descriptor.encoding;
    let mut words = part.start;
    let mut index = (words - cell) / BYTES;
    let end = (descriptor.slot_words as usize).min((part.end - cell).div_ceil(BYTES));
    let mut slots = match index {
        0 => descriptor.first_slots,
        // SAFETY: `index` is below the bitmap's length.
        _ if index < end => unsafe { *descriptor.slots.add(index) },
        _ => return,
    };
    loop {
        while slots != 0 {
            let word = words + slots.trailing_zeros() as usize * WORD;
            slots &= slots - 1;
            // SAFETY: the kind's slots were checked against the cell's class when the site was
            // made.
            sink.edge(unsafe { load(word) }, encoding);
        }
        index += 1;
        if index >= end {
            break;
        }
        // SAFETY: `index` is below the bitmap's length.
        slots = unsafe { *descriptor.slots.add(index) };
        words += BYTES;
    }
}

/// Reports the pairs of an ephemeron cell whose first words lie in `part`.
///
/// # Safety
/// As [`follow`].
#[inline]
unsafe fn follow_pairs<S: Sink>(
    descriptor: &Descriptor,
    cell: usize,
    size: usize,
    part: Range<usize>,
    sink: &mut S,
) {
    let encoding = descriptor.encoding;
    let first = cell + descriptor.first_word as usize * WORD;
    // A pair belongs to the part that its first word lies in.
    let skipped = part.start.saturating_sub(first).next_multiple_of(PAIR);
    let last = cell + size - PAIR;
    for slot in (first + skipped..part.end).step_by(PAIR) {
        if slot > last {
            break;
        }
        if slot + KEYS_AHEAD * PAIR <= last {
            // SAFETY: a pair of the cell.
            let key = unsafe { load(slot + KEYS_AHEAD * PAIR) };
            sink.key_ahead(key, encoding);
        }
        sink.pair(slot, encoding);
    }
}

/// Reports the edges of a cell of elements that lie in `part`.
///
/// # Safety
/// `cell` is an allocated cell of this descriptor's kind, which is one of elements; `part` lies in
/// it.
#[inline]
unsafe fn follow_elements<S: Sink>(
    descriptor: &Descriptor,
    cell: usize,
    part: Range<usize>,
    sink: &mut S,
) {
    let encoding = descriptor.encoding;
    let first = cell + descriptor.first_word as usize * WORD;
    let bytes = descriptor.stride as usize * WORD;
    let begun = part.start.saturating_sub(first) / bytes;
    let mut element = first + begun * bytes;
    while element < part.end {
        for slot in slots(descriptor) {
            let word = element + slot * WORD;
            // An element may lie in two parts, and the last one may be cut off by the cell's end.
            if part.contains(&word) {
                // SAFETY: a word of the cell.
                sink.edge(unsafe { load(word) }, encoding);
            }
        }
        element += bytes;
    }
}

/// The numbers of a cell's words that are edges, for a kind that has them at places that do not
/// depend on the cell's content: words, arrays, elements. `size` is the cell's.
pub(crate) fn fixed_edges(
    descriptor: &Descriptor,
    size: usize,
) -> impl Iterator<Item = usize> + '_ {
    let (first, stride) = match descriptor.tag {
        Tag::Array => (descriptor.first_word as usize, 1),
        Tag::Elements => (descriptor.first_word as usize, descriptor.stride as usize),
        // One element: the cell.
        _ => (0, (size / WORD).max(1)),
    };
    let words = size / WORD;
    let all = (descriptor.tag == Tag::Array).then_some(0);
    (first..words)
        .step_by(stride)
        .flat_map(move |element| {
            all.into_iter()
                .chain(slots(descriptor))
                .map(move |slot| element + slot)
        })
        .filter(move |word| *word < words)
}

/// The set bits of a descriptor's slots.
fn slots(descriptor: &Descriptor) -> impl Iterator<Item = usize> + '_ {
    (0..descriptor.slot_words as usize).flat_map(|index| {
        // SAFETY: `index` is below the bitmap's length.
        let mut slots = unsafe { *descriptor.slots.add(index) };
        core::iter::from_fn(move || {
            let slot = slots.trailing_zeros() as usize;
            slots &= slots.wrapping_sub(1);
            (slot < 64).then_some(index * 64 + slot)
        })
    })
}
