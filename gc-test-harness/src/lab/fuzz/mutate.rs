//! The fuzzer's third sort of case: threads that change their graphs while cycles mark them, each
//! against a model of its own.
//!
//! A thread knows its cells by number. Each has a *stamp* in its last word, which is no edge, and
//! edges of its kind's encoding. All that a thread reaches by its model must be there as the model
//! says, at any time; what a weak word or a finalizer gives must be a cell whole. The model's
//! addresses lie in malloc's memory, which nobody scans: a cell lives by the graph, the thread's
//! roots, or its scratch words, of which only what they held at a cycle's first stop counts. So
//! whatever the barrier, the marker or the allocator forgets is lost soon, and its memory is
//! another cell's. At the end, when the threads are gone, nothing but what the models reach may be
//! left.

mod finalizers;
mod fixed;
mod operations;
mod pairs;

pub use operations::operations;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use gc_core::{Encoding, Heap, KindId, Mutator, RawRoot, RootRange, Young};

use super::Counts;
use super::choices::Choices;
use super::model::{BOXED, Shape, TAGGED, cell_size};

const WORD: usize = size_of::<usize>();
/// Roots of a thread.
const ROOTS: usize = 12;
/// What a thread has in its hands.
const SCRATCH: usize = 4;
/// Steps of a thread: some cycles long.
const STEPS: usize = 12_000;
/// A thread's graph is looked at as a whole so often, and cut down where it has become larger than
/// that.
const CHECK_EVERY: usize = 400;
const MOST_CELLS: usize = 900;
/// Lists on the way from one thread to another.
const MOST_PARCELS: usize = 8;

/// A stamp is a small odd number: no address in any encoding.
static STAMP: AtomicU64 = AtomicU64::new(0);

fn new_stamp() -> usize {
    // Relaxed: a number that nobody else has. The lowest bits tell it from an edge in each encoding
    // but one that leads outside of the heap.
    (STAMP.fetch_add(1, Ordering::Relaxed) as usize) << 4 | 5
}

type Number = usize;

/// A cell, as its thread knows it.
struct Object {
    address: usize,
    words: usize,
    shape: usize,
    stamp: usize,
    /// By word: the word, and whom it leads to. Strong or weak by the shape.
    edges: BTreeMap<usize, (usize, Number)>,
    /// Of a cell of pairs: keys and values.
    pairs: BTreeMap<usize, (Number, Number)>,
    /// Registered with a finalizer that has not come out yet.
    finalizable: bool,
}

/// A list on its way: nodes by address and stamp, from the head on.
struct Parcel {
    root: RawRoot,
    nodes: Vec<(usize, usize)>,
}

/// What the threads of one case share.
struct World {
    heap: Heap,
    kinds: Vec<(KindId, Shape)>,
    /// Of these, the immutable ones.
    fixed: std::ops::Range<usize>,
    parcels: Mutex<VecDeque<Parcel>>,
}

/// One thread's graph.
struct Graph<'w> {
    world: &'w World,
    // Before the words that it declares.
    _range: RootRange,
    words: Box<[AtomicUsize; ROOTS + SCRATCH]>,
    _limit: Box<AtomicUsize>,
    held: [Option<Number>; ROOTS + SCRATCH],
    objects: BTreeMap<Number, Object>,
    next: Number,
    /// The case's thread that registers cells with finalizers and takes them when they have died:
    /// they come out in one queue.
    digs: bool,
    counts: Counts,
}

/// The word of an edge to `address`.
fn encoded(encoding: Encoding, address: usize, choices: &mut Choices<'_>) -> usize {
    if encoding == TAGGED {
        address | choices.below(8)
    } else {
        address & encoding.keep | encoding.value
    }
}

/// # Safety
/// A word of a cell that lives.
unsafe fn load(cell: usize, word: usize) -> usize {
    // SAFETY: the caller's promise. Relaxed: one thread writes it.
    unsafe { AtomicUsize::from_ptr((cell + word * WORD) as *mut usize) }.load(Ordering::Relaxed)
}

impl<'w> Graph<'w> {
    fn new(world: &'w World, mutator: &Mutator, digs: bool) -> Graph<'w> {
        let words = Box::new([const { AtomicUsize::new(0) }; ROOTS + SCRATCH]);
        let limit = Box::new(AtomicUsize::new(words.as_ptr_range().end as usize));
        // SAFETY: both live at their places until after the guard is dropped.
        let range =
            unsafe { mutator.root_range(words.as_ptr().cast(), &raw const *limit, Encoding::RAW) };
        Graph {
            world,
            _range: range,
            words,
            _limit: limit,
            held: [None; ROOTS + SCRATCH],
            objects: BTreeMap::new(),
            next: 0,
            digs,
            counts: Counts::default(),
        }
    }

    fn shape(&self, number: Number) -> &'w Shape {
        &self.world.kinds[self.objects[&number].shape].1
    }

    fn is_weak(&self, number: Number) -> bool {
        matches!(self.shape(number), Shape::Weak(..))
    }

    /// Lets a root or a scratch word hold a cell, or nothing. Needs no barrier.
    fn hold(&mut self, place: usize, number: Option<Number>) {
        let address = number.map_or(0, |number| self.objects[&number].address);
        self.words[place].store(address, Ordering::Relaxed);
        self.held[place] = number;
    }

    /// Takes a cell into the hands, before it leaves the place where it was found.
    fn take(&mut self, number: Number) {
        let place = ROOTS + number % SCRATCH;
        self.hold(place, Some(number));
    }

    /// Looks at a cell's stamp.
    fn look(&self, number: Number) -> Result<(), String> {
        let object = &self.objects[&number];
        // SAFETY: the model says that it lives; should it not, it is the heap's memory all the
        // same.
        let found = unsafe { load(object.address, object.words - 1) };
        if found == object.stamp {
            return Ok(());
        }
        Err(format!(
            "the cell at {:#x} ({} words, {:?}) is not what it was: its stamp is {found:#x}, not {:#x}",
            object.address, object.words, self.world.kinds[object.shape].1, object.stamp
        ))
    }

    /// Some cell that is reachable: a random way from a random root.
    fn walk(&self, choices: &mut Choices<'_>) -> Option<Number> {
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

    /// Some word of a cell that can become another edge, and its encoding.
    fn slot(&self, number: Number, choices: &mut Choices<'_>) -> Option<(usize, Encoding)> {
        self.slot_of(number, choices)
            .filter(|_| !self.is_fixed(number))
    }

    /// Some word of a cell that can be an edge, and its encoding.
    fn slot_of(&self, number: Number, choices: &mut Choices<'_>) -> Option<(usize, Encoding)> {
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

    /// Overwrites a word of a cell, through the barrier unless the cell is new.
    fn write(
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
            // Into the cell, as well as at its beginning.
            let words = self.objects[&to].words;
            value += choices.below(2) * choices.below(words * WORD);
        }
        let Some(object) = self.objects.get_mut(&from) else {
            return;
        };
        // SAFETY: a word of a cell that lives.
        unsafe { mutator.write((object.address + word * WORD) as *mut usize, value) };
        match to {
            Some(to) => object.edges.insert(word, (value, to)),
            None => object.edges.remove(&word),
        };
        self.counts.words += 1;
    }

    /// A new cell, in the hands.
    fn allocate(&mut self, mutator: &Mutator, choices: &mut Choices<'_>) -> Result<Number, String> {
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
        // SAFETY: in a register or on the stack until it is in the hands.
        let cell = unsafe { mutator.alloc(*kind, bytes) }.map_err(|e| e.to_string())?;
        let (address, words) = (cell.as_ptr() as usize, cell_size(bytes) / WORD);
        let number = self.adopt(address, words, shape, new_stamp());
        // SAFETY: the cell is new; it is as long as the model says, or the heap's memory is.
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
                "the new cell at {address:#x} lies over the living one at {:#x}",
                self.objects[&other].address
            ));
        }
        Ok(number)
    }

    /// A cell that lies where `number` does, in the model.
    fn overlapped(&self, number: Number) -> Option<Number> {
        let range = |object: &Object| object.address..object.address + object.words * WORD;
        let new = range(&self.objects[&number]);
        let over = |(_, object): &(&Number, &Object)| {
            let old = range(object);
            old.start < new.end && new.start < old.end
        };
        let mut all = self.objects.iter().filter(|(other, _)| **other != number);
        all.find(over).map(|(other, _)| *other)
    }

    fn adopt(&mut self, address: usize, words: usize, shape: usize, stamp: usize) -> Number {
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

    /// All that the roots and hands reach, looked at.
    fn reachable(&self) -> Result<BTreeSet<Number>, String> {
        let seen = self.reached();
        seen.iter().try_for_each(|at| self.check(*at))?;
        self.check_pairs(&seen)?;
        Ok(seen)
    }

    /// All that the roots and hands reach by the model, which nothing is compared with.
    fn reached(&self) -> BTreeSet<Number> {
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

    /// `reachable`, and what a weak word or a finalizer may bring back, which is not looked at: it
    /// may be gone.
    fn remembered(&self, reachable: &BTreeSet<Number>) -> BTreeSet<Number> {
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
    fn check(&self, at: Number) -> Result<(), String> {
        self.look(at)?;
        if self.is_weak(at) {
            return Ok(());
        }
        let object = &self.objects[&at];
        for (word, (expected, _)) in &object.edges {
            // SAFETY: the stamp is right, so the cell lives.
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

    /// Looks at everything, forgets what is gone, and cuts the graph down.
    fn check_all(&mut self, choices: &mut Choices<'_>) -> Result<(), String> {
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

    /// One change.
    fn step(&mut self, mutator: &Mutator, choices: &mut Choices<'_>) -> Result<(), String> {
        match choices.below(64) {
            0..=17 => self.grow(mutator, choices)?,
            18..=39 => self.carry(mutator, choices)?,
            40..=43 => self.cut(mutator, choices)?,
            44..=47 => {
                let found = self.walk(choices).filter(|_| !choices.one_in(6));
                self.hold(choices.below(ROOTS), found);
            }
            48..=51 => {
                let place = choices.below(ROOTS + SCRATCH);
                self.hold(place, None);
            }
            52..=57 => self.weakly(mutator, choices)?,
            58 if self.digs => self.bury(mutator, choices),
            59 if self.digs => self.dig_up(mutator, choices)?,
            60 => self.send(mutator, choices)?,
            61 => self.receive(mutator, choices)?,
            62 => self.tie(mutator, choices)?,
            63 if choices.one_in(2) => self.look_up(mutator, choices)?,
            63 if choices.one_in(4) => {
                let found = self.walk(choices);
                found.map_or(Ok(()), |found| self.check(found))?;
            }
            _ => match choices.below(32) {
                0 => mutator.blocking(std::thread::yield_now),
                1 => drop(self.world.heap.request_collection()),
                2 if choices.one_in(8) => drop(mutator.collect()),
                _ => (0..choices.below(200)).for_each(|_| std::hint::spin_loop()),
            },
        }
        Ok(())
    }

    /// A new cell with some edges, put somewhere.
    fn grow(&mut self, mutator: &Mutator, choices: &mut Choices<'_>) -> Result<(), String> {
        let new = self.allocate(mutator, choices)?;
        for _ in 0..choices.below(4) {
            if let (Some(to), Some(slot)) = (self.walk(choices), self.slot(new, choices)) {
                self.write(mutator, new, slot, Some(to), choices);
            }
        }
        match self.walk(choices) {
            Some(from) if !choices.one_in(4) => {
                if let Some(slot) = self.slot(from, choices) {
                    self.write(mutator, from, slot, Some(new), choices);
                }
            }
            _ => self.hold(choices.below(ROOTS), Some(new)),
        }
        Ok(())
    }

    /// Takes a cell out of another, keeps it in the hands for a while, and puts it elsewhere.
    fn carry(&mut self, mutator: &Mutator, choices: &mut Choices<'_>) -> Result<(), String> {
        let may_change = |from: &Number| !self.is_weak(*from) && !self.is_fixed(*from);
        let Some(from) = self.walk(choices).filter(may_change) else {
            return Ok(());
        };
        self.check(from)?;
        let edges = &self.objects[&from].edges;
        let Some((word, (_, target))) = edges.iter().nth(choices.below(edges.len().max(1))) else {
            return Ok(());
        };
        let (word, target) = (*word, *target);
        self.look(target)?;
        self.take(target);
        self.write(mutator, from, (word, Encoding::RAW), None, choices);
        (0..choices.below(64)).for_each(|_| std::hint::spin_loop());
        self.look(target)?;
        if let Some(to) = self.walk(choices)
            && let Some(slot) = self.slot(to, choices)
        {
            self.write(mutator, to, slot, Some(target), choices);
        }
        Ok(())
    }

    /// Makes an edge null.
    fn cut(&mut self, mutator: &Mutator, choices: &mut Choices<'_>) -> Result<(), String> {
        if let Some(from) = self.walk(choices)
            && let Some((word, _)) = self.slot(from, choices)
        {
            self.write(mutator, from, (word, Encoding::RAW), None, choices);
        }
        Ok(())
    }

    /// Loads a weak word, and puts what it gives somewhere.
    fn weakly(&mut self, mutator: &Mutator, choices: &mut Choices<'_>) -> Result<(), String> {
        let Some(from) = self.walk(choices).filter(|from| self.is_weak(*from)) else {
            return Ok(());
        };
        self.look(from)?;
        let Shape::Weak(_, _, cleared) = *self.shape(from) else {
            return Ok(());
        };
        let object = &self.objects[&from];
        let edges = &object.edges;
        let Some((word, (expected, target))) = edges.iter().nth(choices.below(edges.len().max(1)))
        else {
            return Ok(());
        };
        let (word, expected, target) = (*word, *expected, *target);
        let slot = (object.address + word * WORD) as *const usize;
        let (place, address) = (ROOTS + target % SCRATCH, self.objects[&target].address);
        // Into the hands at once: in a register, a boxed word would be nothing to heaps that look
        // for addresses only.
        let found = mutator.no_preempt(|| {
            // SAFETY: a word of a weak cell that lives.
            let found = unsafe { mutator.load_weak(slot) };
            if found == expected {
                self.words[place].store(address, Ordering::Relaxed);
            }
            found
        });
        if found == expected {
            self.take(target);
            self.look(target)
                .map_err(|what| format!("{what} (loaded from a weak word)"))?;
            if choices.one_in(3) {
                self.hold(choices.below(ROOTS), Some(target));
            }
        } else if found != cleared {
            return Err(format!(
                "a weak word of the cell at {:#x} is {found:#x}, neither {expected:#x} nor {cleared:#x}",
                object.address
            ));
        } else {
            if self.reachable()?.contains(&target) {
                return Err(format!(
                    "the weak word to the cell at {:#x} was cleared, though that is reachable",
                    self.objects[&target].address
                ));
            }
            if let Some(object) = self.objects.get_mut(&from) {
                object.edges.remove(&word);
            }
            self.counts.freed += 1;
        }
        Ok(())
    }

    /// Makes a list for another thread.
    fn send(&mut self, mutator: &Mutator, choices: &mut Choices<'_>) -> Result<(), String> {
        let (kind, _) = &self.world.kinds[LIST];
        let (mut nodes, mut head) = (Vec::new(), 0);
        for _ in 0..1 + choices.below(12) {
            // SAFETY: three words; on the stack, or behind what is.
            unsafe {
                let node = mutator.alloc(*kind, 3 * WORD).map_err(|e| e.to_string())?;
                let (node, stamp) = (node.cast::<usize>().as_ptr(), new_stamp());
                node.write(head);
                // As long as the size class, of whose words the last has the stamp.
                node.add(cell_size(3 * WORD) / WORD - 1).write(stamp);
                head = node as usize;
                nodes.insert(0, (head, stamp));
                // The vector is no root, and the compiler might keep the head nowhere else.
                self.words[ROOTS].store(head, Ordering::Relaxed);
                self.held[ROOTS] = None;
            }
        }
        let Some(cell) = NonNull::new(head as *mut u8) else {
            return Ok(());
        };
        // SAFETY: in the hands.
        let Some(root) = (unsafe { mutator.raw_root(cell) }) else {
            return Ok(());
        };
        // Nobody waits: who holds the lock may be stopped.
        if let Ok(mut parcels) = self.world.parcels.try_lock()
            && parcels.len() < MOST_PARCELS
        {
            parcels.push_back(Parcel { root, nodes });
        }
        self.words[ROOTS].store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Takes a list that another thread has made into the graph.
    fn receive(&mut self, mutator: &Mutator, choices: &mut Choices<'_>) -> Result<(), String> {
        let parcel = match self.world.parcels.try_lock() {
            Ok(mut parcels) => parcels.pop_front(),
            Err(_) => None,
        };
        let Some(Parcel { root, nodes }) = parcel else {
            return Ok(());
        };
        let words = cell_size(3 * WORD) / WORD;
        let mut before: Option<Number> = None;
        for (address, stamp) in nodes {
            let number = self.adopt(address, words, LIST, stamp);
            self.look(number)
                .map_err(|what| format!("{what} (another thread's)"))?;
            match before.and_then(|before| self.objects.get_mut(&before)) {
                Some(object) => drop(object.edges.insert(0, (address, number))),
                None => self.take(number),
            }
            before = Some(number);
        }
        let head = root.get().map_or(0, |cell| cell.as_ptr() as usize);
        drop(root);
        let held = self.held.iter().flatten().copied();
        let Some(number) = held.into_iter().find(|n| self.objects[n].address == head) else {
            return Ok(());
        };
        self.check(number)?;
        if let Some(from) = self.walk(choices)
            && let Some(slot) = self.slot(from, choices)
        {
            self.write(mutator, from, slot, Some(number), choices);
        }
        Ok(())
    }
}

/// The kind of lists that change hands: the first.
const LIST: usize = 0;

/// Runs a thread's part.
fn play(world: &World, seed: u64, digs: bool) -> Result<Graph<'_>, String> {
    let mut choices = Choices::Seeded(seed);
    let attach = || world.heap.attach().map_err(|e| e.to_string());
    let mut mutator = attach()?;
    let mut graph = Graph::new(world, &mutator, digs);
    for step in 1..=STEPS {
        graph.step(&mutator, &mut choices)?;
        if step % CHECK_EVERY == 0 {
            graph.check_all(&mut choices)?;
        }
        if step % 512 == 0 && choices.one_in(4) {
            // The roots are declared, whether somebody is attached or not.
            drop(mutator);
            mutator = attach()?;
        }
    }
    graph.check_all(&mut choices)?;
    Ok(graph)
}

/// A heap with all kinds, set up by the choices.
fn world(choices: &mut Choices<'_>, beside: bool) -> Result<World, String> {
    let encodings = [
        &[Encoding::RAW][..],
        &[Encoding::RAW, BOXED],
        &[TAGGED, Encoding::RAW],
    ][choices.below(3)];
    let mut builder = Heap::builder();
    if choices.one_in(2) {
        builder = builder.markers(1 + choices.below(3) as u32);
    }
    let heap = builder
        .reserve(1 << 30)
        .conservative(encodings)
        .lingering(choices.one_in(2))
        .continuous(beside && !choices.one_in(3))
        .concurrent(!choices.one_in(16))
        .young_collections([Young::Always, Young::WherePays][choices.below(2)])
        .verify(choices.one_in(4))
        .build()
        .map_err(|e| e.to_string())?;
    let mut kinds = Vec::new();
    for shape in Shape::all() {
        // What decides which words count may not change in a cell that others know.
        if shape != Shape::Counted {
            kinds.push((heap.kind(shape.kind()).map_err(|e| e.to_string())?, shape));
        }
    }
    let first = kinds.len();
    for (kind, shape) in fixed::kinds() {
        kinds.push((heap.kind(kind).map_err(|e| e.to_string())?, shape));
    }
    let fixed = first..kinds.len();
    kinds.push((
        heap.kind(pairs::kind()).map_err(|e| e.to_string())?,
        Shape::Leaf,
    ));
    Ok(World {
        fixed,
        heap,
        kinds,
        parcels: Mutex::default(),
    })
}

/// Runs one case.
///
/// # Errors
/// The first wrong answer.
pub fn check(choices: &mut Choices<'_>) -> Result<Counts, String> {
    let world = world(choices, true)?;
    let seeds: Vec<u64> = (0..1 + choices.below(3))
        .map(|_| choices.word() as u64)
        .collect();
    let graphs = std::thread::scope(|scope| {
        let threads: Vec<_> = seeds
            .iter()
            .enumerate()
            .map(|(at, seed)| (&world, at, *seed))
            .map(|(world, at, seed)| scope.spawn(move || play(world, seed, at == 0)))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
            Ok(graph) => graph,
            Err(panic) => Err(super::message(&panic)),
        };
        threads.into_iter().map(join).collect::<Result<Vec<_>, _>>()
    })?;
    outcome(&world, &graphs)
}

/// What the threads have done; what their models reach must be left, and nothing else.
fn outcome(world: &World, graphs: &[Graph<'_>]) -> Result<Counts, String> {
    let mut counts = Counts {
        cases: 1,
        ..Counts::default()
    };
    let mut left = BTreeSet::new();
    for graph in graphs {
        counts += graph.counts;
        for number in graph.reachable()? {
            left.insert(graph.objects[&number].address);
        }
    }
    counts.freed += nothing_else(world, &left)?;
    counts.collections = world.heap.stats().collections;
    Ok(counts)
}

/// With all threads gone: `left` must be there, and nothing else. Gives the number of cells that
/// have been freed.
fn nothing_else(world: &World, left: &BTreeSet<usize>) -> Result<u64, String> {
    let parcels = world
        .parcels
        .lock()
        .map(|mut parcels| std::mem::take(&mut *parcels));
    drop(parcels);
    // Queues of the dead are roots, too. On a thread of its own, as its stack is one.
    for _ in 0..3 {
        world.heap.collect();
        std::thread::scope(|scope| {
            let drained = scope.spawn(|| {
                let mutator = world.heap.attach().map_err(|e| e.to_string())?;
                mutator.drain_finalizers(|_, _| ());
                Ok(())
            });
            drained
                .join()
                .unwrap_or_else(|panic| Err(super::message(&panic)))
        })?;
    }
    world.heap.collect();
    let (mut found, mut other) = (0, 0);
    world
        .heap
        .for_each_cell(|cell| {
            if left.contains(&cell.base) {
                found += 1;
            } else {
                other = cell.base;
            }
        })
        .map_err(|e| e.to_string())?;
    if other != 0 {
        return Err(format!(
            "the cell at {other:#x} is kept, though nothing leads to it"
        ));
    }
    if found != left.len() {
        return Err(format!("{found} of {} cells are left", left.len()));
    }
    Ok(world.heap.stats().cells_freed)
}
