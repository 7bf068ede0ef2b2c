//! Measures scanning: deep managed stacks by stack maps and conservatively, the resolution of
//! single words, the marking of a graph, and the cells that a stale slot keeps alive.
//!
//! `cargo bench -p benches --bench scan`.

use std::ffi::c_void;
use std::ops::Range;
use std::time::{Duration, Instant};

use benches::paired::{Block, Measured, Paired};
use benches::{Mode, consume, run_groups, wanted};
use criterion::{Criterion, Throughput};
use gc_core::Heap;
use gc_core::internals::{LocalAllocator, Refill, bump};
use gc_core::internals::{MarkQueue, Marker, WeakWork};
use gc_core::internals::{Space, SpaceConfig};
use gc_core::raw::{Encoding, Kind, Site};
use gc_preempt::{Config, RootSink, WalkStats, World};
use gc_test_harness::kernels::alloc::{Allocator, node_site};
use gc_test_harness::kernels::codegen::Arena;
use gc_test_harness::kernels::deep::Frames;
use gc_test_harness::kernels::stale::retained;
use gc_test_harness::lab::baselines::mark::LimitMarker;

/// Bytes of stack for deep recursions.
const STACK: usize = 64 << 20;

fn main() {
    let mode = Mode::from_args();
    if mode != Mode::List {
        if wanted("walk") {
            walks(mode);
        }
        if wanted("stack") {
            stacks(mode);
        }
        if wanted("lookup") {
            lookups(mode);
        }
        if wanted("mark") {
            marks(mode);
        }
        if wanted("precision") {
            precision(mode);
        }
    }
    run_groups(groups);
}

// ---- stacks -------------------------------------------------------------------------------------

/// A sink that reads each reported word, which is the least work of a collector.
struct Reader(WalkStats);

impl RootSink for Reader {
    fn conservative(&mut self, words: Range<usize>) {
        let mut sum = 0usize;
        for at in words.step_by(8) {
            // SAFETY: the walker reports words of the stopped thread's stack and registers.
            sum = sum.wrapping_add(unsafe { (at as *const usize).read() });
        }
        consume(sum);
    }

    fn exact(&mut self, slot: usize, _: u32) {
        // SAFETY: as above.
        consume(unsafe { (slot as *const usize).read() });
    }

    fn derived(&mut self, base: usize, _: usize, _: u32) {
        consume(base);
    }
}

/// The callbacks of the managed frames, and the time that the innermost frame's callback measured.
struct Scene<'a> {
    fresh: &'a mut dyn FnMut() -> usize,
    bottom: &'a mut dyn FnMut() -> Duration,
    time: Duration,
}

unsafe extern "C" fn fresh(data: *mut c_void, _: u64) -> usize {
    // SAFETY: `deep` passes a scene that it does not use meanwhile.
    let scene = unsafe { &mut *data.cast::<Scene<'_>>() };
    (scene.fresh)()
}

unsafe extern "C" fn bottom(data: *mut c_void) {
    // SAFETY: as in `fresh`.
    let scene = unsafe { &mut *data.cast::<Scene<'_>>() };
    scene.time = (scene.bottom)();
}

/// Runs `bottom` inside `depth` managed frames, each of which holds a result of `fresh`. Returns
/// the result of `bottom`.
fn deep(
    frames: &Frames,
    depth: u64,
    fresh_: &mut dyn FnMut() -> usize,
    bottom_: &mut dyn FnMut() -> Duration,
) -> Duration {
    let outermost = fresh_();
    let mut scene = Scene {
        fresh: fresh_,
        bottom: bottom_,
        time: Duration::ZERO,
    };
    let data = (&raw mut scene).cast();
    // SAFETY: the callbacks take the type that `data` points to.
    unsafe { (frames.deep)(depth, fresh, bottom, data, 1, 2, outermost, 3) };
    scene.time
}

fn on_deep_stack<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK);
        let thread = thread.spawn_scoped(scope, f).expect("starts");
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn compiled() -> Frames {
    Frames::compile(&mut Arena::new().expect("an arena")).expect("compiles")
}

/// Measures the walker alone, with a sink that reads each reported word.
fn walks(mode: Mode) {
    let depth = mode.pick(10_000, 500);
    let times = mode.pick(20, 2);
    let block = |maps: bool| {
        on_deep_stack(|| {
            let world = World::new(Config::default()).expect("a world");
            let frames = compiled();
            let guards: Vec<_> = frames
                .code
                .iter()
                .filter(|_| maps)
                .map(|code| code.register(&world, 0).expect("registers"))
                .collect();
            let mutator = world.attach(std::ptr::null_mut()).expect("attaches");
            let node = Box::new([0usize; 2]);
            let walk = || {
                let mut time = Duration::ZERO;
                let stopped = world.stop().expect("this thread is no mutator");
                for mutator in stopped.mutators() {
                    for _ in 0..times {
                        let mut reader = Reader(WalkStats::default());
                        let start = Instant::now();
                        reader.0 = mutator.walk(&mut reader);
                        time += start.elapsed();
                        let precise = if maps { depth + 1 } else { 0 };
                        assert_eq!(u64::from(reader.0.precise), precise);
                    }
                }
                stopped.resume();
                time
            };
            let time = deep(&frames, depth, &mut || node.as_ptr() as usize, &mut || {
                mutator
                    .blocking(|| std::thread::scope(|s| s.spawn(walk).join()))
                    .expect("walks")
            });
            drop(guards);
            Block::new(depth * times, time)
        })
    };
    compare("walk: 10,000 managed frames", mode.pick(21, 2), block);
}

/// Prints a table of `block` with and without stack maps.
fn compare(title: &str, turns: usize, block: impl Fn(bool) -> Block) {
    const BY_MAPS: &str = "by stack maps";
    const BY_WORDS: &str = "word by word, to the base";
    let measured = Paired::new(title, "frame")
        .contender(BY_MAPS, || block(true))
        .contender(BY_WORDS, || block(false))
        .measure(turns);
    rate(&measured, "frames/us", &[BY_MAPS, BY_WORDS]);
    println!("{}", measured.with_ratio(BY_MAPS, BY_WORDS));
}

/// Measures a collection's scan of such a stack: resolves its words and marks their cells.
fn stacks(mode: Mode) {
    let depth = mode.pick(10_000, 500);
    let times = mode.pick(10, 1);
    let block = |maps: bool| {
        on_deep_stack(|| {
            let heap = Heap::builder()
                .gc_percent(u32::MAX)
                .build()
                .expect("a heap");
            let frames = compiled();
            let guards: Vec<_> = frames
                .code
                .iter()
                .filter(|_| maps)
                .map(|code| code.register_with(&heap, Encoding::RAW).expect("registers"))
                .collect();
            let site = node_site(&heap).expect("a site");
            let mutator = heap.attach().expect("attaches");
            let allocator = Allocator::new(&mutator, site);
            let time = deep(
                &frames,
                depth,
                &mut || gc_test_harness::kernels::alloc::ring(&allocator, &[1]).expect("room"),
                &mut || {
                    (0..times)
                        .map(|_| {
                            mutator.collect();
                            let last = heap.stats().last;
                            assert!(last.cells_live > depth, "each frame holds a cell");
                            last.scan
                        })
                        .sum()
                },
            );
            drop(mutator);
            drop(guards);
            Block::new(depth * times, time)
        })
    };
    let title = "stack: 10,000 managed frames that hold a cell each";
    compare(title, mode.pick(9, 1), block);
}

fn rate(measured: &Measured, unit: &str, names: &[&str]) {
    for name in names {
        let nanos = measured.nanos(name).unwrap_or(f64::NAN);
        println!("{:<44}{:>10.1} {unit}", format!("  {name}"), 1e3 / nanos);
    }
}

// ---- words and graphs ---------------------------------------------------------------------------

/// A heap without threads, to measure its tables and its marker.
struct Bare {
    space: Space,
    runs: LocalAllocator,
    queue: MarkQueue,
    weak: WeakWork,
    site: Site,
    cells: Vec<usize>,
}

impl Bare {
    /// A heap with `count` cells of 32 bytes, each with two edges to random older cells.
    fn graph(count: usize) -> Bare {
        // SAFETY: only this thread uses the space, with runs, sites and a queue of this space.
        let space = unsafe { Space::bare(SpaceConfig::default()) }.expect("a heap");
        let queue = MarkQueue::new(&space, 1 << 26).expect("a queue");
        let weak = WeakWork::new(&space).expect("lists");
        let runs = LocalAllocator::new().expect("runs");
        let kind = Kind::words_at("pair", &[0, 1], Encoding::RAW);
        let kind = space.add_kind(kind).expect("a kind");
        let site = space.site(kind, 32).expect("a site");
        let mut bare = Bare {
            space,
            runs,
            queue,
            weak,
            site,
            cells: Vec::with_capacity(count),
        };
        let mut random = random();
        for n in 0..count {
            let cell = bare.alloc();
            for word in 0..if n > 0 { 2 } else { 0 } {
                let target = bare.cells[random() % n];
                // SAFETY: a new cell of four words.
                unsafe { (cell as *mut usize).add(word).write(target) };
            }
            bare.cells.push(cell);
        }
        bare
    }

    fn alloc(&self) -> usize {
        loop {
            // SAFETY: these are this thread's runs.
            let cell = unsafe { bump(self.runs.as_mut_ptr(), self.site) };
            if !cell.is_null() {
                return cell as usize;
            }
            let refill = self.runs.refill(&self.space, self.site);
            assert!(matches!(
                refill,
                Ok(Refill::Ready | Refill::Again | Refill::Cold(_))
            ));
        }
    }

    /// Runs a whole cycle, with `work` in its marking phase.
    fn cycle(&self, work: impl FnOnce(&mut Marker<'_>) -> Block) -> Block {
        self.space.begin_marking();
        // SAFETY: these are this thread's runs.
        unsafe { self.runs.blacken_tails(&self.space) };
        let mut marker = Marker::new(&self.space, &self.queue, &self.weak).alone();
        let block = work(&mut marker);
        for &cell in &self.cells {
            marker.edge(cell, Encoding::RAW);
        }
        marker.drain();
        drop(marker);
        self.space.end_marking();
        while self.space.sweep_piece() {}
        while self.space.clear_spare_piece() {}
        block
    }
}

fn random() -> impl FnMut() -> usize {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    }
}

/// Measures the resolution of conservative words one by one, as the marker gets them from a stack
/// without maps.
fn lookups(mode: Mode) {
    let heap = Bare::graph(mode.pick(1 << 17, 1 << 10));
    let count = mode.pick(1 << 20, 1 << 12);
    let mut random = random();
    let reserve = heap.space.reserved();
    let end = heap.cells.last().copied().unwrap_or(0) + (256 << 10);
    let mut words = |word: &dyn Fn(usize, usize) -> usize| -> Vec<usize> {
        let mut one = || {
            let (cell, number) = (heap.cells[random() % heap.cells.len()], random());
            word(cell, number)
        };
        (0..count).map(|_| one()).collect()
    };
    let starts = words(&|cell, _| cell);
    let inside = words(&|cell, number| cell + number % 32);
    let free = words(&|_, number| end + number % ((reserve.end - end) / 2));
    let outside = words(&|_, number| number >> 20);
    let block = |words: &[usize], hits: bool| {
        heap.cycle(|marker| {
            // The cells are marked before, so that only the resolution is timed.
            for &word in words.iter().filter(|_| hits) {
                marker.conservative(word);
            }
            marker.drain();
            Block::timed(|| {
                let mut marked = 0;
                for &word in words {
                    marked += usize::from(marker.conservative(word));
                }
                assert_eq!(marked, 0, "a cell was marked twice");
                words.len() as u64
            })
        })
    };
    let measured = Paired::new("lookup: a conservative word", "word")
        .contender("hit, first byte", || block(&starts, true))
        .contender("hit, inside", || block(&inside, true))
        .contender("miss, in the reserve", || block(&free, false))
        .contender("miss, anywhere", || block(&outside, false))
        .measure(mode.pick(15, 2));
    let names = [
        "hit, first byte",
        "hit, inside",
        "miss, in the reserve",
        "miss, anywhere",
    ];
    rate(&measured, "words/us", &names);
    println!(
        "{}",
        measured
            .with_ratio("hit, inside", "hit, first byte")
            .with_ratio("hit, first byte", "miss, anywhere")
    );
}

/// Measures the marker beside the limit program, over the same graphs.
fn marks(mode: Mode) {
    for mebibytes in mode.pick(&[1usize, 64][..], &[1]) {
        let heap = Bare::graph(mode.pick(mebibytes << 15, 1 << 12));
        let whole = || {
            heap.cycle(|marker| {
                let start = Instant::now();
                for &cell in &heap.cells {
                    marker.edge(cell, Encoding::RAW);
                }
                marker.drain();
                Block::new(heap.cells.len() as u64, start.elapsed())
            })
        };
        let mut limit = LimitMarker::of(&heap.cells, 1);
        let bare = || {
            // SAFETY: the cells' first two words are null or cells, and only this thread has them.
            let marking = unsafe { limit.mark(&heap.cells, 1) };
            assert_eq!(marking.cells, heap.cells.len() as u64);
            Block::new(marking.cells, marking.time)
        };
        let title = format!("mark: {mebibytes} MiB of 32-byte cells with two random edges");
        let measured = Paired::new(&title, "cell")
            .contender("marker", whole)
            .contender("limit program", bare)
            .measure(mode.pick(15, 2));
        rate(&measured, "cells/us", &["marker", "limit program"]);
        println!("{}", measured.with_ratio("limit program", "marker"));
    }
}

/// Counts the cells of a dead list that a stale slot of an outer frame keeps alive.
fn precision(mode: Mode) {
    let nodes = mode.pick(1_000_000, 1000);
    let by_maps = retained(nodes, true).expect("a count");
    let by_words = retained(nodes, false).expect("a count");
    println!(
        "precision: a dead list of {nodes} cells, named by a stale slot of an outer frame alone
  outer frame by its stack map      {:>10} cells kept
  whole stack word by word          {:>10} cells kept\n",
        by_maps.dead, by_words.dead
    );
    assert_eq!(by_maps.dead, 0);
    assert_eq!(by_words.dead, nodes);
}

fn groups(criterion: &mut Criterion) {
    let heap = Bare::graph(1 << 12);
    let mut group = criterion.benchmark_group("scan");
    group.throughput(Throughput::Elements(heap.cells.len() as u64));
    group.bench_function("resolve", |b| {
        b.iter(|| {
            let found = heap
                .cells
                .iter()
                .filter_map(|&cell| heap.space.resolve(cell + 8));
            found.count()
        });
    });
    group.bench_function("mark", |b| {
        b.iter_custom(|rounds| {
            (0..rounds)
                .map(|_| {
                    let block = heap.cycle(|marker| {
                        let start = Instant::now();
                        for &cell in &heap.cells {
                            marker.edge(cell, Encoding::RAW);
                        }
                        marker.drain();
                        Block::new(1, start.elapsed())
                    });
                    block.time
                })
                .sum()
        });
    });
    group.finish();
}
