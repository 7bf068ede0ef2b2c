//! What a walk hands out, and what it counts.

use std::ops::Range;

/// Takes what a walk finds.
///
/// It is called in the stopped world: an implementation must not allocate from malloc, take a lock
/// that a mutator may hold, or panic.
pub trait RootSink {
    /// Any word of this range of addresses may be a reference, or none. Both ends are multiples of
    /// eight.
    fn conservative(&mut self, words: Range<usize>);

    /// The word at address `slot` is an edge of the given encoding (the number that the code was
    /// registered with).
    fn exact(&mut self, slot: usize, encoding: u32);

    /// The word at address `derived` was computed from the reference at address `base`, which is
    /// the edge. A collector that moves nothing can ignore the former.
    fn derived(&mut self, base: usize, derived: usize, encoding: u32);
}

/// For a walk that is made for its own sake.
pub(super) struct Nothing;

impl RootSink for Nothing {
    fn conservative(&mut self, _: Range<usize>) {}
    fn exact(&mut self, _: usize, _: u32) {}
    fn derived(&mut self, _: usize, _: usize, _: u32) {}
}

/// What a walk saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalkStats {
    /// Frames whose references came from a stack map.
    pub precise: u32,
    /// Frames that were scanned word by word.
    pub conservative: u32,
    /// Of those, managed frames at a return address that no stack map names.
    pub unknown_sites: u32,
    /// Injected calls whose hooks had not returned. BehindHandlers each the walk began anew, at the
    /// instruction that was interrupted.
    pub injected: u32,
    /// Whether the walk lost its way and scanned the rest of the stack word by word up to its base.
    pub to_base: bool,
}

impl std::ops::AddAssign for WalkStats {
    fn add_assign(&mut self, other: Self) {
        self.precise += other.precise;
        self.conservative += other.conservative;
        self.unknown_sites += other.unknown_sites;
        self.injected += other.injected;
        self.to_base |= other.to_base;
    }
}
