//! One case: a heap with all kinds, threads that change their graphs, and the check of the cells
//! that are left.

use std::collections::BTreeSet;
use std::sync::Mutex;

use gc_core::raw::Encoding;
use gc_core::{Heap, Young};

use super::graph::{Graph, World};
use super::{fixed, pairs};
use crate::lab::fuzz::choices::Choices;
use crate::lab::fuzz::counts::{Counts, message};
use crate::lab::fuzz::model::{BOXED, Shape, TAGGED};

/// Steps of a thread; they last for several cycles.
const STEPS: usize = 12_000;
/// Steps between two comparisons of a thread's whole graph with the model.
const CHECK_EVERY: usize = 400;

/// Runs one thread of a case.
fn run_thread(world: &World, seed: u64, finalizes: bool) -> Result<Graph<'_>, String> {
    let mut choices = Choices::Seeded(seed);
    let attach = || world.heap.attach().map_err(|e| e.to_string());
    let mut mutator = attach()?;
    let mut graph = Graph::new(world, &mutator, finalizes);
    for step in 1..=STEPS {
        graph.step(&mutator, &mut choices)?;
        if step % CHECK_EVERY == 0 {
            graph.check_all(&mut choices)?;
        }
        if step % 512 == 0 && choices.one_in(4) {
            // The roots stay declared while no thread is attached.
            drop(mutator);
            mutator = attach()?;
        }
    }
    graph.check_all(&mut choices)?;
    Ok(graph)
}

/// A heap with all kinds. The choices determine its settings.
pub(super) fn world(choices: &mut Choices<'_>, beside: bool) -> Result<World, String> {
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
        .stress(gc_core::Stress {
            phases: choices.one_in(2),
            continuous: beside && !choices.one_in(3),
            ..gc_core::Stress::default()
        })
        .stop_the_world(choices.one_in(16))
        .young_collections([Young::Always, Young::WherePays][choices.below(2)])
        .verify(choices.one_in(4))
        .build()
        .map_err(|e| e.to_string())?;
    let mut kinds = Vec::new();
    for shape in Shape::all() {
        // A word that decides which other words are edges must not change in a cell that other
        // threads have.
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
            .map(|(world, at, seed)| scope.spawn(move || run_thread(world, seed, at == 0)))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
            Ok(graph) => graph,
            Err(panic) => Err(message(&panic)),
        };
        threads.into_iter().map(join).collect::<Result<Vec<_>, _>>()
    })?;
    outcome(&world, &graphs)
}

/// Adds up the counts, and checks that exactly the cells that the models reach are left.
pub(super) fn outcome(world: &World, graphs: &[Graph<'_>]) -> Result<Counts, String> {
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

/// Checks that exactly the cells `left` are there, after all threads have ended. Gives the number
/// of cells that were freed.
fn nothing_else(world: &World, left: &BTreeSet<usize>) -> Result<u64, String> {
    let parcels = world
        .parcels
        .lock()
        .map(|mut parcels| std::mem::take(&mut *parcels));
    drop(parcels);
    // The finalizer queues are roots, so they must be drained. A separate thread drains them,
    // because an attached thread's stack is a root.
    for _ in 0..3 {
        world.heap.collect();
        std::thread::scope(|scope| {
            let drained = scope.spawn(|| {
                let mutator = world.heap.attach().map_err(|e| e.to_string())?;
                mutator.drain_finalizers(|_, _| ());
                Ok(())
            });
            drained.join().unwrap_or_else(|panic| Err(message(&panic)))
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
