//! Tests of `queue.rs`.

use super::*;
use crate::heap::{MIN_RESERVE, SpaceConfig};

fn queue(cells: usize) -> MarkQueue {
    let space = Space::new(SpaceConfig {
        reserve: MIN_RESERVE,
        ..SpaceConfig::default()
    })
    .unwrap();
    MarkQueue::new(&space, cells).unwrap()
}

/// `share` moves the older half of a local queue to the shared one.
#[test]
fn the_older_half_is_shared() {
    let queue = queue(10 * ENTRIES);
    let mut local = LocalQueue::new(&queue);
    local.share();
    assert!(queue.is_empty());
    for entry in 1..=7 {
        assert!(local.push(entry));
    }
    local.share();
    let mut other = LocalQueue::new(&queue);
    assert_eq!(
        std::iter::from_fn(|| other.pop()).collect::<Vec<_>>(),
        [3, 2, 1]
    );
    assert_eq!(
        std::iter::from_fn(|| local.pop()).collect::<Vec<_>>(),
        [7, 6, 5, 4]
    );
    local.share();
    assert!(queue.is_empty());
}

/// Each item that was pushed is popped once.
#[test]
fn all_that_was_pushed_is_popped_once() {
    let queue = queue(10 * ENTRIES);
    let mut local = LocalQueue::new(&queue);
    let cells: Vec<usize> = (1..=4000).map(|n| n * 16).collect();
    assert!(cells.iter().all(|&c| local.push(c)));
    let mut popped: Vec<usize> = std::iter::from_fn(|| local.pop()).collect();
    popped.sort_unstable();
    assert_eq!(popped, cells);
    assert_eq!(queue.overflows(), 0);
}

/// After a trim, a queue works as a new one does, and keeps memory up to the given size.
#[test]
fn a_trimmed_queue_is_as_good_as_new() {
    let queue = queue(1000 * ENTRIES);
    for _ in 0..2 {
        let mut local = LocalQueue::new(&queue);
        assert!((1..=100 * ENTRIES).all(|n| local.push(n)));
        assert_eq!(
            std::iter::from_fn(|| local.pop()).sum::<usize>(),
            100 * ENTRIES * (100 * ENTRIES + 1) / 2
        );
        drop(local);
        // SAFETY: no local queue exists.
        unsafe { queue.trim(1 << 20) };
        assert_eq!(queue.fresh.load(Ordering::Relaxed), 100, "below the limit");
        // SAFETY: as above.
        unsafe { queue.trim(3 * size_of::<Packet>()) };
        assert_eq!(queue.fresh.load(Ordering::Relaxed), 0);
        assert_eq!(backed(&queue, 100), [0, 1, 2], "what is kept");
    }
}

/// `pre_touch` has the memory of the first packets backed.
#[test]
fn a_queue_that_is_touched_beforehand_is_backed() {
    let queue = queue(2000 * ENTRIES);
    assert_eq!(backed(&queue, 1100), []);
    queue.pre_touch(1 << 20);
    assert_eq!(backed(&queue, 1100), Vec::from_iter(0..1024), "4 MiB");
}

/// The packets among the first `packets` ones whose memory is backed.
fn backed(queue: &MarkQueue, packets: usize) -> Vec<usize> {
    let mut there = vec![0u8; packets];
    let first = queue.packets.at(0).cast::<libc::c_void>();
    // SAFETY: a mapped range of `packets` system pages, with one byte for each.
    let result = unsafe { libc::mincore(first, packets * size_of::<Packet>(), there.as_mut_ptr()) };
    assert_eq!(result, 0);
    (0..packets).filter(|&n| there[n] & 1 != 0).collect()
}

/// `make_ready` backs the memory of a local queue's first packet, and adds no item.
#[test]
fn a_hand_that_is_ready_has_its_memory() {
    let queue = queue(10 * ENTRIES);
    assert_eq!(backed(&queue, 10), []);
    let mut local = LocalQueue::new(&queue);
    local.make_ready();
    local.make_ready();
    assert_eq!(backed(&queue, 10), [0]);
    assert!(queue.is_empty());
    assert!(local.push(16));
    assert_eq!((local.pop(), local.pop()), (Some(16), None));
}

/// An item for which there is no room is flagged by its page, and each flag is taken once.
#[test]
fn what_does_not_fit_is_flagged_by_its_unit() {
    let queue = queue(1);
    let mut local = LocalQueue::new(&queue);
    for n in 0..2 * ENTRIES + 3 {
        if !local.push(16) {
            queue.flag(n);
        }
    }
    let mut pages = Vec::new();
    assert!(queue.take_flags(|page| pages.push(page)));
    assert_eq!(pages, [2 * ENTRIES, 2 * ENTRIES + 1, 2 * ENTRIES + 2]);
    assert!(!queue.take_flags(|_| ()));
    assert_eq!(std::iter::from_fn(|| local.pop()).count(), 2 * ENTRIES);
}

/// Threads that push and pop packets beside each other lose none.
#[test]
fn hands_exchange_packets_without_losing_one() {
    let queue = queue(128 * ENTRIES);
    let sum: usize = std::thread::scope(|s| {
        let workers: Vec<_> = (0..3)
            .map(|thread| {
                let queue = &queue;
                s.spawn(move || {
                    let (mut local, mut sum) = (LocalQueue::new(queue), 0);
                    for n in 0..20_000 {
                        assert!(local.push(1 + thread));
                        if n % 3 == 0 {
                            sum += local.pop().unwrap();
                        }
                    }
                    sum
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().unwrap()).sum()
    });
    let mut local = LocalQueue::new(&queue);
    let rest: usize = std::iter::from_fn(|| local.pop()).sum();
    assert_eq!(queue.overflows(), 0);
    assert_eq!(sum + rest, 20_000 * (1 + 2 + 3));
}
