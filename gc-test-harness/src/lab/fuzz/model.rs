//! The exact model of a heap. It computes the live cells from the words themselves, with sorted
//! maps and arithmetic that share nothing with the heap's code.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use gc_core::raw::Tracer;
use gc_core::raw::{Encoding, Kind, KindId};

use super::choices::Choices;

/// The NaN boxes of Lox: a quiet NaN with the sign set.
pub const BOXED: Encoding = Encoding::nan_box(0xfffc << 48, 0xfffc << 48, (1 << 48) - 1);
/// An encoding with three tag bits in the lowest bits.
pub const TAGGED: Encoding = Encoding::low_bits(3);

/// An encoding with a fixed tag: 01 in the lowest bits.
const ODD: Encoding = Encoding {
    mask: 3,
    value: 1,
    keep: !3,
};

const WORD: usize = size_of::<usize>();

/// Encodings that a heap tries on conservative words.
pub(super) fn encodings(choices: &mut Choices<'_>) -> Vec<Encoding> {
    let lists: [&[Encoding]; 6] = [
        &[Encoding::RAW],
        &[Encoding::RAW, BOXED],
        &[BOXED, TAGGED],
        &[BOXED],
        &[TAGGED],
        &[Encoding::RAW, TAGGED, BOXED],
    ];
    lists[choices.below(lists.len())].to_vec()
}

/// The places of a kind's edges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// No word is an edge.
    Leaf,
    /// These words are edges.
    Words(Vec<u32>, Encoding),
    /// All words from this one on are edges.
    Array(u32, Encoding),
    /// The first word says how many of the words behind it are edges.
    Counted,
    /// Any word may be an edge.
    Conservative,
    /// All words from this one on are weak. A word whose target has died becomes the last value.
    Weak(u32, Encoding, usize),
}

/// Reports the edges of [`Shape::Counted`].
///
/// # Safety
/// As for any [`gc_core::raw::TraceFn`].
unsafe fn trace_counted(cell: *const u8, size: usize, tracer: &mut Tracer<'_>) {
    // SAFETY: the words lie in the cell, which has at least one.
    unsafe {
        let count = cell.cast::<usize>().read_volatile().min(size / WORD - 1);
        let first = cell as usize + WORD;
        tracer.edges(first..first + count * WORD, TAGGED);
    }
}

impl Shape {
    /// Shapes of all sorts, with all encodings. The first has [`Encoding::RAW`].
    pub fn all() -> [Shape; 10] {
        [
            Shape::Words(vec![0], Encoding::RAW),
            Shape::Leaf,
            Shape::Words(vec![1, 2, 5], TAGGED),
            Shape::Array(0, Encoding::RAW),
            Shape::Array(2, BOXED),
            Shape::Array(1, ODD),
            Shape::Counted,
            Shape::Conservative,
            Shape::Weak(0, Encoding::RAW, 0),
            Shape::Weak(2, BOXED, 0x7ff8 << 48),
        ]
    }

    /// The heap's kind for this shape.
    pub fn kind(&self) -> Kind {
        match self {
            Shape::Leaf => Kind::leaf("leaf"),
            Shape::Words(words, encoding) => Kind::words_at("words", words, *encoding),
            Shape::Array(first, encoding) => Kind::array("array", *first, *encoding),
            // SAFETY: the function reports the words that the model takes for edges, in any state
            // of the cell.
            Shape::Counted => unsafe {
                Kind::traced_with("counted", trace_counted, &[TAGGED]).spare_words()
            },
            Shape::Conservative => Kind::conservative("conservative"),
            Shape::Weak(first, encoding, cleared) => {
                Kind::weak("weak", *first, *encoding, *cleared)
            }
        }
    }

    /// The least size of a cell, in bytes.
    pub(super) fn least(&self) -> usize {
        match self {
            Shape::Words(words, _) => (words.iter().max().map_or(0, |w| *w as usize + 1)) * WORD,
            _ => 16,
        }
    }

    /// The encoding of the edge in a cell's word, if the word is an edge.
    pub(super) fn edge(&self, word: usize, count: usize) -> Option<Encoding> {
        match self {
            Shape::Words(words, encoding) => words.contains(&(word as u32)).then_some(*encoding),
            Shape::Array(first, encoding) => (word >= *first as usize).then_some(*encoding),
            Shape::Counted => (1..=count).contains(&word).then_some(TAGGED),
            Shape::Leaf | Shape::Conservative | Shape::Weak(..) => None,
        }
    }
}

/// The cell size for a request, in bytes: steps of 16 up to 128, then eight sizes for each doubling
/// up to 32 KiB, then whole pages.
pub fn cell_size(bytes: usize) -> usize {
    let step = match bytes {
        0..=128 => 16,
        129..=32768 => 1 << ((bytes - 1).ilog2() - 3),
        _ => 4096,
    };
    bytes.max(1).next_multiple_of(step)
}

/// A cell. Words that are not in the map are zero.
#[derive(Clone, Debug)]
pub struct Object {
    /// The size of the cell, in bytes.
    pub size: usize,
    /// The bytes that were requested.
    pub asked: usize,
    /// The index of its shape in the model.
    pub shape: usize,
    /// Its words by index.
    pub words: BTreeMap<usize, usize>,
}

/// The right state of one heap.
#[derive(Debug)]
pub struct Model {
    /// The heap's address range.
    pub range: Range<usize>,
    /// The encodings that the heap tries on conservative words.
    pub encodings: Vec<Encoding>,
    /// Whether a word one past the end of a cell keeps the cell. Each cell then has one byte more.
    pub past_the_end: bool,
    /// The heap's kinds and their shapes.
    pub shapes: Vec<(KindId, Shape)>,
    /// The cells, by the address of their first byte.
    pub objects: BTreeMap<usize, Object>,
    /// The cells that died last: first byte and size.
    pub dead: Vec<(usize, usize)>,
}

/// The number of dead cells that the model remembers.
const DEAD: usize = 512;

impl Model {
    /// The cell that contains an address.
    pub fn resolve(&self, address: usize) -> Option<usize> {
        let (base, object) = self.objects.range(..=address).next_back()?;
        (address - base < object.size).then_some(*base)
    }

    /// Adds the cells that a conservative word names.
    pub fn named(&self, word: usize, named: &mut BTreeSet<usize>) {
        for encoding in &self.encodings {
            let Some(address) = encoding.decode(word) else {
                continue;
            };
            named.extend(self.resolve(address));
        }
    }

    /// The cell that an exact word names: of a root range, a handle or a slot.
    pub fn exact(&self, word: usize, encoding: Encoding) -> Option<usize> {
        self.resolve(encoding.decode(word)?)
    }

    /// All cells that are reachable from `roots`, including the roots.
    pub fn reachable(&self, roots: &BTreeSet<usize>) -> BTreeSet<usize> {
        let mut seen = roots.clone();
        let mut work: Vec<usize> = roots.iter().copied().collect();
        while let Some(base) = work.pop() {
            let object = &self.objects[&base];
            let shape = &self.shapes[object.shape].1;
            let count = object.words.get(&0).copied().unwrap_or(0);
            let mut found = BTreeSet::new();
            for (at, word) in &object.words {
                if *shape == Shape::Conservative {
                    self.named(*word, &mut found);
                } else if let Some(encoding) = shape.edge(*at, count) {
                    // An edge names the first byte of a cell or nothing in this heap, because the
                    // fuzzer makes no other edges.
                    found.extend(
                        encoding
                            .decode(*word)
                            .filter(|a| self.objects.contains_key(a)),
                    );
                }
            }
            work.extend(found.into_iter().filter(|base| seen.insert(*base)));
        }
        seen
    }

    /// Does the work of a collection in the model: clears weak words whose targets are dead, and
    /// removes dead cells.
    pub fn collected(&mut self, live: &BTreeSet<usize>) {
        let mut cleared = Vec::new();
        for base in live {
            let object = &self.objects[base];
            if let Shape::Weak(first, encoding, value) = &self.shapes[object.shape].1 {
                for (at, word) in object.words.range(*first as usize..) {
                    if self
                        .exact(*word, *encoding)
                        .is_some_and(|target| !live.contains(&target))
                    {
                        cleared.push((*base, *at, *value));
                    }
                }
            }
        }
        for (base, at, value) in cleared {
            if let Some(object) = self.objects.get_mut(&base) {
                object.words.insert(at, value);
            }
        }
        let dead = &mut self.dead;
        self.objects.retain(|base, object| {
            let alive = live.contains(base);
            if !alive {
                dead.push((*base, object.size));
            }
            alive
        });
        let old = self.dead.len().saturating_sub(DEAD);
        self.dead.drain(..old);
    }

    /// Compares all words of the model with memory.
    ///
    /// # Safety
    /// The cells must be allocated, and no thread may write to them.
    pub unsafe fn check_contents(&self) -> Result<(), String> {
        for (base, object) in &self.objects {
            for (at, expected) in &object.words {
                // SAFETY: the caller says that the cell is allocated.
                let found = unsafe { ((base + at * WORD) as *const usize).read_volatile() };
                if found != *expected {
                    return Err(format!(
                        "word {at} of the cell at {base:#x} ({:?}) is {found:#x}, not {expected:#x}",
                        self.shapes[object.shape].1
                    ));
                }
            }
        }
        Ok(())
    }

    /// Compares the allocated cells of the heap with the model's cells and the tails of runs.
    pub fn check_cells(
        &self,
        cells: &[(usize, usize)],
        spare: &BTreeSet<usize>,
    ) -> Result<(), String> {
        let mut found = BTreeSet::new();
        for (base, size) in cells {
            match self.objects.get(base) {
                Some(object) if object.size == *size => {
                    found.insert(*base);
                }
                Some(object) => {
                    return Err(format!(
                        "the cell at {base:#x} has {size} bytes, not {}",
                        object.size
                    ));
                }
                None if spare.contains(base) => {}
                None => {
                    return Err(format!(
                        "the cell at {base:#x} ({size} bytes) is kept, though no word leads to it"
                    ));
                }
            }
        }
        match self.objects.iter().find(|(base, _)| !found.contains(*base)) {
            Some((base, object)) => Err(format!(
                "the cell at {base:#x} ({} bytes, {:?}) was freed, though it is reachable",
                object.size, self.shapes[object.shape].1
            )),
            None => Ok(()),
        }
    }

    /// Allocates a cell of some kind and size and fills it. `None`: the heap is full.
    ///
    /// # Errors
    /// The cell is not zero, overlaps another cell, or lies outside of the heap.
    pub fn allocate(
        &mut self,
        choices: &mut Choices<'_>,
        others: &[Range<usize>],
        allocate: &mut dyn FnMut(KindId, usize) -> Option<usize>,
    ) -> Result<Option<usize>, String> {
        let shape = choices.below(self.shapes.len());
        let (kind, least) = (self.shapes[shape].0, self.shapes[shape].1.least());
        let bytes = match choices.below(16) {
            0..=7 => 16 + 8 * choices.below(15),
            8..=11 => 16 + choices.below(1 << 10),
            12..=13 => 1 + choices.below(32 << 10),
            14 => 16,
            _ => 32769 + choices.below(96 << 10),
        };
        let bytes = bytes.max(least);
        let Some(base) = allocate(kind, bytes) else {
            return Ok(None);
        };
        let size = cell_size(bytes + usize::from(self.past_the_end));
        if !self.range.contains(&base) || !base.is_multiple_of(16) {
            return Err(format!(
                "a new cell lies at {base:#x}, outside of {:x?}",
                self.range
            ));
        }
        if let Some((other, object)) = self
            .objects
            .range(..base + size)
            .next_back()
            .filter(|(other, object)| *other + object.size > base)
        {
            return Err(format!(
                "a new cell of {size} bytes at {base:#x} overlaps the living one of {} at {other:#x}",
                object.size
            ));
        }
        // SAFETY: the words lie in the heap's memory, which is mapped even if the cell is smaller
        // than the model says.
        let words = unsafe { std::slice::from_raw_parts(base as *const usize, size / WORD) };
        if let Some(at) = words.iter().position(|word| *word != 0) {
            return Err(format!(
                "word {at} of the new cell at {base:#x} is {:#x}",
                words[at]
            ));
        }
        self.objects.insert(
            base,
            Object {
                size,
                asked: bytes,
                shape,
                words: BTreeMap::new(),
            },
        );
        for _ in 0..choices.below(6) {
            let last = size / WORD - 1;
            let at = if choices.one_in(8) {
                last
            } else {
                choices.below(last.min(12) + 1)
            };
            let word = self.content(choices, base, at, others, true);
            // SAFETY: a word of the cell.
            unsafe { ((base + at * WORD) as *mut usize).write(word) };
            self.note(base, at, word);
        }
        Ok(Some(base))
    }

    /// Notes that a word was written.
    pub fn note(&mut self, base: usize, at: usize, word: usize) {
        if let Some(object) = self.objects.get_mut(&base) {
            object.words.insert(at, word);
        }
    }

    /// A word to write into a cell that keeps what the cell's kind promises. `new` says that no
    /// collection has run since the cell was allocated.
    pub fn content(
        &self,
        choices: &mut Choices<'_>,
        base: usize,
        at: usize,
        others: &[Range<usize>],
        new: bool,
    ) -> usize {
        let object = &self.objects[&base];
        let shape = &self.shapes[object.shape].1;
        if *shape == Shape::Counted && at == 0 {
            // In a cell that is not new, the targets of words beyond the count may have died. So
            // the count stays.
            let count = object.words.get(&0).copied().unwrap_or(0);
            return if new {
                choices.below(object.size / WORD + 2)
            } else {
                count
            };
        }
        // A word beyond the count may become an edge later.
        match shape.edge(at, usize::MAX) {
            None => self.any(choices, others),
            Some(encoding) => {
                let target = self.pick(choices).filter(|_| !choices.one_in(4));
                match target {
                    Some(target) if encoding == TAGGED => target | choices.below(8),
                    Some(target) => target & encoding.keep | encoding.value,
                    None => {
                        let word = self.any(choices, others);
                        let leads_in = encoding
                            .decode(word)
                            .is_some_and(|address| self.range.contains(&address));
                        if leads_in { 0 } else { word }
                    }
                }
            }
        }
    }

    /// Some cell.
    pub fn pick(&self, choices: &mut Choices<'_>) -> Option<usize> {
        let (low, high) = (
            *self.objects.first_key_value()?.0,
            *self.objects.last_key_value()?.0,
        );
        let near = low + choices.below(high - low + 1);
        self.objects.range(near..).next().map(|(base, _)| *base)
    }

    /// Some word: one that names a cell, one that nearly does, or another.
    pub fn any(&self, choices: &mut Choices<'_>, others: &[Range<usize>]) -> usize {
        let (base, size) = match self.pick(choices) {
            Some(base) if !choices.one_in(4) => (base, self.objects[&base].size),
            _ if self.dead.is_empty() => (self.range.start, 4096),
            _ => self.dead[choices.below(self.dead.len())],
        };
        let address = match choices.below(16) {
            0..=3 => base,
            4..=5 => base + choices.below(size),
            6 => match self.objects.get(&base) {
                Some(object) if self.past_the_end => base + object.asked,
                _ => base + size,
            },
            7 => base + size - 1,
            8 => base.wrapping_sub(1 + choices.below(16)),
            // The tail of a run or of a span, the next page, or free memory.
            9 => base + size * (1 + choices.below(64)),
            10 => (base & !4095) + 4096 * choices.below(64) + choices.below(4096),
            11 => self.range.start + choices.below(self.range.len()),
            12 => [
                self.range.start,
                self.range.start - 1,
                self.range.end - 1,
                self.range.end,
                self.range.end - 16,
            ][choices.below(5)],
            13 if !others.is_empty() => {
                let other = &others[choices.below(others.len())];
                other.start + choices.below(other.len().clamp(1, 1 << 20))
            }
            _ => {
                return [
                    choices.word(),
                    choices.below(1 << 16),
                    0,
                    usize::MAX,
                    1 << 47,
                    f64::to_bits(1.5) as usize,
                ][choices.below(6)];
            }
        };
        match choices.below(8) {
            0..=4 => address,
            5 => address | choices.below(8),
            6 => address & BOXED.keep | BOXED.value,
            _ => address | choices.below(1 << 16) << 48,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_the_documented_classes() {
        for (bytes, size) in [
            (0, 16),
            (16, 16),
            (17, 32),
            (128, 128),
            (129, 144),
            (144, 144),
            (145, 160),
            (256, 256),
            (257, 288),
            (288, 288),
            (512, 512),
            (513, 576),
            (32768, 32768),
            (30000, 30720),
            (32769, 36864),
            (40960, 40960),
        ] {
            assert_eq!(cell_size(bytes), size, "{bytes}");
        }
    }
}
