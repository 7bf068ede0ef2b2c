//! A plugin that uses Urge: a shared library that a host loads with `dlopen` and may close again.
//!
//! The first [`World`] pins the library: `dlclose` succeeds, but the code stays mapped, because the
//! SIGURG handler and the code at a thread's end are called until the process ends.

use std::sync::Mutex;

use gc_preempt::{Config, Mutator, World};

static WORLD: Mutex<Option<World>> = Mutex::new(None);

fn world() -> World {
    let world = WORLD.lock().expect("no caller panics");
    world.clone().expect("plugin_start was called")
}

/// Makes a world. Gives 0, or -1 if that failed.
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

/// Attaches the calling thread. Gives null if that failed.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_attach() -> *mut Mutator {
    let mutator = world().attach(std::ptr::null_mut());
    mutator.map_or(std::ptr::null_mut(), |m| Box::into_raw(Box::new(m)))
}

/// Detaches the calling thread.
///
/// # Safety
/// The mutator must come from [`plugin_attach`] on this thread, and must not be detached yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn plugin_detach(mutator: *mut Mutator) {
    // SAFETY: the caller promises a mutator that `plugin_attach` boxed and that is not detached
    // yet.
    drop(unsafe { Box::from_raw(mutator) });
}

/// Stops the world and resumes it. Gives the number of stopped mutators, or -1 on a mutator of this
/// world.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_stop() -> i64 {
    let world = world();
    let stopped = world.stop();
    stopped.map_or(-1, |stopped| stopped.resume().mutators as i64)
}
