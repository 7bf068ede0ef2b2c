//! The roots that stop 1 leaves to be scanned beside the mutators: mutators that are aside and
//! suspended stacks, of which there may be thousands, and open handles and root slots, of which
//! there may be millions.
//!
//! A mutator that is aside stands still (`aside.rs`), and so does a suspended stack
//! (`suspended.rs`). A handle or a root slot changes only by being
//! ended, and the thread that ends one that has not been scanned logs its word: `handles.rs` and
//! `roots.rs` say why that is enough. All are scanned before marking can end, so by stop 2 all such
//! words are in the logs.

use gc_preempt::Stopped;

use super::{aside, suspended};
use crate::encoding::Encoding;
use crate::mutator::record::Context;
use crate::mutator::shared::Shared;
use crate::roots::Scanner;
use crate::verify::{Source, Verify};

/// Bytes of a handle table that are read under one lock of the heap's records: some microseconds.
const PIECE: usize = 16 << 10;

/// Handle tables that are visited under one lock.
const TABLES: usize = 64;

/// The roots that are still to be scanned.
#[derive(Clone, Copy, Default)]
pub(super) struct Beside {
    /// Words in all tables, about.
    pub(super) words: usize,
    /// The place below which the mutators that are aside have not been scanned. They come first,
    /// since their handles are read with those of all others.
    aside: Option<usize>,
    /// The place below which suspended stacks have not been scanned. They come next.
    suspended: Option<usize>,
    /// Suspended stacks that were scanned beside the mutators, and in stops.
    pub(super) stacks: [u32; 2],
    /// The record whose handles come next, and the position in its table.
    record: usize,
    position: usize,
    /// Whether all handles have been scanned.
    handles_done: bool,
}

impl Beside {
    /// In stop 1: notes that a mutator's handles are to be scanned.
    pub(super) fn snapshot(
        &mut self,
        context: &Context,
        number: usize,
        scanner: &mut Scanner<'_, '_>,
        verify: Option<&Verify>,
    ) {
        let handles = &context.handles;
        if !handles.begin_reading() {
            return;
        }
        if let Some(verify) = verify {
            scanner.source(Source::Handles(number));
            handles.for_each(|word| verify.root_word(scanner.space(), word));
        }
        // A record without a place in the heap's list is not found beside the mutators.
        if context.place.get() == usize::MAX {
            handles.for_each(|word| scanner.word(word, Encoding::RAW));
            handles.all_read();
            return;
        }
        self.words += handles.bytes_to_read() / size_of::<usize>();
    }

    /// In stop 1: notes that mutators that are aside, and suspended stacks, are to be scanned.
    pub(super) fn snapshot_stacks(&mut self, aside: usize, suspended: usize) {
        /// Words that a stack counts as: a shallow one takes as long to scan.
        const WORDS: usize = 64;
        self.words += WORDS * (aside + suspended);
        self.aside = (aside != 0).then_some(usize::MAX);
        self.suspended = (suspended != 0).then_some(usize::MAX);
    }

    /// Whether suspended stacks are still to be scanned.
    pub(super) fn has_suspended(&self) -> bool {
        self.suspended.is_some()
    }

    /// In stop 1: scans all suspended stacks.
    pub(super) fn scan_suspended(
        &mut self,
        shared: &Shared,
        stopped: &Stopped<'_>,
        scanner: &mut Scanner<'_, '_>,
    ) {
        self.suspended = None;
        suspended::scan_all(shared, stopped, scanner, &mut self.stacks[1]);
    }

    /// Scans some more; `false`: nothing is left. `stopped`: the present stop, if there is one.
    pub(super) fn scan_piece(
        &mut self,
        shared: &Shared,
        stopped: Option<&Stopped<'_>>,
        scanner: &mut Scanner<'_, '_>,
    ) -> bool {
        if let Some(from) = self.aside {
            self.aside = match stopped {
                Some(stopped) => aside::scan_all(shared, stopped, scanner),
                None => aside::scan_piece(shared, from, scanner),
            };
            if self.aside.is_none() {
                shared.roots.end_snapshot();
            }
            return true;
        }
        if let Some(from) = self.suspended {
            let [beside, in_stops] = &mut self.stacks;
            self.suspended = match stopped {
                Some(stopped) => suspended::scan_all(shared, stopped, scanner, in_stops),
                None => suspended::scan_piece(shared, from, scanner, beside),
            };
            return true;
        }
        if self.handles_done {
            return shared
                .roots
                .scan_piece(|word| scanner.word(word, Encoding::RAW));
        }
        self.handles_done = !self.scan_handles(shared, scanner);
        true
    }

    fn scan_handles(&mut self, shared: &Shared, scanner: &mut Scanner<'_, '_>) -> bool {
        let mut contexts = shared.contexts.lock();
        for _ in 0..TABLES {
            let Some((at, attached)) = contexts.next(self.record) else {
                return false;
            };
            if at != self.record {
                (self.record, self.position) = (at, 0);
            }
            // SAFETY: a mutator takes its record out, under this lock, before it frees it. Its
            // owner writes the fields that are read here atomically.
            let handles = unsafe { &attached.context().handles };
            if handles.is_to_be_read() {
                let read = |word| scanner.word(word, Encoding::RAW);
                if let Some(position) = handles.read_piece(self.position, PIECE, read) {
                    self.position = position;
                    return true;
                }
                handles.all_read();
            }
            (self.record, self.position) = (at + 1, 0);
        }
        true
    }
}
