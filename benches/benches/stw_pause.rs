//! Measures time to stop, stall and pause with 1, 2, 4, 8 and 16 threads in managed loops without
//! polls, beside the signal floor of the same run.
//!
//! `cargo bench -p benches --bench stw_pause` prints the figures of `gclab pause --threads N
//! --json` as a table of ratios.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use benches::results::claim::{Beside, Claim, Favourable, Ratio, Wanted};
use benches::results::machine::now;
use benches::results::render::record;
use benches::{Mode, wanted};
use criterion::{BenchmarkId, Criterion};
use gc_core::Heap;
use gc_core::raw::Encoding;
use gc_test_harness::kernels::codegen::Arena;
use gc_test_harness::kernels::loops::Loops;
use gc_test_harness::lab::pause::{Options, measure};

const THREADS: [usize; 5] = [1, 2, 4, 8, 16];

fn main() {
    let mode = Mode::from_args();
    if mode != Mode::List && wanted("stw_pause") {
        table(mode);
    }
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(200))
        .configure_from_args();
    groups(&mut criterion, mode);
    criterion.final_summary();
}

fn table(mode: Mode) {
    let full = Options::default();
    let small = Options {
        rounds: 10,
        blocks: 1,
        ..full
    };
    let mut lines = Vec::new();
    let mut claims = Vec::new();
    for &threads in mode.pick(&THREADS[..], &THREADS[1..2]) {
        let options = Options {
            threads,
            ..mode.pick(full, small)
        };
        let outcome = measure(&options).expect("measures");
        println!("{outcome}\n");
        let json = outcome.json();
        let cell = |key: &str| format!("{:>14.2}", json[key].as_f64().unwrap_or(f64::NAN));
        let cells = [
            "stop_ratio_p50",
            "stop_ratio_p99",
            "floor_spread_p99",
            "stall_ratio_p50",
            "stall_ratio_p99",
            "floor_stall_spread_p99",
            "pause_ratio_p50",
        ]
        .map(cell);
        lines.push(format!("{threads:>7}{}", cells.concat()));
        claims.push(claim(threads, options.blocks, &json));
    }
    if mode == Mode::Full {
        record(&claims).unwrap_or_else(|why| panic!("{why}"));
    }
    println!(
        "stw_pause: times the floor's (p99: the median of the blocks' ratios; the floor's spread is its blocks against each other)"
    );
    println!(
        "{:>7}{:>14}{:>14}{:>14}{:>14}{:>14}{:>14}{:>14}",
        "threads",
        "stop p50",
        "stop p99",
        "floor spread",
        "stall p50",
        "stall p99",
        "floor spread",
        "collect p50"
    );
    println!("{}\n", lines.join("\n"));
}

/// The claim for `RESULTS.md`: the median of the time to stop, over all blocks.
fn claim(threads: usize, blocks: usize, json: &serde_json::Value) -> Claim {
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or(f64::NAN);
    let p50 = number(&json["stop_ratio_p50"]);
    let figures = ["stop_us", "floor_us"].map(|key| number(&json[key]["p50"]));
    Claim {
        work: format!("{threads} threads in loops without polls"),
        measure: "time to stop, p50".to_owned(),
        beside: Beside::Limit("signal floor".to_owned()),
        figures: Some((figures[0], figures[1], "us".to_owned())),
        ratio: Ratio {
            min: p50,
            p50,
            p99: p50,
            max: p50,
        },
        favourable: Favourable::Below,
        wanted: Wanted::AtMost(1.25),
        turns: blocks,
        taken: now(),
    }
}

/// The time to stop, by criterion.
fn groups(criterion: &mut Criterion, mode: Mode) {
    let mut arena = Arena::new().expect("an arena");
    let loops = Loops::compile(&mut arena).expect("compiles");
    let heap = Heap::builder().build().expect("a heap");
    let guards = loops.code.iter();
    let guards = guards.map(|code| code.register_with(&heap, Encoding::RAW));
    let _guards: Vec<_> = guards.collect::<Result<_, _>>().expect("registers");
    let mut group = criterion.benchmark_group("stw_pause");
    for &threads in mode.pick(&THREADS[..], &THREADS[1..2]) {
        let (over, working) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let mutator = heap.attach().expect("attaches");
                    // Relaxed, all of `working` and `over`: no other data is published by them.
                    working.fetch_add(1, Ordering::Relaxed);
                    while !over.load(Ordering::Relaxed) {
                        (loops.count)(1, 10_000_000);
                        mutator.thread().poll(); // for `URGE_ASYNC=0`, which has no other stops
                    }
                });
            }
            while working.load(Ordering::Relaxed) < threads {
                std::thread::sleep(Duration::from_micros(100));
            }
            group.bench_function(BenchmarkId::new("time_to_stop", threads), |b| {
                b.iter_custom(|rounds| {
                    (0..rounds)
                        .map(|_| {
                            std::thread::sleep(Duration::from_micros(100));
                            let stopped = heap.world().stop().expect("this thread is no mutator");
                            stopped.resume().time_to_stop
                        })
                        .sum()
                });
            });
            over.store(true, Ordering::Relaxed);
        });
    }
    group.finish();
}
