//! The C interface of `gc-core`: its raw tier, as functions that C can call. `include/urge.h` has
//! the declarations, with the text of each function's documentation.
//!
//! No panic leaves a function: it becomes `URGE_STATUS_PANIC`. Null pointers and values out of
//! range give an error. Dangling pointers are not found.

#![allow(non_camel_case_types)] // the names are C's
#![allow(clippy::vec_box)] // C has the addresses of kinds and sites
#![allow(clippy::result_large_err)] // an error has its message in place: it takes no memory

pub mod error;
pub mod heap;
pub mod mutator;
pub mod roots;
