//! Code that the tests share: an allocator that aborts where malloc may wait for a stopped thread,
//! and the hazards' runs. A hazard's body runs in child processes: once with its cure, which must
//! succeed, and then with the cure switched off, which must fail.
#![allow(dead_code)] // each test binary uses a part

pub mod stacks;

use gc_preempt::{CodeGuard, CodeSpec, CodeWhat, Config, StrictAllocator, World};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ops::Range;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

#[global_allocator]
static STRICT: StrictAllocator = StrictAllocator;

/// The time after which a child counts as hung.
const HUNG: Duration = Duration::from_secs(60);

/// A hazard's children run up to this often, with the cure and without it, until the one without it
/// fails: many hazards are races, and a run on a busy machine can miss its race.
const TRIES: usize = 5;

/// Held by each pair of children; by every pair but the first alone, so that a second try does not
/// miss its race for the sake of another hazard's.
static PAIRS: std::sync::RwLock<()> = std::sync::RwLock::new(());

/// Whether this process is the child, which runs the test's body.
pub fn is_child() -> bool {
    let is_child = std::env::var_os("URGE_TEST_CHILD").is_some();
    if is_child {
        gc_preempt::faults::refuse_unknown_names();
    }
    is_child
}

/// Runs the test `name` of this binary alone in a child, with the cures in `faults` switched off.
/// `None`: the child hung.
pub fn run_child(name: &str, faults: &str, environment: &[(&str, &str)]) -> Option<Output> {
    run_child_for(name, faults, environment, HUNG)
}

/// [`run_child`] with `at_most` as the time after which the child counts as hung.
pub fn run_child_for(
    name: &str,
    faults: &str,
    environment: &[(&str, &str)],
    at_most: Duration,
) -> Option<Output> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env("URGE_TEST_CHILD", "1")
        .env("URGE_FAULT", faults)
        .envs(environment.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    finished(&mut child, at_most).then(|| child.wait_with_output().unwrap())
}

fn finished(child: &mut Child, at_most: Duration) -> bool {
    // A child's output fits into its pipes, so the child never waits for a reader.
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > at_most {
            // The whole process group is killed, because processes that the child forked would stay
            // forever.
            killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
            child.wait().unwrap();
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// In the parent: checks that the child passes with its cure, and fails or hangs with the fault
/// planted. In the child: runs `body`.
pub fn hazard(name: &str, fault: &str, body: impl FnOnce()) {
    hazard_with(name, fault, &[], body);
}

/// [`hazard`] with environment variables for the child.
pub fn hazard_with(name: &str, fault: &str, environment: &[(&str, &str)], body: impl FnOnce()) {
    if is_child() {
        return body();
    }
    for turn in 0..TRIES {
        let (_shared, _alone) = if turn == 0 {
            (Some(PAIRS.read()), None)
        } else {
            (None, Some(PAIRS.write()))
        };
        let begun = Instant::now();
        let sound = run_child(name, "", environment);
        let hung = (begun.elapsed() * 20).clamp(Duration::from_secs(3), HUNG);
        let output = sound
            .as_ref()
            .map(|o| String::from_utf8_lossy(&o.stderr).into_owned());
        assert!(
            sound.is_some_and(|o| o.status.success()),
            "{name} fails with its cure: {}",
            output.as_deref().unwrap_or("the child hung")
        );
        // A hang is a failure, too: after 20 times the time that the child took with its cure.
        let faulty = || run_child_for(name, fault, environment, hung);
        let fails = || !faulty().is_some_and(|o| o.status.success());
        if let Some(runs) = rate() {
            return print_rate(name, fault, runs, fails);
        }
        if fails() {
            return;
        }
    }
    panic!("{name} passes without its cure ({fault}), {TRIES} times");
}

/// [`hazard`] with a condition that is planted in both children, so that no chance is left.
pub fn hazard_under(name: &str, condition: &str, fault: &str, body: impl FnOnce()) {
    if is_child() {
        return body();
    }
    let sound = run_child(name, condition, &[]).expect("the child hung with its cure");
    let output = String::from_utf8_lossy(&sound.stderr);
    assert!(
        sound.status.success(),
        "{name} fails with its cure: {output}"
    );
    let faults = format!("{condition},{fault}");
    let fails = || !run_child(name, &faults, &[]).is_some_and(|o| o.status.success());
    if let Some(runs) = rate() {
        return print_rate(name, fault, runs, fails);
    }
    assert!(fails(), "{name} passes without its cure ({fault})");
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

/// Checks that the test's child succeeds and that the watchdog has printed these words. With
/// `fault` planted, the child succeeds without the words.
pub fn watchdog_says(name: &str, fault: &str, words: &[&str]) {
    watchdog_says_without(name, "", fault, words);
}

/// [`watchdog_says`] with the cure `off` switched off in both runs.
pub fn watchdog_says_without(name: &str, off: &str, fault: &str, words: &[&str]) {
    for planted in ["", fault] {
        let output = run_child(name, &format!("{off},{planted}"), &[]).expect("the child hung");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        let said = words.iter().all(|words| text.contains(words));
        assert_eq!(said, planted.is_empty(), "{text}");
    }
}

// ---- threads and stops --------------------------------------------------------------------------

/// A world with the default settings.
pub fn world() -> World {
    World::new(Config::default()).unwrap()
}

/// Runs `stopper` on this thread while `mutator` runs on an attached thread. `mutator` must return
/// after its argument was set.
pub fn beside(world: &World, mutator: impl FnOnce(&AtomicBool) + Send, stopper: impl FnOnce()) {
    let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|s| {
        s.spawn(|| {
            let _m = world.attach(std::ptr::null_mut()).unwrap();
            ready.store(true, SeqCst);
            mutator(&done);
        });
        wait_for(&ready);
        stopper();
        done.store(true, SeqCst);
    });
}

/// Stops the world until its stops have met `wanted` running threads. A thread that is still parked
/// from the stop before does not count.
pub fn stop_running(world: &World, wanted: usize, mut look: impl FnMut(&gc_preempt::Stopped<'_>)) {
    let mut met = 0;
    while met < wanted {
        let stopped = world.stop().unwrap();
        look(&stopped);
        let report = stopped.resume();
        met += report.signalled as usize;
        if report.signalled == 0 {
            std::thread::yield_now();
        }
    }
}

/// [`stop_running`] until `enough` threads have been met and two seconds have passed, or `most`
/// have been met: a thread that shares its processor is met once a time slice.
pub fn stop_running_for_a_while(
    world: &World,
    enough: usize,
    most: usize,
    mut look: impl FnMut(&gc_preempt::Stopped<'_>),
) {
    let begun = Instant::now();
    let mut met = 0;
    while met < enough || met < most && begun.elapsed() < Duration::from_secs(2) {
        stop_running(world, 1, &mut look);
        met += 1;
    }
}

/// Waits until another thread has set the flag.
pub fn wait_for(flag: &AtomicBool) {
    while !flag.load(SeqCst) {
        std::thread::yield_now();
    }
}

/// Registers code without an owner.
///
/// # Safety
/// As for `World::register_code`: this program's text stays mapped, and `what` must be true of the
/// range.
pub unsafe fn register(world: &World, range: Range<usize>, what: CodeWhat) -> CodeGuard {
    let spec = CodeSpec {
        range,
        what,
        owner: None,
    };
    // SAFETY: the caller's promise is the one that `register_code` needs.
    unsafe { world.register_code(spec) }.unwrap()
}

/// Spins without a poll until `done` is set.
pub fn spin(done: &AtomicBool) {
    while !done.load(Relaxed) {
        std::hint::spin_loop();
    }
}

/// Counts the conservative words whose complement is a given word. The sink itself does not hold
/// the word that it counts.
pub struct Find {
    not: usize,
    pub count: usize,
}

impl Find {
    pub fn complement_of(not: usize) -> Find {
        Find { not, count: 0 }
    }
}

impl gc_preempt::RootSink for Find {
    fn conservative(&mut self, words: std::ops::Range<usize>) {
        for at in words.step_by(8) {
            // SAFETY: the walker reports readable, aligned ranges of a stopped thread.
            let word = unsafe { std::ptr::read_volatile(at as *const usize) };
            self.count += usize::from(!word == self.not);
        }
    }
    fn exact(&mut self, _: usize, _: u32) {}
    fn derived(&mut self, _: usize, _: usize, _: u32) {}
}

/// Calls `f` on another stack than the thread's.
pub fn on_stack(stack: &mut [u64], f: extern "C" fn()) {
    let top = stack.as_mut_ptr_range().end as usize & !15;
    // SAFETY: the stack is large enough for `f`, which does not unwind. `f` preserves R12.
    unsafe {
        std::arch::asm!(
            "mov r12, rsp",
            "mov rsp, {top}",
            "call {f}",
            "mov rsp, r12",
            top = in(reg) top,
            f = in(reg) f,
            out("r12") _,
            clobber_abi("C"),
        );
    }
}

/// A thread that std did not start, so that it may end without destructors.
pub struct BareThread<'f>(libc::pthread_t, std::marker::PhantomData<&'f ()>);

impl BareThread<'_> {
    pub fn join(self) {
        // SAFETY: the thread is joined once.
        let error = unsafe { libc::pthread_join(self.0, std::ptr::null_mut()) };
        assert_eq!(error, 0);
    }
}

/// Runs `f` on a thread that std did not start.
pub fn bare_thread<'f, F: FnOnce() + Send + 'f>(f: F) -> BareThread<'f> {
    extern "C" fn body<F: FnOnce()>(f: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: the pointer is the box that is leaked below, and it is taken once.
        let f = unsafe { Box::from_raw(f.cast::<F>()) };
        f();
        std::ptr::null_mut()
    }
    let mut thread = 0;
    let f = Box::into_raw(Box::new(f));
    // SAFETY: the callers join the thread before the data that `f` borrows ends.
    let made =
        unsafe { libc::pthread_create(&raw mut thread, std::ptr::null(), body::<F>, f.cast()) };
    assert_eq!(made, 0);
    BareThread(thread, std::marker::PhantomData)
}
