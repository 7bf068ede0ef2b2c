//! The heap's own rooms believe the addresses that they are given: no program of a user gets there.
use gc_core::alloc::bump;
use gc_core::heap::{Cell, Space};
use gc_core::{Refill, LocalAllocator};
use gc_core::internals::Marker;

fn main() {}
