//! One thread's operations on a heap, as a fuzzing engine decides: what it gives, keeps and frees
//! is compared with the model of `graph.rs`.

use super::case::{outcome, world};
use super::graph::{Graph, World};
use crate::lab::fuzz::choices::Choices;
use crate::lab::fuzz::counts::{Counts, message};

/// Operations of one input at most: the graph is looked at as a whole after each collection.
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
            // Begins beside the next operations, or finds one under way.
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
    // On a thread of its own, as its stack is a root while it is attached.
    let graph = std::thread::scope(|scope| {
        let thread = scope.spawn(|| operate(&world, choices));
        thread.join().unwrap_or_else(|panic| Err(message(&panic)))
    })?;
    outcome(&world, &[graph])
}

/// Runs one input of a fuzzing engine.
///
/// # Panics
/// At the first wrong answer.
pub fn operations(data: &[u8]) {
    if let Err(wrong) = check(&mut Choices::Bytes(data)) {
        panic!("{wrong}");
    }
}
