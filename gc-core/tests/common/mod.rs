//! Common code of the tests: an allocator that aborts where malloc may wait for a stopped thread,
//! small graphs, and hazards that run in child processes.
#![allow(dead_code)] // each test binary uses a part

pub mod nodes;
pub mod step;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::ptr::NonNull;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use gc_core::raw::{Encoding, Kind, KindId};
use gc_core::{Heap, HeapBuilder, Mutator, Stress};
use gc_preempt::StrictAllocator;

// ---- the allocator ------------------------------------------------------------------------------

#[global_allocator]
static STRICT: StrictAllocator = StrictAllocator;

// ---- graphs -------------------------------------------------------------------------------------

/// The kinds of the tests' cells.
#[derive(Clone, Copy)]
pub struct Kinds {
    /// A cell of two words: an edge and a number.
    pub node: KindId,
    /// A cell without edges.
    pub leaf: KindId,
    /// A cell in which each word is an edge.
    pub array: KindId,
    /// A cell in which each word is weak and is cleared to 0.
    pub weak: KindId,
}

pub fn kinds(heap: &Heap) -> Kinds {
    Kinds {
        node: heap
            .kind(Kind::words_at("node", &[0], Encoding::RAW))
            .unwrap(),
        leaf: heap.kind(Kind::leaf("leaf")).unwrap(),
        array: heap.kind(Kind::array("array", 0, Encoding::RAW)).unwrap(),
        weak: heap.kind(Kind::weak("weak", 0, Encoding::RAW, 0)).unwrap(),
    }
}

pub fn heap() -> (Heap, Kinds) {
    heap_with(|builder| builder)
}

/// A heap of 1 GiB of reserve, with the settings that `set_up` adds.
pub fn heap_with(set_up: impl FnOnce(HeapBuilder) -> HeapBuilder) -> (Heap, Kinds) {
    let heap = set_up(Heap::builder().reserve(1 << 30)).build().unwrap();
    let kinds = kinds(&heap);
    (heap, kinds)
}

/// A heap whose cycles stay in each phase for a while.
pub fn stress_phases() -> (Heap, Kinds) {
    heap_with(|builder| builder.stress(Stress::PHASES))
}

/// A heap in which one cycle follows another without a pause.
pub fn continuous() -> (Heap, Kinds) {
    heap_with(|builder| builder.stress(Stress::CONTINUOUS))
}

/// A new node that leads to `next`.
pub fn cons(m: &Mutator, k: Kinds, next: usize, number: usize) -> usize {
    // SAFETY: a node has two words, and it stays on the caller's stack, which is scanned.
    unsafe {
        let cell = m.alloc_raw(k.node, 16).unwrap().as_ptr().cast::<usize>();
        cell.write(next);
        cell.add(1).write(number);
        cell as usize
    }
}

/// A list of the numbers `0..n`. Its head has the last number.
#[inline(never)]
pub fn list(m: &Mutator, k: Kinds, n: usize) -> usize {
    (0..n).fold(0, |next, i| cons(m, k, next, i))
}

/// Panics unless `head` is a list that [`list`] made from `n`.
#[inline(never)]
pub fn check_list(head: usize, n: usize) {
    let mut at = head as *const usize;
    for i in (0..n).rev() {
        assert!(!at.is_null(), "the list ends before {i}");
        // SAFETY: a live node; where it is not, the test has found a fault.
        unsafe {
            assert_eq!(at.add(1).read(), i, "a node has been overwritten");
            at = at.read() as *const usize;
        }
    }
    assert!(at.is_null());
}

/// Makes `n` lists of ten nodes, which die at once.
#[inline(never)]
pub fn garbage(m: &Mutator, k: Kinds, n: usize) {
    for _ in 0..n {
        std::hint::black_box(list(m, k, 10));
    }
}

/// Waits inside `blocking` until `done` is set. `ready` is passed inside `blocking`.
pub fn sit_idle(m: &Mutator, ready: &Barrier, done: &AtomicBool) {
    m.blocking(|| {
        ready.wait();
        while !done.load(Relaxed) {
            std::thread::yield_now();
        }
    });
}

/// Waits until `reached` returns true.
pub fn until(mut reached: impl FnMut() -> bool) {
    while !reached() {
        std::thread::yield_now();
    }
}

/// Overwrites the stack below this frame, so that no stale word of earlier calls keeps a cell.
#[inline(never)]
pub fn wipe_stack() {
    let mut words = [0usize; 2048];
    std::hint::black_box(&mut words);
}

pub fn cell(address: usize) -> NonNull<u8> {
    NonNull::new(address as *mut u8).unwrap()
}

// ---- memory ------------------------------------------------------------------------------------

/// Bytes of the heap's reserve that are backed by memory.
pub fn backed(heap: &Heap) -> usize {
    let range = heap.reserved();
    let mut pages = vec![0u8; range.len().div_ceil(4096)];
    // SAFETY: the range is mapped, and the vector has a byte a page.
    let result = unsafe { libc::mincore(range.start as *mut _, range.len(), pages.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    pages.iter().filter(|page| **page & 1 != 0).count() * 4096
}

/// Resident memory of this process, in bytes.
pub fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages = text.split_whitespace().nth(1).unwrap();
    pages.parse::<usize>().unwrap() * 4096
}

// ---- threads that end without detaching ---------------------------------------------------------

/// Runs `f` on a new thread and waits until the thread has ended. `f` must end it by [`bare_exit`].
pub fn until_its_bare_exit<F: FnOnce() + Send>(f: F) {
    extern "C" fn body<F: FnOnce()>(f: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: the pointer that `pthread_create` got below. The closure is taken once.
        unsafe { f.cast::<Option<F>>().as_mut().unwrap().take().unwrap()() };
        unreachable!("the thread has ended");
    }
    let mut f = Some(f);
    let mut thread = 0;
    // SAFETY: the thread is joined, once, before `f` is dropped.
    unsafe {
        let data = (&raw mut f).cast();
        let made = libc::pthread_create(&raw mut thread, std::ptr::null(), body::<F>, data);
        assert_eq!(made, 0);
        assert_eq!(libc::pthread_join(thread, std::ptr::null_mut()), 0);
    }
}

/// Ends this thread by the `exit` system call. No destructor runs.
pub fn bare_exit() {
    // SAFETY: no other thread waits for something that this thread would have to do.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}

// ---- hazards ------------------------------------------------------------------------------------

/// The time after which a child counts as hung.
const HUNG: Duration = Duration::from_secs(12);

/// A hazard's children run up to this often, with the cure and without it, until the one without it
/// fails: many hazards are races, and a run on a busy machine can miss its race.
const TRIES: usize = 5;

/// Held by each pair of children; by every pair but the first alone, so that a second try does not
/// miss its race for the sake of another hazard's.
static PAIRS: std::sync::RwLock<()> = std::sync::RwLock::new(());

/// Forks. The child runs `body` and ends. Panics in the parent unless the child ends with status 0
/// within 10 s.
pub fn in_child(body: impl FnOnce()) {
    // SAFETY: the child calls functions of this library that are documented to work there, and
    // malloc, which glibc keeps usable after a fork.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: a system call. The alarm ends a child that hangs.
        unsafe { libc::alarm(10) };
        let code = i32::from(std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_err());
        // SAFETY: a system call, which runs no destructors of the parent's values.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: waits for the child that was forked above.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0, "the child failed");
}

/// True in a child of [`run_child`], which runs the body of its test.
pub fn is_child() -> bool {
    std::env::var_os("URGE_TEST_CHILD").is_some()
}

/// Runs the test `name` of this binary alone in a child, with the cures in `faults` switched off.
/// `None` if the child hung.
pub fn run_child(name: &str, faults: &str, environment: &[(&str, &str)]) -> Option<Output> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env("URGE_TEST_CHILD", "1")
        .env("URGE_FAULT", faults)
        .env("URGE_ASYNC", "1") // most of these hazards come from signals
        .envs(environment.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    finished(&mut child).then(|| child.wait_with_output().unwrap())
}

fn finished(child: &mut Child) -> bool {
    // A child's output fits into its pipes, so the child does not wait for a reader.
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > HUNG {
            // The whole process group ends: processes that the child forked would stay.
            killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
            child.wait().unwrap();
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Runs the `body` of the test `name` in a process of its own, because it changes or measures state
/// of the process.
pub fn in_a_child(name: &str, body: impl FnOnce()) {
    if is_child() {
        return body();
    }
    let output = run_child(name, "", &[]).expect("it hangs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}

/// In the parent: panics unless the child passes with its cure, and fails or hangs with `fault`
/// planted. In the child: runs `body`.
pub fn hazard(name: &str, fault: &str, body: impl FnOnce()) {
    hazard_with(name, fault, &[], body);
}

/// [`hazard`] with environment variables for the child.
pub fn hazard_with(name: &str, fault: &str, environment: &[(&str, &str)], body: impl FnOnce()) {
    hazard_given(name, "", fault, environment, body);
}

/// [`hazard_with`] in which both runs have `given` planted: a condition, not a fault.
pub fn hazard_given(
    name: &str,
    given: &str,
    fault: &str,
    environment: &[(&str, &str)],
    body: impl FnOnce(),
) {
    if is_child() {
        return body();
    }
    let faults = format!("{given},{fault}");
    let fails = || !run_child(name, &faults, environment).is_some_and(|o| o.status.success());
    if let Some(runs) = rate() {
        return print_rate(name, fault, runs, fails);
    }
    for turn in 0..TRIES {
        let (_shared, _alone) = if turn == 0 {
            (Some(PAIRS.read()), None)
        } else {
            (None, Some(PAIRS.write()))
        };
        let sound = run_child(name, given, environment);
        let output = sound
            .as_ref()
            .map(|o| String::from_utf8_lossy(&o.stderr).into_owned());
        assert!(
            sound.is_some_and(|o| o.status.success()),
            "{name} fails with its cure: {}",
            output.as_deref().unwrap_or("the child hung")
        );
        if fails() {
            return;
        }
    }
    panic!("{name} passes without its cure ({fault}), {TRIES} times");
}

/// How often each hazard runs without its cure, to see how surely it fails: `URGE_HAZARD_RATE`.
fn rate() -> Option<u32> {
    let runs = std::env::var("URGE_HAZARD_RATE").ok()?;
    Some(runs.parse().expect("URGE_HAZARD_RATE is a number of runs"))
}

/// Prints how many of `runs` runs fail.
fn print_rate(name: &str, fault: &str, runs: u32, fails: impl Fn() -> bool) {
    let begun = Instant::now();
    let failed = (0..runs).filter(|_| fails()).count();
    let seconds = begun.elapsed().as_secs_f32() / runs as f32;
    println!(
        "hazard {name} ({fault}): failed without its cure {failed} of {runs}, {seconds:.1} s a run"
    );
}
