//! Says how to get from a native frame to its caller's, by the unwind tables (CFI) of the module
//! that the frame's PC lies in.
//!
//! The answer is a [`Rule`] or nothing. Nothing means that no table covers this very PC, or that
//! its row says something that cannot be expressed here; the walker then scans conservatively.
//! There is no third case: no guessing by RBP, no disassembly. (framehop, the crate one would take,
//! follows RBP silently where it has no table, and a stale RBP can lead into a plausible chain; it
//! also wants every module announced beforehand, and takes all modules anew when one is loaded.)
//!
//! # In the stopped world
//!
//! A mutator may be stopped inside malloc, inside `dlopen`, with the loader's lock held. So the
//! module is found by glibc's `_dl_find_object` (2.35 and later; also for the vDSO), which takes no
//! lock: it reads one of two copies of a sorted table, and a writer that is stopped in the middle
//! holds up nobody. It is looked up by `dlsym` once ([`setup`]), outside of any stop; where it is
//! missing, no native frame has a rule. Tables are parsed by gimli with storage on the stack.
//! Nothing here allocates, locks or panics.

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

/// Looks up what cannot be looked up in a stop. May be called again.
pub(crate) fn setup() {
    cache::touch_kept_rules();
    context_end::look_at_a_context();
    modules::setup();
}
