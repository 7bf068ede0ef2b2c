//! Many stops on end: every register, vectors and masks included, the stack and the red zone hold
//! their values (H13).
//!
//! `URGE_SOAK_STOPS=1000000` is the long form, some minutes; by default it is short.

#[path = "../../gc-preempt/tests/common/mod.rs"]
mod common;

use std::time::Duration;

use common::hazard;
use gc_preempt::{Config, World};
use gc_test_harness::kernels::image::Hold;
use gc_test_harness::lab::fuzz::choices::Choices;
use gc_test_harness::lab::soak::holds_its_registers;

fn stops() -> u32 {
    let stops = std::env::var("URGE_SOAK_STOPS").ok();
    stops.map_or(3_000, |n| n.parse().expect("URGE_SOAK_STOPS is a number"))
}

/// Stops a thread that holds arbitrary words everywhere, again and again, and compares what it
/// holds in the end.
fn soak(how: Hold, inject: bool) {
    let config = Config {
        inject,
        ..Config::default()
    };
    let world = World::new(config).expect("threads can be stopped");
    let attach = || world.attach(std::ptr::null_mut()).expect("attaches");
    let mut choices = Choices::Seeded(0x0123_4567_89ab_cdef);
    let held = holds_its_registers(attach, how, &mut choices, || {
        let mut signalled = 0;
        while signalled < stops() {
            let stopped = world.stop().expect("no mutator");
            signalled += stopped.resume().signalled;
            // One that has not even left the park is not stopped anew.
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
