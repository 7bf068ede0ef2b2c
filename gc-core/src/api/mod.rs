//! What an embedder sees.

pub(crate) mod fork;
pub(crate) mod heap;
pub(crate) mod mutator;
pub(crate) mod root;
