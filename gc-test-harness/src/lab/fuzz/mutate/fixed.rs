//! Cells of immutable kinds. Their edges are stored right after their allocation, lead to older
//! cells, and never change.

use gc_core::raw::{Encoding, Kind};

use super::graph::{Graph, Number, WORD, encoded};
use crate::lab::fuzz::choices::Choices;
use crate::lab::fuzz::model::{BOXED, Shape, TAGGED};

/// The shapes that exist as immutable kinds, too.
pub(super) fn kinds() -> impl Iterator<Item = (Kind, Shape)> {
    [
        Shape::Words(vec![0, 1], Encoding::RAW),
        Shape::Words(vec![1, 3], TAGGED),
        Shape::Array(1, BOXED),
        Shape::Conservative,
    ]
    .into_iter()
    .map(|shape| (shape.kind().immutable(), shape))
}

impl Graph<'_> {
    /// Whether the cell has an immutable kind.
    pub(super) fn is_fixed(&self, number: Number) -> bool {
        self.world.fixed.contains(&self.objects[&number].shape)
    }

    /// The targets of a new cell of this shape, if the shape is immutable. Roots or scratch words
    /// keep the targets until they change.
    pub(super) fn targets(&self, shape: usize, choices: &mut Choices<'_>) -> Vec<Number> {
        if !self.world.fixed.contains(&shape) {
            return Vec::new();
        }
        (0..choices.below(4))
            .filter_map(|_| self.walk(choices))
            .collect()
    }

    /// Stores the edges of a new cell that no other thread has. This comes before the next
    /// allocation and before a change of roots or scratch words.
    pub(super) fn fill(&mut self, number: Number, targets: &[Number], choices: &mut Choices<'_>) {
        for to in targets {
            let Some((word, encoding)) = self.slot_of(number, choices) else {
                continue;
            };
            let value = encoded(encoding, self.objects[to].address, choices);
            if let Some(object) = self.objects.get_mut(&number) {
                // SAFETY: a word of a cell that only the caller has.
                unsafe { ((object.address + word * WORD) as *mut usize).write_volatile(value) };
                object.edges.insert(word, (value, *to));
            }
        }
    }
}
