//! Urge in a shared library that a host loads and closes (`examples/plugin.rs`).

mod common;

use common::{hazard, is_child, run_child};
use std::ffi::{CStr, CString, c_void};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Barrier;

/// The path of the example library, which `cargo test` builds beside this test.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(|deps| deps.parent()).unwrap();
    let library = profile.join("examples/libplugin.so");
    if !library.exists() {
        // `cargo test --test plugin` builds no examples.
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "-p", "gc-preempt", "--example", "plugin"]);
        build.arg("--target-dir").arg(profile.parent().unwrap());
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "{build:?}");
    }
    library
}

struct Plugin(*mut c_void);

// SAFETY: the loader's handle, which any thread may use.
unsafe impl Sync for Plugin {}

impl Plugin {
    fn load() -> Self {
        let path = CString::new(library().to_str().unwrap()).unwrap();
        // SAFETY: the library's initialisers are Rust's, which may run at any time.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null(), "{path:?} is not loaded");
        Self(handle)
    }

    /// Calls an exported function without arguments.
    fn call<R>(&self, name: &CStr) -> R {
        let f = self.symbol(name);
        // SAFETY: the tests below use the type that the example gives the function of that name.
        unsafe { std::mem::transmute_copy::<*mut c_void, extern "C" fn() -> R>(&f)() }
    }

    fn symbol(&self, name: &CStr) -> *mut c_void {
        // SAFETY: the handle is open.
        let f = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        assert!(!f.is_null(), "{name:?}");
        f
    }

    fn close(self) {
        // SAFETY: the handle is open, and no code of the library runs.
        assert_eq!(unsafe { libc::dlclose(self.0) }, 0);
    }
}

fn detach(plugin: &Plugin, mutator: *mut c_void) {
    let f = plugin.symbol(c"plugin_detach");
    // SAFETY: the example's function of that name has this type, and it takes a result of
    // `plugin_attach`.
    unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(f)(mutator) };
}

#[test]
fn h86_a_closed_library_stays_as_long_as_its_handler_is_installed() {
    let name = "h86_a_closed_library_stays_as_long_as_its_handler_is_installed";
    hazard(name, "unpinned", || {
        let plugin = Plugin::load();
        assert_eq!(plugin.call::<i32>(c"plugin_start"), 0);
        plugin.call::<()>(c"plugin_end");
        plugin.close();
        // SAFETY: SIGURG is ignored by default.
        unsafe { libc::raise(libc::SIGURG) };
    });
}

#[test]
fn h86_a_thread_ends_in_a_library_that_it_has_closed() {
    let name = "h86_a_thread_ends_in_a_library_that_it_has_closed";
    hazard(name, "unpinned", || {
        let thread = std::thread::spawn(|| {
            let plugin = Plugin::load();
            assert_eq!(plugin.call::<i32>(c"plugin_start"), 0);
            detach(&plugin, plugin.call(c"plugin_attach"));
            plugin.call::<()>(c"plugin_end");
            plugin.close();
        });
        thread.join().unwrap();
    });
}

/// Loads the library again after it was closed, with threads of both times.
#[test]
fn a_library_that_was_closed_and_loaded_again_goes_on() {
    let name = "a_library_that_was_closed_and_loaded_again_goes_on";
    if !is_child() {
        let output = run_child(name, "", &[]).expect("the child hung");
        let text = String::from_utf8_lossy(&output.stderr);
        return assert!(output.status.success(), "{text}");
    }
    for _ in 0..3 {
        let plugin = Plugin::load();
        assert_eq!(plugin.call::<i32>(c"plugin_start"), 0);
        let (ready, go) = (Barrier::new(2), Barrier::new(2));
        std::thread::scope(|s| {
            s.spawn(|| {
                let mutator = plugin.call(c"plugin_attach");
                ready.wait();
                go.wait();
                detach(&plugin, mutator);
            });
            ready.wait();
            assert_eq!(plugin.call::<i64>(c"plugin_stop"), 1);
            go.wait();
        });
        plugin.call::<()>(c"plugin_end");
        plugin.close();
    }
}
