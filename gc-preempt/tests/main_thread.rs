//! The main thread, whose stack grows. Each case runs on it in a child process, with its cure and
//! without.

mod common;

use common::{is_child, wait_for, world};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

struct Case {
    name: &'static str,
    body: fn(),
    /// The cure to switch off.
    fault: &'static str,
    /// The child's RLIMIT_STACK, in bytes.
    limit: libc::rlim_t,
}

macro_rules! case {
    ($body:ident, $fault:literal, $limit:expr) => {
        Case {
            name: stringify!($body),
            body: $body,
            fault: $fault,
            limit: $limit,
        }
    };
}

const MIB: libc::rlim_t = 1 << 20;

const CASES: [Case; 4] = [
    case!(
        h49_an_alternate_stack_below_an_unlimited_stack_is_not_the_threads,
        "stack-by-limit,no-alternate-check",
        libc::RLIM_INFINITY
    ),
    case!(
        h49_a_coroutine_below_an_unlimited_stack_is_not_the_threads,
        "stack-by-limit",
        libc::RLIM_INFINITY
    ),
    case!(
        h50_a_thread_that_is_deep_under_a_raised_limit_stops,
        "stack-by-limit",
        MIB
    ),
    case!(
        h50_the_main_thread_attaches_without_proc,
        "asks-proc",
        8 * MIB
    ),
];

fn main() {
    if is_child() {
        let name = std::env::args().nth(1).unwrap();
        let case = CASES.iter().find(|c| c.name == name).unwrap();
        return (case.body)();
    }
    let is_filter = |a: &String| CASES.iter().any(|c| c.name.contains(a.as_str()));
    let only = std::env::args().skip(1).find(is_filter);
    for case in &CASES {
        if only.as_ref().is_some_and(|only| !case.name.contains(only)) {
            continue;
        }
        for fault in ["", case.fault] {
            let failure = run(case, fault);
            assert_eq!(
                failure.is_none(),
                fault.is_empty(),
                "{} with `{fault}`: {failure:?}",
                case.name
            );
        }
        println!("test {} ... ok", case.name);
    }
}

/// The child's output, if it failed or hung.
fn run(case: &Case, fault: &str) -> Option<String> {
    use std::os::unix::process::CommandExt;
    const HUNG: Duration = Duration::from_secs(20);
    let limit = case.limit;
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .arg(case.name)
        .env("URGE_TEST_CHILD", "1")
        .env("URGE_FAULT", fault)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    // SAFETY: only a system call is made between fork and exec.
    unsafe {
        command.pre_exec(move || {
            let mut now: libc::rlimit = std::mem::zeroed();
            libc::getrlimit(libc::RLIMIT_STACK, &raw mut now);
            now.rlim_cur = limit;
            match libc::setrlimit(libc::RLIMIT_STACK, &raw const now) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let mut child = command.spawn().unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > HUNG {
            child.kill().unwrap();
            child.wait().unwrap();
            return Some("the child hung".to_owned());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

static ELSEWHERE: AtomicBool = AtomicBool::new(false);

/// Spins on another stack.
extern "C" fn elsewhere() {
    ELSEWHERE.store(true, SeqCst);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(300) {
        std::hint::spin_loop();
    }
    ELSEWHERE.store(false, SeqCst);
}

extern "C" fn handler(_: i32) {
    elsewhere();
}

struct Nothing;

impl gc_preempt::RootSink for Nothing {
    fn conservative(&mut self, words: std::ops::Range<usize>) {
        for at in words.step_by(8) {
            // SAFETY: the walker reports readable, aligned ranges of a stopped thread.
            unsafe { std::ptr::read_volatile(at as *const usize) };
        }
    }
    fn exact(&mut self, _: usize, _: u32) {}
    fn derived(&mut self, _: usize, _: usize, _: u32) {}
}

/// Stops the main thread while it is on another stack. The stop completes once the thread is back
/// on its own stack.
fn stop_while_elsewhere(go_there: impl FnOnce()) {
    let world = world();
    let mutator = world.attach(std::ptr::null_mut()).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        let stopper = s.spawn(|| {
            wait_for(&ELSEWHERE);
            let stopped = world.stop().unwrap();
            assert!(
                !ELSEWHERE.load(SeqCst),
                "stopped on a stack that is not its own"
            );
            let main = stopped.mutators().next().unwrap();
            assert!(main.stack().contains(&main.snapshot().registers.sp()));
            main.walk(&mut Nothing);
            drop(stopped);
            over.store(true, SeqCst);
        });
        go_there();
        while !over.load(Relaxed) && !stopper.is_finished() {
            std::hint::spin_loop();
        }
        mutator.blocking(|| stopper.join().unwrap());
    });
}

/// Memory for a stack, from the part of malloc's heap that has grown since the thread attached.
fn new_memory() -> &'static mut [u64] {
    const BYTES: usize = 100 << 10;
    let mut memory = std::ptr::null_mut();
    for _ in 0..8 {
        // SAFETY: malloc accepts any size. All blocks are leaked.
        memory = std::hint::black_box(unsafe { libc::malloc(BYTES) });
    }
    // SAFETY: the block is malloc's, and no other code has it.
    unsafe {
        memory.write_bytes(0, BYTES);
        std::slice::from_raw_parts_mut(memory.cast(), BYTES / 8)
    }
}

/// The host sets an alternate stack in memory from malloc.
fn h49_an_alternate_stack_below_an_unlimited_stack_is_not_the_threads() {
    stop_while_elsewhere(|| {
        let memory = new_memory();
        // SAFETY: the memory is never freed, and the handler is async-signal-safe.
        unsafe {
            let stack = libc::stack_t {
                ss_sp: memory.as_mut_ptr().cast(),
                ss_flags: 0,
                ss_size: size_of_val(memory),
            };
            assert_eq!(libc::sigaltstack(&raw const stack, std::ptr::null_mut()), 0);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_ONSTACK;
            libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
            libc::raise(libc::SIGUSR1);
        }
    });
}

fn h49_a_coroutine_below_an_unlimited_stack_is_not_the_threads() {
    stop_while_elsewhere(|| common::on_stack(new_memory(), elsewhere));
}

/// Uses `bytes` bytes of stack, and spins there until `over` is set.
#[inline(never)]
fn deep(bytes: usize, there: &AtomicUsize, over: &AtomicBool) -> u8 {
    let here = std::hint::black_box([1u8; 4096]);
    if bytes < here.len() {
        there.store(here.as_ptr() as usize, SeqCst);
        while !over.load(Relaxed) {
            std::hint::spin_loop();
        }
        return here[1];
    }
    deep(bytes - here.len(), there, over).wrapping_add(std::hint::black_box(here)[2])
}

/// Stops the main thread while it has used `bytes` bytes of its stack.
fn stop_deep(bytes: usize) {
    let world = world();
    let _mutator = world.attach(std::ptr::null_mut()).unwrap();
    raise_the_limit();
    let (there, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|s| {
        s.spawn(|| {
            while there.load(SeqCst) == 0 {
                std::thread::yield_now();
            }
            for _ in 0..20 {
                let stopped = world.stop().unwrap();
                let main = stopped.mutators().next().unwrap();
                assert!(main.snapshot().registers.sp() <= there.load(SeqCst));
                let stats = main.walk(&mut Nothing);
                assert!(stats.conservative as usize > bytes / 8192, "{stats:?}");
                drop(stopped);
            }
            over.store(true, SeqCst);
        });
        deep(bytes, &there, &over);
    });
}

fn raise_the_limit() {
    // SAFETY: system calls with valid arguments.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_STACK, &raw mut limit);
        limit.rlim_cur = limit.rlim_max.min(32 << 20);
        assert_eq!(libc::setrlimit(libc::RLIMIT_STACK, &raw const limit), 0);
    }
}

fn h50_a_thread_that_is_deep_under_a_raised_limit_stops() {
    stop_deep(6 << 20);
}

fn h50_the_main_thread_attaches_without_proc() {
    let empty = std::env::temp_dir().join(format!("urge-no-proc-{}", std::process::id()));
    std::fs::create_dir(&empty).unwrap();
    let path = std::ffi::CString::new(empty.to_str().unwrap()).unwrap();
    // Only root may change its root directory. In a user namespace of its own, each process is
    // root.
    // SAFETY: system calls with a C string.
    unsafe {
        if libc::geteuid() != 0 {
            assert_eq!(libc::unshare(libc::CLONE_NEWUSER), 0, "no user namespaces");
        }
        assert_eq!(libc::chroot(path.as_ptr()), 0);
        libc::rmdir(path.as_ptr());
    }
    assert!(!std::path::Path::new("/proc/self/maps").exists());
    stop_deep(2 << 20);
}
