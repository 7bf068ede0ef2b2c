//! The changes that a thread makes to its graph, one at a time.

use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use gc_core::Mutator;
use gc_core::raw::Encoding;

use super::graph::{Graph, Number, Parcel, ROOTS, SCRATCH, WORD, new_stamp};
use crate::lab::fuzz::choices::Choices;
use crate::lab::fuzz::model::{Shape, cell_size};

/// The kind of the lists that go from one thread to another: an index into
/// [`World::kinds`](super::graph::World).
const LIST: usize = 0;
/// The most lists that wait for a receiver.
const MOST_PARCELS: usize = 8;

impl Graph<'_> {
    /// Makes one change.
    pub(super) fn step(
        &mut self,
        mutator: &Mutator,
        choices: &mut Choices<'_>,
    ) -> Result<(), String> {
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
            58 if self.finalizes => self.register(mutator, choices),
            59 if self.finalizes => self.take_finalizable(mutator, choices)?,
            60 => self.send(mutator, choices)?,
            61 => self.receive(mutator, choices)?,
            62 => self.set_pair(mutator, choices)?,
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

    /// Allocates a cell with some edges, and stores it in a root or another cell.
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

    /// Takes an edge's target out of a cell, holds it in a scratch word for a while, and stores it
    /// in another cell.
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

    /// Sets an edge to null.
    fn cut(&mut self, mutator: &Mutator, choices: &mut Choices<'_>) -> Result<(), String> {
        if let Some(from) = self.walk(choices)
            && let Some((word, _)) = self.slot(from, choices)
        {
            self.write(mutator, from, (word, Encoding::RAW), None, choices);
        }
        Ok(())
    }

    /// Loads a weak word, and holds its target in a scratch word.
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
        // The target's address goes into a scratch word at once. In a register, a boxed word would
        // keep nothing in a heap that tries plain addresses only.
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
            // SAFETY: the cell has three words. A scratch word or this stack keeps the list.
            unsafe {
                let node = mutator
                    .alloc_raw(*kind, 3 * WORD)
                    .map_err(|e| e.to_string())?;
                let (node, stamp) = (node.cast::<usize>().as_ptr(), new_stamp());
                node.write(head);
                // The cell is as long as its size class, and its last word has the stamp.
                node.add(cell_size(3 * WORD) / WORD - 1).write(stamp);
                head = node as usize;
                nodes.insert(0, (head, stamp));
                // The vector is not a root, and the compiler might keep the list's head in no other
                // place.
                self.words[ROOTS].store(head, Ordering::Relaxed);
                self.held[ROOTS] = None;
            }
        }
        let Some(cell) = NonNull::new(head as *mut u8) else {
            return Ok(());
        };
        // SAFETY: a scratch word keeps the cell.
        let Ok(root) = (unsafe { mutator.root_raw(cell) }) else {
            return Ok(());
        };
        // `try_lock`: the thread that holds the lock may be stopped.
        if let Ok(mut parcels) = self.world.parcels.try_lock()
            && parcels.len() < MOST_PARCELS
        {
            parcels.push_back(Parcel { root, nodes });
        }
        self.words[ROOTS].store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Adds a list of another thread to the graph.
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
