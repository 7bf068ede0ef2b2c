//! The heap's private modules take addresses on trust. No program of a user reaches them.
use gc_core::alloc::bump;
use gc_core::heap::{Cell, Space};
use gc_core::{Refill, LocalAllocator};
use gc_core::internals::Marker;

fn main() {}
