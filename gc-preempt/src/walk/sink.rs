//! The receiver of a walk's words, and a walk's counts.

use std::ops::Range;

/// Receives the words that a walk reports.
///
/// A walk calls it in the stopped world: an implementation must not call malloc, take a lock that a
/// mutator may hold, or panic.
///
/// ```
/// use std::ops::Range;
///
/// /// Counts the words that may be references.
/// #[derive(Default)]
/// struct Count(usize);
///
/// impl gc_preempt::RootSink for Count {
///     fn conservative(&mut self, words: Range<usize>) {
///         self.0 += words.len() / 8;
///     }
///     fn exact(&mut self, _slot: usize, _encoding: u32) {
///         self.0 += 1;
///     }
///     fn derived(&mut self, _base: usize, _derived: usize, _encoding: u32) {
///         self.0 += 1;
///     }
/// }
/// ```
pub trait RootSink {
    /// Each word of this range of addresses may be a reference. Both ends are multiples of eight.
    fn conservative(&mut self, words: Range<usize>);

    /// The word at address `slot` is a reference. `encoding` is the number that the code was
    /// registered with.
    fn exact(&mut self, slot: usize, encoding: u32);

    /// The word at address `base` is a reference, and the word at address `derived` was computed
    /// from it. A collector that moves no cells can ignore `derived`.
    fn derived(&mut self, base: usize, derived: usize, encoding: u32);
}

/// Ignores all words.
pub(super) struct Nothing;

impl RootSink for Nothing {
    fn conservative(&mut self, _: Range<usize>) {}
    fn exact(&mut self, _: usize, _: u32) {}
    fn derived(&mut self, _: usize, _: usize, _: u32) {}
}

/// Counts of one walk.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalkStats {
    /// Frames whose references came from a stack map.
    pub precise: u32,
    /// Frames that were scanned word by word.
    pub conservative: u32,
    /// Of the conservative frames, managed frames whose return address no stack map names.
    pub unknown_sites: u32,
    /// Injected calls whose hooks had not returned. After each of them the walk continued at the
    /// interrupted instruction.
    pub injected: u32,
    /// Whether the walk did not find the end of a frame, so that it scanned the rest of the stack,
    /// up to its base, word by word.
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
