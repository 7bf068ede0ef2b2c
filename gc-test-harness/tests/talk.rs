//! The talk's strategies: each stops the kernels that it can stop, and no stop changes an answer.

#[path = "../../gc-preempt/tests/common/mod.rs"]
mod common;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use gc_test_harness::kernels::talk::{Kernel, Strategy};
use gc_test_harness::lab::talk::stage::Stage;
use gc_test_harness::lab::talk::{Spinlock, precision, spinlock, storm};

/// Inputs are a sixteenth of those that are measured.
const PART: u64 = 16;
/// Stops of each kernel under each strategy, and collections.
const STOPS: u32 = 12;
/// A test that waits for longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the strategy stops the kernel while it runs.
fn stops(strategy: Strategy, kernel: Kernel) -> bool {
    let calls = [
        Kernel::Matrix,
        Kernel::Hash,
        Kernel::Search,
        Kernel::Mandelbrot,
    ];
    match strategy {
        Strategy::Unstopped | Strategy::Cooperative => kernel == Kernel::Stores,
        Strategy::Prologue => kernel == Kernel::Stores || calls.contains(&kernel),
        _ => true,
    }
}

fn all() -> impl Iterator<Item = Stage> {
    let pairs = Strategy::ALL
        .into_iter()
        .flat_map(|strategy| Kernel::ALL.map(|kernel| (strategy, kernel)));
    pairs.map(|(strategy, kernel)| Stage::new(kernel, strategy).expect("a stage"))
}

/// Calls its function when it is dropped, also by a panic.
struct Finally<F: Fn()>(F);

impl<F: Fn()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
fn answers_are_right_under_storms() {
    for strategy in Strategy::ALL {
        for kernel in Kernel::ALL {
            let answers = storm(kernel, strategy, STOPS, PART);
            let answers = answers.unwrap_or_else(|why| panic!("{strategy} {kernel}: {why}"));
            assert!(answers > 0);
        }
    }
}

#[test]
fn a_spinlock_deadlocks_without_a_poll_in_its_loop() {
    for strategy in Strategy::ALL {
        let wanted = match strategy {
            Strategy::Unstopped | Strategy::Cooperative | Strategy::Prologue => Spinlock::Deadlocks,
            _ => Spinlock::Ends,
        };
        // Where a stop ends, only a failure waits for so long.
        let longest = match wanted {
            Spinlock::Ends => PATIENCE,
            Spinlock::Deadlocks => Duration::from_millis(20),
        };
        let end = spinlock::play(strategy, longest).expect("plays");
        assert_eq!(end, wanted, "{strategy}");
    }
}

#[test]
fn no_scan_of_a_kernel_misses_a_root() {
    for kernel in [Kernel::List, Kernel::Stores] {
        for strategy in [
            Strategy::BackEdge,
            Strategy::BackEdgeFault,
            Strategy::Step,
            Strategy::Async,
        ] {
            let stage = Stage::new(kernel, strategy).expect("a stage");
            let found = precision::judge(&stage, 20).expect("judges");
            let found = found.expect("the kernel holds references");
            assert_eq!(found.roots_missed, 0, "{strategy} {kernel}: {found:?}");
            assert!(found.stops > 0, "{strategy} {kernel}");
        }
    }
}

#[test]
fn a_strategy_stops_the_loops_that_it_can_stop() {
    for stage in all() {
        let (strategy, kernel) = (stage.strategy, stage.kernel);
        // The time until the kernel is told to end. Where the strategy stops the kernel, only a
        // failure waits for so long.
        let wait = match stops(strategy, kernel) {
            true => PATIENCE,
            false => Duration::from_millis(20),
        };
        let (told, stopped) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let player = scope.spawn(|| stage.on_this_thread(PART, |player| player.run(u64::MAX)));
            while !stage.plays() && !player.is_finished() {
                std::thread::yield_now();
            }
            let bell = scope.spawn(|| {
                let begun = Instant::now();
                while begun.elapsed() < wait && !stopped.load(SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                told.store(true, SeqCst);
                stage.control.over.store(1, SeqCst);
            });
            let end = Finally(|| stopped.store(true, SeqCst));
            let (_, _, told_first) = stage.stop(|_| told.load(SeqCst)).expect("stops");
            drop(end);
            assert_eq!(told_first, !stops(strategy, kernel), "{strategy} {kernel}");
            bell.join().expect("no panic");
            let played = player.join().expect("no panic");
            played.unwrap_or_else(|why| panic!("{stage:?}: {why}"));
        });
    }
}

#[test]
fn asynchronous_code_is_the_code_of_no_strategy() {
    for kernel in Kernel::ALL {
        let bytes = |strategy: Strategy| -> Vec<Vec<u8>> {
            let made = kernel.compile(strategy).expect("compiles");
            made.code.iter().map(|code| code.bytes().to_vec()).collect()
        };
        let none = bytes(Strategy::Unstopped);
        for strategy in Strategy::ALL {
            let same = bytes(strategy) == none;
            assert_eq!(same, strategy.leaves_code_alone(), "{strategy} {kernel}");
        }
    }
}

/// The ways to fault that are no poll.
#[derive(Clone, Copy)]
enum RealFault {
    /// A load elsewhere, at an address that is no page of polls.
    Elsewhere,
    /// A load elsewhere, from a page of polls.
    OfThePage,
    /// A poll's load, from another page.
    OfThePoll,
}

/// Checks that this test's child ends by SIGSEGV after a real fault, while the handler of polls is
/// installed and has worked. With the planted fault the handler takes the fault for a poll, again
/// and again, until the child has used up its processor time.
fn dies(name: &str, fault: RealFault, planted: Option<&str>) {
    use std::os::unix::process::ExitStatusExt;
    if !common::is_child() {
        let ends_by = |planted, signal| {
            let output = common::run_child(name, planted, &[]).expect("the child hung");
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(text.contains("the polls work"), "{text}");
            assert_eq!(output.status.signal(), Some(signal), "{planted}: {text}");
        };
        ends_by("", libc::SIGSEGV);
        if let Some(planted) = planted {
            ends_by(planted, libc::SIGPROF);
        }
        return;
    }
    let mut stage = Stage::new(Kernel::Sum, Strategy::BackEdgeFault).expect("a stage");
    std::thread::scope(|scope| {
        let player = scope.spawn(|| stage.on_this_thread(PART, |player| player.run(u64::MAX)));
        while !stage.plays() {
            std::thread::yield_now();
        }
        stage.stop(|_| ()).expect("stops");
        stage.control.over.store(1, SeqCst);
        player.join().expect("no panic").expect("is right");
    });
    eprintln!("the polls work");
    end_after(Duration::from_millis(300));
    match fault {
        RealFault::Elsewhere => read(8),
        RealFault::OfThePage => {
            stage.page().protect().expect("protects");
            read(stage.control.page);
        }
        RealFault::OfThePoll => {
            stage.control.page = 8;
            let _ = stage.on_this_thread(PART, |player| player.run(1));
        }
    }
}

/// Ends the process by SIGPROF when it has run for so long. Waiting does not count.
fn end_after(time: Duration) {
    let time = libc::itimerval {
        it_interval: libc::timeval {
            tv_sec: 0,
            tv_usec: 0,
        },
        it_value: libc::timeval {
            tv_sec: 0,
            tv_usec: time.as_micros() as libc::suseconds_t,
        },
    };
    // SAFETY: the call reads `time`.
    let set = unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const time, std::ptr::null_mut()) };
    assert_eq!(set, 0);
}

fn read(address: usize) {
    // SAFETY: none. The word is not readable, and the process ends here.
    std::hint::black_box(unsafe { (address as *const u64).read_volatile() });
}

#[test]
fn a_real_fault_ends_the_process() {
    dies("a_real_fault_ends_the_process", RealFault::Elsewhere, None);
}

#[test]
fn h124_a_fault_of_the_poll_page_that_is_no_poll_ends_the_process() {
    let name = "h124_a_fault_of_the_poll_page_that_is_no_poll_ends_the_process";
    dies(name, RealFault::OfThePage, Some("polls-by-page"));
}

#[test]
fn h124_a_fault_of_a_poll_elsewhere_ends_the_process() {
    let name = "h124_a_fault_of_a_poll_elsewhere_ends_the_process";
    dies(name, RealFault::OfThePoll, Some("polls-by-load"));
}

#[test]
fn a_real_fault_goes_to_the_handler_that_was_there_before() {
    let name = "a_real_fault_goes_to_the_handler_that_was_there_before";
    const CODE: i32 = 42;
    extern "C" fn leave(_: i32) {
        // SAFETY: ends the process, from any state.
        unsafe { libc::_exit(CODE) };
    }
    if !common::is_child() {
        let output = common::run_child(name, "", &[]).expect("the child hung");
        assert_eq!(output.status.code(), Some(CODE), "{output:?}");
        return;
    }
    // SAFETY: the handler is async-signal-safe.
    unsafe { libc::signal(libc::SIGSEGV, leave as *const () as usize) };
    let _stage = Stage::new(Kernel::Sum, Strategy::BackEdgeFault).expect("a stage");
    read(8);
}

#[test]
fn the_command_prints_its_figures_as_json() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_gclab"))
        .args([
            "talk",
            "--quick",
            "--json",
            "--strategy",
            "none",
            "--strategy",
            "backedge",
        ])
        .args(["--kernel", "sum", "--kernel", "list"])
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    // Without preemption each stop is missed, which the talk expects.
    assert!(!text.contains("has not answered a stop"), "{text}");
    let all: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    let strategies = all["strategies"].as_array().expect("an array");
    let names: Vec<_> = strategies.iter().map(|one| &one["strategy"]).collect();
    assert_eq!(names, ["none", "backedge"]);
    let list = &strategies[1]["kernels"][1];
    assert_eq!(list["kernel"], "list");
    // On a machine that is so busy that a stop takes a second there may be no time.
    assert!(list.get("stop_us").is_some(), "{list}");
    assert!(list["slow_down"]["percent"].is_f64(), "{list}");
    if let Some(missed) = list["precision"].get("roots_missed_cells") {
        assert_eq!(missed, 0, "{list}");
    }
    assert!(list["code_bytes"].as_u64() > Some(0), "{list}");
    assert!(
        all["claims"]
            .as_array()
            .is_some_and(|claims| !claims.is_empty())
    );
}
