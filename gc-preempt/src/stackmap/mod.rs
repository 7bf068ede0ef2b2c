//! The stack-map table: for a return address into managed code, where the frame's references lie.
//!
//! Each compiler's format has a reader of its own ([`cranelift`], [`llvm`]), and all make the same
//! table. It is built outside of any stop and read in the stopped world by a binary search; reading
//! allocates nothing and cannot fail.
//!
//! What is *not* in the table is not "no references". A return address without an entry may be a
//! call that the compiler made on its own, so the walker scans such a frame conservatively, and so
//! it does where an entry says that the compiler does not know ([`cranelift::Site::known`]).

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
