//! What the tests share: an allocator that aborts where malloc may wait for a stopped thread, small
//! graphs, and hazards run in child processes.
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

/// The kinds that the tests use.
#[derive(Clone, Copy)]
pub struct Kinds {
    /// Two words: an edge and a number.
    pub node: KindId,
    /// No edges.
    pub leaf: KindId,
    /// Every word an edge.
    pub array: KindId,
    /// Every word a weak edge; cleared to 0.
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

/// A heap as `set_up` has it.
pub fn heap_with(set_up: impl FnOnce(HeapBuilder) -> HeapBuilder) -> (Heap, Kinds) {
    let heap = set_up(Heap::builder().reserve(1 << 30)).build().unwrap();
    let kinds = kinds(&heap);
    (heap, kinds)
}

/// A heap whose cycles linger in each phase.
pub fn stress_phases() -> (Heap, Kinds) {
    heap_with(|builder| builder.stress(Stress::PHASES))
}

/// A heap whose cycles follow each other.
pub fn continuous() -> (Heap, Kinds) {
    heap_with(|builder| builder.stress(Stress::CONTINUOUS))
}

/// A new node in front of `next`.
pub fn cons(m: &Mutator, k: Kinds, next: usize, number: usize) -> usize {
    // SAFETY: the caller keeps what it needs on its stack, which is scanned; a node has two words.
    unsafe {
        let cell = m.alloc_raw(k.node, 16).unwrap().as_ptr().cast::<usize>();
        cell.write(next);
        cell.add(1).write(number);
        cell as usize
    }
}

/// A list of the numbers `0..n`, the last in front.
#[inline(never)]
pub fn list(m: &Mutator, k: Kinds, n: usize) -> usize {
    (0..n).fold(0, |next, i| cons(m, k, next, i))
}

/// Panics unless `head` is what [`list`] made.
#[inline(never)]
pub fn check_list(head: usize, n: usize) {
    let mut at = head as *const usize;
    for i in (0..n).rev() {
        assert!(!at.is_null(), "the list ends before {i}");
        // SAFETY: a live node, or the test fails in its own way.
        unsafe {
            assert_eq!(at.add(1).read(), i, "a node has been overwritten");
            at = at.read() as *const usize;
        }
    }
    assert!(at.is_null());
}

/// Makes `n` lists of ten nodes that nothing keeps.
#[inline(never)]
pub fn garbage(m: &Mutator, k: Kinds, n: usize) {
    for _ in 0..n {
        std::hint::black_box(list(m, k, 10));
    }
}

/// Says so at `ready`, and does nothing, as a mutator, until `done`.
pub fn sit_idle(m: &Mutator, ready: &Barrier, done: &AtomicBool) {
    m.blocking(|| {
        ready.wait();
        while !done.load(Relaxed) {
            std::thread::yield_now();
        }
    });
}

/// Waits until something is so.
pub fn until(mut reached: impl FnMut() -> bool) {
    while !reached() {
        std::thread::yield_now();
    }
}

/// Overwrites what earlier calls have left on the stack below.
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

// ---- threads that end without a word ------------------------------------------------------------

/// Runs `f` on a thread of its own and waits for its end, which `f` brings about by [`bare_exit`].
pub fn until_its_bare_exit<F: FnOnce() + Send>(f: F) {
    extern "C" fn body<F: FnOnce()>(f: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: what is passed below, taken once.
        unsafe { f.cast::<Option<F>>().as_mut().unwrap().take().unwrap()() };
        unreachable!("the thread has ended");
    }
    let mut f = Some(f);
    let mut thread = 0;
    // SAFETY: the thread is joined before `f` goes, once.
    unsafe {
        let data = (&raw mut f).cast();
        let made = libc::pthread_create(&raw mut thread, std::ptr::null(), body::<F>, data);
        assert_eq!(made, 0);
        assert_eq!(libc::pthread_join(thread, std::ptr::null_mut()), 0);
    }
}

/// Ends the thread by the system call, without a destructor.
pub fn bare_exit() {
    // SAFETY: the thread has nothing that others wait for.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}

// ---- hazards ------------------------------------------------------------------------------------

/// A child that takes longer than this hangs.
const HUNG: Duration = Duration::from_secs(12);

/// A child without its cure runs up to this often, until one fails: many hazards are races, and a
/// run on a busy machine can miss its race.
const TRIES: usize = 5;

/// Forks; the child runs `body` and ends. Panics in the parent unless the child ends well and in
/// time.
pub fn in_child(body: impl FnOnce()) {
    // SAFETY: the child calls what this library promises to work there, and malloc, which glibc
    // keeps working.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: system calls. A child that hangs is ended by the alarm.
        unsafe { libc::alarm(10) };
        let code = i32::from(std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_err());
        // SAFETY: as above: no destructors of the parent's are run.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: waits for our own child.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0, "the child failed");
}

/// True in the child: run the body.
pub fn is_child() -> bool {
    std::env::var_os("URGE_TEST_CHILD").is_some()
}

/// Runs this test binary's test `name` alone in a child with the cures in `faults` switched off.
/// `None` if it hung.
pub fn run_child(name: &str, faults: &str, environment: &[(&str, &str)]) -> Option<Output> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env("URGE_TEST_CHILD", "1")
        .env("URGE_FAULT", faults)
        .env("URGE_ASYNC", "1") // most of these hazards are signals'
        .envs(environment.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    finished(&mut child).then(|| child.wait_with_output().unwrap())
}

fn finished(child: &mut Child) -> bool {
    // What a child prints fits into its pipes.
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > HUNG {
            // With what it forked, which would stay for ever.
            killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
            child.wait().unwrap();
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Runs the test `name`'s `body` in a process of its own: what it changes or measures is the
/// process's.
pub fn in_a_child(name: &str, body: impl FnOnce()) {
    if is_child() {
        return body();
    }
    let output = run_child(name, "", &[]).expect("it hangs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}

/// In the parent: the child must pass as it is, and fail or hang with the fault planted. In the
/// child: runs `body`.
pub fn hazard(name: &str, fault: &str, body: impl FnOnce()) {
    hazard_with(name, fault, &[], body);
}

/// [`hazard`] with environment variables for the child.
pub fn hazard_with(name: &str, fault: &str, environment: &[(&str, &str)], body: impl FnOnce()) {
    hazard_given(name, "", fault, environment, body);
}

/// [`hazard_with`] under a condition that is planted as faults are, though it is none.
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
    let sound = run_child(name, given, environment);
    let output = sound
        .as_ref()
        .map(|o| String::from_utf8_lossy(&o.stderr).into_owned());
    assert!(
        sound.is_some_and(|o| o.status.success()),
        "{name} fails with its cure: {}",
        output.as_deref().unwrap_or("it hung")
    );
    let faults = format!("{given},{fault}");
    let passes = |_| run_child(name, &faults, environment).is_some_and(|o| o.status.success());
    assert!(
        !(0..TRIES).all(passes),
        "{name} passes without its cure ({fault}), {TRIES} times"
    );
}
