//! Other runtimes in the same process: Go's, which preempts its own loops by SIGURG, and a Java
//! virtual machine.
//!
//! The three runtimes start in each order. Then a world is stopped many times. Meanwhile mutators
//! hold arbitrary words in all registers (XMM, YMM and ZMM included), threads of Go and Java
//! compute sums with known results, and one mutator calls into both. Every result must be right,
//! and every stop must end.
//!
//! Go is found by `$URGE_GO` or the path, Java by `$JAVA_HOME` or the path. The test prints the
//! name of a missing runtime and runs without it. `URGE_SOAK_STOPS=20000` sets the number of stops
//! in each order.

#[path = "../../gc-preempt/tests/common/mod.rs"]
mod common;

use std::ffi::{CStr, CString, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{is_child, run_child_for, spin, world};
use gc_preempt::World;
use gc_test_harness::kernels::image::Hold;
use gc_test_harness::lab::fuzz::choices::Choices;
use gc_test_harness::lab::soak::holds_its_registers;
use jni_sys::{
    JNI_OK, JNI_VERSION_1_8, JNIEnv, JavaVM, JavaVMInitArgs, JavaVMOption, jclass, jdouble,
    jmethodID,
};

/// The variable with the order in which a child starts the runtimes.
const ORDER: &str = "URGE_NEIGHBOURS";

fn stops() -> u32 {
    let stops = std::env::var("URGE_SOAK_STOPS").ok();
    stops.map_or(300, |n| n.parse().expect("URGE_SOAK_STOPS is a number"))
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("neighbours")
}

// ---- the runtimes of this machine ---------------------------------------------------------------

fn go() -> String {
    std::env::var("URGE_GO").unwrap_or_else(|_| "go".to_owned())
}

fn java_home() -> Option<PathBuf> {
    let home = std::env::var_os("JAVA_HOME").map(PathBuf::from);
    home.or_else(|| {
        let path = std::env::var_os("PATH")?;
        let java = std::env::split_paths(&path).map(|folder| folder.join("javac"));
        let java = java.filter_map(|java| java.canonicalize().ok()).next()?;
        Some(java.parent()?.parent()?.to_owned())
    })
    .filter(|home| home.join("lib/server/libjvm.so").exists())
}

/// Builds the guests whose runtimes this machine has. Returns their names.
fn build() -> Vec<&'static str> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/neighbours");
    let folder = folder();
    std::fs::create_dir_all(&folder).expect("the target folder can be written to");
    let mut there = Vec::new();
    if Command::new(go()).arg("version").output().is_ok() {
        let built = Command::new(go())
            .args(["build", "-buildmode=c-shared", "-o"])
            .arg(folder.join("libguest.so"))
            .current_dir(&sources)
            .env("CGO_ENABLED", "1")
            .output()
            .expect("go starts");
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "go build: {said}");
        there.push("go");
    } else {
        eprintln!("skipped: no Go ($URGE_GO, or `go` on the path)");
    }
    if let Some(home) = java_home() {
        let built = Command::new(home.join("bin/javac"))
            .arg("-d")
            .arg(&folder)
            .arg(sources.join("Guest.java"))
            .output()
            .expect("javac starts");
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "javac: {said}");
        there.push("java");
    } else {
        eprintln!("skipped: no Java ($JAVA_HOME, or `javac` on the path)");
    }
    there
}

// ---- the guests ---------------------------------------------------------------------------------

fn load(path: &Path) -> *mut c_void {
    let name = CString::new(path.to_str().expect("a path in UTF-8")).expect("no zero byte");
    // SAFETY: the library is a guest or libjvm, whose initialisers may run in any process.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    assert!(!library.is_null(), "{name:?} is not loaded");
    library
}

/// # Safety
/// The library must export the name, as a function of type `F`.
unsafe fn symbol<F: Copy>(library: *mut c_void, name: &CStr) -> F {
    // SAFETY: the library is open.
    let f = unsafe { libc::dlsym(library, name.as_ptr()) };
    assert!(!f.is_null(), "{name:?}");
    // SAFETY: the caller's promise.
    unsafe { std::mem::transmute_copy(&f) }
}

/// Go's functions.
#[derive(Clone, Copy)]
struct Go {
    compute: extern "C" fn() -> f64,
    rounds: extern "C" fn() -> i64,
}

impl Go {
    fn start() -> Go {
        let library = load(&folder().join("libguest.so"));
        // SAFETY: guest.go exports them, with these types.
        unsafe {
            symbol::<extern "C" fn()>(library, c"GuestStart")();
            Go {
                compute: symbol(library, c"GuestCompute"),
                rounds: symbol(library, c"GuestRounds"),
            }
        }
    }
}

/// A Java machine and the methods of `Guest`.
#[derive(Clone, Copy)]
struct Java {
    machine: *mut JavaVM,
    class: jclass,
    compute: jmethodID,
    rounds: jmethodID,
}

// SAFETY: any thread may use the machine, and the class is a global reference.
unsafe impl Send for Java {}
// SAFETY: as above.
unsafe impl Sync for Java {}

/// Calls a function of JNI's table: `jni!(env, Name, arguments)`.
macro_rules! jni {
    ($env:expr, $name:ident $(, $argument:expr)*) => {{
        let env: *mut JNIEnv = $env;
        ((**env).v1_4.$name)(env $(, $argument)*)
    }};
}

impl Java {
    fn start() -> Java {
        type Create =
            unsafe extern "system" fn(*mut *mut JavaVM, *mut *mut c_void, *mut c_void) -> i32;
        let home = java_home().expect("the parent has found it");
        let library = load(&home.join("lib/server/libjvm.so"));
        let path = CString::new(format!("-Djava.class.path={}", folder().display()));
        let path = path.expect("no zero byte");
        let mut options = [path.as_ptr(), c"-Xmx256m".as_ptr()].map(|option| JavaVMOption {
            optionString: option.cast_mut(),
            extraInfo: std::ptr::null_mut(),
        });
        let mut arguments = JavaVMInitArgs {
            version: JNI_VERSION_1_8,
            nOptions: options.len() as i32,
            options: options.as_mut_ptr(),
            ignoreUnrecognized: false,
        };
        let mut machine = std::ptr::null_mut();
        let mut env = std::ptr::null_mut();
        // SAFETY: the function is libjvm's, and its arguments live until it returns. The calls of
        // JNI have the names and types of Guest.java.
        unsafe {
            let create: Create = symbol(library, c"JNI_CreateJavaVM");
            let made = create(&raw mut machine, &raw mut env, (&raw mut arguments).cast());
            assert_eq!(made, JNI_OK, "no Java machine");
            let env = env.cast::<JNIEnv>();
            let class = jni!(env, FindClass, c"Guest".as_ptr());
            assert!(!class.is_null(), "no class Guest");
            let class = jni!(env, NewGlobalRef, class);
            let method = |name: &CStr, signature: &CStr| {
                let id = jni!(
                    env,
                    GetStaticMethodID,
                    class,
                    name.as_ptr(),
                    signature.as_ptr()
                );
                assert!(!id.is_null(), "{name:?}");
                id
            };
            let start = method(c"start", c"()V");
            jni!(env, CallStaticVoidMethodA, class, start, std::ptr::null());
            Java {
                machine,
                class,
                compute: method(c"compute", c"()D"),
                rounds: method(c"rounds", c"()J"),
            }
        }
    }

    /// This thread's environment. Attaches the thread to the machine if necessary, until the thread
    /// ends.
    fn env(self) -> *mut JNIEnv {
        let mut env = std::ptr::null_mut();
        // SAFETY: the machine lives as long as the process; the call fills `env`.
        let attached = unsafe {
            ((**self.machine).v1_4.AttachCurrentThreadAsDaemon)(
                self.machine,
                &raw mut env,
                std::ptr::null_mut(),
            )
        };
        assert_eq!(attached, JNI_OK);
        env.cast()
    }

    fn compute(self) -> jdouble {
        // SAFETY: a static method without arguments.
        unsafe {
            jni!(
                self.env(),
                CallStaticDoubleMethodA,
                self.class,
                self.compute,
                std::ptr::null()
            )
        }
    }

    fn rounds(self) -> i64 {
        // SAFETY: as above.
        unsafe {
            jni!(
                self.env(),
                CallStaticLongMethodA,
                self.class,
                self.rounds,
                std::ptr::null()
            )
        }
    }

    fn leave(self) {
        // SAFETY: this thread has no Java frames.
        unsafe { ((**self.machine).v1_4.DetachCurrentThread)(self.machine) };
    }
}

// ---- the test -----------------------------------------------------------------------------------

/// Stops a spinning thread a few times.
fn stop_a_little(world: &World) {
    common::beside(world, spin, || {
        for _ in 0..10 {
            drop(world.stop().expect("no mutator"));
        }
    });
}

/// The sum of squares that both guests compute.
fn sum() -> f64 {
    (1..=10_000).map(|i| f64::from(i) * f64::from(i)).sum()
}

fn check(order: &str) {
    let (mut urge, mut go, mut java) = (None, None, None);
    for name in order.split(' ') {
        match name {
            "urge" => urge = Some(world()),
            "go" => go = Some(Go::start()),
            _ => java = Some(Java::start()),
        }
        if let Some(world) = &urge {
            stop_a_little(world);
        }
    }
    let world = urge.expect("Urge is in each order");
    let rounds = || {
        (
            go.map_or(0, |go| (go.rounds)()),
            java.map_or(0, Java::rounds),
        )
    };
    let before = rounds();
    let (over, calls) = (AtomicBool::new(false), AtomicU64::new(0));
    let attach = || world.attach(std::ptr::null_mut()).expect("attaches");
    std::thread::scope(|s| {
        // A mutator that both guests know as a thread of theirs.
        s.spawn(|| {
            let _mutator = attach();
            // Relaxed, all of this flag and of `calls`: no other data is published by them.
            while !over.load(Ordering::Relaxed) {
                let sums = [go.map(|go| (go.compute)()), java.map(Java::compute)];
                for got in sums.into_iter().flatten() {
                    assert_eq!(
                        got,
                        sum(),
                        "a guest that a mutator calls returned a wrong sum"
                    );
                }
                calls.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(java) = java {
                java.leave();
            }
        });
        let mut choices = Choices::Seeded(1);
        let mut more = Choices::Seeded(2);
        let held = holds_its_registers(attach, Hold::Native, &mut choices, || {
            let held = holds_its_registers(attach, Hold::Managed, &mut more, || {
                let mut signalled = 0;
                while signalled < stops() || calls.load(Ordering::Relaxed) == 0 {
                    let report = world.stop().expect("no mutator").resume();
                    signalled += u32::from(report.signalled > 0);
                    std::thread::sleep(Duration::from_micros(20));
                }
            });
            assert_eq!(held, Ok(()));
        });
        over.store(true, Ordering::Relaxed);
        assert_eq!(held, Ok(()));
    });
    let after = rounds();
    assert!(after.0 >= 0 && after.1 >= 0, "a wrong answer: {after:?}");
    assert!(
        (go.is_none() || after.0 > before.0) && (java.is_none() || after.1 > before.1),
        "the guests stand still: {before:?}, {after:?}"
    );
    // Ends the process without destructors, since the guests' threads still run.
    // SAFETY: a system call.
    unsafe { libc::_exit(0) };
}

#[test]
fn h87_go_java_and_urge_live_in_one_process_whoever_comes_first() {
    let name = "h87_go_java_and_urge_live_in_one_process_whoever_comes_first";
    if is_child() {
        return check(&std::env::var(ORDER).expect("the parent says"));
    }
    let there = build();
    let orders = match there[..] {
        [] => return,
        [one] => vec![format!("urge {one}"), format!("{one} urge")],
        _ => [
            "urge go java",
            "urge java go",
            "go urge java",
            "java urge go",
            "go java urge",
            "java go urge",
        ]
        .map(str::to_owned)
        .into(),
    };
    for order in orders {
        // A minute for the start of all three runtimes, and the longest time that the stops may
        // take.
        let at_most = Duration::from_secs(60) + stops() * Duration::from_millis(100);
        let output = run_child_for(name, "", &[(ORDER, &order)], at_most);
        let output = output.unwrap_or_else(|| panic!("{order}: the child hung"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{order}: {said}");
    }
}
