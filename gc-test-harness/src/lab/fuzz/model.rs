//! The exact model: what is alive, computed from the words themselves by sorted maps and arithmetic
//! that shares nothing with the heap's.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use gc_core::raw::Tracer;
use gc_core::raw::{Encoding, Kind, KindId};

use super::choices::Choices;

/// NaN boxes as Lox has them: a quiet NaN with the sign set.
pub const BOXED: Encoding = Encoding::nan_box(0xfffc << 48, 0xfffc << 48, (1 << 48) - 1);
/// Three tag bits in the lowest places.
pub const TAGGED: Encoding = Encoding::low_bits(3);

/// A tag that must be there: 01 in the lowest bits.
const ODD: Encoding = Encoding {
    mask: 3,
    value: 1,
    keep: !3,
};

const WORD: usize = size_of::<usize>();

/// The encodings that a heap may try on a conservative word.
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

/// Where a kind's edges are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Nowhere.
    Leaf,
    /// In these words.
    Words(Vec<u32>, Encoding),
    /// From this word on.
    Array(u32, Encoding),
    /// As many words behind the first as the first says.
    Counted,
    /// Anywhere.
    Conservative,
    /// From this word on, but they keep nothing; a dead one becomes the last.
    Weak(u32, Encoding, usize),
}

/// The edges of [`Shape::Counted`].
///
/// # Safety
/// As for any [`gc_core::raw::TraceFn`].
unsafe fn trace_counted(cell: *const u8, size: usize, tracer: &mut Tracer<'_>) {
    // SAFETY: the words of the cell, at least one.
    unsafe {
        let count = cell.cast::<usize>().read_volatile().min(size / WORD - 1);
        let first = cell as usize + WORD;
        tracer.edges(first..first + count * WORD, TAGGED);
    }
}

impl Shape {
    /// A set of kinds that has each shape and each encoding. The first has [`Encoding::RAW`].
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

    /// The kind, for the heap.
    pub fn kind(&self) -> Kind {
        match self {
            Shape::Leaf => Kind::leaf("leaf"),
            Shape::Words(words, encoding) => Kind::words_at("words", words, *encoding),
            Shape::Array(first, encoding) => Kind::array("array", *first, *encoding),
            // SAFETY: reports the words that the model takes for the edges, whatever state the cell
            // is in.
            Shape::Counted => unsafe {
                Kind::traced_with("counted", trace_counted, &[TAGGED]).spare_words()
            },
            Shape::Conservative => Kind::conservative("conservative"),
            Shape::Weak(first, encoding, cleared) => {
                Kind::weak("weak", *first, *encoding, *cleared)
            }
        }
    }

    /// The least bytes of a cell.
    pub(super) fn least(&self) -> usize {
        match self {
            Shape::Words(words, _) => (words.iter().max().map_or(0, |w| *w as usize + 1)) * WORD,
            _ => 16,
        }
    }

    /// The encoding by which a cell's word keeps something alive, if it is one that does.
    pub(super) fn edge(&self, word: usize, count: usize) -> Option<Encoding> {
        match self {
            Shape::Words(words, encoding) => words.contains(&(word as u32)).then_some(*encoding),
            Shape::Array(first, encoding) => (word >= *first as usize).then_some(*encoding),
            Shape::Counted => (1..=count).contains(&word).then_some(TAGGED),
            Shape::Leaf | Shape::Conservative | Shape::Weak(..) => None,
        }
    }
}

/// What a request of so many bytes gets: steps of 16 to 128, eight sizes a doubling to 32 KiB, then
/// pages.
pub fn cell_size(bytes: usize) -> usize {
    let step = match bytes {
        0..=128 => 16,
        129..=32768 => 1 << ((bytes - 1).ilog2() - 3),
        _ => 4096,
    };
    bytes.max(1).next_multiple_of(step)
}

/// A cell. Words that are not listed are zero.
#[derive(Clone, Debug)]
pub struct Object {
    /// Bytes.
    pub size: usize,
    /// Bytes that were asked for.
    pub asked: usize,
    /// Index into the model's shapes.
    pub shape: usize,
    /// Its words.
    pub words: BTreeMap<usize, usize>,
}

/// One heap as it has to be.
#[derive(Debug)]
pub struct Model {
    /// The heap's addresses.
    pub range: Range<usize>,
    /// Tried on conservative words.
    pub encodings: Vec<Encoding>,
    /// Does a word just past the bytes of a cell keep it? Then each cell has a byte more.
    pub past_the_end: bool,
    /// The heap's kinds.
    pub shapes: Vec<(KindId, Shape)>,
    /// Cells by their first byte.
    pub objects: BTreeMap<usize, Object>,
    /// Where cells were that have died, the last ones: first byte and size.
    pub dead: Vec<(usize, usize)>,
}

/// How many dead cells are remembered.
const DEAD: usize = 512;

impl Model {
    /// The cell that an address lies in.
    pub fn resolve(&self, address: usize) -> Option<usize> {
        let (base, object) = self.objects.range(..=address).next_back()?;
        (address - base < object.size).then_some(*base)
    }

    /// The cells that a word which may be anything names.
    pub fn named(&self, word: usize, named: &mut BTreeSet<usize>) {
        for encoding in &self.encodings {
            let Some(address) = encoding.decode(word) else {
                continue;
            };
            named.extend(self.resolve(address));
        }
    }

    /// The cell that a word of a root range, a handle or a slot names.
    pub fn exact(&self, word: usize, encoding: Encoding) -> Option<usize> {
        self.resolve(encoding.decode(word)?)
    }

    /// Everything that is reachable from `roots`, themselves included.
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
                    // An edge leads to a cell's first byte or to nothing of this heap: so they are
                    // made.
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

    /// What a collection has to leave: weak words to the dead are cleared, the dead are gone.
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

    /// Compares every listed word of every cell with memory.
    ///
    /// # Safety
    /// The objects are allocated, and no thread writes to them.
    pub unsafe fn check_contents(&self) -> Result<(), String> {
        for (base, object) in &self.objects {
            for (at, expected) in &object.words {
                // SAFETY: a word of an allocated cell, says the caller.
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

    /// Compares the set of allocated cells with what has to be there: the objects and the tails of
    /// runs.
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

    /// A new cell of some kind and size, filled, unless the heap is full.
    ///
    /// # Errors
    /// If the cell is not zero, or overlaps another.
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
        // SAFETY: the heap's memory from there to the end of what such a cell has to be, still
        // mapped should it be less.
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

    /// Something to write to a cell's word, which keeps what the kind promises of it; `new` while
    /// nothing was collected since the cell was made.
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
            // Once it is not new any more, what did not count so far may have died.
            let count = object.words.get(&0).copied().unwrap_or(0);
            return if new {
                choices.below(object.size / WORD + 2)
            } else {
                count
            };
        }
        // A word that does not count yet may count soon.
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

    /// Any cell.
    pub fn pick(&self, choices: &mut Choices<'_>) -> Option<usize> {
        let (low, high) = (
            *self.objects.first_key_value()?.0,
            *self.objects.last_key_value()?.0,
        );
        let near = low + choices.below(high - low + 1);
        self.objects.range(near..).next().map(|(base, _)| *base)
    }

    /// Any word: one that may name a cell in some way, or looks as if, or does not.
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
            // The tail of a run or of a span, the next unit, free memory.
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
