//! System calls that a stop's signal ends with EINTR in spite of SA_RESTART, and a check that no
//! call ends so in `blocking` (H5).
//!
//! `docs/hosting.md` lists these calls, after signal(7). Each test makes them while the world is
//! stopped repeatedly.

mod common;

use common::{is_child, run_child, world};
use gc_preempt::Mutator;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The time that an uninterrupted call waits, in milliseconds.
const WAIT: i32 = 40;

fn timespec() -> libc::timespec {
    libc::timespec {
        tv_sec: 0,
        tv_nsec: i64::from(WAIT) * 1_000_000,
    }
}

/// Whether a call that returned `result` ended with EINTR.
fn interrupted(result: i64) -> bool {
    let error = std::io::Error::last_os_error().raw_os_error();
    result < 0 && error == Some(libc::EINTR)
}

/// The two ends of a stream. A receive ends after [`WAIT`].
fn sockets() -> [i32; 2] {
    let mut pair = [0; 2];
    let time = libc::timeval {
        tv_sec: 0,
        tv_usec: i64::from(WAIT) * 1_000,
    };
    // SAFETY: the call fills the pair, and the option's value is a timeval.
    unsafe {
        let made = libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr());
        assert_eq!(made, 0);
        for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
            let set = libc::setsockopt(
                pair[0],
                libc::SOL_SOCKET,
                option,
                (&raw const time).cast(),
                size_of_val(&time) as u32,
            );
            assert_eq!(set, 0);
        }
    }
    pair
}

/// The name of a call, as in the documentation, and a function that makes the call, waits for
/// [`WAIT`] and gives its result.
type Call = (&'static str, Box<dyn Fn() -> i64>);

fn calls() -> Vec<Call> {
    let pair = sockets();
    let full = sockets();
    let junk = [0_u8; 4096];
    // SAFETY: a buffer of that size and an open socket. The loop ends when the socket has no more
    // room.
    while unsafe { libc::send(full[0], junk.as_ptr().cast(), 4096, libc::MSG_DONTWAIT) } > 0 {}
    // SAFETY: the calls make descriptors and an IPC object of this process.
    let (epoll, semaphores) = unsafe {
        let semaphores = libc::semget(libc::IPC_PRIVATE, 1, 0o600);
        (libc::epoll_create1(0), semaphores)
    };
    assert!(epoll >= 0 && semaphores >= 0);
    let null: *mut u8 = std::ptr::null_mut();
    let word = Box::leak(Box::new(0_u32));
    let word = std::ptr::from_mut(word) as usize;
    // All calls below get open descriptors, and buffers and times that live until the call returns.
    vec![
        (
            "nanosleep",
            Box::new(move || {
                // SAFETY: the arguments are valid until the call returns.
                unsafe { i64::from(libc::nanosleep(&timespec(), null.cast())) }
            }),
        ),
        (
            "clock_nanosleep",
            Box::new(move || {
                let time = timespec();
                // The call returns the error.
                // SAFETY: the arguments are valid until the call returns.
                let error = unsafe {
                    libc::clock_nanosleep(libc::CLOCK_MONOTONIC, 0, &raw const time, null.cast())
                };
                if error == libc::EINTR { set_eintr() } else { 0 }
            }),
        ),
        (
            "poll",
            Box::new(move || {
                // SAFETY: the arguments are valid until the call returns.
                unsafe { i64::from(libc::poll(null.cast(), 0, WAIT)) }
            }),
        ),
        (
            "ppoll",
            Box::new(move || {
                // SAFETY: the arguments are valid until the call returns.
                unsafe { i64::from(libc::ppoll(null.cast(), 0, &timespec(), null.cast())) }
            }),
        ),
        (
            "select",
            Box::new(move || {
                let mut time = libc::timeval {
                    tv_sec: 0,
                    tv_usec: i64::from(WAIT) * 1_000,
                };
                // SAFETY: the arguments are valid until the call returns.
                unsafe {
                    i64::from(libc::select(
                        0,
                        null.cast(),
                        null.cast(),
                        null.cast(),
                        &raw mut time,
                    ))
                }
            }),
        ),
        (
            "epoll_wait",
            Box::new(move || {
                let mut event = libc::epoll_event { events: 0, u64: 0 };
                // SAFETY: the arguments are valid until the call returns.
                unsafe { i64::from(libc::epoll_wait(epoll, &raw mut event, 1, WAIT)) }
            }),
        ),
        (
            "futex",
            Box::new(move || {
                // SAFETY: the arguments are valid until the call returns.
                unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT, 0, &timespec()) }
            }),
        ),
        (
            "sigtimedwait",
            Box::new(move || {
                // SAFETY: zero is an empty set.
                let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
                // SAFETY: the arguments are valid until the call returns.
                unsafe {
                    libc::sigemptyset(&raw mut set);
                    libc::sigaddset(&raw mut set, libc::SIGUSR1);
                    i64::from(libc::sigtimedwait(&raw const set, null.cast(), &timespec()))
                }
            }),
        ),
        (
            "semtimedop",
            Box::new(move || {
                let mut down = libc::sembuf {
                    sem_num: 0,
                    sem_op: -1,
                    sem_flg: 0,
                };
                // SAFETY: the arguments are valid until the call returns.
                unsafe {
                    libc::syscall(
                        libc::SYS_semtimedop,
                        semaphores,
                        &raw mut down,
                        1,
                        &timespec(),
                    )
                }
            }),
        ),
        (
            "recv",
            Box::new(move || {
                let mut byte = 0_u8;
                // SAFETY: the arguments are valid until the call returns.
                unsafe { libc::recv(pair[0], (&raw mut byte).cast(), 1, 0) as i64 }
            }),
        ),
        (
            "send",
            Box::new(move || {
                // SAFETY: the arguments are valid until the call returns.
                unsafe { libc::send(full[0], junk.as_ptr().cast(), 4096, 0) as i64 }
            }),
        ),
    ]
}

/// Sets errno to EINTR, as a call that a signal ended.
fn set_eintr() -> i64 {
    // SAFETY: errno's address is valid.
    unsafe { *libc::__errno_location() = libc::EINTR };
    -1
}

/// The calls that ended with EINTR while the world was stopped every few milliseconds.
fn interrupted_calls(run: impl Fn(&Mutator, &dyn Fn() -> i64) -> i64) -> Vec<&'static str> {
    let world = world();
    let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|s| {
        s.spawn(|| {
            while !ready.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            while !done.load(Ordering::SeqCst) {
                drop(world.stop().expect("no mutator"));
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        let mutator = world.attach(std::ptr::null_mut()).expect("attaches");
        ready.store(true, Ordering::SeqCst);
        let mut found = Vec::new();
        for (name, call) in calls() {
            // Some tries end before a stop comes.
            if (0..5).any(|_| interrupted(run(&mutator, &*call))) {
                found.push(name);
            }
        }
        done.store(true, Ordering::SeqCst);
        found
    })
}

#[test]
fn h5_calls_that_end_in_eintr_are_named_and_none_does_in_blocking() {
    let name = "h5_calls_that_end_in_eintr_are_named_and_none_does_in_blocking";
    if is_child() {
        let inside = interrupted_calls(|mutator, call| mutator.blocking(call));
        assert_eq!(inside, [""; 0], "in blocking");
        let text = include_str!("../../docs/hosting.md");
        let outside = interrupted_calls(|_, call| call());
        assert!(outside.len() > 8, "stops interrupt calls: {outside:?}");
        for name in outside {
            assert!(text.contains(&format!("`{name}`")), "{name} is not named");
        }
        return;
    }
    for fault in ["", "signal-blocked"] {
        let output = run_child(name, fault, &[]).expect("the child hung");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), fault.is_empty(), "{text}");
    }
}
