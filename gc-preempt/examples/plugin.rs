//! A plugin with Urge in it: a shared library that a host loads with `dlopen` and may close again.
//!
//! The first [`World`] pins the library: `dlclose` succeeds, and the code stays mapped, since the
//! SIGURG handler and the end of threads lead into it until the process ends.

use std::sync::Mutex;

use gc_preempt::{Config, Mutator, World};

static WORLD: Mutex<Option<World>> = Mutex::new(None);

fn world() -> World {
    let world = WORLD.lock().expect("no caller panics");
    world.clone().expect("plugin_start was called")
}

/// Makes a world. Zero, or -1 if that failed.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_start() -> i32 {
    match World::new(Config::default()) {
        Ok(world) => {
            *WORLD.lock().expect("no caller panics") = Some(world);
            0
        }
        Err(error) => {
            eprintln!("plugin: {error}");
            -1
        }
    }
}

/// Drops the world.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_end() {
    *WORLD.lock().expect("no caller panics") = None;
}

/// Attaches the calling thread. Null if that failed.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_attach() -> *mut Mutator {
    let mutator = world().attach(std::ptr::null_mut());
    mutator.map_or(std::ptr::null_mut(), |m| Box::into_raw(Box::new(m)))
}

/// Detaches the calling thread.
///
/// # Safety
/// The mutator is one of [`plugin_attach`], of this thread, and not detached yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn plugin_detach(mutator: *mut Mutator) {
    // SAFETY: by the contract.
    drop(unsafe { Box::from_raw(mutator) });
}

/// Stops the world and resumes it: how many mutators stood still, or -1 on a mutator of this world.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_stop() -> i64 {
    let world = world();
    let stopped = world.stop();
    stopped.map_or(-1, |stopped| stopped.resume().mutators as i64)
}
