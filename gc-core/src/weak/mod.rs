//! Weak cells and ephemerons: markers note them, and a cycle clears the words whose targets died.
//!
//! ```text
//! marking         a marker that meets a weak cell notes it (`met`); a pair whose key is not marked
//!                 waits for it (`waiting`)
//! before stop 2   `select_dying`, beside the mutators: words whose targets are not marked go from
//!                 there to `dying`
//! stop 2          nothing is grey, which decides what is dead; from here on no weak load finds a
//!                 dead target (`judge_load`)
//! in it or after  `clear_piece` looks again at dying words, and at cells and pairs met since, and
//!                 clears those whose targets are not marked
//! ```
//! So a stop costs a bounded number of words, whatever dies. All words that lead to one dead target
//! are cleared at the same moment, as far as a mutator can see. If one were left, an intern table
//! would hand out a string that another table has already made anew. Either no mutator runs until
//! all are cleared, or mutators run in the mode [`JUDGING`] or [`JUDGING_LONG`], in which a weak
//! load gives what `clear_piece` will leave in the word. (ZGC does it like this, and calls it
//! *resurrection blocked*.)
//!
//! # Two stages
//! Most weak words are *short*. A cycle clears them before it queues finalizable cells and marks
//! what those lead to (the stage `Short`). So no short word leads to a cell whose finalizer has
//! been handed out. A word of a kind that is [`long`](crate::Kind::long) is judged after that (the
//! stage `All`), with what marking has met since: tables that only a finalizable cell leads to.
//! Between the two stages, while mutators run, a long word may lead to a cell that is not marked
//! yet: the load logs it, which marks it.
//!
//! # Why words stored meanwhile need no look
//! `select_dying` reads each word once, and a mutator may store another word into the cell
//! afterwards. A weak cell that was allocated while marking is on is black, and no marker meets it.
//! One rule makes both harmless: **a thread that stores a word into a weak cell holds its target
//! strongly** (in a register, on its stack, in a handle): it has made the target, or got it by an
//! edge or by the weak load. What a mutator holds strongly at any time while marking is on is
//! marked before the clearing begins. It was reachable when marking began, and the snapshot keeps
//! it; or it was allocated since, black; or it came by a weak load, which logs it, and the
//! collector drains the logs before. So a word that `select_dying` did not see, because it was
//! stored later, has a marked target. The same holds for both words of a pair, and for what is
//! stored while words are being cleared. `clear_piece` reads a dying word again, judges what it
//! finds, and replaces that by compare-and-swap: so a word that was overwritten stays. It replaces
//! the two words of a pair under a lock, which `Mutator::write_pair` and its like take while words
//! are being cleared.
//!
//! A table that grows would keep all its targets if it copied each word by a weak load; if marking
//! is on often, for ever. So there is `Mutator::copy_weak`, which keeps nothing. While marking is
//! on, it notes a copied word whose target is not marked as a marker does, in the same piece under
//! `no_preempt`. While words are being cleared, it copies what the weak load would give. The value
//! of a copied pair needs nothing more. The pair that it was copied from is in the snapshot, or was
//! stored strongly, or is itself a copy of such a pair; either it waits, and a marker follows its
//! value, or it was overwritten, and its value logged.
//!
//! # Full lists
//! All lists grow as they are filled, up to a word for each cell of the heap; the system may refuse
//! memory. If `met` has no room for a weak cell, the stop walks all cells of weak kinds instead. If
//! `dying` has no room for a word, the clearing looks at all words of all cells that were met. If
//! `waiting` has no room for a pair, the pair is strong in this cycle.

mod modes;
mod slot;
mod waiting;
mod work;

pub(crate) use modes::{IDLE, JUDGING, JUDGING_LONG, MARKING};
pub(crate) use slot::{Load, WeakSlot, for_each_dead_word, judge_load};
pub use work::WeakWork;
pub(crate) use work::{Stage, Wait};

#[cfg(test)]
mod tests;
