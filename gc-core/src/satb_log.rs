//! A heap's log of overwritten edges, which the snapshot at the beginning needs (`barrier.rs`).

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

use crate::marked::Marked;
use crate::memory::MapError;
use crate::memory::tables::Mapped;

/// Words of a mutator's log. Go's write barrier buffer has as many. With 512 words the cost of a
/// flush is negligible for each word, and the log takes 4 KiB for each thread.
pub(crate) const LOG_WORDS: usize = 512;

/// The heap's log: it takes the words of mutators' logs that were full. A ring in mapped memory
/// that many mutators write while the collector reads.
///
/// The words at `taken..reserved` (counted without end, and taken modulo the length) belong to the
/// thread that reserved them until it has written them. A word that is free or not yet written is
/// zero, and null words are not appended. The collector takes words in order and stops at the first
/// zero: its writer is inside `no_preempt`, and has written it by the next stop.
///
/// The collector decodes each word as it decodes a word of a stack, in every encoding of the heap:
/// an overwritten word may be of any kind, and may be no edge at all.
pub(crate) struct SharedLog {
    words: Mapped<AtomicUsize>,
    /// The number of words that mutators have ever reserved.
    reserved: CachePadded<AtomicUsize>,
    /// The number of words that the collector has ever taken.
    taken: CachePadded<AtomicUsize>,
    /// Cells and bytes that mutators have marked themselves, since the log was full.
    overflowed: CachePadded<[AtomicU64; 2]>,
}

impl SharedLog {
    /// A log of at most `words` words.
    pub(crate) fn new(words: usize) -> Result<Self, MapError> {
        Ok(Self {
            words: Mapped::reserve(words, LOG_WORDS)?,
            reserved: CachePadded::default(),
            taken: CachePadded::default(),
            overflowed: CachePadded::default(),
        })
    }

    fn place(&self, at: usize) -> &AtomicUsize {
        &self.words[at % self.words.len()]
    }

    /// Appends words, none of them null. `false`: there is no room, and none is appended. Under
    /// `no_preempt`, or in a stop.
    pub(crate) fn append(&self, words: &[usize]) -> bool {
        let n = words.len();
        // Relaxed: the words order their own contents.
        let mut at = self.reserved.load(Ordering::Relaxed);
        loop {
            // Acquire pairs with the Release in `take`: words before `taken` are zero again.
            if at + n > self.taken.load(Ordering::Acquire) + self.words.len() {
                return false;
            }
            match self.reserved.compare_exchange_weak(
                at,
                at + n,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => at = now,
            }
        }
        for (i, word) in words.iter().enumerate() {
            // Release pairs with the Acquire in `take`: a thread that sees the word finds its cell
            // initialised.
            self.place(at + i).store(*word, Ordering::Release);
        }
        true
    }

    /// Calls `f` with at most `most` words, and returns their number. By the collector's thread
    /// only.
    pub(crate) fn take(&self, most: usize, mut f: impl FnMut(usize)) -> usize {
        // Relaxed: only this thread writes it.
        let first = self.taken.load(Ordering::Relaxed);
        let mut n = 0;
        while n < most {
            let place = self.place(first + n);
            // Acquire pairs with the Release in `append`.
            let word = place.load(Ordering::Acquire);
            if word == 0 {
                break;
            }
            place.store(0, Ordering::Relaxed);
            f(word);
            n += 1;
        }
        // Release pairs with the Acquire in `append`.
        self.taken.store(first + n, Ordering::Release);
        n
    }

    /// Drops all words: in the child of a fork, whose only thread is in no `append`.
    pub(crate) fn reset(&self) {
        let (taken, reserved) = (
            self.taken.load(Ordering::Relaxed),
            self.reserved.load(Ordering::Relaxed),
        );
        for at in taken..reserved {
            self.place(at).store(0, Ordering::Relaxed);
        }
        self.taken.store(reserved, Ordering::Relaxed);
        self.overflowed_marks();
    }

    /// Adds to the count of what mutators have marked themselves.
    pub(crate) fn overflow(&self, marked: Marked) {
        // Relaxed: read in a stop.
        self.overflowed[0].fetch_add(marked.cells, Ordering::Relaxed);
        self.overflowed[1].fetch_add(marked.bytes, Ordering::Relaxed);
    }

    /// Returns the count of what mutators have marked themselves, and resets it.
    pub(crate) fn overflowed_marks(&self) -> Marked {
        Marked {
            cells: self.overflowed[0].swap(0, Ordering::Relaxed),
            bytes: self.overflowed[1].swap(0, Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_of(log: &SharedLog) -> Vec<usize> {
        let mut all = Vec::new();
        while log.take(100, |word| all.push(word)) != 0 {}
        all
    }

    #[test]
    fn the_log_is_a_ring_and_refuses_what_does_not_fit_whole() {
        let log = SharedLog::new(1024).unwrap();
        for round in 0..5 {
            let words = |n| (0..n).map(|i| (round << 32) + i + 1).collect::<Vec<_>>();
            assert!(log.append(&words(512)) && log.append(&words(500)));
            assert!(!log.append(&words(13)), "there is room for 12");
            assert!(log.append(&words(12)));
            let expected = [words(512), words(500), words(12)].concat();
            assert_eq!(all_of(&log), expected);
            assert!(log.append(&words(77)));
            log.reset();
            assert_eq!(all_of(&log), []);
        }
    }

    #[test]
    fn what_several_threads_append_while_one_takes_comes_out_once() {
        const THREADS: usize = 3;
        const EACH: usize = 200_000;
        let log = SharedLog::new(4096).unwrap();
        let mut seen = vec![0u8; THREADS * EACH];
        std::thread::scope(|s| {
            for thread in 0..THREADS {
                let log = &log;
                s.spawn(move || {
                    let mut at = 0;
                    while at < EACH {
                        let n = (at % 500 + 1).min(EACH - at);
                        let words: Vec<_> = (at..at + n).map(|i| 1 + thread * EACH + i).collect();
                        if log.append(&words) {
                            at += n;
                        } else {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let mut taken = 0;
            while taken < seen.len() {
                taken += log.take(1000, |word| seen[word - 1] += 1);
            }
        });
        assert!(seen.iter().all(|n| *n == 1));
    }
}
