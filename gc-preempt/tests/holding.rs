//! The thread that holds a stop: the calls that it must not make before the resume, the end of its
//! panics, and threads that do not wait for it while it lets the world run.

mod common;

use common::{beside, hazard, is_child, run_child_for, spin, wait_for, world};
use gc_preempt::{
    AttachError, CodeError, CodeSpec, CodeWhat, Config, HandshakeError, SetupError, StopError,
    World,
};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

#[test]
fn h37_what_would_wait_for_the_own_stop_is_an_error_value() {
    hazard(
        "h37_what_would_wait_for_the_own_stop_is_an_error_value",
        "waits-for-itself",
        || {
            let (a, b) = (world(), world());
            let id = b.attach(std::ptr::null_mut()).unwrap().id();
            let stopped = a.stop().unwrap();
            assert_eq!(a.stop().err(), Some(StopError::HoldsAStop), "the same");
            assert_eq!(b.stop().err(), Some(StopError::HoldsAStop), "another");
            assert_eq!(b.handshake(id, |_| ()), Err(HandshakeError::HoldsAStop));
            for world in [&a, &b] {
                let attached = world.attach(std::ptr::null_mut());
                assert!(matches!(attached, Err(AttachError::HoldsAStop)));
            }
            let new = World::new(Config::default());
            assert!(matches!(new, Err(SetupError::HoldsAStop)));
            let spec = CodeSpec {
                range: 4096..8192,
                what: CodeWhat::Unsafe,
                owner: None,
            };
            // SAFETY: no code runs at these addresses.
            let registered = unsafe { b.register_code(spec) };
            assert!(matches!(registered, Err(CodeError::HoldsAStop)));
            b.warm_up_walks();
            drop(stopped);
            drop(b.stop().unwrap());
            drop(b.attach(std::ptr::null_mut()).unwrap());
        },
    );
}

#[test]
fn h37_a_mutator_that_is_dropped_in_its_threads_stop_leaves_after_it() {
    hazard(
        "h37_a_mutator_that_is_dropped_in_its_threads_stop_leaves_after_it",
        "waits-for-itself",
        || {
            let (a, b) = (world(), world());
            let mutators = || {
                std::thread::scope(|s| s.spawn(|| b.stop().unwrap().mutators().count()).join())
                    .unwrap()
            };
            let m = b.attach(std::ptr::null_mut()).unwrap();
            assert_eq!(m.blocking(mutators), 1);
            let stopped = a.stop().unwrap();
            drop(m);
            drop(stopped);
            assert_eq!(mutators(), 0);
            drop(b.attach(std::ptr::null_mut()).unwrap());

            // A handshake with another thread of the same world.
            let m = b.attach(std::ptr::null_mut()).unwrap();
            let other = AtomicU64::new(0);
            beside(
                &b,
                |done| {
                    // SAFETY: a system call without arguments.
                    other.store(unsafe { libc::gettid() } as u64, SeqCst);
                    spin(done);
                },
                || {
                    while other.load(SeqCst) == 0 {
                        std::thread::yield_now();
                    }
                    let id = gc_preempt::MutatorId(other.load(SeqCst) as u32);
                    b.handshake(id, |stopped| {
                        drop(m);
                        assert_eq!(stopped.id(), id);
                    })
                    .unwrap();
                    assert_eq!(b.stop().unwrap().mutators().count(), 1);
                },
            );
        },
    );
}

#[test]
fn h37_the_last_handle_of_another_world_may_go_in_a_stop() {
    hazard(
        "h37_the_last_handle_of_another_world_may_go_in_a_stop",
        "waits-for-itself",
        || {
            let (a, b) = (world(), world());
            let m = b.attach(std::ptr::null_mut()).unwrap();
            drop(b); // the mutator holds the last reference
            let stopped = a.stop().unwrap();
            drop(m);
            drop(stopped);
            drop(a.attach(std::ptr::null_mut()).unwrap());
        },
    );
}

#[test]
fn h37_a_fork_in_the_own_stop_ends_with_a_message() {
    let name = "h37_a_fork_in_the_own_stop_ends_with_a_message";
    if !is_child() {
        return aborts_with(
            name,
            "waits-for-itself",
            &["fork by the thread that has stopped"],
        );
    }
    let world = world();
    let _stopped = world.stop().unwrap();
    // SAFETY: the process aborts before the call.
    unsafe { libc::fork() };
}

/// Checks that the test's child aborts in time and has printed these words. Without the cure it
/// hangs, or ends in another way.
fn aborts_with(name: &str, fault: &str, words: &[&str]) {
    use std::os::unix::process::ExitStatusExt;
    for fault in ["", fault] {
        let output = run_child_for(name, fault, &[], Duration::from_secs(15));
        let said = output.as_ref().is_some_and(|output| {
            let text = String::from_utf8_lossy(&output.stderr);
            output.status.signal() == Some(libc::SIGABRT) && words.iter().all(|w| text.contains(w))
        });
        assert_eq!(said, fault.is_empty(), "{fault}: {output:?}");
    }
}

/// Runs `body` in a stop in which a stopped thread holds the lock of standard error.
fn with_stderr_taken(world: &World, body: impl FnOnce()) {
    let taken = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let _m = world.attach(std::ptr::null_mut()).unwrap();
            let _lock = std::io::stderr().lock();
            taken.store(true, SeqCst);
            spin(&AtomicBool::new(false));
        });
        wait_for(&taken);
        let _stopped = world.stop().unwrap();
        body();
    });
}

fn set_a_hook_of_the_hosts() {
    std::panic::set_hook(Box::new(|info| eprintln!("the host's hook: {info}")));
}

#[test]
fn h38_a_panic_in_a_stop_aborts_with_its_message_though_the_host_has_set_a_hook() {
    let name = "h38_a_panic_in_a_stop_aborts_with_its_message_though_the_host_has_set_a_hook";
    if !is_child() {
        let words = [
            "urge: panic while the world is stopped",
            "a root sink's fault",
        ];
        return aborts_with(name, "hook-below", &words);
    }
    let world = world();
    set_a_hook_of_the_hosts();
    with_stderr_taken(&world, || panic!("a root sink's fault"));
}

#[test]
fn h38_a_panic_that_waits_in_a_later_hook_of_the_hosts_aborts() {
    let name = "h38_a_panic_that_waits_in_a_later_hook_of_the_hosts_aborts";
    if !is_child() {
        return aborts_with(
            name,
            "stopper-unasked",
            &["urge: panic while the world is stopped"],
        );
    }
    let world = world();
    drop(world.stop().unwrap());
    set_a_hook_of_the_hosts();
    with_stderr_taken(&world, || panic!("a root sink's fault"));
}

#[test]
fn h38_a_panic_whose_message_waits_for_a_lock_aborts() {
    /// A value whose text is made under the lock of standard error.
    struct Locked;
    impl fmt::Display for Locked {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let _lock = std::io::stderr().lock();
            f.write_str("locked")
        }
    }
    let name = "h38_a_panic_whose_message_waits_for_a_lock_aborts";
    if !is_child() {
        return aborts_with(
            name,
            "stopper-unasked",
            &["urge: panic while the world is stopped"],
        );
    }
    with_stderr_taken(&world(), || panic!("{Locked}"));
}

#[test]
fn h38_other_threads_panics_and_those_after_a_stop_reach_the_hosts_hook() {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    let name = "h38_other_threads_panics_and_those_after_a_stop_reach_the_hosts_hook";
    if !is_child() {
        let output = run_child_for(name, "", &[], Duration::from_secs(30)).expect("the child hung");
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let fails = || assert!(std::panic::catch_unwind(|| panic!("planned")).is_err());
    let world = world();
    for round in 1..=3 {
        std::panic::set_hook(Box::new(move |_| {
            SEEN.store(round, SeqCst);
        }));
        let another = World::new(Config::default()).unwrap();
        drop(another.stop().unwrap());
        drop(world.stop().unwrap());
        fails();
        assert_eq!(SEEN.swap(0, SeqCst), round);
        let (go, failed) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|s| {
            // The thread is started before the stop, because its start calls malloc.
            s.spawn(|| {
                wait_for(&go);
                fails();
                failed.store(true, SeqCst);
            });
            let stopped = world.stop().unwrap();
            go.store(true, SeqCst);
            wait_for(&failed);
            drop(stopped);
        });
        assert_eq!(SEEN.swap(0, SeqCst), round);
    }
}

#[test]
fn h43_attaching_does_not_wait_while_a_stopper_lets_the_world_run() {
    hazard(
        "h43_attaching_does_not_wait_while_a_stopper_lets_the_world_run",
        "gate-locked",
        || {
            let world = world();
            let (asks, stopped) = (AtomicBool::new(false), AtomicBool::new(false));
            // On a busy machine the thread that attaches may lose its processor for as long as the
            // world runs, but not in most rounds.
            let attached_meanwhile = (0..40).filter(|_| {
                let first = world.stop().unwrap();
                std::thread::sleep(Duration::from_millis(12));
                drop(first); // the next stop lets the world run for 10 ms
                asks.store(false, SeqCst);
                stopped.store(false, SeqCst);
                std::thread::scope(|s| {
                    s.spawn(|| {
                        asks.store(true, SeqCst);
                        let second = world.stop().unwrap();
                        stopped.store(true, SeqCst);
                        drop(second);
                    });
                    wait_for(&asks);
                    // By now the stopper has found that it must wait.
                    std::thread::sleep(Duration::from_millis(1));
                    let m = world.attach(std::ptr::null_mut()).unwrap();
                    let meanwhile = !stopped.load(SeqCst);
                    drop(m);
                    meanwhile
                })
            });
            assert!(attached_meanwhile.count() >= 10);
        },
    );
}
