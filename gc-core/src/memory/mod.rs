//! Memory from the system: address ranges, tables in them, and prefetches.
//!
//! | file | what it has |
//! |---|---|
//! | `os.rs` | mappings, and arrays in them |
//! | `tables.rs` | arrays and slabs that a stop may read and write |
//! | `places.rs` | which places of a slab are in use |
//! | `chunked.rs` | lists that grow and shrink in parts |
//! | `prefetch.rs` | prefetches, and the ring that gives them time |

pub(crate) mod chunked;
pub(crate) mod os;
pub(crate) mod places;
pub(crate) mod prefetch;
pub(crate) mod tables;

pub use os::MapError;
