//! The removal of code.
//!
//! 1. The drop of a [`CodeGuard`](super::CodeGuard) pushes a mark to a list, without a lock, since
//!    a guard may be dropped anywhere.
//! 2. Before the next stop of the code's world, [`CodeMap::take_dropped`] takes the marks from the
//!    list. It allocates, so it does not run in the stop.
//! 3. In the stop, [`CodeMap::reap`] looks for words on the world's stacks that point into a marked
//!    range. It does not allocate or free.
//! 4. After the resume, [`CodeMap::sweep`] unlinks the ranges that no word points into. The caller
//!    drops their owners after it has released the registry lock, since an owner's drop may do
//!    anything.
//!
//! Code whose guard is not dropped costs no time in these steps.

use std::ops::Range;
use std::ptr;
use std::sync::atomic::Ordering;

use super::guard::{Key, Mark};
use super::map::{CodeMap, Region, Registered, Start};

/// Code that was unlinked. The caller drops it after it has released the registry lock: the owner's
/// drop may do anything, also register code.
pub(crate) struct Removed(Region);

impl Registered {
    fn unlink(&mut self, mark: &Mark) -> Option<Removed> {
        let region = self.regions(mark.key).remove(&Start(mark.key.start))?;
        if let Some(owned) = self.worlds.get_mut(&mark.world) {
            owned.count -= 1;
            if owned.count == 0 {
                self.worlds.remove(&mark.world);
            }
        }
        Some(Removed(region))
    }
}

impl CodeMap {
    /// Takes the marks of dropped guards from the list, so that the next stop looks whether their
    /// code is in use.
    ///
    /// # Safety
    /// Under the registry lock, with no stop under way.
    pub(crate) unsafe fn take_dropped(&self) {
        let _changing = self.readers.change();
        // SAFETY: the caller's contract, and no handler reads.
        unsafe { self.take_marks() };
    }

    /// Does what [`take_dropped`](Self::take_dropped) does.
    ///
    /// # Safety
    /// As `take_dropped`, while no handler reads.
    unsafe fn take_marks(&self) {
        // SAFETY: the caller's contract.
        let registered = unsafe { &mut *self.registered.get() };
        for mark in self.dropped.take() {
            let Key { managed, start } = mark.key;
            let regions = if managed {
                &registered.managed
            } else {
                &registered.inner
            };
            let (Some(region), Some(owned)) = (
                regions.get(&Start(start)),
                registered.worlds.get_mut(&mark.world),
            ) else {
                continue;
            };
            if *owned.gone.get_mut() {
                registered.orphans.push(mark);
                continue;
            }
            let hull = &mut owned.hull;
            *hull = match owned.leaving.is_empty() {
                true => region.range.clone(),
                false => start.min(hull.start)..region.range.end.max(hull.end),
            };
            owned.leaving.push(mark);
        }
    }

    /// Looks for words that point into code of that world whose guards were dropped. Called in the
    /// stopped world: does not allocate or free.
    ///
    /// `stacks` are the stacks of all mutators of the world, from SP (less the red zone) to the
    /// base; `words` their PCs and registers.
    ///
    /// # Safety
    /// Under the registry lock, with the world stopped; the ranges are readable memory.
    pub(crate) unsafe fn reap(
        &self,
        world: u64,
        stacks: impl Iterator<Item = Range<usize>>,
        words: impl Iterator<Item = usize>,
    ) {
        // SAFETY: the registry lock is held, so nothing changes but the cells that this function
        // alone touches now.
        let registered = unsafe { &*self.registered.get() };
        let Some(owned) = registered
            .worlds
            .get(&world)
            .filter(|o| !o.leaving.is_empty())
        else {
            return;
        };
        let search = registered.searches.get() + 1;
        registered.searches.set(search);
        registered.searched.set(Some(world));
        let hull = &owned.hull;
        let look = |word: usize| {
            // A return address may lie at the very end of a range, after a call that never returns.
            if word < hull.start || word > hull.end {
                return;
            }
            for regions in [&registered.managed, &registered.inner] {
                if seam::searches_every_region() {
                    let begun = regions.iter().filter(|(start, _)| **start <= Start(word));
                    begun
                        .filter(|(_, region)| word <= region.range.end)
                        .for_each(|(_, region)| region.named.set(search));
                    continue;
                }
                for (_, region) in regions.range(..=Start(word)).rev().take(2) {
                    if word <= region.range.end {
                        region.named.set(search);
                    }
                }
            }
        };
        words.for_each(look);
        for stack in stacks {
            let first = stack.start.next_multiple_of(8);
            for address in (first..stack.end & !7).step_by(8) {
                // SAFETY: readable by the contract, and aligned. Volatile: it is another thread's
                // memory.
                look(unsafe { ptr::read_volatile(address as *const usize) });
            }
        }
    }

    /// Unlinks the code that the last search found unused, and the code of worlds that are gone
    /// whose guards were dropped. The owners are dropped with the result.
    ///
    /// # Safety
    /// Under the registry lock, with no stop under way.
    pub(crate) unsafe fn sweep(&self) -> Vec<Removed> {
        let _changing = self.readers.change();
        // SAFETY: the registry lock is held, and no handler reads.
        let mut registered = unsafe { &mut *self.registered.get() };
        let mut unused = Vec::new();
        if let Some(world) = registered.searched.take()
            && let Some(owned) = registered.worlds.get_mut(&world)
        {
            let search = registered.searches.get();
            let named = |key: Key| {
                let regions = if key.managed {
                    &registered.managed
                } else {
                    &registered.inner
                };
                let region = regions.get(&Start(key.start));
                region.is_some_and(|region| region.named.get() == search)
            };
            unused.extend(owned.leaving.extract_if(.., |mark| !named(mark.key)));
        }
        if std::mem::take(registered.more_gone.get_mut()) {
            // Guards of a gone world's code that were dropped since the last stop. Marks of other
            // worlds wait for their next stop.
            // SAFETY: the registry lock is held, and `registered` is not used meanwhile.
            unsafe { self.take_marks() };
            // SAFETY: as above.
            registered = unsafe { &mut *self.registered.get() };
            for owned in registered.worlds.values_mut() {
                if *owned.gone.get_mut() {
                    registered.orphans.append(&mut owned.leaving);
                }
            }
        }
        unused.append(&mut registered.orphans);
        let unlinked: Vec<Removed> = unused
            .into_iter()
            .filter_map(|mark| registered.unlink(&mark))
            .collect();
        let are_unsafe = unlinked.iter().filter(|r| r.0.counts_as_unsafe());
        self.unsafe_ranges
            .fetch_sub(are_unsafe.count(), Ordering::Relaxed);
        unlinked
    }

    /// A world has no mutators and will have none: its code is removed without a stop, now or when
    /// its guard is dropped. Another world may be stopped meanwhile: does not allocate or free.
    ///
    /// # Safety
    /// Under the registry lock.
    pub(crate) unsafe fn world_gone(&self, world: u64) {
        // SAFETY: the registry lock is held, so nothing changes but what is atomic.
        let registered = unsafe { &*self.registered.get() };
        if let Some(owned) = registered.worlds.get(&world) {
            // Relaxed, both: read under the registry lock.
            owned.gone.store(true, Ordering::Relaxed);
            registered.more_gone.store(true, Ordering::Relaxed);
        }
    }
}

/// What tests may break here.
mod seam {
    use crate::faults::Fault;

    pub(super) fn searches_every_region() -> bool {
        Fault::LinearSearch.planted()
    }
}
