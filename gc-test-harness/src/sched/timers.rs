//! Deadlines of sleeping green threads.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An item and its deadline, in nanoseconds since [`Timers::begun`]. The number makes deadlines
/// different.
struct Entry<T>(u64, u64, T);

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// Items by their deadlines.
pub(super) struct Timers<T> {
    begun: Instant,
    /// The earliest deadline. `u64::MAX`: none.
    next: AtomicU64,
    entries: Mutex<(u64, BinaryHeap<Reverse<Entry<T>>>)>,
}

impl<T> Timers<T> {
    pub(super) fn new() -> Timers<T> {
        Timers {
            begun: Instant::now(),
            next: AtomicU64::new(u64::MAX),
            entries: Mutex::new((0, BinaryHeap::new())),
        }
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    /// Adds an item.
    pub(super) fn add(&self, deadline: Instant, item: T) {
        let at = deadline.saturating_duration_since(self.begun).as_nanos() as u64;
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.0 += 1;
        let number = entries.0;
        entries.1.push(Reverse(Entry(at, number, item)));
        // Relaxed, here and below: a hint; the lock orders the entries.
        self.next.fetch_min(at, Ordering::Relaxed);
    }

    /// Takes the items whose deadlines have passed.
    pub(super) fn due(&self, mut take: impl FnMut(T)) {
        let next = self.next.load(Ordering::Relaxed);
        if next == u64::MAX || next > self.now() {
            return;
        }
        let now = self.now();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ready = Vec::new();
        while entries.1.peek().is_some_and(|entry| entry.0.0 <= now)
            && let Some(Reverse(entry)) = entries.1.pop()
        {
            ready.push(entry.2);
        }
        let next = entries.1.peek().map_or(u64::MAX, |entry| entry.0.0);
        self.next.store(next, Ordering::Relaxed);
        drop(entries);
        ready.into_iter().for_each(&mut take);
    }

    /// The time until the earliest deadline.
    pub(super) fn wait(&self) -> Option<Duration> {
        let next = self.next.load(Ordering::Relaxed);
        (next != u64::MAX).then(|| Duration::from_nanos(next.saturating_sub(self.now())))
    }
}
