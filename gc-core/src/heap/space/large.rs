//! The life of a large object: reserved, cleared, published, swept.

use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use super::super::large::{Freeing, LargeReservation, Lists};
use super::super::page_runs::CHUNK_UNITS;
use super::super::page_table::Unit;
use super::super::prefault::ColdUnits;
use super::super::size_classes::{GRANULE, UNIT};
use super::super::span_lists::check;
use super::{Cell, NEVER_TAKEN, Space};
use crate::error::AllocError;
use crate::fault::planted;
use crate::kind::KindId;
use crate::marked::BYTES_A_CELL;

/// Bytes that one call of [`Space::clear_large`] clears: some 20 us, so that an embedder can do
/// other things between.
const CLEAR_UNITS: usize = (256 << 10) / UNIT;

/// Units whose words one piece of the sweep clears, some 10 us.
const FREE_UNITS: usize = 16 << 10;

impl Space {
    /// The units of a large object, which it may have if everything else goes.
    ///
    /// # Errors
    /// What no collection changes.
    pub(crate) fn large_units(&self, kind: KindId, bytes: usize) -> Result<usize, AllocError> {
        let units = self.sites.room(bytes).div_ceil(UNIT).max(1);
        if let Some(limit) = self.hard_limit
            && units > limit as usize / UNIT
            && !planted("too-large-collects")
        {
            return Err(AllocError::HeapLimit { limit, bytes });
        }
        if units > self.len() / UNIT - NEVER_TAKEN {
            return Err(AllocError::TooLarge { bytes });
        }
        check(&self.kinds, kind, bytes, units * UNIT).map_err(AllocError::Site)?;
        Ok(units)
    }

    /// Those units of a reservation whose first touch would be a fault, if that is to be seen to
    /// beforehand: what is larger than a page of the system's may be meant to stay untouched.
    pub(crate) fn cold_units(&self, large: &LargeReservation) -> Option<ColdUnits> {
        (large.units <= CHUNK_UNITS)
            .then(|| self.cold(large.first, large.units))
            .flatten()
    }

    /// Second step, outside `no_preempt`: clears one bounded piece, except what is known to be
    /// zero. True: done.
    pub fn clear_large(&self, large: &mut LargeReservation) -> bool {
        let end = (large.cleared + CLEAR_UNITS).min(large.units);
        let clears = !self.kinds.get(large.kind).uninit;
        for distance in large.cleared..end {
            let unit = large.first + distance;
            if clears && self.range.dirty.count(unit, 1) != 0 {
                // SAFETY: the unit belongs to this reservation, and nothing names it yet.
                unsafe { std::ptr::write_bytes((self.base() + unit * UNIT) as *mut u8, 0, UNIT) };
            }
            // The first unit's word is missing until the end, and the others lead to it: they name
            // nothing yet.
            if distance != 0 {
                self.units().set(unit, Unit::Large { distance });
            }
        }
        large.cleared = end;
        end == large.units
    }

    /// Third step, under `no_preempt`: the cell becomes visible. Its address must be in the
    /// caller's hands (a register or the stack) when `no_preempt` ends. What [`Space::clear_large`]
    /// has not cleared is cleared now.
    pub fn publish_large(&self, mut large: LargeReservation) -> NonNull<u8> {
        while !self.clear_large(&mut large) {}
        let LargeReservation {
            first, units, kind, ..
        } = large;
        if planted("publish-first") {
            self.allocated_bits().set(first * UNIT);
            self.units().set(first, Unit::Large { distance: 0 });
            (0..1000).for_each(|_| std::hint::spin_loop());
        }
        // SAFETY: the units were taken for this reservation, so their records are ours.
        unsafe { (*self.records().at(first)).kind = kind.0 };
        if self.kinds.get(kind).tag.is_followed() {
            self.large.followed.fetch_add(units, Ordering::Relaxed);
        }
        self.note_bits(first);
        self.allocated_bits().set(first * UNIT);
        if self.is_marking() && !planted("white-runs") {
            self.marked_bits().set(first * UNIT);
            self.allocated_black.note_range(first * UNIT / GRANULE, 1);
        }
        self.large.lists.lock().swept.push(self.records(), first);
        self.count_at_once(1, units * UNIT);
        self.units().set(first, Unit::Large { distance: 0 });
        // SAFETY: the address range does not begin at zero.
        unsafe { NonNull::new_unchecked((self.base() + first * UNIT) as *mut u8) }
    }

    /// Gives back a reservation that will not be published. Under `no_preempt`.
    pub fn cancel_large(&self, large: LargeReservation) {
        for distance in 1..large.cleared {
            self.units().set(large.first + distance, Unit::Free);
        }
        self.range.dirty.set(large.first, large.units);
        self.spans
            .lock()
            .give(self.records(), &self.range.dirty, large.first, large.units);
    }

    /// The large object whose first unit this is, if it is published and allocated.
    #[inline]
    pub(crate) fn large_cell(&self, first: usize) -> Option<Cell> {
        if self.units().get(first) != (Unit::Large { distance: 0 })
            || !self.allocated_bits().test(first * UNIT)
        {
            return None;
        }
        let (units, kind) = self.large_record(first);
        Some(Cell {
            base: self.base() + first * UNIT,
            size: units * UNIT,
            kind,
        })
    }

    /// Length and kind of a published large object.
    #[inline]
    pub(crate) fn large_record(&self, first: usize) -> (usize, KindId) {
        // SAFETY: the record was written before the unit's word was published, and these fields do
        // not change until it is zero again. Read field by field: the links beside them are
        // others'.
        unsafe {
            let record = self.records().at(first);
            ((*record).units as usize, KindId((*record).kind))
        }
    }

    /// Swaps with the rest of the heap: every large object is unswept now. How many there are.
    pub(crate) fn unsweep_large(&self) -> usize {
        let mut lists = self.large.lists.lock();
        let Lists { unswept, swept } = &mut *lists;
        unswept.append(self.records(), swept);
        unswept.len()
    }

    /// The work of following all large cells, in cells.
    pub(crate) fn large_work(&self) -> u64 {
        let units = self.large.followed.load(Ordering::Relaxed);
        (units * UNIT / BYTES_A_CELL) as u64
    }

    pub(crate) fn lock_large(&self) -> impl Sized + '_ {
        (self.large.freeing.lock(), self.large.lists.lock())
    }

    /// How many large objects nobody has swept: for the child of a fork, which recounts.
    pub(crate) fn unswept_large(&self) -> usize {
        usize::from(self.large.freeing.lock().units != 0) + self.large.lists.lock().unswept.len()
    }

    /// World stopped: calls `f` for every large object.
    pub(crate) fn for_each_large(&self, f: &mut dyn FnMut(Cell)) {
        let lists = self.large.lists.lock();
        for list in [&lists.unswept, &lists.swept] {
            list.each(self.records(), &mut |first| {
                if let Some(cell) = self.large_cell(first) {
                    f(cell);
                }
            });
        }
    }

    /// A bounded piece of the large objects' sweep. True: there was something to do.
    pub(crate) fn sweep_large_piece(&self) -> bool {
        let mut freeing = self.large.freeing.lock();
        if freeing.units == 0 {
            let mut lists = self.large.lists.lock();
            let Some(first) = lists.unswept.pop(self.records()) else {
                return false;
            };
            let is_allocated = self.allocated_bits().test(first * UNIT);
            self.keep_large(first, is_allocated);
            if is_allocated {
                lists.swept.push(self.records(), first);
                drop(lists);
                self.unswept.fetch_sub(1, Ordering::Release);
                return true;
            }
            let (units, kind) = self.large_record(first);
            if self.kinds.get(kind).tag.is_followed() {
                self.large.followed.fetch_sub(units, Ordering::Relaxed);
            }
            *freeing = Freeing {
                first,
                units,
                cleared: 0,
            };
        }
        // The first word goes first: the others lead to it, and then name nothing any more.
        let end = (freeing.cleared + FREE_UNITS).min(freeing.units);
        for distance in freeing.cleared..end {
            self.units().set(freeing.first + distance, Unit::Free);
        }
        self.range
            .dirty
            .set(freeing.first + freeing.cleared, end - freeing.cleared);
        freeing.cleared = end;
        if end == freeing.units {
            self.spans.lock().give(
                self.records(),
                &self.range.dirty,
                freeing.first,
                freeing.units,
            );
            *freeing = Freeing::default();
            // Ordering: Release. Who sees the count at zero finds what was given back (see
            // `after_sweep`).
            self.unswept.fetch_sub(1, Ordering::Release);
        }
        true
    }
}
