//! Finds the caller of a native frame, by the unwind tables (CFI) of the module that the frame's PC
//! lies in.
//!
//! The result is a [`Rule`] or `None`. `None` means that no table covers this PC, or that a
//! [`Rule`] cannot express its row; the walker then scans conservatively. Nothing is guessed from
//! RBP or by disassembly. The crate framehop was not taken: without a table it follows RBP, and a
//! stale RBP can lead into a plausible chain of frames; and it needs a list of all modules
//! beforehand.
//!
//! # In the stopped world
//!
//! A mutator may be stopped inside malloc, or inside `dlopen` with the loader's lock held. So
//! glibc's `_dl_find_object` (2.35 and later; also for the vDSO) finds the module. It takes no
//! lock: it reads one of two copies of a sorted table, and does not wait for a writer. [`setup`]
//! looks it up by `dlsym` outside of any stop; without it no native frame has a rule. gimli parses
//! the tables with storage on the stack. Nothing here allocates, locks or panics.

mod cache;
mod cfi;
mod context_end;
mod expression;
mod modules;
mod rule;
mod table;

#[cfg(test)]
mod tests;

pub(crate) use cache::{NEVER, Session, kept_rules};
pub(crate) use context_end::ends_a_context;
pub(crate) use rule::{Back, Rule, Saved, Value};
pub(crate) use table::Table;

/// Prepares what cannot be prepared in a stop. May be called more than once.
pub(crate) fn setup() {
    cache::touch_kept_rules();
    context_end::look_at_a_context();
    modules::setup();
}
