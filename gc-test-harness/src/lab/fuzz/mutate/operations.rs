//! One thread's operations on a heap, which a fuzzing engine chooses. The cells are compared with
//! the model of `graph.rs`.

use super::case::{outcome, world};
use super::graph::{Graph, World};
use crate::lab::fuzz::choices::Choices;
use crate::lab::fuzz::counts::{Counts, message};

/// The most operations of one input. The whole graph is compared after each collection.
const MOST: usize = 4_000;

fn operate<'w>(world: &'w World, choices: &mut Choices<'_>) -> Result<Graph<'w>, String> {
    let attach = || world.heap.attach().map_err(|e| e.to_string());
    let mut mutator = attach()?;
    let mut graph = Graph::new(world, &mutator, true);
    for _ in 0..MOST {
        if choices.is_spent() {
            break;
        }
        match choices.below(64) {
            0 => drop(mutator.collect()),
            // A requested collection runs beside the next operations, or one is under way already.
            1..=2 => drop(world.heap.request_collection()),
            3 => {
                // The roots stay declared while no thread is attached.
                drop(mutator);
                if choices.one_in(2) {
                    world.heap.collect_young();
                } else {
                    world.heap.collect();
                }
                mutator = attach()?;
            }
            _ => {
                graph.step(&mutator, choices)?;
                continue;
            }
        }
        graph.check_all(choices)?;
    }
    graph.check_all(choices)?;
    Ok(graph)
}

/// Runs one input.
///
/// # Errors
/// The first wrong answer.
fn check(choices: &mut Choices<'_>) -> Result<Counts, String> {
    let world = world(choices, false)?;
    // A separate thread runs the operations, because an attached thread's stack is a root.
    let graph = std::thread::scope(|scope| {
        let thread = scope.spawn(|| operate(&world, choices));
        thread.join().unwrap_or_else(|panic| Err(message(&panic)))
    })?;
    outcome(&world, &[graph])
}

/// Runs one input of a fuzzing engine that changes a graph.
///
/// # Panics
/// At the first wrong answer.
pub fn operations(data: &[u8]) {
    if let Err(wrong) = check(&mut Choices::Bytes(data)) {
        panic!("{wrong}");
    }
}
