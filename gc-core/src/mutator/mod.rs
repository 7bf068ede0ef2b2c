//! The state of each attached thread: its record, its handles and its cache of types.

pub(crate) mod handles;
pub mod record;
pub(crate) mod reserve;
pub(crate) mod shared;
pub(crate) mod types;
