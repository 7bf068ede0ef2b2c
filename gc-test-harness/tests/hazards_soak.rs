//! Many successive stops change no register (vector and mask registers included), no word of the
//! stack and no word of the red zone (H13).
//!
//! The default is a short run. `URGE_SOAK_STOPS=1000000` is a run of some minutes.

#[path = "../../gc-preempt/tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::hazard;
use gc_preempt::{Config, World};
use gc_test_harness::kernels::image::Hold;
use gc_test_harness::lab::fuzz::choices::Choices;
use gc_test_harness::lab::soak::holds_its_registers;

/// The number of stops, and how many are enough on a machine on which they take seconds.
fn stops() -> (u32, u32) {
    match std::env::var("URGE_SOAK_STOPS") {
        Ok(n) => {
            let n = n.parse().expect("URGE_SOAK_STOPS is a number");
            (n, n)
        }
        Err(_) => (3_000, 200),
    }
}

/// Stops a thread that holds arbitrary words in all these places, again and again, and compares the
/// words at the end.
fn soak(how: Hold, inject: bool) {
    let config = Config {
        inject,
        ..Config::default()
    };
    let world = World::new(config).expect("threads can be stopped");
    let attach = || world.attach(std::ptr::null_mut()).expect("attaches");
    let mut choices = Choices::Seeded(0x0123_4567_89ab_cdef);
    let held = holds_its_registers(attach, how, &mut choices, || {
        let (most, enough) = stops();
        let begun = Instant::now();
        let mut signalled = 0;
        while signalled < enough || signalled < most && begun.elapsed() < Duration::from_secs(2) {
            let stopped = world.stop().expect("no mutator");
            signalled += stopped.resume().signalled;
            // A thread that has not left its park is not stopped again by a signal, so it gets time
            // to leave.
            std::thread::sleep(Duration::from_micros(10));
        }
    });
    if let Err(what) = held {
        panic!("injected: {inject}: {what}");
    }
}

#[test]
fn h13_nothing_is_lost_over_many_parked_stops() {
    soak(Hold::Native, false);
    soak(Hold::Called, false);
}

#[test]
fn h13_nothing_is_lost_over_many_injected_stops() {
    let name = "h13_nothing_is_lost_over_many_injected_stops";
    hazard(name, "no-vector-save", || soak(Hold::Managed, true));
}
