//! Ephemerons among the cells that the threads of `graph.rs` change: a value is reachable while
//! its key and the cell of their pair are.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use gc_core::Mutator;
use gc_core::raw::{Encoding, Kind};

use super::graph::{Graph, Number, ROOTS, SCRATCH, WORD, load};
use crate::lab::fuzz::choices::Choices;

/// The kind of cells of pairs.
pub(super) fn kind() -> Kind {
    Kind::ephemeron("pairs", 0, Encoding::RAW, 0)
}

impl Graph<'_> {
    /// Whether this is a cell of pairs: their kind is the last.
    pub(super) fn has_pairs(&self, number: Number) -> bool {
        self.objects[&number].shape + 1 == self.world.kinds.len()
    }

    /// The values that the pairs of `reached` cells add to what is reachable, once each.
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

    /// Compares the pairs of reachable keys with the model.
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

    /// Some cell of pairs that is reachable, and one of its pairs.
    fn some_pair(&self, choices: &mut Choices<'_>) -> Option<(Number, usize)> {
        let at = (0..4).find_map(|_| self.walk(choices).filter(|at| self.has_pairs(*at)))?;
        let pairs = (self.objects[&at].words - 1) / 2;
        Some((at, choices.below(pairs.min(6))))
    }

    /// Enters a pair, or removes one.
    pub(super) fn set_pair(
        &mut self,
        mutator: &Mutator,
        choices: &mut Choices<'_>,
    ) -> Result<(), String> {
        // First the value, which nothing else leads to, as a rule: making it may let go of what was
        // in the hands.
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
        // SAFETY: a pair of a cell that lives; the thread's roots and hands lead to key and value.
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

    /// Looks a key up, and puts it and its value somewhere.
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
        // What stands in the key's place may be all that leads to the cell of the pair.
        self.hold(ROOTS + (key + 1) % SCRATCH, Some(at));
        let found = mutator.no_preempt(|| {
            // SAFETY: a key's word of a cell that lives.
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
        // SAFETY: the cell of the pair lives; the key is held, and so the value lives, too.
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
