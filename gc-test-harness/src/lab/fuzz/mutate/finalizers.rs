//! Finalizers in the graphs of `graph.rs`: a dead cell comes back, and may live on.

use std::collections::BTreeSet;
use std::ptr::NonNull;

use gc_core::Mutator;

use super::graph::{Graph, Number, ROOTS, load};
use crate::lab::fuzz::choices::Choices;
use crate::lab::fuzz::model::Shape;

impl Graph<'_> {
    /// Registers a cell with a finalizer.
    pub(super) fn register(&mut self, mutator: &Mutator, choices: &mut Choices<'_>) {
        if let Some(at) = self.walk(choices)
            && let Some(object) = self.objects.get_mut(&at)
            && !object.finalizable
            && let Some(cell) = NonNull::new(object.address as *mut u8)
        {
            // SAFETY: the cell lives.
            object.finalizable = unsafe { mutator.register_finalizer(cell, object.stamp).is_ok() };
        }
    }

    /// Takes dead cells out of the finalizer queue, and stores some of them in roots.
    pub(super) fn take_finalizable(
        &mut self,
        mutator: &Mutator,
        choices: &mut Choices<'_>,
    ) -> Result<(), String> {
        for _ in 0..choices.below(4) {
            let before = self.reached();
            let Some((cell, stamp)) = mutator.next_finalizer() else {
                break;
            };
            let address = cell.as_ptr() as usize;
            let found = self.objects.iter().find(|(_, o)| o.stamp == stamp);
            let Some(number) = found.map(|(number, _)| *number) else {
                return Err(format!(
                    "a finalizer came with {address:#x}, which has no finalizer in the model"
                ));
            };
            self.take(number);
            let Some(object) = self.objects.get_mut(&number) else {
                continue;
            };
            object.finalizable = false;
            if object.address != address {
                return Err(format!(
                    "a finalizer came with {address:#x} instead of {:#x}",
                    object.address
                ));
            }
            self.check(number)
                .map_err(|what| format!("{what} (a finalizer's)"))?;
            self.forget_cleared(&before);
            if choices.one_in(2) {
                self.hold(choices.below(ROOTS), Some(number));
            }
        }
        Ok(())
    }

    /// Removes from the model the weak words and pairs that the collector cleared before it queued
    /// a cell that is back now: those whose target or key was not reachable in `before`. If a stale
    /// word kept the target, they may still be there. The function checks all cells that the model
    /// remembers, because a weak word may bring one back later.
    fn forget_cleared(&mut self, before: &BTreeSet<Number>) {
        loop {
            let reached = self.reached();
            let back = |number: &Number| reached.contains(number) && !before.contains(number);
            let cleared = self.objects.iter().find_map(|(at, object)| {
                // SAFETY: the address lies in the heap's memory, even if the cell was freed.
                let word = |word| unsafe { load(object.address, word) };
                let place = if let Shape::Weak(_, _, gone) = *self.shape(*at) {
                    let mut edges = object.edges.iter();
                    let edge = edges.find(|(at, (_, to))| back(to) && word(**at) == gone);
                    edge.map(|(word, _)| *word)
                } else if self.has_pairs(*at) {
                    let mut pairs = object.pairs.iter();
                    let pair = pairs.find(|(at, (key, _))| {
                        back(key) && [2 * **at, 2 * **at + 1].map(word) == [0, 0]
                    });
                    pair.map(|(pair, _)| *pair)
                } else {
                    None
                };
                place.map(|place| (*at, place))
            });
            // One at a time, because a pair's value may have been reachable through that pair
            // alone.
            let Some((at, place)) = cleared else {
                return;
            };
            let has_pairs = self.has_pairs(at);
            match self.objects.get_mut(&at) {
                Some(object) if has_pairs => drop(object.pairs.remove(&place)),
                Some(object) => drop(object.edges.remove(&place)),
                None => {}
            }
            self.counts.freed += 1;
        }
    }
}
