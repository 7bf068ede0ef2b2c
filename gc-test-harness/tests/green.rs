//! Green threads: yields, channels, sleeps, preempted loops, the spinlock, and thousands at once.

#[path = "../../gc-preempt/tests/common/mod.rs"]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use common::hazard_under;
use gc_core::Heap;
use gc_test_harness::kernels::loops::count_oracle;
use gc_test_harness::lab::green::{
    Crowd, Stage, Twitch, measure_costs, play_many, play_spinlock, play_stops, play_twitch,
};
use gc_test_harness::sched::{Channel, Mode, Options, sleep, spawn, yield_now};

fn stage() -> Stage {
    Stage::new(Heap::builder()).unwrap()
}

fn options(workers: usize) -> Options {
    Options {
        workers,
        slice: Duration::from_millis(2),
        ..Options::default()
    }
}

#[test]
fn green_threads_take_turns_and_spawn_others() {
    let stage = stage();
    let scheduler = stage.scheduler(options(2)).unwrap();
    let sum = Arc::new(AtomicU64::new(0));
    for i in 0..50 {
        let sum = sum.clone();
        scheduler
            .spawn(move || {
                for _ in 0..10 {
                    yield_now();
                }
                let inner = sum.clone();
                spawn(move || {
                    inner.fetch_add(i, SeqCst);
                })
                .unwrap();
            })
            .unwrap();
    }
    scheduler.wait().unwrap();
    assert_eq!(sum.load(SeqCst), 49 * 50 / 2);
}

#[test]
fn a_channel_blocks_its_green_threads_only() {
    let stage = stage();
    let scheduler = stage.scheduler(options(2)).unwrap();
    let (requests, answers) = (Channel::<u64>::new(2), Channel::<u64>::new(1));
    for _ in 0..3 {
        let (requests, answers) = (requests.clone(), answers.clone());
        scheduler
            .spawn(move || {
                while let Some(request) = requests.receive() {
                    answers.send(request * request).unwrap();
                }
            })
            .unwrap();
    }
    let sum = Arc::new(AtomicU64::new(0));
    scheduler
        .spawn({
            let requests = requests.clone();
            move || {
                (0..300).for_each(|i| requests.send(i).unwrap());
                requests.close();
                assert_eq!(requests.send(1), Err(1));
            }
        })
        .unwrap();
    scheduler
        .spawn({
            let sum = sum.clone();
            move || {
                for _ in 0..300 {
                    sum.fetch_add(answers.receive().unwrap(), SeqCst);
                }
            }
        })
        .unwrap();
    scheduler.wait().unwrap();
    assert_eq!(sum.load(SeqCst), (0..300).map(|i| i * i).sum::<u64>());
}

#[test]
fn sleepers_wake_in_the_order_of_their_deadlines() {
    let stage = stage();
    let scheduler = stage.scheduler(options(1)).unwrap();
    let woken = Channel::<u64>::new(10);
    let begun = Instant::now();
    for ms in [40, 1, 80] {
        let woken = woken.clone();
        scheduler
            .spawn(move || {
                sleep(Duration::from_millis(ms));
                assert!(begun.elapsed() >= Duration::from_millis(ms));
                woken.send(ms).unwrap();
            })
            .unwrap();
    }
    scheduler
        .spawn(move || {
            let order = [woken.receive(), woken.receive(), woken.receive()];
            assert_eq!(order, [Some(1), Some(40), Some(80)]);
        })
        .unwrap();
    scheduler.wait().unwrap();
}

#[test]
fn an_endless_loop_serves_the_others() {
    let stage = stage();
    let scheduler = stage.scheduler(options(1)).unwrap();
    let flags = Arc::new([const { AtomicBool::new(false) }; 2]);
    let wait = stage.loops.wait;
    scheduler
        .spawn({
            let flags = flags.clone();
            move || {
                let [ready, release] = &*flags;
                // SAFETY: both bytes live until the end of this function.
                unsafe { wait(ready.as_ptr().cast(), release.as_ptr().cast()) };
            }
        })
        .unwrap();
    while !flags[0].load(SeqCst) {
        std::thread::yield_now();
    }
    scheduler
        .spawn(move || flags[1].store(true, SeqCst))
        .unwrap();
    scheduler.wait().unwrap();
    assert!(scheduler.counts().preemptions > 0);
}

#[test]
fn preempted_loops_give_their_answers() {
    let stage = stage();
    let scheduler = stage
        .scheduler(Options {
            slice: Duration::from_micros(300),
            ..options(2)
        })
        .unwrap();
    let count = stage.loops.count;
    let turns = 20_000_000;
    while scheduler.counts().preemptions < 20 {
        for seed in 0..5 {
            scheduler
                .spawn(move || assert_eq!(count(seed, turns), count_oracle(seed, turns)))
                .unwrap();
        }
        scheduler.wait().unwrap();
    }
}

#[test]
fn a_panic_is_told() {
    let stage = stage();
    let scheduler = stage.scheduler(options(1)).unwrap();
    scheduler.spawn(|| panic!("of a green thread")).unwrap();
    assert_eq!(scheduler.wait(), Err("of a green thread".to_owned()));
}

#[test]
fn a_worker_that_is_refused_is_told_by_the_start() {
    hazard_under(
        "a_worker_that_is_refused_is_told_by_the_start",
        "worker-refused",
        "refusals-untold",
        || {
            let stage = stage();
            let told = stage.scheduler(options(2)).err();
            let told = told.expect("a scheduler with one worker of two was started");
            assert!(told.ends_with("refused by a test"), "{told}");
            // One worker is not refused, and nothing of the first scheduler is left.
            let scheduler = stage.scheduler(options(1)).unwrap();
            scheduler.spawn(yield_now).unwrap();
            scheduler.wait().unwrap();
        },
    );
}

#[test]
fn the_spinlock_deadlocks_cooperative_green_threads_and_not_preempted_ones() {
    assert!(!play_spinlock(Mode::Async, 2).unwrap().deadlocked);
    assert!(play_spinlock(Mode::Cooperative, 2).unwrap().deadlocked);
}

#[test]
fn handlers_are_served_during_a_decode_if_it_is_preempted() {
    let sizes = Twitch {
        handlers: 8,
        margin: Duration::from_millis(20),
        decode: Duration::from_millis(150),
        preemptions: 12,
        ..Twitch::default()
    };
    // A handler that is due within the decode waits for its end.
    let service = play_twitch(Mode::Cooperative, &sizes).unwrap();
    assert_eq!((service.preemptions, service.served_during), (0, 0));
    assert!(service.served() > 0);
    // A handler is due half a slice after its last service. So it is served after the decode's
    // first slice since then, or after the second: a worker takes one green thread in 61 out of
    // turn. Two more are for requests that come late, on a busy machine.
    let service = play_twitch(Mode::Async, &sizes).unwrap();
    assert!(service.preemptions >= 12, "{}", service.preemptions);
    assert!(service.served_during >= 8 * 2, "{}", service.served_during);
    assert!(service.most_between <= 4, "{}", service.most_between);
}

#[test]
fn ten_thousand_green_threads_compute_right_beside_collections_and_stops() {
    for collector in ["concurrent", "stop the world"] {
        let crowd = Crowd {
            rounds: 1,
            ..Crowd::default()
        };
        let run = play_many(Mode::Async, collector, &crowd).unwrap();
        assert_eq!((run.right, run.answers), (10_000, 10_000), "{run:?}");
        assert!(run.collections > 0 && run.storm_stops > 0, "{run:?}");
        // One in a hundred stores references until it was preempted meanwhile.
        assert!(run.preempted_stores >= 100, "{run:?}");
    }
}

#[test]
fn workers_in_loops_are_stopped() {
    let stops = play_stops(Mode::Async, 2).unwrap();
    assert!(!stops.times.is_empty());
}

#[test]
fn switches_are_measured() {
    let costs = measure_costs(1_000, 50).unwrap();
    assert!(costs.yield_ns > 0.0);
}
