//! What markers meet that is not an edge: weak cells and pairs of ephemerons; who of them has lost
//! a target, and the clearing.
//!
//! ```text
//!   marking         a marker that meets a weak cell notes it (`met`); a pair whose key is not marked waits for it (`waiting`)
//!   before stop 2   `select`, beside the mutators: of those, the words whose targets are not marked go to `dying`
//!   stop 2          nothing is grey: which targets are dead is decided. From here on a weak load finds none of them (`judge_load`)
//!   in it or after  `clear_piece`: the dying words, and cells and pairs met since, are looked at again; whose target is still unmarked is cleared
//! ```
//! So a stop costs a bounded number of words, whatever dies. All words to one dead target are
//! cleared at the same moment, as far as any mutator can see: were one left, an intern table would
//! hand out a string that another one has already made anew. Either no mutator runs until all are
//! cleared, or mutators run with [`Context::marking`](crate::mutator::record::Context) at
//! [`JUDGING`] or [`JUDGING_LONG`], and the weak load's unit gives what `clear_piece` will leave in
//! the word. (ZGC does it like this, and calls it *resurrection blocked*.)
//!
//! # Two stages
//! A word is *short* as a rule: it is cleared before finalizable cells are queued and marked with
//! all they lead to ([`Stage::Short`]). So no short word leads to a cell whose finalizer has been
//! handed out. A word of a kind that is [`long`](crate::raw::Kind::long) is judged after that
//! ([`Stage::All`]), with what marking has met since: tables that only a finalizable cell leads to.
//! Between the two, while mutators run, a long word may lead to a cell that is not marked and will
//! be: the load logs it, which marks it.
//!
//! # Why words stored meanwhile need no look
//! `select` reads each word once, and a mutator may store another word into the cell at once
//! afterwards; a weak cell that was made while marking is on is black from birth and met by no
//! marker. The rule that makes both harmless: **whoever stores a word into a weak cell holds its
//! target strongly** (in a register, on its stack, in a handle), having made it, got it by an edge,
//! or by the weak load. And what a mutator holds strongly at any time while marking is on is marked
//! before the clearing begins. It was reachable when marking began, and the snapshot keeps it; or
//! it was made since, black; or it came by a weak load, which logs it, and the logs are drained
//! before. So a word that `select` did not see, because it was stored later, has a marked target.
//! The same holds for both words of a pair, and for what is stored while words are being cleared. A
//! word that was dying when `select` saw it and has been overwritten since is read again by
//! `clear_piece`, which judges what it finds, and replaces that and nothing else (by
//! compare-and-swap). The two words of a pair are replaced under a lock, which
//! `Mutator::write_pair` and its like take while words are being cleared.
//!
//! A table that grows would keep all its targets if each word were copied by a weak load, and if
//! marking is on often, for ever. So there is `Mutator::copy_weak`, which keeps nothing: what it
//! copies while marking is on, and finds unmarked, it notes like a marker, within the same piece
//! that is not stopped; while words are being cleared, it copies what the weak load would give. The
//! value of a copied pair needs no more: the pair that it was copied from is one of the snapshot,
//! or was stored strongly, or is itself a copy of such a one; it waits, and its value is followed,
//! or it was overwritten, and its value logged.
//!
//! # Full lists
//! All lists grow as they are filled, up to a word a cell of the heap; the system may refuse. If
//! more weak cells are met than `met` has room for, all cells of weak kinds are walked instead, in
//! the stop. If more words are dying than `dying` has room for, all words of all cells that were
//! met are looked at. If more pairs wait than there is room for, those pairs are strong in this
//! cycle (see [`waiting`]).

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
