//! The roots that stop 1 has left to be scanned beside the mutators: mutators that are aside, of
//! which there may be thousands, and open handles and root slots, of which there may be millions.
//!
//! The first stand still (`aside.rs`). Neither of the others changes but by being ended, and who
//! ends one logs it while it has not been scanned: `handles.rs` and `roots.rs` say why that is
//! enough. All are scanned before marking can come to its end, so by stop 2 all that was logged is
//! in the logs.

use gc_preempt::Stopped;

use super::aside;
use crate::encoding::Encoding;
use crate::mutator::record::Context;
use crate::mutator::shared::Shared;
use crate::roots::Scanner;
use crate::verify::{Source, Verify};

/// Bytes of a handle table under one lock of the heap's records: some microseconds.
const PIECE: usize = 16 << 10;

/// Tables that are looked at under one.
const TABLES: usize = 64;

/// What is left to be scanned.
#[derive(Clone, Copy, Default)]
pub(super) struct Beside {
    /// Words in all tables, about.
    pub(super) words: usize,
    /// Below which place the mutators that are aside have not been scanned. They come first: what
    /// they have in handles is read with all others'.
    aside: Option<usize>,
    /// The record whose handles come next, and how far its table has been read.
    record: usize,
    position: usize,
    /// All handles have been scanned.
    handles_done: bool,
}

impl Beside {
    /// In stop 1: a mutator's handles are to be scanned.
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
        // A record that found no place among the heap's is not met beside the mutators.
        if context.place.get() == usize::MAX {
            handles.for_each(|word| scanner.word(word, Encoding::RAW));
            handles.all_read();
            return;
        }
        self.words += handles.bytes_to_read() / size_of::<usize>();
    }

    /// In stop 1: mutators that are aside are to be scanned.
    pub(super) fn snapshot_aside(&mut self, count: usize) {
        /// Words that one is taken for: what a shallow stack takes to be scanned.
        const WORDS: usize = 64;
        self.words += WORDS * count;
        self.aside = (count != 0).then_some(usize::MAX);
    }

    /// Scans some more; `false`: nothing is left. `stopped`: the world, if it stands.
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
            // SAFETY: a mutator takes its record out, under this lock, before it frees it. What of
            // it is read here, its owner writes atomically.
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
