//! Memory from the system: address ranges, tables in them, and prefetches.

pub(crate) mod chunked;
pub(crate) mod os;
pub(crate) mod places;
pub(crate) mod prefetch;
pub(crate) mod tables;

pub use os::MapError;
