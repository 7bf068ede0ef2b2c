//! Stack maps: for each return address into managed code, the places of the frame's references.
//!
//! Each compiler's format has a reader ([`cranelift`], [`llvm`]), and all readers make the same
//! table ([`StackMaps`]). It is built outside of any stop. The walker searches it in the stopped
//! world; that allocates nothing and cannot fail.
//!
//! A return address *without* an entry may belong to a call that the compiler has inserted, across
//! which references live. So the walker scans such a frame conservatively. It does the same if an
//! entry says that the compiler does not know all references ([`cranelift::Site::known`]).

pub mod cranelift;
pub mod llvm;
mod maps;

#[cfg(test)]
mod compiled;
#[cfg(test)]
mod tests;

pub use crate::table_error::{StackMapError, StackMapErrorKind};
pub use maps::StackMaps;
pub(crate) use maps::{BaseRegister, FrameWord, Site};
