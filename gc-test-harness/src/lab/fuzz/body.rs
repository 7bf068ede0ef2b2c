//! Fuzz cases without threads: a heap, words, and the cells that they mark. A fuzzing engine runs
//! these cases, too.

use std::collections::BTreeSet;
use std::ops::Range;

use gc_core::internals::{LargeStep, Space, SpaceConfig};
use gc_core::internals::{LocalAllocator, Refill, bump};
use gc_core::internals::{MarkQueue, Marker, WeakWork};
use gc_core::raw::KindId;

use super::choices::Choices;
use super::counts::Counts;
use super::model::{BOXED, Model, Shape, encodings};

/// A heap and two local allocators, all in one thread.
struct Toy {
    space: Space,
    runs: [LocalAllocator; 2],
    queue: MarkQueue,
    weak: WeakWork,
    model: Model,
}

impl Toy {
    fn new(choices: &mut Choices<'_>) -> Result<Toy, String> {
        let encodings = encodings(choices);
        let past_the_end = choices.one_in(2);
        let config = SpaceConfig {
            reserve: 32 << 20,
            conservative: encodings.clone(),
            past_the_end,
            ..SpaceConfig::default()
        };
        // SAFETY: the toy has one thread, its local allocators and queue are made for this space,
        // and it gives nothing to another thread.
        let space = unsafe { Space::bare(config) }.map_err(|e| e.to_string())?;
        let queue =
            MarkQueue::new(&space, 64 << (4 * choices.below(2))).map_err(|e| e.to_string())?;
        let weak = WeakWork::new(&space).map_err(|e| e.to_string())?;
        let mut shapes = Vec::new();
        // The collector clears weak words, and a bare space has no collector.
        for shape in Shape::all()
            .into_iter()
            .filter(|s| !matches!(s, Shape::Weak(..)))
        {
            shapes.push((
                space.add_kind(shape.kind()).map_err(|e| e.to_string())?,
                shape,
            ));
        }
        let runs = || LocalAllocator::new().map_err(|e| e.to_string());
        let model = Model {
            range: space.reserved(),
            encodings,
            past_the_end,
            shapes,
            objects: Default::default(),
            dead: Vec::new(),
        };
        Ok(Toy {
            space,
            runs: [runs()?, runs()?],
            queue,
            weak,
            model,
        })
    }

    fn allocate(space: &Space, runs: &LocalAllocator, kind: KindId, bytes: usize) -> Option<usize> {
        if space.is_large(bytes) {
            loop {
                match runs.reserve_large(space, kind, bytes).ok()? {
                    LargeStep::Reserved(mut large) => {
                        while !space.clear_large(&mut large) {}
                        return Some(space.publish_large(large).as_ptr() as usize);
                    }
                    LargeStep::Due | LargeStep::Again => {}
                }
            }
        }
        let site = space.site(kind, bytes).ok()?;
        loop {
            // SAFETY: the local allocator is this thread's own and belongs to this space.
            let cell = unsafe { bump(runs.as_mut_ptr(), site) };
            if !cell.is_null() {
                return Some(cell as usize);
            }
            match runs.refill(space, site).ok()? {
                Refill::Ready | Refill::Due | Refill::Again | Refill::Cold(_) => {}
            }
        }
    }

    /// Compares the allocated cells and the tails of runs with the model.
    fn check_cells(&self) -> Result<(), String> {
        let mut cells = Vec::new();
        self.space
            .for_each_cell(&mut |cell| cells.push((cell.base, cell.size)));
        let mut spare = BTreeSet::new();
        for runs in &self.runs {
            let mut note = |cell| spare.extend([cell]);
            // SAFETY: the local allocator is this thread's own.
            unsafe { runs.for_each_unallocated(&self.space, &mut note) };
        }
        self.model.check_cells(&cells, &spare)
    }

    fn step(
        &mut self,
        choices: &mut Choices<'_>,
        others: &[Range<usize>],
        counts: &mut Counts,
    ) -> Result<(), String> {
        let Toy {
            space,
            runs,
            queue,
            weak,
            model,
        } = self;
        for _ in 0..choices.below(48) {
            let runs = &runs[choices.below(2)];
            counts.objects += u64::from(
                model
                    .allocate(choices, others, &mut |kind, bytes| {
                        Self::allocate(space, runs, kind, bytes)
                    })?
                    .is_some(),
            );
        }
        for _ in 0..choices.below(8) {
            let Some(base) = model.pick(choices) else {
                break;
            };
            let at = choices.below(model.objects[&base].size / 8);
            let word = model.content(choices, base, at, others, false);
            // SAFETY: a word of a living cell that no other thread has.
            unsafe { ((base + at * 8) as *mut usize).write(word) };
            model.note(base, at, word);
        }
        if choices.one_in(4) {
            runs[choices.below(2)].retire(space);
        }
        while space.sweep_piece() {}
        while space.clear_spare_piece() {}
        if choices.one_in(4) {
            while space.scavenge_piece(0, 0, u64::MAX) > 0 {}
        }

        let words: Vec<usize> = (0..choices.below(48))
            .map(|_| model.any(choices, others))
            .collect();
        let exact: Vec<usize> = (0..choices.below(8))
            .map(|_| model.any(choices, others))
            .collect();
        let mut roots = BTreeSet::new();
        for word in &words {
            model.named(*word, &mut roots);
        }
        for word in &exact {
            roots.extend(model.exact(*word, BOXED));
        }
        let live = model.reachable(&roots);

        space.begin_marking();
        for runs in runs.iter() {
            // SAFETY: the local allocator is this thread's own.
            unsafe { runs.blacken_tails(space) };
        }
        let mut marker = Marker::new(space, queue, weak);
        for word in &words {
            marker.conservative(*word);
        }
        for word in &exact {
            // The collector's scanner does the same with an edge that an embedder reports.
            if let Some(cell) = BOXED
                .decode(*word)
                .and_then(|address| space.resolve(address))
            {
                marker.cell(cell);
            }
        }
        marker.drain();
        let marked = marker.marked().cells;
        drop(marker);
        if let Some(base) = model
            .objects
            .keys()
            .find(|base| space.is_marked(**base) != live.contains(base))
        {
            let is = if live.contains(base) {
                "is not marked, though it is reachable"
            } else {
                "is marked, though no word leads to it"
            };
            return Err(format!("the cell at {base:#x} {is}"));
        }
        if marked != live.len() as u64 {
            return Err(format!(
                "{marked} cells were marked, but {} are reachable",
                live.len()
            ));
        }
        space.end_marking();
        counts.words += (words.len() + exact.len()) as u64;
        counts.kept += live.len() as u64;
        counts.freed += (model.objects.len() - live.len()) as u64;
        counts.collections += 1;
        model.collected(&live);
        self.check_cells()?;
        // SAFETY: the cells in the model are allocated, as was checked above, and no other thread
        // has them.
        unsafe { self.model.check_contents() }
    }
}

/// Runs one case: builds heaps, fills them, places words, and collects several times.
///
/// # Errors
/// The first wrong answer.
pub fn check(choices: &mut Choices<'_>) -> Result<Counts, String> {
    let mut counts = Counts {
        cases: 1,
        ..Counts::default()
    };
    let mut toys = Vec::new();
    for _ in 0..1 + choices.below(2) {
        toys.push(Toy::new(choices)?);
    }
    let ranges: Vec<Range<usize>> = toys.iter().map(|toy| toy.space.reserved()).collect();
    for _ in 0..1 + choices.below(4) {
        for toy in &mut toys {
            toy.step(choices, &ranges, &mut counts)?;
        }
        if choices.is_spent() {
            break;
        }
    }
    Ok(counts)
}

/// Runs one input of a fuzzing engine without threads.
///
/// # Panics
/// At the first wrong answer.
pub fn fuzz_one(data: &[u8]) {
    if let Err(wrong) = check(&mut Choices::Bytes(data)) {
        panic!("{wrong}");
    }
}
