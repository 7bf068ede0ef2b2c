//! The interface of an embedder: the raw tier (cells, kinds, mutators, raw roots), and on top of it
//! Rust types in two tiers: safe, by handles in scopes, and fast, by bare pointers.

pub(crate) mod allocate;
pub(crate) mod array;
pub(crate) mod assist;
pub(crate) mod attach;
pub(crate) mod builder;
pub(crate) mod capture;
pub(crate) mod code;
pub(crate) mod collect;
pub(crate) mod datum;
pub(crate) mod ephemeron;
pub(crate) mod field;
pub(crate) mod gc;
pub(crate) mod heap;
pub(crate) mod inspect;
pub(crate) mod knobs;
pub(crate) mod leaves;
pub(crate) mod local;
pub(crate) mod mutator;
pub(crate) mod room;
pub(crate) mod root;
pub(crate) mod slice;
pub(crate) mod slot;
pub(crate) mod snapshot;
pub(crate) mod stack;
pub(crate) mod text;
pub(crate) mod trace;
pub(crate) mod typed_root;
pub(crate) mod value;
pub(crate) mod value_root;
pub(crate) mod weak;
pub(crate) mod weak_words;
