//! Ephemerons in the graphs of `graph.rs`: a value is reachable while its key and the cell of their
//! pair are reachable.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use gc_core::Mutator;
use gc_core::raw::{Encoding, Kind};

use super::graph::{Graph, Number, ROOTS, SCRATCH, WORD, load};
use crate::lab::fuzz::choices::Choices;

/// The kind of a cell of pairs.
pub(super) fn kind() -> Kind {
    Kind::ephemeron("pairs", 0, Encoding::RAW, 0)
}

impl Graph<'_> {
    /// Whether the cell is a cell of pairs. Their kind is the last one.
    pub(super) fn has_pairs(&self, number: Number) -> bool {
        self.objects[&number].shape + 1 == self.world.kinds.len()
    }

    /// The values that become reachable by the pairs of `reached` cells.
    pub(super) fn values(&self, reached: &BTreeSet<Number>) -> Vec<Number> {
        let pairs = reached
            .iter()
            .filter(|at| self.has_pairs(**at))
            .flat_map(|at| self.objects[at].pairs.values());
        pairs
            .filter(|(key, value)| reached.contains(key) && !reached.contains(value))
            .map(|(_, value)| *value)
            .collect()
    }

    /// Compares the pairs with reachable keys with the model.
    pub(super) fn check_pairs(&self, reached: &BTreeSet<Number>) -> Result<(), String> {
        for at in reached.iter().filter(|at| self.has_pairs(**at)) {
            let object = &self.objects[at];
            for (pair, (key, value)) in &object.pairs {
                if !reached.contains(key) {
                    continue;
                }
                let expected = [key, value].map(|number| self.objects[number].address);
                // SAFETY: the cell is reachable, and its stamp was right.
                let found = [0, 1].map(|half| unsafe { load(object.address, 2 * pair + half) });
                if found != expected {
                    return Err(format!(
                        "pair {pair} of the cell at {:#x} is {found:x?}, not {expected:x?}, though its key is reachable",
                        object.address
                    ));
                }
            }
        }
        Ok(())
    }

    /// Some reachable cell of pairs, and the index of a pair in it.
    fn some_pair(&self, choices: &mut Choices<'_>) -> Option<(Number, usize)> {
        let at = (0..4).find_map(|_| self.walk(choices).filter(|at| self.has_pairs(*at)))?;
        let pairs = (self.objects[&at].words - 1) / 2;
        Some((at, choices.below(pairs.min(6))))
    }

    /// Stores a pair, or removes one.
    pub(super) fn set_pair(
        &mut self,
        mutator: &Mutator,
        choices: &mut Choices<'_>,
    ) -> Result<(), String> {
        // The value comes first, and usually nothing else leads to it. Its allocation may change
        // the scratch words, so a key or a cell that was chosen before could be lost.
        let value = if choices.one_in(3) {
            self.walk(choices)
        } else {
            Some(self.allocate(mutator, choices)?)
        };
        let Some((at, pair)) = self.some_pair(choices) else {
            return Ok(());
        };
        let new = self.walk(choices).zip(value).filter(|_| !choices.one_in(5));
        let words =
            new.map(|(key, value)| [key, value].map(|number| self.objects[&number].address));
        let [key, value] = words.unwrap_or_default();
        let Some(object) = self.objects.get_mut(&at) else {
            return Ok(());
        };
        // SAFETY: a pair of a living cell. The thread's roots and scratch words lead to key and
        // value.
        unsafe {
            let slot = (object.address + 2 * pair * WORD) as *mut usize;
            mutator.write_pair(slot, key, value);
        }
        match new {
            Some(new) => object.pairs.insert(pair, new),
            None => object.pairs.remove(&pair),
        };
        self.counts.words += 2;
        Ok(())
    }

    /// Looks up a key, and stores the key and its value in scratch words.
    pub(super) fn look_up(
        &mut self,
        mutator: &Mutator,
        choices: &mut Choices<'_>,
    ) -> Result<(), String> {
        let Some((at, _)) = self.some_pair(choices) else {
            return Ok(());
        };
        self.look(at)?;
        let object = &self.objects[&at];
        let pairs = &object.pairs;
        let Some((pair, (key, value))) = pairs.iter().nth(choices.below(pairs.len().max(1))) else {
            return Ok(());
        };
        let (pair, key, value) = (*pair, *key, *value);
        let slot = (object.address + 2 * pair * WORD) as *const usize;
        let (expected, place) = (self.objects[&key].address, ROOTS + key % SCRATCH);
        // The scratch word for the key may be the only word that leads to the cell of the pair. So
        // another scratch word takes that cell.
        self.hold(ROOTS + (key + 1) % SCRATCH, Some(at));
        let found = mutator.no_preempt(|| {
            // SAFETY: a key's word of a living cell.
            let found = unsafe { mutator.load_weak(slot) };
            if found == expected {
                self.words[place].store(found, Ordering::Relaxed);
            }
            found
        });
        if found == 0 {
            if self.reachable()?.contains(&key) {
                return Err(format!(
                    "the pair of the key at {expected:#x} was cleared, though that is reachable"
                ));
            }
            if let Some(object) = self.objects.get_mut(&at) {
                object.pairs.remove(&pair);
            }
            return Ok(());
        }
        if found != expected {
            return Err(format!(
                "a key is {found:#x}, neither {expected:#x} nor null"
            ));
        }
        self.take(key);
        self.look(key).map_err(|what| format!("{what} (a key)"))?;
        // SAFETY: the cell of the pair lives. The key is kept, so the value lives, too.
        let found = unsafe { load(self.objects[&at].address, 2 * pair + 1) };
        self.take(value);
        self.look(value)
            .map_err(|what| format!("{what} (a value)"))?;
        if found != self.objects[&value].address {
            return Err(format!(
                "a value is {found:#x}, not {:#x}, though its key is held",
                self.objects[&value].address
            ));
        }
        if choices.one_in(3) {
            self.hold(choices.below(ROOTS), Some(value));
        }
        Ok(())
    }
}
