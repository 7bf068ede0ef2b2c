//! H88 to H90: a stop's work for sites grows with the sites that changed. A site's lists are
//! brought up to date by the next thread that takes its lock, and runs that are not refilled go
//! back.

mod common;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use common::hazard;
use gc_core::internals::bump;
use gc_core::internals::{LocalAllocator, Refill};
use gc_core::internals::{MarkQueue, Marker, WeakWork};
use gc_core::internals::{Space, SpaceConfig};
use gc_core::raw::{Encoding, Kind, KindId};
use gc_core::{Heap, Mutator};

/// The number of sites of a mutator. The first run of each takes 8 KiB, so no collection is due.
const N: usize = 400;

/// The most sites that a stop may visit once the unused ones have gone back.
const FEW: u64 = 20;

/// True if both cells may lie in one span. A span of the smallest cells has 64 KiB.
fn share_a_span(a: usize, b: usize) -> bool {
    a.abs_diff(b) < 64 << 10
}

/// A heap's memory with one local allocator and a collector on the same thread.
struct Bare {
    space: Space,
    runs: LocalAllocator,
    queue: MarkQueue,
    weak: WeakWork,
}

impl Bare {
    fn new() -> Bare {
        // A world reads which faults are planted. It stops no thread here.
        drop(gc_preempt::World::new(gc_preempt::Config::default()));
        let config = SpaceConfig {
            reserve: 1 << 30,
            ..SpaceConfig::default()
        };
        // SAFETY: the tests keep to the collector's protocol, with runs, sites and queues of this
        // space.
        let space = unsafe { Space::bare(config) }.unwrap();
        Bare {
            queue: MarkQueue::new(&space, 1 << 16).unwrap(),
            weak: WeakWork::new(&space).unwrap(),
            runs: LocalAllocator::new().unwrap(),
            space,
        }
    }

    fn kinds(&self, n: usize) -> Vec<KindId> {
        let kind = |i| {
            self.space
                .add_kind(Kind::leaf(format!("kind {i}")))
                .unwrap()
        };
        (0..n).map(kind).collect()
    }

    fn alloc(&self, kind: KindId) -> usize {
        let site = self.space.site(kind, 16).unwrap();
        loop {
            // SAFETY: this thread's runs, of this space.
            let cell = unsafe { bump(self.runs.as_mut_ptr(), site) };
            if !cell.is_null() {
                return cell as usize;
            }
            assert_ne!(self.runs.refill(&self.space, site).unwrap(), Refill::Due);
        }
    }

    fn begin(&self, roots: &[usize]) {
        self.weak.begin(&self.space);
        self.space.begin_marking();
        // SAFETY: this thread's runs, of this space.
        unsafe { self.runs.blacken_tails(&self.space) };
        let mut marker = Marker::new(&self.space, &self.queue, &self.weak);
        roots.iter().for_each(|r| marker.edge(*r, Encoding::RAW));
        marker.drain();
    }

    fn finish(&self) {
        self.space.end_marking();
        while self.space.sweep_piece() {}
        while self.space.clear_spare_piece() {}
    }

    fn collect(&self, roots: &[usize]) {
        self.begin(roots);
        self.finish();
    }
}

/// All spans of all sites are swept although no stop moves them between lists. With `lists-stale`
/// planted, spans of dead cells stay in use.
#[test]
fn h88_all_spans_of_all_sites_are_swept_though_no_stop_moves_them() {
    let name = "h88_all_spans_of_all_sites_are_swept_though_no_stop_moves_them";
    hazard(name, "lists-stale", || {
        let bare = Bare::new();
        let kinds = bare.kinds(50);
        for _ in 0..3 {
            // Some spans of each site are full, and one is not.
            let cells = kinds
                .iter()
                .map(|kind| (0..10_000).map(|_| bare.alloc(*kind)));
            let kept: Vec<usize> = cells.map(|cells| cells.last().unwrap()).collect();
            bare.runs.retire(&bare.space);
            let before = bare.space.used_bytes();
            bare.collect(&kept);
            // Of the three spans of each site, two are free, and the free cells of the third are
            // used again.
            let after = bare.space.used_bytes();
            assert_eq!(3 * after, before);
            for (kind, kept) in kinds.iter().zip(&kept) {
                let cell = bare.alloc(*kind);
                assert!(share_a_span(cell, *kept), "another span was taken");
            }
            assert_eq!(bare.space.used_bytes(), after);
            bare.runs.retire(&bare.space);
            bare.collect(&[]);
            assert_eq!(bare.space.used_bytes(), 0);
        }
    });
}

/// A run that went back gives no cell before a refill has entered its site in the list again. With
/// `stale-runs-unlisted-only` planted, it gives cells that are not marked.
#[test]
fn h89_a_run_that_went_back_gives_no_cell_before_it_is_refilled() {
    let name = "h89_a_run_that_went_back_gives_no_cell_before_it_is_refilled";
    hazard(name, "stale-runs-unlisted-only", || {
        let bare = Bare::new();
        let kinds = bare.kinds(10);
        let busy = bare.kinds(1)[0];
        let mut kept: Vec<usize> = kinds.iter().map(|kind| bare.alloc(*kind)).collect();
        for _ in 0..4 {
            // These refills review runs that were not refilled lately.
            let all: Vec<usize> = (0..10_000).map(|_| bare.alloc(busy)).collect();
            std::hint::black_box(all);
            bare.collect(&kept);
        }
        let before = kept.clone();
        bare.begin(&kept);
        // Cells are allocated black in each case, since the collector has already visited the
        // mutator's runs.
        for (kind, first) in kinds.iter().zip(before) {
            let cell = bare.alloc(*kind);
            assert!(bare.space.is_marked(cell), "a cell was allocated white");
            assert!(
                share_a_span(cell, first),
                "cells that went back are not found"
            );
            kept.push(cell);
        }
        bare.finish();
        assert!(kept.iter().all(|cell| bare.space.is_allocated(*cell)));
    });
}

/// A site that is refilled in each cycle is never given back; a site that was used once is.
#[test]
fn a_site_that_is_refilled_in_each_cycle_is_never_given_back() {
    let bare = Bare::new();
    let kinds = bare.kinds(3);
    let (often, once, busy) = (kinds[0], kinds[1], kinds[2]);
    let room = |kind| {
        let site = bare.space.site(kind, 16).unwrap();
        // SAFETY: this thread's runs, and the site's index in them.
        let run = unsafe { *bare.runs.as_mut_ptr().add(site.index()) };
        run.limit - run.cursor
    };
    bare.alloc(once);
    for round in 0..10 {
        // One refill in each cycle, before marking and during it in turn.
        let refill = || {
            while room(often) != 0 {
                bare.alloc(often);
            }
            bare.alloc(often);
        };
        if round % 2 == 0 {
            refill();
        }
        bare.begin(&[]);
        if round % 2 == 1 {
            refill();
        }
        bare.finish();
        // Refills of another site, which review stale runs.
        for _ in 0..10_000 {
            bare.alloc(busy);
        }
        assert_ne!(room(often), 0, "given back in round {round}");
    }
    assert_eq!(room(once), 0);
}

// ---- in a heap that really stops ----------------------------------------------------------------

fn many_sites(heap: &Heap, m: &Mutator, n: usize) {
    for i in 0..n {
        let kind = heap.kind(Kind::leaf(format!("kind {i}"))).unwrap();
        // SAFETY: the cell is not used.
        unsafe { m.alloc_raw(kind, 16) }.unwrap();
    }
}

/// True if, after at most 200 collections by this thread, which is no mutator, stops visit few
/// sites and the spans of the other sites are free.
fn comes_to_few(heap: &Heap) -> bool {
    (0..200).any(|_| {
        heap.collect();
        let stats = heap.stats();
        stats.last.sites_in_stops <= FEW && stats.used_bytes < 4 << 20
    })
}

/// Two collections after its last refill, a site is not visited by stops. With `stale-runs-kept`
/// planted, each stop visits all sites.
#[test]
fn h90_two_collections_later_a_stop_does_not_look_at_sites_that_were_used_once() {
    let name = "h90_two_collections_later_a_stop_does_not_look_at_sites_that_were_used_once";
    hazard(name, "stale-runs-kept", || {
        let (heap, _) = common::heap();
        let m = heap.attach().unwrap();
        many_sites(&heap, &m, N);
        m.collect();
        let sites = heap.stats().last.sites_in_stops;
        assert!(sites >= N as u64, "the first collection looks at {sites}");
        m.collect();
        m.collect();
        let stats = heap.stats();
        assert!(stats.last.sites_in_stops <= FEW, "{:?}", stats.last);
        // The mutator uses all these sites once more.
        many_sites(&heap, &m, N);
        m.collect();
        m.collect();
        m.collect();
        assert!(heap.stats().last.sites_in_stops <= FEW);
    });
}

/// The sites of a mutator that waits inside `blocking` go back in stops. With `stale-runs-kept`
/// planted, they stay.
#[test]
fn h90_sites_of_a_mutator_that_waits_go_back_in_stops() {
    let name = "h90_sites_of_a_mutator_that_waits_go_back_in_stops";
    hazard(name, "stale-runs-kept", || {
        let (heap, _) = common::heap();
        let (ready, done) = (Barrier::new(2), AtomicBool::new(false));
        std::thread::scope(|s| {
            s.spawn(|| {
                let m = heap.attach().unwrap();
                // More sites than a mutator may have when it is set aside.
                many_sites(&heap, &m, 5 * N);
                common::sit_idle(&m, &ready, &done);
            });
            ready.wait();
            let few = comes_to_few(&heap);
            done.store(true, Relaxed);
            assert!(few, "{:?}", heap.stats().last);
        });
    });
}

/// A mutator that allocates in one site gives its other sites back in its refills.
#[test]
fn sites_of_a_mutator_that_allocates_elsewhere_go_back_as_it_goes() {
    let (heap, k) = common::heap();
    let (ready, done) = (Barrier::new(2), AtomicBool::new(false));
    std::thread::scope(|s| {
        s.spawn(|| {
            let m = heap.attach().unwrap();
            many_sites(&heap, &m, N);
            ready.wait();
            while !done.load(Relaxed) {
                common::garbage(&m, k, 1000);
            }
        });
        ready.wait();
        let few = comes_to_few(&heap);
        done.store(true, Relaxed);
        assert!(few, "{:?}", heap.stats().last);
    });
}
