//! One thread's graph and its model: the cells by number, their content, and their reachability.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use gc_core::raw::{Encoding, KindId, RawRoot, RootRange};
use gc_core::{Heap, Mutator};

use crate::lab::fuzz::choices::Choices;
use crate::lab::fuzz::counts::Counts;
use crate::lab::fuzz::model::{Shape, TAGGED, cell_size};

pub(super) const WORD: usize = size_of::<usize>();
/// The number of a thread's roots.
pub(super) const ROOTS: usize = 12;
/// The number of a thread's scratch words. They keep the cells that a change is working on.
pub(super) const SCRATCH: usize = 4;
/// The number of cells from which on `check_all` makes a graph smaller.
const MOST_CELLS: usize = 900;

/// The source of stamps. A stamp is a small odd number, which is no address in any encoding.
static STAMP: AtomicU64 = AtomicU64::new(0);

pub(super) fn new_stamp() -> usize {
    // Relaxed: each call gets another number, and no memory is ordered by it. The lowest bits make
    // the stamp no edge in any encoding, or an edge that leads out of the heap.
    (STAMP.fetch_add(1, Ordering::Relaxed) as usize) << 4 | 5
}

pub(super) type Number = usize;

/// A cell in its thread's model.
pub(super) struct Object {
    pub(super) address: usize,
    pub(super) words: usize,
    pub(super) shape: usize,
    pub(super) stamp: usize,
    /// By index of the word: its content and its target. The shape says whether the edge is strong
    /// or weak.
    pub(super) edges: BTreeMap<usize, (usize, Number)>,
    /// In a cell of pairs, by index of the pair: key and value.
    pub(super) pairs: BTreeMap<usize, (Number, Number)>,
    /// Whether the cell has a finalizer that was not taken out of the queue yet.
    pub(super) finalizable: bool,
}

/// A list that waits for a receiver: its nodes by address and stamp, from the head on.
pub(super) struct Parcel {
    pub(super) root: RawRoot,
    pub(super) nodes: Vec<(usize, usize)>,
}

/// The state that the threads of a case share.
pub(super) struct World {
    pub(super) heap: Heap,
    pub(super) kinds: Vec<(KindId, Shape)>,
    /// The range of the immutable kinds in `kinds`.
    pub(super) fixed: std::ops::Range<usize>,
    pub(super) parcels: Mutex<VecDeque<Parcel>>,
}

/// One thread's graph.
pub(super) struct Graph<'w> {
    pub(super) world: &'w World,
    // The range is dropped before the words that it declares.
    _range: RootRange,
    pub(super) words: Box<[AtomicUsize; ROOTS + SCRATCH]>,
    _limit: Box<AtomicUsize>,
    pub(super) held: [Option<Number>; ROOTS + SCRATCH],
    pub(super) objects: BTreeMap<Number, Object>,
    pub(super) next: Number,
    /// Whether this is the thread that registers cells with finalizers and takes them from the
    /// queue. A heap has one queue, so a case has one such thread.
    pub(super) finalizes: bool,
    pub(super) counts: Counts,
}

/// A word for an edge to `address`.
pub(super) fn encoded(encoding: Encoding, address: usize, choices: &mut Choices<'_>) -> usize {
    if encoding == TAGGED {
        address | choices.below(8)
    } else {
        address & encoding.keep | encoding.value
    }
}

/// # Safety
/// The word must belong to a living cell.
pub(super) unsafe fn load(cell: usize, word: usize) -> usize {
    // SAFETY: the caller promises a living cell. Relaxed: only one thread writes the word.
    unsafe { AtomicUsize::from_ptr((cell + word * WORD) as *mut usize) }.load(Ordering::Relaxed)
}

impl<'w> Graph<'w> {
    pub(super) fn new(world: &'w World, mutator: &Mutator, finalizes: bool) -> Graph<'w> {
        let words = Box::new([const { AtomicUsize::new(0) }; ROOTS + SCRATCH]);
        let limit = Box::new(AtomicUsize::new(words.as_ptr_range().end as usize));
        // SAFETY: words and limit stay where they are until the guard was dropped.
        let range = unsafe {
            mutator
                .root_range(words.as_ptr().cast(), &raw const *limit, Encoding::RAW)
                .expect("room for a range")
        };
        Graph {
            world,
            _range: range,
            words,
            _limit: limit,
            held: [None; ROOTS + SCRATCH],
            objects: BTreeMap::new(),
            next: 0,
            finalizes,
            counts: Counts::default(),
        }
    }

    pub(super) fn shape(&self, number: Number) -> &'w Shape {
        &self.world.kinds[self.objects[&number].shape].1
    }

    pub(super) fn is_weak(&self, number: Number) -> bool {
        matches!(self.shape(number), Shape::Weak(..))
    }

    /// Stores a cell or null in a root or a scratch word. Such a store needs no barrier.
    pub(super) fn hold(&mut self, place: usize, number: Option<Number>) {
        let address = number.map_or(0, |number| self.objects[&number].address);
        // Relaxed, as for all of these words: only this thread writes them, and it is stopped or
        // detached while the collector reads them.
        self.words[place].store(address, Ordering::Relaxed);
        self.held[place] = number;
    }

    /// Stores a cell in a scratch word, before it is removed from the place where it was found.
    pub(super) fn take(&mut self, number: Number) {
        let place = ROOTS + number % SCRATCH;
        self.hold(place, Some(number));
    }

    /// Checks a cell's stamp.
    pub(super) fn look(&self, number: Number) -> Result<(), String> {
        let object = &self.objects[&number];
        // SAFETY: the model says that the cell lives. If it does not, the address still lies in the
        // heap's memory.
        let found = unsafe { load(object.address, object.words - 1) };
        if found == object.stamp {
            return Ok(());
        }
        Err(format!(
            "the cell at {:#x} ({} words, {:?}) was overwritten: its stamp is {found:#x}, not {:#x}",
            object.address, object.words, self.world.kinds[object.shape].1, object.stamp
        ))
    }

    /// Some reachable cell: the end of a random path from a random root.
    pub(super) fn walk(&self, choices: &mut Choices<'_>) -> Option<Number> {
        let first = choices.below(self.held.len());
        let mut at =
            (0..self.held.len()).find_map(|step| self.held[(first + step) % self.held.len()])?;
        for _ in 0..choices.below(12) {
            if self.is_weak(at) {
                break;
            }
            let edges = &self.objects[&at].edges;
            let Some((_, (_, next))) = edges.iter().nth(choices.below(edges.len().max(1))) else {
                break;
            };
            at = *next;
        }
        Some(at)
    }

    /// Some word of a cell whose edge may change, and its encoding.
    pub(super) fn slot(
        &self,
        number: Number,
        choices: &mut Choices<'_>,
    ) -> Option<(usize, Encoding)> {
        self.slot_of(number, choices)
            .filter(|_| !self.is_fixed(number))
    }

    /// Some word of a cell that may be an edge, and its encoding.
    pub(super) fn slot_of(
        &self,
        number: Number,
        choices: &mut Choices<'_>,
    ) -> Option<(usize, Encoding)> {
        let last = self.objects[&number].words - 1;
        let word = if choices.one_in(4) {
            choices.below(last)
        } else {
            choices.below(last.min(12))
        };
        match self.shape(number) {
            Shape::Words(words, encoding) => {
                Some((words[choices.below(words.len())] as usize, *encoding))
            }
            Shape::Conservative => Some((word, Encoding::RAW)),
            Shape::Weak(first, encoding, _) if word >= *first as usize => Some((word, *encoding)),
            shape => shape.edge(word, 0).map(|encoding| (word, encoding)),
        }
    }

    /// Overwrites a word of a cell through the barrier.
    pub(super) fn write(
        &mut self,
        mutator: &Mutator,
        from: Number,
        (word, encoding): (usize, Encoding),
        to: Option<Number>,
        choices: &mut Choices<'_>,
    ) {
        let mut value = to.map_or(0, |to| {
            encoded(encoding, self.objects[&to].address, choices)
        });
        if let (Shape::Conservative, Some(to)) = (self.shape(from), to) {
            // A conservative word may name the interior of a cell, too.
            let words = self.objects[&to].words;
            value += choices.below(2) * choices.below(words * WORD);
        }
        let Some(object) = self.objects.get_mut(&from) else {
            return;
        };
        // SAFETY: a word of a living cell.
        unsafe { mutator.write((object.address + word * WORD) as *mut usize, value) };
        match to {
            Some(to) => object.edges.insert(word, (value, to)),
            None => object.edges.remove(&word),
        };
        self.counts.words += 1;
    }

    /// Allocates a cell, which a scratch word keeps.
    pub(super) fn allocate(
        &mut self,
        mutator: &Mutator,
        choices: &mut Choices<'_>,
    ) -> Result<Number, String> {
        let shape = choices.below(self.world.kinds.len());
        let (kind, layout) = &self.world.kinds[shape];
        let bytes = match choices.below(64) {
            0..=39 => 16 + 8 * choices.below(12),
            40..=58 => 16 + choices.below(1 << 10),
            59..=62 => 1 + choices.below(32 << 10),
            _ => 32769 + choices.below(128 << 10),
        };
        let bytes = bytes.max(layout.least() + WORD).max(3 * WORD);
        let targets = self.targets(shape, choices);
        // SAFETY: the cell is in a register or on the stack until a scratch word has it.
        let cell = unsafe { mutator.alloc_raw(*kind, bytes) }.map_err(|e| e.to_string())?;
        let (address, words) = (cell.as_ptr() as usize, cell_size(bytes) / WORD);
        let number = self.adopt(address, words, shape, new_stamp());
        // SAFETY: the cell is new. If it is shorter than the model says, the words still lie in the
        // heap's memory.
        unsafe {
            for word in (0..words.min(16)).chain(words - words.min(16)..words) {
                let found = load(address, word);
                if found != 0 {
                    return Err(format!(
                        "word {word} of the new cell at {address:#x} is {found:#x}"
                    ));
                }
            }
            let stamp = self.objects[&number].stamp;
            ((address + (words - 1) * WORD) as *mut usize).write(stamp);
        }
        self.fill(number, &targets, choices);
        self.take(number);
        let over = self.overlapped(number);
        if let Some(other) = over
            && self.reachable()?.contains(&other)
        {
            return Err(format!(
                "the new cell at {address:#x} overlaps the living cell at {:#x}",
                self.objects[&other].address
            ));
        }
        Ok(number)
    }

    /// A cell of the model that overlaps the cell `number`.
    pub(super) fn overlapped(&self, number: Number) -> Option<Number> {
        let range = |object: &Object| object.address..object.address + object.words * WORD;
        let new = range(&self.objects[&number]);
        let over = |(_, object): &(&Number, &Object)| {
            let old = range(object);
            old.start < new.end && new.start < old.end
        };
        let mut all = self.objects.iter().filter(|(other, _)| **other != number);
        all.find(over).map(|(other, _)| *other)
    }

    pub(super) fn adopt(
        &mut self,
        address: usize,
        words: usize,
        shape: usize,
        stamp: usize,
    ) -> Number {
        let number = self.next;
        self.next += 1;
        let object = Object {
            address,
            words,
            shape,
            stamp,
            edges: BTreeMap::new(),
            pairs: BTreeMap::new(),
            finalizable: false,
        };
        self.objects.insert(number, object);
        self.counts.objects += 1;
        number
    }

    /// The cells that roots and scratch words reach, each compared with the model.
    pub(super) fn reachable(&self) -> Result<BTreeSet<Number>, String> {
        let seen = self.reached();
        seen.iter().try_for_each(|at| self.check(*at))?;
        self.check_pairs(&seen)?;
        Ok(seen)
    }

    /// The cells that roots and scratch words reach in the model. Memory is not read.
    pub(super) fn reached(&self) -> BTreeSet<Number> {
        let mut seen: BTreeSet<Number> = self.held.iter().flatten().copied().collect();
        let mut work: Vec<Number> = seen.iter().copied().collect();
        while !work.is_empty() {
            while let Some(at) = work.pop() {
                if !self.is_weak(at) {
                    let targets = self.objects[&at].edges.values().map(|(_, to)| *to);
                    work.extend(targets.filter(|to| seen.insert(*to)));
                }
            }
            let values = self.values(&seen).into_iter();
            work.extend(values.filter(|value| seen.insert(*value)));
        }
        seen
    }

    /// `reachable`, and the cells that a weak word or a finalizer may bring back. The latter may
    /// have been freed, so they are not compared.
    pub(super) fn remembered(&self, reachable: &BTreeSet<Number>) -> BTreeSet<Number> {
        let mut seen = reachable.clone();
        let finalizable = self.objects.iter().filter(|(_, object)| object.finalizable);
        let mut work: Vec<Number> = finalizable.map(|(number, _)| *number).collect();
        let holds_weakly = |at: &Number| self.is_weak(*at) || self.has_pairs(*at);
        work.extend(reachable.iter().copied().filter(holds_weakly));
        let mut done = BTreeSet::new();
        while let Some(at) = work.pop() {
            if done.insert(at) {
                seen.insert(at);
                let object = &self.objects[&at];
                work.extend(object.edges.values().map(|(_, to)| *to));
                work.extend(
                    object
                        .pairs
                        .values()
                        .flat_map(|(key, value)| [*key, *value]),
                );
            }
        }
        seen
    }

    /// Compares a reachable cell with the model.
    pub(super) fn check(&self, at: Number) -> Result<(), String> {
        self.look(at)?;
        if self.is_weak(at) {
            return Ok(());
        }
        let object = &self.objects[&at];
        for (word, (expected, _)) in &object.edges {
            // SAFETY: the stamp was right, so the cell lives.
            let found = unsafe { load(object.address, *word) };
            if found != *expected {
                return Err(format!(
                    "word {word} of the cell at {:#x} is {found:#x}, not {expected:#x}",
                    object.address
                ));
            }
        }
        Ok(())
    }

    /// Compares all reachable cells, removes the others from the model, and makes a large graph
    /// smaller.
    pub(super) fn check_all(&mut self, choices: &mut Choices<'_>) -> Result<(), String> {
        let reachable = self.reachable()?;
        let remembered = self.remembered(&reachable);
        self.objects.retain(|number, _| remembered.contains(number));
        self.counts.kept += reachable.len() as u64;
        if reachable.len() > MOST_CELLS {
            for _ in 0..ROOTS / 2 {
                self.hold(choices.below(ROOTS + SCRATCH), None);
            }
        }
        Ok(())
    }
}
