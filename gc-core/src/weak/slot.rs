//! A weak word or an ephemeron's pair, by its address; whether its target is dead, and what a weak
//! load of it gives.

use core::sync::atomic::{AtomicUsize, Ordering};

use super::modes::JUDGING_LONG;
use crate::heap::{Cell, Space};
use crate::kind::{Descriptor, KindId, Tag};
use crate::tracer::WORD;

/// A word of a weak cell, or the first word of a pair: its address, and above it the cell's kind,
/// which says how the word is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WeakSlot(pub(super) usize);

/// User addresses have 47 bits.
const KIND_SHIFT: u32 = 48;

impl WeakSlot {
    pub(crate) fn new(slot: usize, kind: KindId) -> WeakSlot {
        WeakSlot(slot | kind.index() << KIND_SHIFT)
    }

    pub(crate) fn address(self) -> usize {
        self.0 & ((1 << KIND_SHIFT) - 1)
    }

    pub(crate) fn kind(self) -> KindId {
        KindId((self.0 >> KIND_SHIFT) as u16)
    }
}

/// What a weak load gives while words are being cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// This word: a live target, or the kind's cleared word.
    Word(usize),
    /// This word, whose target is not marked and must be logged.
    Open(usize),
}

/// By a mutator under `no_preempt`, while words are being cleared: what a weak load of the word
/// at `slot` gives. Of a pair, the value is dead with its key.
///
/// # Safety
/// `slot` is readable.
pub(crate) unsafe fn judge_load(space: &Space, slot: usize, mode: u32) -> Load {
    // SAFETY: the caller says so. Acquire: as `is_dead`.
    let load = |slot: usize| unsafe { (*(slot as *const AtomicUsize)).load(Ordering::Acquire) };
    let word = load(slot);
    let Some(cell) = space.resolve(slot) else {
        return Load::Word(word);
    };
    let descriptor = space.kinds.get(cell.kind);
    let first = cell.base + descriptor.first_word as usize * WORD;
    let is_dead = |word| is_dead_target(space, cell.kind, word) && seam::hides_the_dead();
    match descriptor.tag {
        Tag::Weak if !is_dead(word) => Load::Word(word),
        Tag::Weak if descriptor.long && mode == JUDGING_LONG => Load::Open(word),
        Tag::Weak => Load::Word(descriptor.cleared()),
        Tag::Ephemeron if slot >= first && (slot - first) / WORD % 2 == 1 => {
            let dead = is_dead(load(slot - WORD)) || is_dead(word);
            Load::Word(if dead { 0 } else { word })
        }
        Tag::Ephemeron if is_dead(word) => Load::Word(descriptor.cleared()),
        _ => Load::Word(word),
    }
}

/// In a stop, once dying words have been cleared: calls `f` with each target of the cell's weak
/// words, or of its pairs' keys, that is not marked. There should be none.
pub(crate) fn for_each_dead_word(space: &Space, cell: Cell, f: &mut dyn FnMut(Cell)) {
    let Descriptor { tag, encoding, .. } = space.kinds.get(cell.kind);
    if !matches!(tag, Tag::Weak | Tag::Ephemeron) {
        return;
    }
    for weak_slot in (0..).map_while(words_of(space, cell)) {
        if is_dead(space, weak_slot) {
            // SAFETY: a word of an allocated cell.
            let word = unsafe { (weak_slot.address() as *const usize).read_volatile() };
            if let Some(target) = encoding.decode(word).and_then(|a| space.resolve(a)) {
                f(target);
            }
        }
    }
}

/// The weak words of a cell, or its pairs, by number.
pub(super) fn words_of(space: &Space, cell: Cell) -> impl FnMut(usize) -> Option<WeakSlot> + use<> {
    let descriptor = space.kinds.get(cell.kind);
    let step = if descriptor.tag == Tag::Ephemeron {
        2 * WORD
    } else {
        WORD
    };
    let first = cell.base + descriptor.first_word as usize * WORD;
    let end = cell.base + cell.size;
    // A last word without a partner is no pair.
    move |n| {
        let slot = first + n * step;
        (slot + step <= end).then(|| WeakSlot::new(slot, cell.kind))
    }
}

/// Does the word, or the pair's key, lead to a cell that is not marked?
pub(super) fn is_dead(space: &Space, weak_slot: WeakSlot) -> bool {
    // SAFETY: a word of a marked cell. Ordering: Acquire pairs with the store that made a cell
    // known (a release, as every store is on this architecture): a cell that was allocated while
    // marking is on is found marked.
    let word = unsafe { (*(weak_slot.address() as *const AtomicUsize)).load(Ordering::Acquire) };
    is_dead_target(space, weak_slot.kind(), word)
}

/// Does a word of a weak kind's cell lead to a cell that is not marked? A word that names no cell
/// at all (an immortal object outside of the heap) never dies.
pub(super) fn is_dead_target(space: &Space, kind: KindId, word: usize) -> bool {
    let Some(address) = space.kinds.get(kind).encoding.decode(word) else {
        return false;
    };
    !space.is_marked(address)
        && space
            .resolve(address)
            .is_some_and(|target| !space.is_marked(target.base))
}

mod seam {
    use crate::fault::Fault;

    pub(super) fn hides_the_dead() -> bool {
        !Fault::JudgedOpen.planted()
    }
}
