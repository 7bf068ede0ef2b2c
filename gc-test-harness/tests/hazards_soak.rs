//! Many stops on end: every register, vectors and masks included, the stack and the red zone hold their values (H13).
//!
//! `URGE_SOAK_STOPS=1000000` is the long form, some minutes; by default it is short.

#[path = "../../gc-preempt/tests/common/mod.rs"]
mod common;

use std::time::Duration;

use common::hazard;
use gc_preempt::{Config, World};
use gc_test_harness::kernels::image::{Hold, Image};

fn stops() -> u32 {
    let stops = std::env::var("URGE_SOAK_STOPS").ok();
    stops.map_or(3_000, |n| n.parse().expect("URGE_SOAK_STOPS is a number"))
}

/// Stops a thread that holds arbitrary words everywhere, again and again, and compares what it holds in the end.
fn soak(how: Hold, inject: bool) {
    let config = Config {
        inject,
        ..Config::default()
    };
    let world = World::new(config).expect("threads can be stopped");
    let mut image = Image::new();
    let mut word = 0x0123_4567_89ab_cdef_usize;
    let mut next = || {
        word = word
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        word
    };
    let registers = &mut image.registers;
    registers.vectors.as_flattened_mut().fill_with(&mut next);
    for part in [
        &mut registers.gpr[..],
        &mut registers.mmx,
        &mut registers.masks,
    ] {
        part.fill_with(&mut next);
    }
    image.stack.fill_with(&mut next);
    image.red_zone.fill_with(&mut next);
    image.trim();
    let before = (image.registers.clone(), image.stack, image.red_zone);
    let image = Box::into_raw(image) as usize;
    let mut signalled = 0;
    std::thread::scope(|s| {
        s.spawn(|| {
            let mutator = world.attach(std::ptr::null_mut()).expect("attaches");
            // SAFETY: the image lives until the scope has ended, and is looked at through its flags alone until then.
            unsafe { how.hold(image as *mut Image) };
            drop(mutator);
        });
        // SAFETY: as above.
        while !unsafe { Image::is_held(image as *const Image) } {
            std::thread::yield_now();
        }
        while signalled < stops() {
            let stopped = world.stop().expect("no mutator");
            signalled += stopped.resume().signalled;
            // One that has not even left the park is not stopped anew.
            std::thread::sleep(Duration::from_micros(10));
        }
        // SAFETY: as above.
        unsafe { Image::release(image as *const Image) };
    });
    // SAFETY: the thread has ended.
    let image = unsafe { Box::from_raw(image as *mut Image) };
    assert!(
        before == (image.after.clone(), image.stack, image.red_zone),
        "{how:?}, injected: {inject}: {:x?} became {:x?}",
        before.0,
        image.after
    );
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
